"""A WebSocket (RFC 6455) on aiohttp's: it reads through aiohttp's parser, and writes ready frames itself.

Everything here answers something that stock aiohttp does to a chat server: its sends wait and can poison each other
when one is cancelled, its `close` may wait for ever on a full buffer, its heartbeat leaves the socket of a dead peer
open, and tiny frames are read without ever yielding to other connections.
"""

import asyncio
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Final

from aiohttp import WebSocketError, WSMessage, WSMsgType, web

from chatserver import frames
from chatserver.aiohttp_private import PayloadParser, finished, tap
from chatserver.errors import (
    ConnectionLost,
    Disconnect,
    InvalidText,
    MessageTooBig,
    PeerClosed,
    PolicyViolation,
    ProtocolError,
    UnsupportedData,
)

SEND_BUFFER_BYTES: Final = 64 * 1024
"""Of the kernel, per connection. Fixed, as autotuning would let it grow to megabytes that no RSS shows."""

HIGH_WATER_BYTES: Final = 32 * 1024
"""Of asyncio's buffer above it: with more waiting, the client is parked."""

FRAMES_PER_TURN: Final = 32
"""So many frames of one connection are taken before the others have their turn."""

CONTROL_FRAMES_PER_SECOND: Final = 100

BREATH_BYTES: Final = 64 * 1024
"""After a read of so much the others have their turn: uvloop would take 8 MB of one connection in a row."""

_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 seconds: the kernel forgets unsent data at once
_POLL_SECONDS: Final = 0.02
_WRONG: Final = {1002: ProtocolError, 1007: InvalidText, 1009: MessageTooBig}


class _Upgrade(web.WebSocketResponse):
    """aiohttp's handshake and parser without its writes: nothing is sent but by the transport."""

    async def close(self, *, code: int = 1000, message: bytes = b"", drain: bool = True) -> bool:
        """`receive` and the end of the handler call this; the close frame is the drain's to send."""
        return False


class WebSocketTransport:
    """One WebSocket. `write` and friends are `chatserver.client.Transport`; `receive` is for the one who reads."""

    __slots__ = (
        "_binary",
        "_control_count",
        "_control_since",
        "_frames",
        "_heard",
        "_most_unfinished",
        "_parser",
        "_protocol",
        "_reading",
        "_socket_transport",
        "_unfinished",
        "_writer",
        "answer",
        "refuse",
        "response",
    )

    def __init__(self, max_message_bytes: int, *, binary: bool = False, protocols: Sequence[str] = ()) -> None:
        """`max_message_bytes`: a longer message ends the connection with 1009; 0 is no limit.

        `binary`: binary messages are welcome; otherwise they end it with 1003. `protocols`: the subprotocols that are
        spoken; the first that the client offers is selected.
        """
        limit = max_message_bytes and max_message_bytes + 1  # aiohttp refuses what is as long as its limit
        self.response = _Upgrade(
            autoclose=False,
            autoping=False,
            compress=False,
            max_msg_size=limit,
            protocols=protocols,
            writer_limit=HIGH_WATER_BYTES,
        )
        """What the handler returns to aiohttp."""
        self.answer: Callable[[bytes], None] = self.write
        """Where the pong to a ping goes."""
        self.refuse: Callable[[Disconnect], None] = lambda end: self.abort()
        """Ends the connection from outside of `receive`, which may never get anything to return."""
        self._binary = binary
        self._most_unfinished = 2 * max_message_bytes + 4096 if max_message_bytes else sys.maxsize
        self._unfinished = 0
        self._parser: PayloadParser | None = None
        self._heard = True
        self._reading = False
        self._frames = 0
        self._control_count = 0
        self._control_since = 0.0

    async def prepare(self, request: web.Request) -> None:
        """Completes the handshake. Raises `web.HTTPBadRequest` if it isn't one, `ConnectionError` if the peer left."""
        await self.response.prepare(request)
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the peer left during the handshake")
        self._socket_transport = transport
        self._protocol = request.protocol
        self._writer = request.writer
        self._parser = tap(request.protocol, self)
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES, low=HIGH_WATER_BYTES // 4)
        self._socket_option(socket.SO_SNDBUF, SEND_BUFFER_BYTES)

    async def receive(self) -> str | bytes:
        """The next message, `str` or, if it is binary, `bytes`.

        Raises `Disconnect` when there will be none: the peer's end, or what it did wrong.
        """
        while True:
            message = await self._next()
            if message.type is WSMsgType.TEXT or (self._binary and message.type is WSMsgType.BINARY):
                data: str | bytes = message.data
                return data
            self._take_control(message.type, message.data)

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Bytes from the socket on their way to aiohttp's parser.

        They are a sign of life. And they are counted, as a message in endless empty or tiny fragments would never
        reach `receive`: who sends twice the greatest message without finishing a frame floods.
        """
        self._heard = True
        ended, tail = False, b""
        if self._unfinished <= self._most_unfinished:
            assert self._parser
            ended, tail = self._parser.feed_data(data)
            self._unfinished = 0 if ended or finished(self.response) else self._unfinished + len(data)
            if self._unfinished > self._most_unfinished:
                self.refuse(PolicyViolation("fragments without end"))
        if len(data) >= BREATH_BYTES:
            self._breathe()
        return ended, tail

    def _breathe(self) -> None:
        """Reads on at the loop's next turn, unless aiohttp has stopped reading for a reason of its own."""
        if self._socket_transport.is_reading():
            self._protocol.pause_reading()
            asyncio.get_running_loop().call_soon(self._protocol.resume_reading)

    def feed_eof(self) -> None:
        """The end of the stream, on its way to aiohttp's parser."""
        assert self._parser
        self._parser.feed_eof()

    async def discard(self) -> None:
        """Reads, and throws away, until the peer closes or the connection is lost."""
        while not self.lost:
            try:
                await self.receive()
            except (PeerClosed, ConnectionLost):
                return
            except Disconnect:  # aiohttp's parser has given up, and drops what comes
                await asyncio.sleep(_POLL_SECONDS)

    async def finish(self, written: Callable[[], bool]) -> None:
        """Waits until all is `written` and sent, then closes. `abort` ends the wait."""
        while not self.lost and (self.buffered or not written()):  # noqa: ASYNC110 - transports announce neither
            await asyncio.sleep(_POLL_SECONDS)
        self.close()

    def write(self, data: bytes) -> None:
        if not self._socket_transport.is_closing():
            self._socket_transport.write(data)

    @property
    def paused(self) -> bool:
        return self._protocol.writing_paused

    @property
    def lost(self) -> bool:
        return self._socket_transport.is_closing()

    @property
    def buffered(self) -> int:
        return 0 if self.lost else self._socket_transport.get_write_buffer_size()

    def heard(self) -> bool:
        heard = self._heard or not self._reading
        self._heard = False
        return heard

    async def drained(self) -> None:
        try:
            await self._writer.drain()
        except ConnectionError:
            return

    def close(self) -> None:
        self._socket_transport.close()

    def abort(self) -> None:
        self._socket_option(socket.SO_LINGER, _RESET)
        self._socket_transport.abort()

    async def _next(self) -> WSMessage:
        self._frames += 1
        if self._frames % FRAMES_PER_TURN == 0:
            await asyncio.sleep(0)
        self._reading = True
        try:
            message = await self.response.receive()
        finally:
            self._reading = False
        self._heard = True
        return message

    def _take_control(self, kind: WSMsgType, data: object) -> None:
        if kind is WSMsgType.PING:
            self._count_control()
            assert isinstance(data, bytes | bytearray)
            self.answer(frames.pong(bytes(data)))
        elif kind is WSMsgType.PONG:
            self._count_control()
        elif kind is WSMsgType.CLOSE:
            assert isinstance(data, int)
            raise PeerClosed(data) if data != ConnectionLost.code and data < 5000 else ProtocolError("bad close code")
        elif kind is WSMsgType.BINARY:
            raise UnsupportedData
        elif isinstance(data, WebSocketError):
            raise _WRONG.get(data.code, ProtocolError)
        else:
            raise ConnectionLost

    def _count_control(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._control_since > 1:
            self._control_since, self._control_count = now, 0
        self._control_count += 1
        if self._control_count > CONTROL_FRAMES_PER_SECOND:
            raise PolicyViolation("too many control frames")

    def _socket_option(self, option: int, value: int | bytes) -> None:
        """Sets it while the socket is surely still ours; a Unix socket or a closed one may refuse."""
        sock = self._socket_transport.get_extra_info("socket")
        if sock is None or self._socket_transport.is_closing():
            return
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, value)
        except OSError:
            return
