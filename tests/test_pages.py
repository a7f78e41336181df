"""Bytes that many sockets share."""

import mmap
import os
import socket
from collections.abc import Iterator
from unittest import mock

import pytest

from chatserver.pages import Pages
from tests.sockets import KINDS, Pair, connected, read


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with connected(KINDS[request.param], 1) as (made,):
        yield made


@pytest.fixture
def pages() -> Iterator[Pages]:
    made = Pages()
    yield made
    made.close()


def put(pages: Pages, data: bytes) -> int:
    place = pages.put(data)
    assert place is not None
    return place


def test_what_is_under_way_stays_as_it_is_whatever_is_put_later(pages: Pages, pair: Pair) -> None:
    (ours, theirs), pieces = pair, [bytes([number]) * 5000 for number in range(20)]
    with mock.patch("chatserver.pages.KEPT_BYTES", 30_000):
        for piece in pieces:
            place = put(pages, piece)
            assert os.sendfile(ours.fileno(), pages.file, place, len(piece)) == len(piece)
            assert os.fstat(pages.file).st_size <= 40_000
    assert read(theirs, 100_000) == b"".join(pieces)


def test_what_is_put_takes_as_few_pages_as_it_can(pages: Pages) -> None:
    sizes = [1, mmap.PAGESIZE, mmap.PAGESIZE + 1, 5]
    assert [put(pages, b"x" * size) for size in sizes] == [number * mmap.PAGESIZE for number in (0, 1, 2, 4)]


def test_what_follows_stands_behind_it(pages: Pages, pair: Pair) -> None:
    ours, theirs = pair
    place = put(pages, b"x" * 10_000)
    assert pages.send_each([ours.fileno()] * 2, place, 10_000, [b"one", b"two"]) == [10_003] * 2
    assert read(theirs, 20_006) == b"x" * 10_000 + b"one" + b"x" * 10_000 + b"two"


def test_what_a_socket_does_not_take_is_not_for_the_next_one(pages: Pages, pair: Pair) -> None:
    ours, theirs = pair
    slow, slow_reader = socket.socketpair()
    with slow, slow_reader:
        slow.setblocking(False)
        place = put(pages, b"x" * 100_000)
        taken = pages.send_each([slow.fileno()] * 5, place, 100_000, [b"tail"] * 5)
        assert sum(taken) < 500_020
        assert pages.send_each([-1], place, 100_000, [b"tail"]) == [0]
        place = put(pages, b"y" * 10_000)
        assert pages.send_each([ours.fileno()], place, 10_000, [b"tail"]) == [10_004]
        assert read(theirs, 10_004) == b"y" * 10_000 + b"tail"


def test_what_follows_may_not_be_taken_any_more(pages: Pages) -> None:
    place = put(pages, b"x" * 5000)
    with mock.patch("os.write", side_effect=BlockingIOError):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert pages.send_each([ours.fileno()], place, 5000, [b"tail"]) == [5000]


def test_without_such_memory_nothing_is_put(pages: Pages) -> None:
    with mock.patch("chatserver.pages._ABLE", new=False):
        assert pages.put(b"x") is None
    before = os.listdir("/proc/self/fd")
    with mock.patch("os.memfd_create", side_effect=PermissionError):
        assert pages.put(b"x") is None
    assert os.listdir("/proc/self/fd") == before
    assert put(pages, b"x") == 0


def test_with_too_little_memory_nothing_is_put(pages: Pages) -> None:
    with mock.patch("os.pwrite", return_value=1):
        assert pages.put(b"xy") is None
    place = put(pages, b"xy")
    assert os.pread(pages.file, 10, place) == b"xy"


def test_what_was_let_go_of_can_be_used_again(pages: Pages) -> None:
    pages.close()
    assert put(pages, b"x") == 0
    pages.close()
    pages.close()
    assert (pages.file, put(pages, b"y")) == (-1, 0)
