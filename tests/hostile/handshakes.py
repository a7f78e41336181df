"""Peers that never finish a handshake, and those who want in past a limit: closed in time, refused with a reason.

Good clients get in at any moment meanwhile.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import TypeAlias

from tests.hostile.harness import PATIENCE_SECONDS, Figures, judged, main
from tests.raw import RawClient
from tests.server import Server, patched

HANDSHAKE_SECONDS = 10.0
"""What the server gives a request to arrive, if it isn't started `quick`."""

GONE_SECONDS = 12.0
"""From connect, or from the last byte of a request's head, to the end of a connection that asks for nothing whole."""

ENTRY_SECONDS = 1.0
"""From connect to 101, at any moment."""

HEAD = b"GET /ws HTTP/1.1\r\nHost: localhost\r\nX-Endless: "

HALF_BODIES = {
    "POST /healthz": b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nab",
    "POST /ws": b"POST /ws HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nab",
    "GET /healthz": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nab",
    "upgrade of /ws": (
        b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nContent-Length: 100\r\n\r\nab"
    ),
    "chunked": b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nab",
}
"""2 bytes of 100; then nothing, or another byte now and then."""


def quick(server: Server, seconds: float) -> None:
    """Starts it so that it waits no longer than that for a request."""
    aiohttps = 'web_protocol.RequestHandler.__init__.__kwdefaults__["lingering_time"]'
    server.start(
        *patched(
            "from aiohttp import web_protocol",
            "from chatserver import launchers",
            f"launchers.HANDSHAKE_SECONDS = {aiohttps} = {seconds}",
        )
    )


async def _hang(port: int, patience: float, start: bytes, trickle: bytes = b"") -> float:
    """Connects, sends `start` and then `trickle` every now and then; the seconds until the server ends it."""
    started = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def send() -> None:
        while trickle:
            await asyncio.sleep(patience / 2)
            writer.write(trickle)

    writer.write(start)
    sending = asyncio.create_task(send())
    try:
        async with asyncio.timeout(patience + PATIENCE_SECONDS):
            while await reader.read(4096):
                continue
    except ConnectionError:
        pass
    finally:
        sending.cancel()
        writer.transport.abort()
    return time.monotonic() - started


async def _enter(port: int) -> float:
    """Gets in and leaves; the seconds from connect to 101."""
    started = time.monotonic()
    client = await RawClient.connect(port)
    took = time.monotonic() - started
    assert client.status == 101
    client.abort()
    return took


async def _entries(port: int, stop: asyncio.Event) -> list[float]:
    times = []
    while not stop.is_set():
        times.append(await _enter(port))
        RawClient.opened.pop()
        await asyncio.sleep(0.05)
    return sorted(times)


async def hang(server: Server, *, slow: int, mute: int, bodies: int, patience: float = HANDSHAKE_SECONDS) -> Figures:
    """Slow and mute sockets and half bodies, all at once: all end, and others get in meanwhile.

    The server gives them `patience` seconds.
    """

    def hangs(count: int, start: bytes, trickle: bytes = b"") -> list[Coroutine[None, None, float]]:
        return [_hang(server.port, patience, start, trickle) for _ in range(count)]

    peers = {"slow header": hangs(slow, HEAD, b"a"), "mute": hangs(mute, b"")}
    for name, start in HALF_BODIES.items():
        peers[f"half body, {name}"] = hangs(bodies, start)
        peers[f"trickled body, {name}"] = hangs(bodies, start, b"a")
    stop = asyncio.Event()
    entries = asyncio.create_task(_entries(server.port, stop))
    await asyncio.sleep(0.2)
    kinds = [name for name, hangs in peers.items() for _ in hangs]
    ends = await asyncio.gather(*(one for hangs in peers.values() for one in hangs))
    stop.set()
    times = await entries
    figures: Figures = {"entries": len(times), "entry_median_ms": 1000 * times[len(times) // 2]}
    figures["entry_max_ms"] = 1000 * times[-1]
    for name in peers:
        seconds = [end for kind, end in zip(kinds, ends, strict=True) if kind == name]
        figures[f"{name}: sockets"] = len(seconds)
        figures[f"{name}: first closed_seconds"] = min(seconds)
        figures[f"{name}: last closed_seconds"] = max(seconds)
    gone = {f"{name}: last closed_seconds": GONE_SECONDS for name in peers}
    return judged(figures, gone | {"entry_max_ms": 1000 * ENTRY_SECONDS})


@contextlib.asynccontextmanager
async def _stopping(server: Server) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await RawClient.clean_up()
        assert await asyncio.to_thread(server.stop) == 0


async def _ask(port: int, *lines: str, version: str = "1.1", source: str = "127.0.0.1", body: str = "") -> RawClient:
    """A handshake of just these `lines`, from the address `source`."""
    client = RawClient(*await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0)))
    head = [f"GET /ws HTTP/{version}", "Host: localhost", *lines, "", body]
    client.writer.write("\r\n".join(head).encode())
    await client.read_head()
    return client


UPGRADE = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
GOOD = (*UPGRADE, "Sec-WebSocket-Version: 13")

REFUSED = (
    (403, (*GOOD, "Origin: http://evil"), "1.1"),
    (403, (*GOOD, "Origin: null"), "1.1"),
    (403, (*GOOD, "Origin: http://localhost.evil"), "1.1"),
    (403, (*GOOD, "Origin: http://localhost", "Origin: http://evil"), "1.1"),
    (400, (*GOOD, "Content-Length: 5"), "1.1"),
    (400, (*GOOD, "Transfer-Encoding: chunked"), "1.1"),
    (400, GOOD, "1.0"),
    (426, (*UPGRADE, "Sec-WebSocket-Version: 7"), "1.1"),
    (426, (*UPGRADE, "Sec-WebSocket-Version: 8"), "1.1"),
)
"""Status, the handshake's lines, and HTTP's version."""


async def bad_handshakes(server: Server) -> int:
    """Each is refused before the upgrade."""
    server.start()
    async with _stopping(server):
        for status, lines, version in REFUSED:
            client = await _ask(server.port, *lines, version=version, body="hello" if status == 400 else "")
            assert client.status == status, (client.status, lines, version)
            assert client.headers.get("upgrade", "websocket") == "websocket"
            assert "sec-websocket-accept" not in client.headers
        assert not server.events("connected")
        for lines in (GOOD, (*GOOD, "Origin: http://localhost")):
            assert (await _ask(server.port, *lines)).status == 101
    return len(REFUSED)


async def _full(client: RawClient, status: int) -> None:
    assert (client.status, client.headers.get("retry-after")) == (status, "5")


async def most(server: Server) -> int:
    """`MAX_CONNECTIONS`, and a place that is free again."""
    server.start(MAX_CONNECTIONS="5")
    async with _stopping(server):
        inside = [await _ask(server.port, *GOOD, source=f"127.0.0.{number}") for number in range(1, 6)]
        assert [client.status for client in inside] == [101] * 5
        for number in (1, 9):
            await _full(await _ask(server.port, *GOOD, source=f"127.0.0.{number}"), 503)
        inside[0].abort()
        await _admitted(lambda: _ask(server.port, *GOOD))
        await _full(await _ask(server.port, *GOOD), 503)
    return 3


async def most_per_address(server: Server) -> int:
    """`MAX_CONNECTIONS_PER_ADDRESS`: others get in; nobody's own claim counts."""
    server.start(MAX_CONNECTIONS_PER_ADDRESS="3")
    async with _stopping(server):
        inside = [await _ask(server.port, *GOOD, f"X-Forwarded-For: 10.0.0.{number}") for number in range(3)]
        assert [client.status for client in inside] == [101] * 3
        await _full(await _ask(server.port, *GOOD), 429)
        await _full(await _ask(server.port, *GOOD, "X-Forwarded-For: 10.0.0.9"), 429)
        assert (await _ask(server.port, *GOOD, source="127.0.0.2")).status == 101
        inside[0].abort()
        await _admitted(lambda: _ask(server.port, *GOOD))
        await _full(await _ask(server.port, *GOOD), 429)
    return 3


async def _admitted(connect: Callable[[], Awaitable[RawClient]]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await connect()).status != 101:
            await asyncio.sleep(0.05)


SPOOFS = (
    ("10.0.0.1",),
    ("8.8.8.8, 10.0.0.1",),
    ("8.8.8.8,9.9.9.9,,10.0.0.1 ",),
    ("8.8.8.8", "10.0.0.1"),
    ("nonsense, 10.0.0.1",),
    ("127.0.0.1, 10.0.0.1",),
    ("10.0.0.1, 127.0.0.1",),
    ("10.0.0.1", "127.0.0.1"),
)
"""The X-Forwarded-For headers, through a trusted proxy, of one who comes from 10.0.0.1."""

GARBAGE = (
    ("nonsense",),
    ("8.8.8.8, nonsense",),
    ("8.8.8.8, 10.0.0.1:80",),
    ("8.8.8.8,",),
    ("8.8.8.8", ""),
    ("8.8.8.8", "unknown"),
    ("8.8.8.8, 127.1",),
    ("8.8.8.8 9.9.9.9",),
    ("8.8.8.8;9.9.9.9",),
    ("0x08080808",),
    ("",),
    (),
)
"""What names nobody: it counts for the proxy."""


async def proxies(server: Server) -> int:
    """Behind a trusted proxy each forwarded address has a limit of its own, and spoofing doesn't get around it."""

    async def ask(*claims: str, source: str = "127.0.0.1") -> RawClient:
        return await _ask(server.port, *GOOD, *(f"X-Forwarded-For: {claim}" for claim in claims), source=source)

    server.start(MAX_CONNECTIONS_PER_ADDRESS="2", TRUSTED_PROXIES="127.0.0.1")
    async with _stopping(server):
        for address in ("10.0.0.1", "10.0.0.2", "2001:db8::1"):
            assert [(await ask(address)).status for _ in range(3)] == [101, 101, 429]
        for claims in SPOOFS:
            client = await ask(*claims)
            assert client.status == 429, claims
        let_in = [claims for claims in GARBAGE if (await ask(*claims)).status == 101]
        assert let_in == list(GARBAGE[:2])
        # 127.0.0.2 is no proxy: whatever it claims, all it has is its own two places, and takes nobody else's
        statuses = [(await ask(f"10.1.0.{number}", source="127.0.0.2")).status for number in range(4)]
        assert statuses == [101, 101, 429, 429]
        assert (await ask("10.1.0.0")).status == 101
    return len(SPOOFS) + len(GARBAGE) + 4


Table: TypeAlias = Callable[[Server], Awaitable[int]]

TABLES: tuple[Table, ...] = (bad_handshakes, most, most_per_address, proxies)
"""Each starts the server with settings of its own, and returns how many refusals were right."""


async def run(server: Server, *, slow: int = 2000, mute: int = 500, bodies: int = 20) -> Figures:
    """The tables, then the crowd."""
    figures: Figures = {"refusals": sum([await table(server) for table in TABLES])}
    server.start()
    return figures | await hang(server, slow=slow, mute=mute, bodies=bodies)


if __name__ == "__main__":
    main(run)
