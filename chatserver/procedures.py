"""The chat's own procedures, which clients of the Centrifuge protocol call by RPC."""

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Raw
from msgspec.structs import replace

from chatserver import openapi
from chatserver.errors import BadRequest
from chatserver.history import LIMIT, page
from chatserver.message import Position
from chatserver.protocol import wire
from chatserver.records import said
from chatserver.session import SEND, Procedure, Session
from chatserver.store import Stamp

SHARED_KEY_CHARACTERS: Final = 16
"""Of a key of somebody who has shown no token: all of them share one name, and so the keys."""


class Send(msgspec.Struct, forbid_unknown_fields=True):
    """`send`: says something, once for each key, and tells where it stands."""

    room: str
    body: str | None = None
    data: Raw = Raw()
    """Instead of `body`."""
    key: Annotated[str, Meta(pattern="^[!-~]{1,128}$")] | None = None


class Read(msgspec.Struct, forbid_unknown_fields=True):
    """`history`: a page of a room's log, oldest first; without `after` and `before` the last one."""

    room: str
    after: Annotated[int, Meta(ge=0)] | None = None
    before: Annotated[int, Meta(ge=1)] | None = None
    epoch: str = ""
    limit: Annotated[int, Meta(ge=1)] = 50


_encode = msgspec.json.Encoder().encode
_send = msgspec.json.Decoder(Send).decode
_read = msgspec.json.Decoder(Read).decode


async def send(session: Session, id: int, data: bytes) -> None:
    """See `Send`."""
    wanted = _send(data)
    if (wanted.body is None) == (not wanted.data):
        raise BadRequest("data: either body or data is needed")
    if wanted.key and not session.user and len(wanted.key) < SHARED_KEY_CHARACTERS:
        raise BadRequest(f"key: without a token, at least {SHARED_KEY_CHARACTERS} random characters are needed")
    channel = session.channel(wanted.room)
    channel.check_publish(session.user, member=channel.name in session.subscriptions.by_name)
    raw = bytes(wanted.data) or _encode({"body": wanted.body})
    command = said(channel.name, raw, session.door.config.max_body_bytes, key=wanted.key)
    await session.say(command, id, lambda stamp: _sent(session, stamp))


async def history(session: Session, id: int, data: bytes) -> wire.RPCResult:
    """See `Read`."""
    wanted = _read(data)
    if wanted.after is not None and wanted.before is not None:
        raise BadRequest("data: after and before: only one of them is allowed")
    channel, rooms = session.channel(wanted.room), session.door.rooms
    channel.check_history(session.user, member=channel.name in session.subscriptions.by_name)
    reverse = wanted.after is None
    since = wanted.before if reverse else wanted.after
    if since is not None:
        rooms.offset(Position(wanted.epoch, since))
    await session.client.emptied()
    records, top = await page(rooms.store, channel, limit=min(wanted.limit, LIMIT), since=since, reverse=reverse)
    records = [replace(record, key=None) for record in records]  # others' keys are nobody's business
    if reverse:
        records.reverse()
    place = records[-1].offset if records else min(top, since or top)
    return wire.RPCResult(wire.raw(_encode(openapi.history(rooms.store.epoch, records, place))))


def _sent(session: Session, stamp: Stamp | None) -> wire.RPCResult:
    if stamp is None:
        return wire.RPCResult(wire.raw(b"{}"))
    told = openapi.Published(session.door.rooms.store.epoch, stamp.offset, stamp.time)
    return wire.RPCResult(wire.raw(_encode(told)))


PROCEDURES: Final[dict[str, Procedure]] = {SEND: send, "history": history}
