"""Publications for those who agreed on deltas: each may be told by how it differs from the one before."""

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from chatserver.message import Event, Message
from chatserver.protocol import wire
from chatserver.protocol.centrifuge import Json, Protobuf, publication
from chatserver.protocol.fossil import delta
from chatserver.protocol.wire import raw

_quote = msgspec.json.Encoder().encode


class Whole:
    """Every publication in full; in JSON, its payload is a text then (section 17.1 of the reference)."""

    def __init__(self, form: Json | Protobuf) -> None:
        self.ping = form.ping
        self._form = form
        self._quoted = isinstance(form, Json)

    def encode(self, event: Event) -> bytes:
        if isinstance(event, Message):
            return self._form.push(event.room, self.publication(event))
        return self._form.encode(event)

    def join(self, pieces: Sequence[bytes]) -> bytes:
        return self._form.join(pieces)

    def publication(self, message: Message) -> wire.Publication:
        """`message` as members are told, live and later."""
        whole = publication(message)
        return replace(whole, data=raw(self._payload(bytes(whole.data).decode())))

    def _payload(self, text: str) -> bytes:
        return _quote(text) if self._quoted else text.encode()


class Deltas(Whole):
    """The chain of one room: what is encoded builds on what was encoded before."""

    def __init__(self, form: Json | Protobuf) -> None:
        super().__init__(form)
        self.alone = Whole(form)
        self._last = b""

    def anew(self) -> None:
        self._last = b""

    def publication(self, message: Message) -> wire.Publication:
        whole = publication(message)
        before, self._last = self._last, bytes(whole.data)
        difference = delta(before, self._last) if before else None
        try:
            text = difference.decode() if difference else ""
        except UnicodeDecodeError:  # it would cut a character in two
            text = ""
        if not text:
            return replace(whole, data=raw(self._payload(self._last.decode())))
        return replace(whole, data=raw(self._payload(text)), delta=True)
