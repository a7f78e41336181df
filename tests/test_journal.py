"""Group commit: what is stored together, who hears of it and when, and what a store's faults cost."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from functools import partial

import pytest

from chatserver.errors import ChatError, InternalError, StorageFull, StorageUnavailable, StorageUnsure
from chatserver.journal import BATCH_CHARACTERS, BATCH_ENTRIES, STORE_SECONDS, Journal, Waiting, settling
from chatserver.records import data_of
from chatserver.store import Entry, Stamp, Store
from tests.engine import Puppet, entry, fill, numbers
from tests.fakes import Clock, stopped_clock, turns

PATIENCE = 5.0
"""Who publishes has heard by then."""


@pytest.fixture
async def clock() -> AsyncIterator[Clock]:
    with stopped_clock() as clock:
        yield clock


@pytest.fixture
def store() -> Puppet:
    return Puppet()


class Writer:
    """A journal at work, what it delivered, and what became of what it was given."""

    def __init__(self, store: Store) -> None:
        self.journal = Journal(store, self.deliver)
        self.delivered: list[tuple[str, int, bool]] = []
        self.answers: dict[str, Stamp | BaseException] = {}
        self.futures: list[asyncio.Future[Stamp]] = []

    def deliver(self, batch: Sequence[Waiting], stamps: Sequence[Stamp]) -> None:
        for waiting, stamp in zip(batch, stamps, strict=True):
            name = waiting.entry.data
            assert not isinstance(self.answers.get(name), Stamp), "delivered after its sender was told"
            self.delivered.append((name, stamp.offset, stamp.new))

    def append(self, *entries: Entry) -> None:
        for one in entries:
            future: asyncio.Future[Stamp] = asyncio.get_running_loop().create_future()
            self.journal.append(one, settling(future))
            future.add_done_callback(partial(self._answered, one.data))
            self.futures.append(future)

    def say(self, *bodies: object) -> None:
        self.append(*map(entry, bodies))

    def answer(self, body: object) -> object:
        return self.answers.get(data_of(f"{body}"))

    @property
    def offsets(self) -> list[int]:
        return [offset for _, offset, _ in self.delivered]

    def _answered(self, name: str, future: "asyncio.Future[Stamp]") -> None:
        if not future.cancelled():
            self.answers[name] = future.exception() or future.result()


@contextlib.asynccontextmanager
async def writing(store: Store) -> AsyncIterator[Writer]:
    writer = Writer(store)
    task = asyncio.create_task(writer.journal.run())
    yield writer
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled(), "it ended by itself"


@pytest.fixture
async def writer(clock: Clock, store: Puppet) -> AsyncIterator[Writer]:
    async with writing(store) as writer:
        await turns()
        yield writer


def data(*bodies: object) -> list[str]:
    return [data_of(f"{body}") for body in bodies]


# Group commit


async def test_an_entry_is_stored_delivered_and_answered(writer: Writer, store: Puppet) -> None:
    writer.say("a")
    await turns()
    assert writer.delivered == [(data_of("a"), 1, True)]
    assert isinstance(stamp := writer.answer("a"), Stamp)
    assert (stamp.offset, stamp.new) == (1, True)
    assert [record.data for record in await store.read("lobby", limit=10)] == data("a")


async def test_nobody_hears_of_an_entry_before_it_is_durable(writer: Writer, store: Puppet) -> None:
    gate = store.shut("append done")
    writer.say("a")
    await turns()
    assert (writer.delivered, writer.answers) == ([], {})
    gate.set()
    await turns()
    assert writer.offsets == [1]


async def test_what_arrives_while_the_store_is_at_work_is_stored_together_in_order(
    writer: Writer, store: Puppet
) -> None:
    gate = store.shut("append")
    writer.say("first")
    await turns()
    for number in range(100):
        writer.say(number)
        await turns(1)
    gate.set()
    await turns()
    assert store.batches == [data("first"), data(*range(100))]
    assert writer.offsets == list(range(1, 102))
    assert [name for name, _, _ in writer.delivered] == data("first", *range(100))


async def test_what_is_said_in_answer_to_a_batch_is_stored_with_what_arrived_meanwhile(
    writer: Writer, store: Puppet
) -> None:
    gate = store.shut("append")
    writer.say("first")
    await turns()
    writer.say("meanwhile")
    gate.set()
    while not writer.delivered:
        await turns(1)
    await turns(1)
    writer.say("answer")
    await turns()
    assert store.batches == [data("first"), data("meanwhile", "answer")]


async def test_no_batch_has_more_entries_than_allowed(writer: Writer, store: Puppet) -> None:
    writer.say(*range(2 * BATCH_ENTRIES + 1))
    await turns()
    assert [len(batch) for batch in store.batches] == [BATCH_ENTRIES, BATCH_ENTRIES, 1]
    assert writer.offsets == list(range(1, 2 * BATCH_ENTRIES + 2))


async def test_no_batch_has_more_characters_than_allowed_but_for_its_last_entry(writer: Writer, store: Puppet) -> None:
    size = BATCH_CHARACTERS // 4
    writer.say(*(f"{number}" * size for number in range(6)), "x" * (2 * BATCH_CHARACTERS), "y")
    await turns()
    assert [len(batch) for batch in store.batches] == [4, 3, 1]


async def test_what_was_known_already_is_delivered_as_such(writer: Writer) -> None:
    writer.append(entry("a", key="k"), entry("b", key="k"))
    await turns()
    assert writer.delivered == [(data_of("a"), 1, True), (data_of("b"), 1, False)]


async def test_an_idle_journal_does_nothing_and_goes_on_when_something_comes(
    writer: Writer, clock: Clock, store: Puppet
) -> None:
    for body in "ab":
        writer.say(body)
        await clock.push(10, step=0.1)
    assert store.batches == [data("a"), data("b")]
    assert writer.offsets == [1, 2]


# A store that is slow or hangs


async def test_what_waits_too_long_in_the_queue_is_taken_back_and_never_stored(
    writer: Writer, clock: Clock, store: Puppet
) -> None:
    gate = store.shut("append")
    writer.say("in its hands")
    await turns()
    writer.say("queued")
    await clock.push(STORE_SECONDS - 0.1)
    assert not writer.answers
    await clock.push(PATIENCE - STORE_SECONDS)
    assert type(writer.answer("queued")) is StorageUnavailable
    gate.set()
    await clock.push(1)
    assert store.batches == [data("in its hands")]
    assert writer.offsets == [1]


async def test_what_the_store_keeps_too_long_may_be_stored_and_is_delivered_once_if_it_is(
    writer: Writer, clock: Clock, store: Puppet
) -> None:
    gate = store.shut("append")
    writer.say("a", "b")
    await clock.push(STORE_SECONDS - 0.1)
    assert not writer.answers
    await clock.push(PATIENCE - STORE_SECONDS)
    assert [type(writer.answer(body)) for body in "ab"] == [StorageUnsure, StorageUnsure]
    assert writer.delivered == []
    gate.set()
    await turns()
    assert writer.offsets == [1, 2]


async def test_who_was_told_that_nobody_knows_is_told_nothing_more(writer: Writer, clock: Clock, store: Puppet) -> None:
    told: list[Stamp | Exception] = []
    gate = store.shut("append")
    writer.journal.append(entry("a"), told.append)
    await clock.push(PATIENCE)
    gate.set()
    await turns()
    assert writer.offsets == [1]
    assert [type(answer) for answer in told] == [StorageUnsure]


async def test_whoever_publishes_hears_within_five_seconds_whenever_it_does(
    writer: Writer, clock: Clock, store: Puppet
) -> None:
    store.shut("append")
    published: dict[int, float] = {}
    heard: dict[int, float] = {}
    for number in range(120):
        writer.say(number)
        published[number] = clock.now
        await clock.push(0.1)
        heard |= {n: clock.now for n in published if n not in heard and writer.answer(n)}
    assert len(heard) > 60
    assert max(heard[number] - published[number] for number in heard) < PATIENCE
    assert type(writer.answer(0)) is StorageUnsure
    assert {type(writer.answer(number)) for number in heard if number} == {StorageUnavailable}


async def test_the_time_in_the_queue_counts(writer: Writer, clock: Clock, store: Puppet) -> None:
    store.seconds["append"] = 3.0
    writer.say("first")
    await turns()
    writer.say("second")
    await clock.push(PATIENCE)
    assert isinstance(writer.answer("first"), Stamp)
    assert type(writer.answer("second")) is StorageUnsure
    await clock.push(2)
    assert writer.offsets == [1, 2]


async def test_that_something_held_up_the_loop_is_no_failure_of_the_store(
    writer: Writer, clock: Clock, store: Puppet
) -> None:
    gate = store.shut("append done")
    writer.say("a")
    await turns()
    writer.say("b")
    clock.now += 2 * STORE_SECONDS
    await turns(1)
    gate.set()
    await turns()
    assert writer.offsets == [1, 2]
    assert all(isinstance(answer, Stamp) for answer in writer.answers.values())


async def test_a_loop_that_is_held_up_all_the_time_tells_senders_nevertheless(
    writer: Writer, clock: Clock, store: Puppet
) -> None:
    store.shut("append done")
    writer.say("a")
    await turns()
    writer.say("b")
    for _ in range(40):
        clock.now += 1
        await turns(1)
    assert [type(writer.answer(body)) for body in "ab"] == [StorageUnsure, StorageUnavailable]


async def test_a_slow_store_that_is_in_time_is_no_failure(writer: Writer, clock: Clock, store: Puppet) -> None:
    store.seconds["append"] = STORE_SECONDS - 0.5
    writer.say("a")
    await clock.push(STORE_SECONDS)
    assert isinstance(writer.answer("a"), Stamp)


# A store that fails


async def test_what_the_store_refuses_is_answered_with_its_reason_and_not_delivered(
    writer: Writer, store: Puppet, caplog: pytest.LogCaptureFixture
) -> None:
    store.errors["append"] = StorageFull()
    writer.say("a", "b")
    await turns()
    assert [type(writer.answer(body)) for body in "ab"] == [StorageFull, StorageFull]
    assert writer.delivered == []
    (line,) = caplog.records
    assert (line.message, line.__dict__["problem"], line.__dict__["messages"]) == ("not stored", StorageFull.text, 2)


async def test_the_log_says_what_was_behind_it(writer: Writer, store: Puppet, caplog: pytest.LogCaptureFixture) -> None:
    store.errors["append"] = StorageUnavailable()
    store.errors["append"].__cause__ = OSError("database is locked")
    writer.say("a")
    await turns()
    assert caplog.records[0].__dict__["problem"] == "database is locked"


@pytest.mark.parametrize("error", [StorageUnavailable(), ZeroDivisionError()], ids=["refuses", "breaks"])
async def test_the_first_append_after_a_failure_succeeds(writer: Writer, store: Puppet, error: Exception) -> None:
    store.errors["append"] = error
    writer.say("a")
    await turns()
    assert isinstance(writer.answer("a"), ChatError)
    del store.errors["append"]
    writer.say("b")
    await turns()
    assert isinstance(writer.answer("b"), Stamp)
    assert writer.delivered == [(data_of("b"), 1, True)]


async def test_a_bug_of_the_store_is_logged_and_answered(
    writer: Writer, store: Puppet, caplog: pytest.LogCaptureFixture
) -> None:
    store.errors["append"] = ZeroDivisionError("a bug")
    writer.say("a")
    await turns()
    assert type(writer.answer("a")) is InternalError
    (line,) = caplog.records
    assert (line.message, line.levelno) == ("store failed", logging.ERROR)
    assert line.exc_info
    assert line.exc_info[1] is store.errors["append"]


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_a_store_that_returns_too_few_or_too_many_stamps_does_not_end_the_journal(
    clock: Clock, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    class Lying(Puppet):
        async def append(self, entries: object) -> list[Stamp]:
            return [Stamp(number, 0) for number in range(1, count + 1)]

    async with writing(Lying()) as writer:
        for bodies in ("ab", "cd"):
            writer.say(*bodies)
            await turns()
            assert [type(writer.answer(body)) for body in bodies] == [InternalError] * 2
    assert writer.delivered == []
    assert [line.message for line in caplog.records] == ["store failed"] * 2


# Senders that don't wait


async def test_what_a_sender_gave_is_stored_and_delivered_whatever_becomes_of_the_sender(
    writer: Writer, store: Puppet
) -> None:
    gate = store.shut("append")
    writer.say("in its hands")
    await turns()
    writer.say("queued")
    for future in writer.futures:
        future.cancel()
    gate.set()
    await turns()
    assert writer.offsets == [1, 2]


@pytest.mark.parametrize("way", ["hangs", "fails"])
async def test_a_sender_that_went_hears_of_no_failure(writer: Writer, clock: Clock, store: Puppet, way: str) -> None:
    if way == "hangs":
        store.shut("append")
    else:
        store.errors["append"] = StorageFull()
    writer.say("a", "b")
    for future in writer.futures:
        future.cancel()
    await clock.push(PATIENCE)
    assert writer.answers == {}


# Settle


async def test_settle_returns_at_once_when_nothing_waits(writer: Writer) -> None:
    await writer.journal.settle()
    writer.say("a")
    await turns()
    await writer.journal.settle()


async def test_settle_returns_when_all_is_stored(writer: Writer, store: Puppet) -> None:
    gate = store.shut("append")
    writer.say("a")
    settling = asyncio.create_task(writer.journal.settle())
    await turns()
    writer.say("b")
    assert not settling.done()
    gate.set()
    await settling
    assert writer.offsets == [1, 2]


async def test_settle_waits_also_for_what_comes_at_the_last_moment(writer: Writer, store: Puppet) -> None:
    """As when a sender sends the next message as soon as it hears of the one before."""
    writer.say("a")
    writer.futures[0].add_done_callback(lambda _: writer.say("b"))
    await writer.journal.settle()
    assert writer.offsets == [1, 2]


async def test_settle_returns_when_all_has_failed(writer: Writer, clock: Clock, store: Puppet) -> None:
    gate = store.shut("append")
    writer.say("a")
    await turns()
    writer.say("b")
    await clock.push(PATIENCE)
    store.errors["append"] = StorageFull()
    gate.set()
    await writer.journal.settle()
    assert writer.delivered == []


async def test_what_waited_for_a_journal_that_did_not_run_is_stored_when_it_does(clock: Clock, store: Puppet) -> None:
    writer = Writer(store)
    writer.say("too long")
    await clock.push(3)
    writer.say("not yet")
    await clock.push(2)
    assert type(writer.answer("too long")) is StorageUnavailable
    task = asyncio.create_task(writer.journal.run())
    await writer.journal.settle()
    assert store.batches == [data("not yet")]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# Trim


async def test_the_store_is_asked_to_append_or_trim_one_at_a_time(writer: Writer, clock: Clock, store: Puppet) -> None:
    store.seconds |= {"append": 0.1, "trim": 0.1}
    active: list[str] = []
    for name in ("append", "trim"):
        original = getattr(store, name)

        async def alone(*args: object, name: str = name, original: object = original, **named: object) -> object:
            assert not active
            active.append(name)
            result = await original(*args, **named)  # type: ignore[operator]
            active.remove(name)
            return result

        setattr(store, name, alone)
    trimming = [asyncio.create_task(writer.journal.trim(before=0, keep=1)) for _ in range(3)]
    for number in range(10):
        writer.say(number)
        await clock.push(0.07)
    await clock.push(1)
    assert [await task for task in trimming] == [False] * 3
    assert writer.offsets == list(range(1, 11))
    assert store.count["trim"] == 3


async def test_what_waits_too_long_behind_a_trim_is_taken_back(writer: Writer, clock: Clock, store: Puppet) -> None:
    gate = store.shut("trim")
    trimming = asyncio.create_task(writer.journal.trim(before=0, keep=1))
    await turns()
    writer.say("a")
    await clock.push(PATIENCE)
    assert type(writer.answer("a")) is StorageUnavailable
    gate.set()
    await trimming
    await writer.journal.settle()
    assert store.batches == []
    writer.say("b")
    await turns()
    assert writer.offsets == [1]


async def test_a_trim_that_fails_lets_the_next_append_through(writer: Writer, store: Puppet) -> None:
    store.errors["trim"] = StorageUnavailable()
    with pytest.raises(StorageUnavailable):
        await writer.journal.trim(before=0, keep=1)
    writer.say("a")
    await turns()
    assert writer.offsets == [1]


async def test_settle_does_not_wait_for_a_store_that_never_answers(writer: Writer, clock: Clock, store: Puppet) -> None:
    store.shut("append")
    writer.say("a")
    settling = asyncio.create_task(writer.journal.settle())
    await clock.push(STORE_SECONDS)
    assert not settling.done()
    await clock.push(PATIENCE - STORE_SECONDS)
    assert settling.done()
    assert type(writer.answer("a")) is StorageUnsure


# Letting go


async def test_nothing_is_appended_while_the_store_forgets(writer: Writer, store: Puppet) -> None:
    await fill(store, numbers(1, 3))
    store.batches.clear()
    gate = store.shut("forget")
    forgetting = asyncio.create_task(writer.journal.forget("lobby", 2))
    await turns()
    writer.say("a")
    await turns()
    assert (store.count["forget"], store.batches, writer.answers) == (1, [], {})
    gate.set()
    assert await forgetting
    await turns()
    assert writer.offsets == [4]
    assert [record.offset for record in await store.read("lobby", limit=10)] == [3, 4]
    assert not await writer.journal.forget("lobby", 2)


async def test_what_is_being_appended_is_delivered_before_the_store_forgets(writer: Writer, store: Puppet) -> None:
    gate = store.shut("append done")
    writer.say("a")
    await turns()
    forgetting = asyncio.create_task(writer.journal.forget("lobby", 1))
    await turns()
    assert (store.count["forget"], writer.delivered) == (0, [])
    gate.set()
    assert await forgetting
    assert writer.offsets == [1]


# What is called at the moment of the answer


class Diary:
    """A journal at work, and in which order it told of offsets and answers."""

    def __init__(self, store: Store) -> None:
        self.journal = Journal(store, lambda batch, stamps: self.told.extend(stamp.offset for stamp in stamps))
        self.told: list[object] = []
        self._task = asyncio.create_task(self.journal.run())

    def say(self, names: str) -> None:
        for name in names:
            self.journal.append(entry(name), lambda answer: self.told.append(type(answer)))

    async def end(self) -> list[object]:
        await self.journal.settle()
        self._task.cancel()
        return self.told


async def test_answers_come_before_what_is_stored_later_is_delivered(store: Puppet) -> None:
    diary = Diary(store)
    diary.say("ab")
    await diary.journal.settle()
    diary.say("c")
    assert await diary.end() == [1, 2, Stamp, Stamp, 3, Stamp]


async def test_what_is_stored_together_is_answered_where_it_is_divided(store: Puppet) -> None:
    diary = Diary(store)
    diary.journal.divide()  # nothing is there yet
    diary.say("ab")
    diary.journal.divide()
    diary.say("cd")
    diary.journal.divide()
    assert await diary.end() == [1, 2, Stamp, Stamp, 3, 4, Stamp, Stamp]
    assert store.count["append"] == 1


async def test_what_the_store_has_in_its_hands_is_answered_before_what_comes_after_it(store: Puppet) -> None:
    diary = Diary(store)
    gate = store.shut("append")
    diary.say("ab")
    await turns()
    diary.journal.divide()
    diary.say("c")
    gate.set()
    assert await diary.end() == [1, 2, Stamp, Stamp, 3, Stamp]


async def test_who_is_refused_is_told_why(writer: Writer, store: Puppet) -> None:
    told: list[Stamp | Exception] = []
    store.errors["append"] = StorageFull()
    writer.journal.append(entry("a"), told.append)
    await turns()
    assert [type(error) for error in told] == [StorageFull]


async def test_whoever_fails_to_be_told_costs_the_others_nothing(
    writer: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    def break_down(answer: Stamp | Exception) -> None:
        raise RuntimeError("a bug")

    writer.journal.append(entry("a"), break_down)
    writer.say("b")
    await writer.journal.settle()
    assert writer.offsets == [1, 2]
    assert [record.message for record in caplog.records] == ["delivery failed"]
