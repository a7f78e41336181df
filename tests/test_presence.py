"""Notices of who comes and goes: when, to whom and how they are told, and what is kept of them."""

import asyncio
import gc
import json
import random
import re
import weakref
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from chatserver.app import build
from chatserver.channels import Channels
from chatserver.client import Client
from chatserver.config import Config
from chatserver.keys import ROOMS
from chatserver.message import Changes, Event, Info, Joined, Left
from chatserver.pool import Pool
from chatserver.presence import BURST, CROWD_SECONDS, MERGE_SECONDS, Presence
from chatserver.room import Room
from chatserver.store.memory import Memory
from tests import play
from tests.fakes import Clock, make_client, stopped_clock
from tests.play import JSON, Peer
from tests.raw import CLOSE, RawClient


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[int]:
    """A server with the settings given; its port."""
    async with TestServer(build(Config(**settings))) as server:
        assert server.port
        yield server.port


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """Of a server with default settings."""
    async with running() as port:
        yield port


async def heard(client: RawClient, count: int = 1) -> list[str]:
    """The next notices."""
    frames = [json.loads(await client.text()) for _ in range(count)]
    assert all(frame.keys() == {"type", "body"} and frame["type"] == 1 for frame in frames)
    return [frame["body"] for frame in frames]


async def hears_nothing_before(client: RawClient, body: str) -> None:
    """`client` says something, and that is the next that it hears."""
    frame = json.dumps({"type": 2, "body": body}, separators=(",", ":"))
    client.say(frame)
    assert await client.text() == frame


async def test_who_comes_is_told_to_everybody_the_newcomer_included(port: int) -> None:
    alice = await RawClient.connect(port, "/ws?name=alice")
    assert await heard(alice) == ["alice connected"]
    bob = await RawClient.connect(port, "/ws?name=bob")
    assert await heard(alice) == ["bob connected"]
    assert await heard(bob) == ["bob connected"]
    for client in (alice, bob):
        await hears_nothing_before(client, "once is enough")
        if client is alice:
            await bob.text()


@pytest.mark.parametrize("politely", [True, False])
async def test_who_goes_is_told_to_the_others_once(port: int, politely: bool) -> None:
    alice, bob = await RawClient.connect(port, "/ws?name=alice"), await RawClient.connect(port, "/ws?name=bob")
    assert await heard(alice, 2) == ["alice connected", "bob connected"]
    if politely:
        await bob.close()
    else:
        bob.abort()
    assert await heard(alice) == ["bob disconnected"]
    await hears_nothing_before(alice, "once is enough")


async def test_who_goes_is_not_told_of_it(port: int) -> None:
    alice = await RawClient.connect(port, "/ws?name=alice")
    await heard(alice)
    alice.send(CLOSE, (1000).to_bytes(2, "big"))
    frame = await alice.receive()
    assert frame
    assert (frame.opcode, frame.code) == (CLOSE, 1000)


async def test_who_is_refused_is_not_told(port: int) -> None:
    alice = await RawClient.connect(port, "/ws?name=alice")
    await heard(alice)
    assert (await RawClient.connect(port, "/ws?name=b%20b")).status == 400
    assert (await RawClient.connect(port, "/ws?name=bob", Origin="http://evil")).status == 403
    await hears_nothing_before(alice, "nobody came")


async def test_everybody_who_comes_without_a_name_goes_under_the_one_that_was_told(port: int) -> None:
    alice, guest = await RawClient.connect(port, "/ws?name=alice"), await RawClient.connect(port)
    [_, came] = await heard(alice, 2)
    await guest.close()
    assert await heard(alice) == [came.replace("connected", "disconnected")]
    assert came.startswith("guest-")


async def test_without_the_feature_nobody_is_announced() -> None:
    async with running(features=("limits", "http")) as port:
        alice = await RawClient.connect(port, "/ws?name=alice")
        bob = await RawClient.connect(port, "/ws?name=bob")
        await bob.close()
        await hears_nothing_before(alice, "alone at last")


# When, on a clock that stands still


class Lobby(Room):
    """A room that writes down what it is told."""

    def __init__(self, name: str) -> None:
        pool = Pool(queue_bytes=1, heartbeat_seconds=0, write_seconds=0, plugin_seconds=0)
        super().__init__(Channels().find(name), pool, Memory())
        self.events: list[Event] = []

    def broadcast(self, event: Event) -> None:
        self.events.append(event)

    @property
    def told(self) -> list[str]:
        """In short: `+ann` has come, `-ann` has gone, what was told together in one, `!3` a crowd of so many."""
        return [_short(event) for event in self.events]


def _short(event: Event) -> str:
    if isinstance(event, Changes):
        crowd = [f"!{event.crowd}"] if event.crowd else []
        return " ".join([*map(_short, event.changes), *crowd])
    assert isinstance(event, Joined | Left)
    return f"{'+' if isinstance(event, Joined) else '-'}{event.user}"


class Doorman:
    """Lets clients into a room, and out of it."""

    def __init__(self, limit: int = 0, room: str = "lobby") -> None:
        self.presence = Presence(limit)
        self.room = Lobby(room)
        self.clients: dict[str, Client] = {}

    async def come(self, *users: str, info: Info | None = None) -> None:
        for user in users:
            client = self.clients[user] = make_client(user=user)
            self.room.members[client] = info or client.info
            await self.presence.joined(client, self.room)

    async def go(self, *users: str) -> None:
        for user in users:
            client = self.clients.pop(user)
            del self.room.members[client]
            await self.presence.left(client, self.room)

    async def fill(self, count: int, clock: Clock) -> None:
        """Lets in `count`, which is told and forgotten."""
        await self.come(*people(count))
        await clock.push(2)
        self.room.events.clear()


def people(count: int, name: str = "u") -> list[str]:
    return [f"{name}{number}" for number in range(count)]


@pytest.fixture
async def clock() -> AsyncIterator[Clock]:
    """Stands still."""
    with stopped_clock() as clock:
        yield clock


async def test_a_few_are_told_at_once_and_more_together(clock: Clock) -> None:
    door = Doorman()
    await door.come(*people(BURST))
    singly = [f"+{user}" for user in people(BURST)]
    assert door.room.told == singly
    await door.come("ann", "bob")
    await clock.push(MERGE_SECONDS - 0.05)
    await door.go("ann")
    assert door.room.told == singly
    await clock.push(0.06)
    assert door.room.told == [*singly, "+ann +bob -ann"]
    await clock.push(5)
    assert len(door.room.events) == len(singly) + 1


async def test_those_who_come_and_go_now_and_then_are_told_at_once(clock: Clock) -> None:
    door = Doorman()
    for user in people(3 * BURST):
        await door.come(user)
        await clock.push(1 / BURST + 0.01)
        assert door.room.told[-1] == f"+{user}"


async def test_a_burst_that_goes_on_is_told_twice_a_second(clock: Clock) -> None:
    door = Doorman()
    for user in people(300):
        await door.come(user)
        await clock.push(0.02)
    await clock.push(1)
    kinds = [type(event) for event in door.room.events]
    start = kinds.index(Changes)
    assert start <= 2 * BURST
    assert set(kinds[start:]) == {Changes}
    assert len(kinds[start:]) <= 1 + 6 / MERGE_SECONDS
    assert " ".join(door.room.told).split() == [f"+{user}" for user in people(300)]


async def test_when_a_burst_is_over_who_comes_is_told_at_once_again(clock: Clock) -> None:
    door = Doorman()
    await door.come(*people(100))
    await clock.push(MERGE_SECONDS + 1.2)
    told = len(door.room.events)
    await door.come(*people(BURST, "late"))
    assert door.room.told[told:] == [f"+{user}" for user in people(BURST, "late")]


async def test_rooms_have_bursts_of_their_own(clock: Clock) -> None:
    door, other = Doorman(), Doorman(room="kitchen")
    other.presence = door.presence
    await door.come(*people(2 * BURST))
    await other.come("ann")
    assert other.room.told == ["+ann"]


async def test_whatever_happens_each_change_is_told_once_in_order(clock: Clock) -> None:
    door, chance, happened = Doorman(), random.Random(7), ["+watcher"]
    await door.come("watcher")
    for user in people(500):
        if chance.random() < 0.4 and len(door.clients) > 1:
            gone = chance.choice([user for user in door.clients if user != "watcher"])
            await door.go(gone)
            happened.append(f"-{gone}")
        await door.come(user)
        happened.append(f"+{user}")
        await clock.push(chance.choice([0, 0, 0.01, 0.3]), 0.05)
    rest = [user for user in door.clients if user != "watcher"]
    await door.go(*rest)
    await clock.push(1, 0.05)
    assert " ".join(door.room.told).split() == happened + [f"-{user}" for user in rest]


# In a crowd


async def test_in_a_room_of_more_than_the_limit_nobody_is_told_singly(clock: Clock) -> None:
    door = Doorman(limit=3)
    await door.come("a", "b", "c")
    assert door.room.told == ["+a", "+b", "+c"]
    await door.come("d")
    await clock.push(CROWD_SECONDS - 0.05)
    await door.come("e")
    assert len(door.room.events) == 3
    await clock.push(0.06)
    assert door.room.told[3:] == ["+d +e !5"]
    await door.go("a")
    await clock.push(CROWD_SECONDS + 0.01)
    assert door.room.told[4:] == ["-a !4"]


async def test_a_crowd_is_told_at_most_once_a_second(clock: Clock) -> None:
    door = Doorman(limit=3)
    await door.fill(4, clock)
    for user in people(200, "late"):
        await door.come(user)
        await clock.push(0.02)
    await clock.push(2)
    assert len(door.room.events) <= 4 / CROWD_SECONDS
    assert sum(len(event.changes) for event in door.room.events if isinstance(event, Changes)) == 200


async def test_who_waits_to_be_named_is_counted_when_it_became_a_crowd(clock: Clock) -> None:
    door = Doorman(limit=BURST + 2)
    await door.come(*people(BURST + 4))
    await clock.push(MERGE_SECONDS + 0.01)
    assert door.room.told[BURST:] == [f"+u{BURST} +u{BURST + 1} +u{BURST + 2} +u{BURST + 3} !{BURST + 4}"]


async def test_who_waits_to_be_counted_is_named_when_it_is_no_crowd_any_more(clock: Clock) -> None:
    door = Doorman(limit=3)
    await door.fill(3, clock)
    await door.come("ann")
    await door.go("u0")
    await clock.push(CROWD_SECONDS + 0.01)
    assert door.room.told == ["+ann -u0"]
    await clock.push(1)
    await door.go("ann")
    assert door.room.told[1:] == ["-ann"]


async def test_without_a_limit_all_are_named(clock: Clock) -> None:
    door = Doorman(limit=0)
    await door.fill(1500, clock)
    await door.come("ann")
    assert door.room.told == ["+ann"]


# Who is told to have gone, and as whom


async def test_who_was_not_told_to_have_come_is_not_told_to_have_gone(clock: Clock) -> None:
    door = Doorman()
    await door.come("ann")
    await door.presence.left(make_client(user="bob"), door.room)
    await door.go("ann")
    await door.come("carol")
    await clock.push(1)
    assert door.room.told == ["+ann", "+carol"]


async def test_who_goes_is_who_it_was_when_it_came(clock: Clock) -> None:
    door, member = Doorman(), Info("ann", "id-ann", chan='{"role":"mod"}')
    await door.come("watcher")
    await door.come("ann", info=member)
    await door.come("bob")
    bob = door.clients["bob"].info
    door.clients["bob"].info = Info("robert", "id-bob")
    await door.go("ann", "bob")
    assert door.room.events[1:] == [
        Joined("ann", "lobby", member),
        Joined("bob", "lobby", bob),
        Left("ann", "lobby", member),
        Left("bob", "lobby", bob),
    ]


async def test_who_has_no_name_goes_under_one_of_ours(clock: Clock) -> None:
    door = Doorman()
    client = make_client(user="")
    door.room.members[client] = client.info
    await door.presence.joined(client, door.room)
    assert door.room.events == [Joined(f"guest-{client.id[:6]}", "lobby", client.info)]


# The end


async def test_who_comes_later_is_not_told_what_nobody_heard(clock: Clock) -> None:
    door = Doorman()
    await door.come(*people(2 * BURST))
    await door.go(*people(2 * BURST))
    await clock.push(1)
    assert len(door.room.events) == BURST
    await door.come("ann")
    assert door.room.told[BURST:] == ["+ann"]


@pytest.mark.parametrize("seconds", [0, 2], ids=["with something untold", "when all was told"])
async def test_a_room_that_emptied_is_kept_by_nothing(clock: Clock, seconds: float) -> None:
    door = Doorman()
    await door.come(*people(2 * BURST))
    await clock.push(seconds)
    await door.go(*people(2 * BURST))
    room = weakref.ref(door.room)
    del door.room
    gc.collect()
    assert room() is None


async def test_the_end_of_the_application_is_the_end_of_it(clock: Clock) -> None:
    door = Doorman()
    await door.come(*people(2 * BURST))
    await door.presence.stop(web.Application())
    await clock.push(1)
    assert len(door.room.events) == BURST


async def test_no_timer_outlives_the_application() -> None:
    """Not even for somebody who never leaves."""
    app = build(Config())
    async with TestServer(app) as server:
        assert server.port
        first = await RawClient.connect(server.port, "/ws?name=first")
        await heard(first)
        room = app[ROOMS].get("lobby")
        assert room
        room.members[make_client()] = Info("", "")
        await asyncio.gather(*(RawClient.connect(server.port) for _ in range(2 * BURST)))
        while not timers():
            await asyncio.sleep(0)
    assert not timers()


def timers() -> list[asyncio.TimerHandle]:
    """Of presence, in the running loop."""
    scheduled: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    return [handle for handle in scheduled if not handle.cancelled() and "Presence" in repr(handle)]


# Bursts, on real sockets


def counted(body: str) -> Counter[str]:
    """How many connected and disconnected, by a notice."""
    found = Counter[str]()
    for sentence in body.split("; "):
        who, did = sentence.rsplit(" ", 1)
        *names, last = re.split(", | and ", who)
        others = re.fullmatch(r"(\d+) others?", last)
        found[did] += len(names) + (int(others[1]) if others else 1)
    return found


async def until(client: RawClient, did: str, count: int) -> int:
    """Reads until so many `did` that, and nobody anything else; in how many notices."""
    found, notices = Counter[str](), 0
    while found[did] < count:
        [body] = await heard(client)
        found += counted(body)
        notices += 1
    assert found == {did: count}
    return notices


async def member(port: int, form: str, user: str) -> RawClient:
    """Somebody in the lobby, who isn't told of others."""
    if form == JSON:
        peer = await Peer.enter(port, JSON, user)
        assert "subscribe" in await peer.ask("subscribe", channel="lobby")
        return peer.client
    return await RawClient.connect(port, f"/ws?name={user}")


@pytest.mark.parametrize("form", ["simple", JSON])
async def test_a_burst_is_told_in_a_few_notices_that_add_up(form: str) -> None:
    """To members of both protocols."""
    async with play.running(anonymous="on") as port:
        alice = await RawClient.connect(port, "/ws?name=alice")
        assert await heard(alice) == ["alice connected"]
        ann = await Peer.enter(port, JSON)
        assert "subscribe" in await ann.ask("subscribe", channel="lobby", join_leave=True)
        assert await heard(alice) == ["ann connected"]
        assert (await ann.hear())["push"]["join"]
        crowd = await asyncio.gather(*(member(port, form, user) for user in people(200)))
        assert await until(alice, "connected", 200) < 100
        joins = [(await ann.hear())["push"] for _ in range(200)]
        for client in crowd:
            client.abort()
        assert await until(alice, "disconnected", 200) < 100
        leaves = [(await ann.hear())["push"] for _ in range(200)]
        assert {push["channel"] for push in joins + leaves} == {"lobby"}
        infos = {push["join"]["info"]["client"]: push["join"]["info"] for push in joins}
        assert len(infos) == 200
        assert {push["leave"]["info"]["client"]: push["leave"]["info"] for push in leaves} == infos
        assert await ann.silent()
        await hears_nothing_before(alice, "that was all")


async def test_in_a_crowd_numbers_are_told_and_how_many_are_there() -> None:
    async with play.running(anonymous="on", presence_room_limit=5) as port:
        ann = await Peer.enter(port, JSON)
        assert "subscribe" in await ann.ask("subscribe", channel="lobby", join_leave=True)
        assert (await ann.hear())["push"]["join"]
        alice = await RawClient.connect(port, "/ws?name=alice")
        assert (await ann.hear())["push"]["join"]
        await heard(alice)
        for user in people(20):
            await RawClient.connect(port, f"/ws?name={user}")
        assert await heard(alice, 3) == ["u0 connected", "u1 connected", "u2 connected"]
        come, here = 0, 0
        while come < 17:
            [body] = await heard(alice)
            told = re.fullmatch(r"(\d+) connected; (\d+) here", body)
            assert told, body
            come, here = come + int(told[1]), int(told[2])
        assert (come, here) == (17, 22)
        answer = await ann.ask("presence_stats", channel="lobby")
        assert answer["presence_stats"]["num_clients"] == 22
        assert ["join" in heard["push"] for heard in ann.heard] == [True] * 3
