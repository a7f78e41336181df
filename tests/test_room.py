"""One room: what is delivered, joins that race with appends, repair, slow readers."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatserver import recent, room
from chatserver.channels import Channels, Namespace
from chatserver.client import WRITE_BYTES, Client
from chatserver.errors import (
    ConnectionLost,
    StorageUnavailable,
    Unrecoverable,
)
from chatserver.message import Event, Message, Notice
from chatserver.pool import Pool
from chatserver.protocol import Codec, Simple
from chatserver.recent import KEEP_EVENTS
from chatserver.records import data_of
from chatserver.room import ANSWER_CHARACTERS, PAGE_EVENTS, Room
from chatserver.store import Record
from chatserver.store.memory import Log
from tests.engine import Puppet, entry, fill, numbers
from tests.fakes import PATIENT, Clock, FakeTransport, make_client, stopped_clock, told, turns

INSUFFICIENT_STATE = "<close 3010 insufficient state>"

DEFAULT = Namespace()


@pytest.fixture
async def clock() -> AsyncIterator[Clock]:
    with stopped_clock() as clock:
        yield clock


@pytest.fixture
def store() -> Puppet:
    return Puppet()


@dataclass
class Lobby:
    """An open room in front of a store, and those who are in it. Nobody drains it but `flush`."""

    store: Puppet
    room: Room
    pool: Pool
    members: list[tuple[Client, FakeTransport]] = field(default_factory=list)

    def client(self, codec: Codec | None = None) -> tuple[Client, FakeTransport]:
        """Comes to no room yet."""
        transport = FakeTransport()
        client = make_client(transport, codec, wake=self.pool.wake)
        self.members.append((client, transport))
        return client, transport

    async def join(self, *, after: int | None = None, last: int = 0, codec: Codec | None = None) -> FakeTransport:
        """A new member."""
        client, transport = self.client(codec)
        await self.room.join(client, after=after, last=last)
        return transport

    async def append(self, *bodies: object) -> list[Record]:
        """Into the log, as another process does it."""
        top = (await self.store.top(["lobby"]))["lobby"]
        await fill(self.store, bodies)
        return [Record(top + nth, 0, "message", "alice", data_of(f"{body}")) for nth, body in enumerate(bodies, 1)]

    async def say(self, *bodies: object) -> None:
        """As this process does it."""
        for record in await self.append(*bodies):
            self.room.receive([(record, None)])

    def heard(self, transport: FakeTransport) -> list[str]:
        self.flush()
        return told(transport)

    def flush(self) -> None:
        """As the pool's drain does it."""
        self.pool._flush()


def make_lobby(store: Puppet, namespace: Namespace = DEFAULT) -> Lobby:
    pool = Pool(queue_bytes=1 << 20, heartbeat_seconds=0, write_seconds=0, plugin_seconds=0.5)
    return Lobby(store, Room(Channels({"": namespace}).find("lobby"), pool, store), pool)


@contextlib.asynccontextmanager
async def opened(store: Puppet, namespace: Namespace = DEFAULT) -> AsyncIterator[Lobby]:
    lobby = make_lobby(store, namespace)
    await lobby.room.open()
    yield lobby
    await lobby.room.stop()
    await lobby.pool.stop()
    for client, _ in lobby.members:
        client.gone()


@pytest.fixture
async def lobby(clock: Clock, store: Puppet) -> AsyncIterator[Lobby]:
    """Opened with five messages in its log."""
    await fill(store, numbers(1, 5))
    async with opened(store) as lobby:
        store.count.clear()
        yield lobby


@pytest.mark.parametrize(
    "record",
    [
        Record(1, 0, "edit", "alice", '{"body":"a","of":3}'),
        Record(1, 0, "message", "alice", "no JSON"),
        Record(1, 0, "message", "alice", '{"body":"a"'),
        Record(1, 0, "message", "alice", ""),
    ],
)
async def test_what_is_no_message_is_told_to_nobody_and_takes_its_place(lobby: Lobby, record: Record) -> None:
    transport = await lobby.join()
    await lobby.say("6", "7", "8")
    lobby.store._logs["lobby"].records[6] = lobby.room._recent._records[1] = record
    again = await lobby.join(after=5)
    assert lobby.heard(again) == ["6", "8"]
    assert lobby.heard(transport) == ["6", "7", "8"]


async def test_an_unknown_kind_is_passed_over_in_delivery(lobby: Lobby) -> None:
    transport = await lobby.join()
    lobby.room.receive([(Record(6, 0, "reaction", "alice", '{"body":"+1"}'), None)])
    lobby.room.receive([(Record(7, 0, "message", "alice", data_of("7")), None)])
    assert lobby.heard(transport) == ["7"]
    assert lobby.room.offset == 7


# Delivery


async def test_members_are_told_what_comes_after_they_joined(lobby: Lobby) -> None:
    first = await lobby.join()
    await lobby.say("6")
    second = await lobby.join()
    await lobby.say("7", "8")
    assert [lobby.heard(transport) for transport in (first, second)] == [["6", "7", "8"], ["7", "8"]]
    assert lobby.room.offset == 8
    assert lobby.store.count["read"] == 0


async def test_what_isnt_kept_is_told_in_its_place(lobby: Lobby) -> None:
    transport = await lobby.join()
    await lobby.say("6")
    lobby.room.broadcast(Notice("bob connected"))
    await lobby.say("7")
    assert lobby.heard(transport) == ["6", "bob connected", "7"]
    assert lobby.heard(await lobby.join(after=5)) == ["6", "7"]


async def test_what_comes_twice_is_told_once(lobby: Lobby) -> None:
    transport = await lobby.join()
    records = await lobby.append("6", "7")
    for record in [*records, *records, records[0]]:
        lobby.room.receive([(record, None)])
    await turns()
    assert lobby.heard(transport) == ["6", "7"]


@PATIENT
@given(
    order=st.permutations(range(5)),
    rings=st.lists(st.integers(0, 11) | st.none(), min_size=5, max_size=5),
    data=st.data(),
)
def test_events_come_in_whatever_order_and_are_told_in_that_of_the_log(
    order: list[int], rings: list[int | None], data: st.DataObject
) -> None:
    async def run() -> None:
        store = Puppet()
        await fill(store, numbers(1, 5))
        async with opened(store) as lobby:
            transport = await lobby.join()
            records = await lobby.append(*numbers(6, 10))
            for place, ring in zip(order, rings, strict=True):
                lobby.room.receive([(records[place], None)])
                if ring is not None:
                    lobby.room.heard(ring)
                await turns(data.draw(st.integers(0, 3)))
            await turns()
            assert lobby.heard(transport) == numbers(6, 10)

    asyncio.run(run())


# Opening


async def test_a_thousand_who_open_a_room_at_once_ask_the_store_once(store: Puppet) -> None:
    gate = store.shut("top")
    lobby = make_lobby(store)
    opening = [asyncio.create_task(lobby.room.open()) for _ in range(1000)]
    await turns()
    gate.set()
    await asyncio.gather(*opening)
    await lobby.room.open()
    assert store.count["top"] == 1


async def test_a_room_that_couldnt_be_opened_can_be_later(store: Puppet) -> None:
    store.errors["top"] = StorageUnavailable()
    lobby = make_lobby(store)
    for _ in range(2):
        with pytest.raises(StorageUnavailable):
            await lobby.room.open()
    store.errors.clear()
    await fill(store, numbers(1, 3))
    await lobby.room.open()
    assert lobby.room.offset == 3


@pytest.mark.parametrize("way", ["receive", "ring"])
async def test_what_is_appended_while_a_room_is_opened_is_not_missed(store: Puppet, way: str) -> None:
    await fill(store, numbers(1, 3))
    gate = store.shut("top done")
    lobby = make_lobby(store)
    opening = asyncio.create_task(lobby.room.open())
    await turns()
    (record,) = [Record(4, 0, "message", "alice", data_of("4"))]
    await fill(store, ["4"])
    if way == "ring":
        lobby.room.heard(4)
    else:
        lobby.room.receive([(record, None)])
    gate.set()
    await opening
    transport = await lobby.join(after=3)
    await turns()
    assert lobby.room.offset == 4
    assert lobby.heard(transport) == ["4"]


async def test_it_is_known_whether_a_room_is_at_work(store: Puppet) -> None:
    lobby = make_lobby(store)
    busy = [lobby.room.busy]
    gate = store.shut("top")
    opening = asyncio.create_task(lobby.room.open())
    await turns()
    busy.append(lobby.room.busy)
    gate.set()
    await opening
    assert [*busy, lobby.room.busy] == [False, True, False]


# Repair


async def test_a_gap_is_filled_from_the_store_before_anything_else_is_told(lobby: Lobby) -> None:
    transport = await lobby.join()
    records = await lobby.append("6", "7", "8")
    lobby.room.receive([(records[2], None)])
    assert lobby.heard(transport) == []
    await turns()
    assert lobby.heard(transport) == ["6", "7", "8"]
    assert lobby.store.count["read"] == 1


async def test_a_ring_alone_has_the_rest_read(lobby: Lobby) -> None:
    transport = await lobby.join()
    await lobby.append("6", "7")
    lobby.room.heard(7)
    await turns()
    assert lobby.heard(transport) == ["6", "7"]


async def test_rings_for_what_is_known_cost_nothing(lobby: Lobby) -> None:
    for offset in (0, 5, 3, -1):
        lobby.room.heard(offset)
    await turns()
    assert lobby.store.count["read"] == 0


async def test_many_rings_at_once_are_one_read(lobby: Lobby) -> None:
    await lobby.append(*numbers(6, 50))
    for offset in range(6, 51):
        lobby.room.heard(offset)
    await turns()
    assert lobby.room.offset == 50
    assert lobby.store.count["read"] == 1


async def test_a_long_gap_is_read_in_pages(lobby: Lobby) -> None:
    transport = await lobby.join()
    await lobby.append(*numbers(6, 3 * PAGE_EVENTS))
    lobby.room.heard(3 * PAGE_EVENTS)
    await turns(100)
    assert lobby.heard(transport) == numbers(6, 3 * PAGE_EVENTS)
    assert lobby.store.count["read"] == 3


async def test_a_false_alarm_costs_one_read_and_nobody_anything(lobby: Lobby) -> None:
    transport = await lobby.join()
    lobby.room.heard(10**15)
    await turns(100)
    assert lobby.store.count["read"] == 1
    await lobby.say("6")
    await turns(100)
    assert lobby.heard(transport) == ["6"]
    assert lobby.store.count["read"] == 1


async def test_what_was_heard_of_during_a_read_is_read_next(lobby: Lobby) -> None:
    transport = await lobby.join()
    gate = lobby.store.shut("read done")
    lobby.room.heard(6)  # too early
    await turns()
    await lobby.append("6", "7")
    lobby.room.heard(7)
    gate.set()
    await turns()
    assert lobby.heard(transport) == ["6", "7"]


async def test_what_comes_by_itself_during_a_repair_is_told_once(lobby: Lobby) -> None:
    transport = await lobby.join()
    records = await lobby.append("6", "7")
    gate = lobby.store.shut("read done")
    lobby.room.receive([(records[1], None)])
    await turns()
    lobby.room.receive([(records[0], None)])
    assert lobby.heard(transport) == ["6"]
    gate.set()
    await turns()
    assert lobby.heard(transport) == ["6", "7"]


async def test_a_repair_is_no_faster_than_the_members_take_it(lobby: Lobby) -> None:
    transport = await lobby.join()
    bodies = [f"{number}".ljust(10_000, ".") for number in range(3 * PAGE_EVENTS)]
    await lobby.append(*bodies)
    lobby.room.heard(5 + len(bodies))
    await turns(100)
    assert lobby.store.count["read"] == 1
    for _ in range(len(bodies)):
        lobby.flush()
        await turns()
        assert lobby.room.audience.crowded() or lobby.room.offset == 5 + len(bodies)
    assert lobby.heard(transport) == bodies


async def test_members_whose_gap_isnt_kept_any_more_are_told_so(lobby: Lobby, caplog: pytest.LogCaptureFixture) -> None:
    old = await lobby.join()
    await lobby.append(*numbers(6, 20))
    await lobby.store.trim(before=0, keep=3)
    lobby.room.heard(20)
    await turns()
    assert lobby.heard(old) == [INSUFFICIENT_STATE]
    assert lobby.room.audience.size == 0
    assert lobby.room.offset == 20
    assert [line.message for line in caplog.records] == ["history lost"]
    new = await lobby.join(last=10)
    await lobby.say("21")
    assert lobby.heard(new) == ["18", "19", "20", "21"]


async def test_a_hole_in_the_log_itself_ends_as_one_that_isnt_kept(lobby: Lobby) -> None:
    old = await lobby.join()
    await lobby.append("6", "7", "8")
    read = lobby.store.read

    async def skip(name: str, **where: int) -> list[Record]:
        return [record for record in await read(name, **where) if record.offset != 6]

    lobby.store.read = skip  # type: ignore[method-assign, assignment]
    lobby.room.heard(8)
    await turns(100)
    assert lobby.heard(old) == [INSUFFICIENT_STATE]
    assert lobby.room.offset == 8


FAILURES = pytest.mark.parametrize(
    ("error", "line"),
    [(StorageUnavailable(), "not repaired"), (ZeroDivisionError(), "repair failed")],
    ids=["refuses", "breaks"],
)


@FAILURES
async def test_a_repair_that_fails_is_tried_again_when_the_room_hears_again(
    lobby: Lobby, caplog: pytest.LogCaptureFixture, error: Exception, line: str
) -> None:
    transport = await lobby.join()
    await lobby.append("6", "7")
    lobby.store.errors["read"] = error
    for count in (1, 2):
        lobby.room.heard(7)
        await turns(100)
        assert lobby.store.count["read"] == count
    assert [record.message for record in caplog.records] == [line, line]
    lobby.store.errors.clear()
    lobby.room.heard(7)
    await turns()
    assert lobby.heard(transport) == ["6", "7"]


@FAILURES
async def test_a_room_that_cant_start_over_says_so_and_does_when_it_hears_again(
    lobby: Lobby, caplog: pytest.LogCaptureFixture, error: Exception, line: str
) -> None:
    member = await lobby.join()
    await lobby.append(*numbers(6, 20))
    await lobby.store.trim(before=0, keep=3)
    lobby.store.errors["top"] = error
    lobby.room.heard(20)
    await turns()
    assert [record.message for record in caplog.records] == [line]
    lobby.store.errors.clear()
    lobby.room.heard(20)
    await turns()
    assert lobby.heard(member) == [INSUFFICIENT_STATE]
    assert lobby.room.offset == 20


async def test_who_joins_while_a_room_starts_over_misses_nothing_silently(lobby: Lobby) -> None:
    await lobby.append(*numbers(6, 20))
    await lobby.store.trim(before=0, keep=3)
    gate = lobby.store.shut("top")
    lobby.room.heard(20)
    await turns()
    member = await lobby.join()
    gate.set()
    await turns()
    await lobby.say("21")
    assert lobby.heard(member) == [INSUFFICIENT_STATE]


async def test_a_gap_that_is_closed_while_a_room_starts_over_costs_nobody_the_connection(lobby: Lobby) -> None:
    member = await lobby.join()
    records = await lobby.append("6", "7", "8")
    await lobby.store.trim(before=0, keep=1)
    gate = lobby.store.shut("top")
    lobby.room.heard(8)
    await turns()
    for record in records:  # of this process; their append has only just returned
        lobby.room.receive([(record, None)])
    gate.set()
    await turns()
    assert lobby.heard(member) == ["6", "7", "8"]
    assert lobby.room.offset == 8


class Broken(Simple):
    """A codec that can't encode a certain text."""

    def encode(self, event: Event) -> bytes:
        if isinstance(event, Message) and event.body == "poison":
            raise ZeroDivisionError
        return super().encode(event)


async def test_members_who_cant_be_told_something_are_disconnected(
    lobby: Lobby, caplog: pytest.LogCaptureFixture
) -> None:
    members = [await lobby.join(codec=codec) for codec in (Simple(), Broken())]
    await lobby.say("6")
    lobby.flush()
    await lobby.say("poison", "8")
    assert [lobby.heard(transport) for transport in members] == [["6", "<close 1011 internal server error>"]] * 2
    assert [line.message for line in caplog.records] == ["delivery failed"]
    assert lobby.room.offset == 8
    assert lobby.heard(await lobby.join(after=6)) == ["poison", "8"]
    with pytest.raises(ZeroDivisionError):
        await lobby.join(after=6, codec=Broken())
    assert lobby.room.audience.size == 1


# Joining


@pytest.mark.parametrize("after", range(6))
async def test_who_comes_back_is_told_what_it_missed(lobby: Lobby, after: int) -> None:
    transport = await lobby.join(after=after)
    await lobby.say("6")
    assert lobby.heard(transport) == numbers(after + 1, 6)


@pytest.mark.parametrize("last", [0, 1, 3, 5, 6, 1000])
async def test_who_asks_for_the_last_ones_is_told_these(lobby: Lobby, last: int) -> None:
    transport = await lobby.join(last=last)
    await lobby.say("6")
    assert lobby.heard(transport) == numbers(max(1, 6 - last), 6)


async def test_of_a_room_where_nothing_was_said_nothing_is_told(clock: Clock, store: Puppet) -> None:
    async with opened(store) as lobby:
        members = [await lobby.join(), await lobby.join(after=0), await lobby.join(last=5)]
        await lobby.say("1")
        assert [lobby.heard(transport) for transport in members] == [["1"]] * 3


@pytest.mark.parametrize(("after", "last"), [(2, 0), (None, 2 * KEEP_EVENTS - 2)])
async def test_who_missed_more_than_is_kept_in_memory_is_told_from_the_store(
    clock: Clock, store: Puppet, after: int | None, last: int
) -> None:
    await fill(store, numbers(1, 2 * KEEP_EVENTS))
    async with opened(store) as lobby:
        transport = await lobby.join(after=after, last=last)
        await lobby.say("live")
        assert lobby.heard(transport) == [*numbers(3, 2 * KEEP_EVENTS), "live"]
        assert store.count["read"] > 2


async def test_of_the_last_ones_as_many_are_told_as_are_kept(clock: Clock, store: Puppet) -> None:
    await fill(store, numbers(1, 20))
    await store.trim(before=0, keep=4)
    async with opened(store) as lobby:
        assert lobby.heard(await lobby.join(last=10)) == numbers(17, 20)
        assert lobby.heard(await lobby.join(last=2)) == numbers(19, 20)


async def test_of_the_last_ones_none_may_be_kept(clock: Clock, store: Puppet) -> None:
    await fill(store, numbers(1, 20))
    await store.trim(before=1 << 60, keep=0)
    async with opened(store) as lobby:
        transport = await lobby.join(last=10)
        await lobby.say("21")
        assert lobby.heard(transport) == ["21"]


@pytest.mark.parametrize("after", [0, 15, 21, 10**15, -1])
async def test_who_comes_back_from_where_nothing_is_kept_or_never_was_is_told_so(
    clock: Clock, store: Puppet, after: int
) -> None:
    await fill(store, numbers(1, 20))
    await store.trim(before=0, keep=4)
    async with opened(store) as lobby:
        with pytest.raises(Unrecoverable):
            await lobby.room.check(after)
        with pytest.raises(Unrecoverable):
            await lobby.join(after=after)
        assert lobby.room.audience.size == 0


@pytest.mark.parametrize("after", [16, 18, 20, 22, 23])
async def test_who_comes_back_from_where_all_is_kept_is_let_in(clock: Clock, store: Puppet, after: int) -> None:
    await fill(store, numbers(1, 20))
    await store.trim(before=0, keep=4)
    async with opened(store) as lobby:
        await lobby.append("21", "22", "23")
        await lobby.room.check(after)
        assert lobby.heard(await lobby.join(after=after)) == numbers(after + 1, max(20, lobby.room.offset))


async def test_what_came_since_is_found_without_joining(lobby: Lobby) -> None:
    assert [record.offset for record in await lobby.room.since(2)] == [3, 4, 5]
    assert await lobby.room.since(5) == []
    await lobby.append("6")
    assert [record.offset for record in await lobby.room.since(6)] == []
    assert lobby.room.offset == 6
    with pytest.raises(Unrecoverable):
        await lobby.room.since(7)


async def test_what_came_since_is_no_more_than_fits_into_one_answer(clock: Clock, store: Puppet) -> None:
    big = "x" * (ANSWER_CHARACTERS // 2 - 100)
    await fill(store, [big, big, big, big * 3])
    async with opened(store) as lobby:
        found = [await lobby.room.since(after) for after in (0, 2, 3)]
        assert [[record.offset for record in records] for records in found] == [[1, 2], [3], [4]]


@pytest.mark.parametrize("namespace", [Namespace(history_size=2), Namespace(history_seconds=3600)], ids=["size", "age"])
async def test_who_comes_back_from_before_what_may_be_told_is_told_so(
    clock: Clock, store: Puppet, namespace: Namespace
) -> None:
    await fill(store, numbers(1, 5))
    now = time.time_ns() // 1_000_000
    records = store._logs["lobby"].records
    ages = (9_000_000, 8_000_000, 7_000_000, 0, 0)
    records[:] = [msgspec.structs.replace(record, time=now - age) for record, age in zip(records, ages, strict=True)]
    async with opened(store, namespace) as lobby:
        assert [record.offset for record in await lobby.room.since(3)] == [4, 5]
        with pytest.raises(Unrecoverable):
            await lobby.room.since(2)
        assert lobby.heard(await lobby.join(last=9)) == ["4", "5"]


async def test_who_heard_more_from_another_process_is_told_the_rest(lobby: Lobby) -> None:
    member = await lobby.join()
    await lobby.append("6", "7", "8")
    transport = await lobby.join(after=7)
    assert lobby.heard(transport) == ["8"]
    assert lobby.heard(member) == ["6", "7", "8"]


async def test_who_comes_back_while_storage_fails_is_told_that_and_not_that_its_past_is_lost(lobby: Lobby) -> None:
    await lobby.append("6", "7")
    for error in (StorageUnavailable(), StorageUnavailable()):
        lobby.store.errors["read"] = error
        for ask in (lobby.room.check(7), lobby.join(after=7), lobby.join(after=2), lobby.join(last=2)):
            with pytest.raises(StorageUnavailable):
                await ask
    lobby.store.errors.clear()
    assert lobby.heard(await lobby.join(after=6)) == ["7"]


async def test_a_repair_that_fails_just_then_is_no_lost_past(lobby: Lobby) -> None:
    await lobby.append("6", "7")
    lobby.store.errors["read"] = StorageUnavailable()
    gate = lobby.store.shut("read")
    joining = asyncio.create_task(lobby.join(after=7))
    await turns()
    del lobby.store.gates["read"]
    gate.set()
    asyncio.get_running_loop().call_soon(lobby.store.errors.clear)
    with pytest.raises(StorageUnavailable):
        await joining


async def test_a_thousand_who_come_back_read_the_store_once(clock: Clock, store: Puppet) -> None:
    await fill(store, numbers(1, 1000))
    gate = store.shut("read done")

    async def come_back(lobby: Lobby, after: int) -> FakeTransport:
        await lobby.room.check(after)
        return await lobby.join(after=after)

    async with opened(store) as lobby:
        back = [asyncio.create_task(come_back(lobby, 1000 - number % 100)) for number in range(1000)]
        await turns()
        gate.set()
        for number, transport in enumerate(await asyncio.gather(*back)):
            assert lobby.heard(transport) == numbers(1001 - number % 100, 1000)
        assert store.count["read"] == 1
        assert lobby.heard(await lobby.join(last=50)) == numbers(951, 1000)
        assert store.count["read"] == 1


async def test_no_more_than_the_recent_events_stay_in_memory(clock: Clock, store: Puppet) -> None:
    async with opened(store) as lobby:
        await lobby.say(*numbers(1, KEEP_EVENTS + 100))
        assert lobby.heard(await lobby.join(after=100)) == numbers(101, KEEP_EVENTS + 100)
        assert store.count["read"] == 0
        await lobby.join(after=99)
        assert store.count["read"] > 0
        assert len(lobby.room._recent.after(100) or ()) == KEEP_EVENTS


async def test_a_client_that_went_during_its_join_is_no_member(lobby: Lobby) -> None:
    gate = lobby.store.shut("read done")
    client, transport = lobby.client()
    joining = asyncio.create_task(lobby.room.join(client, after=2))
    await turns()
    client.disconnect(ConnectionLost())
    gate.set()
    await joining
    await lobby.say("6")
    assert lobby.room.audience.size == 0
    assert lobby.heard(transport) == []


async def test_history_is_not_read_on_for_a_client_that_went(clock: Clock, store: Puppet) -> None:
    await fill(store, numbers(1, 10 * KEEP_EVENTS))
    async with opened(store) as lobby:
        client, _ = lobby.client()
        gate = store.shut("read done")
        joining = asyncio.create_task(lobby.room.join(client, after=0))
        await turns()
        client.disconnect(ConnectionLost())
        gate.set()
        await joining
        assert store.count["read"] <= 2


@pytest.mark.parametrize("moment", ["read", "read done"])
async def test_a_join_that_is_cancelled_costs_nobody_else_its_join(lobby: Lobby, moment: str) -> None:
    gate = lobby.store.shut(moment)
    first, second = (asyncio.create_task(lobby.join(after=2)) for _ in range(2))
    await turns()
    first.cancel()
    await turns()
    gate.set()
    assert lobby.heard(await second) == ["3", "4", "5"]
    assert lobby.room.audience.size == 1
    assert lobby.store.count["read"] == 1


async def test_who_joins_while_history_is_lost_is_not_told_with_a_hole(lobby: Lobby) -> None:
    gate = lobby.store.shut("read done")
    joining = asyncio.create_task(lobby.join(after=2))
    await turns()
    await lobby.append(*numbers(6, 20))
    await lobby.store.trim(before=0, keep=3)
    lobby.room.heard(20)
    await turns()
    gate.set()
    with pytest.raises(Unrecoverable):
        await joining
    assert lobby.room.audience.size == 0


async def test_stop_ends_all_that_is_under_way(clock: Clock, store: Puppet) -> None:
    await fill(store, numbers(1, 5))
    async with opened(store) as lobby:
        store.shut("read")
        await lobby.append("6")
        lobby.room.heard(6)
        joining = asyncio.create_task(lobby.join(after=2))
        await turns()
        assert lobby.room.busy
        await lobby.room.stop()
        await asyncio.gather(joining, return_exceptions=True)
        assert len(asyncio.all_tasks()) == 1


# Slow readers


BIG = 20_000
"""Of so many characters are the messages of a long history."""


def big(first: int, last: int) -> list[str]:
    return [body.ljust(BIG, ".") for body in numbers(first, last)]


async def test_a_reader_is_given_history_no_faster_than_it_reads(clock: Clock, store: Puppet) -> None:
    await fill(store, big(1, 100))
    async with opened(store) as lobby:
        client, transport = lobby.client()
        joining = asyncio.create_task(lobby.room.join(client, after=0))
        while not joining.done():
            await turns()
            assert client._queued <= WRITE_BYTES + BIG + 100
            lobby.flush()
        assert lobby.heard(transport) == big(1, 100)


@pytest.mark.parametrize("queue_bytes", [3 * BIG, WRITE_BYTES, WRITE_BYTES + 2 * BIG, 1 << 20])
async def test_a_slow_reader_of_history_that_reads_at_all_is_not_too_slow(
    clock: Clock, store: Puppet, queue_bytes: int
) -> None:
    await fill(store, big(1, 100))
    lobby = make_lobby(store)
    lobby.pool.queue_bytes = queue_bytes
    await lobby.pool.start()
    await lobby.room.open()
    transport = FakeTransport()
    client = make_client(transport, queue_bytes=queue_bytes, wake=lobby.pool.wake)
    joining = asyncio.create_task(lobby.room.join(client, after=0))
    while not joining.done():
        transport.resume()
        transport.pause_after = len(transport.written) + 1  # takes one write, and then nothing for ten seconds
        await clock.push(10, step=0.5)
    transport.resume()
    await clock.push(1)
    await lobby.say("live")
    await clock.push(1)
    assert told(transport) == [*big(1, 100), "live"]
    assert client.ending is None
    await lobby.pool.stop()


async def test_a_reader_that_goes_while_it_is_given_history_holds_nothing_up(clock: Clock, store: Puppet) -> None:
    await fill(store, big(1, 100))
    async with opened(store) as lobby:
        client, transport = lobby.client()
        transport.paused = True
        client.park()
        joining = asyncio.create_task(lobby.room.join(client, after=0))
        await turns()
        assert not joining.done()
        client.disconnect(ConnectionLost())
        await joining
        assert lobby.room.audience.size == 0


async def test_a_client_with_little_to_take_is_not_waited_for(lobby: Lobby) -> None:
    client, _ = lobby.client()
    client.enqueue(Notice("a"))
    await client.emptied()
    client.enqueue(Notice("x" * WRITE_BYTES))
    waiting = asyncio.create_task(client.emptied())
    await turns()
    assert not waiting.done()
    lobby.flush()
    await waiting


# Every interleaving


class Schedule:
    """Decides what goes on next: a call of the store (before, or after it is done), or the next step of an actor.

    Follows `choices`, takes the first possibility when these are used up, and keeps in `path` what it chose among how
    many.
    """

    def __init__(self, choices: Sequence[int]) -> None:
        self.path: list[tuple[int, int]] = []
        self._choices = choices
        self._waiting: list[asyncio.Future[None]] = []

    async def turn(self) -> None:
        """Returns when it is the caller's turn."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future

    async def run(self, actors: Sequence[Sequence[Callable[[], object]]]) -> None:
        """Has all actors do their steps, each in order, and all calls of the store return."""
        left = [deque(steps) for steps in actors]
        while possible := len(self._waiting) + len(left := [steps for steps in left if steps]):
            chosen = self._choose(possible)
            if chosen < len(left):
                left[chosen].popleft()()
            else:
                self._waiting.pop(chosen - len(left)).set_result(None)
            await turns(6)

    def _choose(self, count: int) -> int:
        place = len(self.path)
        choice = self._choices[place] % count if place < len(self._choices) else 0
        self.path.append((choice, count))
        return choice


async def every_schedule(scenario: Callable[[Schedule], Awaitable[None]]) -> int:
    """Runs `scenario` once for each possible sequence of choices. Returns how many these are."""
    choices: list[int] = []
    for count in range(1, 1_000_000):
        schedule = Schedule(choices)
        await scenario(schedule)
        path = schedule.path
        while path and path[-1][0] == path[-1][1] - 1:
            path.pop()
        if not path:
            return count
        choices = [choice for choice, _ in path[:-1]] + [path[-1][0] + 1]
    raise AssertionError("too many")


class Stepwise(Puppet):
    """Each call waits for its turn twice: before, and after it is done."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule: Schedule | None = None

    async def _at(self, moment: str) -> None:
        if self.schedule:
            await self.schedule.turn()


@dataclass(frozen=True)
class Race:
    """A client joins while this process appends some messages, and another one, which rings, appends some."""

    past: int
    """So many messages are in the log before the room is opened."""
    unheard: int = 0
    """So many more that the room hasn't heard of."""
    after: int | None = None
    last: int = 0
    own: int = 1
    others: int = 1

    async def run(self, schedule: Schedule) -> None:
        store = Stepwise()
        await fill(store, numbers(1, self.past))
        async with opened(store) as lobby:
            await fill(store, numbers(self.past + 1, self.past + self.unheard))
            store.schedule = schedule
            client, transport = lobby.client()
            joining: list[asyncio.Task[int]] = []
            join = [lambda: joining.append(asyncio.create_task(self._join(lobby, client)))]
            own = [
                step for _ in range(self.own) for step in _append(lobby, lambda it: lobby.room.receive([(it, None)]))
            ]
            others = [
                step for _ in range(self.others) for step in _append(lobby, lambda it: lobby.room.heard(it.offset))
            ]
            await schedule.run([join, own, others])
            first = await joining[0]
            await _compare(lobby, store)
            end = self.past + self.unheard + self.own + self.others
            assert lobby.heard(transport) == numbers(first, end), schedule.path

    async def _join(self, lobby: Lobby, client: Client) -> int:
        """Returns what it is to be told first."""
        start = max(0, lobby.room.offset - self.last) if self.after is None else self.after
        await lobby.room.join(client, after=self.after, last=self.last)
        return start + 1


def _append(lobby: Lobby, tell: Callable[[Record], None]) -> list[Callable[[], object]]:
    """The steps of an append: it is in the log, and only then the room hears of it."""
    log = lobby.store._logs.setdefault("lobby", Log())
    appended: list[Record] = []

    def store() -> None:
        log.append([entry(log.top + 1)], 0)
        appended.append(log.records[-1])

    return [store, lambda: tell(appended[0])]


async def _compare(lobby: Lobby, store: Stepwise) -> None:
    store.schedule = None
    lobby.room.heard((await store.top(["lobby"]))["lobby"])
    await turns(30)


@pytest.fixture
def _little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that races meet all the ways in which events are read."""
    monkeypatch.setattr(recent, "KEEP_EVENTS", 2)
    monkeypatch.setattr(room, "KEEP_EVENTS", 2)
    monkeypatch.setattr(room, "PAGE_EVENTS", 4)


RACES = [
    Race(0),
    Race(0, after=0),
    Race(3),
    Race(3, after=3),
    Race(3, after=1),
    Race(3, after=0, others=0),
    Race(3, after=0, own=0),
    Race(3, last=2),
    Race(3, last=9, others=0),
    Race(3, last=9, own=0),
    Race(3, unheard=2),
    Race(3, unheard=2, after=4),
]


@pytest.mark.usefixtures("_little_memory")
@pytest.mark.parametrize("race", RACES, ids=str)
async def test_a_join_that_races_with_appends_misses_nothing_and_gets_nothing_twice(race: Race) -> None:
    assert await every_schedule(race.run) > 20


@pytest.mark.usefixtures("_little_memory")
@PATIENT
@given(race=st.sampled_from(RACES), choices=st.lists(st.integers(0, 11), max_size=60))
def test_a_join_that_races_with_many_appends_misses_nothing_either(race: Race, choices: list[int]) -> None:
    asyncio.run(replace(race, own=4, others=4).run(Schedule(choices)))


@pytest.mark.parametrize("after", range(3, 8))
async def test_a_join_that_races_with_a_trim_is_told_all_or_that_it_cant(clock: Clock, after: int) -> None:
    """Of a room where at any time all but the last three messages, the 6th to 8th or 7th to 9th, are let go."""

    async def run(schedule: Schedule) -> None:
        store = Stepwise()
        await fill(store, numbers(1, 8))
        async with opened(store) as lobby:
            store.schedule = schedule
            client, transport = lobby.client()
            joining: list[asyncio.Task[None]] = []
            join = [lambda: joining.append(asyncio.create_task(lobby.room.join(client, after=after)))]
            trim = [lambda: store._logs["lobby"].trim(0, 3, 100)]
            await schedule.run([join, trim, _append(lobby, lambda it: lobby.room.receive([(it, None)]))])
            refused = (await asyncio.gather(*joining, return_exceptions=True))[0] is not None
            heard = lobby.heard(transport)
            assert heard == numbers(after + 1, 9)[: len(heard)]
            assert refused or len(heard) == 9 - after
            outcomes.add(refused)

    outcomes: set[bool] = set()
    assert await every_schedule(run) > 5
    assert outcomes == ({True, False} if after < 6 else {False})


@pytest.mark.parametrize("wanted", [{"after": 0}, {"after": 2}, {"after": 3}, {"last": 2}, {"last": 9}], ids=str)
async def test_nobody_who_joins_later_is_told_what_was_forgotten_while_another_joined(
    clock: Clock, wanted: dict[str, Any]
) -> None:
    """Of a room where the first three of four messages are forgotten while a fifth is appended."""

    async def run(schedule: Schedule) -> None:
        store = Stepwise()
        await fill(store, numbers(1, 4))
        async with opened(store) as lobby:
            store.schedule = schedule
            client, transport = lobby.client()
            joining: list[asyncio.Task[None]] = []
            join = [lambda: joining.append(asyncio.create_task(lobby.room.join(client, **wanted)))]
            forget = [lambda: store._logs["lobby"].drop(3), lambda: lobby.room.forget(3)]
            await schedule.run([join, forget, _append(lobby, lambda it: lobby.room.receive([(it, None)]))])
            refused = (await asyncio.gather(*joining, return_exceptions=True))[0] is not None
            heard = lobby.heard(transport)
            first = wanted.get("after", 5 - len(heard)) + 1
            assert heard == ([] if refused else numbers(first, 5)), schedule.path
            assert refused or "5" in heard, schedule.path
            store.schedule = None
            assert lobby.heard(await lobby.join(last=9)) == ["4", "5"], schedule.path
            outcomes.add(refused)

    outcomes: set[bool] = set()
    assert await every_schedule(run) > 5
    assert outcomes == ({True, False} if wanted.get("after", 3) < 3 else {False})
