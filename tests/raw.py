"""A WebSocket client that does just what it is told, also what no library would send."""

import asyncio
import base64
import contextlib
import os
from dataclasses import dataclass
from typing import ClassVar

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame from the server."""

    opcode: int
    payload: bytes

    @property
    def text(self) -> str:
        """The payload of a text frame."""
        assert self.opcode == TEXT, self
        return self.payload.decode()

    @property
    def code(self) -> int:
        """The code of a close frame."""
        assert self.opcode == CLOSE, self
        return int.from_bytes(self.payload[:2], "big")


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bool = True, rsv: int = 0) -> bytes:
    """A frame as clients send it, well-formed or not."""
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    length = len(payload)
    size = (
        bytes([length | mask << 7])
        if length < 126
        else bytes([126 | mask << 7]) + length.to_bytes(2, "big")
        if length < 65536
        else bytes([127 | mask << 7]) + length.to_bytes(8, "big")
    )
    key = b"\0\0\0\0" if mask else b""  # a key of zeros leaves the payload as it is
    return bytes([first]) + size + key + payload


class RawClient:
    """One connection; `status` and `headers` are those of the answer to the handshake."""

    opened: ClassVar[list["RawClient"]] = []
    """For whoever cleans up after a test."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.status = 0
        self.headers: dict[str, str] = {}
        self.opened.append(self)

    @classmethod
    async def connect(cls, port: int, path: str = "/ws", host: str = "127.0.0.1", **headers: str) -> "RawClient":
        """Connects and upgrades; `headers` replace or add to the usual ones (`_` for `-`, empty: leave it out)."""
        client = cls(*await asyncio.open_connection(host, port))
        await client.upgrade(path, **headers)
        return client

    async def upgrade(self, path: str = "/ws", **headers: str) -> None:
        """Sends the handshake and reads the answer."""
        usual = {
            "Host": "localhost",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        }
        usual |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in usual.items() if value)]
        self.writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        await self.read_head()

    async def read_head(self) -> None:
        """Reads status line and headers."""
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 20)).decode("latin-1").split("\r\n")
        self.status = int(head[0].split()[1])
        self.headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in head[1:-2])}

    def send(self, opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bool = True, rsv: int = 0) -> None:
        """Sends one frame, well-formed or not."""
        self.writer.write(frame(opcode, payload, fin=fin, mask=mask, rsv=rsv))

    def say(self, text: str) -> None:
        """Sends a text frame."""
        self.send(TEXT, text.encode())

    async def receive(self, seconds: float = 20) -> Frame | None:
        """The next frame; None at the end of the stream."""
        try:
            async with asyncio.timeout(seconds):  # `wait_for` of Python 3.11 may swallow a cancellation
                return await self._receive()
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def text(self, seconds: float = 20) -> str:
        """The next frame, which must be text; pings before it are answered."""
        while (frame := await self.receive(seconds)) and frame.opcode == PING:
            self.send(PONG, frame.payload)
        assert frame is not None, "the connection ended"
        return frame.text

    async def until_closed(self, seconds: float = 20) -> int:
        """Reads on; the code of the close frame, which is answered, or 1006 if the connection ended without one."""
        while frame := await self.receive(seconds):
            if frame.opcode == CLOSE:
                self.send(CLOSE, frame.payload[:2])
                return frame.code
        return 1006

    async def silent(self) -> bool:
        """Nothing is waiting for this client: the next thing that comes is the answer to a ping."""
        self.send(PING, b"silence?")
        return await self.receive() == Frame(PONG, b"silence?")

    async def _receive(self) -> Frame:
        first, second = await self.reader.readexactly(2)
        length = second & 127
        assert first & 0x70 == 0
        assert second & 128 == 0, "servers don't mask"
        if length > 125:
            length = int.from_bytes(await self.reader.readexactly(2 if length == 126 else 8), "big")
        return Frame(first & 15, await self.reader.readexactly(length))

    async def close(self) -> None:
        """Closes politely, and waits for the server to do so too."""
        self.send(CLOSE, (1000).to_bytes(2, "big"))
        while await self.receive():
            continue

    def abort(self) -> None:
        """Leaves without a word."""
        self.writer.transport.abort()

    @classmethod
    async def clean_up(cls) -> None:
        """Ends all that were opened."""
        clients, cls.opened = cls.opened, []
        for client in clients:
            client.abort()
        for client in clients:
            with contextlib.suppress(OSError):
                await client.writer.wait_closed()
