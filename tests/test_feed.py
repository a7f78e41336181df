"""A feed and its followers, without a pool."""

import gc
import socket
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar
from unittest import mock

import pytest

from chatserver.client import WRITE_BYTES, Client
from chatserver.fanout import CHANGES
from chatserver.feed import ANSWERS, ORDER_SECONDS, Feed
from chatserver.protocol import Simple
from tests.fakes import FakeTransport, make_client


class Piece(bytes):
    """Bytes that are counted as long as somebody keeps them."""

    kept: ClassVar[int] = 0

    def __init__(self, content: bytes) -> None:
        Piece.kept += len(content)

    def __del__(self) -> None:
        Piece.kept -= len(self)


class CountingCodec(Simple):
    """Counts its joins."""

    joins = 0

    def join(self, pieces: Sequence[bytes]) -> bytes:
        self.joins += 1
        return b"".join(pieces)


@pytest.fixture
def codec() -> CountingCodec:
    return CountingCodec()


@pytest.fixture
def feed(codec: CountingCodec) -> Feed:
    Piece.kept = 0
    return Feed(codec, 1000)


def follower(feed: Feed, *, level: bool) -> tuple[Client, FakeTransport]:
    transport = FakeTransport()
    client = make_client(transport)
    feed.join(client)
    if level:
        feed.flush()
        feed.pull(client)
        feed.rejoin(client)
    return client, transport


def test_all_who_are_level_are_written_the_same_bytes_joined_once(feed: Feed, codec: CountingCodec) -> None:
    transports = [follower(feed, level=True)[1] for _ in range(5)]
    feed.extend([b"a"])
    feed.extend([b"b"])
    feed.flush()
    assert [transport.written for transport in transports] == [[b"ab"]] * 5
    assert len({id(transport.written[0]) for transport in transports}) == 1
    assert codec.joins == 1


def test_a_flush_of_nothing_writes_nothing(feed: Feed, codec: CountingCodec) -> None:
    _, transport = follower(feed, level=True)
    assert list(feed.flush()) == []
    feed.extend([b"a"])
    feed.flush()
    feed.flush()
    assert transport.written == [b"a"]
    assert codec.joins == 1


def test_a_flush_does_not_write_to_those_apart(feed: Feed) -> None:
    _, transport = follower(feed, level=False)
    feed.extend([b"a"])
    feed.flush()
    assert not transport.written


def test_a_flush_returns_those_who_cannot_take_more(feed: Feed) -> None:
    clients = [follower(feed, level=True) for _ in range(4)]
    clients[1][1].pause_after = clients[3][1].pause_after = 1
    feed.extend([b"a"])
    assert list(feed.flush()) == [clients[1][0], clients[3][0]]
    assert [transport.wire for _, transport in clients] == [b"a"] * 4


def test_a_flush_takes_about_write_bytes_and_leaves_the_rest_pending(feed: Feed) -> None:
    _, transport = follower(feed, level=True)
    pieces = [bytes([number]) * 50_000 for number in range(8)]
    for piece in pieces:
        feed.extend([piece])
    assert feed.pending_bytes == 400_000
    pending = []
    for _ in range(4):
        feed.flush()
        pending.append(feed.pending_bytes)
    assert pending == [250_000, 100_000, 0, 0]
    assert transport.wire == b"".join(pieces)


@pytest.mark.parametrize(
    ("sizes", "writes"), [([WRITE_BYTES - 1, 1], 1), ([WRITE_BYTES, 1], 2), ([WRITE_BYTES * 3], 1)]
)
def test_a_flush_stops_once_it_has_write_bytes(feed: Feed, sizes: list[int], writes: int) -> None:
    _, transport = follower(feed, level=True)
    for size in sizes:
        feed.extend([b"x" * size])
    for _ in range(3):
        feed.flush()
    assert len(transport.written) == writes
    assert len(transport.wire) == sum(sizes)


@pytest.fixture
def begun(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Client]]:
    """Of five clients two were written to; `told` and `untold` are these and the others."""
    for name in ("FIRST_CLIENTS", "MOST_FIRST_CLIENTS", "FLUSH_CLIENTS"):
        monkeypatch.setattr(f"chatserver.feed.{name}", 2)
    members = [follower(feed, level=True) for _ in range(5)]
    feed.extend([b"a"])
    feed.flush()
    return {
        "told": [client for client, transport in members if transport.written],
        "untold": [client for client, transport in members if not transport.written],
    }


def wire(client: Client) -> bytes:
    assert isinstance(client.transport, FakeTransport)
    return client.transport.wire


def test_a_flush_to_many_goes_on_with_the_next(feed: Feed, begun: dict[str, list[Client]]) -> None:
    assert (len(begun["told"]), len(begun["untold"])) == (2, 3)
    unfinished = []
    for _ in range(3):
        unfinished.append(feed.unfinished)
        feed.extend([b"b"])
        feed.flush()
    assert unfinished == [True, True, False]
    while feed.unfinished or feed.pending_bytes:
        feed.flush()
    assert [wire(client) for client in begun["told"] + begun["untold"]] == [b"abbb"] * 5


@pytest.fixture
def now() -> Iterator[Callable[[float], None]]:
    """Sets the time."""
    with mock.patch("chatserver.feed.time.monotonic", return_value=100.0) as monotonic:
        yield lambda time: setattr(monotonic, "return_value", time)


def test_those_who_say_the_most_are_written_to_first(
    feed: Feed, now: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatserver.feed.FIRST_CLIENTS", 2)
    monkeypatch.setattr("chatserver.feed.MOST_FIRST_CLIENTS", 2)
    clients = [follower(feed, level=True)[0] for _ in range(5)]
    assert first(feed, clients) == [0, 1]
    clients[2].received, clients[4].received = 1, 2
    now(100.0 + ORDER_SECONDS - 0.01)
    assert first(feed, clients) == [0, 1]
    now(100.0 + ORDER_SECONDS)
    assert first(feed, clients) == [2, 4]
    feed.leave(clients.pop(4))
    assert first(feed, clients) == [0, 2]


def first(feed: Feed, clients: list[Client]) -> list[int]:
    """To whom the first part is written."""
    feed.extend([b"a"])
    before = [wire(client) for client in clients]
    feed.flush()
    told = [number for number, client in enumerate(clients) if wire(client) != before[number]]
    if feed.unfinished:
        feed.flush()
    assert not feed.unfinished
    assert {wire(client) for client in clients} == {before[0] + b"a"}
    return told


@pytest.mark.parametrize(
    ("received", "each", "told"),
    [
        ([0, 0, 0, 0, 0], 1, [0, 1]),
        ([1, 5, 10, 10, 1], 1, [1, 2, 3]),
        ([1, 1, 1, 10, 1], 1, [0, 3]),
        ([1, 1, 1, 10, 1], 3, [0, 1, 3]),
        ([1, 1, 10, 10, 1], 3, [0, 2, 3]),
        ([2, 5, 9, 9, 1], 1, [2, 3]),
        ([9, 9, 9, 9, 9], 1, [0, 1]),
    ],
)
def test_those_who_speak_and_some_more_are_written_to_first_if_they_are_not_too_many(
    feed: Feed,
    monkeypatch: pytest.MonkeyPatch,
    now: Callable[[float], None],
    received: list[int],
    each: int,
    told: list[int],
) -> None:
    bounds = {"FIRST_CLIENTS": 2, "MOST_FIRST_CLIENTS": 3, "FIRST_PER_SPEAKER": each}
    for name, value in bounds.items():
        monkeypatch.setattr(f"chatserver.feed.{name}", value)
    clients = [follower(feed, level=True)[0] for _ in received]
    for client, count in zip(clients, received, strict=True):
        client.received = count
    assert first(feed, clients) == told
    for client in clients:
        client.received = 0
    now(100.0 + ORDER_SECONDS)
    assert len(first(feed, clients)) == 2


def test_whoever_has_another_descriptor_is_asked_for_it(feed: Feed) -> None:
    _, transport = follower(feed, level=True)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        transport.descriptor = ours.fileno()
        CHANGES.count += 1
        for piece in (b"a", b"b"):
            feed.extend([piece])
            feed.flush()
        assert theirs.recv(10) == b"ab"
        assert not transport.written
        transport.descriptor = -1
        CHANGES.count += 1
        feed.extend([b"c"])
        feed.flush()
        assert transport.written == [b"c"]


@pytest.mark.parametrize(("size", "more"), [(10, 6), (WRITE_BYTES, 6), (10, WRITE_BYTES)])
def test_who_speaks_is_answered_in_one_write_however_much_the_kernel_takes_of_it(
    feed: Feed, size: int, more: int
) -> None:
    (speaker, spoken), (_, heard) = (follower(feed, level=True) for _ in range(2))
    pairs = [socket.socketpair() for _ in range(2)]
    for transport, (ours, _) in zip((spoken, heard), pairs, strict=True):
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000)
        transport.descriptor = ours.fileno()
    CHANGES.count += 1
    data, answer = b"x" * size, b"y" * more
    feed.extend([data])
    assert feed.answer(speaker, answer)
    feed.flush()
    wires = []
    for transport, (ours, theirs) in zip((spoken, heard), pairs, strict=True):
        ours.close()
        with theirs, theirs.makefile("rb") as file:
            wires.append(file.read() + transport.wire)
    assert wires == [data + answer, data]
    assert [len(spoken.written), len(heard.written)] == [size + more > 100, size > 10]


def test_only_who_is_level_is_answered_and_only_behind_something_that_is_to_come(feed: Feed) -> None:
    (level, transport), (apart, _) = follower(feed, level=True), follower(feed, level=False)
    assert not feed.answer(level, b"1")
    feed.extend([b"a"])
    assert feed.answer(level, b"1")
    assert not any(feed.answer(client, b"1") for client in (apart, make_client()))
    feed.flush()
    assert not feed.answer(level, b"2")
    assert transport.wire == b"a1"
    assert level.delivered == 1


def test_who_asks_too_much_between_two_flushes_is_to_be_answered_by_itself(feed: Feed) -> None:
    client, transport = follower(feed, level=True)
    feed.extend([b"a"])
    assert [feed.answer(client, b"1") for _ in range(ANSWERS + 1)] == [True] * ANSWERS + [False]
    feed.flush()
    assert transport.wire == b"a" + b"1" * ANSWERS


def test_who_left_before_it_was_answered_is_forgotten(feed: Feed) -> None:
    client, _ = follower(feed, level=True)
    feed.extend([b"a"])
    assert feed.answer(client, b"1")
    feed.leave(client)
    left = weakref.ref(client)
    del client
    gc.collect()
    assert left() is None


def test_who_came_or_went_since_the_last_flush_is_written_to_or_not(feed: Feed) -> None:
    members = [follower(feed, level=True)[0] for _ in range(3)]
    feed.extend([b"a"])
    feed.flush()
    feed.leave(members[0])
    late, _ = follower(feed, level=True)
    feed.extend([b"b"])
    feed.flush()
    assert [wire(client) for client in (*members, late)] == [b"a", b"ab", b"ab", b"b"]


def test_who_parts_before_a_flush_came_to_it_pulls_what_it_misses(feed: Feed, begun: dict[str, list[Client]]) -> None:
    feed.trim()
    late, told = begun["untold"][0], begun["told"][0]
    feed.part(late)
    feed.part(told)
    feed.flush()
    assert (wire(late), feed.pull(late), feed.pull(told)) == (b"", [b"a"], [])
    assert feed.even(late)


def test_who_leaves_before_a_flush_came_to_it_has_had_nothing(feed: Feed, begun: dict[str, list[Client]]) -> None:
    late, told = begun["untold"][0], begun["told"][0]
    feed.leave(late)
    feed.leave(told)
    assert (late.delivered, told.delivered) == (0, 1)
    feed.flush()
    assert wire(late) == b""


def test_what_is_dropped_is_told_to_nobody_more(feed: Feed, begun: dict[str, list[Client]]) -> None:
    feed.drop()
    assert not feed.unfinished
    feed.flush()
    assert [wire(client) for client in begun["untold"]] == [b""] * 3


def test_a_newcomer_pulls_what_came_after_it_once(feed: Feed) -> None:
    feed.extend([b"before"])
    client, _ = follower(feed, level=False)
    feed.extend([b"a"])
    feed.extend([b"b"])
    assert feed.pull(client) == [b"a", b"b"]
    assert feed.pull(client) == []
    feed.flush()
    feed.extend([b"c"])
    assert feed.pull(client) == [b"c"]


def test_who_catches_up_pulls_what_the_others_have_had(feed: Feed) -> None:
    client, _ = follower(feed, level=False)
    feed.extend([b"a"])
    feed.flush()
    feed.extend([b"pending"])
    assert feed.catch_up(client) == [b"a"]
    assert feed.even(client)
    assert feed.catch_up(client) == []
    assert feed.pull(client) == [b"pending"]
    assert feed.catch_up(client) == []
    assert client.delivered == 2


def test_who_parts_pulls_what_was_not_flushed(feed: Feed) -> None:
    client, transport = follower(feed, level=True)
    feed.extend([b"flushed"])
    feed.flush()
    feed.extend([b"pending"])
    feed.part(client)
    feed.extend([b"later"])
    feed.flush()
    assert transport.wire == b"flushed"
    assert feed.pull(client) == [b"pending", b"later"]


def test_who_is_ahead_of_the_flush_is_even_after_it(feed: Feed) -> None:
    client, transport = follower(feed, level=False)
    assert feed.even(client)
    feed.extend([b"a"])
    assert feed.even(client), "as far as those who are level"
    feed.pull(client)
    assert not feed.even(client)
    feed.flush()
    assert feed.even(client)
    feed.rejoin(client)
    feed.extend([b"b"])
    feed.flush()
    assert transport.written == [b"b"]


def test_who_is_behind_the_flush_is_not_even(feed: Feed) -> None:
    client, _ = follower(feed, level=False)
    feed.extend([b"a"])
    feed.flush()
    assert not feed.even(client)
    feed.pull(client)
    assert feed.even(client)


@pytest.mark.parametrize("level", [True, False])
def test_who_leaves_is_forgotten(feed: Feed, level: bool) -> None:
    client, transport = follower(feed, level=level)
    other, _ = follower(feed, level=True)
    assert feed.followers == 2
    feed.leave(client)
    feed.leave(client)
    assert feed.followers == 1
    feed.extend([b"a"])
    feed.flush()
    assert not transport.written
    assert list(feed.trim()) == []
    assert other.ending is None


def test_delivered_counts_what_was_pulled_and_what_was_flushed(feed: Feed) -> None:
    feed.extend([b"before"])
    client, _ = follower(feed, level=False)
    feed.extend([b"a"])
    feed.pull(client)
    feed.flush()
    feed.rejoin(client)
    feed.extend([b"b"])
    feed.extend([b"c"])
    feed.flush()
    feed.extend([b"pending"])
    assert client.delivered == 1
    feed.leave(client)
    assert client.delivered == 3


def test_what_everybody_has_is_let_go(feed: Feed) -> None:
    follower(feed, level=True)
    feed.extend([Piece(b"x" * 10)])
    feed.flush()
    feed.extend([Piece(b"x" * 20)])
    assert list(feed.trim()) == []
    assert Piece.kept == 20


def test_what_nobody_follows_is_let_go(feed: Feed) -> None:
    client, _ = follower(feed, level=False)
    feed.extend([Piece(b"x" * 10)])
    feed.leave(client)
    feed.flush()
    feed.trim()
    assert Piece.kept == 0


def test_what_somebody_apart_needs_is_kept(feed: Feed) -> None:
    client, _ = follower(feed, level=False)
    for _ in range(5):
        feed.extend([Piece(b"x" * 200)])
        feed.flush()
        assert list(feed.trim()) == []
    assert Piece.kept == 1000
    assert len(feed.pull(client)) == 5
    feed.trim()
    assert Piece.kept == 0


def test_who_needs_more_than_is_kept_is_slow(feed: Feed) -> None:
    slow, _ = follower(feed, level=False)
    feed.extend([Piece(b"x" * 100)])
    feed.flush()
    near, _ = follower(feed, level=False)
    for _ in range(9):
        feed.extend([Piece(b"x" * 100)])
        feed.flush()
        assert list(feed.trim()) == []
    feed.extend([Piece(b"x" * 100)])
    feed.flush()
    assert list(feed.trim()) == [slow]
    feed.leave(slow)
    assert list(feed.trim()) == []
    assert len(feed.pull(near)) == 10


def test_no_more_than_keep_bytes_are_kept_for_the_slow(feed: Feed) -> None:
    follower(feed, level=False)
    _, transport = follower(feed, level=True)
    for _ in range(100):
        feed.extend([Piece(b"x" * 300)])
        feed.flush()
        feed.trim()
        assert Piece.kept <= 1000
    assert len(transport.wire) == 30_000


def test_what_is_pending_is_kept_however_much_it_is(feed: Feed) -> None:
    _, transport = follower(feed, level=True)
    for _ in range(10):
        feed.extend([Piece(b"x" * WRITE_BYTES)])
    assert list(feed.trim()) == []
    assert Piece.kept == 10 * WRITE_BYTES
    for _ in range(10):
        feed.flush()
        assert list(feed.trim()) == []
        assert Piece.kept == feed.pending_bytes
    assert len(transport.wire) == 10 * WRITE_BYTES


def test_what_is_pending_makes_nobody_slow(feed: Feed) -> None:
    client, _ = follower(feed, level=False)
    feed.extend([b"x" * 500])
    feed.flush()
    feed.extend([b"y" * 2000])
    assert list(feed.trim()) == []
    assert feed.pull(client) == [b"x" * 500, b"y" * 2000]


def test_what_those_apart_have_already_is_kept_for_the_flush(feed: Feed) -> None:
    client, _ = follower(feed, level=False)
    _, transport = follower(feed, level=True)
    feed.extend([b"a"])
    feed.pull(client)
    assert list(feed.trim()) == []
    feed.flush()
    assert transport.wire == b"a"


def test_drop_lets_go_of_everything_and_returns_everybody(feed: Feed) -> None:
    behind, _ = follower(feed, level=False)
    feed.extend([Piece(b"x" * 10)])
    feed.flush()
    level, transport = follower(feed, level=True)
    feed.extend([Piece(b"x" * 20)])
    assert set(feed.drop()) == {behind, level}
    assert (Piece.kept, feed.pending_bytes) == (0, 0)
    assert feed.pull(behind) == []
    feed.extend([b"later"])
    feed.extend([b"x" * 995])
    feed.flush()
    assert transport.wire == b"later" + b"x" * 995
    assert list(feed.trim()) == [], "as much as is kept"
    assert feed.pull(behind) == [b"later", b"x" * 995]


def test_who_is_ahead_of_the_flush_keeps_nothing_and_is_not_slow(feed: Feed) -> None:
    client, _ = follower(feed, level=False)
    follower(feed, level=True)
    for _ in range(3):
        feed.extend([b"x" * WRITE_BYTES])
    assert len(feed.pull(client)) == 3
    feed.flush()
    assert list(feed.trim()) == []
    assert feed.pull(client) == []
    feed.extend([b"more"])
    assert feed.pull(client) == [b"more"]
