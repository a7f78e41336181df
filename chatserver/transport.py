"""A WebSocket (RFC 6455) on a connection that aiohttp has accepted, read the request of, and handed over.

aiohttp's own would do to a chat server what this doesn't: its sends wait and can poison each other when one is
cancelled, its `close` may wait for ever on a full buffer, its heartbeat leaves the socket of a dead peer open, it reads
tiny frames without ever yielding to other connections, and it takes several kilobytes for a client that is idle.
"""

import asyncio
import os
import socket
import struct
from base64 import b64encode
from collections.abc import Callable, Sequence
from hashlib import sha1
from typing import Final

from aiohttp import hdrs, web

from chatserver import frames
from chatserver.aiohttp_private import find_unmask, has_send_buffer, take_over
from chatserver.errors import ConnectionLost, Disconnect, PeerClosed, PolicyViolation
from chatserver.fanout import CHANGES
from chatserver.frame_parser import CONTINUATION, PING, FrameParser, Item, Other
from chatserver.turnstile import Turnstile

SEND_BUFFER_BYTES: Final = 64 * 1024
"""Of the kernel, per connection. Fixed, as autotuning would let it grow to megabytes that no RSS shows."""

TLS_BUFFER_BYTES: Final = 32 * 1024
"""So much may wait to be encrypted, which is done at the end of a turn, before the client is parked."""

FRAMES_PER_TURN: Final = 32
"""So many frames of one connection are taken before the others have their turn."""

CONTROL_FRAMES_PER_SECOND: Final = 100
FRAGMENTS_PER_SECOND: Final = 1000
"""Of those smaller than `FRAGMENT_BYTES`: nobody has a reason to cut a message so fine, and each costs as much as a
message."""

FRAGMENT_BYTES: Final = 16

FRAMES_AFTER_END: Final = 1000
"""So many frames are read, and thrown away, of a peer that was told the end, until it answers that. What one that
floods had under way would be a hundred thousand."""

READ_BYTES: Final = 64 * 1024
"""With so much waiting to be parsed nothing more is read: uvloop would take 8 MB of one connection in a row."""

_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 seconds: the kernel forgets unsent data at once
_POLL_SECONDS: Final = 0.02
_UNMASK: Final = find_unmask()
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3


class _HandedOver(web.StreamResponse):
    """What a handler returns when the connection is none of aiohttp's business any more."""

    def __init__(self) -> None:
        super().__init__(status=101)

    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


HANDED_OVER: Final = _HandedOver()
"""The same for all: it has nothing of its own."""


class WebSocketTransport(asyncio.Protocol):
    """One WebSocket. `write` and friends are `chatserver.client.Transport`; `receive` is for the one who reads."""

    __slots__ = (
        "_ends",
        "_frames",
        "_heard",
        "_left",
        "_parser",
        "_reading_paused",
        "_resumed",
        "_socket",
        "_socket_transport",
        "_spent",
        "_spent_since",
        "_waiter",
        "answer",
        "descriptor",
        "lost",
        "paused",
        "subprotocol",
        "take",
        "write",
    )

    def __init__(self, max_message_bytes: int, ends: Turnstile, *, binary: bool = False) -> None:
        """`max_message_bytes`: a longer message ends the connection with 1009; 0 is no limit. `ends`: by which whoever
        reads a connection that is lost hears of it: thousands may be lost at once, and much is done for each.

        `binary`: binary messages are welcome; otherwise they end it with 1003.
        """
        self.write: Callable[[bytes], None] = _discard
        self.descriptor = -1
        self.paused = False
        self.lost = True
        self.subprotocol = ""
        """That was selected."""
        self.answer: Callable[[bytes], None] = self._write
        """Where the pong to a ping goes."""
        self.take: Callable[[str | bytes], bool] | None = None
        """Is offered each message that comes while `receive` waits, in the turn in which it comes; what it doesn't
        take, which it says by returning False, `receive` returns, and what it raises, `receive` raises."""
        self._ends = ends
        self._socket = -1
        self._parser = FrameParser(max_message_bytes, binary=binary, unmask=_UNMASK)
        self._left: Item | Exception | None = None
        self._heard = True
        self._reading_paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._resumed: asyncio.Future[None] | None = None
        self._frames = 0
        self._spent = 0
        self._spent_since = 0.0

    def accept(self, request: web.Request, protocols: Sequence[str] = ()) -> None:
        """Completes the handshake (section 4.2.2), and takes the connection over; the handler has to return
        `HANDED_OVER`.

        `protocols`: the subprotocols that are spoken; the first that the client offers is selected. `request` has been
        found to be a handshake. Raises `ConnectionError` if the peer left.
        """
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the peer left during the handshake")
        offer = request.headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL)
        if offer:
            self.subprotocol = next((name for name in map(str.strip, offer.split(",")) if name in protocols), "")
        switch = _switch(request.headers[hdrs.SEC_WEBSOCKET_KEY], self.subprotocol)
        self._socket_transport = transport
        encrypted = transport.get_extra_info("sslcontext")
        if not encrypted:
            self._socket = transport.get_extra_info("socket").fileno()
        self.lost = False
        self._choose_way()
        take_over(request, transport, self)
        transport.set_write_buffer_limits(high=TLS_BUFFER_BYTES if encrypted else 0)  # pauses, if something waits
        self.write(switch)
        if not has_send_buffer(request):
            self._socket_option(socket.SO_SNDBUF, SEND_BUFFER_BYTES)

    async def receive(self) -> str | bytes:
        """The next message, `str` or, if it is binary, `bytes`.

        Raises `Disconnect` when there will be none: the peer's end, or what it did wrong.
        """
        while True:
            item = self._next()
            if item is None:
                self._read_on()
                await self._more()
                continue
            self._frames += 1
            if self._frames % FRAMES_PER_TURN == 0:
                await asyncio.sleep(0)
            if not isinstance(item, Other):
                return item
            self._take(item)

    async def discard(self) -> None:
        """Reads, and throws away, until the peer closes or the connection is lost; `FRAMES_AFTER_END` at most."""
        for _ in range(FRAMES_AFTER_END):
            try:
                await self.receive()
            except (PeerClosed, ConnectionLost):
                return
            except Disconnect:
                continue
        if not self.lost:
            self._pause_reading()
            await self._more()

    async def finish(self, written: Callable[[], bool]) -> None:
        """Waits until all is `written` and sent, then closes. `abort` ends the wait."""
        while not self.lost and (self.buffered or not written()):  # noqa: ASYNC110 - transports announce neither
            await asyncio.sleep(_POLL_SECONDS)
        self.close()

    @property
    def buffered(self) -> int:
        return 0 if self.lost else self._socket_transport.get_write_buffer_size()

    def heard(self) -> bool:
        heard = self._heard or self._reading_paused
        self._heard = False
        return heard

    async def drained(self) -> None:
        if self.paused and not self.lost:
            self._resumed = asyncio.get_running_loop().create_future()
            await self._resumed

    def close(self) -> None:
        if not self.lost:
            self._socket_transport.close()
            self._lose()

    def abort(self) -> None:
        if not self.lost:
            self._socket_option(socket.SO_LINGER, _RESET)
            self._socket_transport.abort()
            self._lose()

    def data_received(self, data: bytes) -> None:
        """asyncio's: bytes have come."""
        self._heard = True
        waiter = self._waiter
        if waiter is None or waiter.done():  # whoever reads is at work
            self._parser.feed(data)
        elif self.take is None:
            self._parser.feed(data)
            _wake(waiter)
        elif self._taken(self.take, data):
            return
        else:
            _wake(waiter)
        if self._parser.waiting >= READ_BYTES:
            self._pause_reading()

    def eof_received(self) -> None:
        """asyncio's: the peer will send no more; that ends the connection."""
        self._lose()

    def pause_writing(self) -> None:
        """asyncio's: something waits for the kernel."""
        self.paused = True
        self._choose_way()

    def resume_writing(self) -> None:
        """asyncio's: the kernel has taken all of it."""
        self.paused = False
        self._choose_way()
        _wake(self._resumed)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's: it is over."""
        self._lose()

    def _next(self) -> Item | None:
        left, self._left = self._left, None
        if isinstance(left, Exception):
            raise left
        return self._parser.next() if left is None else left

    def _taken(self, take: Callable[[str | bytes], bool], data: bytes) -> bool:
        """All that has come is taken, `data` just now; or else the first that isn't is left for `receive`."""
        try:
            text = self._parser.whole(data)
            if text is not None:
                if take(text):
                    return True
                self._left = text
                return False
            self._parser.feed(data)
            for _ in range(FRAMES_PER_TURN):
                item = self._parser.next()
                if item is None:
                    return True
                if isinstance(item, Other):
                    self._take(item)
                elif not take(item):
                    self._left = item
                    return False
        except Exception as error:
            self._left = error
        return False

    def _lose(self) -> None:
        self.lost = True
        self.take = None
        self._choose_way()
        if self._waiter:
            self._ends.wake(self._waiter)
        _wake(self._resumed)

    def _read_on(self) -> None:
        """Reads, if it was paused. Raises `ConnectionLost` if nothing more will come."""
        if self.lost:
            raise ConnectionLost
        if self._reading_paused:
            self._reading_paused = False
            self._socket_transport.resume_reading()

    def _pause_reading(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            self._socket_transport.pause_reading()

    def _more(self) -> "asyncio.Future[None]":
        """Is done when more has come, or nothing will any more."""
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter

    def _write(self, data: bytes) -> None:
        self.write(data)

    def _choose_way(self) -> None:
        """Straight to the kernel where nothing waits for it: asyncio's way costs a third more than the call itself."""
        self.descriptor = -1 if self.paused or self.lost else self._socket
        CHANGES.count += 1
        if self.lost:
            self.write = _discard
        else:
            self.write = self._socket_transport.write if self.descriptor < 0 else self._write_now

    def _write_now(self, data: bytes) -> None:
        try:
            sent = os.write(self._socket, data)
        except OSError:  # it takes none, or the connection is broken: the transport will find out
            sent = 0
        if sent != len(data):
            self._socket_transport.write(data[sent:])

    def _take(self, frame: Other) -> None:
        if frame.opcode == CONTINUATION:
            if len(frame.payload) < FRAGMENT_BYTES:
                self._spend(1, "too many small fragments")
            return
        self._spend(FRAGMENTS_PER_SECOND // CONTROL_FRAMES_PER_SECOND, "too many control frames")
        if frame.opcode == PING:
            self.answer(frames.pong(frame.payload))

    def _spend(self, fragments: int, problem: str) -> None:
        """As much as so many small fragments. Raises `PolicyViolation` for more than a second allows."""
        now = asyncio.get_running_loop().time()
        if now - self._spent_since > 1:
            self._spent_since, self._spent = now, 0
        self._spent += fragments
        if self._spent > FRAGMENTS_PER_SECOND:
            raise PolicyViolation(problem)

    def _socket_option(self, option: int, value: int | bytes) -> None:
        """A Unix socket may refuse, and one that the peer has broken."""
        sock = self._socket_transport.get_extra_info("socket")
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, value)
        except OSError:
            return


def _switch(key: str, subprotocol: str) -> bytes:
    """The answer that ends HTTP on a connection."""
    accept = b64encode(sha1(key.encode() + _GUID, usedforsecurity=False).digest())
    chosen = f"Sec-WebSocket-Protocol: {subprotocol}\r\n".encode() if subprotocol else b""
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
        + accept
        + b"\r\n"
        + chosen
        + b"\r\n"
    )


def _discard(data: bytes) -> None:
    """Where the writes to a lost connection go."""


def _wake(waiter: "asyncio.Future[None] | None") -> None:
    if waiter and not waiter.done():
        waiter.set_result(None)
