"""What a delivery and an idle client cost on each endpoint: /ws, and the Centrifuge protocol in JSON and in Protobuf.

python -m bench.endpoints --clients 1000 --rate 50 --idle 3000

For each a server is started, on the first processor, and clients on the others. Publishers send `rate` messages a
second in all, and then as fast as they hear their own copies (the closed loop); a delivery's cost is the server's
processor time. An idle client's is what the server's memory grows by, without what the kernel keeps for its socket.
Rounds are interleaved, and figures are medians.
"""

import argparse
import asyncio
import base64
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from chatserver.protocol import protobuf, wire

MARK = b"bench-"
_SAID = re.compile(rb"bench-(\d+)\.(\d{7})")


@dataclass(frozen=True)
class Endpoint:
    """How one is spoken with: what is said first, and what says a text."""

    name: str
    path: str
    opcode: int
    hello: bytes
    say: Callable[[str], bytes]
    ready: bytes
    """Is in the answer to what was said first."""


def _protobuf(*commands: wire.Command) -> bytes:
    return b"".join(map(protobuf.delimited, commands))


def _published(text: str) -> wire.Command:
    request = wire.PublishRequest(channel="lobby", data=wire.raw(json.dumps({"body": text})))
    return wire.Command(id=9, publish=request)


ENDPOINTS = [
    Endpoint("/ws", "/ws", 1, b"", lambda text: json.dumps({"type": 2, "body": text}).encode(), b""),
    Endpoint(
        "JSON",
        "/connection/websocket",
        1,
        b'{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"lobby"}}',
        lambda text: json.dumps({"id": 9, "publish": {"channel": "lobby", "data": {"body": text}}}).encode(),
        b'"subscribe":{',
    ),
    Endpoint(
        "Protobuf",
        "/connection/websocket?format=protobuf",
        2,
        _protobuf(
            wire.Command(id=1, connect=wire.ConnectRequest()),
            wire.Command(id=2, subscribe=wire.SubscribeRequest(channel="lobby")),
        ),
        lambda text: _protobuf(_published(text)),
        b"\x08\x02\x32",
    ),
]


class Member(asyncio.Protocol):
    """A connection that counts what it hears."""

    def __init__(self, endpoint: Endpoint, number: int) -> None:
        self.endpoint = endpoint
        self.number = number
        self.heard = 0
        self.in_order = True
        self.own: Callable[[float], None] | None = None
        self.ready = asyncio.get_running_loop().create_future()
        self._sent: dict[int, float] = {}
        self._last: dict[bytes, int] = {}
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        key = base64.b64encode(os.urandom(16)).decode()
        transport.write(
            f"GET {self.endpoint.path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        if self.endpoint.hello:
            self._send(self.endpoint.hello)

    def data_received(self, data: bytes) -> None:
        if not self.ready.done() and b"101 " in data + self._tail:
            self._tail += data
            if self.endpoint.ready in self._tail:
                self.ready.set_result(None)
                self._tail = b""
            return
        data = self._tail + data
        end = 0
        for match in _SAID.finditer(data):
            end = match.end()
            self._hear(match[1], int(match[2]))
        self._tail = data[max(end, len(data) - 24) :]

    def say(self, count: int) -> None:
        """Says the text with this number."""
        self._sent[count] = time.perf_counter()
        self._send(self.endpoint.say(f"bench-{self.number}.{count:07}" + "x" * 100))

    def _hear(self, sender: bytes, count: int) -> None:
        self.heard += 1
        self.in_order = self.in_order and count == self._last.get(sender, -1) + 1
        self._last[sender] = count
        if self.own and sender == b"%d" % self.number:
            self.own(time.perf_counter() - self._sent.pop(count))

    def _send(self, payload: bytes) -> None:
        length = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
        self.transport.write(bytes([0x80 | self.endpoint.opcode]) + length + b"\0\0\0\0" + payload)


@contextmanager
def _server(folder: str) -> Iterator[tuple[int, int]]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    settings = {"PORT": str(port), "STORE_URL": "memory://", "LOG_LEVEL": "error", "RETENTION_COUNT": "1000"}
    settings["FEATURES"] = (
        "limits,http,centrifuge"  # without notices, of which there would be as many as clients squared
    )
    process = subprocess.Popen([sys.executable, "-m", "chatserver"], env=os.environ | settings, cwd=folder)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(process.pid, cores[:1])
    try:
        while True:
            time.sleep(0.1)
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", port)) == 0:
                    break
        os.sched_setaffinity(0, cores[1:] or cores)
        yield port, process.pid
    finally:
        os.sched_setaffinity(0, cores)
        process.terminate()
        process.wait()


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def _connect(port: int, endpoint: Endpoint, count: int) -> list[Member]:
    loop = asyncio.get_running_loop()
    members = []
    for number in range(count):
        member = (await loop.create_connection(lambda: Member(endpoint, number), "127.0.0.1", port))[1]  # noqa: B023
        members.append(member)
        await asyncio.wait_for(member.ready, 20)
    return members


async def _evenly(members: list[Member], pid: int, rate: int, seconds: float) -> tuple[float, float]:
    """Microseconds a delivery, and the p99 of a publisher's own copy in ms."""
    waits: list[float] = []
    publishers = members[:50]
    for member in publishers:
        member.own = waits.append
    before, started = _cpu(pid), time.perf_counter()
    count = int(rate * seconds)
    for number in range(count):
        publishers[number % 50].say(number // 50)
        await asyncio.sleep(max(0.0, started + (number + 1) / rate - time.perf_counter()))
    await _all_heard(members, count)
    return 1e6 * (_cpu(pid) - before) / (count * len(members)), 1000 * sorted(waits)[len(waits) * 99 // 100]


async def _closed_loop(members: list[Member], pid: int, seconds: float) -> tuple[float, float]:
    """Deliveries a second, and microseconds a delivery."""
    counts = [0] * 10
    end = time.perf_counter() + seconds

    def next_of(number: int) -> Callable[[float], None]:
        def next_one(_: float) -> None:
            if time.perf_counter() < end:
                members[number].say(counts[number])
                counts[number] += 1

        return next_one

    before, started = _cpu(pid), time.perf_counter()
    for number in range(10):
        members[number].own = next_of(number)
        for _ in range(4):
            next_of(number)(0)
    await asyncio.sleep(seconds)
    await _all_heard(members, sum(counts))
    took = time.perf_counter() - started
    deliveries = sum(counts) * len(members)
    return deliveries / took, 1e6 * (_cpu(pid) - before) / deliveries


async def _all_heard(members: list[Member], count: int) -> None:
    async with asyncio.timeout(60):
        while any(member.heard < count for member in members):  # noqa: ASYNC110 - a signal for each would cost more
            await asyncio.sleep(0.05)
    assert all(member.heard == count and member.in_order for member in members), "lost, doubled or out of order"


async def _measure(endpoint: Endpoint, folder: str, given: argparse.Namespace) -> list[float]:
    figures: list[float] = []
    for work in ("evenly", "loop", "idle"):
        with _server(folder) as (port, pid):
            before = _rss(pid)
            members = await _connect(port, endpoint, given.idle if work == "idle" else given.clients)
            if work == "evenly":
                figures += await _evenly(members, pid, given.rate, given.seconds)
            elif work == "loop":
                figures += await _closed_loop(members, pid, given.seconds)
            else:
                await asyncio.sleep(1)
                figures.append((_rss(pid) - before) / len(members))
            for member in members:
                member.transport.abort()
    return figures


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--idle", type=int, default=3000)
    parser.add_argument("--rate", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    found: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(given.rounds):
            for endpoint in ENDPOINTS:
                found.setdefault(endpoint.name, []).append(asyncio.run(_measure(endpoint, folder, given)))
    print(f"| endpoint | µs a delivery at {given.rate}/s | p99 ms | closed loop: deliveries/s | µs each | B a client |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, rounds in found.items():
        even, p99, rate, loop, idle = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(f"| {name} | {even:.2f} | {p99:.1f} | {rate:,.0f} | {loop:.2f} | {idle:,.0f} |")


if __name__ == "__main__":
    main()
