"""`/api`: the rooms' history for programs, and a way to publish without a WebSocket."""

import asyncio
import re
from typing import Final

import msgspec
from aiohttp import web

from chatserver import answers, openapi, query, server_api
from chatserver.access import guarded
from chatserver.config import CONFIG
from chatserver.errors import BadRequest
from chatserver.keys import POOL, ROOMS, SESSIONS
from chatserver.message import Position
from chatserver.openapi import Published, Said
from chatserver.protocol import check_body
from chatserver.records import data_of
from chatserver.rooms import Rooms
from chatserver.server_methods import Node
from chatserver.store import Entry

LIMIT: Final = 50
MAX_LIMIT: Final = 200
"""Messages of one page."""

KEY_HEADER: Final = "Idempotency-Key"

_NUMBER: Final = re.compile(r"-?\d{1,1000}", re.ASCII)
_KEY: Final = re.compile(r"[!-~]{1,128}")
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
    return answers.json(openapi.history(rooms.store.epoch, records, place))


async def publish(request: web.Request) -> web.Response:
    """`POST /api/rooms/{room}/messages`: says something; answers when it is stored."""
    rooms = request.config_dict[ROOMS]
    room, key = _room(request), _key(request)
    said = await _said(request)
    await rooms.ready(room)
    entry = Entry(room, said.user, data_of(said.body), key=key)
    stamp = await asyncio.shield(rooms.append(entry))
    return answers.json(Published(rooms.store.epoch, stamp.offset, stamp.time), status=201)


async def describe(request: web.Request) -> web.Response:
    """`GET /api/openapi.json`."""
    return answers.json(openapi.document(token=bool(request.config_dict[CONFIG].api_token)))


async def _place_before(rooms: Rooms, room: str, end: int | None) -> int:
    """Where one stands who finds no events before `end`. Asked before they are read: what is appended in the meantime
    comes after it."""
    top = (await rooms.store.top([room]))[room]
    return top if end is None else max(0, min(top, end - 1))


def _room(request: web.Request) -> str:
    return request.config_dict[ROOMS].channels.find(request.match_info["room"]).name


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
    said = answers.parse(_decode, await answers.read(request))
    if not query.is_user(said.user):
        raise BadRequest(f"user: {query.USER_RULE}")
    check_body(said.body, request.config_dict[CONFIG].max_body_bytes)
    return said


def setup(app: web.Application) -> None:
    """Serves `/api`."""
    api = web.Application(middlewares=[answers.answer_errors])
    api.router.add_get("/openapi.json", describe)
    api.router.add_get("/rooms/{room}/messages", guarded(history))
    api.router.add_post("/rooms/{room}/messages", guarded(publish))
    server_api.add_routes(api, Node(app[POOL], app[ROOMS], app[SESSIONS], app[CONFIG].max_body_bytes))
    app.add_subapp("/api", api)
