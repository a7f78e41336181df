"""Pairs of connected sockets, for what is written to them."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import TypeAlias

Pair: TypeAlias = tuple[socket.socket, socket.socket]


def tcp() -> Pair:
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    return ours, theirs


KINDS: dict[str, Callable[[], Pair]] = {"unix": socket.socketpair, "tcp": tcp}


@contextlib.contextmanager
def connected(make: Callable[[], Pair], count: int) -> Iterator[list[Pair]]:
    """Pairs, of which the first sockets don't block, and the others do for some seconds."""
    with contextlib.ExitStack() as stack:
        pairs = []
        for _ in range(count):
            ours, theirs = make()
            pairs.append((stack.enter_context(ours), stack.enter_context(theirs)))
            ours.setblocking(False)
            theirs.settimeout(10)
        yield pairs


def read(sock: socket.socket, size: int = -1) -> bytes:
    """`size` bytes, or what comes until the end."""
    with sock.makefile("rb") as file:
        return file.read(size)


def fill(sock: socket.socket) -> int:
    """Until nothing fits. Returns how much did."""
    size = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            size += sock.send(bytes(10_000))
    return size
