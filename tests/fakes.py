"""Stand-ins that keep the real interfaces."""

import asyncio
from collections.abc import Callable

from chatserver.client import Client
from chatserver.protocol import Codec, Simple


class FakeTransport:
    """A `chatserver.client.Transport` under a test's control: `pause` and `resume` it, `lose` it, read `written`."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.paused = False
        self.lost = False
        self.buffered = 0
        self.closed = False
        self.aborted = False
        self.pause_after: int | None = None
        """Pauses by itself once this many writes were taken."""
        self.answering = True
        """What `heard` says."""
        self._drained = asyncio.Event()

    @property
    def wire(self) -> bytes:
        """All bytes written."""
        return b"".join(self.written)

    def write(self, data: bytes) -> None:
        if not self.lost:
            self.written.append(data)
            if self.pause_after is not None and len(self.written) >= self.pause_after:
                self.paused = True

    def heard(self) -> bool:
        return self.answering

    async def drained(self) -> None:
        while self.paused and not self.lost:
            self._drained.clear()
            await self._drained.wait()

    def resume(self) -> None:
        """The peer reads again."""
        self.paused = False
        self.pause_after = None
        self._drained.set()

    def lose(self) -> None:
        """The connection breaks."""
        self.lost = True
        self._drained.set()

    def close(self) -> None:
        self.closed = True
        self.lose()

    def abort(self) -> None:
        self.aborted = True
        self.lose()


def make_client(
    transport: FakeTransport | None = None,
    codec: Codec | None = None,
    *,
    user: str = "alice",
    queue_bytes: int = 1 << 20,
    wake: Callable[[Client], None] = lambda client: None,
) -> Client:
    """A client that nobody drains."""
    return Client(
        transport or FakeTransport(),
        codec or Simple(),
        id=f"id-{user}",
        user=user,
        address="127.0.0.1",
        queue_bytes=queue_bytes,
        wake=wake,
    )
