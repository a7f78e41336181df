"""The suite for stores passes what keeps the promises, and catches what breaks one."""

import asyncio
import time
import unicodedata
from collections.abc import Callable, Collection, Sequence
from itertools import count
from pathlib import Path

import msgspec
import pytest

from chatserver.errors import StorageUnavailable, Unrecoverable
from chatserver.store import Entry, Record, Stamp, Store, open_store
from chatserver.store.memory import Log, Memory
from chatserver.testing import check_store
from tests.postgres import Postgres


async def test_memory_keeps_the_promises() -> None:
    await check_store(Memory, durable=False)


async def test_sqlite_keeps_the_promises(tmp_path: Path) -> None:
    await check_store(lambda: open_store(f"sqlite:///{tmp_path}/chat.db"))


async def test_postgresql_keeps_the_promises(postgres: Postgres) -> None:
    url = postgres.url()
    await check_store(lambda: open_store(url))


@pytest.mark.parametrize("seed", range(1, 6))
async def test_other_seeds_find_nothing_else(seed: int) -> None:
    await check_store(Memory, durable=False, seed=seed)


class Shared(Memory):
    """In memory as well, but all stores of a `storage` share it: the ground on which faults are planted."""

    def __init__(self, storage: "Shared | None" = None) -> None:
        super().__init__()
        if storage:
            self.epoch = storage.epoch
            self._logs = storage._logs


def sharing(kind: type[Shared]) -> Callable[[], Store]:
    """Makes stores of one storage."""
    storage = kind()
    return lambda: kind(storage)


async def test_stores_that_share_their_memory_keep_the_promises() -> None:
    await check_store(sharing(Shared))


def changed(record: Record, **fields: object) -> Record:
    return msgspec.structs.replace(record, **fields)


def keys(log: Log) -> dict[tuple[str, str], Record]:
    return {(record.user, record.key): record for record in log.records if record.key is not None}


class HoleInOffsets(Shared):
    async def append(self, entries: Sequence[Entry]) -> list[Stamp]:
        stamps = await super().append(entries)
        return [Stamp(stamp.offset + stamp.offset // 100, stamp.time, stamp.new) for stamp in stamps]


class StartsAtZero(Shared):
    async def append(self, entries: Sequence[Entry]) -> list[Stamp]:
        return [Stamp(stamp.offset - 1, stamp.time, stamp.new) for stamp in await super().append(entries)]


class OneCounterForAll(Shared):
    numbers = count(1)

    async def append(self, entries: Sequence[Entry]) -> list[Stamp]:
        return [Stamp(next(self.numbers), stamp.time, stamp.new) for stamp in await super().append(entries)]


class SortsBatches(Shared):
    async def append(self, entries: Sequence[Entry]) -> list[Stamp]:
        by_data = sorted(range(len(entries)), key=lambda number: entries[number].data)
        stamps = await super().append([entries[number] for number in by_data])
        return [stamps[by_data.index(number)] for number in range(len(entries))]


class Late(Shared):
    """Numbers events before it shows them, as a sequence of a database does."""

    def __init__(self, storage: "Late | None" = None) -> None:
        super().__init__(storage)
        self.taken: dict[str, int] = storage.taken if storage else {}

    async def append(self, entries: Sequence[Entry]) -> list[Stamp]:
        return await asyncio.shield(asyncio.ensure_future(self.add(entries)))

    async def add(self, entries: Sequence[Entry]) -> list[Stamp]:
        stamps = []
        for entry in entries:
            log = self._logs.setdefault(entry.room, Log())
            known = log._keys.get((entry.user, entry.key or ""))
            if entry.key and known:
                stamps.append(Stamp(known.offset, known.time, new=False))
                continue
            record = self.take(log, entry)
            await asyncio.sleep(0 if record.offset % 3 else 0.001)
            log.records.append(record)
            log.records.sort(key=lambda record: record.offset)
            stamps.append(Stamp(record.offset, record.time))
        return stamps

    def take(self, log: Log, entry: Entry) -> Record:
        offset = max(log.top, self.taken.get(entry.room, 0)) + 1
        self.taken[entry.room] = offset
        log._time = max(log._time, time.time_ns() // 1_000_000)
        record = Record(offset, log._time, entry.kind, entry.user, entry.data, entry.key, entry.meta)
        if entry.key:
            log._keys[entry.user, entry.key] = record
        return record


class LosesARace(Shared):
    """Reads the top, and writes after others had their turn."""

    async def append(self, entries: Sequence[Entry]) -> list[Stamp]:
        rooms = {entry.room for entry in entries}
        before = {room: list(self._logs[room].records) for room in rooms if room in self._logs}
        stamps = await super().append(entries)
        after = {room: list(self._logs[room].records) for room in rooms}
        for room in rooms:
            self._logs[room].records[:] = before.get(room, [])
        await asyncio.sleep(0)
        for room in rooms:
            self._logs[room].records[:] = after[room]
        return stamps


class TopComesFirst(Shared):
    """Tells of events that can't be read yet."""

    async def read(self, room: str, *, after: int | None = None, before: int | None = None, limit: int) -> list[Record]:
        if after is None:
            return await super().read(room, before=before, limit=limit)
        found = await super().read(room, after=after, limit=limit)
        return found if limit != 7 else found[:-1]


class NotDurable(Shared):
    """What is appended reaches the storage when there is time."""

    async def close(self) -> None:
        for log in self._logs.values():
            log.records[-1:] = []


class HalfOfABatch(Shared):
    """A transaction for each entry, and a database that refuses some text."""

    async def append(self, entries: Sequence[Entry]) -> list[Stamp]:
        stamps = []
        for entry in entries:
            if "\x00" in entry.data:
                raise StorageUnavailable
            stamps += await super().append([entry])
        return stamps


class HalfWhenCancelled(Shared):
    async def append(self, entries: Sequence[Entry]) -> list[Stamp]:
        stamps = []
        for number, entry in enumerate(entries):
            stamps += await super().append([entry])
            if number % 30 == 10:
                await asyncio.sleep(0)
        return stamps


class OffsetsSpentOnFailure(Shared):
    async def append(self, entries: Sequence[Entry]) -> list[Stamp]:
        if any(entry.data == "\x00" for entry in entries):
            self._logs.setdefault(entries[0].room, Log()).trimmed += 1
            raise StorageUnavailable
        return await super().append(entries)


class StampMissing(Shared):
    async def append(self, entries: Sequence[Entry]) -> list[Stamp]:
        return [stamp for stamp in await super().append(entries) if stamp.new]


class KeysIgnored(Shared):
    async def append(self, entries: Sequence[Entry]) -> list[Stamp]:
        return await super().append([msgspec.structs.replace(entry, key=None) for entry in entries])


class KeysOfOneBatchIgnored(Shared):
    """Looks for keys in the log only, before it adds anything."""

    async def append(self, entries: Sequence[Entry]) -> list[Stamp]:
        seen = set()
        for number, entry in enumerate(entries):
            identity = (entry.room, entry.user, entry.key)
            if entry.key and identity in seen:
                entries = [*entries[:number], msgspec.structs.replace(entry, key=None), *entries[number + 1 :]]
            seen.add(identity)
        return await super().append(entries)


class KeysBy(Shared):
    """Knows entries by their `identity`, for ever."""

    def __init__(self, storage: "KeysBy | None" = None) -> None:
        super().__init__(storage)
        self.known: dict[object, Stamp] = storage.known if storage else {}

    def identity(self, entry: Entry) -> object:
        return entry.key and (entry.room, entry.user, entry.key)

    async def append(self, entries: Sequence[Entry]) -> list[Stamp]:
        return [self.known.get(self.identity(entry)) or await self.add(entry) for entry in entries]

    async def add(self, entry: Entry) -> Stamp:
        stamp = (await super().append([entry]))[0]
        if self.identity(entry):
            self.known[self.identity(entry)] = Stamp(stamp.offset, stamp.time, new=False)
        return stamp


class KeysRememberedTooLong(KeysBy):
    pass


class KeysOfAllUsers(KeysBy):
    def identity(self, entry: Entry) -> object:
        return entry.key and (entry.room, entry.key)


class KeysOfAllRooms(KeysBy):
    def identity(self, entry: Entry) -> object:
        return entry.key and (entry.user, entry.key)


class KeysGlued(KeysBy):
    def identity(self, entry: Entry) -> object:
        return entry.key and f"{entry.room}:{entry.user}:{entry.key}"


class KeysWithoutCase(KeysBy):
    def identity(self, entry: Entry) -> object:
        return entry.key and (entry.room, entry.user, entry.key.lower())


class KeysNormalized(KeysBy):
    def identity(self, entry: Entry) -> object:
        return entry.key and (entry.room, entry.user, unicodedata.normalize("NFC", entry.key))


class NoKeyIsAKey(KeysBy):
    def identity(self, entry: Entry) -> object:
        return (entry.room, entry.user, entry.data, entry.key, entry.meta)


class RoomsWithoutCase(Shared):
    async def append(self, entries: Sequence[Entry]) -> list[Stamp]:
        return await super().append([msgspec.structs.replace(entry, room=entry.room.lower()) for entry in entries])

    async def read(self, room: str, *, after: int | None = None, before: int | None = None, limit: int) -> list[Record]:
        return await super().read(room.lower(), after=after, before=before, limit=limit)

    async def top(self, rooms: Collection[str]) -> dict[str, int]:
        tops = await super().top([room.lower() for room in rooms])
        return {room: tops[room.lower()] for room in rooms}


class KeysForgottenTooSoon(Shared):
    """Forgets all of them when it trims."""

    async def trim(self, *, before: int, keep: int) -> bool:
        for log in self._logs.values():
            log._keys = keys(log)
        more = await super().trim(before=before, keep=keep)
        for log in self._logs.values():
            log._keys = {}
        return more


class KeysForgottenByOthers(Shared):
    """Knows what it has appended itself."""

    def __init__(self, storage: "Shared | None" = None) -> None:
        super().__init__(storage)
        self.own: dict[str, dict[tuple[str, str], Record]] = {}

    async def append(self, entries: Sequence[Entry]) -> list[Stamp]:
        for room in {entry.room for entry in entries}:
            log = self._logs.setdefault(room, Log())
            kept = {record.offset for record in log.records}
            own = self.own.setdefault(room, {})
            log._keys = {identity: record for identity, record in own.items() if record.offset in kept}
        stamps = await super().append(entries)
        for room in {entry.room for entry in entries}:
            self.own[room] |= self._logs[room]._keys
        return stamps

    async def trim(self, *, before: int, keep: int) -> bool:
        for log in self._logs.values():
            log._keys = keys(log)
        return await super().trim(before=before, keep=keep)


class AlwaysNew(Shared):
    async def append(self, entries: Sequence[Entry]) -> list[Stamp]:
        return [Stamp(stamp.offset, stamp.time) for stamp in await super().append(entries)]


class KnownAtAnotherTime(Shared):
    async def append(self, entries: Sequence[Entry]) -> list[Stamp]:
        stamps = await super().append(entries)
        return [Stamp(stamp.offset, stamp.time + (not stamp.new), stamp.new) for stamp in stamps]


class FollowsTheClock(Shared):
    async def append(self, entries: Sequence[Entry]) -> list[Stamp]:
        for entry in entries:
            self._logs.setdefault(entry.room, Log())._time = 0
        return await super().append(entries)


class CountsSeconds(Shared):
    async def append(self, entries: Sequence[Entry]) -> list[Stamp]:
        stamps = await super().append(entries)
        for log in self._logs.values():
            log.records[:] = [changed(record, time=self.seconds(record.time)) for record in log.records]
        return [Stamp(stamp.offset, self.seconds(stamp.time), stamp.new) for stamp in stamps]

    def seconds(self, time: int) -> int:
        return time // 1000 if time > 10**11 else time


class Reading(Shared):
    """Changes what is read."""

    def change(self, records: list[Record]) -> list[Record]:
        raise NotImplementedError

    async def read(self, room: str, *, after: int | None = None, before: int | None = None, limit: int) -> list[Record]:
        return self.change(await super().read(room, after=after, before=before, limit=limit))


class NewestFirst(Reading):
    def change(self, records: list[Record]) -> list[Record]:
        return records[::-1]


class AtMostAHundred(Reading):
    def change(self, records: list[Record]) -> list[Record]:
        return records[:100]


class ParsedAndDumped(Reading):
    def change(self, records: list[Record]) -> list[Record]:
        return [changed(record, data=record.data.replace(" ", "")) for record in records]


class Normalized(Reading):
    def change(self, records: list[Record]) -> list[Record]:
        return [changed(record, data=unicodedata.normalize("NFC", record.data)) for record in records]


class CutsLongTexts(Reading):
    def change(self, records: list[Record]) -> list[Record]:
        return [changed(record, data=record.data[:30_000]) for record in records]


class NoKinds(Reading):
    def change(self, records: list[Record]) -> list[Record]:
        return [changed(record, kind="message") for record in records]


class NoKeys(Reading):
    def change(self, records: list[Record]) -> list[Record]:
        return [changed(record, key=None) for record in records]


class LimitIgnored(Shared):
    async def read(self, room: str, *, after: int | None = None, before: int | None = None, limit: int) -> list[Record]:
        return await super().read(room, after=after, before=before, limit=1_000_000)


class FirstInsteadOfLast(Shared):
    async def read(self, room: str, *, after: int | None = None, before: int | None = None, limit: int) -> list[Record]:
        found = await super().read(room, after=after, before=before, limit=1_000_000)
        return found[:limit]


class BeforeInclusive(Shared):
    async def read(self, room: str, *, after: int | None = None, before: int | None = None, limit: int) -> list[Record]:
        return await super().read(room, after=after, before=before and before + 1, limit=limit)


class BeforeZeroIsNone(Shared):
    async def read(self, room: str, *, after: int | None = None, before: int | None = None, limit: int) -> list[Record]:
        return await super().read(room, after=after, before=before or None, limit=limit)


class NeverUnrecoverable(Shared):
    async def read(self, room: str, *, after: int | None = None, before: int | None = None, limit: int) -> list[Record]:
        try:
            return await super().read(room, after=after, before=before, limit=limit)
        except Unrecoverable:
            return []


class SilentHole(Shared):
    async def read(self, room: str, *, after: int | None = None, before: int | None = None, limit: int) -> list[Record]:
        trimmed = self._logs[room].trimmed if room in self._logs else 0
        after = None if after is None else max(after, trimmed)
        return await super().read(room, after=after, before=before, limit=limit)


class UnrecoverableTooSoon(Shared):
    async def read(self, room: str, *, after: int | None = None, before: int | None = None, limit: int) -> list[Record]:
        if after and room in self._logs and after == self._logs[room].trimmed:
            raise Unrecoverable
        return await super().read(room, after=after, before=before, limit=limit)


class UnrecoverableAtTop(Shared):
    async def read(self, room: str, *, after: int | None = None, before: int | None = None, limit: int) -> list[Record]:
        if after is not None and (room not in self._logs or after == self._logs[room].top):
            raise Unrecoverable
        return await super().read(room, after=after, before=before, limit=limit)


class ReadingMakesRooms(Shared):
    async def read(self, room: str, *, after: int | None = None, before: int | None = None, limit: int) -> list[Record]:
        self._logs.setdefault(room, Log())
        return await super().read(room, after=after, before=before, limit=limit)


class TopOfKnownRoomsOnly(Shared):
    async def top(self, rooms: Collection[str]) -> dict[str, int]:
        return {room: top for room, top in (await super().top(rooms)).items() if top}


class TopOfWhatIsKept(Shared):
    async def top(self, rooms: Collection[str]) -> dict[str, int]:
        return {room: len(self._logs[room].records) if room in self._logs else 0 for room in rooms}


class TopOfFewRooms(Shared):
    async def top(self, rooms: Collection[str]) -> dict[str, int]:
        return dict.fromkeys(rooms, 0) | await super().top(list(rooms)[:999])


class Trimming(Shared):
    """Lets go of what `gone` says."""

    async def trim(self, *, before: int, keep: int) -> bool:
        for log in self._logs.values():
            end = len(log.records)
            gone = {number for number in range(end) if self.gone(log.records[number], end - number, before, keep)}
            log.trimmed += len(gone)
            log.records[:] = [record for number, record in enumerate(log.records) if number not in gone]
            log._keys = keys(log)
        return False

    def gone(self, record: Record, nth: int, before: int, keep: int) -> bool:
        return record.time < before or (keep > 0 and nth > keep)


async def test_trimming_at_once_keeps_the_promises() -> None:
    await check_store(sharing(Trimming))


class TrimsNothing(Trimming):
    def gone(self, record: Record, nth: int, before: int, keep: int) -> bool:
        return False


class TrimsOneTooMany(Trimming):
    def gone(self, record: Record, nth: int, before: int, keep: int) -> bool:
        return record.time < before or (keep > 0 and nth >= keep)


class TrimsAllForZero(Trimming):
    def gone(self, record: Record, nth: int, before: int, keep: int) -> bool:
        return record.time < before or nth > keep


class TrimsWhatIsBoth(Trimming):
    def gone(self, record: Record, nth: int, before: int, keep: int) -> bool:
        return record.time < before and nth > keep


class TrimsTheSameAge(Trimming):
    def gone(self, record: Record, nth: int, before: int, keep: int) -> bool:
        return record.time <= before or (keep > 0 and nth > keep)


class TrimsByCountOnly(Trimming):
    def gone(self, record: Record, nth: int, before: int, keep: int) -> bool:
        return keep > 0 and nth > keep


class TrimsInTheMiddle(Shared):
    async def trim(self, *, before: int, keep: int) -> bool:
        more = await super().trim(before=before, keep=keep)
        for log in self._logs.values():
            if len(log.records) > 2 and log.trimmed:
                log.records[1:2] = []
                log.trimmed += 1
        return more


class TrimsFromTheMiddleOn(Shared):
    """Gets there, but meanwhile there are holes."""

    async def trim(self, *, before: int, keep: int) -> bool:
        for log in self._logs.values():
            if keep and len(log.records) > keep + 20:
                for record in log.records[10:20]:
                    log._keys.pop((record.user, record.key or ""), None)
                log.records[10:20] = []
                log.trimmed += 10
                return True
        return await super().trim(before=before, keep=keep)


class TrimSaysDoneTooSoon(Shared):
    async def trim(self, *, before: int, keep: int) -> bool:
        await super().trim(before=before, keep=keep)
        return False


class StartsAnewWhenEmpty(Shared):
    async def trim(self, *, before: int, keep: int) -> bool:
        more = await super().trim(before=before, keep=keep)
        for room in [room for room, log in self._logs.items() if not log.records]:
            del self._logs[room]
        return more


class LosesMeta(Shared):
    async def append(self, entries: Sequence[Entry]) -> list[Stamp]:
        return await super().append([msgspec.structs.replace(entry, meta=None) for entry in entries])


class SwapsMeta(Shared):
    async def append(self, entries: Sequence[Entry]) -> list[Stamp]:
        metas = [entry.meta for entry in entries][::-1]
        swapped = [msgspec.structs.replace(entry, meta=meta) for entry, meta in zip(entries, metas, strict=True)]
        return await super().append(swapped)


class ForgetsNothing(Shared):
    async def forget(self, room: str, through: int) -> bool:
        return False


class ForgetsOneTooMany(Shared):
    async def forget(self, room: str, through: int) -> bool:
        return await super().forget(room, through + 1 if through else 0)


class ForgetsOneTooFew(Shared):
    async def forget(self, room: str, through: int) -> bool:
        return await super().forget(room, through - 1)


class ForgetsAllRooms(Shared):
    async def forget(self, room: str, through: int) -> bool:
        kept = [name for name, log in self._logs.items() if log.records]
        return any([await super(ForgetsAllRooms, self).forget(name, through) for name in kept])


class ForgetsTheTop(Shared):
    async def forget(self, room: str, through: int) -> bool:
        more = await super().forget(room, through)
        if not more and room in self._logs and not self._logs[room].records:
            del self._logs[room]
        return more


class ForgetsWhatIsYetToCome(Shared):
    def __init__(self, storage: "ForgetsWhatIsYetToCome | None" = None) -> None:
        super().__init__(storage)
        self.through: dict[str, int] = storage.through if storage else {}

    async def append(self, entries: Sequence[Entry]) -> list[Stamp]:
        stamps = await super().append(entries)
        for room in {entry.room for entry in entries} & self.through.keys():
            await super().forget(room, self.through[room])
        return stamps

    async def forget(self, room: str, through: int) -> bool:
        if room in self._logs:
            self.through[room] = max(through, self.through.get(room, 0))
        return await super().forget(room, through)


class ForgetsInTheMiddle(Shared):
    async def forget(self, room: str, through: int) -> bool:
        log = self._logs.get(room) or Log()
        if log.trimmed + 1 < through < log.top:
            del log.records[1 : through - log.trimmed]
            log.trimmed = through - 1
            log._keys = keys(log)
            return False
        return await super().forget(room, through)


class ForgetsSilently(Shared):
    """Who asks for what came after an event that is forgotten is told the rest, as if that were all."""

    def __init__(self, storage: "ForgetsSilently | None" = None) -> None:
        super().__init__(storage)
        self.through: dict[str, int] = storage.through if storage else {}

    async def read(self, room: str, *, after: int | None = None, before: int | None = None, limit: int) -> list[Record]:
        after = None if after is None else max(after, self.through.get(room, 0))
        return await super().read(room, after=after, before=before, limit=limit)

    async def forget(self, room: str, through: int) -> bool:
        more = await super().forget(room, through)
        if room in self._logs:
            self.through[room] = self._logs[room].trimmed
        return more


class ForgetSaysDoneTooSoon(Shared):
    async def forget(self, room: str, through: int) -> bool:
        await super().forget(room, through)
        return False


class ForgetsNoKeys(Shared):
    async def forget(self, room: str, through: int) -> bool:
        known = dict(self._logs[room]._keys) if room in self._logs else {}
        more = await super().forget(room, through)
        if known:
            self._logs[room]._keys = known
        return more


class ForgetMakesRooms(Shared):
    async def forget(self, room: str, through: int) -> bool:
        if room not in self._logs:
            await self.append([Entry(room, "nobody", "{}")])
        return await super().forget(room, through)


class ForgetRemembersRooms(Shared):
    async def forget(self, room: str, through: int) -> bool:
        self._logs.setdefault(room, Log())
        return await super().forget(room, through)


class AnotherEpoch(Shared):
    def __init__(self, storage: "Shared | None" = None) -> None:
        super().__init__(storage)
        self.epoch = Memory().epoch


class NoEpoch(Shared):
    def __init__(self, storage: "Shared | None" = None) -> None:
        super().__init__(storage)
        self.epoch = ""


class ClosesOnce(Shared):
    closed = False

    async def close(self) -> None:
        if self.closed:
            raise RuntimeError("closed already")
        self.closed = True


class ClosesWhatIsOpen(Shared):
    opened = False

    async def open(self) -> None:
        await asyncio.sleep(0)
        self.opened = True

    async def close(self) -> None:
        if not self.opened:
            raise RuntimeError("not open")


BROKEN: dict[type[Shared], str] = {
    HoleInOffsets: "promise 1: ",
    StartsAtZero: "promise 1: ",
    OneCounterForAll: "promise 1: ",
    SortsBatches: "promise 1: ",
    Late: "promise [14]: ",
    LosesARace: "promise 1: ",
    TopComesFirst: "promise 1: ",
    NotDurable: "promise 2: ",
    HalfOfABatch: "promise 4: ",
    HalfWhenCancelled: "promise 4: ",
    OffsetsSpentOnFailure: "promise 4: ",
    StampMissing: "append: ",
    KeysIgnored: "promise 3: ",
    KeysOfOneBatchIgnored: "promise 3: ",
    KeysRememberedTooLong: "promise 3: ",
    KeysOfAllUsers: "promise 3: ",
    KeysOfAllRooms: "promise 3: ",
    KeysGlued: "promise 3: ",
    KeysWithoutCase: "promise 3: ",
    KeysNormalized: "promise 3: ",
    NoKeyIsAKey: "promise 1: ",
    RoomsWithoutCase: "read: ",
    KeysForgottenTooSoon: "promise 3: ",
    KeysForgottenByOthers: "promise 3: ",
    AlwaysNew: "promise 3: ",
    KnownAtAnotherTime: "promise 3: ",
    FollowsTheClock: "append: ",
    CountsSeconds: "append: ",
    NewestFirst: "promise 1: ",
    AtMostAHundred: "promise 1: ",
    ParsedAndDumped: "read: ",
    Normalized: "read: ",
    CutsLongTexts: "read: ",
    NoKinds: "read: ",
    NoKeys: "promise 3: ",
    LimitIgnored: "read: ",
    FirstInsteadOfLast: "read: ",
    BeforeInclusive: "read: ",
    BeforeZeroIsNone: "read: ",
    NeverUnrecoverable: "read: ",
    SilentHole: "read: ",
    UnrecoverableTooSoon: "read: ",
    UnrecoverableAtTop: "read: ",
    ReadingMakesRooms: "promise 6: ",
    TopOfKnownRoomsOnly: "top: ",
    TopOfWhatIsKept: "promise 5: ",
    TopOfFewRooms: "top: ",
    TrimsNothing: "promise 5: ",
    TrimsOneTooMany: "promise 5: ",
    TrimsAllForZero: "promise 5: ",
    TrimsWhatIsBoth: "promise 5: ",
    TrimsTheSameAge: "promise 5: ",
    TrimsByCountOnly: "promise 5: ",
    TrimsInTheMiddle: "promise 5: ",
    TrimsFromTheMiddleOn: "promise 1: ",
    TrimSaysDoneTooSoon: "promise 5: ",
    StartsAnewWhenEmpty: "promise 5: ",
    AnotherEpoch: "epoch: ",
    NoEpoch: "epoch: ",
    LosesMeta: "read: ",
    SwapsMeta: "read: ",
    ForgetsNothing: "promise 5: ",
    ForgetsOneTooMany: "promise 5: ",
    ForgetsOneTooFew: "promise 5: ",
    ForgetsAllRooms: "promise 5: ",
    ForgetsTheTop: "read: after=0 ",
    ForgetsWhatIsYetToCome: "promise 5: ",
    ForgetsInTheMiddle: "promise 5: ",
    ForgetsSilently: "read: after=0 ",
    ForgetSaysDoneTooSoon: "promise 5: ",
    ForgetsNoKeys: "promise 3: ",
    ForgetMakesRooms: "promise 6: ",
    ForgetRemembersRooms: "promise 6: ",
    ClosesOnce: "close: ",
    ClosesWhatIsOpen: "close: ",
}


@pytest.mark.parametrize("kind", BROKEN)
async def test_a_broken_store_is_caught(kind: type[Shared]) -> None:
    with pytest.raises(AssertionError, match=f"^{BROKEN[kind]}"):
        await check_store(sharing(kind))
