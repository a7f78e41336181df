"""Writing to many sockets at once."""

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from chatserver.fanout import write_all, write_each

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    """Connected sockets, of which the first doesn't block."""
    made = [socket.socketpair() for _ in range(5)]
    for ours, theirs in made:
        ours.setblocking(False)
        theirs.settimeout(10)
    yield made
    for pair in made:
        for sock in pair:
            sock.close()


def descriptors(pairs: list[Pair]) -> list[int]:
    return [ours.fileno() for ours, _ in pairs]


def fill(sock: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(bytes(10_000))


def test_everybody_gets_all_of_it(pairs: list[Pair]) -> None:
    assert write_all(descriptors(pairs), b"hello") == [5] * 5
    assert [theirs.recv(100) for _, theirs in pairs] == [b"hello"] * 5


def test_everybody_gets_something_of_its_own_behind_it(pairs: list[Pair]) -> None:
    assert write_each(descriptors(pairs), b"hello", [b"", b" you", b"", b"!", b"?"]) == [5, 9, 5, 6, 6]
    heard = [theirs.recv(100) for _, theirs in pairs]
    assert heard == [b"hello", b"hello you", b"hello", b"hello!", b"hello?"]


def test_nobody(pairs: list[Pair]) -> None:
    assert write_all([], b"hello") == write_each([], b"hello", []) == []


def test_those_that_take_none_cost_the_others_nothing(pairs: list[Pair]) -> None:
    full, gone, closed = pairs[0], pairs[2], pairs[4]
    fill(full[0])
    gone[1].close()
    ours = descriptors(pairs)
    closed[0].close()
    assert write_all([*ours, -1], b"hello") == [0, 5, 0, 5, 0, 0]
    assert [theirs.recv(100) for _, theirs in (pairs[1], pairs[3])] == [b"hello"] * 2


def test_what_is_taken_in_part_is_told(pairs: list[Pair]) -> None:
    (ours, theirs), data = pairs[0], os.urandom(10_000_000)
    (count,) = write_all([ours.fileno()], data)
    assert 0 < count < len(data)
    ours.close()
    assert b"".join(iter(lambda: theirs.recv(1 << 20), b"")) == data[:count]
