"""How many messages a second are acknowledged, that is stored, and how long a sender waits for its own copy.

python -m bench.durable --stores memory://,sqlite:///bench.db,postgresql://root@127.0.0.1/test

For each store a server is started, and N senders, each in a room of its own, send a message, wait for their own copy
and send the next. The last line of each store is of 100 messages a second, evenly spaced. Rounds are interleaved, and
figures are medians.
"""

import argparse
import asyncio
import base64
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from bench.process import started

BODY = b'{"type":2,"body":"' + b"x" * 120 + b'"}'
FRAME = b"\x81" + bytes([0x80 | 126]) + len(BODY).to_bytes(2, "big") + b"\0\0\0\0" + BODY  # masked with zeros
OWN = b"\x81~" + len(BODY).to_bytes(2, "big") + BODY
RATE = 100


class Sender(asyncio.Protocol):
    """A connection that is alone in its room."""

    def __init__(self, heard: Callable[["Sender", float], None]) -> None:
        self.upgraded = asyncio.get_running_loop().create_future()
        self._heard = heard
        self._sent: list[float] = []
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self.upgraded.done():
            head, end, self._buffer = self._buffer.partition(b"\r\n\r\n")
            if not end:
                self._buffer = head
                return
            assert b" 101 " in head, head
            self.upgraded.set_result(None)
        while OWN in self._buffer:
            self._buffer = self._buffer.partition(OWN)[2]
            self._heard(self, time.perf_counter() - self._sent.pop(0))

    def say(self) -> None:
        """Sends a message."""
        self._sent.append(time.perf_counter())
        self.transport.write(FRAME)


async def _connect(port: int, count: int, heard: Callable[[Sender, float], None]) -> list[Sender]:
    loop = asyncio.get_running_loop()
    senders = []
    for number in range(count):
        transport, sender = await loop.create_connection(lambda: Sender(heard), "127.0.0.1", port)
        key = base64.b64encode(os.urandom(16)).decode()
        transport.write(
            f"GET /ws?name=s{number}&room=r{number} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        senders.append(sender)
    await asyncio.gather(*(sender.upgraded for sender in senders))
    return senders


async def _as_fast_as_acknowledged(port: int, count: int, seconds: float) -> tuple[float, list[float]]:
    waits: list[float] = []
    over = False

    def heard(sender: Sender, wait: float) -> None:
        waits.append(wait)
        if not over:
            sender.say()

    senders = await _connect(port, count, heard)
    for sender in senders:
        sender.say()
    await asyncio.sleep(seconds / 5)
    waits.clear()
    await asyncio.sleep(seconds)
    found = waits.copy()
    over = True
    for sender in senders:
        sender.transport.abort()
    return len(found) / seconds, found


async def _evenly(port: int, seconds: float) -> tuple[float, list[float]]:
    waits: list[float] = []
    senders = await _connect(port, 10, lambda sender, wait: waits.append(wait))
    for number in range(int(seconds * RATE)):
        senders[number % 10].say()
        await asyncio.sleep(1 / RATE)
    await asyncio.sleep(0.5)
    for sender in senders:
        sender.transport.abort()
    return len(waits) / seconds, waits


def _server(store: str, folder: Path) -> AbstractContextManager[tuple[int, int]]:
    settings = {"STORE_URL": store, "LOG_LEVEL": "error", "FEATURES": "limits,http"}
    return started([sys.executable, "-m", "chatserver"], folder, settings)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stores", default="memory://,sqlite:///bench.db")
    parser.add_argument("--senders", default="1,10,100,1000")
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _measure(given, Path(folder))


def _measure(given: argparse.Namespace, folder: Path) -> None:
    counts = [*map(int, given.senders.split(",")), 0]
    found: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
    for _ in range(given.rounds):
        for store in given.stores.split(","):
            for count in counts:
                with _server(store, folder) as (port, _):
                    work = _as_fast_as_acknowledged(port, count, given.seconds) if count else _evenly(port, 3)
                    rate, waits = asyncio.run(work)
                waits.sort()
                figures = rate, 1000 * waits[len(waits) // 2], 1000 * waits[len(waits) * 99 // 100]
                found.setdefault((store.partition(":")[0], count), []).append(figures)
    print("| store | senders | acknowledged/s | p50 ms | p99 ms |\n|---|--:|--:|--:|--:|")
    for (scheme, count), rounds in found.items():
        rate, p50, p99 = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(f"| {scheme} | {count or f'{RATE}/s'} | {rate:,.0f} | {p50:.1f} | {p99:.1f} |")


if __name__ == "__main__":
    main()
