"""A store that lasts as long as the process."""

import asyncio
import secrets
import time
from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Final

from chatserver.errors import Unrecoverable
from chatserver.store import Entry, Record, Stamp

TRIM_EVENTS: Final = 1000
TRIM_ROOMS: Final = 1000
"""So many events, and rooms, are looked at before others have their turn: about a millisecond."""


class Log:
    """The log of one room."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.trimmed = 0
        """So many events are no longer kept: the offset of the last of them."""
        self._time = 0
        self._keys: dict[tuple[str, str], Record] = {}

    @property
    def top(self) -> int:
        return self.trimmed + len(self.records)

    def append(self, entries: Iterable[Entry], now: int) -> list[Stamp]:
        self._time = now = max(now, self._time)
        records, offset = self.records, self.top
        stamps = []
        for entry in entries:
            if entry.key is not None:
                known = self._keys.get((entry.user, entry.key))
                if known:
                    stamps.append(Stamp(known.offset, known.time, new=False))
                    continue
            offset += 1
            record = entry.at(offset, now)
            records.append(record)
            if entry.key is not None:
                self._keys[entry.user, entry.key] = record
            stamps.append(Stamp(offset, now))
        return stamps

    def trim(self, before: int, keep: int, limit: int) -> int:
        """Lets go of `limit` events at most. Returns of how many."""
        spare = len(self.records) - keep if keep else 0
        old = bisect_left(self.records, before, key=lambda record: record.time)
        return self.drop(min(max(spare, old), limit))

    def drop(self, count: int) -> int:
        """Lets go of the oldest `count` events. Returns of how many."""
        for record in self.records[:count] if self._keys else ():
            if record.key is not None:
                del self._keys[record.user, record.key]
        del self.records[:count]
        self.trimmed += count
        return count


class Memory:
    """`memory://`: as fast as can be, and gone with the process."""

    def __init__(self, url: str = "memory://") -> None:
        if url != "memory://":
            raise ValueError("memory:// takes nothing after it")
        self.epoch = secrets.token_hex(8)
        self._logs: dict[str, Log] = {}

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def append(self, entries: Sequence[Entry]) -> list[Stamp]:
        now = time.time_ns() // 1_000_000
        stamps: list[Stamp] = []
        for room, run in groupby(entries, attrgetter("room")):
            log = self._logs.get(room) or self._logs.setdefault(room, Log())
            stamps += log.append(run, now)
        return stamps

    async def read(self, room: str, *, after: int | None = None, before: int | None = None, limit: int) -> list[Record]:
        log = self._logs.get(room) or Log()
        if after is None:
            stop = len(log.records) if before is None else max(0, min(before - 1, log.top) - log.trimmed)
            return log.records[max(0, stop - limit) : stop]
        if not log.trimmed <= after <= log.top:
            raise Unrecoverable
        start = after - log.trimmed
        return log.records[start : start + limit]

    async def top(self, rooms: Collection[str]) -> dict[str, int]:
        return {room: self._logs[room].top if room in self._logs else 0 for room in rooms}

    async def trim(self, *, before: int, keep: int) -> bool:
        left = TRIM_EVENTS
        for number, log in enumerate(list(self._logs.values())):
            if number % TRIM_ROOMS == 0:
                await asyncio.sleep(0)
            left -= log.trim(before, keep, left)
            if not left:
                return True
        return False

    async def forget(self, room: str, through: int) -> bool:
        log = self._logs.get(room) or Log()
        return log.drop(max(0, min(through, log.top, log.trimmed + TRIM_EVENTS) - log.trimmed)) > 0
