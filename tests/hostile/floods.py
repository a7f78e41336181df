"""Floods of tiny frames and messages: who sends them is closed, and a bystander hardly notices.

The flooders live in a process of their own and write ready-made buffers as fast as the server takes them. They read
what comes, but don't answer the close frame: they go on until the connection breaks, and then come back, for as long
as the round lasts.
"""

import asyncio
import contextlib
import json
import os
import re
import selectors
import socket
import sys
import time
from dataclasses import asdict, dataclass, field

from tests.hostile.harness import PATIENCE_SECONDS, Figures, judged, main, p99
from tests.raw import CLOSE, CONTINUATION, PING, PONG, TEXT, RawClient
from tests.server import ROOT, Server

ECHO_SECONDS = 0.05
BUFFER_BYTES = 256 * 1024

CLOSED_SECONDS = 2.0
"""From a flooder's first byte to the close frame."""

TARGETS = {1: 0.05, 10: 0.1}
"""By number of flooders, what the bystander's p99 stays under."""


def _frame(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    return bytes([(0x80 if fin else 0) | opcode, 0x80 | len(payload), 0, 0, 0, 0]) + payload


def _cut(payload: bytes) -> bytes:
    pieces = [payload[place : place + 1] for place in range(len(payload))]
    frames = [_frame(CONTINUATION, piece, fin=place == len(pieces) - 1) for place, piece in enumerate(pieces)]
    return _frame(TEXT, pieces[0], fin=False) + b"".join(frames[1:])


_MESSAGE = b'{"type":2,"body":"x"}'

FLOODS = {
    "pings": (b"", _frame(PING)),
    "pongs": (b"", _frame(PONG)),
    "hi": (b"", _frame(TEXT, b"hi")),
    "empty_texts": (b"", _frame(TEXT)),
    "byte_fragments": (_frame(TEXT, b"x", fin=False), _frame(CONTINUATION, b"x", fin=False)),
    "empty_fragments": (_frame(TEXT, fin=False), _frame(CONTINUATION, fin=False)),
    "cut_messages": (b"", _cut(_MESSAGE)),
    "bad_json": (b"", _frame(TEXT, b'{"type":2,"body":"x}')),
    "messages": (b"", _frame(TEXT, _MESSAGE)),
}
"""What is sent once, and what over and over."""

NEVER = float("inf")

CODES = {"byte_fragments": {1008, 1009}}
"""Which end a flood; where nothing is said, 1008."""


@dataclass(frozen=True, slots=True)
class End:
    """What became of a flooder. The times are those of the machine's monotonic clock, which all processes share."""

    code: int
    started: float
    """Just before its first byte."""
    closed: float
    """The close frame came."""
    ended: float
    """The connection ended."""
    sent: int
    """Bytes."""


@dataclass(eq=False)
class Flooder:
    """One connection of the flooding process."""

    sock: socket.socket
    kind: str
    started: float = 0.0
    closed: float = 0.0
    """When the close frame came."""
    ended: float = 0.0
    code: int = 1006
    sent: int = 0
    _ready: memoryview = field(default_factory=lambda: memoryview(b""))
    _place: int = 0
    _unread: bytes = b""

    @classmethod
    def connect(cls, port: int, kind: str) -> "Flooder":
        """Shakes hands, and is ready to flood."""
        sock = socket.create_connection(("127.0.0.1", port), 10)
        sock.sendall(
            b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        data = b""
        while b"\r\n\r\n" not in data:
            data += sock.recv(4096)
        assert data.startswith(b"HTTP/1.1 101 ")
        sock.setblocking(False)
        once, again = FLOODS[kind]
        flooder = cls(sock, kind, _ready=memoryview(again * (BUFFER_BYTES // len(again))))
        flooder._unread = data.partition(b"\r\n\r\n")[2]
        flooder.started = time.monotonic()
        if once:
            sock.sendall(once)
        return flooder

    def step(self, events: int) -> bool:
        """Reads and writes what goes now; False: the connection is over."""
        try:
            if events & selectors.EVENT_READ and not self._read():
                return False
            if events & selectors.EVENT_WRITE:
                self._write()
        except BlockingIOError:
            return True
        except OSError:
            with contextlib.suppress(OSError):  # what came before the reset can still be read
                while self._read():
                    continue
            return False
        return True

    def _write(self) -> None:
        count = self.sock.send(self._ready[self._place :])
        self.sent += count
        self._place = (self._place + count) % len(self._ready)

    def _read(self) -> bool:
        data = self.sock.recv(1 << 18)
        if self.closed:
            return bool(data)
        data, place = self._unread + data, 0
        while len(data) - place >= 4:  # the shortest that matters, a close frame, has as many
            length, head = data[place + 1], 2
            if length == 126:
                length, head = int.from_bytes(data[place + 2 : place + 4], "big"), 4
            if data[place] == 0x80 | CLOSE:
                self.closed = time.monotonic()
                self.code = int.from_bytes(data[place + 2 : place + 4], "big")
                break
            place += head + length
        if place > len(data):  # a frame of which a part is still to come
            self._unread = data[-(len(data) - (place - head - length)) :]
        else:
            self._unread = data[place:]
        return bool(data)


def flood(kind: str, port: int, count: int, seconds: float) -> None:
    """The flooding process: `count` connections for `seconds`. Prints what became of each, as a line of JSON."""
    selector = selectors.DefaultSelector()
    running = {Flooder.connect(port, kind) for _ in range(count)}
    for flooder in running:
        selector.register(flooder.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, flooder)
    until = time.monotonic() + seconds
    last = until + PATIENCE_SECONDS
    over = []
    while running and time.monotonic() < last:
        for key, events in selector.select(0.1):
            flooder = key.data
            if flooder.step(events):
                continue
            flooder.ended = time.monotonic()
            selector.unregister(flooder.sock)
            flooder.sock.close()
            running.remove(flooder)
            over.append(flooder)
            if time.monotonic() < until:
                again = Flooder.connect(port, kind)
                running.add(again)
                selector.register(again.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, again)
    for flooder in (*over, *running):
        end = End(flooder.code, flooder.started, flooder.closed or NEVER, flooder.ended or NEVER, flooder.sent)
        print(json.dumps(asdict(end)))


async def _flooders(server: Server, kind: str, count: int, seconds: float) -> list[End]:
    call = f"from tests.hostile.floods import flood; flood({kind!r}, {server.port}, {count}, {seconds})"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", call, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )  # fmt: skip
    try:
        out, _ = await asyncio.wait_for(process.communicate(), seconds + 2 * PATIENCE_SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    return [End(**json.loads(line)) for line in out.splitlines()]


class Bystander:
    """Says something at fixed times, whether or not the last was heard yet, and listens how long each takes."""

    def __init__(self, client: RawClient) -> None:
        self._client = client
        self._said: list[float] = []
        self._unread = b""
        self.heard: list[int] = []
        self.times: list[float] = []
        """How long each took that was heard."""
        self._tasks = [asyncio.create_task(self._talk()), asyncio.create_task(self._listen())]

    @property
    def count(self) -> int:
        """What was said so far."""
        return len(self._said)

    def between(self, start: float, end: float) -> list[float]:
        """How long that took which was said from `start` to `end`, sorted; in order of saying it is heard."""
        return sorted(took for said, took in zip(self._said, self.times, strict=True) if start <= said <= end)

    async def stop(self) -> None:
        """Falls silent, waits for what is still to be heard, and checks that all was heard once and in order."""
        talk, listen = self._tasks
        talk.cancel()
        await asyncio.wait([talk])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while len(self.heard) < self.count:
                    assert not listen.done(), "the bystander's connection ended"
                    await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)  # for what comes twice
        listen.cancel()
        await asyncio.wait([listen])
        assert self.heard == list(range(self.count))

    async def _talk(self) -> None:
        started = time.monotonic()
        while True:
            number = self.count
            self._said.append(time.monotonic())
            self._client.say(f'{{"type":2,"body":"bystander {number}."}}')
            await asyncio.sleep(started + (number + 1) * ECHO_SECONDS - time.monotonic())

    async def _listen(self) -> None:
        while data := await self._client.reader.read(1 << 18):
            now = time.monotonic()
            self._unread += data
            end = 0
            for match in re.finditer(rb"bystander (\d+)\.", self._unread):
                number, end = int(match[1]), match.end()
                self.heard.append(number)
                self.times.append(now - self._said[number])
            self._unread = self._unread[max(end, len(self._unread) - 32) :]


async def flooded(server: Server, client: RawClient, kind: str, count: int, seconds: float) -> Figures:
    """One round. Asserts what holds on any machine; the times are for who runs it by hand."""
    bystander = Bystander(client)
    try:
        ends = await _flooders(server, kind, count, seconds)
        await asyncio.sleep(0.2)  # whoever still is heard now is heard after it, too
    finally:
        await bystander.stop()
    times = bystander.between(min(end.started for end in ends), max(end.ended for end in ends))
    codes = {end.code for end in ends}
    assert codes <= CODES.get(kind, {1008}), f"{kind} of {count}: {codes}"
    name = f"{kind} {count}"
    return {
        f"{name} p50_ms": 1000 * times[len(times) // 2],
        f"{name} p99_ms": 1000 * p99(times),
        f"{name} max_ms": 1000 * times[-1],
        f"{name} closed_seconds": max(end.closed - end.started for end in ends),
        f"{name} ended_seconds": max(end.ended - end.started for end in ends),
        f"{name} codes": " ".join(map(str, sorted(codes))),
        f"{name} samples": len(times),
        f"{name} connections": len(ends),
        f"{name} sent_MB": sum(end.sent for end in ends) / 1e6,
    }


def _pin(server: Server) -> None:
    """Gives the server a core that it shares, of all here, with nobody."""
    cores = sorted(os.sched_getaffinity(0))
    assert server.process
    os.sched_setaffinity(server.process.pid, cores[:1])
    if len(cores) > 1:
        os.sched_setaffinity(0, cores[1:])


async def run(server: Server, *, seconds: float = 5.0, kinds: str = ",".join(FLOODS), counts: str = "1,10") -> Figures:
    """Every kind of flood from every number of clients."""
    server.start()
    cores = os.sched_getaffinity(0)
    _pin(server)
    try:
        return await _run(server, seconds, kinds.split(","), [int(count) for count in counts.split(",")])
    finally:
        os.sched_setaffinity(0, cores)


async def _run(server: Server, seconds: float, kinds: list[str], counts: list[int]) -> Figures:
    client = await RawClient.connect(server.port)
    quiet = Bystander(client)
    await asyncio.sleep(min(seconds, 2.0))
    await quiet.stop()
    figures: Figures = {"quiet p99_ms": 1000 * p99(sorted(quiet.times))}
    most: dict[str, float] = {}
    for kind in kinds:
        for count in counts:
            figures |= await flooded(server, client, kind, count, seconds)
            most |= {f"{kind} {count} p99_ms": 1000 * TARGETS[count], f"{kind} {count} closed_seconds": CLOSED_SECONDS}
    return judged(figures, most)


if __name__ == "__main__":
    main(run)
