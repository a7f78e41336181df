"""`/api`: the rooms' history for programs, and a way to publish without a WebSocket."""

import asyncio
import hmac
import re
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Final

import msgspec
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from chatserver import openapi, query
from chatserver.config import CONFIG, Config
from chatserver.errors import (
    BadRequest,
    BodyTooLong,
    ChatError,
    InternalError,
    PermissionDenied,
    StorageUnavailable,
    Unauthorized,
    Unrecoverable,
)
from chatserver.keys import ROOMS
from chatserver.message import Position
from chatserver.openapi import Failure, History, Problem, Published, Said, Stored
from chatserver.protocol import check_body
from chatserver.store import Record

LIMIT: Final = 50
MAX_LIMIT: Final = 200
"""Messages of one page."""

KEY_HEADER: Final = "Idempotency-Key"

_NUMBER: Final = re.compile(r"-?\d{1,18}", re.ASCII)
_KEY: Final = re.compile(r"[!-~]{1,128}")
_LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "[::1]")
_FORWARDED: Final = (hdrs.FORWARDED, hdrs.X_FORWARDED_FOR, "X-Real-IP", "Via")
_STATUS: Final = (
    (Unauthorized, 401),
    (PermissionDenied, 403),
    (Unrecoverable, 410),
    (BodyTooLong, 413),
    (StorageUnavailable, 503),
    (InternalError, 500),
)
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Said).decode


async def history(request: web.Request) -> web.Response:
    """`GET /api/rooms/{room}/messages`: a page of the log, oldest first."""
    rooms = request.config_dict[ROOMS]
    room, limit = _room(request), _limit(request)
    after, before = _position(request, "after"), _position(request, "before")
    if after and before:
        raise BadRequest("after and before: only one of them is allowed")
    if after:
        records, place = await rooms.store.read(room, after=rooms.offset(after), limit=limit), after.offset
    else:
        end = rooms.offset(before) if before else None
        records, place = await rooms.store.read(room, before=end, limit=limit), (await rooms.store.top([room]))[room]
    if records:
        place = records[-1].offset
    epoch = rooms.store.epoch
    return _json(History(epoch, [_stored(record) for record in records], str(Position(epoch, place))))


async def publish(request: web.Request) -> web.Response:
    """`POST /api/rooms/{room}/messages`: says something; answers when it is stored."""
    rooms = request.config_dict[ROOMS]
    room, key = _room(request), _key(request)
    said = await _said(request)
    await rooms.ready(room)
    stamp = await asyncio.shield(rooms.publish(room, said.user, said.body, key=key))
    return _json(Published(rooms.store.epoch, stamp.offset, stamp.time), status=201)


async def describe(request: web.Request) -> web.Response:
    """`GET /api/openapi.json`."""
    return _json(openapi.document())


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


def guarded(handler: Callable[[web.Request], Awaitable[web.Response]]) -> Handler:
    """`handler` for those who may: with `API_TOKEN`, or from this machine if there is none."""

    async def checked(request: web.Request) -> web.StreamResponse:
        _check(request, request.config_dict[CONFIG])
        return await handler(request)

    return checked


def _check(request: web.Request, config: Config) -> None:
    if config.api_token:
        scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), config.api_token.encode()):
            raise Unauthorized
    elif not _is_local(request):
        raise PermissionDenied("set API_TOKEN to use the API from elsewhere than this machine")


def _is_local(request: web.Request) -> bool:
    """Neither a proxy on this machine nor a web page in a browser on it speaks for somebody else."""
    name = request.host.rpartition(":")[0] if re.search(r":\d+$", request.host) else request.host
    return (
        _is_loopback(request.remote or "")
        and name.lower() in _LOCAL_NAMES
        and hdrs.ORIGIN not in request.headers
        and not any(header in request.headers for header in _FORWARDED)
    )


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


def _room(request: web.Request) -> str:
    name = request.match_info["room"]
    if not query.is_room(name):
        raise BadRequest(f"room: {query.ROOM_RULE}")
    return name


def _limit(request: web.Request) -> int:
    text = request.query.get("limit", str(LIMIT))
    if not _NUMBER.fullmatch(text):
        raise BadRequest("limit: a whole number is allowed")
    return max(1, min(int(text), MAX_LIMIT))


def _position(request: web.Request, name: str) -> Position | None:
    text = request.query.get(name)
    if text is None:
        return None
    try:
        return query.position(text)
    except ValueError as error:
        raise BadRequest(f"{name}: {error}") from None


def _key(request: web.Request) -> str | None:
    keys = request.headers.getall(KEY_HEADER, [])
    if keys and (len(keys) > 1 or not _KEY.fullmatch(keys[0])):
        raise BadRequest(f"{KEY_HEADER}: 1 to 128 printable ASCII characters without spaces are allowed")
    return keys[0] if keys else None


async def _said(request: web.Request) -> Said:
    if request.content_type != "application/json":  # which no page elsewhere can send without asking first
        raise BadRequest("Content-Type: application/json is needed")
    try:
        said = _decode(await request.read())
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequest(str(error)) from None
    if not query.is_user(said.user):
        raise BadRequest(f"user: {query.USER_RULE}")
    check_body(said.body, request.config_dict[CONFIG].max_body_bytes)
    return said


def _stored(record: Record) -> Stored:
    return Stored(record.offset, record.time, record.user, record.kind, msgspec.Raw(record.data.encode()), record.key)


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=_encode(value), status=status, content_type="application/json")


def _refusal(status: int, code: int, message: str) -> web.HTTPException:
    headers = {401: {hdrs.WWW_AUTHENTICATE: "Bearer"}, 503: {hdrs.RETRY_AFTER: "1"}}.get(status)
    refusal = web.HTTPException(
        text=_encode(Problem(Failure(code, message))).decode(), headers=headers, content_type="application/json"
    )
    refusal.set_status(status)
    return refusal


def setup(app: web.Application) -> None:
    """Serves `/api`."""
    api = web.Application(middlewares=[answer_errors])
    api.router.add_get("/openapi.json", describe)
    api.router.add_get("/rooms/{room}/messages", guarded(history))
    api.router.add_post("/rooms/{room}/messages", guarded(publish))
    app.add_subapp("/api", api)
