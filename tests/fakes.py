"""Stand-ins that keep the real interfaces."""

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from unittest import mock

from hypothesis import HealthCheck, settings

from chatserver.client import Client
from chatserver.protocol import Codec, Simple

PATIENT = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
"""For property tests: a busy machine is no failure, and the suite runs on several Pythons, each time at random."""


class FakeTransport:
    """A `chatserver.client.Transport` under a test's control: `pause` and `resume` it, `lose` it, read `written`."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.descriptor = -1
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
        self._draining = False

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
        assert not self._draining, "for one caller at a time"
        self._draining = True
        while self.paused and not self.lost:
            self._drained.clear()
            await self._drained.wait()
        self._draining = False

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
    id: str = "",
    user: str = "alice",
    queue_bytes: int = 1 << 20,
    wake: Callable[[Client], None] = lambda client: None,
) -> Client:
    """A client that nobody drains."""
    return Client(
        transport or FakeTransport(),
        codec or Simple(),
        id=id or f"id-{user}",
        user=user,
        address="127.0.0.1",
        queue_bytes=queue_bytes,
        wake=wake,
    )


class Clock:
    """The time of the running loop, standing still until it is pushed: see `stopped_clock`."""

    def __init__(self, now: float) -> None:
        self.now = now

    def time(self) -> float:
        """What the loop is told."""
        return self.now

    async def push(self, seconds: float, step: float = 0.01) -> None:
        """Lets time pass, in steps so small that no timer is late by more than one."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + step, end)
            await turns()

    async def until(self, condition: Callable[[], bool], seconds: float, step: float = 0.01) -> None:
        """Lets time pass until `condition` is met, `seconds` at the most."""
        end = self.now + seconds
        while not condition():
            assert self.now < end, "it never happens"
            await self.push(step, step)


@contextlib.contextmanager
def stopped_clock() -> Iterator[Clock]:
    """Takes over the time of the running loop: no test waits, and no busy machine makes a timer late."""
    loop = asyncio.get_running_loop()
    clock = Clock(loop.time())
    with mock.patch.object(loop, "time", clock.time):
        yield clock


async def turns(count: int = 10) -> None:
    """Lets all that can go on go on."""
    for _ in range(count):
        await asyncio.sleep(0)


def split(wire: bytes) -> list[tuple[int, bytes]]:
    """The frames on `wire`, as opcode and payload. Fails on what a server must not send, and on half a frame."""
    found = []
    while wire:
        first, length, start = wire[0], wire[1], 2
        assert first & 0xF0 == 0x80, "fragmented, or a reserved bit"
        if length >= 126:
            start = 4 if length == 126 else 10
            length = int.from_bytes(wire[2:start], "big")
        payload = wire[start : start + length]
        assert len(payload) == length, "half a frame, or a masked one"
        found.append((first & 0x0F, payload))
        wire = wire[start + length :]
    return found


def told(transport: FakeTransport) -> list[str]:
    """What a peer with the simple protocol hears: bodies, and `<close 1001 reason>`, `<ping data>`, `<pong data>`."""
    heard = []
    for opcode, payload in split(transport.wire):
        if opcode == 1:
            heard.append(json.loads(payload)["body"])
        elif opcode == 8:
            heard.append(f"<close {int.from_bytes(payload[:2], 'big')} {payload[2:].decode()}>")
        else:
            heard.append(f"<{ {9: 'ping', 10: 'pong'}[opcode] } {payload.decode()}>")
    return heard
