"""What requests name: users, rooms, places in a log. Checked at the door."""

import re
import secrets
from typing import Final
from unicodedata import category

import msgspec
from aiohttp import hdrs, web

from chatserver.channels import ROOM_RULE, is_room
from chatserver.message import LOBBY, Position

HISTORY: Final = 1000
"""The most messages that `?history=` gives; who wants more pages through the HTTP API."""

USER_RULE: Final = "1 to 32 of A-Z a-z 0-9 _ . - are allowed, the first of them a letter or digit"

BEARER: Final = "bearer."
"""Before a token that stands among the subprotocols."""

USER_PATTERN: Final = "[A-Za-z0-9][A-Za-z0-9_.-]{0,31}"

NAME_RULE: Final = "1 to 32 characters are allowed, none of them invisible, and no space around them"

_JOINERS: Final = str.maketrans("", "", "\u200c\u200d")  # invisible, and needed in Persian, Hindi and emoji

_USER: Final = re.compile(USER_PATTERN)
_POSITION: Final = re.compile(r"(?:([0-9a-f]{1,64}):)?(\d{1,15})", re.ASCII)
_NUMBER: Final = re.compile(r"\d{1,15}", re.ASCII)


class _About(msgspec.Struct):
    name: str = ""


_about = msgspec.json.Decoder(_About).decode


def is_user(text: str) -> bool:
    """`text` may be a user's name."""
    return _USER.fullmatch(text) is not None


def is_name(text: str) -> bool:
    """`text` may be what somebody wants to be called who has shown no token."""
    seen = text.translate(_JOINERS)
    return 1 <= len(seen) <= len(text) <= 32 and text == text.strip() and not any(map(_is_invisible, seen))


def called(about: str | bytes) -> str:
    """The text `name` in a JSON object about somebody, or an empty text."""
    try:
        return _about(about).name if about else ""
    except (ValueError, RecursionError):  # it is about something else
        return ""


def position(text: str) -> Position:
    """`OFFSET`, or `EPOCH:OFFSET`. Raises `ValueError`."""
    match = _POSITION.fullmatch(text)
    if not match:
        raise ValueError("an offset, or EPOCH:OFFSET, is allowed")
    return Position(match[1] or "", int(match[2]))


def user(request: web.Request) -> str:
    """`?name=`, or a made-up name. Raises `web.HTTPBadRequest` for what can't be one."""
    given = request.query.get("name")
    if not given:
        return f"guest-{secrets.token_hex(3)}"
    if not is_user(given):
        raise web.HTTPBadRequest(text=f"name: {USER_RULE}")
    return given


def room(request: web.Request) -> str:
    """`?room=`, or the lobby. Raises `web.HTTPBadRequest` for what can't be one."""
    given = request.query.get("room") or LOBBY
    if not is_room(given):
        raise web.HTTPBadRequest(text=f"room: {ROOM_RULE}")
    return given


def after(request: web.Request) -> Position | None:
    """`?after=`. Raises `web.HTTPBadRequest` for what is no position."""
    given = request.query.get("after")
    if not given:
        return None
    try:
        return position(given)
    except ValueError as error:
        raise web.HTTPBadRequest(text=f"after: {error}") from None


def history(request: web.Request) -> int:
    """`?history=`, clamped to `HISTORY`. Raises `web.HTTPBadRequest` for what is no number."""
    given = request.query.get("history") or "0"
    if not _NUMBER.fullmatch(given):
        raise web.HTTPBadRequest(text=f"history: a whole number is allowed, at most {HISTORY} count")
    return min(int(given), HISTORY)


def token(request: web.Request) -> str:
    """The token that comes with `request`, or an empty text: `?token=`, `Authorization: Bearer`, or for pages
    `bearer.TOKEN` among the subprotocols.
    """
    given = request.query.get("token", "")
    if not given:
        scheme, _, credentials = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        given = credentials.strip() if scheme.lower() == "bearer" else ""
    return given or next((name.removeprefix(BEARER) for name in _subprotocols(request) if name.startswith(BEARER)), "")


def token_follows(request: web.Request) -> bool:
    """`?auth=message`: the token is the first message."""
    return request.query.get("auth") == "message"


def _subprotocols(request: web.Request) -> list[str]:
    headers = request.headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, [])
    return [name.strip() for header in headers for name in header.split(",")]


def _is_invisible(character: str) -> bool:
    return character != " " and category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp", "Zs")
