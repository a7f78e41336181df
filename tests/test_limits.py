"""The rate limit: by the clock, and over a real `/ws`."""

import asyncio
import gc
import json
import re
import weakref
from collections.abc import AsyncIterator

import pytest
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from chatserver.app import build
from chatserver.client import Client
from chatserver.config import Config
from chatserver.errors import PolicyViolation, TooManyMessages
from chatserver.keys import CHAIN
from chatserver.limits import RateLimit
from chatserver.message import Command, Event, Notice, Publish
from tests.fakes import PATIENT, make_client
from tests.raw import PING, PONG, Frame, RawClient


class Room:
    """A rate limit with a clock that the test sets, and the handler behind it."""

    def __init__(self, per_second: float) -> None:
        self.now = 1000.0
        self.limit = RateLimit(per_second, lambda: self.now)
        self.handled: list[tuple[Command, Client]] = []

    async def handle(self, command: Command, client: Client) -> Event | None:
        self.handled.append((command, client))
        return Notice("handled")

    async def passes(self, client: Client) -> bool:
        """Whether `client` may send now."""
        try:
            await self.limit(Publish("hi"), client, self.handle)
        except TooManyMessages:
            return False
        return True

    async def refusal(self, client: Client) -> str:
        """What `client`, who may not send now, is told."""
        with pytest.raises(TooManyMessages) as refused:
            await self.limit(Publish("hi"), client, self.handle)
        assert refused.value.code == 111
        return str(refused.value)


@pytest.fixture
def alice() -> Client:
    return make_client(user="alice")


async def test_what_passes_is_handled_and_answered(alice: Client) -> None:
    room = Room(1)
    assert await room.limit(Publish("hi"), alice, room.handle) == Notice("handled")
    assert room.handled == [(Publish("hi"), alice)]


async def test_what_is_refused_is_not_handled(alice: Client) -> None:
    room = Room(1)
    assert await room.passes(alice)
    assert not await room.passes(alice)
    assert len(room.handled) == 1


@pytest.mark.parametrize(("per_second", "burst"), [(1, 1), (2, 2), (5, 5), (100, 100), (1.5, 1), (0.5, 1), (0.01, 1)])
async def test_a_seconds_worth_may_come_at_once_at_least_one(alice: Client, per_second: float, burst: int) -> None:
    room = Room(per_second)
    assert [await room.passes(alice) for _ in range(burst + 3)] == [True] * burst + [False] * 3


@pytest.mark.parametrize("per_second", [1, 2, 5, 10, 1000, 0.5, 0.1, 1 / 3])
async def test_a_steady_rate_passes_for_ever(alice: Client, per_second: float) -> None:
    room = Room(per_second)
    for number in range(3000):
        room.now = 1000 + number / per_second
        assert await room.passes(alice), number


async def test_after_a_burst_the_rate_holds(alice: Client) -> None:
    room = Room(4)
    passed = 0
    for tick in range(100):  # a try every 1/10 second, for 10 seconds
        room.now = 1000 + tick / 10
        passed += await room.passes(alice)
    assert passed == 4 + 39


async def test_who_was_silent_has_a_burst_again_but_no_more(alice: Client) -> None:
    room = Room(3)
    for _ in range(3):
        assert await room.passes(alice)
    room.now += 1000
    assert [await room.passes(alice) for _ in range(4)] == [True, True, True, False]


async def test_trying_in_vain_costs_nothing(alice: Client) -> None:
    room = Room(1)
    assert await room.passes(alice)
    for _ in range(100):
        room.now += 0.009
        assert not await room.passes(alice)
    room.now = 1001
    assert await room.passes(alice)


@PATIENT
@given(
    per_second=st.floats(0.05, 50),
    pauses=st.lists(st.floats(0, 3), max_size=80),
)
async def test_in_no_span_of_time_more_passes_than_the_rate_and_one_burst(
    per_second: float, pauses: list[float]
) -> None:
    room, alice = Room(per_second), make_client()
    passed = []
    for pause in pauses:
        room.now += pause
        if await room.passes(alice):
            passed.append(room.now)
    burst = max(1, per_second)
    for first, start in enumerate(passed):
        for last in range(first, len(passed)):
            assert last - first + 1 <= burst + (passed[last] - start) * per_second + 1e-6


@pytest.mark.parametrize(
    ("per_second", "burst", "later", "seconds"),
    [
        (2, 2, 0, "0.5"),
        (1, 1, 0, "1.0"),
        (1, 1, 0.25, "0.8"),
        (0.5, 1, 0, "2.0"),
        (0.5, 1, 1.5, "0.5"),
        (0.1, 1, 3, "7.0"),
    ],
)
async def test_who_is_refused_is_told_how_long_to_wait(
    alice: Client, per_second: float, burst: int, later: float, seconds: str
) -> None:
    room = Room(per_second)
    for _ in range(burst):
        assert await room.passes(alice)
    room.now += later
    assert await room.refusal(alice) == f"too many messages, retry in {seconds} s"


@pytest.mark.parametrize("per_second", [0.3, 0.7, 1, 3, 7, 30, 100, 1000])
async def test_who_waits_as_long_as_told_may_send(alice: Client, per_second: float) -> None:
    room = Room(per_second)
    while await room.passes(alice):
        pass
    told = re.fullmatch(r"too many messages, retry in (\d+\.\d) s", await room.refusal(alice))
    assert told
    room.now += float(told[1])
    assert await room.passes(alice), told[0]


async def test_each_client_has_a_bucket_of_its_own(alice: Client) -> None:
    room, bob = Room(2), make_client(user="bob")
    assert [await room.passes(alice) for _ in range(3)] == [True, True, False]
    assert [await room.passes(bob) for _ in range(3)] == [True, True, False]


async def test_clients_of_the_same_name_are_still_two(alice: Client) -> None:
    room, namesake = Room(1), make_client(id="another", user="alice")
    assert await room.passes(alice)
    assert await room.passes(namesake)


async def test_a_client_that_is_gone_is_forgotten() -> None:
    room, client = Room(1), make_client()
    assert await room.passes(client)
    room.handled.clear()
    ref = weakref.ref(client)
    del client
    gc.collect()
    assert ref() is None


def test_a_rate_of_0_installs_no_limit() -> None:
    assert build(Config(rate_limit=0))[CHAIN] == []
    [limit] = build(Config(rate_limit=0.5))[CHAIN]
    assert isinstance(limit, RateLimit)


async def test_the_rate_is_that_of_the_configuration(alice: Client) -> None:
    room = Room(1)
    [limit] = build(Config(rate_limit=0.001))[CHAIN]
    await limit(Publish("hi"), alice, room.handle)
    with pytest.raises(TooManyMessages, match=r"retry in (1000\.0|999\.\d|99\d\.\d) s"):
        await limit(Publish("hi"), alice, room.handle)


# Over a real /ws


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """Of a server that takes a message every hour and a half."""
    async with TestServer(build(Config(rate_limit=0.0002))) as server:
        assert server.port
        yield server.port


def chat(body: str) -> str:
    """A chat message on the wire."""
    return json.dumps({"type": 2, "body": body}, separators=(",", ":"))


async def test_the_sender_alone_is_told_and_all_stay(port: int) -> None:
    alice = await RawClient.connect(port, "/ws?name=alice")
    bob = await RawClient.connect(port, "/ws?name=bob")
    assert [json.loads(await alice.text())["body"] for _ in range(2)] == ["alice connected", "bob connected"]
    assert json.loads(await bob.text())["body"] == "bob connected"
    for body in ("passes", "refused", "refused again"):
        alice.say(chat(body))
    assert await alice.text() == chat("passes")
    for _ in range(2):
        error = json.loads(await alice.text())
        assert error.keys() == {"type", "body"}
        assert error["type"] == 1
        assert re.fullmatch(r"error: too many messages, retry in \d+\.\d s \(111\)", error["body"])
    alice.send(PING, b"here?")
    assert await alice.receive() == Frame(PONG, b"here?")
    bob.say(chat("bob has a bucket of his own"))
    assert await bob.text() == chat("passes")
    assert await bob.text() == await alice.text() == chat("bob has a bucket of his own")


async def test_without_the_feature_there_is_no_limit() -> None:
    async with TestServer(build(Config(rate_limit=0.0002, features=("presence", "http")))) as server:
        alice = await RawClient.connect(server.port or 0, "/ws?name=alice")
        await alice.text()
        for number in range(20):
            alice.say(chat(str(number)))
        assert [await alice.text() for _ in range(20)] == [chat(str(number)) for number in range(20)]


# Floods


def test_who_goes_on_while_being_refused_is_disconnected() -> None:
    now = 0.0
    limit = RateLimit(10, lambda: now)
    client = make_client()
    answers = [outcome(limit, client) for _ in range(500)]
    assert answers[:10] == ["passed"] * 10
    assert answers[10:110] == ["refused"] * 100
    assert set(answers[110:]) == {"disconnected"}


def test_who_sends_a_little_too_fast_is_refused_and_stays() -> None:
    now = 0.0
    limit = RateLimit(10, lambda: now)
    client = make_client()
    answers = []
    for _ in range(2000):
        answers.append(outcome(limit, client))
        now += 1 / 19
    assert set(answers) == {"passed", "refused"}


def outcome(limit: RateLimit, client: Client) -> str:
    """Of one message."""

    async def handler(command: Command, client: Client) -> None:
        return None

    try:
        asyncio.run(limit(Publish("x"), client, handler))
    except TooManyMessages:
        return "refused"
    except PolicyViolation as end:
        assert str(end) == "too many messages"
        return "disconnected"
    return "passed"
