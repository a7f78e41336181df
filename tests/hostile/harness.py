"""What the scenarios share: looking at a server process from outside, and running one by hand."""

import argparse
import asyncio
import contextlib
import inspect
import json
import os
import resource
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.raw import RawClient
from tests.server import Server, patched

Figures = dict[str, float | int | str]

PATIENCE_SECONDS = 20.0
"""What hasn't happened by then won't, however slow the machine is."""

SHARED_DESCRIPTORS = 3
"""Of `Pages`: its memory, and a pipe."""

NAMES_EVERYBODY = patched("from chatserver import presence", "presence.BURST = 1_000_000")
"""A server that tells singly who comes and goes, however many do: for those who note when they hear of whom."""


def rss(server: Server) -> int:
    """Resident memory of the server, in bytes."""
    return int(_status(server, "VmRSS")) * 1024


def descriptors(server: Server) -> int:
    """Its open file descriptors, without those of its `Pages`, which are opened when they are needed, and kept."""
    assert server.process
    folder = Path(f"/proc/{server.process.pid}/fd")
    found = []
    for entry in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(str(entry.readlink()))
    return len(found) - SHARED_DESCRIPTORS * any(link.startswith("/memfd:chatserver") for link in found)


def kernel_queues(server: Server) -> int:
    """Bytes that the kernel holds in the send queues of all sockets on the server's port, orphans included."""
    total = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].split(":")[1], 16) == server.port:
            total += int(fields[4].split(":")[0], 16)
    return total


def cpu_seconds(server: Server) -> float:
    """Processor time that it has used."""
    assert server.process
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _status(server: Server, name: str) -> str:
    assert server.process
    for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return line.split()[1]
    raise KeyError(name)


async def eventually(happens: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> float:
    """Waits until it happens; returns how long that took. Fails after `seconds`."""
    started = time.monotonic()
    while not happens():
        assert time.monotonic() - started < seconds, f"not within {seconds} s"
        await asyncio.sleep(0.05)
    return time.monotonic() - started


async def echo(client: RawClient, text: str = "echo?") -> float:
    """Says something and waits for the client's own copy; returns the seconds."""
    frame = json.dumps({"type": 2, "body": f"{text} {time.monotonic()}"}, separators=(",", ":"))
    started = time.monotonic()
    client.say(frame)
    while await client.text() != frame:
        continue
    return time.monotonic() - started


async def echoes(client: RawClient, stop: asyncio.Event) -> list[float]:
    """Echoes at a person's pace, ten a second, until `stop`; returns all their times, sorted."""
    times = []
    while not stop.is_set():
        times.append(await echo(client))
        await asyncio.sleep(0.1)
    return sorted(times)


def p99(times: list[float]) -> float:
    """Of a sorted list, the time that 99 of 100 stay under."""
    return times[min(len(times) - 1, len(times) * 99 // 100)]


def judged(figures: Figures, most: dict[str, float]) -> Figures:
    """Adds what is over its target. That fails a run by hand, and no test: its machine may be slow, or busy."""
    over = {name: limit for name, limit in most.items() if float(figures[name]) > limit}
    return figures | {f"MISSED {name}": f"over {limit:.4g}" for name, limit in over.items()}


def small_buffer_socket(port: int) -> socket.socket:
    """A connected blocking socket whose kernel takes little from a server that it doesn't read from."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", port))
    return sock


def main(run: Callable[..., Awaitable[Figures]]) -> None:
    """Runs a scenario by hand: its keyword arguments are options, its defaults the full size."""
    parser = argparse.ArgumentParser(description=getattr(inspect.getmodule(run), "__doc__", None))
    for name, parameter in inspect.signature(run).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            parser.add_argument(f"--{name}", type=type(parameter.default), default=parameter.default)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        try:
            figures: Any = asyncio.run(_run(run, server, vars(parser.parse_args())))
        finally:
            server.kill()
    for name, figure in figures.items():
        print(f"{name:36} {figure:.4g}" if isinstance(figure, float) else f"{name:36} {figure}")
    sys.exit(any(name.startswith("MISSED ") for name in figures))


async def _run(run: Callable[..., Awaitable[Figures]], server: Server, options: dict[str, Any]) -> Figures:
    try:
        return await run(server, **options)
    finally:
        await RawClient.clean_up()
