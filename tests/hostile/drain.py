"""SIGTERM, or SIGHUP, in the middle of a busy room, with some who don't read.

What everybody gets is one stream of bytes, the same for all (pings are off, nobody says anything wrong). So readers are
compared byte by byte while they read: the first to get something sets the `Order`, all others must get the same, and
when a close frame comes it must be all that is different.
"""

import asyncio
import re
import signal
import socket
import statistics
import time
from collections import Counter
from typing import Final

from tests.hostile.harness import PATIENCE_SECONDS, Figures, eventually, judged, main, small_buffer_socket
from tests.raw import CLOSE
from tests.server import Server

SENDERS: Final = 5
EXIT_SECONDS: Final = 10.0
FLOW_SECONDS: Final = 0.3
BURSTS: Final = 8
BURST: Final = 3
"""Messages of each sender, in each of the bursts just before and just after the signal."""

RESTART_EVERY: Final = 2
"""Each second round is a SIGHUP; the process stays, and starts anew."""

_HEAD: Final = (
    b"GET /ws?name=%s HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
_MESSAGE: Final = re.compile(rb'\{"type":2,"body":"sender(\d+) (\d+) x*"\}')


class Order:
    """All that was published, as the first to get it had it; without anybody's close frame."""

    def __init__(self) -> None:
        self.stream = bytearray()
        self.ends = {0}
        """Where frames end."""
        self._parsed = 0

    def differs(self, place: int, data: bytes) -> tuple[int, bytes]:
        """What of `data`, which a reader got at `place`, is in the order: its new place, and what is different."""
        known = min(len(data), len(self.stream) - place)
        if self.stream[place : place + known] != data[:known]:
            same = next(i for i in range(known) if self.stream[place + i] != data[i])
            return place + same, data[same:]
        if known < len(data):
            known += self._extend(data[known:])
        return place + known, data[known:]

    def _extend(self, data: bytes) -> int:
        before = len(self.stream)
        self.stream += data
        while self._parsed < len(self.stream):
            if self.stream[self._parsed] == 0x80 | CLOSE:
                del self.stream[self._parsed :]
                break
            header = self.stream[self._parsed : self._parsed + 10]
            if len(header) < 2 or (header[1] >= 126 and len(header) < 10):
                break
            length, size = (header[1], 2) if header[1] < 126 else (int.from_bytes(header[2:4], "big"), 4)
            assert header[1] < 127
            if self._parsed + size + length > len(self.stream):
                break
            self._parsed += size + length
            self.ends.add(self._parsed)
        return len(self.stream) - before


class Reader(asyncio.Protocol):
    """A client that reads, compares, and answers the close frame."""

    def __init__(self, name: str, order: Order, start: bytes, patience: float) -> None:
        """`patience`: seconds before it answers the close frame."""
        self.name = name
        self.order = order
        self.patience = patience
        self.said = 0
        self.place = 0
        self.odd = b""
        """What it got that isn't in the order: its close frame, if all is well."""
        loop = asyncio.get_running_loop()
        self.upgraded: asyncio.Future[None] = loop.create_future()
        self.started: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()
        self._start = start
        self._early = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(_HEAD % self.name.encode())

    def data_received(self, data: bytes) -> None:
        if not self.started.done():
            self._early += data
            if not self.upgraded.done() and b"\r\n\r\n" in self._early:
                assert self._early.startswith(b"HTTP/1.1 101 "), self._early
                self.upgraded.set_result(None)
            _, found, data = self._early.partition(self._start)
            if not found:
                return
            self.started.set_result(None)
        if not self.odd:
            self.place, self.odd = self.order.differs(self.place, data)
        else:
            self.odd += data
        if self.odd[:1] == bytes([0x80 | CLOSE]) and len(self.odd) >= 4:
            answer = bytes([0x80 | CLOSE, 0x82, 0, 0, 0, 0]) + self.odd[2:4]
            asyncio.get_running_loop().call_later(self.patience, self.transport.write, answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)

    def talk(self, sender: int) -> None:
        """Says the next message, the first ones big, so that the buffers of who doesn't read fill up."""
        if self.odd or self.lost.done():
            return  # it was told to end
        padding = "x" * (8000 if self.said < 6 else 300)
        self.say(f'{{"type":2,"body":"sender{sender} {self.said} {padding}"}}')
        self.said += 1

    def say(self, text: str) -> None:
        payload = text.encode()
        assert 126 <= len(payload) < 65536
        self.transport.write(bytes([0x81, 0xFE]) + len(payload).to_bytes(2, "big") + bytes(4) + payload)

    @property
    def code(self) -> int:
        """Of the close frame, which is whole, the last, and behind a whole frame; 1006 else."""
        whole = self.odd[:1] == bytes([0x80 | CLOSE]) and len(self.odd) == 2 + self.odd[1] and self.odd[1] >= 2
        return int.from_bytes(self.odd[2:4], "big") if whole and self.place in self.order.ends else 1006


async def run(
    server: Server, *, rounds: int = 30, clients: int = 500, stalled: int = 50, drain_seconds: float = 8
) -> Figures:
    exits: list[float] = []
    restarts: list[float] = []
    messages = deliveries = shorter = 0
    for number in range(rounds):
        if server.process is None or server.process.poll() is not None:
            await asyncio.to_thread(server.start, DRAIN_SECONDS=str(drain_seconds), HEARTBEAT_SECONDS="0")
        restart = number % RESTART_EVERY == RESTART_EVERY - 1
        seconds, order, readers = await _round(server, number, clients, stalled, restart=restart)
        (restarts if restart else exits).append(seconds)
        _check(order, readers, 1012 if restart else 1001, number)
        shorter += sum(reader.place < len(order.stream) for reader in readers)
        messages += len(_MESSAGE.findall(order.stream))
        deliveries += sum(reader.place for reader in readers)
    drained = server.events("drained")
    problems = server.problems
    figures: Figures = {
        "rounds": rounds,
        "of them restarts": len(restarts),
        "seconds to exit, max": max(exits),
        "seconds to exit, median": statistics.median(exits),
        "seconds until it listens again, max": max(restarts, default=0.0),
        "closed, all rounds": sum(line["closed"] for line in drained),
        "aborted, all rounds": sum(line["aborted"] for line in drained),
        "messages from senders": messages,
        "MiB delivered": deliveries / 2**20,
        "readers with less than the longest": shorter,
    }
    assert len(drained) == rounds, figures
    assert all(line["aborted"] <= stalled and line["closed"] >= clients for line in drained), drained
    assert not problems, problems[:3]
    assert not server.foreign, server.foreign[:5]
    return judged(figures, {"seconds to exit, max": EXIT_SECONDS, "seconds until it listens again, max": EXIT_SECONDS})


async def _round(
    server: Server, number: int, clients: int, stalled: int, *, restart: bool
) -> tuple[float, Order, list[Reader]]:
    loop = asyncio.get_running_loop()
    start = b'{"type":2,"body":"start of round %d %s"}' % (number, b"." * 100)
    order = Order()
    readers = []
    for member in range(clients):
        name, patience = (f"sender{member}r{number}", 0.0) if member < SENDERS else ("reader", 0.2)
        reader = Reader(name, order, start, patience)
        await loop.create_connection(lambda reader=reader: reader, "127.0.0.1", server.port)  # type: ignore[misc]
        readers.append(reader)
    await asyncio.gather(*(reader.upgraded for reader in readers))
    asleep = await asyncio.to_thread(lambda: [_stalled(server.port) for _ in range(stalled)])
    readers[0].say(start.decode())
    await asyncio.wait_for(asyncio.gather(*(reader.started for reader in readers)), PATIENCE_SECONDS)
    talk = asyncio.create_task(_talk(readers[:SENDERS]))
    await asyncio.sleep(FLOW_SECONDS * (1 + number % 3 / 2))
    listening = len(server.events("listening"))
    began = time.monotonic()
    for burst in range(
        2 * BURSTS
    ):  # before the signal and after it, so that something waits to be flushed all the time
        for sender, reader in enumerate(readers[:SENDERS]):
            for _ in range(BURST):
                reader.talk(sender)
        if burst == BURSTS:
            began = time.monotonic()
            server.signal(signal.SIGHUP if restart else signal.SIGTERM)
        await asyncio.sleep(0.001)
    if restart:
        await eventually(lambda: len(server.events("listening")) > listening)
    else:
        assert await asyncio.to_thread(server.wait) == 0
    seconds = time.monotonic() - began
    await asyncio.wait_for(asyncio.gather(*(reader.lost for reader in readers)), PATIENCE_SECONDS)
    await talk
    _check_counts(server, order, readers[:SENDERS])
    for sock in asleep:
        sock.close()
    return seconds, order, readers


def _check(order: Order, readers: list[Reader], code: int, number: int) -> None:
    codes = {reader.code for reader in readers}
    assert codes == {code}, (number, codes, [reader.odd[:80] for reader in readers if reader.code != code][:3])
    own: dict[int, int] = {}
    for match in _MESSAGE.finditer(order.stream):
        sender, message = int(match[1]), int(match[2])
        assert message == own.get(sender, -1) + 1, f"round {number}: sender {sender} skips to {message}"
        if match.end() <= readers[sender].place:
            assert min(reader.place for reader in readers) >= match.end(), f"round {number}: not everybody got {match}"
        own[sender] = message
    assert len(own) == min(SENDERS, len(readers)), own


def _check_counts(server: Server, order: Order, senders: list[Reader]) -> None:
    """What the server had from a sender before it began to close was published: all, or one less than it counted.

    That one came when the sender's task, which was waiting for it, had already been told to end.
    """
    counted = {line["user"]: line["messages_in"] for line in server.events("disconnected") if "user" in line}
    heard = Counter(int(match[1]) for match in _MESSAGE.finditer(order.stream))
    for number, sender in enumerate(senders):
        told = counted[sender.name] - (number == 0)  # the first one said "start", too
        assert heard[number] in (told, told - 1), f"{sender.name}: {told} taken, {heard[number]} published"


async def _talk(senders: list[Reader]) -> None:
    """All of them, 50 times a second, until the end."""
    while not any(reader.odd or reader.lost.done() for reader in senders):
        for sender, reader in enumerate(senders):
            reader.talk(sender)
        await asyncio.sleep(0.02)


def _stalled(port: int) -> socket.socket:
    sock = small_buffer_socket(port)
    sock.sendall(_HEAD % b"asleep")
    assert sock.recv(12) == b"HTTP/1.1 101"
    return sock


if __name__ == "__main__":
    main(run)
