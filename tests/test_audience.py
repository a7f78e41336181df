"""Those who hear the same."""

import contextlib
from collections.abc import Sequence
from unittest import mock

import pytest

from chatserver.audience import Audience
from chatserver.client import WRITE_BYTES, Client
from chatserver.errors import ServerFault
from chatserver.feed import Feed
from chatserver.message import Changes, Event, Joined, Left, Message, Notice
from chatserver.protocol import Codec, Simple
from tests.fakes import FakeTransport, make_client, told


class Room:
    """An audience, and the feeds that wait for a flush."""

    def __init__(self) -> None:
        self.dirty: list[Feed] = []
        self.audience = Audience(1 << 20, self.dirty.append)

    def enter(self, codec: Codec, *, notices: bool = True) -> tuple[Client, FakeTransport]:
        transport = FakeTransport()
        client = make_client(transport, codec)
        self.audience.join(client, notices=notices)
        return client, transport

    def flush(self, *clients: Client) -> None:
        """As the pool does it."""
        for feed in dict.fromkeys(self.dirty):
            feed.flush()
        self.dirty.clear()
        for client in clients:
            client.serve()


class Shouting(Simple):
    def encode(self, event: Event) -> bytes:
        assert isinstance(event, Message)
        return super().encode(Message(event.user, (event.body or "").upper()))


class Broken(Simple):
    def encode(self, event: Event) -> bytes:
        raise ZeroDivisionError

    def join(self, pieces: Sequence[bytes]) -> bytes:
        raise AssertionError("there is nothing to join")


@pytest.fixture
def room() -> Room:
    return Room()


def test_nobody_is_there_at_first_and_nobody_is_told(room: Room) -> None:
    room.audience.broadcast(Notice("a"))
    assert room.audience.size == 0
    assert not room.dirty
    assert not room.audience.crowded()


async def test_all_are_told_in_one_order_whatever_they_speak(room: Room) -> None:
    simple = Simple()
    members = [room.enter(codec) for codec in (simple, simple, Shouting())]
    for body in "ab":
        room.audience.broadcast(Message("alice", body))
    room.flush(*(client for client, _ in members))
    assert [told(transport) for _, transport in members] == [["a", "b"], ["a", "b"], ["A", "B"]]
    assert room.audience.size == 3


async def test_an_event_is_encoded_once_for_each_codec(room: Room) -> None:
    first, second = Simple(), Simple()
    for codec in (first, first, second, second):
        room.enter(codec)
    patches = [mock.patch.object(codec, "encode", wraps=codec.encode) for codec in (first, second)]
    with patches[0] as one, patches[1] as two:
        room.audience.broadcast(Notice("a"))
    assert (one.call_count, two.call_count) == (1, 1)


async def test_nothing_is_encoded_for_a_codec_that_nobody_speaks_any_more(room: Room) -> None:
    client, _ = room.enter(Broken())
    room.enter(Simple())
    client.disconnect(ServerFault())
    room.audience.broadcast(Notice("a"))
    assert room.audience.size == 1


async def test_what_cannot_be_encoded_for_some_is_told_to_nobody(room: Room) -> None:
    members = [room.enter(codec) for codec in (Simple(), Broken())]
    with pytest.raises(ZeroDivisionError):
        room.audience.broadcast(Notice("a"))
    assert not room.dirty
    room.flush(members[0][0])
    assert told(members[0][1]) == []


async def test_it_is_crowded_while_more_waits_than_one_flush_takes(room: Room) -> None:
    client, _ = room.enter(Simple())
    piece = client.codec.encode(Notice("x" * 1000))
    crowded = []
    for _ in range(WRITE_BYTES // len(piece) + 1):
        crowded.append(room.audience.crowded())
        room.audience.broadcast(Notice("x" * 1000))
    crowded.append(room.audience.crowded())
    assert crowded == [False] * (len(crowded) - 1) + [True]
    room.flush()
    assert not room.audience.crowded()


async def test_all_can_be_disconnected_wherever_they_stand_and_newcomers_stay(room: Room) -> None:
    codec = Simple()
    level, apart = room.enter(codec), room.enter(codec)
    level[0].serve()
    room.audience.broadcast(Notice("lost"))
    room.audience.disconnect(ServerFault())
    assert room.audience.size == 0
    newcomer = room.enter(codec)
    room.audience.broadcast(Notice("a"))
    room.flush(level[0], apart[0], newcomer[0])
    end = "<close 1011 internal server error>"
    assert [told(transport) for _, transport in (level, apart, newcomer)] == [[end], [end], ["a"]]
    for client, _ in (level, apart):
        client.gone()


async def test_a_client_that_has_ended_is_not_let_in(room: Room) -> None:
    client = make_client()
    client.disconnect(ServerFault())
    room.audience.join(client)
    assert room.audience.size == 0
    client.gone()


async def test_who_comes_and_goes_is_told_to_those_who_want_to_know(room: Room) -> None:
    codec = Simple()
    members = [room.enter(codec, notices=notices) for notices in (True, False)]
    with mock.patch.object(codec, "encode", wraps=codec.encode) as encode:
        for event in (Joined("bob"), Message("bob", "hi"), Changes((Left("bob"), Joined("bob"))), Left("bob")):
            room.audience.broadcast(event)
    assert encode.call_count == 4
    room.flush(*(client for client, _ in members))
    both = "bob disconnected; bob connected"
    assert [told(transport) for _, transport in members] == [["bob connected", "hi", both, "bob disconnected"], ["hi"]]


async def test_what_a_codec_has_no_words_for_is_told_to_nobody_who_speaks_it(room: Room) -> None:
    client, transport = room.enter(Simple())
    room.audience.broadcast(Message("bob", None, data="[1]"))
    assert not room.dirty
    room.flush(client)
    assert told(transport) == []


async def test_who_leaves_has_what_was_told_before_and_nothing_after(room: Room) -> None:
    codec = Simple()
    (leaver, transport), (stayer, other) = room.enter(codec), room.enter(codec)
    room.flush(leaver, stayer)
    room.audience.broadcast(Notice("a"))
    room.audience.leave(leaver)
    room.audience.broadcast(Notice("b"))
    room.flush(leaver, stayer)
    assert (told(transport), told(other)) == (["a"], ["a", "b"])
    assert room.audience.size == 1
    room.audience.leave(leaver)
    room.audience.join(leaver)
    room.audience.broadcast(Notice("c"))
    room.flush(leaver, stayer)
    assert (told(transport), told(other)) == (["a", "c"], ["a", "b", "c"])


def test_each_codec_encodes_once_whoever_came_first(room: Room) -> None:
    codecs = [Simple() for _ in range(5)]
    with contextlib.ExitStack() as stack:
        encodes = [stack.enter_context(mock.patch.object(codec, "encode", wraps=codec.encode)) for codec in codecs]
        members = [room.enter(codec, notices=notices) for notices in (True, False) for codec in codecs]
        room.audience.broadcast(Message("alice", "a"))
    assert [encode.call_count for encode in encodes] == [1] * 5
    room.flush(*(client for client, _ in members))
    assert [told(transport) for _, transport in members] == [["a"]] * 10


def test_an_answer_stands_behind_what_was_told_here_and_waits_for_nothing_else(room: Room) -> None:
    (alice, hears), other = room.enter(Simple()), Room()
    other.audience.join(alice)
    codec = Simple()
    other.audience.broadcast(Message("bob", "elsewhere"))
    room.audience.broadcast(Message("alice", "a"))
    room.audience.answer(alice, codec.encode(Notice("stored")))
    room.flush()
    assert told(hears) == ["a", "stored"]
    other.flush(alice)
    assert told(hears) == ["a", "stored", "elsewhere"]


def test_who_has_nothing_to_come_here_is_answered_at_once(room: Room) -> None:
    (alice, hears), (stranger, heard) = room.enter(Simple()), Room().enter(Simple())
    for client in (alice, stranger):
        room.audience.answer(client, Simple().encode(Notice("stored")))
    room.flush(alice, stranger)
    assert [told(transport) for transport in (hears, heard)] == [["stored"]] * 2
