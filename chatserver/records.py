"""How what is said is kept in a log, and told again."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final, TypeAlias

import msgspec

from chatserver.channels import Channel
from chatserver.message import LOBBY, SPEAKERS, Info, Message, Publish
from chatserver.protocol import check_body
from chatserver.protocol.payload import body_of, payload, with_body
from chatserver.store import Entry, Record

MESSAGE: Final = "message"
"""The kind of an event that is told as a `Message`."""

Said: TypeAlias = tuple[str | None, Info]
"""The text of a message, if it has one, and who said it: what is at hand needn't be read out of the record again."""


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    body: str


class _Info(msgspec.Struct, omit_defaults=True):
    user: str = ""
    client: str = ""
    conn: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    chan: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Meta(msgspec.Struct, omit_defaults=True):
    info: _Info | None = None
    tags: dict[str, str] | None = None


_encode = msgspec.json.Encoder().encode
_skip = msgspec.json.Decoder(msgspec.Raw).decode
_decode_body = msgspec.json.Decoder(_Body).decode
_decode_meta = msgspec.json.Decoder(_Meta).decode


def data_of(body: str, data: str = "") -> str:
    """The payload: `{"body": "text"}`, or `data`, whose `body` is brought in line with `body`."""
    if not data:
        return f'{{"body":{_encode(body).decode()}}}'
    return data if (body_of(data) or "") == body else with_body(data, body)


def meta_of(info: Info | None, tags: Mapping[str, str] | None = None) -> str | None:
    """What is kept beside the payload: who said it, and its tags."""
    if info is None and not tags:
        return None
    who = _Info(info.user, info.client, _raw(info.conn), _raw(info.chan)) if info else None
    return _encode(_Meta(who, dict(tags) if tags else None)).decode()


@lru_cache(SPEAKERS)
def _meta_of(info: Info) -> str | None:
    """Those who talk say who they are with each message."""
    return meta_of(info)


def said(room: str, raw: bytes, max_body_bytes: int, *, key: str | None = None) -> Publish:
    """The command that says the payload `raw`. Raises `BadRequest`, and `ChatError` for a text that nobody may say."""
    data, body = "", _just_text(raw)
    if body is None:
        data = payload(raw)
        body = body_of(data) or ""
        data = "" if data == data_of(body) else data
    check_body(body, max_body_bytes)
    return Publish(body, room, data, key)


def entry_of(command: Publish, user: str, info: Info) -> Entry:
    """What is to be appended when `user` says what `command` has."""
    return Entry(command.room, user, data_of(command.body, command.data), MESSAGE, command.key, _meta_of(info))


def entry_for(message: Message, key: str | None = None) -> Entry:
    """What is to be appended for `message`, which no client says."""
    data = data_of(message.body or "", message.data)
    return Entry(message.room, message.user, data, MESSAGE, key, meta_of(message.info, message.tags))


def message_of(record: Record, room: str = LOBBY, *, positioned: bool = True) -> Message | None:
    """What members of `room` are told of `record`; None if it is nothing that they know."""
    if record.kind != MESSAGE or not _is_json(record.data):
        return None
    offset = record.offset if positioned else 0
    meta = _decode_meta(record.meta) if record.meta else _Meta()
    return Message(record.user, body_of(record.data), room, record.data, offset, _info(meta.info), meta.tags)


def messages_of(records: Iterable[Record], channel: Channel) -> list[Message]:
    """Those of `records` that are messages, as members of `channel` are told of them."""
    messages = (message_of(record, channel.name, positioned=channel.positioned) for record in records)
    return [message for message in messages if message]


def speaker(record: Record) -> Info | None:
    """Who said `record`; None for a program."""
    return _info(_decode_meta(record.meta).info) if record.meta else None


def _just_text(raw: bytes) -> str | None:
    """The text of a payload that is what `data_of` makes of one; None for others. It is no use to keep more of it."""
    if not raw.startswith(b'{"body":"'):
        return None
    try:
        text = _decode_body(raw).body
    except ValueError:
        return None
    return text if _encode(_Body(text)) == raw else None


def _is_json(data: str) -> bool:
    try:
        _skip(data)
    except msgspec.DecodeError:  # somebody else wrote to the storage
        return False
    return True


def _info(info: _Info | None) -> Info | None:
    return Info(info.user, info.client, _text(info.conn), _text(info.chan)) if info else None


def _raw(text: str) -> msgspec.Raw | msgspec.UnsetType:
    return msgspec.Raw(text.encode()) if text else msgspec.UNSET


def _text(raw: msgspec.Raw | msgspec.UnsetType) -> str:
    return "" if raw is msgspec.UNSET else bytes(raw).decode()
