"""Clients that don't read: dropped for it, at a bounded cost, and nobody else loses anything."""

import asyncio
import contextlib
import json
import socket
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Final, Self

from tests.hostile.harness import (
    NAMES_EVERYBODY,
    PATIENCE_SECONDS,
    Figures,
    descriptors,
    eventually,
    judged,
    kernel_queues,
    main,
    rss,
    small_buffer_socket,
)
from tests.raw import CLOSE, PING, PONG, TEXT, RawClient
from tests.server import Server

MAX_QUEUE_BYTES: Final = 262_144
"""The server's default."""
TRANSPORT_BYTES: Final = 300_000
"""Surely more than kernel buffers and transport of a slow client take, and not so much more that its queue is full."""
WINDOW_BYTES: Final = 65_536
"""So far the sender may be ahead of its own echo."""
GONE_SECONDS: Final = 10.0
BASE_SECONDS: Final = 2.0
RSS_BYTES: Final = 64 << 20
CLIENT_BYTES: Final = 512 << 10


class Listener:
    """Reads all that comes, answers pings, and remembers what it heard."""

    def __init__(self, client: RawClient, *, answering: bool = True) -> None:
        self.answering = answering
        self.said: list[str] = []
        """The first word of each message."""
        self.left: dict[str, list[float]] = defaultdict(list)
        """When it heard that somebody left."""
        self.pings = 0
        self.on_ping: Callable[[], None] | None = None
        """Called by each ping, before it is answered."""
        self.reading = asyncio.Event()
        self.reading.set()
        self.code: int | None = None
        """How it ended, if it did."""
        self.client = client
        self.news = asyncio.Event()
        self.task = asyncio.create_task(self._listen())

    @classmethod
    async def connect(cls, port: int, name: str) -> Self:
        return cls(await RawClient.connect(port, f"/ws?name={name}"))

    async def stop(self) -> None:
        """Stops listening; raises what went wrong with it."""
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task

    async def _listen(self) -> None:
        while await self.reading.wait() and (frame := await self.client.receive(3600)):
            if frame.opcode == TEXT:
                self._hear(json.loads(frame.payload)["body"])
                self.news.set()
            elif frame.opcode == PING:
                self.pings += 1
                if self.on_ping:
                    self.on_ping()
                if self.answering:
                    self.client.send(PONG, frame.payload)
            elif frame.opcode == CLOSE:
                self.code = frame.code
                return
        self.code = 1006

    def _hear(self, body: str) -> None:
        word, _, rest = body.partition(" ")
        if rest == "disconnected":
            self.left[word].append(time.monotonic())
        elif rest != "connected":
            assert "#" not in word or len(body) == int(word.partition("#")[2]), "a mangled message"
            self.said.append(word)


class Sender(Listener):
    """Also publishes, no faster than it hears itself."""

    count = 0
    published = 0

    async def publish(self, size: int) -> None:
        """`size` bytes in messages of 1 to 10 kB. Each says its number and its length."""
        goal = self.published + size
        unheard: dict[str, int] = {}
        heard = len(self.said)
        while self.published < goal or unheard:
            length = 1000 + self.count * 7919 % 9000
            while self.published < goal and sum(unheard.values()) <= WINDOW_BYTES:
                word = f"{self.count}#{length}"
                self.client.say(json.dumps({"type": 2, "body": f"{word} ".ljust(length, "x")}))
                unheard[word] = length
                self.count += 1
                self.published += length
                length = 1000 + self.count * 7919 % 9000
            self.news.clear()
            await asyncio.wait_for(self.news.wait(), PATIENCE_SECONDS)
            for word in self.said[heard:]:
                unheard.pop(word, None)
            heard = len(self.said)


class Usage:
    """What the server uses at the most, beyond what it used when this began."""

    def __init__(self, server: Server) -> None:
        self.memory = self.queues = self.both = 0
        self._server = server
        self._base = rss(server)
        self.task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            memory, queues = rss(self._server) - self._base, kernel_queues(self._server)
            self.memory = max(self.memory, memory)
            self.queues = max(self.queues, queues)
            self.both = max(self.both, memory + queues)
            await asyncio.sleep(0.02)


def deaf(port: int, name: str) -> socket.socket:
    """A WebSocket that reads nothing after the handshake."""
    return upgrade(small_buffer_socket(port), name)


def upgrade(sock: socket.socket, name: str) -> socket.socket:
    """Does the handshake on a blocking socket, and takes nothing beyond it."""
    sock.settimeout(PATIENCE_SECONDS)
    sock.sendall(
        f"GET /ws?name={name} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        assert byte, head
        head += byte
    assert b" 101 " in head
    sock.setblocking(False)
    return sock


async def talk(sock: socket.socket, opcode: int, payload: bytes) -> None:
    """Sends a frame every half second, for as long as it can."""
    frame = bytes([0x80 | opcode, 0x80 | len(payload)]) + bytes(4) + payload
    with contextlib.suppress(ConnectionError):
        while True:
            await asyncio.get_running_loop().sock_sendall(sock, frame)
            await asyncio.sleep(0.5)


async def trickle(sock: socket.socket) -> None:
    """Reads 1 kB/s, for as long as it can."""
    with contextlib.suppress(ConnectionError):
        while await asyncio.get_running_loop().sock_recv(sock, 1000):
            await asyncio.sleep(1)


def talkers(port: int, prefix: str) -> tuple[dict[str, socket.socket], list[asyncio.Task[None]]]:
    """Two that send and never read: one of them pings, the other has something to say."""
    pinger, speaker = f"{prefix}-pings", f"{prefix}-speaks"
    socks = {pinger: deaf(port, pinger), speaker: deaf(port, speaker)}
    says = json.dumps({"type": 2, "body": prefix}).encode()
    return socks, [
        asyncio.create_task(talk(socks[pinger], PING, b"")),
        asyncio.create_task(talk(socks[speaker], TEXT, says)),
    ]


async def run(
    server: Server, *, slow: int = 100, readers: int = 20, megabytes: float = 20.0, write_seconds: float = 10.0
) -> Figures:
    """`slow` clients that never read, one that reads 1 kB/s and two that only send, in a room with `readers`."""
    # The sender may be quicker than a person.
    server.start(
        *NAMES_EVERYBODY, RATE_LIMIT="0", WRITE_SECONDS=str(write_seconds), MAX_QUEUE_BYTES=str(MAX_QUEUE_BYTES)
    )
    sender = await Sender.connect(server.port, "sender")
    audience: list[Listener] = [
        sender,
        *[await Listener.connect(server.port, f"reader-{number}") for number in range(readers)],
    ]
    tasks: list[asyncio.Task[None]] = []
    socks: dict[str, socket.socket] = {}
    try:
        return await _run(server, sender, audience, tasks, socks, slow, megabytes, write_seconds)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for sock in socks.values():
            sock.close()
        for listener in audience:
            await listener.stop()


async def _run(
    server: Server,
    sender: Sender,
    audience: list[Listener],
    tasks: list[asyncio.Task[None]],
    socks: dict[str, socket.socket],
    slow: int,
    megabytes: float,
    write_seconds: float,
) -> Figures:
    total = round(megabytes * 1e6)
    await sender.publish(total // 10)  # warms the server up
    usage = Usage(server)
    tasks.append(usage.task)
    base = descriptors(server), kernel_queues(server)

    # A room that goes on
    for number in range(slow):
        socks[f"slow-{number}"] = deaf(server.port, f"slow-{number}")
    socks["trickle"] = deaf(server.port, "trickle")
    tasks.append(asyncio.create_task(trickle(socks["trickle"])))
    some, theirs = talkers(server.port, "busy")
    socks.update(some)
    tasks.extend(theirs)
    started = time.monotonic()
    await sender.publish(MAX_QUEUE_BYTES)  # nobody's queue can be full before
    while not _gone(sender, socks):
        assert time.monotonic() - started < PATIENCE_SECONDS, f"still there: {socks.keys() - sender.left.keys()}"
        await sender.publish(WINDOW_BYTES)
    gone = max(sender.left[name][0] for name in socks) - started
    published = sender.published
    both, memory, queues = usage.both, usage.memory, usage.queues
    back = await _base(server, base)
    assert both <= len(socks) * CLIENT_BYTES, f"{both / len(socks):.0f} bytes for each slow client"

    # A room that falls silent
    quiet, theirs = talkers(server.port, "quiet")
    quiet["quiet"] = deaf(server.port, "quiet")
    socks.update(quiet)
    tasks.extend(theirs)
    hesitant = await _hesitant(server.port)
    number = sender.count
    started = time.monotonic()
    await sender.publish(TRANSPORT_BYTES)
    hesitant.reading.set()
    both_told = (sender, hesitant)  # that they are gone: neither has anything more to come
    await eventually(lambda: all(_gone(each, quiet) for each in both_told), write_seconds + PATIENCE_SECONDS)
    quiet_gone = [sender.left[name][0] - started for name in quiet]
    assert min(quiet_gone) > write_seconds * 0.7, "it wasn't the write deadline"
    heard = len(hesitant.said)
    assert hesitant.said == sender.said[-heard:], "who was behind for a moment has lost something"
    assert len(_numbers(hesitant.said)) == sender.count - number
    await hesitant.stop()
    await hesitant.client.close()
    await _base(server, base)
    await eventually(lambda: _logged(server, socks) >= len(socks))
    assert _logged(server, socks) == len(socks)

    # All the rest, to those who are left
    await sender.publish(max(0, total - sender.published))
    await eventually(lambda: all(len(listener.said) == len(sender.said) for listener in audience))
    usage.task.cancel()
    _complete(sender, audience, {*socks, "hesitant"})
    assert usage.memory <= RSS_BYTES, f"RSS grew by {usage.memory}"
    figures: Figures = {
        "slow clients": len(socks),
        "gone, seconds after a full queue": gone,
        "published by then, bytes": published - total // 10,
        "RSS growth by then, KiB": memory // 1024,
        "kernel send queues at most, KiB": queues // 1024,
        "memory of a slow client, KiB": both / len(socks) / 1024,
        "back at base, seconds": back,
        "quiet room: gone, seconds": max(quiet_gone),
        "readers": len(audience),
        "messages to each, all there": len(sender.said),
        "bytes to each": sender.published,
        "RSS growth at most, MiB": usage.memory / 2**20,
    }
    most = {
        "gone, seconds after a full queue": min(GONE_SECONDS, 0.9 * write_seconds),  # sooner than by their deadline
        "back at base, seconds": BASE_SECONDS,
        "quiet room: gone, seconds": write_seconds + 1.5,
    }
    return judged(figures, most)


async def _hesitant(port: int) -> Listener:
    """A reader that will be behind, but not too much: it doesn't read yet, and takes little."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    sock.connect(("127.0.0.1", port))
    client = RawClient(*await asyncio.open_connection(sock=sock, limit=4096))
    await client.upgrade("/ws?name=hesitant")
    listener = Listener(client)
    listener.reading.clear()
    return listener


def _numbers(said: list[str]) -> list[int]:
    """The sender's messages, by number."""
    return [int(word.partition("#")[0]) for word in said if "#" in word]


def _gone(listener: Listener, names: dict[str, socket.socket]) -> bool:
    return listener.left.keys() >= names.keys()


async def _base(server: Server, base: tuple[int, int]) -> float:
    """The slow ones' own sockets are still open: it is the server that lets go of them."""
    return await eventually(lambda: descriptors(server) <= base[0] and kernel_queues(server) <= base[1])


def _logged(server: Server, names: dict[str, socket.socket]) -> int:
    """How many were logged as slow. Of many in a second the log tells only the number, in its next line of the kind."""
    lines = server.events("slow")
    assert {line["user"] for line in lines} <= names.keys()
    assert {line["code"] for line in lines} <= {3008}
    return sum(1 + line.get("suppressed", 0) for line in lines)


def _complete(sender: Sender, audience: list[Listener], left: set[str]) -> None:
    """Everybody who reads has heard all, once, and in the same order; nobody of them was dropped."""
    assert _numbers(sender.said) == list(range(sender.count))
    for listener in audience:
        assert listener.code is None, "a reader was dropped"
        assert not listener.task.done()
        assert listener.said == sender.said
        assert {name: len(times) for name, times in listener.left.items()} == dict.fromkeys(left, 1)


if __name__ == "__main__":
    main(run)
