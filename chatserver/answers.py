"""What requests to the HTTP API bring, and how they are answered: in JSON, whatever is wrong."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import msgspec
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from chatserver.errors import (
    BadRequest,
    BodyTooLong,
    ChatError,
    InternalError,
    PermissionDenied,
    StorageUnavailable,
    Unauthorized,
    UnknownChannel,
    Unrecoverable,
)
from chatserver.openapi import Problem
from chatserver.server_api_types import Failure

BODY_SECONDS: Final = 10.0
"""For a request's body to arrive."""

_STATUS: Final = (
    (Unauthorized, 401),
    (PermissionDenied, 403),
    (UnknownChannel, 404),
    (Unrecoverable, 410),
    (BodyTooLong, 413),
    (StorageUnavailable, 503),
    (InternalError, 500),
)
_HEADERS: Final[Mapping[int, Mapping[str, str]]] = {
    401: {hdrs.WWW_AUTHENTICATE: "Bearer"},
    503: {hdrs.RETRY_AFTER: "1"},
}
_encode = msgspec.json.Encoder().encode

T = TypeVar("T")


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever is wrong is answered in JSON, with its number."""
    try:
        return await handler(request)
    except ChatError as error:
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), 400)
        raise _refusal(status, error.code, str(error)) from None
    except web.HTTPRequestEntityTooLarge:
        raise _refusal(413, BodyTooLong.code, BodyTooLong.text) from None
    except web.HTTPClientError as error:  # no such path, or not with this method
        allow = {name: value for name, value in error.headers.items() if name == hdrs.ALLOW}
        raise _refusal(error.status, BadRequest.code, error.reason.lower(), allow) from None


async def read(request: web.Request) -> bytes:
    """The body. Raises `BadRequest`, and `web.HTTPException`."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.read()
    except TimeoutError:
        raise _refusal(408, BadRequest.code, f"the body didn't come within {BODY_SECONDS:g} s") from None
    except web.RequestPayloadError:
        raise BadRequest("the body isn't what its headers say") from None


def parse(decode: Callable[[bytes], T], text: bytes) -> T:
    """`text`, decoded. Raises `BadRequest`, which quotes nothing of it: it is logged."""
    try:
        return decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        problem = str(error)
        raise BadRequest("there is an unknown field" if "unknown field" in problem else problem) from None


def json(value: object, status: int = 200) -> web.Response:
    """The answer `value`."""
    return web.Response(body=_encode(value), status=status, content_type="application/json")


def _refusal(status: int, code: int, message: str, headers: Mapping[str, str] | None = None) -> web.HTTPException:
    headers = headers or _HEADERS.get(status)
    refusal = web.HTTPException(
        text=_encode(Problem(Failure(code, message))).decode(), headers=headers, content_type="application/json"
    )
    refusal.set_status(status)
    return refusal
