"""Sends to many sockets in one system call."""

import contextlib
import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from random import Random

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
    try:
        uring._Queues().close()
    except OSError as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"io_uring(7) is needed: {error}")
    made = new()
    assert made.send([], b"") is not None
    return made


setup = uring._call


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


def test_who_has_gone_gets_nothing(ring: Ring, pairs: list[Pair]) -> None:
    ours, theirs = pairs[0]
    theirs.close()
    send(ring, [ours.fileno()], b"tcp hears of it by the answer to this")
    assert send(ring, [ours.fileno(), pairs[1][0].fileno()], b"hello") == [0, 5]


def test_what_is_taken_in_part_is_told(ring: Ring, pairs: list[Pair]) -> None:
    ours, theirs = pairs[0]
    theirs.setblocking(False)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    random, sent, parts, arrived = Random(1), b"", 0, b""
    while parts < 5:
        data = random.randbytes(random.randint(1, DATA_BYTES))
        (count,) = send(ring, [ours.fileno()], data)
        sent += data[:count]
        parts += 0 < count < len(data)
        if count < len(data):
            with contextlib.suppress(BlockingIOError):
                arrived += theirs.recv(random.randint(1, 3 * DATA_BYTES))
    ours.close()
    theirs.settimeout(10)
    assert arrived + read(theirs) == sent


def test_what_an_exception_interrupted_is_forgotten(
    ring: Ring, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = uring._call

    def interrupted(*given: int) -> int:
        call(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(uring, "_call", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ring.send([-1] * 5, b"lost")
    assert send(ring, ours_of(pairs), b"hello") == [5] * 5
    assert [read(theirs, 5) for _, theirs in pairs] == [b"hello"] * 5


def test_heads_and_tails_go_round() -> None:
    assert uring._after(5, 3) == 8
    assert uring._after(0xFFFFFFFF, 3) == 2


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


def no_call(*_: object, **__: object) -> int:
    raise OSError(errno.EPERM, "not permitted")


def no_second_call(number: int, *given: int) -> int:
    return setup(number, *given) if number == uring._SETUP else no_call()


def no_map(*_: object, **__: object) -> None:
    raise ValueError("mmap length is greater than file size")


def no_socketpair() -> Pair:
    raise OSError(errno.EMFILE, "too many open files")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("uring._syscall", None),
        ("uring._call", no_call),
        ("uring._call", no_second_call),
        ("uring._FEATURES", 1 << 31),
        ("uring._Queues._failures", lambda _: iter(())),
        ("uring.mmap.mmap", no_map),
        ("socket.socketpair", no_socketpair),
        ("uring._size", no_call),
    ],
    ids=["no calls", "forbidden", "forbidden half", "too old", "loses count", "no map", "no more files", "no answer"],
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


@pytest.mark.parametrize(
    ("name", "value"),
    [("sys.platform", "darwin"), ("platform.machine", lambda: "alpha"), ("ctypes.CDLL", no_call)],
    ids=["not Linux", "other numbers", "no libc"],
)
def test_where_its_numbers_are_not_known_no_system_call_is_made(
    monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    monkeypatch.setattr(name, value)
    assert uring._libc() is None


def test_a_python_without_ctypes_does_without() -> None:
    code = """
import os, socket, sys
sys.modules["ctypes"] = None
from chatserver.fanout import prepare, write_all
assert not prepare()
ours, theirs = socket.socketpair()
assert write_all([ours.fileno()] * 20, b"hello") == [5] * 20
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_it_holds_nothing_when_closed_and_can_be_used_again(ring: Ring, pairs: list[Pair]) -> None:
    ring.close()
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        assert send(ring, ours_of(pairs), b"hello") == [5] * 5
        ring.close()
    assert os.listdir("/proc/self/fd") == before
    assert [read(theirs, 15) for _, theirs in pairs] == [b"hello" * 3] * 5
