"""No file descriptors left, and peers that connect and reset at every stage."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import sys
import time
from collections import Counter
from datetime import datetime
from typing import Final

from tests.hostile.harness import PATIENCE_SECONDS, Figures, descriptors, echo, echoes, eventually, judged, main, rss
from tests.raw import RawClient
from tests.server import Server, patched

DESCRIPTORS: Final = 256
LINES_PER_SECOND: Final = 10
FREE_SECONDS: Final = 2.0
ECHO_SECONDS: Final = 2.0

WARM_UP: Final = 2000
GROWTH_BYTES: Final = 8 * 2**20
"""The garbage collector looks when 50,000 objects have come. Of 364,000 cycles the last 100,000 added nothing."""
AT_ONCE: Final = 16

STAGES: Final = ("after connect", "within the headers", "after the upgrade", "in the middle of a message")

TELLS_ITS_TASKS: Final = patched(
    "import asyncio, os, signal",
    'signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b"tasks %d\\n" % len(asyncio.all_tasks())))',
)
"""At SIGUSR1: nobody can count them from outside."""

_HEAD: Final = (
    "GET /ws?name={} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
_WATCH: Final = ('{"id":1,"connect":{}}', '{"id":2,"subscribe":{"channel":"lobby","join_leave":true}}')
"""By the Centrifuge protocol also those are told one by one who come and go in a burst."""

_HALF_A_FRAME: Final = bytes([0x81, 0x80 | 100]) + b"\0\0\0\0" + b'{"type":2,"body":"never'
_RESET: Final = struct.pack("ii", 1, 0)


async def run(server: Server, *, cycles: int = 20000, connects: int = 400) -> Figures:
    figures = await starve(server, connects)
    server.kill()
    return figures | await storm(server, cycles)


async def starve(server: Server, connects: int, seconds: float = 3.0) -> Figures:
    """More connects than the process has descriptors for, held for some `seconds`.

    Without pings, as the simple clients here read texts only.
    """
    server.start("sh", "-c", f'ulimit -n {DESCRIPTORS}; exec "$0" -m chatserver', sys.executable, HEARTBEAT_SECONDS="0")
    old = [await RawClient.connect(server.port) for _ in range(2)]
    base = descriptors(server)
    stop = asyncio.Event()
    talking = [asyncio.create_task(echoes(client, stop)) for client in old]
    figures: Figures = {}
    for kind, crowd in (("mute", _mutes), ("websocket", _websockets)):
        began, lines = time.time(), len(server.log)
        held = await crowd(server.port, connects)
        await asyncio.sleep(seconds)
        figures[f"{kind}: descriptors of {DESCRIPTORS}"] = descriptors(server)
        figures[f"{kind}: log lines, most of a kind in 1 s"] = _most_of_a_kind(server, began)
        figures[f"{kind}: log lines per second"] = (len(server.log) - lines) / (time.time() - began)
        for peer in held:
            peer.close()
        figures[f"{kind}: seconds until a new client is served"] = await _served(server)
        await eventually(lambda: descriptors(server) <= base)
    stop.set()
    slowest = max(times[-1] for times in await asyncio.gather(*talking))
    figures["old clients' slowest echo, seconds"] = slowest
    assert int(figures[f"mute: descriptors of {DESCRIPTORS}"]) >= DESCRIPTORS - 2, figures
    for kind in ("mute", "websocket"):  # a busy machine may stamp those of two seconds in one
        assert float(figures[f"{kind}: log lines, most of a kind in 1 s"]) <= 2 * LINES_PER_SECOND, figures
    assert float(figures["mute: log lines per second"]) <= LINES_PER_SECOND, figures
    assert not server.foreign, server.foreign[:5]
    most: dict[str, float] = {"old clients' slowest echo, seconds": ECHO_SECONDS}
    for kind in ("mute", "websocket"):
        most[f"{kind}: log lines, most of a kind in 1 s"] = LINES_PER_SECOND
        most[f"{kind}: seconds until a new client is served"] = FREE_SECONDS
    return judged(figures, most)


async def storm(server: Server, cycles: int) -> Figures:
    """Peers that come, get as far as one of the `STAGES`, and reset the connection."""
    server.start(*TELLS_ITS_TASKS, HEARTBEAT_SECONDS="0")
    bystander = await RawClient.connect(server.port, "/connection/websocket")
    for command in _WATCH:
        bystander.say(command)
    heard = Counter[str]()
    listening = asyncio.create_task(_listen(bystander, heard))
    await asyncio.sleep(0.1)
    base, tasks = descriptors(server), await _tasks(server)
    warm_up = min(WARM_UP, cycles // 2)
    started = time.monotonic()
    await _resets(server.port, range(warm_up))
    await eventually(lambda: descriptors(server) <= base)
    warm = rss(server)
    await _resets(server.port, range(warm_up, cycles))
    seconds = time.monotonic() - started
    back = await eventually(lambda: descriptors(server) <= base)
    upgraded = [_name(number) for number in range(cycles) if number % len(STAGES) >= 2]
    wanted = Counter(f"{name} {what}" for name in upgraded for what in ("connected", "disconnected"))
    await eventually(lambda: heard.total() >= wanted.total())
    await asyncio.sleep(0.2)
    left = await _tasks(server)
    growth = rss(server) - warm
    bystander.say('{"id":3,"publish":{"channel":"lobby","data":"end"}}')
    await asyncio.wait_for(listening, PATIENCE_SECONDS)
    wrong = (wanted - heard) + (heard - wanted)
    figures: Figures = {
        "reset cycles": cycles,
        "cycles per second": cycles / seconds,
        "descriptors before, after": f"{base}, {descriptors(server)}",
        "seconds until descriptors are back": back,
        "tasks before, after": f"{tasks}, {left}",
        "MiB of growth after the warm-up": growth / 2**20,
        "notices of coming and going": heard.total(),
        "of them wrong or missing": wrong.total(),
        "log lines per second of the storm": len(server.log) / seconds,
    }
    assert descriptors(server) <= base, figures
    assert left <= tasks, figures
    assert growth <= GROWTH_BYTES, figures
    assert not wrong, (wrong.most_common(5), figures)
    assert not server.problems, figures
    assert not server.foreign, server.foreign[:5]
    return figures


async def _mutes(port: int, count: int) -> list[socket.socket]:
    """Peers that connect and say nothing."""
    loop = asyncio.get_running_loop()
    held = []
    for _ in range(count):
        sock = socket.socket()
        sock.setblocking(False)
        held.append(sock)
        await asyncio.wait_for(loop.sock_connect(sock, ("127.0.0.1", port)), PATIENCE_SECONDS)
    return held


async def _websockets(port: int, count: int) -> list[socket.socket]:
    """Peers that ask for a WebSocket, and hold on to whatever they get."""
    held = await _mutes(port, count)
    for number, sock in enumerate(held):
        with contextlib.suppress(OSError):  # the server had no descriptor for it, and may have reset it
            sock.send(_HEAD.format(f"held{number}").encode())
    return held


async def _served(server: Server) -> float:
    """How long it takes until a new client gets in, and hears itself."""
    started = time.monotonic()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                client = await RawClient.connect(server.port)
                assert client.status == 101, client.status
                await echo(client)
                break
            except (AssertionError, OSError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.05)
    took = time.monotonic() - started
    await client.close()
    client.abort()
    return took


def _most_of_a_kind(server: Server, since: float) -> int:
    """Lines of the log, of one message, in a second by the clock's window in which the server counts them."""
    kinds: dict[str, list[float]] = {}
    for line in server.log:
        at = datetime.fromisoformat(line["timestamp"]).timestamp()
        if at >= since:
            kinds.setdefault(line["message"], []).append(at)
    most = 0
    for times in kinds.values():
        window, count = 0.0, 0
        for at in times:
            window, count = (window, count + 1) if at - window < 0.99 else (at, 1)
            most = max(most, count)
    return most


async def _tasks(server: Server) -> int:
    assert server.process
    known = server.stdout.count("tasks ")
    os.kill(server.process.pid, signal.SIGUSR1)
    await eventually(lambda: server.stdout.count("tasks ") > known and server.stdout.endswith("\n"))
    return int(server.stdout.split()[-1])


async def _listen(bystander: RawClient, heard: Counter[str]) -> None:
    while True:
        for line in (await bystander.text(30)).split("\n"):
            push = json.loads(line).get("push", {})
            if "pub" in push:
                return
            for kind, did in (("join", "connected"), ("leave", "disconnected")):
                name = push.get(kind, {}).get("info", {}).get("conn_info", {}).get("name")
                if name:  # the bystander has none
                    heard[f"{name} {did}"] += 1


def _name(number: int) -> str:
    return f"peer{number}"


async def _resets(port: int, numbers: range) -> None:
    waiting = iter(numbers)

    async def work() -> None:
        for number in waiting:
            await asyncio.wait_for(_reset(port, number), PATIENCE_SECONDS)

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))


async def _reset(port: int, number: int) -> None:
    loop = asyncio.get_running_loop()
    stage = number % len(STAGES)
    with socket.socket() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", port))
        head = _HEAD.format(_name(number)).encode()
        if stage == 1:
            await loop.sock_sendall(sock, head[: len(head) * (1 + number % 7) // 8])
        elif stage >= 2:
            await loop.sock_sendall(sock, head)
            answer = await loop.sock_recv(sock, 1000)
            assert answer.startswith(b"HTTP/1.1 101 "), answer
        if stage == 3:
            await loop.sock_sendall(sock, _HALF_A_FRAME)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


if __name__ == "__main__":
    main(run)
