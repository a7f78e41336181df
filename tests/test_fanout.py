"""Writing to many sockets at once."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from unittest import mock

import pytest

from chatserver import fanout
from chatserver.fanout import MANY, SHARED_BYTES, SPLICED_BYTES, prepare, write_all, write_each
from chatserver.pages import Pages
from chatserver.uring import Ring
from tests.sockets import Pair, connected, fill, read

SHARED = {"MANY": 1, "SHARED_BYTES": 1, "SPLICED_BYTES": 1}
WAYS = {"copied": {}, "at once": {"MANY": 1}, "shared": SHARED, "shared by two": {**SHARED, "SHARERS": 2}}


@contextlib.contextmanager
def patched(values: Mapping[str, int]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name, value in values.items():
            stack.enter_context(mock.patch(f"chatserver.fanout.{name}", value))
        yield


@pytest.fixture(params=WAYS, autouse=True)
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """How sockets are written to: one by one, in one system call, or so that all or some share what is written."""
    with patched(WAYS[request.param]):
        with connected(socket.socketpair, 1) as [(ours, _)]:
            write_all([ours.fileno()], b"opens what it needs, or that might take the number of what a test has closed")
        yield


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    with connected(socket.socketpair, 5) as made:
        yield made


def descriptors(pairs: list[Pair]) -> list[int]:
    return [ours.fileno() for ours, _ in pairs]


def test_everybody_gets_all_of_it(pairs: list[Pair]) -> None:
    assert write_all(descriptors(pairs), b"hello") == [5] * 5
    assert [theirs.recv(100) for _, theirs in pairs] == [b"hello"] * 5


def test_everybody_gets_something_of_its_own_behind_it(pairs: list[Pair]) -> None:
    assert write_each(descriptors(pairs), b"hello", [b"", b" you", b"", b"!", b"?"]) == [5, 9, 5, 6, 6]
    heard = [theirs.recv(100) for _, theirs in pairs]
    assert heard == [b"hello", b"hello you", b"hello", b"hello!", b"hello?"]


def test_many_get_what_is_big_enough_to_be_shared(pairs: list[Pair]) -> None:
    ours = descriptors(pairs) * 4
    assert len(ours) >= MANY
    shared, spliced = os.urandom(SHARED_BYTES), os.urandom(SPLICED_BYTES)
    assert write_all(ours, shared) == [SHARED_BYTES] * len(ours)
    assert write_each(ours, spliced, [b"tail"] * len(ours)) == [SPLICED_BYTES + 4] * len(ours)
    for _, theirs in pairs:
        expected = shared * 4 + (spliced + b"tail") * 4
        assert read(theirs, len(expected)) == expected


def test_where_the_memory_to_share_runs_out_the_rest_gets_copies(pairs: list[Pair]) -> None:
    places = [fanout._PAGES.put(b"hello"), None, None]
    with patched(WAYS["shared by two"]), mock.patch.object(Pages, "put", side_effect=places):
        assert write_all(descriptors(pairs), b"hello") == [5] * 5
    assert [theirs.recv(100) for _, theirs in pairs] == [b"hello"] * 5


def test_one_system_call_for_all_is_prepared_before_it_is_needed() -> None:
    with mock.patch("chatserver.fanout._RING", Ring()) as ring:
        able, before = prepare(), os.listdir("/proc/self/fd")
        assert (ring.send([], b"hello") is not None) == able
        assert os.listdir("/proc/self/fd") == before
        ring.close()


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


@pytest.mark.parametrize("size", [10_000, 200_000])
def test_who_takes_none_or_a_part_of_it_gets_nothing_of_its_own_behind_it(pairs: list[Pair], size: int) -> None:
    data, (full, gone, *others) = os.urandom(size), pairs
    fill(full[0])
    gone[1].close()
    counts = write_each([*descriptors(pairs), -1], data, [b"tail"] * 6)
    assert (counts[0], counts[1], counts[5]) == (0, 0, 0)
    for (ours, theirs), count in zip(others, counts[2:], strict=False):
        assert count in (size + 4, *range(size + 1))
        ours.close()
        assert read(theirs) == (data + b"tail")[:count]


@pytest.mark.parametrize("size", [4095, 4096])
def test_a_process_that_is_forked_shares_nothing_with_its_parent(size: int) -> None:
    code = f"""
import os, socket
from chatserver.fanout import write_all
ours, theirs = socket.socketpair()
def write(text):
    data = text * {size}
    assert write_all([ours.fileno()] * 16, data) == [{size}] * 16
def read():
    return theirs.recv(16 * {size}, socket.MSG_WAITALL)
write(b"p")
assert read() == b"p" * (16 * {size})
if not os.fork():
    files = [os.path.realpath("/proc/self/fd/" + name) for name in os.listdir("/proc/self/fd")]
    assert "io_uring" not in str(files)
    write(b"c")
    os._exit(0)
assert os.wait()[1] == 0
write(b"P")
assert (read(), read()) == (b"c" * (16 * {size}), b"P" * (16 * {size}))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
