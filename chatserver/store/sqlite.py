"""A store in one SQLite file: the default, with nothing to install.

Whatever takes many rows goes through SQLite in few statements, and most of it as one JSON text. Python's `sqlite3` lets
go of the interpreter's lock and takes it again for each row that it steps over, which beside a busy event loop may take
as long as a whole statement.
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
from operator import attrgetter
from typing import Any, Final, TypeVar

import msgspec

from chatserver.errors import StorageFull, StorageUnavailable, StorageUnsure, Unrecoverable
from chatserver.store import Entry, Record, Stamp, StoreError
from chatserver.store.numbering import Identity, Room, Row, keys, number
from chatserver.store.worker import Worker

T = TypeVar("T")

BUSY_SECONDS: Final = 2.0
"""How long another process may hold the file. Those that wait behind a batch that waits are still answered in time."""

BUSY_STEP_SECONDS: Final = 0.005
"""How long until the file is tried again where SQLite itself doesn't wait for others."""

SWITCH_SECONDS: Final = 20e-6
"""How long a thread waits for the interpreter's lock before it asks the one that has it to let go. One batch asks
twenty times and more, and a loop that is busy, but lets go of the lock in each of its turns, starts the wait anew:
with Python's 5 ms a batch took half a second beside a client that flooded."""

ROWS: Final = 64
"""So many are added by one statement at most, which is prepared once for each number of them. As JSON, which SQLite
took apart, they took twice as long or more."""

LOG_ENDS: Final = 1000
"""So many are kept at hand, and those of one batch."""

TRIM_EVENTS: Final = 500
TRIM_ROOMS: Final = 10
"""So many of a room, and rooms, at once, so that an append waits for milliseconds only."""

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
    SELECT json_group_array(json_array(events.room, events.user, events.key, events.offset, events.time))
    FROM json_each(?) AS sent JOIN events
    ON events.room = sent.value ->> 0 AND events.user = sent.value ->> 1 AND events.key = sent.value ->> 2
"""
_ADD_EVENTS: Final = "INSERT OR FAIL INTO events (room, offset, time, kind, user, data, key, meta) VALUES "
"""The transaction takes back all that one which failed has added. To be able to do it by itself, which is the default,
it would keep a copy of each page, in a file of its own once they are many."""
_ROW: Final = "(?, ?, ?, ?, ?, ?, nullif(?, 0), nullif(?, 0))"
_COLUMNS: Final = 8
_NULLABLE: Final = (6, 7)
"""Their None is told as 0: of each None Python's `sqlite3` first looks for a way to make something else, which took a
twelfth of a batch."""
_SET_ROOMS: Final = """
    UPDATE rooms SET top = sent.value ->> 1, time = sent.value ->> 2 FROM json_each(?) AS sent
    WHERE rooms.id = sent.value ->> 0
"""
_AFTER: Final = """
    SELECT json_object(
        'top', top,
        'trimmed', trimmed,
        'records', json((SELECT json_group_array(json_array(offset, time, kind, user, data, key, meta)) FROM (
            SELECT * FROM events WHERE room = rooms.id AND offset > :after ORDER BY offset LIMIT :limit
        )))
    ) FROM rooms WHERE name = :room
"""
_BEFORE: Final = """
    SELECT json_object(
        'top', top,
        'trimmed', trimmed,
        'records', json((SELECT json_group_array(json_array(offset, time, kind, user, data, key, meta)) FROM (
            SELECT * FROM events WHERE room = rooms.id AND offset < :before ORDER BY offset DESC LIMIT :limit
        )))
    ) FROM rooms WHERE name = :room
"""
_INDEX_TIME: Final = "CREATE INDEX IF NOT EXISTS events_time ON events (time)"
"""Made when it is first asked what is old: where nobody ever does, each event would be written twice for nothing."""
_OLD: Final = """
    SELECT json_group_array(json_array(room, last)) FROM (
        SELECT room, max(offset) AS last FROM (SELECT room, offset FROM events WHERE time < ? LIMIT ?) GROUP BY room
    )
"""
_LONG: Final = """
    SELECT json_group_array(json_array(id, min(top - :keep, trimmed + :events))) FROM (
        SELECT * FROM rooms WHERE top - trimmed > :keep LIMIT :rooms
    )
"""
_FORGOTTEN: Final = """
    SELECT json_group_array(json_array(id, min(:through, top, trimmed + :events)))
    FROM rooms WHERE name = :room AND trimmed < min(:through, top)
"""
_TRIM_EVENTS: Final = """
    DELETE FROM events WHERE (room, offset) IN (
        SELECT events.room, events.offset FROM json_each(?) AS trim JOIN events
        ON events.room = trim.value ->> 0 AND events.offset <= trim.value ->> 1
    )
"""
_TRIM_ROOMS: Final = """
    UPDATE rooms SET trimmed = max(trimmed, trim.value ->> 1) FROM json_each(?) AS trim
    WHERE rooms.id = trim.value ->> 0
"""


class _Page(msgspec.Struct):
    top: int = 0
    trimmed: int = 0
    records: list[Record] = []


_offset = attrgetter("offset")
_encode = msgspec.json.Encoder().encode
_rooms = msgspec.json.Decoder(dict[str, Room]).decode
_known = msgspec.json.Decoder(list[tuple[int, str, str, int, int]]).decode
_page = msgspec.json.Decoder(_Page).decode
_ends = msgspec.json.Decoder(list[tuple[int, int]]).decode


class SQLite:
    """`sqlite:///FILE`: WAL with `synchronous=FULL`, one thread that writes and one that reads."""

    def __init__(self, url: str) -> None:
        self._path = url.removeprefix("sqlite:///")
        if not self._path or "://" in self._path or self._path == ":memory:":
            raise ValueError("sqlite:// takes a path: sqlite:///chat.db, or sqlite:////var/lib/chat.db")
        self.epoch = ""
        self._log_ends = _LogEnds()
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
        return await self._writer.run(lambda: self._store(entries))

    def _store(self, entries: Sequence[Entry]) -> list[Stamp]:
        names = {entry.room for entry in entries}
        rooms, stamps = _write(self._writer, lambda use: _append(use, self._log_ends.take(use, names), entries))
        self._log_ends.keep(rooms)
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


class _LogEnds:
    """The ends of the logs that the last batches went to. While no other process has stored anything they needn't be
    asked for, which took a tenth of a batch. What is trimmed may be more than they know.
    """

    def __init__(self) -> None:
        self._rooms: dict[str, Room] = {}
        self._version = 0

    def take(self, connection: sqlite3.Connection, names: Collection[str]) -> dict[str, Room]:
        """Those of the rooms called `names`, which are made if there are none. In a transaction that may write; whoever
        took some may change them, and keeps them if it succeeds.
        """
        version = _one(connection, "PRAGMA data_version")
        if version != self._version:
            self._rooms, self._version = {}, version
        rooms = {name: self._rooms.pop(name) for name in names if name in self._rooms}
        return rooms if len(rooms) == len(names) else _find_or_make_rooms(connection, names)

    def keep(self, rooms: dict[str, Room]) -> None:
        if len(self._rooms) > LOG_ENDS:
            self._rooms = {}
        self._rooms.update(rooms)


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
        for statement in script.split(";"):
            connection.execute(statement)
    if version == 0:
        connection.execute("INSERT INTO meta VALUES (?)", [secrets.token_hex(8)])
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


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
    """Does `work` in a transaction. Raises storage errors."""
    thread.check_file()
    return _ask(thread, lambda connection: _in_transaction(connection, work))


def _in_transaction(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    with _transaction(connection):
        return work(connection)


def _storage_error(error: sqlite3.Error) -> StorageUnavailable:
    code = _code(error)
    if code == sqlite3.SQLITE_IOERR:  # if it was the sync of the commit, a crash just now may bring the entries back
        return StorageUnsure()
    return StorageFull() if code == sqlite3.SQLITE_FULL else StorageUnavailable()


def _code(error: sqlite3.Error) -> int:
    """Without what some codes say in addition."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def _append(
    connection: sqlite3.Connection, rooms: dict[str, Room], entries: Sequence[Entry]
) -> tuple[dict[str, Room], list[Stamp]]:
    """Returns `rooms` as they are then, too."""
    keyed = keys(entries, rooms)
    known = _find_known(connection, keyed) if keyed else {}
    stamps, rows = number(entries, rooms, known, time.time_ns() // 1_000_000)
    if rows:
        _add_events(connection, rows)
        connection.execute(_SET_ROOMS, [_text([(room.id, room.top, room.time) for room in rooms.values()])])
    return rooms, stamps


def _add_events(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    for start in range(0, len(rows), ROWS):
        some = rows[start : start + ROWS]
        values: list[object] = [*chain.from_iterable(some)]
        for column in _NULLABLE:
            values[column::_COLUMNS] = [0 if value is None else value for value in values[column::_COLUMNS]]
        connection.execute(_add(len(some)), values)


@functools.cache
def _add(count: int) -> str:
    return _ADD_EVENTS + ", ".join([_ROW] * count)


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
    if after is None:
        end = _END if before is None else min(before, _END)
        found = _one(connection, _BEFORE, {"room": room, "before": end, "limit": limit})
    else:
        found = _one(connection, _AFTER, {"room": room, "after": min(after, _END), "limit": limit})
    page = _page(found) if found else _Page()
    if after is not None and not page.trimmed <= after <= page.top:
        raise Unrecoverable
    return sorted(page.records, key=_offset)


def _trim(connection: sqlite3.Connection, before: int, keep: int) -> bool:
    ends: dict[int, int] = {}
    if before:
        connection.execute(_INDEX_TIME)
        ends.update(_ends(_one(connection, _OLD, [before, TRIM_EVENTS])))
    if keep:
        limits = {"keep": keep, "events": TRIM_EVENTS, "rooms": TRIM_ROOMS}
        for room, last in _ends(_one(connection, _LONG, limits)):
            ends[room] = max(last, ends.get(room, 0))
    return _let_go(connection, ends)


def _forget(connection: sqlite3.Connection, room: str, through: int) -> bool:
    bounds = {"room": room, "through": min(through, _END), "events": TRIM_EVENTS}
    return _let_go(connection, dict(_ends(_one(connection, _FORGOTTEN, bounds))))


def _let_go(connection: sqlite3.Connection, ends: dict[int, int]) -> bool:
    """Of the events of some rooms, by their ids, up to some offsets. False: there are none."""
    if ends:
        connection.execute(_TRIM_EVENTS, [_text(list(ends.items()))])
        connection.execute(_TRIM_ROOMS, [_text(list(ends.items()))])
    return bool(ends)
