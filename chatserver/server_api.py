"""`POST /api/METHOD`: the server API, as existing client libraries call it."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec
from aiohttp import web

from chatserver import answers, server_methods
from chatserver.access import guarded
from chatserver.errors import BodyTooLong, ChatError, InternalError, UnknownChannel, Unrecoverable
from chatserver.openapi import MODE_HEADER
from chatserver.server_api_types import SIGNATURES
from chatserver.server_methods import METHODS, Method, Node

_STATUS: Final[Mapping[int, int]] = {
    InternalError.code: 500,
    UnknownChannel.code: 404,
    Unrecoverable.code: 416,
    BodyTooLong.code: 413,
}
"""Of an error, for those who want one; of all others 400."""


def add_routes(api: web.Application, node: Node) -> None:
    """Serves all methods."""
    for name, method in METHODS.items():
        api.router.add_post(f"/{name}", guarded(_endpoint(node, name, method, _result)))
    api.router.add_post("/batch", guarded(_endpoint(node, "batch", server_methods.batch, answers.json)))


def _endpoint(
    node: Node, name: str, method: Method, answer: Callable[[Any], web.Response]
) -> Callable[[web.Request], Awaitable[web.Response]]:
    decode = msgspec.json.Decoder(SIGNATURES[name][0]).decode

    async def handle(request: web.Request) -> web.Response:
        wanted = answers.parse(decode, await answers.read(request))
        try:
            return answer(await method(node, wanted))
        except ChatError as error:
            return _failure(request, error)

    return handle


def _result(result: object) -> web.Response:
    return answers.json({"result": result})


def _failure(request: web.Request, error: ChatError) -> web.Response:
    failure = server_methods.failure(error)
    if request.headers.get(MODE_HEADER) == "transport":
        return answers.json(failure, _STATUS.get(failure.code, 400))
    return answers.json({"error": failure})
