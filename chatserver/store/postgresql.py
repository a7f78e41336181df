"""A store in a PostgreSQL database, in a schema of its own: several servers may share it, and others the database."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from typing import Final, TypeAlias, TypeVar

import asyncpg

from chatserver.errors import StorageFull, StorageUnavailable, StorageUnsure, Unrecoverable
from chatserver.store import Entry, Record, Stamp, StoreError, shown
from chatserver.store.numbering import Identity, Room, keys, number

T = TypeVar("T")
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

SECONDS: Final = 2.0
"""How long one call may take, with connecting. Those that wait behind a batch that waits are still answered in time."""

OPEN_SECONDS: Final = 10.0
"""How long `open` may take: another server may be making the tables just now."""

READERS: Final = 2

TRIM_EVENTS: Final = 500
"""So many at once, so that an append waits for milliseconds only."""

MIGRATIONS: Final = (
    """
    CREATE TABLE chatserver.meta (epoch text NOT NULL, version integer NOT NULL);
    CREATE TABLE chatserver.rooms (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        name text COLLATE "C" NOT NULL UNIQUE,
        top bigint NOT NULL DEFAULT 0,      -- offset of the last event
        trimmed bigint NOT NULL DEFAULT 0,  -- offset of the last event that isn't kept any more
        time bigint NOT NULL DEFAULT 0      -- of the last event, in milliseconds since 1970
    ) WITH (fillfactor = 50);               -- each append updates its rooms: new versions find place beside the old
    CREATE TABLE chatserver.events (
        room bigint NOT NULL,
        "offset" bigint NOT NULL,
        time bigint NOT NULL,
        kind text NOT NULL,
        "user" text COLLATE "C" NOT NULL,
        data text NOT NULL,
        key text COLLATE "C",
        PRIMARY KEY (room, "offset")
    );
    CREATE UNIQUE INDEX events_key ON chatserver.events (room, "user", key) WHERE key IS NOT NULL;
    CREATE INDEX events_time ON chatserver.events (time);
    """,
    "ALTER TABLE chatserver.events ADD COLUMN meta text",
)
"""Each brings the schema from one version (in `meta`) to the next."""

_END: Final = 1 << 62
"""Beyond all offsets."""

_LOCK: Final = int.from_bytes(b"chatserv")
"""Of the database, while its schema is looked at and changed."""

_BEGIN: Final = """
    BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;
    SET LOCAL synchronous_commit = on;
    SET LOCAL statement_timeout = {milliseconds:.0f};
    SET LOCAL idle_in_transaction_session_timeout = {milliseconds:.0f};
    SET LOCAL enable_seqscan = off;
    SET LOCAL jit = off;
"""
"""All that a transaction depends on, whatever the server's defaults are and whoever else uses a pooler's connections.

The timeouts are for what we can't tell the server any more: they free what a transaction of ours has locked. Indexes
are used also by plans that were made when the tables were small.
"""

# A statement sees what was committed when it began, which may be long before it got the lock of a row: what depends on
# other rows than the locked ones takes a statement of its own. Rooms are made before any is locked, by their names'
# order, and locked by their ids': so no two transactions wait for each other.
_LOCK_ROOMS: Final = """
    SELECT name, id, top, trimmed, time FROM chatserver.rooms WHERE name = ANY ($1::text[]) ORDER BY id FOR UPDATE
"""
_ADD_ROOMS: Final = """
    INSERT INTO chatserver.rooms (name) SELECT name FROM unnest($1::text[]) AS name ORDER BY name COLLATE "C"
    ON CONFLICT DO NOTHING
"""
_KNOWN: Final = """
    SELECT sent.*, first.* FROM unnest($1::bigint[], $2::text[], $3::text[]) AS sent (room, "user", key), LATERAL (
        SELECT "offset", time FROM chatserver.events
        WHERE room = sent.room AND "user" = sent."user" AND key = sent.key AND key IS NOT NULL LIMIT 1
    ) AS first
"""
_ADD_EVENTS: Final = """
    WITH added AS (
        INSERT INTO chatserver.events (room, "offset", time, kind, "user", data, key, meta) SELECT * FROM unnest(
            $1::bigint[], $2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[]
        )
    )
    UPDATE chatserver.rooms SET top = sent.top, time = sent.time
    FROM unnest($9::bigint[], $10::bigint[], $11::bigint[]) AS sent (id, top, time) WHERE rooms.id = sent.id
"""
_AFTER: Final = """
    SELECT rooms.top, rooms.trimmed, page.* FROM chatserver.rooms LEFT JOIN LATERAL (
        SELECT "offset", time, kind, "user", data, key, meta FROM chatserver.events
        WHERE room = rooms.id AND "offset" > $2::bigint ORDER BY "offset" LIMIT $3::bigint
    ) AS page ON true WHERE rooms.name = $1::text ORDER BY page."offset"
"""
_BEFORE: Final = """
    SELECT rooms.top, rooms.trimmed, page.* FROM chatserver.rooms LEFT JOIN LATERAL (
        SELECT "offset", time, kind, "user", data, key, meta FROM chatserver.events
        WHERE room = rooms.id AND "offset" < $2::bigint ORDER BY "offset" DESC LIMIT $3::bigint
    ) AS page ON true WHERE rooms.name = $1::text ORDER BY page."offset"
"""
_TOPS: Final = "SELECT name, top FROM chatserver.rooms WHERE name = ANY ($1::text[])"
_OLD: Final = """
    SELECT room, max("offset") AS last FROM (
        SELECT room, "offset" FROM chatserver.events WHERE time < $1::bigint ORDER BY time, room, "offset" LIMIT $2
    ) AS old GROUP BY room
"""
_LONG: Final = """
    SELECT id AS room, least(top - $1::bigint, trimmed + $2::bigint) AS last FROM chatserver.rooms
    WHERE top - trimmed > $1::bigint LIMIT $3
"""
_FORGOTTEN: Final = """
    SELECT id AS room, least($2::bigint, top, trimmed + $3::bigint) AS last FROM chatserver.rooms
    WHERE name = $1::text AND trimmed < least($2::bigint, top)
"""
_LOCK_IDS: Final = "SELECT FROM chatserver.rooms WHERE id = ANY ($1::bigint[]) ORDER BY id FOR UPDATE"
_TRIM: Final = """
    WITH ends AS (
        SELECT * FROM unnest($1::bigint[], $2::bigint[]) AS ends (room, last)
    ), gone AS (
        DELETE FROM chatserver.events USING ends WHERE events.room = ends.room AND events."offset" <= ends.last
    )
    UPDATE chatserver.rooms SET trimmed = greatest(trimmed, ends.last) FROM ends WHERE rooms.id = ends.room
"""

_FAILURES: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)


class PostgreSQL:
    """`postgresql://user:password@host/database`: commits with `synchronous_commit = on`, one connection that writes
    and two that read.

    The URL may name several hosts, with `?target_session_attrs=read-write`. A pooler in between must keep prepared
    statements, as PgBouncer does in session mode, and from 1.21 on in transaction mode.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self.epoch = ""
        self._writer = _Connections(url, 1)
        self._readers = _Connections(url, READERS)

    async def open(self) -> None:
        try:
            self.epoch = await self._write(_migrate, OPEN_SECONDS)
        except StoreError as error:
            raise StoreError(f"{shown(self._url)}: {error}") from None
        except StorageUnavailable as error:
            raise StoreError(f"{shown(self._url)}: {_first_line(error.__cause__ or error)}") from None
        except ValueError:
            # Not with asyncpg's reason: it may quote what it takes for a port, or a part of the password.
            raise StoreError("not a URL of PostgreSQL; in a password, / is written as %2F and so on") from None

    async def close(self) -> None:
        await self._writer.close()
        await self._readers.close()

    async def append(self, entries: Sequence[Entry]) -> list[Stamp]:
        return await self._write(lambda connection: _append(connection, entries))

    async def read(self, room: str, *, after: int | None = None, before: int | None = None, limit: int) -> list[Record]:
        if after is None:
            query, bound = _BEFORE, _END if before is None else before
        else:
            query, bound = _AFTER, after
        async with self._readers.use() as connection:
            rows = await connection.fetch(query, room, _bounded(bound), _bounded(limit))
        top, trimmed = rows[0][:2] if rows else (0, 0)
        if after is not None and not trimmed <= after <= top:
            raise Unrecoverable
        return [Record(*row[2:]) for row in rows if row["offset"] is not None]

    async def top(self, rooms: Collection[str]) -> dict[str, int]:
        async with self._readers.use() as connection:
            found = {row["name"]: row["top"] for row in await connection.fetch(_TOPS, list(rooms))}
        return {room: found.get(room, 0) for room in rooms}

    async def trim(self, *, before: int, keep: int) -> bool:
        return await self._write(lambda connection: _trim(connection, before, keep))

    async def forget(self, room: str, through: int) -> bool:
        return await self._write(lambda connection: _forget(connection, room, through))

    async def _write(self, work: Callable[[Connection], Awaitable[T]], seconds: float = SECONDS) -> T:
        """Does `work` in a transaction. Raises storage errors."""
        committing = False
        try:
            async with self._writer.use(seconds) as connection:
                await _begin(connection, seconds)
                result = await work(connection)
                committing = True
                await connection.execute("COMMIT")
        except StorageUnavailable as error:
            if committing:
                raise StorageUnsure from error.__cause__
            raise
        return result


class _Connections:
    """At most `count` connections, made when needed. When one fails all are given up, and the next call tries anew."""

    def __init__(self, url: str, count: int) -> None:
        self._url = url
        self._turn = asyncio.Semaphore(count)
        self._idle: list[Connection] = []
        self._connecting: set[asyncio.Task[Connection]] = set()
        self._closed = False

    @contextlib.asynccontextmanager
    async def use(self, seconds: float = SECONDS) -> AsyncIterator[Connection]:
        """A connection for the caller alone, who has `seconds` from now on. Raises storage errors, also for what
        happens meanwhile.
        """
        try:
            async with asyncio.timeout(seconds), self._turn:
                connection = await self._take()
                try:
                    yield connection
                except BaseException:
                    self._give_up(connection)
                    raise
                if self._closed:
                    connection.terminate()
                else:
                    self._idle.append(connection)
        except TimeoutError:
            raise StorageUnavailable from TimeoutError("no answer in time")
        except asyncpg.DiskFullError as error:
            raise StorageFull from error
        except _FAILURES as error:
            raise StorageUnavailable from error

    async def close(self) -> None:
        self._closed = True
        closing = [connection.close(timeout=1) for connection in self._idle]
        self._idle.clear()
        await asyncio.gather(*closing, *self._connecting, return_exceptions=True)

    async def _take(self) -> Connection:
        if self._closed:
            raise StorageUnavailable
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return await self._connect()

    async def _connect(self) -> Connection:
        # A task of its own, since asyncpg loses an exception when it is cancelled at the wrong moment.
        connecting = asyncio.create_task(asyncpg.connect(self._url, timeout=SECONDS))
        self._connecting.add(connecting)
        connecting.add_done_callback(self._connecting.discard)
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            connecting.add_done_callback(_abandon)
            raise

    def _give_up(self, failed: Connection) -> None:
        for connection in (failed, *self._idle):
            connection.terminate()
        self._idle.clear()


def _abandon(connecting: asyncio.Task[Connection]) -> None:
    if not connecting.cancelled() and not connecting.exception():
        connecting.result().terminate()


async def _begin(connection: Connection, seconds: float) -> None:
    await connection.execute(_BEGIN.format(milliseconds=seconds * 1000))


async def _migrate(connection: Connection) -> str:
    """Makes the tables, or brings them up to date. Returns the epoch."""
    encoding = connection.get_settings().server_encoding
    if encoding != "UTF8":
        raise StoreError(f"the database has the encoding {encoding}, UTF8 is needed")
    await connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
    version = await _version(connection)
    if version > len(MIGRATIONS):
        raise StoreError(f"made by a later version of chatserver (schema {version}, this one knows {len(MIGRATIONS)})")
    for script in MIGRATIONS[version:]:
        await connection.execute(script)
    if version == 0:
        await connection.execute("INSERT INTO chatserver.meta VALUES ($1, 0)", secrets.token_hex(8))
    if version < len(MIGRATIONS):
        await connection.execute("UPDATE chatserver.meta SET version = $1", len(MIGRATIONS))
    epoch: str = await connection.fetchval("SELECT epoch FROM chatserver.meta")
    return epoch


async def _version(connection: Connection) -> int:
    """Of the schema; 0, and a schema without tables, where there was none."""
    if await connection.fetchval("SELECT to_regclass('chatserver.meta')"):
        version: int = await connection.fetchval("SELECT version FROM chatserver.meta")
        return version
    if not await connection.fetchval("SELECT to_regnamespace('chatserver')"):
        await connection.execute("CREATE SCHEMA chatserver")
    elif await connection.fetchval("SELECT 1 FROM pg_class WHERE relnamespace = 'chatserver'::regnamespace"):
        raise StoreError("the schema chatserver of this database is something else's")
    return 0


async def _append(connection: Connection, entries: Sequence[Entry]) -> list[Stamp]:
    rooms = await _lock_or_make_rooms(connection, {entry.room for entry in entries})
    keyed = keys(entries, rooms)
    known = await _find_known(connection, keyed) if keyed else {}
    stamps = number(entries, rooms, known, time.time_ns() // 1_000_000)
    rows = [
        (rooms[entry.room].id, stamp.offset, stamp.time, entry.kind, entry.user, entry.data, entry.key, entry.meta)
        for entry, stamp in zip(entries, stamps, strict=True)
        if stamp.new
    ]
    if rows:
        ends = [(room.id, room.top, room.time) for room in rooms.values()]
        await connection.execute(_ADD_EVENTS, *_columns(rows), *_columns(ends))
    return stamps


def _columns(rows: Sequence[tuple[object, ...]]) -> list[tuple[object, ...]]:
    return list(zip(*rows, strict=True))


async def _lock_rooms(connection: Connection, names: Collection[str]) -> dict[str, Room]:
    rows = await connection.fetch(_LOCK_ROOMS, list(names))
    return {row["name"]: Room(row["id"], row["top"], row["trimmed"], row["time"]) for row in rows}


async def _lock_or_make_rooms(connection: Connection, names: Collection[str]) -> dict[str, Room]:
    rooms = await _lock_rooms(connection, names)
    if len(rooms) < len(names):
        await connection.execute("ROLLBACK")
        await _begin(connection, SECONDS)
        await connection.execute(_ADD_ROOMS, list(names))
        rooms = await _lock_rooms(connection, names)
    return rooms


async def _find_known(connection: Connection, keyed: Sequence[tuple[int, str, str]]) -> dict[Identity, Stamp]:
    rows = await connection.fetch(_KNOWN, *_columns(keyed))
    return {(room, user, key): Stamp(offset, time, new=False) for room, user, key, offset, time in rows}


async def _trim(connection: Connection, before: int, keep: int) -> bool:
    ends = {row["room"]: row["last"] for row in await connection.fetch(_OLD, before, TRIM_EVENTS)}
    if keep:
        for room, last in await connection.fetch(_LONG, keep, TRIM_EVENTS // 10, TRIM_EVENTS // 10):
            ends[room] = max(last, ends.get(room, 0))
    return await _let_go(connection, ends)


async def _forget(connection: Connection, room: str, through: int) -> bool:
    rows = await connection.fetch(_FORGOTTEN, room, _bounded(through), TRIM_EVENTS)
    return await _let_go(connection, {row["room"]: row["last"] for row in rows})


async def _let_go(connection: Connection, ends: dict[int, int]) -> bool:
    """Of the events of some rooms, by their ids, up to some offsets. False: there are none."""
    if ends:
        await connection.execute(_LOCK_IDS, list(ends))
        await connection.execute(_TRIM, list(ends), list(ends.values()))
    return bool(ends)


def _bounded(number: int) -> int:
    """What the type of the column can hold."""
    return max(-1, min(number, _END))


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
