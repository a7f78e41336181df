"""All rooms of a process: opened and let go, compared with the store, joined and left; two processes on one store."""

import asyncio
import contextlib
import gc
import tracemalloc
import weakref
from collections.abc import AsyncIterator, Iterator
from unittest import mock

import pytest

from chatserver.audience import Audience
from chatserver.client import Client
from chatserver.errors import (
    ConnectionLost,
    PolicyViolation,
    StorageFull,
    StorageUnavailable,
    StorageUnsure,
    Unrecoverable,
)
from chatserver.journal import STORE_SECONDS
from chatserver.message import Event, Info, Notice, Position, Publish
from chatserver.records import data_of, message_of
from chatserver.room import Room
from chatserver.rooms import COMPARE_ROOMS, COMPARE_SECONDS, IDLE_SECONDS, TRIM_SECONDS, Retention
from chatserver.store import Entry, StoreError
from tests.engine import Member, Node, Puppet, entry, fill, numbers
from tests.fakes import Clock, stopped_clock, turns

MOMENT = 0.1
"""After which all that can be delivered is."""

COMPARISON = COMPARE_SECONDS + MOMENT


@pytest.fixture
async def clock() -> AsyncIterator[Clock]:
    with stopped_clock() as clock, mock.patch("time.monotonic", clock.time):
        yield clock


@pytest.fixture
def store() -> Puppet:
    return Puppet()


@pytest.fixture
async def node(clock: Clock, store: Puppet) -> AsyncIterator[Node]:
    async with Node(store) as node:
        yield node


async def touch(node: Node, *names: str) -> None:
    """Uses rooms for a moment."""
    for name in names:
        async with node.rooms.hold(name):
            pass


# Opened and let go


async def test_all_who_hold_a_room_share_it_and_it_is_opened_once(node: Node, store: Puppet) -> None:
    gate = store.shut("top")
    async with contextlib.AsyncExitStack() as stack:
        holding = [asyncio.create_task(stack.enter_async_context(node.rooms.hold("lobby"))) for _ in range(1000)]
        await turns()
        gate.set()
        rooms = await asyncio.gather(*holding)
        assert len({id(room) for room in rooms}) == 1
        assert rooms[0].held == 1000
    assert store.count["top"] == 1
    assert rooms[0].held == 0


async def test_a_room_is_kept_a_while_and_then_let_go(node: Node, clock: Clock, store: Puppet) -> None:
    await touch(node, "a", "b")
    await clock.push(IDLE_SECONDS - 1, step=0.5)
    assert len(node.rooms) == 2
    await touch(node, "b")
    assert store.count["top done"] == 2 + int(IDLE_SECONDS - 1)
    await clock.push(COMPARE_SECONDS + 1, step=0.5)
    assert len(node.rooms) == 1
    await clock.push(IDLE_SECONDS, step=0.5)
    assert len(node.rooms) == 0


async def test_a_room_that_somebody_holds_is_never_let_go(node: Node, clock: Clock) -> None:
    async with node.rooms.hold("lobby") as room:
        await touch(node, "lobby")
        await clock.push(10 * IDLE_SECONDS, step=0.5)
        async with node.rooms.hold("lobby") as same:
            assert same is room


async def test_a_room_with_a_member_is_held_and_one_that_it_left_isnt(node: Node, clock: Clock) -> None:
    member = await node.enter()
    await clock.push(2 * IDLE_SECONDS, step=0.5)
    await node.say("a")
    await clock.push(MOMENT)
    assert member.heard == ["a"]
    await node.leave(member)
    await clock.push(2 * IDLE_SECONDS, step=0.5)
    assert len(node.rooms) == 0


async def test_a_room_that_was_let_go_comes_back_with_its_log(node: Node, clock: Clock) -> None:
    await node.leave(await node.enter())
    await node.say("1", "2")
    await clock.push(2 * IDLE_SECONDS, step=0.5)
    await node.say("3")
    member = await node.enter(last=2)
    await node.say("4")
    await clock.push(MOMENT)
    assert member.heard == ["2", "3", "4"]


async def test_a_room_that_cant_be_opened_can_be_held_later_and_is_let_go(
    node: Node, clock: Clock, store: Puppet
) -> None:
    store.errors["top"] = StorageUnavailable()
    with pytest.raises(StorageUnavailable):
        await touch(node, "lobby")
    del store.errors["top"]
    await touch(node, "lobby")
    store.errors["top"] = StorageUnavailable()
    with pytest.raises(StorageUnavailable):
        await touch(node, "other")
    await clock.push(2 * IDLE_SECONDS, step=0.5)
    assert len(node.rooms) == 0


async def test_a_holder_that_is_cancelled_holds_nothing(node: Node, clock: Clock, store: Puppet) -> None:
    gate = store.shut("top")
    holding = asyncio.create_task(touch(node, "lobby"))
    await turns()
    holding.cancel()
    await turns()
    gate.set()
    await clock.push(2 * IDLE_SECONDS, step=0.5)
    assert len(node.rooms) == 0


async def test_rooms_touched_once_do_not_stay(node: Node, clock: Clock) -> None:
    found: weakref.WeakSet[Room] = weakref.WeakSet()
    for number in range(20_000):
        async with node.rooms.hold(f"room{number}") as room:
            found.add(room)
    del room
    assert len(node.rooms) == len(found) == 20_000
    await clock.push(2 * IDLE_SECONDS, step=15)
    assert len(node.rooms) == 0
    gc.collect()
    assert len(found) == 0


@pytest.fixture
def _traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("_traced")
async def test_the_memory_of_rooms_that_were_used_is_let_go(node: Node, clock: Clock, store: Puppet) -> None:
    async def use_many() -> int:
        for number in range(500):
            member = await node.enter(f"room{number}")
            await node.say("x" * 1000, room=f"room{number}")
            await node.leave(member)
        await clock.push(2 * IDLE_SECONDS, step=15)
        assert len(node.rooms) == 0
        store._logs.clear()
        store.batches.clear()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    first = await use_many()
    assert await use_many() - first < 500 * 100


async def test_a_room_at_work_is_kept_until_it_is_done(node: Node, clock: Clock, store: Puppet) -> None:
    await touch(node, "lobby")
    await fill(store, ["1"])
    gate = store.shut("read")
    await clock.push(2 * IDLE_SECONDS, step=0.5)
    assert len(node.rooms) == 1
    gate.set()
    await clock.push(COMPARISON)
    assert len(node.rooms) == 0


# Publishing


async def test_what_is_appended_is_told_to_the_members_of_its_room_only(node: Node, clock: Clock) -> None:
    members = [await node.enter(name) for name in ("a", "b", "a")]
    await node.say("1", room="a")
    await node.say("2", room="b")
    await node.say("3", room="nobody's")
    await clock.push(MOMENT)
    assert [member.heard for member in members] == [["1"], ["2"], ["1"]]
    assert len(node.rooms) == 2


async def test_what_isnt_stored_is_told_to_nobody(node: Node, clock: Clock, store: Puppet) -> None:
    member = await node.enter()
    store.errors["append"] = StorageFull()
    with pytest.raises(StorageFull):
        await node.say("1")
    del store.errors["append"]
    await node.say("2")
    await clock.push(COMPARISON)
    assert member.heard == ["2"]


async def test_who_heard_that_it_is_unsure_hears_its_message_once_if_it_was_stored(
    node: Node, clock: Clock, store: Puppet
) -> None:
    """The comparison is faster here than the store's answer."""
    member = await node.enter()
    gate = store.shut("append done")
    saying = asyncio.gather(node.say("1"), return_exceptions=True)
    await clock.push(STORE_SECONDS + 1)
    assert [str(error) for error in await saying] == ["not known to be stored: no answer from storage"]
    assert member.heard == ["1"]
    gate.set()
    await node.say("2")
    await clock.push(COMPARISON)
    assert member.heard == ["1", "2"]


async def test_what_has_been_said_already_is_not_told_again(node: Node, clock: Clock) -> None:
    member = await node.enter()
    stamps = [await node.rooms.append(entry("a", key="k")) for _ in range(3)]
    await node.say("b")
    await clock.push(MOMENT)
    assert [(stamp.offset, stamp.new) for stamp in stamps] == [(1, True), (1, False), (1, False)]
    assert member.heard == ["a", "b"]


async def test_who_publishes_to_a_crowded_room_waits_for_a_flush(node: Node, clock: Clock) -> None:
    await node.rooms.ready("lobby")
    member = await node.enter()
    await clock.push(MOMENT)
    await node.rooms.ready("lobby")
    async with node.rooms.hold("lobby") as room:
        for number in range(3):
            room.broadcast(Notice(f"{number}" * 200_000))
    waiting = asyncio.create_task(node.rooms.ready("lobby"))
    other = asyncio.create_task(node.rooms.ready("other"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert other.done()
    assert not waiting.done()
    await clock.push(MOMENT)
    assert waiting.done()
    assert len(member.heard) == 3


# Comparison with the store; several processes on one store


@pytest.fixture
async def other(node: Node, store: Puppet) -> AsyncIterator[Node]:
    async with Node(store) as other:
        yield other


async def test_two_processes_see_each_others_messages_within_a_comparison(
    node: Node, other: Node, clock: Clock
) -> None:
    here, there = await node.enter(), await other.enter()
    await node.say("1")
    await other.say("2")
    await node.say("3")
    await clock.push(COMPARISON)
    assert here.heard == there.heard == ["1", "2", "3"]


async def test_what_a_process_has_stored_itself_is_not_told_by_the_comparison(
    node: Node, clock: Clock, store: Puppet
) -> None:
    """Or those who said it would hear of it before they hear what came before."""
    member = await node.enter()
    gate = store.shut("append done")
    saying = asyncio.create_task(node.say("1"))
    await clock.push(COMPARISON)
    heard, compared = member.heard, store.count["top done"] > 1
    gate.set()
    await saying
    await clock.push(COMPARISON)
    assert compared
    assert heard == []
    assert member.heard == ["1"]
    assert store.count["read"] == 0


async def test_a_ring_is_faster_than_the_comparison(node: Node, other: Node, clock: Clock) -> None:
    member = await other.enter()
    await node.say("1")
    await clock.push(MOMENT)
    assert member.heard == []
    other.rooms.heard("lobby", 1)
    other.rooms.heard("nobody's", 1)
    await clock.push(MOMENT)
    assert member.heard == ["1"]
    assert len(other.rooms) == 1


async def test_the_second_of_two_with_the_same_key_has_its_room_hear_of_the_first(
    node: Node, other: Node, clock: Clock
) -> None:
    member = await other.enter()
    await node.rooms.append(entry("a", key="k"))
    stamp = await other.rooms.append(entry("a", key="k"))
    await clock.push(MOMENT)
    assert (stamp.offset, stamp.new) == (1, False)
    assert member.heard == ["a"]


async def test_the_store_is_asked_for_many_rooms_at_once_but_not_for_all(
    node: Node, clock: Clock, store: Puppet
) -> None:
    names = [f"room{number}" for number in range(2 * COMPARE_ROOMS + 1)]
    await touch(node, *names)
    with mock.patch.object(store, "top", wraps=store.top) as top:
        await clock.push(COMPARISON)
    asked = [call.args[0] for call in top.call_args_list]
    assert [len(chunk) for chunk in asked] == [COMPARE_ROOMS, COMPARE_ROOMS, 1]
    assert [name for chunk in asked for name in chunk] == names


@pytest.mark.parametrize(
    ("error", "line"),
    [(StorageUnavailable(), "not compared"), (ZeroDivisionError(), "comparison failed")],
    ids=["refuses", "breaks"],
)
async def test_a_comparison_that_fails_is_made_again(
    node: Node, clock: Clock, store: Puppet, caplog: pytest.LogCaptureFixture, error: Exception, line: str
) -> None:
    member = await node.enter()
    await fill(store, ["1"])
    store.errors["top"] = error
    await clock.push(2 * COMPARE_SECONDS + MOMENT)
    assert [record.message for record in caplog.records] == [line, line]
    store.errors.clear()
    await clock.push(COMPARISON)
    assert member.heard == ["1"]


async def test_a_repair_that_fails_is_made_again_at_the_next_comparison(
    node: Node, clock: Clock, store: Puppet
) -> None:
    member = await node.enter()
    await fill(store, ["1", "2"])
    store.errors["read"] = StorageUnavailable()
    await clock.push(3 * COMPARE_SECONDS + MOMENT)
    assert store.count["read"] == 3
    store.errors.clear()
    await clock.push(COMPARISON)
    assert member.heard == ["1", "2"]


async def test_members_whose_gap_was_trimmed_are_all_disconnected_and_can_come_again(
    node: Node, other: Node, clock: Clock, store: Puppet
) -> None:
    members = [await node.enter() for _ in range(3)]
    await clock.push(MOMENT)
    gate = store.shut("top")
    await other.say(*numbers(1, 20))
    await store.trim(before=0, keep=5)
    gate.set()
    await clock.push(COMPARISON)
    assert [member.heard for member in members] == [["<close 3010 insufficient state>"]] * 3
    again = await node.enter(last=50)
    await clock.push(MOMENT)
    assert again.heard == numbers(16, 20)


# Joining and leaving


class Diary:
    """What `on_join` and `on_leave` tell."""

    def __init__(self, node: Node, name: str = "", *, lines: list[str] | None = None) -> None:
        self.lines: list[str] = [] if lines is None else lines
        self.gate = asyncio.Event()
        self.gate.set()
        self._name = name
        node.rooms.on_join.append(self.joined)
        node.rooms.on_leave.append(self.left)

    async def joined(self, client: Client, room: Room) -> None:
        await self.gate.wait()
        self.lines.append(f"{self._name}{client.user} joined {room.name}")

    async def left(self, client: Client, room: Room) -> None:
        self.lines.append(f"{self._name}{client.user} left {room.name}")


async def test_who_joins_and_leaves_is_announced_in_order_to_all(node: Node, clock: Clock) -> None:
    first = Diary(node, "1: ")
    Diary(node, "2: ", lines=first.lines)
    await node.leave(await node.enter())
    await clock.push(MOMENT)
    user = "user0"
    assert first.lines == [f"{nth}: {user} {what} lobby" for what in ("joined", "left") for nth in (1, 2)]


async def test_a_client_is_a_member_when_its_join_is_told(node: Node, clock: Clock) -> None:
    sizes: list[int] = []

    async def count(client: Client, room: Room) -> None:
        sizes.append(room.audience.size)

    node.rooms.on_join.append(count)
    node.rooms.on_leave.append(count)
    await node.leave(await node.enter())
    await clock.push(MOMENT)
    assert sizes == [1, 0]


async def test_a_leave_is_told_after_the_join_was_told_to_all(node: Node, clock: Clock) -> None:
    first = Diary(node, "1: ")
    second = Diary(node, "2: ", lines=first.lines)
    second.gate.clear()
    member = await node.connect()
    joining = asyncio.create_task(node.join(member))
    await turns()
    await node.leave(member)
    await turns()
    assert first.lines == ["1: user0 joined lobby"]
    second.gate.set()
    await joining
    await clock.push(MOMENT)
    assert first.lines[1:] == ["2: user0 joined lobby", "1: user0 left lobby", "2: user0 left lobby"]


async def test_who_went_before_it_was_a_member_is_not_announced(node: Node, clock: Clock, store: Puppet) -> None:
    diary = Diary(node)
    await fill(store, numbers(1, 5))
    member = await node.connect()
    gate = store.shut("read done")
    joining = asyncio.create_task(node.join(member, last=2))
    await turns()
    await node.leave(member)
    gate.set()
    await joining
    await clock.push(MOMENT)
    assert diary.lines == []
    async with node.rooms.hold("lobby") as room:
        assert room.audience.size == 0


async def test_who_is_removed_from_the_pool_leaves_all_its_rooms(node: Node, clock: Clock) -> None:
    diary = Diary(node)
    member = await node.enter("a")
    for name in "bc":
        await node.join(member, name)
    await node.say("1", room="b")
    await clock.push(MOMENT)
    assert member.heard == ["1"]
    async with contextlib.AsyncExitStack() as stack:
        rooms = [await stack.enter_async_context(node.rooms.hold(name)) for name in "abc"]
        assert [room.audience.size for room in rooms] == [1, 1, 1]
        await node.leave(member)
        assert [room.audience.size for room in rooms] == [0, 0, 0]
    await clock.push(MOMENT)
    assert sorted(diary.lines[3:]) == [f"user0 left {name}" for name in "abc"]
    assert not node.rooms._of


async def test_a_join_that_fails_is_not_announced_and_leaves_nothing(node: Node, clock: Clock) -> None:
    diary = Diary(node)
    member = await node.connect()
    with pytest.raises(Unrecoverable):
        await node.join(member, after=7)
    await node.leave(member)
    await clock.push(MOMENT)
    assert diary.lines == []


async def test_receivers_that_fail_or_hang_cost_nobody_the_room(
    node: Node, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(client: Client, room: Room) -> None:
        raise ZeroDivisionError

    async def hang(client: Client, room: Room) -> None:
        await asyncio.Event().wait()

    node.rooms.on_join.extend([fail, hang])
    node.rooms.on_leave.extend([fail, hang])
    diary = Diary(node)
    member = await node.connect()
    joining = asyncio.create_task(node.join(member))
    await clock.push(1)
    await joining
    await node.say("1")
    await clock.push(MOMENT)
    assert member.heard[-1] == "1"
    await node.leave(member)
    await clock.push(1)
    assert diary.lines == ["user0 joined lobby", "user0 left lobby"]
    assert [line.message for line in caplog.records] == ["plugin failed"] * 4


async def test_a_receiver_may_throw_a_client_out(node: Node, clock: Clock) -> None:
    async def throw_out(client: Client, room: Room) -> None:
        raise PolicyViolation

    node.rooms.on_join.append(throw_out)
    diary = Diary(node)
    member = await node.enter()
    assert isinstance(member.client.ending, PolicyViolation)
    await node.leave(member)
    await clock.push(MOMENT)
    assert diary.lines == ["user0 joined lobby", "user0 left lobby"]


async def test_who_is_in_a_room_is_known_as_long_as_it_is(node: Node) -> None:
    assert (node.rooms.get("lobby"), node.rooms.members("lobby")) == (None, [])
    member = await node.enter()
    room = node.rooms.get("lobby")
    assert room in node.rooms.open
    assert node.rooms.members("lobby") == [member.client.info]
    await node.leave(member)
    await turns()
    assert node.rooms.members("lobby") == []


async def test_who_leaves_and_stays_connected_is_told_nothing_more_and_its_leave_is_told_once(
    node: Node, clock: Clock
) -> None:
    diary = Diary(node)
    member = await node.enter()
    async with node.rooms.hold("lobby") as room:
        node.rooms.leave(member.client, room)
        node.rooms.leave(member.client, room)
    await node.say("1")
    await clock.push(MOMENT)
    assert member.heard == []
    assert diary.lines == ["user0 joined lobby", "user0 left lobby"]


async def test_what_goes_with_an_event_is_told_live_as_it_is_from_the_log(node: Node, clock: Clock) -> None:
    meta = '{"tags":{"color":"red"}}'
    async with node.rooms.hold("lobby") as room:
        await node.rooms.append(Entry("lobby", "alice", data_of("1"), meta=meta))
        live = await room.since(0)
    assert live == await node.rooms.store.read("lobby", limit=10)
    assert [record.meta for record in live] == [meta]


# Coming back


async def test_a_position_of_another_log_is_refused_and_one_without_an_epoch_isnt(node: Node, store: Puppet) -> None:
    assert node.rooms.offset(Position(store.epoch, 7)) == 7
    assert node.rooms.offset(Position("", 7)) == 7
    with pytest.raises(Unrecoverable):
        node.rooms.offset(Position("0" * 16, 7))
    with pytest.raises(Unrecoverable):
        await node.rooms.check("lobby", Position("0" * 16, 0))


async def test_it_is_known_beforehand_whether_one_can_come_back(node: Node, store: Puppet) -> None:
    await fill(store, numbers(1, 20))
    await store.trim(before=0, keep=5)
    for offset in (15, 18, 20):
        await node.rooms.check("lobby", Position("", offset))
    for offset in (0, 14, 21):
        with pytest.raises(Unrecoverable):
            await node.rooms.check("lobby", Position("", offset))
    store.errors["read"] = StorageUnavailable()
    with pytest.raises(StorageUnavailable):
        await node.rooms.check("lobby", Position("", 14))


async def test_a_thousand_who_come_back_to_a_fresh_process_ask_the_store_a_handful_of_times(
    node: Node, clock: Clock, store: Puppet
) -> None:
    await fill(store, numbers(1, 300))

    async def come_back(number: int) -> Member:
        async with node.rooms.hold("lobby"):
            await node.rooms.check("lobby", Position(store.epoch, number))
            return await node.enter(after=number)

    store.seconds |= {"read": 0.05, "top": 0.05}
    coming = asyncio.gather(*(come_back(200 + number % 100) for number in range(1000)))
    await clock.push(2)
    for number, member in enumerate(await coming):
        assert member.heard == numbers(201 + number % 100, 300)
    assert store.count["read"] <= 2
    assert store.count["top"] <= 4


# Retention


@pytest.fixture
def wall_clock(clock: Clock) -> Iterator[None]:
    def now() -> float:
        return 1_000_000 + clock.now

    def now_ns() -> int:
        return int(now() * 1e9)

    with mock.patch("time.time", now), mock.patch("time.time_ns", now_ns):
        yield


async def test_a_room_keeps_as_many_events_as_it_should(clock: Clock, store: Puppet) -> None:
    async with Node(store, retention=Retention(count=5)) as node:
        await node.say(*numbers(1, 20))
        await clock.push(TRIM_SECONDS + 1)
        assert [record.offset for record in await store.read("lobby", limit=100)] == list(range(16, 21))


@pytest.mark.usefixtures("wall_clock")
async def test_events_are_kept_as_long_as_they_should_be(clock: Clock, store: Puppet) -> None:
    async with Node(store, retention=Retention(seconds=60)) as node:
        await node.say("1")
        await clock.push(30, step=0.5)
        await node.say("2")
        await clock.push(25, step=0.5)
        assert len(await store.read("lobby", limit=100)) == 2
        await clock.push(6 + TRIM_SECONDS, step=0.5)
        assert [record.offset for record in await store.read("lobby", limit=100)] == [2]


async def test_without_retention_nothing_is_trimmed(node: Node, clock: Clock, store: Puppet) -> None:
    await node.say("1")
    await clock.push(3 * TRIM_SECONDS, step=0.5)
    assert store.count["trim"] == 0


async def test_much_is_let_go_in_many_small_steps_with_appends_in_between(clock: Clock, store: Puppet) -> None:
    async with Node(store, retention=Retention(count=1)) as node:
        await fill(store, numbers(1, 5000))
        store.seconds["trim"] = 0.005
        await clock.push(TRIM_SECONDS - MOMENT)
        await node.say("x")
        await clock.push(1)
        assert store.count["trim done"] >= 5
        assert len(await store.read("lobby", limit=100)) == 1


async def test_nothing_is_appended_while_the_store_trims(clock: Clock, store: Puppet) -> None:
    async with Node(store, retention=Retention(count=1)) as node:
        gate = store.shut("trim")
        await clock.push(MOMENT)
        saying = asyncio.create_task(node.say("1"))
        await clock.push(MOMENT)
        assert (store.count["trim"], store.count["append"]) == (1, 0)
        gate.set()
        await saying
        assert store.count["append"] == 1


@pytest.mark.parametrize(
    ("error", "line"),
    [(StorageUnavailable(), "not trimmed"), (ZeroDivisionError(), "trim failed")],
    ids=["refuses", "breaks"],
)
async def test_a_trim_that_fails_is_tried_again(
    clock: Clock, store: Puppet, caplog: pytest.LogCaptureFixture, error: Exception, line: str
) -> None:
    async with Node(store, retention=Retention(count=1)) as node:
        store.errors["trim"] = error
        await clock.push(TRIM_SECONDS + 1)
        assert [record.message for record in caplog.records] == [line, line]
        store.errors.clear()
        await node.say("1", "2")
        await clock.push(TRIM_SECONDS)
        assert len(await store.read("lobby", limit=100)) == 1


# Forgetting


async def come(node: Node, clock: Clock) -> list[str]:
    """What somebody is told who comes now and wants all there is."""
    member = await node.enter(last=100)
    await clock.push(MOMENT)
    return member.heard


async def forget(node: Node, clock: Clock) -> None:
    """Lets time pass until it is done."""
    forgetting = asyncio.create_task(node.rooms.forget("lobby"))
    await clock.until(forgetting.done, 1)
    await forgetting


async def test_who_comes_after_all_was_forgotten_is_told_what_came_later_and_members_go_on(
    node: Node, clock: Clock
) -> None:
    member = await node.enter()
    await node.say(*numbers(1, 5))
    assert await come(node, clock) == numbers(1, 5)
    await forget(node, clock)
    assert await come(node, clock) == []
    await node.say("6")
    assert await come(node, clock) == ["6"]
    assert member.heard == numbers(1, 6)


async def test_who_comes_back_from_before_what_was_forgotten_is_told_so(node: Node, clock: Clock) -> None:
    await node.enter()
    await node.say(*numbers(1, 5))
    await forget(node, clock)
    await node.say("6")
    with pytest.raises(Unrecoverable):
        await node.enter(after=4)
    back = await node.enter(after=5)
    await clock.push(MOMENT)
    assert back.heard == ["6"]


async def test_much_is_forgotten_in_many_steps_with_appends_in_between_which_stay(
    node: Node, clock: Clock, store: Puppet
) -> None:
    await fill(store, numbers(1, 5000))
    member = await node.enter()
    store.seconds["forget"] = 0.005
    forgetting = asyncio.create_task(node.rooms.forget("lobby"))
    await clock.push(0.02)
    await node.say("x", "y")
    assert not forgetting.done()
    await clock.push(1)
    await forgetting
    assert store.count["forget done"] >= 5
    assert [record.offset for record in await store.read("lobby", limit=100)] == [5001, 5002]
    assert await come(node, clock) == member.heard == ["x", "y"]


async def test_what_members_have_not_heard_yet_is_told_before_it_is_forgotten(
    node: Node, other: Node, clock: Clock, store: Puppet
) -> None:
    member = await node.enter()
    gate = store.shut("top done")
    await clock.push(COMPARISON)
    await other.say(*numbers(1, 5))
    forgetting = asyncio.create_task(node.rooms.forget("lobby"))
    gate.set()
    await clock.push(MOMENT)
    await forgetting
    await node.say("6")
    await clock.push(COMPARISON)
    assert member.heard == numbers(1, 6)
    assert await come(node, clock) == ["6"]


async def test_what_was_read_into_memory_while_it_was_forgotten_is_forgotten_too(
    node: Node, clock: Clock, store: Puppet
) -> None:
    await fill(store, numbers(1, 5))
    gate = store.shut("forget")
    forgetting = asyncio.create_task(node.rooms.forget("lobby"))
    await clock.push(MOMENT)
    assert await come(node, clock) == numbers(1, 5)
    gate.set()
    await clock.push(MOMENT)
    await forgetting
    assert await come(node, clock) == []


async def test_what_was_read_before_and_arrives_after_it_was_forgotten_stays_forgotten(
    node: Node, clock: Clock, store: Puppet
) -> None:
    await fill(store, numbers(1, 5))
    gate = store.shut("read done")
    coming = asyncio.create_task(come(node, clock))
    await turns()
    assert store.count["read done"] == 1
    forgetting = asyncio.create_task(node.rooms.forget("lobby"))
    await clock.push(MOMENT)
    await forgetting
    gate.set()
    await coming
    assert await come(node, clock) == []
    assert await node.rooms.store.read("lobby", limit=100) == []


async def test_a_room_that_is_opened_to_be_forgotten_is_let_go(node: Node, clock: Clock, store: Puppet) -> None:
    await fill(store, numbers(1, 5))
    await forget(node, clock)
    assert await store.read("lobby", limit=100) == []
    assert await store.top(["lobby"]) == {"lobby": 5}
    await clock.push(2 * IDLE_SECONDS, step=0.5)
    assert len(node.rooms) == 0


async def test_to_forget_what_was_never_said_takes_no_space(node: Node, store: Puppet) -> None:
    await node.rooms.forget("lobby")
    assert store._logs == {}


async def test_forgetting_that_fails_is_known_and_can_be_tried_again(node: Node, clock: Clock, store: Puppet) -> None:
    await fill(store, numbers(1, 3000))
    member = await node.enter()
    await node.say("x")
    store.seconds["forget done"] = 0.005
    forgetting = asyncio.create_task(node.rooms.forget("lobby"))
    await clock.push(0.01)
    assert store.count["forget done"] == 1
    store.errors["forget"] = StorageUnavailable()
    await clock.push(MOMENT)
    with pytest.raises(StorageUnavailable):
        await forgetting
    with pytest.raises(Unrecoverable):
        await node.enter(after=0)
    del store.errors["forget"]
    await forget(node, clock)
    assert await come(node, clock) == []
    await node.say("y")
    await clock.push(MOMENT)
    assert member.heard == ["x", "y"]


async def test_what_is_gone_from_the_store_is_gone_from_memory_though_the_rest_could_not_be_forgotten(
    node: Node, clock: Clock, store: Puppet
) -> None:
    await node.enter()
    await node.say(*numbers(1, 5))
    store.errors["forget done"] = StorageUnsure()
    with pytest.raises(StorageUnsure):
        await node.rooms.forget("lobby")
    assert await store.read("lobby", limit=100) == []
    assert await come(node, clock) == []


# Start and stop


async def test_a_store_that_cant_be_opened_ends_the_start(clock: Clock, store: Puppet) -> None:
    node = Node(store)
    with mock.patch.object(store, "open", side_effect=StoreError("no such folder")), pytest.raises(StoreError):
        await node.rooms.start()
    with mock.patch.object(store, "close") as close:
        await node.rooms.stop()
    close.assert_awaited_once()


async def test_stop_stores_what_was_taken_and_leaves_nothing_at_work(clock: Clock, store: Puppet) -> None:
    await fill(store, numbers(1, 5))
    retention = Retention(count=1000)
    node = Node(store, retention=retention)
    await node.pool.start()
    await node.rooms.start()
    await node.enter()
    store.shut("read")
    await fill(store, ["6"])
    store.seconds["append"] = 0.5
    node.rooms.heard("lobby", 6)
    joining = asyncio.create_task(node.join(await node.connect(), after=2))
    futures = [node.rooms.append(entry(f"{number}")) for number in range(7, 10)]
    await turns()
    futures += [node.rooms.append(entry(f"{number}")) for number in range(10, 13)]
    await node.pool.stop()
    with mock.patch.object(store, "close") as close:
        stopping = asyncio.create_task(node.rooms.stop())
        await clock.push(2)
        await stopping
    close.assert_awaited_once()
    assert [future.result().offset for future in futures] == list(range(7, 13))
    await asyncio.gather(joining, return_exceptions=True)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_stop_answers_what_cant_be_stored(clock: Clock, store: Puppet) -> None:
    node = Node(store)
    await node.rooms.start()
    store.errors["append"] = StorageUnavailable()
    saying = asyncio.gather(node.say("1"), return_exceptions=True)
    await turns(1)
    await node.rooms.stop()
    assert [type(error) for error in await saying] == [StorageUnavailable]


async def test_settle_returns_when_nothing_waits_for_the_store(node: Node, clock: Clock, store: Puppet) -> None:
    await node.rooms.settle()
    store.seconds["append"] = 0.5
    future = node.rooms.append(entry("1"))
    settling = asyncio.create_task(node.rooms.settle())
    await clock.push(0.4)
    assert not settling.done()
    await clock.push(0.2)
    assert settling.done()
    assert future.result().offset == 1


async def test_stop_ends_rooms_that_still_open_and_more_may_come_meanwhile(clock: Clock, store: Puppet) -> None:
    node = Node(store)
    await node.rooms.start()
    store.shut("top")
    holding = [asyncio.create_task(touch(node, name)) for name in "ab"]
    await turns()
    holding[0].add_done_callback(lambda _: holding.append(asyncio.create_task(touch(node, "c"))))
    await node.rooms.stop()
    await turns()
    for task in holding:
        task.cancel()
    await asyncio.gather(*holding, return_exceptions=True)
    async with contextlib.AsyncExitStack():
        for room in node.rooms._rooms.values():
            await room.stop()


async def test_who_goes_while_the_pool_stops_is_no_problem(clock: Clock, store: Puppet) -> None:
    node = Node(store)
    await node.pool.start()
    await node.rooms.start()
    member = await node.enter()
    node.pool.remove(member.client)
    assert isinstance(member.client.ending, ConnectionLost)
    await node.pool.stop()
    await node.rooms.stop()
    await member.hold.aclose()


# What is told at once, and what is read back


@pytest.mark.parametrize(
    "command",
    [
        Publish("hi"),
        Publish(""),
        Publish('"\u2028'),
        Publish("hi", data='{"body":"hi","more":1}'),
        Publish("", data="[1]"),
    ],
)
@pytest.mark.parametrize("info", [Info("", "c1"), Info("ann", "c1", '{"a":1}', "[2]")])
async def test_members_are_told_what_is_read_back_from_the_log(node: Node, command: Publish, info: Info) -> None:
    member = await node.enter()
    room = node.rooms.get("lobby")
    assert room
    room.members[member.client] = info
    told: list[Event] = []
    with mock.patch.object(Audience, "tell", lambda _, messages: told.extend(messages)):
        node.rooms.publish(command, member.client, lambda outcome: None)
        await node.rooms.settle()
    (record,) = await node.rooms.store.read("lobby", after=0, limit=1)
    assert told == [message_of(record, positioned=room.channel.positioned)]
