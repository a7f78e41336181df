"""Peers that are gone without a word, or silent: found in time. Stalls of the server's own loop: nobody's death.

Needs root and `ip`: the half-open peers live in a network namespace of their own, whose cable is pulled.
"""

import asyncio
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

from tests.hostile.harness import (
    NAMES_EVERYBODY,
    PATIENCE_SECONDS,
    Figures,
    descriptors,
    eventually,
    judged,
    kernel_queues,
    main,
)
from tests.hostile.slow_readers import TRANSPORT_BYTES, Listener, Sender, upgrade
from tests.raw import RawClient
from tests.server import Server

SERVER_ADDRESS: Final = "10.250.0.1"
PEER_ADDRESS: Final = "10.250.0.2"
BASE_SECONDS: Final = 2.0

_NEW_NETWORK: Final = 0x40000000  # CLONE_NEWNET
_libc: Final = ctypes.CDLL(None, use_errno=True)  # Python has setns from 3.12

_STALLS: Final = """
import asyncio, signal, time

def setup(app):
    async def listen(app):
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, time.sleep, {seconds})

    app.on_startup.append(listen)
"""


class Namespace:
    """A network of its own. It has no name: whatever happens, the kernel clears it away with its last process."""

    def __init__(self) -> None:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            _call(_libc.unshare(_NEW_NETWORK))
            try:
                self._network = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
            finally:
                _call(_libc.setns(home, _NEW_NETWORK))
        finally:
            os.close(home)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Sockets and processes made in this context belong to it for good."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            _call(_libc.setns(self._network, _NEW_NETWORK))
            try:
                yield
            finally:
                _call(_libc.setns(home, _NEW_NETWORK))
        finally:
            os.close(home)

    @property
    def path(self) -> str:
        """For `ip`, while this process lives."""
        return f"/proc/{os.getpid()}/fd/{self._network}"

    def ip(self, command: str) -> None:
        with self.inside():
            subprocess.run(["ip", *command.split()], check=True, timeout=30)

    def socket(self) -> socket.socket:
        with self.inside():
            return socket.socket()

    def close(self) -> None:
        os.close(self._network)


def _call(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def possible() -> str:
    """Why there can be no namespaces here; empty if there can."""
    if not shutil.which("ip"):
        return "no ip (iproute2)"
    try:
        with cable():
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespaces: {error}"


@contextmanager
def cable() -> Iterator[tuple[Namespace, Namespace]]:
    """Two networks and a cable between them: for the server, and for its peers."""
    here = Namespace()
    try:
        there = Namespace()
        try:
            here.ip("link set lo up")
            here.ip(f"link add cable type veth peer name cable netns {there.path}")
            for network, address in (here, SERVER_ADDRESS), (there, PEER_ADDRESS):
                network.ip(f"address add {address}/30 dev cable")
                network.ip("link set cable up")
            yield here, there
        finally:
            there.close()
    finally:
        here.close()


class Peers:
    """Who is connected, by name."""

    def __init__(self) -> None:
        self.listeners: dict[str, Listener] = {}
        self.deaf: dict[str, socket.socket] = {}

    async def listen(self, sock: socket.socket, host: str, port: int, name: str, *, answering: bool = True) -> None:
        client = await _connect(sock, host, port, name)
        self.listeners[name] = Listener(client, answering=answering)

    async def stop(self) -> None:
        for sock in self.deaf.values():
            sock.close()
        for listener in self.listeners.values():
            await listener.stop()


async def _connect(sock: socket.socket, host: str, port: int, name: str) -> RawClient:
    sock.setblocking(False)
    try:
        await asyncio.wait_for(asyncio.get_running_loop().sock_connect(sock, (host, port)), PATIENCE_SECONDS)
    except BaseException:
        sock.close()
        raise
    client = RawClient(*await asyncio.open_connection(sock=sock))
    await client.upgrade(f"/ws?name={name}")
    return client


@asynccontextmanager
async def _peers() -> AsyncIterator[Peers]:
    peers = Peers()
    try:
        yield peers
    finally:
        await peers.stop()


async def half_open(server: Server, *, peers: int, heartbeat: float, write_seconds: float) -> Figures:
    """`peers` that answer, and a fifth as many silent ones and such with full buffers; then the cable is pulled."""
    bound = 2 * heartbeat + 1
    with cable() as (here, there):
        try:
            await _start(server, here, heartbeat, write_seconds)
            async with _peers() as away:
                client = await _connect(here.socket(), "127.0.0.1", server.port, "bystander")
                bystander = away.listeners["bystander"] = Sender(client)
                base = descriptors(server)
                silent = await _silent(server, there, away, bystander, max(1, peers // 5))
                with here.inside():  # its /proc/net
                    queues = kernel_queues(server)

                # All the others are there; then nothing comes through any more
                for number in range(peers):
                    await away.listen(there.socket(), SERVER_ADDRESS, server.port, f"peer-{number}")
                await asyncio.sleep(1.2 * heartbeat)  # each is pinged once, at a moment of its own
                for number in range(max(1, peers // 5)):
                    sock = away.deaf[f"full-{number}"] = there.socket()
                    await asyncio.to_thread(_deafen, sock, server.port, f"full-{number}")
                alive = [name for name in away.listeners if name.startswith("peer-")]
                await bystander.publish(TRANSPORT_BYTES)
                assert not bystander.left.keys() & set(alive)
                there.ip("link set cable down")
                started = time.monotonic()
                dead = await _gone(bystander, alive, started)
                full = await _gone(bystander, list(away.deaf), started)
                with here.inside():
                    back = await eventually(lambda: descriptors(server) <= base and kernel_queues(server) <= queues)
                await asyncio.sleep(0.5)  # for a second notice
                assert all(len(times) == 1 for times in bystander.left.values()), bystander.left
                assert bystander.code is None, "the bystander, who only answers pings, was dropped"
                assert {away.listeners[name].code for name in silent} == {3012}
                _logged(server, silent.keys(), {*alive, *away.deaf})
                figures: Figures = {
                    "heartbeat, seconds": heartbeat,
                    "silent: gone, seconds, at most": max(silent.values()),
                    "silent peers": len(silent),
                    "half-open peers": len(alive),
                    "half-open: gone, seconds, at most": dead,
                    "with full buffers": len(away.deaf),
                    "full: gone, seconds, at most": full,
                    "bound, seconds": bound,
                    "back at base, seconds": back,
                }
                most = {f"{kind}: gone, seconds, at most": bound for kind in ("silent", "half-open")}
                most["full: gone, seconds, at most"] = max(bound, write_seconds + 1)
                return judged(figures, most | {"back at base, seconds": BASE_SECONDS})
        finally:
            server.kill()


def _deafen(sock: socket.socket, port: int, name: str) -> None:
    """Comes in, takes little, and reads nothing any more."""
    sock.settimeout(PATIENCE_SECONDS)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect((SERVER_ADDRESS, port))
    upgrade(sock, name)


async def _start(server: Server, here: Namespace, heartbeat: float, write_seconds: float) -> None:
    with here.inside():
        server.start(
            *NAMES_EVERYBODY, wait=False, HOST="0.0.0.0", RATE_LIMIT="0",
            HEARTBEAT_SECONDS=str(heartbeat), WRITE_SECONDS=str(write_seconds),
        )  # fmt: skip

    def listens() -> bool:
        assert server.process
        assert server.process.poll() is None, server.stderr
        with here.socket() as sock:
            return not sock.connect_ex(("127.0.0.1", server.port))

    await eventually(listens)


async def _silent(server: Server, there: Namespace, away: Peers, bystander: Listener, count: int) -> dict[str, float]:
    """Peers that read and answer nothing, TCP alive: after how long they were gone."""
    came = {}
    for number in range(count):
        name = f"silent-{number}"
        await away.listen(there.socket(), SERVER_ADDRESS, server.port, name, answering=False)
        came[name] = time.monotonic()
    await away.listen(there.socket(), SERVER_ADDRESS, server.port, "healthy")
    await _gone(bystander, list(came), time.monotonic())
    gone = {name: bystander.left[name][0] - since for name, since in came.items()}
    healthy = away.listeners.pop("healthy")
    assert healthy.code is None
    assert healthy.pings, "nobody was pinged"
    await healthy.stop()
    await healthy.client.close()
    await eventually(lambda: bool(bystander.left["healthy"]))
    await eventually(lambda: all(away.listeners[name].code for name in came))  # their connections ended, too
    return gone


async def _gone(bystander: Listener, names: list[str], since: float) -> float:
    """Waits until all left; returns the seconds that it took for the last of them."""
    await eventually(lambda: bystander.left.keys() >= set(names))
    return max(bystander.left[name][0] for name in names) - since


def _logged(server: Server, silent: Iterable[str], others: Iterable[str]) -> None:
    """The log says so, too. Of many in a second it tells only the number, in its next line of the kind."""
    dropped = server.events("dropped")
    assert {line["code"] for line in dropped} == {3012}
    assert {line["user"] for line in dropped} <= {*silent, *others}
    assert {line["user"] for line in dropped} & set(silent)
    assert sum(1 + line.get("suppressed", 0) for line in dropped) >= len(set(silent))
    assert {line["code"] for line in server.events("slow")} <= {3008}


async def stalls(server: Server, *, healthy: int, window: float, stalls: int) -> Figures:
    """`healthy` clients, and `stalls` times of each kind 1.5 pong windows in which the server's loop stands still."""
    seconds = 1.5 * window
    folder = _plugin(server.folder / "plugins", seconds)
    server.start(
        HEARTBEAT_SECONDS=str(window), FEATURES="limits,http", PLUGINS="stall", PYTHONPATH=str(folder), LOG_LEVEL="warn"
    )
    before = len(server.events("loop blocked"))
    async with _peers() as peers:
        for number in range(healthy):
            name = f"healthy-{number}"
            peers.listeners[name] = await Listener.connect(server.port, name)
        kinds: dict[str, Callable[[], None]] = {
            "stopped": lambda: server.signal(signal.SIGSTOP),
            "sleeping": lambda: server.signal(signal.SIGUSR1),
        }
        dropped = dict.fromkeys(kinds, 0)
        for kind, stall in kinds.items():
            for number in range(stalls):
                await asyncio.sleep(window * (0.4 + number * 0.37 % 1))  # so that it isn't always the same ones' ping
                await _at_a_ping(peers, stall)
                await asyncio.sleep(seconds)
                server.signal(signal.SIGCONT)
            await asyncio.sleep(window)  # for verdicts that are still to come
            dropped[kind] = sum(listener.code is not None for listener in peers.listeners.values()) - sum(
                dropped.values()
            )
        fewest = min(listener.pings for listener in peers.listeners.values())
    assert not any(dropped.values()), f"dropped: {dropped}"
    assert fewest, "somebody was never pinged"
    assert len(server.events("loop blocked")) - before >= stalls, "the loop didn't stall"
    return {
        "healthy clients": healthy,
        "pong window, seconds": window,
        "stalls": stalls * len(kinds),
        "of seconds": seconds,
        "dropped by them": sum(dropped.values()),
        "pings to each, at least": fewest,
    }


async def _at_a_ping(peers: Peers, stall: Callable[[], None]) -> None:
    """Stalls the server while its pings are on their way: the pongs will wait in its sockets all the while."""
    stalled = asyncio.Event()

    def on_ping() -> None:
        if not stalled.is_set():
            stalled.set()
            stall()

    for listener in peers.listeners.values():
        listener.on_ping = on_ping
    await asyncio.wait_for(stalled.wait(), PATIENCE_SECONDS)


def _plugin(folder: Path, seconds: float) -> Path:
    """An installed plugin, for PYTHONPATH: SIGUSR1 blocks the loop for so long."""
    info = folder / "stall-1.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (folder / "stall.py").write_text(_STALLS.format(seconds=seconds))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stall\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[chatserver.plugins]\nstall = stall\n")
    return folder


async def run(
    server: Server,
    *,
    peers: int = 100,
    heartbeat: float = 5.0,
    write_seconds: float = 10.0,
    healthy: int = 500,
    window: float = 1.0,
    times: int = 10,
) -> Figures:
    """Half-open, silent and stuck peers; then `times` stalls of each kind with `healthy` clients."""
    figures = await half_open(server, peers=peers, heartbeat=heartbeat, write_seconds=write_seconds)
    return figures | await stalls(server, healthy=healthy, window=window, stalls=times)


if __name__ == "__main__":
    main(run)
