"""`/api`: the rooms' history for programs, and a way to publish without a WebSocket."""

import asyncio
import hmac
import re
from collections.abc import Awaitable, Callable, Mapping
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
from chatserver.rooms import Rooms
from chatserver.store import Record

LIMIT: Final = 50
MAX_LIMIT: Final = 200
"""Messages of one page."""

BODY_SECONDS: Final = 10.0
"""For a request's body to arrive."""

KEY_HEADER: Final = "Idempotency-Key"

_NUMBER: Final = re.compile(r"-?\d{1,1000}", re.ASCII)
_KEY: Final = re.compile(r"[!-~]{1,128}")
_LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "[::1]")
_FORWARDED: Final = (
    hdrs.FORWARDED,
    hdrs.VIA,
    hdrs.X_FORWARDED_FOR,
    hdrs.X_FORWARDED_HOST,
    hdrs.X_FORWARDED_PROTO,
    "X-Real-IP",
)
_STATUS: Final = (
    (Unauthorized, 401),
    (PermissionDenied, 403),
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
_decode = msgspec.json.Decoder(Said).decode


async def history(request: web.Request) -> web.Response:
    """`GET /api/rooms/{room}/messages`: a page of the log, oldest first."""
    rooms = request.config_dict[ROOMS]
    room, limit = _room(request), _limit(request)
    after, before = _position(request, "after"), _position(request, "before")
    if after and before:
        raise BadRequest("after and before: only one of them is allowed")
    if after:
        place = rooms.offset(after)
        records = await rooms.store.read(room, after=place, limit=limit)
    else:
        end = rooms.offset(before) if before else None
        place = await _place_before(rooms, room, end)
        records = await rooms.store.read(room, before=end, limit=limit)
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
    return _json(openapi.document(token=bool(request.config_dict[CONFIG].api_token)))


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


def guarded(handler: Callable[[web.Request], Awaitable[web.Response]]) -> Handler:
    """`handler` for those who may: with `API_TOKEN`, or from this machine if there is none."""

    async def checked(request: web.Request) -> web.StreamResponse:
        _check(request, request.config_dict[CONFIG])
        return await handler(request)

    return checked


def _check(request: web.Request, config: Config) -> None:
    if config.api_token:
        scheme, _, token = ",".join(request.headers.getall(hdrs.AUTHORIZATION, [])).partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(_bytes(token.strip()), _bytes(config.api_token)):
            raise Unauthorized
    elif not _is_local(request):
        raise PermissionDenied("set API_TOKEN to use the API from elsewhere than this machine")


def _bytes(token: str) -> bytes:
    """As it came: neither headers nor environment variables need be UTF-8."""
    return token.encode(errors="surrogateescape")


def _is_local(request: web.Request) -> bool:
    """Neither a proxy on this machine nor a web page in a browser on it speaks for somebody else."""
    host = request.headers.get(hdrs.HOST, "")
    name = host.rpartition(":")[0] if re.search(r":[0-9]+$", host) else host
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


async def _place_before(rooms: Rooms, room: str, end: int | None) -> int:
    """Where one stands who finds no events before `end`. Asked before they are read: what is appended in the meantime
    comes after it."""
    top = (await rooms.store.top([room]))[room]
    return top if end is None else max(0, min(top, end - 1))


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
    said = _parse(await _read(request))
    if not query.is_user(said.user):
        raise BadRequest(f"user: {query.USER_RULE}")
    check_body(said.body, request.config_dict[CONFIG].max_body_bytes)
    return said


async def _read(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.read()
    except TimeoutError:
        raise _refusal(408, BadRequest.code, f"the body didn't come within {BODY_SECONDS:g} s") from None
    except web.RequestPayloadError:
        raise BadRequest("the body isn't what its headers say") from None


def _parse(text: bytes) -> Said:
    """Raises `BadRequest`, which quotes nothing of `text`: it is logged."""
    try:
        return _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        problem = str(error)
        raise BadRequest("there is an unknown field" if "unknown field" in problem else problem) from None


def _stored(record: Record) -> Stored:
    return Stored(record.offset, record.time, record.user, record.kind, msgspec.Raw(record.data.encode()), record.key)


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=_encode(value), status=status, content_type="application/json")


def _refusal(status: int, code: int, message: str, headers: Mapping[str, str] | None = None) -> web.HTTPException:
    headers = headers or _HEADERS.get(status)
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
