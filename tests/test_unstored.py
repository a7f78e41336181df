"""Messages on their way into the store, and the order of the answers."""

import asyncio

import pytest

from chatserver.client import Client
from chatserver.errors import StorageFull
from chatserver.message import Notice
from chatserver.protocol import Simple
from chatserver.store import Stamp
from chatserver.unstored import UNSTORED, Answer, Unstored
from tests.fakes import FakeTransport, make_client, told, turns

CODEC = Simple()


@pytest.fixture
def transport() -> FakeTransport:
    return FakeTransport()


@pytest.fixture
def client(transport: FakeTransport) -> Client:
    return make_client(transport, CODEC)


def piece(text: str) -> bytes:
    return CODEC.encode(Notice(text))


def answers(client: Client, name: str) -> Answer:
    return lambda outcome: client.push(piece(f"{name}: {outcome.offset if isinstance(outcome, Stamp) else outcome}"))


def test_each_message_is_answered_as_it_was_said_that_it_should_be(client: Client, transport: FakeTransport) -> None:
    unstored = Unstored(client, lambda: None)
    answered = []
    for name in "ab":
        unstored.begin(answers(client, name))
        assert not unstored.taken
        answered.append(unstored.add(unstored.answer))
        assert unstored.taken
    answered[0](Stamp(7, 0))
    answered[1](StorageFull())
    client.serve()
    assert told(transport) == ["a: 7", "b: not stored: storage full"]


def test_other_answers_wait_for_those_before_them(client: Client, transport: FakeTransport) -> None:
    unstored = Unstored(client, lambda: None)
    unstored.tell(piece("1"))
    first = unstored.add(answers(client, "2"))
    unstored.tell(piece("3"))
    second = unstored.add(answers(client, "4"))
    unstored.tell(piece("5"))
    client.serve()
    assert told(transport) == ["1"]
    first(Stamp(1, 0))
    second(Stamp(2, 0))
    unstored.tell(piece("6"))
    client.serve()
    assert told(transport) == ["1", "2: 1", "3", "4: 2", "5", "6"]


def test_what_is_told_in_between_divides_what_is_before_it_from_what_comes_after(client: Client) -> None:
    divides: list[int] = []
    unstored = Unstored(client, lambda: divides.append(1))
    unstored.tell(piece("1"))
    assert divides == []
    unstored.add(unstored.answer)
    unstored.tell(piece("2"))
    assert divides == [1]


async def test_only_so_many_are_on_their_way(client: Client) -> None:
    unstored = Unstored(client, lambda: None)
    answered = [unstored.add(unstored.answer) for _ in range(UNSTORED - 1)]
    assert not unstored.full()
    await unstored.ready()
    answered.append(unstored.add(unstored.answer))
    assert unstored.full()
    ready, settled = asyncio.create_task(unstored.ready()), asyncio.create_task(unstored.settle())
    await turns()
    assert not ready.done()
    answered.pop(0)(Stamp(1, 0))
    await turns()
    assert ready.done()
    assert not settled.done()
    for answer in answered:
        answer(Stamp(1, 0))
    await settled
