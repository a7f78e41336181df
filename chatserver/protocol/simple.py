"""The simple protocol: one JSON object a text frame."""

from collections.abc import Sequence
from typing import Final

import msgspec

from chatserver import frames
from chatserver.errors import (
    BodyInvalid,
    BodyTooLong,
    NotJSON,
    ServerOnly,
    UnknownType,
    WrongShape,
)
from chatserver.message import LOBBY, Changes, Command, Event, Joined, Left, Message, Notice, Publish, Refused

SYSTEM, CHAT = 1, 2

NAMES: Final = 10
"""So many are named of those who came, or went, together: a notice is to be read at a glance."""

_QUOTED = 200  # characters of a complaint: it may quote a field's name as long as the frame


class _Frame(msgspec.Struct, forbid_unknown_fields=True):
    type: int
    body: str


class Simple:
    """`{"type": 1|2, "body": "text"}`, one message a frame: 1 is the server's, 2 is chat.

    The field set is closed and types are strict (`true` is not 1). A field may stand twice: each must be of its type,
    and the last one counts.
    """

    ping: Final = frames.ping()

    def __init__(self, max_body_bytes: int = 0) -> None:
        """`max_body_bytes`: of the body in UTF-8; 0 is no limit but the frame's own."""
        self._max_body_bytes = max_body_bytes
        self._decode = msgspec.json.Decoder(_Frame).decode
        self._encode = msgspec.json.Encoder().encode

    def decode(self, frame: str, room: str = LOBBY) -> Command:
        """The command in a text frame, for `room`. Raises `ChatError` for what the sender is to be told."""
        try:
            message = self._decode(frame)
        except msgspec.ValidationError as error:
            raise WrongShape(str(error)[:_QUOTED]) from None
        except msgspec.DecodeError:
            raise NotJSON from None
        if message.type != CHAT:
            raise ServerOnly if message.type == SYSTEM else UnknownType(f"unknown type {str(message.type)[:_QUOTED]}")
        check_body(message.body, self._max_body_bytes)
        return Publish(message.body, room)

    def encode(self, event: Event) -> bytes:
        if not isinstance(event, Message):
            return frames.text(self._encode(_Frame(SYSTEM, _notice(event))))
        return b"" if event.body is None else frames.text(self._encode(_Frame(CHAT, event.body)))

    def join(self, pieces: Sequence[bytes]) -> bytes:
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def check_body(body: str, max_bytes: int) -> None:
    """Raises `BodyInvalid` or `BodyTooLong` for a text that nobody may say; 0 is no limit."""
    if "\0" in body:
        raise BodyInvalid
    # UTF-8 takes at most four bytes a character: short bodies need no encoding to be measured.
    if max_bytes and len(body) * 4 > max_bytes and len(body.encode()) > max_bytes:
        raise BodyTooLong(f"body too long, at most {max_bytes} bytes")


def _notice(event: Joined | Left | Changes | Notice | Refused) -> str:
    if isinstance(event, Joined | Left):
        return f"{event.user} {_did(event)}"
    if isinstance(event, Changes):
        return _changes(event)
    return event.body if isinstance(event, Notice) else f"error: {event.text} ({event.code})"


def _did(change: Joined | Left) -> str:
    return "connected" if isinstance(change, Joined) else "disconnected"


def _changes(event: Changes) -> str:
    users: dict[str, list[str]] = {}  # what happened first is told first
    for change in event.changes:
        users.setdefault(_did(change), []).append(change.user)
    if event.crowd:
        return f"{', '.join(f'{len(who)} {did}' for did, who in users.items())}; {event.crowd} here"
    return "; ".join(f"{_named(who)} {did}" for did, who in users.items())


def _named(users: Sequence[str]) -> str:
    if len(users) == 1:
        return users[0]
    others = len(users) - NAMES
    if others > 0:
        return f"{', '.join(users[:NAMES])} and {others} other{'s' if others > 1 else ''}"
    return f"{', '.join(users[:-1])} and {users[-1]}"
