"""A store in one SQLite file: the default, with nothing to install.

A log is kept in segments: what was appended to a room together is one row, as JSON. The schema itself refuses a segment
that doesn't begin where its log ends, so nobody has to look first who else has appended: to rooms that were appended to
before, a batch without keys is one statement, which is a transaction by itself.

Whatever else takes many rows goes through SQLite in few statements, and most of it as one JSON text. Python's `sqlite3`
lets go of the interpreter's lock and takes it again for each row that it steps over, which beside a busy event loop may
take as long as a whole statement.
"""

import contextlib
import functools
import os
import secrets
import sqlite3
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import chain
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from chatserver.errors import StorageFull, StorageUnavailable, StorageUnsure, Unrecoverable
from chatserver.store import Entry, Record, Stamp, StoreError
from chatserver.store.numbering import Identity, Room, keys, number
from chatserver.store.worker import Worker

T = TypeVar("T")

BUSY_SECONDS: Final = 1.9
"""How long another process may hold the file. An append that waits for one, and finds that it has appended, may wait
once more: still those behind it are answered in time."""

BUSY_STEP_SECONDS: Final = 0.005
"""How long until the file is tried again where SQLite itself doesn't wait for others."""

SWITCH_SECONDS: Final = 20e-6
"""How long a thread waits for the interpreter's lock before it asks the one that has it to let go. One batch asks
for it several times, and a loop that is busy, but lets go of the lock in each of its turns, starts the wait anew:
with Python's 5 ms a batch took half a second beside a client that flooded."""

SEGMENT_EVENTS: Final = 64
"""A segment has so many at most: who reads one event takes apart all of its segment. The schema and whoever reads rely
on it, so it can't be less for files that there are."""

OFFSET_BITS: Final = 38
"""A segment's place is the id of its room, and in so many bits its first offset: 33 million rooms can have 274 billion
events each. It is one number because SQLite keeps rows with such a key, and only those, in one page if they fit: as two
columns they took up to three times the space."""

ROWS: Final = 64
"""To so many rooms one statement adds segments, which is prepared once for each number of them."""

LOG_ENDS: Final = 1000
"""Of so many logs that were appended to, and those of one batch, the ends are kept at hand."""

TRIM_EVENTS: Final = 500
TRIM_ROOMS: Final = 10
"""So many events, of so many rooms, at once, so that an append waits for milliseconds only."""

OLDEST: Final = (3, 38, 0)
"""The first SQLite that has STRICT tables and `->>`."""

MIGRATIONS: Final = (
    """
    CREATE TABLE meta (epoch TEXT NOT NULL) STRICT;
    CREATE TABLE rooms (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        top INTEGER NOT NULL DEFAULT 0,      -- offset of the last event
        trimmed INTEGER NOT NULL DEFAULT 0,  -- offset of the last event that isn't kept any more
        time INTEGER NOT NULL DEFAULT 0      -- of the last event, in milliseconds since 1970
    ) STRICT;
    CREATE TABLE events (
        room INTEGER NOT NULL,
        offset INTEGER NOT NULL,
        time INTEGER NOT NULL,
        kind TEXT NOT NULL,
        user TEXT NOT NULL,
        data TEXT NOT NULL,
        key TEXT,
        PRIMARY KEY (room, offset)
    ) STRICT, WITHOUT ROWID;
    CREATE UNIQUE INDEX events_key ON events (room, user, key) WHERE key IS NOT NULL;
    """,
    "ALTER TABLE events ADD COLUMN meta TEXT",
    """
    CREATE TABLE segments (
        place INTEGER PRIMARY KEY,  -- (room << 38) + offset of the first of the events
        last INTEGER NOT NULL,      -- offset of the last of them
        time INTEGER NOT NULL,      -- of all of them
        events TEXT NOT NULL,       -- [[kind, user, data, key, meta], ...]
        CHECK (last - (place & 0x3fffffffff) BETWEEN 0 AND 63)
    ) STRICT;
    CREATE TABLE keys (
        room INTEGER NOT NULL,
        user TEXT NOT NULL,
        key TEXT NOT NULL,
        offset INTEGER NOT NULL,
        time INTEGER NOT NULL,
        PRIMARY KEY (room, user, key)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO segments
        SELECT (room << 38) + offset, offset, time, json_array(json_array(kind, user, data, key, meta)) FROM events;
    INSERT INTO keys SELECT room, user, key, offset, time FROM events WHERE key IS NOT NULL;
    DROP TABLE events;
    CREATE TRIGGER segments_follow AFTER INSERT ON segments BEGIN
        UPDATE rooms SET top = new.last, time = new.time
        WHERE id = new.place >> 38 AND top = (new.place & 0x3fffffffff) - 1 AND time <= new.time;
        SELECT RAISE(ROLLBACK, 'the log ends elsewhere') WHERE changes() = 0;
    END;
    """,
)
"""Each brings the schema from one version (`PRAGMA user_version`) to the next."""

_FOREIGN: Final = "SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM pragma_table_info('meta') WHERE name = 'epoch')"
"""Others count the versions of their schemas in the same place."""

_END: Final = 1 << 62
"""Beyond all offsets."""

_ROOMS: Final = """
    SELECT json_group_object(name, json_array(id, top, trimmed, time)) FROM rooms
    WHERE name IN (SELECT value FROM json_each(?))
"""
_ADD_ROOMS: Final = "INSERT INTO rooms (name) SELECT value FROM json_each(?) WHERE true ON CONFLICT DO NOTHING"
_KNOWN: Final = """
    SELECT json_group_array(json_array(keys.room, keys.user, keys.key, keys.offset, keys.time))
    FROM json_each(?) AS sent JOIN keys
    ON keys.room = sent.value ->> 0 AND keys.user = sent.value ->> 1 AND keys.key = sent.value ->> 2
"""
_ADD_SEGMENTS: Final = "INSERT OR ROLLBACK INTO segments (place, last, time, events) VALUES "
"""To be able to take back one statement only, which is the default, SQLite would keep a copy of each page, in a file of
its own once they are many."""
_SEGMENT: Final = "(?, ?, ?, ?)"
_ADD_KEYS: Final = """
    INSERT INTO keys (room, user, key, offset, time)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4 FROM json_each(?)
"""
_FIRST: Final = (1 << OFFSET_BITS) - 1
"""The bits of a place that are the offset."""


def _with_layout(statement: str, **parts: str) -> str:
    return statement.format(bits=OFFSET_BITS, first=_FIRST, segment=SEGMENT_EVENTS, **parts)


_PAGE: Final = """
    SELECT top, trimmed, (
        SELECT '[' || group_concat('[' || (place & {first}) || ',' || time || ',' || events || ']') || ']' FROM segments
        WHERE place > (rooms.id << {bits}) + {after} - {segment} AND place <= (rooms.id << {bits}) + {last}
        AND last > {after}
    ) FROM rooms WHERE name = :room
"""
"""All segments that have some of the events after one up to another."""
_AFTER: Final = _with_layout(_PAGE, after=":after", last="min(:after + :limit, top)")
_BEFORE: Final = _with_layout(_PAGE, after="max(min(:before - 1, top) - :limit, 0)", last="min(:before - 1, top)")
_INDEX_TIME: Final = "CREATE INDEX IF NOT EXISTS segments_time ON segments (time, last)"
"""Made when it is first asked what is old: where nobody ever does, each segment would be written twice for nothing."""
_OLD: Final = """
    SELECT json_group_array(json_array(place, last)) FROM (
        SELECT place, last FROM segments WHERE time < ? ORDER BY time LIMIT ?
    )
"""
_LONG: Final = """
    SELECT json_group_array(json_array(id, min(top - :keep, trimmed + :events))) FROM (
        SELECT * FROM rooms WHERE top - trimmed > :keep ORDER BY top - trimmed DESC LIMIT :rooms
    )
"""
"""Of those that have the most too many first, or the others' turn might never come."""
_FORGOTTEN: Final = """
    SELECT json_group_array(json_array(id, min(:through, top, trimmed + :events)))
    FROM rooms WHERE name = :room AND trimmed < min(:through, top)
"""
_HAS_KEYS: Final = "SELECT 1 FROM keys WHERE room = ? LIMIT 1"
_TRIM_KEYS: Final = _with_layout("""
    DELETE FROM keys WHERE room = :room AND (user, key) IN (
        SELECT CAST(event.value ->> 1 AS TEXT), CAST(event.value ->> 3 AS TEXT)
        FROM segments, json_each(segments.events) AS event
        WHERE place > :room << {bits} AND place <= (:room << {bits}) + :end AND (place & {first}) + event.key <= :end
    )
""")
"""Of one room: for several at once SQLite looks at all their keys."""
_GONE: Final = _with_layout("""
    FROM json_each(?) AS trim JOIN segments
    ON place > trim.value ->> 0 << {bits} AND place <= (trim.value ->> 0 << {bits}) + (trim.value ->> 1)
""")
_TRIM_SEGMENTS: Final = _with_layout(
    "DELETE FROM segments WHERE place IN (SELECT place {gone} WHERE last <= trim.value ->> 1)", gone=_GONE
)
_DIVIDED: Final = _with_layout("SELECT place, trim.value ->> 1, events {gone}", gone=_GONE)
"""Segments that have events beyond the end, when those that haven't are gone."""
_SHORTEN: Final = "UPDATE segments SET place = ?, events = ? WHERE place = ?"
_TRIM_ROOMS: Final = """
    UPDATE rooms SET trimmed = max(trimmed, trim.value ->> 1) FROM json_each(?) AS trim
    WHERE rooms.id = trim.value ->> 0
"""


_Event: TypeAlias = tuple[str, str, str, str | None, str | None]
"""Kind, user, data, key, meta."""

_EVENTS: Final = list[_Event]

_Segment: TypeAlias = tuple[int, int, int, str]
"""Its place, last offset, time, events."""

_Prepared: TypeAlias = tuple[list[Stamp], list[_Segment]]

_encode = msgspec.json.Encoder().encode
_rooms = msgspec.json.Decoder(dict[str, Room]).decode
_known = msgspec.json.Decoder(list[tuple[int, str, str, int, int]]).decode
_segments = msgspec.json.Decoder(list[tuple[int, int, list[_Event]]]).decode
_events = msgspec.json.Decoder(_EVENTS).decode
_ends = msgspec.json.Decoder(list[tuple[int, int]]).decode


class SQLite:
    """`sqlite:///FILE`: WAL with `synchronous=FULL`, one thread that writes and one that reads."""

    def __init__(self, url: str) -> None:
        self._path = url.removeprefix("sqlite:///")
        if not self._path or "://" in self._path or self._path == ":memory:":
            raise ValueError("sqlite:// takes a path: sqlite:///chat.db, or sqlite:////var/lib/chat.db")
        self.epoch = ""
        self._log_ends: dict[str, Room] = {}  # others may have appended since, or trimmed
        self._writer = _Thread("store-writer")
        self._reader = _Thread("store-reader")

    async def open(self) -> None:
        sys.setswitchinterval(SWITCH_SECONDS)  # of the whole process: it costs nothing but where threads compete
        try:
            self.epoch = await self._writer.run(lambda: _open(self._writer, self._path))
            await self._reader.run(lambda: _open_to_read(self._reader, self._path))
        except (sqlite3.Error, StoreError) as error:
            raise StoreError(f"{self._path}: {error}") from None

    async def close(self) -> None:
        await self._reader.close()
        await self._writer.close()

    async def append(self, entries: Sequence[Entry]) -> list[Stamp]:
        prepared = self._prepare(entries)
        return await self._writer.run(lambda: _write(self._writer, lambda use: self._store(use, entries, prepared)))

    def _prepare(self, entries: Sequence[Entry]) -> _Prepared | None:
        """What one statement can add if nobody else has appended, which it will find out; the remembered ends go on
        as if it were so. None if it takes more.

        By the loop's thread, which has the entries and its code in the processor's caches: by the one that writes, a
        batch took a tenth of a millisecond more.
        """
        names = {entry.room for entry in entries}
        rooms = {name: self._log_ends[name] for name in names if name in self._log_ends}
        if not 0 < len(rooms) == len(names) <= ROWS or keys(entries, rooms):
            return None
        stamps = number(entries, rooms, {}, _now())
        return stamps, _divide(entries, rooms)

    def _store(
        self, connection: sqlite3.Connection, entries: Sequence[Entry], prepared: _Prepared | None
    ) -> list[Stamp]:
        if prepared:
            stamps, segments = prepared
            with contextlib.suppress(sqlite3.IntegrityError):
                _add_segments(connection, segments)
                return stamps
        rooms, stamps = _append(connection, entries)
        if len(self._log_ends) > LOG_ENDS:
            self._log_ends.clear()
        self._log_ends |= rooms
        return stamps

    async def read(self, room: str, *, after: int | None = None, before: int | None = None, limit: int) -> list[Record]:
        return await self._reader.run(lambda: _ask(self._reader, lambda use: _read(use, room, after, before, limit)))

    async def top(self, rooms: Collection[str]) -> dict[str, int]:
        found = await self._reader.run(lambda: _ask(self._reader, lambda use: _find_rooms(use, rooms)))
        return {room: found[room].top if room in found else 0 for room in rooms}

    async def trim(self, *, before: int, keep: int) -> bool:
        return await self._writer.run(lambda: _write(self._writer, lambda use: _trim(use, before, keep)))

    async def forget(self, room: str, through: int) -> bool:
        return await self._writer.run(lambda: _write(self._writer, lambda use: _forget(use, room, through)))


class _Thread:
    """A thread with a connection of its own."""

    def __init__(self, name: str) -> None:
        self._worker = Worker(name)
        self._connection: sqlite3.Connection | None = None
        self._path = ""
        self._file: os.stat_result | None = None
        self._closed = False

    @property
    def connection(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StorageUnavailable
        return self._connection

    def connect(self, path: str) -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        self._connection = connection
        self._path = path
        self._file = os.stat(path)
        return connection

    def check_file(self) -> None:
        """Raises `StorageUnavailable` if the file was deleted or replaced: SQLite would go on writing to the old one,
        and all of it would be gone with the process."""
        try:
            same = self._file is not None and os.path.samestat(self._file, os.stat(self._path))
        except OSError as error:
            raise StorageUnavailable from error
        if not same:
            raise StorageUnavailable from FileNotFoundError(f"{self._path} was replaced")

    async def run(self, work: Callable[[], T]) -> T:
        return await self._worker.run(work)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self.run(self._disconnect)  # behind whatever it does just now
            self._worker.close()

    def _disconnect(self) -> None:
        if self._connection:
            self._connection.close()
            self._connection = None


def _open(thread: _Thread, path: str) -> str:
    if sqlite3.sqlite_version_info < OLDEST:
        raise StoreError(f"SQLite {sqlite3.sqlite_version} is too old, {'.'.join(map(str, OLDEST))} is needed")
    connection = thread.connect(path)
    with _transaction(connection, "DEFERRED"):
        _version(connection)  # nothing is changed in what isn't ours
    _use_wal(connection)
    connection.execute("PRAGMA synchronous = FULL")
    with _transaction(connection):
        _migrate(connection)
    epoch: str = _one(connection, "SELECT epoch FROM meta")
    return epoch


def _use_wal(connection: sqlite3.Connection) -> None:
    """Here SQLite itself doesn't wait for others, who may open the new file at the same time."""
    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(BUSY_STEP_SECONDS)
        else:
            return


def _open_to_read(thread: _Thread, path: str) -> None:
    thread.connect(path).execute("PRAGMA query_only = on")


def _version(connection: sqlite3.Connection) -> int:
    """Of the schema; 0 if there is none. Raises `StoreError` if it is none of ours that we know."""
    version = int(_one(connection, "PRAGMA user_version"))
    if _one(connection, "SELECT 1 FROM sqlite_schema" if version == 0 else _FOREIGN):
        raise StoreError("this database is something else's")
    if version > len(MIGRATIONS):
        raise StoreError(f"made by a later version of chatserver (schema {version}, this one knows {len(MIGRATIONS)})")
    return version


def _migrate(connection: sqlite3.Connection) -> None:
    version = _version(connection)
    for script in MIGRATIONS[version:]:
        for statement in _statements(script):
            connection.execute(statement)
    if version == 0:
        connection.execute("INSERT INTO meta VALUES (?)", [secrets.token_hex(8)])
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for part in script.split(";"):
        statement += f"{part};"
        if sqlite3.complete_statement(statement):  # a trigger has some inside
            yield statement
            statement = ""
    if statement:  # unfinished: SQLite refuses it
        yield statement


def _one(connection: sqlite3.Connection, query: str, parameters: Any = ()) -> Any:
    row = connection.execute(query, parameters).fetchone()
    return row and row[0]


def _text(values: object) -> str:
    return _encode(values).decode()


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    connection.execute(f"BEGIN {kind}")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _ask(thread: _Thread, work: Callable[[sqlite3.Connection], T]) -> T:
    """Does `work`. Raises storage errors."""
    try:
        return work(thread.connection)
    except sqlite3.Error as error:
        raise _storage_error(error) from error


def _write(thread: _Thread, work: Callable[[sqlite3.Connection], T]) -> T:
    """Does `work`, which may write. Raises storage errors."""
    thread.check_file()
    return _ask(thread, work)


def _storage_error(error: sqlite3.Error) -> StorageUnavailable:
    code = _code(error)
    if code == sqlite3.SQLITE_IOERR:  # if it was the sync of the commit, a crash just now may bring the entries back
        return StorageUnsure()
    return StorageFull() if code == sqlite3.SQLITE_FULL else StorageUnavailable()


def _code(error: sqlite3.Error) -> int:
    """Without what some codes say in addition."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def _append(connection: sqlite3.Connection, entries: Sequence[Entry]) -> tuple[dict[str, Room], list[Stamp]]:
    """Returns the ends of the logs, too."""
    with _transaction(connection):
        rooms = _find_or_make_rooms(connection, {entry.room for entry in entries})
        keyed = keys(entries, rooms)
        known = _find_known(connection, keyed) if keyed else {}
        stamps = number(entries, rooms, known, _now())
        new = [(entry, stamp) for entry, stamp in zip(entries, stamps, strict=True) if stamp.new]
        segments = _divide([entry for entry, _ in new], rooms)
        for start in range(0, len(segments), ROWS):
            _add_segments(connection, segments[start : start + ROWS])
        if keyed:
            _add_keys(connection, rooms, new)
    return rooms, stamps


def _now() -> int:
    return time.time_ns() // 1_000_000


def _divide(entries: Sequence[Entry], rooms: dict[str, Room]) -> list[_Segment]:
    """`entries`: the last ones of their `rooms`."""
    logs: dict[str, list[Entry]] = {}
    for entry in entries:
        logs.setdefault(entry.room, []).append(entry)
    return [segment for name, log in logs.items() for segment in _divide_log(log, rooms[name])]


def _divide_log(entries: Sequence[Entry], room: Room) -> Iterator[_Segment]:
    first = room.top - len(entries) + 1
    for start in range(0, len(entries), SEGMENT_EVENTS):
        some = entries[start : start + SEGMENT_EVENTS]
        events = [(entry.kind, entry.user, entry.data, entry.key, entry.meta) for entry in some]
        msgspec.convert(events, _EVENTS)  # raises for what couldn't be read again
        yield (room.id << OFFSET_BITS) + first + start, first + start + len(some) - 1, room.time, _text(events)


def _add_segments(connection: sqlite3.Connection, segments: Sequence[_Segment]) -> None:
    """Raises `sqlite3.IntegrityError` if one doesn't begin where the log ends; the transaction is over then."""
    connection.execute(_add(len(segments)), [*chain.from_iterable(segments)])


def _add_keys(connection: sqlite3.Connection, rooms: dict[str, Room], new: Sequence[tuple[Entry, Stamp]]) -> None:
    keyed = [(entry, stamp) for entry, stamp in new if entry.key is not None]
    rows = [(rooms[entry.room].id, entry.user, entry.key, stamp.offset, stamp.time) for entry, stamp in keyed]
    connection.execute(_ADD_KEYS, [_text(rows)])


@functools.cache
def _add(count: int) -> str:
    return _ADD_SEGMENTS + ", ".join([_SEGMENT] * count)


def _find_rooms(connection: sqlite3.Connection, names: Collection[str]) -> dict[str, Room]:
    return _rooms(_one(connection, _ROOMS, [_text(list(names))]))


def _find_or_make_rooms(connection: sqlite3.Connection, names: Collection[str]) -> dict[str, Room]:
    rooms = _find_rooms(connection, names)
    if len(rooms) < len(names):
        connection.execute(_ADD_ROOMS, [_text(list(names))])
        rooms = _find_rooms(connection, names)
    return rooms


def _find_known(connection: sqlite3.Connection, keyed: list[tuple[int, str, str]]) -> dict[Identity, Stamp]:
    found = _known(_one(connection, _KNOWN, [_text(keyed)]))
    return {(room, user, key): Stamp(offset, time, new=False) for room, user, key, offset, time in found}


def _read(connection: sqlite3.Connection, room: str, after: int | None, before: int | None, limit: int) -> list[Record]:
    start = 0 if after is None else min(after, _END)
    end = _END if before is None else min(before, _END)
    bounds = {"room": room, "after": start, "before": end, "limit": min(limit, _END)}
    found = connection.execute(_BEFORE if after is None else _AFTER, bounds).fetchone()
    top, trimmed, segments = found or (0, 0, None)
    if after is not None and not trimmed <= after <= top:
        raise Unrecoverable
    records = [record for segment in sorted(_segments(segments or "[]")) for record in _records(*segment)]
    if after is None:
        earlier = [record for record in records if record.offset < end]
        return earlier[max(0, len(earlier) - limit) :]
    return [record for record in records if record.offset > start][:limit]


def _records(first: int, time: int, events: Sequence[_Event]) -> Iterator[Record]:
    return (Record(offset, time, *event) for offset, event in enumerate(events, first))


def _trim(connection: sqlite3.Connection, before: int, keep: int) -> bool:
    ends: dict[int, int] = {}
    with _transaction(connection):
        if before:
            connection.execute(_INDEX_TIME)
            ends.update(_find_old(connection, before))
        if keep:
            limits = {"keep": keep, "events": TRIM_EVENTS, "rooms": TRIM_ROOMS}
            for room, last in _ends(_one(connection, _LONG, limits)):
                ends[room] = max(last, ends.get(room, 0))
        return _let_go(connection, ends)


def _find_old(connection: sqlite3.Connection, before: int) -> dict[int, int]:
    ends: dict[int, int] = {}
    count = 0
    for place, last in _ends(_one(connection, _OLD, [before, TRIM_EVENTS])):
        if count >= TRIM_EVENTS:
            break
        room = place >> OFFSET_BITS
        ends[room] = max(last, ends.get(room, 0))
        count += last - (place & _FIRST) + 1
    return ends


def _forget(connection: sqlite3.Connection, room: str, through: int) -> bool:
    bounds = {"room": room, "through": min(through, _END), "events": TRIM_EVENTS}
    with _transaction(connection):
        return _let_go(connection, dict(_ends(_one(connection, _FORGOTTEN, bounds))))


def _let_go(connection: sqlite3.Connection, ends: dict[int, int]) -> bool:
    """Of the events of some rooms, by their ids, up to some offsets. False: there are none."""
    if ends:
        sent = [_text(list(ends.items()))]
        for room, end in ends.items():
            if _one(connection, _HAS_KEYS, [room]):
                connection.execute(_TRIM_KEYS, {"room": room, "end": end})
        connection.execute(_TRIM_SEGMENTS, sent)
        connection.execute(_TRIM_ROOMS, sent)
        for place, end, events in connection.execute(_DIVIDED, sent).fetchall():
            count = end - (place & _FIRST) + 1
            connection.execute(_SHORTEN, [place + count, _text(_events(events)[count:]), place])
    return bool(ends)
