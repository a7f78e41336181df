"""What other people's stores are tested with, and ours. Needs no test framework.

async def test_my_store(tmp_path):
    await check_store(lambda: MyStore(f"mine://{tmp_path}"))
"""

import asyncio
import contextlib
import gc
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Final, TypeAlias
from unittest import mock

from chatserver.errors import Unrecoverable
from chatserver.store import Entry, Record, Stamp, Store

_ALL: Final = 1_000_000
_BEYOND: Final = 1 << 64
_DAY: Final = 86_400_000
_SECONDS: Final = 30.0
"""How long anything may take that should take milliseconds."""


async def check_store(make: Callable[[], Store], *, durable: bool = True, seed: int = 0) -> None:
    """Verifies the promises of `chatserver.store.Store`. Raises `AssertionError` with a sentence that names the broken
    one. Takes seconds, and leaves some thousands of events behind.

    `make` returns a new store each time, not open yet, on the same storage; that is empty at first, and nobody else
    uses it. `durable=False`: two stores share nothing, as with `memory://`, so what follows from sharing isn't
    verified. `seed` chooses another random run.
    """
    storage = _Storage(make, durable, seed)
    for check in (*_CHECKS, *(_SHARED if durable else _ALONE)):
        async with storage.open() as store:
            await check(storage, store)


async def check_at_random(stores: Sequence[Store], random: Random, *, steps: int, prefix: str = "") -> None:
    """Does `steps` random things with open `stores` that share one storage, and compares with a model in memory. Raises
    `AssertionError`. Uses four rooms, called `prefix` and a number, which nobody has used."""
    model = _Model([f"{prefix}{number}" for number in range(4)])
    for _ in range(steps):
        step = random.choice((_random_append, _random_append, _random_append, _random_read, _random_read, _random_top))
        step = random.choice((_random_trim, _random_forget)) if random.random() < 0.15 else step
        await step(random.choice(stores), model, random)
    for room in model.rooms:
        _same(await _read(stores[-1], room, limit=_ALL), model.kept[room], "read", f"the end of room {room!r}")


# --- what the checks work with ---------------------------------------------------------------------------------------


@dataclass
class _Storage:
    """What `make` makes stores of, and names that no check has used before."""

    make: Callable[[], Store]
    durable: bool
    seed: int
    _numbers: Iterator[int] = field(default_factory=count)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Store]:
        """An open store, closed in the end."""
        store = self.make()
        try:
            await store.open()
            yield store
        finally:
            await _close(store, "in the end")

    def room(self) -> str:
        """A new name."""
        return f"room-{next(self._numbers)}"

    def random(self) -> Random:
        """The same chances each time."""
        return Random(self.seed)  # noqa: S311


_Check: TypeAlias = Callable[[_Storage, Store], Awaitable[None]]


def _require(held: bool, promise: int | str, broken: str) -> None:
    """`promise` is a number in the docstring of `Store`, or the name of its method whose description doesn't hold."""
    if not held:
        raise AssertionError(f"promise {promise}: {broken}" if isinstance(promise, int) else f"{promise}: {broken}")


def _same(found: Sequence[Record], expected: Sequence[Record], promise: int | str, what: str) -> None:
    offsets = [record.offset for record in found]
    wanted = [record.offset for record in expected]
    _require(
        offsets == wanted, promise, f"{what} has the offsets {_short(offsets)} where {_short(wanted)} are expected"
    )
    for one, other in zip(found, expected, strict=True):
        if one != other:  # or else the sentence would take longer than the store
            _require(False, promise, f"{what} has {_short(one)} where {_short(other)} was appended")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 200 else f"{text[:100]} … {text[-100:]}"


def _entries(room: str, count: int, *, user: str = "alice", label: str = "") -> list[Entry]:
    return [Entry(room, user, f'{{"body":"{label}{number}"}}') for number in range(count)]


def _record(entry: Entry, stamp: Stamp) -> Record:
    return entry.at(stamp.offset, stamp.time)


async def _append(store: Store, entries: Sequence[Entry]) -> list[Stamp]:
    stamps = await store.append(entries)
    found = len(stamps)
    _require(found == len(entries), "append", f"{found} stamps for {len(entries)} entries")
    return stamps


async def _fill(store: Store, room: str, count: int) -> list[Record]:
    """Appends `count` entries; what should be read then."""
    entries = _entries(room, count)
    return [_record(*pair) for pair in zip(entries, await _append(store, entries), strict=True)]


async def _read(
    store: Store, room: str, *, after: int | None = None, before: int | None = None, limit: int
) -> list[Record]:
    try:
        return await store.read(room, after=after, before=before, limit=limit)
    except Unrecoverable:
        asked = f"after={after} before={before} limit={limit}"
        raise AssertionError(f"read: {asked} raises Unrecoverable though all of it is kept") from None


async def _unrecoverable(store: Store, room: str, after: int, why: str) -> None:
    try:
        found = await store.read(room, after=after, limit=10)
    except Unrecoverable:
        return
    raise AssertionError(f"read: after={after} returns {_short(found)} instead of raising Unrecoverable: {why}")


async def _top(store: Store, room: str) -> int:
    return (await _tops(store, [room]))[room]


async def _tops(store: Store, rooms: Collection[str]) -> dict[str, int]:
    tops = await store.top(rooms)
    _require(tops.keys() == set(rooms), "top", f"of {_short(rooms)} it returns {_short(tops)}")
    return tops


async def _trim(store: Store, *, before: int = 0, keep: int = 0) -> None:
    """Lets go of all that is to be let go."""
    deadline = time.monotonic() + _SECONDS
    while await store.trim(before=before, keep=keep):
        _require(time.monotonic() < deadline, "trim", "never returns False")


async def _forget(store: Store, room: str, through: int) -> None:
    """Lets go of all that is to be let go."""
    deadline = time.monotonic() + _SECONDS
    while await store.forget(room, through):
        _require(time.monotonic() < deadline, "forget", "never returns False")


async def _later(store: Store, room: str, than: int) -> Stamp:
    """Appends until an event is later than the time `than`."""
    deadline = time.monotonic() + _SECONDS
    while True:
        stamp = (await _append(store, _entries(room, 1)))[0]
        if stamp.time > than:
            return stamp
        _require(time.monotonic() < deadline, "append", f"times stand still at {stamp.time}")
        await asyncio.sleep(0.002)


@contextlib.contextmanager
def _clock_turned_back() -> Iterator[None]:
    """The clock of this process is an hour slow, as after a correction."""
    seconds, nanoseconds = time.time, time.time_ns
    with (
        mock.patch("time.time", side_effect=lambda: seconds() - 3600),
        mock.patch("time.time_ns", side_effect=lambda: nanoseconds() - 3600 * 10**9),
    ):
        yield


async def _together(*jobs: Awaitable[None]) -> None:
    """Waits for all; raises what the first one raises, when the others have ended."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# --- appending -------------------------------------------------------------------------------------------------------


async def _offsets_count_from_one(storage: _Storage, store: Store) -> None:
    one, other = storage.room(), storage.room()
    for first in (1, 4, 7):
        entries = [entry for pair in zip(_entries(one, 3), _entries(other, 3), strict=True) for entry in pair]
        offsets = [stamp.offset for stamp in await _append(store, entries)]
        wanted = [offset for number in range(first, first + 3) for offset in (number, number)]
        _require(offsets == wanted, 1, f"two rooms in turn get the offsets {offsets} instead of {wanted}")


async def _batches_keep_their_order(storage: _Storage, store: Store) -> None:
    room = storage.room()
    expected = [record for size in (1, 2, 100, 1, 30) for record in await _fill(store, room, size)]
    _same(await _read(store, room, limit=_ALL), expected, 1, "a log")
    _require(await _append(store, []) == [], "append", "no entries get a stamp")


async def _times_are_milliseconds(storage: _Storage, store: Store) -> None:
    stamp = (await _append(store, _entries(storage.room(), 1)))[0]
    now = time.time_ns() // 1_000_000
    _require(abs(stamp.time - now) < _DAY, "append", f"the time {stamp.time} isn't in milliseconds since 1970")


async def _times_never_go_back(storage: _Storage, store: Store) -> None:
    room = storage.room()
    times = [record.time for record in await _fill(store, room, 3)]
    with _clock_turned_back():
        times += [record.time for record in await _fill(store, room, 3)]
        times += [record.time for record in await _read(store, room, limit=_ALL)][-1:]
        await _trim(store, before=times[-1] + 1)
        times += [record.time for record in await _fill(store, room, 2)]
    _require(times == sorted(times), "append", f"times go back when the clock does: {times}")


async def _keys_are_stored_once(storage: _Storage, store: Store) -> None:
    room = storage.room()
    first = Entry(room, "alice", '"first"', key="k")
    again = Entry(room, "alice", '"again"', "edit", "k")
    stamps = await _append(store, [first, again, *_entries(room, 1), again])
    stamps += await _append(store, [*_entries(room, 1), again, first])
    offsets, new = [stamp.offset for stamp in stamps], [stamp.new for stamp in stamps]
    _require(offsets == [1, 1, 2, 1, 3, 1, 1], 3, f"entries with the key of the first one get the offsets {offsets}")
    _require(new == [True, False, True, False, True, False, False], 3, f"`new` is {new}")
    times = {stamp.time for stamp in stamps if stamp.offset == 1}
    _require(len(times) == 1, 3, f"an entry stored once has several times: {times}")
    records = await _read(store, room, limit=_ALL)
    _require(len(records) == 3, 3, f"{len(records)} events are stored where 3 are expected")
    _same(records[:1], [_record(first, stamps[0])], 3, "what was stored first")


async def _keys_are_of_a_user_in_a_room(storage: _Storage, store: Store) -> None:
    room, other = storage.room(), storage.room()
    identities = [
        (room, "alice", "k"), (room, "bob", "k"), (other, "alice", "k"), (room, "alice", "K"), (room, "Alice", "k"),
        (room, "alice", "k "), (room, "a", "b:c"), (room, "a:b", "c"), (room, "a", "1"), (room, "a", "1.0"),
        (room, "a", "01"), (room, "a", "%"), (room, "a", "_"), (room, "a", "é"), (room, "a", "e\u0301"),
        (room, "a", "null"), (room, "a", "\\"), (room, "a", '"'), (room, "a", "'"), (room, "a", "\U0001f600"),
    ]  # fmt: skip
    entries = [Entry(room, user, "{}", key=key) for room, user, key in identities]
    for entry, stamp in zip(entries, await _append(store, entries), strict=True):
        _require(stamp.new, 3, f"{_short(entry)} is taken for another one")
    for entry, stamp in zip(entries, await _append(store, entries), strict=True):
        _require(not stamp.new, 3, f"{_short(entry)} is stored a second time")


async def _no_key_is_no_key(storage: _Storage, store: Store) -> None:
    room = storage.room()
    stamps = [stamp for _ in range(2) for stamp in await _append(store, [Entry(room, "alice", "{}")] * 2)]
    offsets = [stamp.offset for stamp in stamps]
    _require(offsets == [1, 2, 3, 4], 3, f"equal entries without a key get the offsets {offsets}")
    _require(all(stamp.new for stamp in stamps), 3, "an entry without a key isn't `new`")


async def _keys_end_with_their_event(storage: _Storage, store: Store) -> None:
    room = storage.room()
    gone, kept = Entry(room, "alice", "1", key="gone"), Entry(room, "alice", "2", key="kept")
    await _append(store, [gone, kept])
    await _trim(store, keep=1)
    stamps = [(stamp.offset, stamp.new) for stamp in await _append(store, [kept, gone, gone])]
    _require(stamps[0] == (2, False), 3, f"an event that is kept is stored again when an older one is gone: {stamps}")
    _require(stamps[1] == (3, True), 3, f"the key of an event that is gone is still known: {stamps}")
    _require(stamps[2] == (3, False), 3, f"a key isn't known again when its event is stored again: {stamps}")


async def _all_or_none(storage: _Storage, store: Store) -> None:
    for poison in ("\x00", "\ud800"):  # nobody appends these: the one thing that some stores refuse
        room, other = storage.room(), storage.room()
        entries = [*_entries(room, 2), Entry(other, "alice", "{}", key="k"), Entry(room, "alice", poison)]
        wanted = {room: 3, other: 1}
        try:
            await _append(store, [*entries, *_entries(room, 2)])
        except Exception:  # of whatever kind; the caller was told
            wanted = {room: 0, other: 0}
        else:
            wanted = {room: 5, other: 1}
        tops = await _tops(store, [room, other])
        _require(tops == wanted, 4, f"an append that failed has stored a part: {tops} instead of {wanted}")
        stamps = await _append(store, [Entry(room, "alice", "{}"), Entry(other, "alice", "{}", key="k")])
        offsets = [stamp.offset for stamp in stamps]
        _require(offsets == [wanted[room] + 1, 1], 4, f"after a failure the next append gets the offsets {offsets}")


async def _all_or_none_when_cancelled(storage: _Storage, store: Store) -> None:
    one, other = storage.room(), storage.room()
    for number, seconds in enumerate((0, 0, 0.0005, 0.001, 0.002, 0.005)):
        entries = _entries(one, 20, label=f"{number}-") + _entries(other, 20, label=f"{number}-")
        task = asyncio.ensure_future(store.append(entries))
        await asyncio.sleep(seconds)
        task.cancel()
        await asyncio.wait([task])
        task.cancelled() or task.exception()
    await _append(store, [*_entries(one, 20, label="6-"), *_entries(other, 20, label="6-")])
    logs = [await _read(store, room, limit=_ALL) for room in (one, other)]
    _contiguous(logs[0], "a log after cancelled appends")
    bodies = [[record.data for record in log] for log in logs]
    stored = [entry.data for number in range(7) for entry in _entries(one, 20, label=f"{number}-")]
    whole = [data for data in stored if data.split("-")[0] in {body.split("-")[0] for body in bodies[0]}]
    _require(bodies[0] == bodies[1] == whole, 4, "a cancelled append has stored a part of its entries")


def _contiguous(records: Sequence[Record], what: str) -> None:
    offsets = [record.offset for record in records]
    wanted = list(range(offsets[0], offsets[0] + len(offsets))) if offsets else []
    _require(offsets == wanted, 1, f"{what} has holes, or isn't in order: {_short(offsets)}")


_TEXTS: Final = (
    "{}", "[]", '""', "null", "0", "-0", "1.0", "1e400", "12345678901234567890123", '"123"', "true",
    '{"body":"plain"}', '{ "b" : 1.50 ,\n\t"a":[ ] } ', '{"a":1,"a":2}', '{"":""}',
    '{"body":"\U0001f600 \U00020bb7 \U0010fffd e\u0301 \u00e9 \u202e \u2028 \u2029 \ufeff \uffff \x7f \x85"}',
    r'{"body":"\ud83d\ude00 \u00e9 \u0001 \u001f \u0000 \b\f\n\r\t \" \\ \/ \\u0000 \\"}',
    r"""{"body":"' '' \" \"\" ` ; -- /* $1 %s %(a)s ? :a {} ${a} <b>&amp;</b>"}""",
)  # fmt: skip
_WORDS: Final = (
    "ünï",
    "\U0001f600",
    "a'b",
    'a"b',
    "a\\b",
    "%s",
    "$1",
    "null",
    "123",
    "a b",
    "A B",
    "{1,2}",
    "e\u0301",
    "é",
)


async def _data_is_kept_verbatim(storage: _Storage, store: Store) -> None:
    texts = [*_TEXTS, *(f'"{part * (32_000 // len(part))}"' for part in ("x", "\U0001f600", r"\n", r"\u0001"))]
    room = storage.room()
    entries = [Entry(room, "alice", text) for text in texts]
    entries += [Entry(room, word, "{}", key=word) for word in _WORDS]
    entries += [Entry(room, "alice", "{}", kind) for kind in ("edit", "reaction", "read", "x-other")]
    entries += [Entry(room, "alice", "{}", meta=text) for text in (None, *texts)]
    await _kept(store, entries)
    await _kept(store, [Entry(f"{room}{word}", "alice", f'"{number}"') for number, word in enumerate(_WORDS)])


async def _large_batches_are_kept(storage: _Storage, store: Store) -> None:
    room = storage.room()
    await _kept(store, [Entry(room, "alice", f'"{number}{"y" * 32_000}"') for number in range(32)])
    await _kept(store, _entries(storage.room(), 3000))


async def _kept(store: Store, entries: Sequence[Entry]) -> None:
    """Appends, and finds the same in the rooms."""
    expected: dict[str, list[Record]] = {}
    for entry, stamp in zip(entries, await _append(store, entries), strict=True):
        expected.setdefault(entry.room, []).append(_record(entry, stamp))
    for room, records in expected.items():
        _same(await _read(store, room, after=0, limit=_ALL), records, "read", f"the log of room {room!r}")
        _same(await _read(store, room, limit=len(records)), records, "read", f"the end of room {room!r}")


# --- reading ---------------------------------------------------------------------------------------------------------


async def _reads_after(storage: _Storage, store: Store) -> None:
    room = storage.room()
    log = await _fill(store, room, 10)
    for after in range(11):
        for limit in (0, 1, 2, 9, 10, 11, _ALL):
            found = await _read(store, room, after=after, limit=limit)
            _same(found, log[after : after + limit], "read", f"after={after} limit={limit} of 10 events")
    for after in (11, 12, _BEYOND):
        await _unrecoverable(store, room, after, "the log never came so far")


async def _reads_before(storage: _Storage, store: Store) -> None:
    room = storage.room()
    log = await _fill(store, room, 10)
    for before in (None, 0, 1, 2, 5, 10, 11, 12, _BEYOND):
        end = 10 if before is None else min(10, max(0, before - 1))
        for limit in (0, 1, 2, 9, 10, 11, _ALL):
            found = await _read(store, room, before=before, limit=limit)
            _same(found, log[max(0, end - limit) : end], "read", f"before={before} limit={limit} of 10 events")


async def _reads_of_unknown_rooms(storage: _Storage, store: Store) -> None:
    room = storage.room()
    for after, before in ((0, None), (None, None), (None, 1), (None, 10)):
        _same(await _read(store, room, after=after, before=before, limit=10), [], "read", "a room without events")
    for after in (1, 2, _BEYOND):
        await _unrecoverable(store, room, after, "the room has no events")
    first = (await _append(store, _entries(room, 1)))[0].offset
    _require(first == 1, 1, f"the first event of a room that was read has the offset {first}")


async def _reads_of_trimmed_rooms(storage: _Storage, store: Store) -> None:
    room = storage.room()
    log = await _fill(store, room, 10)
    await _trim(store, keep=4)
    for after in range(6):
        await _unrecoverable(store, room, after, "6 events are let go")
    await _unrecoverable(store, room, 11, "the log never came so far")
    for after in range(6, 11):
        for limit in (1, 3, _ALL):
            found = await _read(store, room, after=after, limit=limit)
            _same(found, log[after : after + limit], "read", f"after={after} limit={limit}, 6 of 10 events let go,")
    for before in (None, 1, 6, 7, 8, 9, 11, 12):
        end = 10 if before is None else min(10, before - 1)
        for limit in (1, 3, _ALL):
            found = await _read(store, room, before=before, limit=limit)
            expected = log[max(6, end - limit) : max(6, end)]
            _same(found, expected, "read", f"before={before} limit={limit}, 6 of 10 events let go,")


async def _tops_of_many_rooms(storage: _Storage, store: Store) -> None:
    rooms = [storage.room() for _ in range(1000)]
    for known in (rooms, rooms[:500]):
        await _append(store, [Entry(room, "alice", "{}") for room in known])
    unknown = [storage.room() for _ in range(10)]
    wanted = dict.fromkeys(rooms[:500], 2) | dict.fromkeys(rooms[500:], 1) | dict.fromkeys(unknown, 0)
    tops = await _tops(store, list(wanted))
    wrong = {room: top for room, top in tops.items() if top != wanted[room]}
    _require(not wrong, "top", f"of 1000 rooms with 1 or 2 events and 10 without these are wrong: {_short(wrong)}")
    _require(await store.top([]) == {}, "top", "of no rooms it returns some")
    _require(await _top(store, rooms[0].upper()) == 0, "top", "rooms are taken for others whose name is alike")


async def _untouched_rooms_take_no_space(storage: _Storage, store: Store) -> None:
    await _ask_for_unknown_rooms(storage, store)
    started = not tracemalloc.is_tracing()
    if started:
        tracemalloc.start()
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        await _ask_for_unknown_rooms(storage, store)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        if started:
            tracemalloc.stop()
    _require(grown < 100_000, 6, f"{grown // 1000} kB more memory is in use after 1300 unknown rooms were asked for")


async def _ask_for_unknown_rooms(storage: _Storage, store: Store) -> None:
    tops = await _tops(store, [f"{storage.room()}-{'x' * 100}" for _ in range(1000)])
    _require(not any(tops.values()), 6, "rooms without events have a top")
    for _ in range(300):
        room = f"{storage.room()}-{'y' * 100}"
        await _forget(store, room, 1)
        found = await _read(store, room, limit=1)
        _require(found == [], 6, f"a room without events has {_short(found)}")


# --- letting go ------------------------------------------------------------------------------------------------------


async def _trims_by_count(storage: _Storage, store: Store) -> None:
    long, short, equal = storage.room(), storage.room(), storage.room()
    logs = {room: await _fill(store, room, count) for room, count in ((long, 2500), (short, 2), (equal, 3))}
    await _trim(store)
    await _keeps(store, logs, "trim with before=0 keep=0, which lets go of nothing,")
    await _trim(store, keep=3)
    await _keeps(store, {room: log[-3:] for room, log in logs.items()}, "trim with keep=3")


async def _trims_by_age(storage: _Storage, store: Store) -> None:
    room, quiet = storage.room(), storage.room()
    old = await _fill(store, room, 20)
    await _fill(store, quiet, 700)
    young = await _later(store, room, old[-1].time + 2)
    log = await _read(store, room, limit=_ALL)
    at = next(record.time for record in log if record.time > old[-1].time)
    for before in (old[0].time, at, young.time, young.time + 1):
        await _trim(store, before=before)
        kept = [record for record in log if record.time >= before]
        await _keeps(store, {room: kept}, f"trim with before={before} of times from {old[0].time} to {young.time}")
    await _keeps(store, {quiet: []}, "trim with before= a later time, of a quiet room,")
    _require(await _tops(store, [room, quiet]) == {room: len(log), quiet: 700}, 5, "a top falls when events are let go")


async def _forgets(storage: _Storage, store: Store) -> None:
    room, other, unknown = storage.room(), storage.room(), storage.room()
    log, others = await _fill(store, room, 2500), await _fill(store, other, 3)
    for through, kept in ((0, log), (1, log[1:]), (1, log[1:]), (2490, log[2490:]), (10, log[2490:]), (9999, [])):
        await _forget(store, room, through)
        await _forget(store, unknown, through)
        await _keeps(store, {room: kept, other: others, unknown: []}, f"forget through={through} of 2500 events")
    for after in (0, 2499):
        await _unrecoverable(store, room, after, "all events are forgotten")
    _same(await _read(store, room, after=2500, limit=9), [], "forget", "what came after all that is forgotten")
    later = await _fill(store, room, 2)
    _require(later[0].offset == 2501, 5, f"after 2500 forgotten events comes the offset {later[0].offset}")
    await _keeps(store, {room: later}, "forget through=9999 of 2500 events, and 2 more events,")
    await _fill(store, unknown, 1)
    _require(await _top(store, unknown) == 1, "forget", "a room that nobody had appended to got a top")


async def _forgotten_keys_are_free(storage: _Storage, store: Store) -> None:
    room = storage.room()
    entries = [Entry(room, "alice", "{}", key=key) for key in "ab"]
    await _append(store, entries)
    await _forget(store, room, 1)
    stamps = await _append(store, entries)
    found = [(stamp.offset, stamp.new) for stamp in stamps]
    _require(found == [(3, True), (2, False)], 3, f"with the first of two keys forgotten, both again are {found}")


async def _trims_by_both(storage: _Storage, store: Store) -> None:
    old, young = storage.room(), storage.room()
    await _fill(store, old, 10)
    last = (await _read(store, old, limit=1))[0]
    await _later(store, storage.room(), last.time)
    log = await _fill(store, young, 10)
    await _trim(store, before=last.time + 1, keep=6)
    await _keeps(store, {old: [], young: log[-6:]}, f"trim with before={last.time + 1} keep=6")


async def _offsets_go_on(storage: _Storage, store: Store) -> None:
    room = storage.room()
    for first in (1, 6, 11):
        log = await _fill(store, room, 5)
        _require(log[0].offset == first, 5, f"when all was let go offsets start at {log[0].offset}, not at {first}")
        await _trim(store, before=log[-1].time + 1)
        await _keeps(store, {room: []}, "trim with before= a later time")
        top = await _top(store, room)
        _require(top == first + 4, 5, f"when all was let go the top is {top} instead of {first + 4}")
        _same(await _read(store, room, after=top, limit=10), [], "read", "after= the top, all let go,")
        await _unrecoverable(store, room, top - 1, "all events are let go")


async def _keeps(store: Store, logs: dict[str, list[Record]], what: str) -> None:
    for room, log in logs.items():
        _same(await _read(store, room, limit=_ALL), log, 5, f"a log after {what}")


async def _reads_while_others_write(storage: _Storage, store: Store) -> None:
    room = storage.room()
    await _fill(store, room, 200)
    done = asyncio.Event()
    await _together(_append_and_trim(store, room, done), *(_read_meanwhile(store, room, done) for _ in range(3)))


async def _append_and_trim(store: Store, room: str, done: asyncio.Event) -> None:
    try:
        for _ in range(10):
            await _fill(store, room, 20)
            await asyncio.sleep(0)
            await store.trim(before=0, keep=30)
            await asyncio.sleep(0)
    finally:
        done.set()


async def _read_meanwhile(store: Store, room: str, done: asyncio.Event) -> None:
    seen = 0
    while not done.is_set():
        records = await _read(store, room, limit=_ALL)
        _contiguous(records, "a log that is read while others write and trim")
        _require(records[-1].offset >= seen, 1, f"event {seen} isn't there any more, though no later one is")
        seen = records[-1].offset
        with contextlib.suppress(Unrecoverable):
            found = await store.read(room, after=seen - 40, limit=30)
            _contiguous([Record(seen - 40, 0, "", "", ""), *found], "what is read after an offset meanwhile")
        await asyncio.sleep(0)


# --- opening and closing ---------------------------------------------------------------------------------------------


async def _closes_always(storage: _Storage, store: Store) -> None:
    _require(isinstance(store.epoch, str) and store.epoch != "", "epoch", f"it is {store.epoch!r}")
    await _close(store, "after it was open")
    await _close(store, "a second time")
    await _close(storage.make(), "without being opened")
    for turns in range(4):
        broken = storage.make()
        task = asyncio.ensure_future(broken.open())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        task.cancelled() or task.exception()
        await _close(broken, "after opening was broken off")


async def _close(store: Store, when: str) -> None:
    try:
        await store.close()
    except Exception as error:
        raise AssertionError(f"close: called {when} it raises {error!r}") from error


async def _nothing_is_shared(storage: _Storage, store: Store) -> None:
    async with storage.open() as other:
        _require(store.epoch != other.epoch, "epoch", f"two storages have the same one: {store.epoch!r}")


async def _survives_reopening(storage: _Storage, store: Store) -> None:
    room, empty = storage.room(), storage.room()
    await _fill(store, empty, 3)
    await _trim(store, before=(await _later(store, storage.room(), 0)).time + 1)
    keyed = Entry(room, "alice", "{}", key="k")
    log = await _fill(store, room, 5)
    log.append(_record(keyed, (await _append(store, [keyed]))[0]))
    await _trim(store, keep=4)
    epoch = store.epoch
    await store.close()
    async with storage.open() as again:
        _require(again.epoch == epoch, "epoch", f"it was {epoch!r} and is {again.epoch!r} when opened again")
        tops = await _tops(again, [room, empty])
        _require(tops == {room: 6, empty: 3}, 2, f"tops of 6 and 3 are {list(tops.values())} when opened again")
        _same(await _read(again, room, limit=_ALL), log[-4:], 2, "a log that is opened again")
        await _unrecoverable(again, room, 1, "2 events are let go")
        await _goes_on(again, keyed, log[-1])


async def _goes_on(again: Store, keyed: Entry, last: Record) -> None:
    with _clock_turned_back():
        stamps = await _append(again, [keyed, *_entries(keyed.room, 1)])
    known = Stamp(last.offset, last.time, new=False)
    _require(stamps[0] == known, 3, f"when opened again a known key gets {stamps[0]} instead of {known}")
    _require(stamps[1].offset == 7, 1, f"when opened again offsets go on with {stamps[1].offset} after 6")
    _require(stamps[1].time >= last.time, "append", "when opened again times go back")


async def _stores_see_each_other(storage: _Storage, store: Store) -> None:
    room = storage.room()
    log: list[Record] = []
    async with storage.open() as other:
        _require(store.epoch == other.epoch, "epoch", f"two stores have {store.epoch!r} and {other.epoch!r}")
        for one, two in ((store, other), (other, store)) * 3:
            entry = Entry(room, "alice", f'"{len(log)}"', key=f"{len(log)}")
            stamp = (await _append(one, [entry]))[0]
            log.append(_record(entry, stamp))
            _require(await _top(two, room) == len(log), 1, "another store's `top` misses what was appended")
            _same(await _read(two, room, limit=_ALL), log, 1, "a log that another store appended to")
            again = (await _append(two, [entry]))[0]
            known = Stamp(stamp.offset, stamp.time, new=False)
            _require(again == known, 3, f"a key that another store appended gets {again} instead of {known}")
        await _trim(store, keep=2)
        await _keeps(other, {room: log[-2:]}, "trim with keep=2 in another store")
        await _unrecoverable(other, room, 3, "another store has let go of it")


async def _stores_append_at_once(storage: _Storage, store: Store) -> None:
    """Several stores stand for several processes."""
    rooms = [storage.room(), storage.room()]
    async with contextlib.AsyncExitStack() as stack:
        stores = [store, *[await stack.enter_async_context(storage.open()) for _ in range(3)]]
        writers = [_Writer(one, rooms, storage.random(), f"user-{number}") for number, one in enumerate(stores[:3])]
        watchers = [_Watcher(one, room) for one in stores[2:] for room in rooms]
        done = asyncio.Event()
        await _together(_write_all(writers, done), *(watcher.watch(done) for watcher in watchers))
    for watcher in watchers:
        _same_as_acknowledged(watcher, [acknowledged for writer in writers for acknowledged in writer.acknowledged])
    for writer in writers:
        writer.check_order()


@dataclass
class _Writer:
    """Appends to `rooms`, also what others append at the same time, by the same key."""

    store: Store
    rooms: list[str]
    random: Random
    user: str
    acknowledged: list[tuple[Entry, Stamp]] = field(default_factory=list)

    async def write(self) -> None:
        """Appends a few batches, with pauses as the field has them."""
        for turn in range(12):
            entries = [Entry(self.random.choice(self.rooms), self.user, f'"{turn}-{number}"') for number in range(3)]
            entries += [Entry(room, "all", f'"{self.user}"', key=f"{turn}") for room in self.rooms]
            self.random.shuffle(entries)
            self.acknowledged += zip(entries, await _append(self.store, entries), strict=True)
            await asyncio.sleep(self.random.random() / 200)

    def check_order(self) -> None:
        """What it appended stands in the order in which it appended."""
        for room in self.rooms:
            own = [stamp.offset for entry, stamp in self.acknowledged if entry.room == room and stamp.new]
            _require(own == sorted(own), 1, f"what one store appends isn't in order: {_short(own)}")


@dataclass
class _Watcher:
    """Reads `room` over and over."""

    store: Store
    room: str
    seen: list[Record] = field(default_factory=list)

    async def watch(self, done: asyncio.Event) -> None:
        """Reads until `done` is set, and once more."""
        last = False
        while not last:
            last = done.is_set()
            await self.look()
            await asyncio.sleep(0)

    async def look(self) -> None:
        """Reads what is new, and all again."""
        top = await _top(self.store, self.room)
        while found := await _read(self.store, self.room, after=len(self.seen), limit=7):
            self.seen += found
            _contiguous([Record(0, 0, "", "", ""), *self.seen], "a log that several stores append to")
        _require(len(self.seen) >= top, 1, f"the top is {top}, but only {len(self.seen)} events can be read")
        known = len(self.seen)
        whole = await _read(self.store, self.room, limit=_ALL)
        _same(whole[:known], self.seen, 1, "the part of a log that was read before")


async def _write_all(writers: Sequence[_Writer], done: asyncio.Event) -> None:
    try:
        await _together(*(writer.write() for writer in writers))
    finally:
        done.set()


def _same_as_acknowledged(watcher: _Watcher, acknowledged: Sequence[tuple[Entry, Stamp]]) -> None:
    told = sorted(
        (_record(entry, stamp) for entry, stamp in acknowledged if stamp.new and entry.room == watcher.room),
        key=lambda record: record.offset,
    )
    _same(watcher.seen, told, 1, "a log that several stores appended to")
    times = [record.time for record in told]
    _require(times == sorted(times), "append", f"times go back when several stores append: {_short(times)}")
    known = {record.key: (record.offset, record.time) for record in told if record.key}
    for entry, stamp in acknowledged:
        if entry.key and entry.room == watcher.room:
            found = (stamp.offset, stamp.time)
            _require(
                known.get(entry.key) == found, 3, f"stores that append one key at once get different stamps: {stamp}"
            )


# --- at random -------------------------------------------------------------------------------------------------------


class _Model:
    """What a store should have in `rooms`."""

    def __init__(self, rooms: Sequence[str]) -> None:
        self.rooms = rooms
        self.kept: dict[str, list[Record]] = {room: [] for room in rooms}
        self.tops = dict.fromkeys(rooms, 0)
        self.times = dict.fromkeys(rooms, 0)

    def append(self, entry: Entry, stamp: Stamp) -> None:
        """Takes over `stamp` if it may be so."""
        known = [record for record in self.kept[entry.room] if record.key is not None]
        for record in known:
            if (record.user, record.key) == (entry.user, entry.key):
                wanted = Stamp(record.offset, record.time, new=False)
                return _require(stamp == wanted, 3, f"{_short(entry)} is known and gets {stamp} instead of {wanted}")
        offset = self.tops[entry.room] + 1
        _require(stamp.new, 3, f"{_short(entry)} isn't known, but said to be")
        _require(stamp.offset == offset, 1, f"offset {stamp.offset} instead of {offset}")
        _require(stamp.time >= self.times[entry.room], "append", f"{stamp} is earlier than the event before")
        self.tops[entry.room], self.times[entry.room] = offset, stamp.time
        self.kept[entry.room].append(_record(entry, stamp))
        return None

    def read(self, room: str, after: int | None, before: int | None, limit: int) -> list[Record] | None:
        """None: unrecoverable."""
        kept, top = self.kept[room], self.tops[room]
        if after is not None:
            later = [record for record in kept if record.offset > after][:limit]
            return later if top - len(kept) <= after <= top else None
        earlier = [record for record in kept if before is None or record.offset < before]
        return earlier[max(0, len(earlier) - limit) :]

    def forget(self, room: str, through: int) -> None:
        self.kept[room] = [record for record in self.kept[room] if record.offset > through]

    def trim(self, before: int, keep: int) -> None:
        for room, kept in self.kept.items():
            young = [record for record in kept if record.time >= before]
            self.kept[room] = young[-keep:] if keep else young


async def _random_append(store: Store, model: _Model, random: Random) -> None:
    entries = [
        Entry(
            random.choice(model.rooms), random.choice(("alice", "bob")), random.choice(_TEXTS),
            random.choice(("message", "edit")), random.choice((None, None, "a", "b", "c")),
            random.choice((None, *_TEXTS)),
        )
        for _ in range(random.choice((1, 1, 2, 5)))
    ]  # fmt: skip
    for entry, stamp in zip(entries, await _append(store, entries), strict=True):
        model.append(entry, stamp)


async def _random_read(store: Store, model: _Model, random: Random) -> None:
    room = random.choice(model.rooms)
    offset = random.randint(0, model.tops[room] + 2)
    after, before = random.choice(((offset, None), (None, offset), (None, None)))
    limit = random.choice((0, 1, 3, _ALL))
    expected = model.read(room, after, before, limit)
    if expected is None:
        await _unrecoverable(store, room, after or 0, "it isn't kept, or not there yet")
    else:
        found = await _read(store, room, after=after, before=before, limit=limit)
        _same(found, expected, "read", f"after={after} before={before} limit={limit}")


async def _random_top(store: Store, model: _Model, random: Random) -> None:
    rooms = [room for room in model.rooms if random.random() < 0.5]
    tops = await _tops(store, rooms)
    wanted = {room: model.tops[room] for room in rooms}
    _require(tops == wanted, "top", f"{tops} instead of {wanted}")


async def _random_trim(store: Store, model: _Model, random: Random) -> None:
    before = random.choice([0, *model.times.values()])
    keep = random.choice((0, 1, 3, 10))
    await _trim(store, before=before, keep=keep)
    model.trim(before, keep)
    await _keeps(store, model.kept, f"trim with before={before} keep={keep}")


async def _random_forget(store: Store, model: _Model, random: Random) -> None:
    room = random.choice(model.rooms)
    through = random.randint(0, model.tops[room] + 2)
    await _forget(store, room, through)
    model.forget(room, through)
    await _keeps(store, model.kept, f"forget room={room!r} through={through}")


async def _random_run(storage: _Storage, store: Store) -> None:
    async with contextlib.AsyncExitStack() as stack:
        stores = [store, await stack.enter_async_context(storage.open())] if storage.durable else [store]
        await check_at_random(stores, storage.random(), steps=150, prefix=f"{storage.room()}-")


_CHECKS: Final[tuple[_Check, ...]] = (
    _offsets_count_from_one,
    _batches_keep_their_order,
    _times_are_milliseconds,
    _keys_are_stored_once,
    _keys_are_of_a_user_in_a_room,
    _no_key_is_no_key,
    _all_or_none,
    _all_or_none_when_cancelled,
    _data_is_kept_verbatim,
    _large_batches_are_kept,
    _reads_after,
    _reads_before,
    _reads_of_unknown_rooms,
    _tops_of_many_rooms,
    _untouched_rooms_take_no_space,
    _trims_by_count,
    _trims_by_age,
    _trims_by_both,
    _forgets,
    _forgotten_keys_are_free,
    _offsets_go_on,
    _reads_of_trimmed_rooms,
    _keys_end_with_their_event,
    _times_never_go_back,
    _reads_while_others_write,
    _random_run,
    _closes_always,
)
_SHARED: Final[tuple[_Check, ...]] = (_survives_reopening, _stores_see_each_other, _stores_append_at_once)
_ALONE: Final[tuple[_Check, ...]] = (_nothing_is_shared,)
