"""The Centrifuge protocol in its two forms."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Annotated, Any, Final

import msgspec

from chatserver import frames
from chatserver.errors import ChatError, InternalError, Malformed, TooManyMessages
from chatserver.message import SPEAKERS, Changes, Event, Info, Joined, Left, Message, Notice
from chatserver.protocol import protobuf, wire
from chatserver.protocol.nulls import without_nulls
from chatserver.protocol.schema import FIELDS
from chatserver.protocol.wire import raw

_TEMPORARY: Final = {InternalError.code, TooManyMessages.code}

_SHORT: Final = 1000
"""What is longer isn't kept of everybody who speaks."""

_NAMES: Final = {field.message: field.name for kind in (wire.Reply, wire.Push) for field in FIELDS[kind]}
"""Of the fields that hold a result or the body of a push, by its type."""

_JSON_NAMES: Final = {kind: name.encode() for kind, name in _NAMES.items()}

_BARE: Final = {kind: f'"{name}":{{}}' for kind, name in _NAMES.items() if kind and not kind.__struct_fields__}
"""Results without fields."""


class _Text(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    body: str


class _TextRequest(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    channel: str
    data: _Text


class _TextCommand(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    id: Annotated[int, msgspec.Meta(ge=1, le=0xFFFF_FFFF)]
    publish: _TextRequest


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(wire.Command).decode
_decode_text = msgspec.json.Decoder(_TextCommand).decode


class _Form(ABC):
    """What is the same in both forms."""

    @abstractmethod
    def text(self, frame: str | bytes) -> tuple[int, str, str] | None:
        """The id, the channel and the text of a frame that says just a text, `{"body": "…"}`, as most do; None for
        others, and for what isn't understood at first sight."""

    @abstractmethod
    def _only(self, frame: str | bytes) -> wire.Command | None:
        """What `command` returns; may raise `ValueError`, `RecursionError` and `Malformed`, too."""

    @abstractmethod
    def _piece(self, reply: wire.Reply) -> bytes: ...

    @abstractmethod
    def _together(self, pieces: Sequence[bytes]) -> bytes:
        """One piece with all that is in `pieces`, of which some may be empty."""

    def _message(self, message: Message) -> bytes:
        return self.push(message.room, publication(message))

    def command(self, frame: str | bytes) -> wire.Command | None:
        """The command in a frame that has just one, which may ask for nothing; None for others, and for what isn't
        understood at first sight.
        """
        try:
            return self._only(frame)
        except (ValueError, RecursionError, Malformed):
            return None

    def reply(self, id: int, result: wire.Result) -> bytes:
        """The piece that tells the sender of command `id` its result."""
        field: dict[str, Any] = {_NAMES[type(result)]: result}
        return self._piece(wire.Reply(id=id, **field))

    def failure(self, id: int, error: ChatError) -> bytes:
        """The piece that tells the sender of command `id` why it was refused."""
        return self._piece(wire.Reply(id=id, error=wire.Error(error.code, str(error), error.code in _TEMPORARY)))

    def push(self, channel: str, body: wire.PushBody) -> bytes:
        """The piece that tells a client something unasked; of no channel if `channel` is empty."""
        field: dict[str, Any] = {_NAMES[type(body)]: body}
        return self._piece(wire.Reply(push=wire.Push(channel, **field)))

    def encode(self, event: Event) -> bytes:
        if isinstance(event, Message):
            return self._message(event)
        if isinstance(event, Notice):
            return self.push("", wire.PushMessage(raw(_encode({"notice": event.body}))))
        if isinstance(event, Changes):
            return b"" if event.crowd else self._together([self.encode(change) for change in event.changes])
        if isinstance(event, Joined | Left) and event.info:
            body = wire.Join if isinstance(event, Joined) else wire.Leave
            return self.push(event.room, body(client_info(event.info)))
        return b""  # a command is refused by `failure`


class Json(_Form):
    """One object a line; what is sent together are the lines of one text frame."""

    def __init__(self, ping: bytes = frames.text(b"{}")) -> None:
        """`ping`: a whole frame, the protocol's own or WebSocket's."""
        self.ping = ping

    def commands(self, frame: str | bytes) -> Iterator[wire.Command]:
        """The commands in a frame, one at a time: what is before a malformed one counts. Raises `Malformed`."""
        lines = frame.split("\n") if isinstance(frame, str) else frame.split(b"\n")
        if len(lines) > 1 and not lines[-1]:
            lines.pop()
        for line in lines:
            yield _command(line)

    def join(self, pieces: Sequence[bytes]) -> bytes:
        lines = pieces[0] if len(pieces) == 1 else self._together(pieces)
        return frames.text(lines) if lines else b""

    def reply(self, id: int, result: wire.Result) -> bytes:
        bare = _BARE.get(type(result))
        if bare and id:
            return f'{{"id":{id},{bare}}}'.encode()
        if not id:  # of a command that forgot it
            return super().reply(id, result)
        return b'{"id":%d,"%b":%b}' % (id, _JSON_NAMES[type(result)], _encode(result))

    def text(self, frame: str | bytes) -> tuple[int, str, str] | None:
        # Without escapes a text is kept as it came, and a field that stands twice can be seen.
        if not isinstance(frame, str) or "\\" in frame or "\n" in frame or frame.count('"body"') != 1:
            return None
        try:
            command = _decode_text(frame)
        except (ValueError, RecursionError):
            return None
        request = command.publish
        return command.id, request.channel, request.data.body

    def _only(self, frame: str | bytes) -> wire.Command | None:
        return _decode(frame) if isinstance(frame, str) and "\n" not in frame else None

    def _together(self, pieces: Sequence[bytes]) -> bytes:
        return b"\n".join(filter(None, pieces))

    def _piece(self, reply: wire.Reply) -> bytes:
        return _encode(reply)

    def _message(self, message: Message) -> bytes:
        """What all of a room are told of nearly all messages is put together from what is there: in half the time."""
        info, data, offset = message.info, message.data, message.offset
        if not data or not offset or message.tags or not info or len(info.conn) + len(info.chan) > _SHORT:
            return super()._message(message)
        return f'{_opened(message.room)}{data}{_by(info)},"offset":{offset}}}}}}}'.encode()


class Protobuf(_Form):
    """Messages with their lengths in front; what is sent together is one binary frame."""

    def __init__(self, ping: bytes = frames.binary(b"\0")) -> None:
        """`ping`: a whole frame, the protocol's own or WebSocket's."""
        self.ping = ping

    def commands(self, frame: str | bytes) -> Iterator[wire.Command]:
        """The commands in a frame, one at a time: what is before a malformed one counts. Raises `Malformed`."""
        if not frame:
            raise Malformed
        data = frame.encode(errors="surrogatepass") if isinstance(frame, str) else frame
        for message in protobuf.split(data):
            yield _checked(protobuf.decode(wire.Command, message))

    def join(self, pieces: Sequence[bytes]) -> bytes:
        messages = self._together(pieces)
        return frames.binary(messages) if messages else b""

    def text(self, frame: str | bytes) -> tuple[int, str, str] | None:
        return None

    def _only(self, frame: str | bytes) -> wire.Command | None:
        messages = list(protobuf.split(frame)) if isinstance(frame, bytes) else []
        return protobuf.decode(wire.Command, messages[0]) if len(messages) == 1 else None

    def _together(self, pieces: Sequence[bytes]) -> bytes:
        return b"".join(pieces)

    def _piece(self, reply: wire.Reply) -> bytes:
        return protobuf.delimited(reply)


def publication(message: Message) -> wire.Publication:
    """`message` as the members of a room are told, live and later."""
    return wire.Publication(
        data=raw(message.data or _encode({"body": message.body})),
        info=client_info(message.info) if message.info else None,
        offset=message.offset,
        tags=dict(message.tags) if message.tags else {},
    )


def client_info(info: Info) -> wire.ClientInfo:
    """Who somebody is, as clients are told."""
    return wire.ClientInfo(info.user, info.client, raw(info.conn), raw(info.chan))


@lru_cache(SPEAKERS)
def _opened(room: str) -> str:
    channel = f'"channel":{_encode(room).decode()},' if room else ""
    return f'{{"push":{{{channel}"pub":{{"data":'


@lru_cache(SPEAKERS)
def _by(info: Info) -> str:
    return f',"info":{_encode(client_info(info)).decode()}'


def _command(line: str | bytes) -> wire.Command:
    try:
        try:
            command = _decode(line)
        except msgspec.ValidationError:  # few clients send nulls: the others aren't slowed down for them
            command = _decode(_encode(without_nulls(wire.Command, line)))
    except (ValueError, RecursionError):
        raise Malformed from None
    return _checked(command)


def _checked(command: wire.Command) -> wire.Command:
    if command.id and command.request is None:
        raise Malformed
    return command
