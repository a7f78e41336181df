"""Sends to many sockets in one system call."""

import errno
import os
import socket
from collections.abc import Callable, Iterator

import pytest

from chatserver import uring
from chatserver.uring import DATA_BYTES, ENTRIES, Ring
from tests.sockets import KINDS, Pair, connected, fill, read


@pytest.fixture(params=KINDS)
def pairs(request: pytest.FixtureRequest) -> Iterator[list[Pair]]:
    with connected(KINDS[request.param], 5) as made:
        yield made


@pytest.fixture
def new() -> Iterator[Callable[[], Ring]]:
    """Makes one. It is what the process can have, whatever there is."""
    made: list[Ring] = []

    def make() -> Ring:
        made.append(Ring())
        return made[-1]

    yield make
    for ring in made:
        ring.close()


@pytest.fixture
def ring(new: Callable[[], Ring]) -> Ring:
    made = new()
    if made.send([], b"") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("io_uring(7) is needed: a container may forbid it")
    return made


def send(ring: Ring, descriptors: list[int], data: bytes) -> list[int]:
    taken = ring.send(descriptors, data)
    assert taken is not None
    return taken


def ours_of(pairs: list[Pair]) -> list[int]:
    return [ours.fileno() for ours, _ in pairs]


def test_everybody_gets_all_of_it(ring: Ring, pairs: list[Pair]) -> None:
    texts = [b"hello", b"", os.urandom(DATA_BYTES), b"bye"]
    for text in texts:
        assert send(ring, ours_of(pairs), text) == [len(text)] * 5
    expected = b"".join(texts)
    assert [read(theirs, len(expected)) for _, theirs in pairs] == [expected] * 5


def test_many_more_than_there_are_entries_in_order(ring: Ring, pairs: list[Pair]) -> None:
    many = [*[-1] * 1000, *ours_of(pairs)] * 5
    assert len(many) > 2 * ENTRIES
    for text in (b"1", b"2", b"3"):
        assert send(ring, many, text) == [*[0] * 1000, *[1] * 5] * 5
    assert [read(theirs, 15) for _, theirs in pairs] == [b"111112222233333"] * 5


def test_those_that_take_none_cost_the_others_nothing(ring: Ring, pairs: list[Pair]) -> None:
    full, closed = pairs[0], pairs[4]
    fill(full[0])
    ours = ours_of(pairs)
    closed[0].close()
    with open(os.devnull, "wb") as no_socket:
        assert send(ring, [-1, *ours, no_socket.fileno(), ours[1]], b"hello") == [0, 0, 5, 5, 5, 0, 0, 5]
    assert [read(theirs, size) for (_, theirs), size in zip(pairs[1:4], (10, 5, 5), strict=True)] == [
        b"hellohello",
        b"hello",
        b"hello",
    ]


def test_more_failures_than_there_is_room_for_at_once(ring: Ring, pairs: list[Pair]) -> None:
    ours = pairs[0][0].fileno()
    assert send(ring, [ours, *[-1] * 10 * ENTRIES, ours], b"hello") == [5, *[0] * 10 * ENTRIES, 5]
    assert read(pairs[0][1], 10) == b"hellohello"


def test_who_has_gone_gets_nothing_and_raises_no_signal(ring: Ring, pairs: list[Pair]) -> None:
    ours, theirs = pairs[0]
    theirs.close()
    send(ring, [ours.fileno()], b"tcp hears of it by the answer to this")
    assert send(ring, [ours.fileno(), pairs[1][0].fileno()], b"hello") == [0, 5]


def test_what_is_taken_in_part_is_told(ring: Ring, pairs: list[Pair]) -> None:
    ours, theirs = pairs[0]
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    data = os.urandom(100) + os.urandom(DATA_BYTES) * 1000
    sizes = [100, *[DATA_BYTES] * 1000]
    taken, at = [], 0
    for size in sizes:
        (count,) = send(ring, [ours.fileno()], data[at : at + size])
        taken.append(count)
        if count < size:
            break
        at += size
    ours.close()
    assert read(theirs, len(data)) == data[: sum(taken)]


def test_a_socket_that_would_block_is_not_waited_for(ring: Ring, pairs: list[Pair]) -> None:
    ours, theirs = pairs[0]
    size = fill(ours)
    ours.setblocking(True)
    assert send(ring, [ours.fileno()], b"hello") == [0]
    ours.close()
    assert read(theirs, size + 5) == bytes(size)


def test_one_thread_at_a_time(ring: Ring, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    call, meanwhile = uring._call, []

    def slow(*given: int) -> int:
        meanwhile.append(ring.send(ours_of(pairs), b"other"))
        return call(*given)

    monkeypatch.setattr(uring, "_call", slow)
    assert send(ring, ours_of(pairs), b"hello") == [5] * 5
    assert meanwhile == [None]
    assert [read(theirs, 5) for _, theirs in pairs] == [b"hello"] * 5


@pytest.mark.parametrize("able", [0, 2])
def test_a_kernel_that_has_no_memory(ring: Ring, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch, able: int) -> None:
    call = uring._call

    def less(number: int, file: int, count: int) -> int:
        if not able:
            raise OSError(errno.EAGAIN, "try again")
        return call(number, file, min(count, able))

    with monkeypatch.context() as patch:
        patch.setattr(uring, "_call", less)
        assert send(ring, ours_of(pairs), b"hello") == [5] * able + [0] * (5 - able)
    assert send(ring, ours_of(pairs), b"again") == [5] * 5
    assert [read(theirs, 5 + 5 * (place < able)) for place, (_, theirs) in enumerate(pairs)] == [
        b"hello" * (place < able) + b"again" for place in range(5)
    ]


def no_such_call(*_: int) -> int:
    raise OSError(errno.ENOSYS, "no such call")


def no_socketpair() -> Pair:
    raise OSError(errno.EMFILE, "too many open files")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("uring._ABLE", False),
        ("uring._call", no_such_call),
        ("uring._FEATURES", 1 << 31),
        ("uring._Queues._failures", lambda _: iter(())),
        ("socket.socketpair", no_socketpair),
    ],
    ids=["not Linux", "forbidden", "too old", "loses count", "no more files"],
)
def test_where_it_can_not_be_relied_on_there_is_none(
    new: Callable[[], Ring], monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, monkeypatch.context() as patch:
        before = os.listdir("/proc/self/fd")
        patch.setattr(f"chatserver.{name}" if name.startswith("uring") else name, value)
        none = new()
        assert none.send([ours.fileno()], b"hello") is None
        assert os.listdir("/proc/self/fd") == before
    assert none.send([], b"") is None


def test_it_holds_nothing_when_closed_and_can_be_used_again(ring: Ring, pairs: list[Pair]) -> None:
    ring.close()
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        assert send(ring, ours_of(pairs), b"hello") == [5] * 5
        ring.close()
    assert os.listdir("/proc/self/fd") == before
    assert [read(theirs, 15) for _, theirs in pairs] == [b"hello" * 3] * 5
