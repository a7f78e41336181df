"""What PostgreSQL and its network do to a store: the rest is `check_store`'s."""

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator

import asyncpg
import pytest

from chatserver.errors import StorageFull, StorageUnavailable, StorageUnsure
from chatserver.store import Entry, Record, Stamp, StoreError, postgresql
from chatserver.store.postgresql import PostgreSQL
from tests.postgres import PASSWORD, Postgres
from tests.server import free_port

ROOMS = ("alpha", "beta", "gamma")
ALL = 1_000_000


@pytest.fixture
def url(postgres: Postgres) -> str:
    """Of a database that nobody has used."""
    return postgres.url()


@pytest.fixture
async def store(url: str) -> AsyncIterator[PostgreSQL]:
    store = PostgreSQL(url)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def stores(url: str) -> AsyncIterator[list[PostgreSQL]]:
    """Three, as if of three servers."""
    stores = [PostgreSQL(url) for _ in range(3)]
    await asyncio.gather(*(store.open() for store in stores))
    yield stores
    await asyncio.gather(*(store.close() for store in stores))


@pytest.fixture
async def admin(url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """Somebody else's connection to the same database."""
    connection = await asyncpg.connect(url)
    yield connection
    await connection.close()


@pytest.fixture
def server(postgres: Postgres) -> Iterator[Postgres]:
    """A server that the test may treat badly."""
    yield postgres
    postgres.start()


class Load:
    """Appends to `store`, several tasks at once, and remembers what became of each batch."""

    def __init__(self, store: PostgreSQL) -> None:
        self.store = store
        self.acknowledged: dict[Entry, Stamp] = {}
        self.refused: list[Entry] = []
        self.unsure: list[list[Entry]] = []
        self._numbers = itertools.count()
        self._stopping = False

    async def run(self, senders: int = 4) -> None:
        await asyncio.gather(*(self._send(f"user{number}") for number in range(senders)))

    def stop(self) -> None:
        self._stopping = True

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.01)

    async def more(self, count: int) -> None:
        """Waits until so many more are stored."""
        enough = len(self.acknowledged) + count
        await self.until(lambda: len(self.acknowledged) >= enough)

    async def failure(self) -> None:
        """Waits until one more batch isn't stored."""
        enough = len(self.refused) + len(self.unsure) + 1
        await self.until(lambda: len(self.refused) + len(self.unsure) >= enough)

    async def check(self) -> None:
        """Compares with what is stored now."""
        logs = {room: await self.store.read(room, after=0, limit=ALL) for room in ROOMS}
        for room, log in logs.items():
            assert [record.offset for record in log] == list(range(1, len(log) + 1))
            assert (await self.store.top([room]))[room] == len(log)
        stored = Counter(record.data for log in logs.values() for record in log)
        assert set(stored.values()) <= {1}
        for entry, stamp in self.acknowledged.items():
            assert logs[entry.room][stamp.offset - 1] == record_of(entry, stamp)
        assert not {entry.data for entry in self.refused} & stored.keys()
        for batch in self.unsure:
            assert len({entry.data in stored for entry in batch}) == 1

    async def _send(self, user: str) -> None:
        while not self._stopping:
            batch = [Entry(room, user, f'{{"body":"{next(self._numbers)}"}}') for room in (*ROOMS, ROOMS[0])]
            try:
                async with asyncio.timeout(30):
                    stamps = await self.store.append(batch)
            except StorageUnsure:
                self.unsure.append(batch)
            except StorageUnavailable:
                self.refused += batch
                await asyncio.sleep(0.05)
            else:
                self.acknowledged.update(zip(batch, stamps, strict=True))


def record_of(entry: Entry, stamp: Stamp) -> Record:
    return Record(stamp.offset, stamp.time, entry.kind, entry.user, entry.data, entry.key)


def entry(room: str = "lobby", body: str = "hi", key: str | None = None) -> Entry:
    return Entry(room, "alice", f'{{"body":"{body}"}}', key=key)


async def on_insert(admin: "asyncpg.Connection[asyncpg.Record]", body: str, *, when: str = "") -> None:
    """Has the server run `body` for each event that is stored."""
    await admin.execute(f"""
        CREATE FUNCTION trouble() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER trouble AFTER INSERT ON chatserver.events {when}
        FOR EACH ROW EXECUTE FUNCTION trouble();
    """)


async def until_somebody_waits_for_a_lock(admin: "asyncpg.Connection[asyncpg.Record]") -> None:
    async with asyncio.timeout(30):
        while not await admin.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            await asyncio.sleep(0.01)


async def until_nobody_else_is_connected(admin: "asyncpg.Connection[asyncpg.Record]") -> None:
    async with asyncio.timeout(30):
        while await admin.fetchval("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()") > 1:
            await asyncio.sleep(0.01)


# --- a server that comes and goes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["stop", "kill", "crash", "suspend"])
async def test_what_is_acknowledged_is_kept_when_the_server_comes_and_goes_under_load(
    server: Postgres, store: PostgreSQL, trouble: str
) -> None:
    load = Load(store)
    running = asyncio.create_task(load.run())
    for _ in range(2):
        await load.more(40)
        failure = asyncio.create_task(load.failure())
        await asyncio.sleep(0)
        await asyncio.to_thread(getattr(server, trouble))
        await failure
        await asyncio.to_thread(server.start)
    await load.more(40)
    load.stop()
    await running
    await load.check()


async def test_the_first_calls_after_a_restart_that_nobody_noticed_succeed(server: Postgres, store: PostgreSQL) -> None:
    await store.append([entry()])
    await asyncio.gather(*(store.top(["lobby"]) for _ in range(2)))
    await asyncio.to_thread(server.stop)
    await asyncio.to_thread(server.start)
    assert [stamp.offset for stamp in await store.append([entry()])] == [2]
    assert await asyncio.gather(*(store.top(["lobby"]) for _ in range(4))) == [{"lobby": 2}] * 4


@pytest.mark.parametrize("trouble", ["stop", "suspend"])
async def test_reads_fail_in_time_and_go_on_when_the_server_does(
    server: Postgres, store: PostgreSQL, trouble: str
) -> None:
    stamps = await store.append([entry()])
    expected = [record_of(entry(), stamps[0])]
    assert await store.read("lobby", limit=10) == expected
    await asyncio.to_thread(getattr(server, trouble))
    reads = [store.read("lobby", limit=10) for _ in range(4)]
    async with asyncio.timeout(30):
        failures = await asyncio.gather(*reads, store.top(["lobby"]), return_exceptions=True)
    assert {type(failure) for failure in failures} == {StorageUnavailable}
    await asyncio.to_thread(server.start)
    assert await store.read("lobby", limit=10) == expected
    assert await store.top(["lobby"]) == {"lobby": 1}


async def test_a_store_is_closed_in_time_while_the_server_stands_still(server: Postgres, url: str) -> None:
    store = PostgreSQL(url)
    await store.open()
    await store.read("lobby", limit=1)
    await asyncio.to_thread(server.suspend)
    reading = asyncio.create_task(store.read("lobby", limit=1))
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await store.close()
    with pytest.raises(StorageUnavailable):
        await reading


async def test_a_read_that_is_on_its_way_while_a_store_is_closed_leaves_no_connection_behind(
    store: PostgreSQL, admin: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    async with admin.transaction():
        await admin.execute("LOCK TABLE chatserver.events")
        reading = asyncio.create_task(store.read("lobby", limit=1))
        await until_somebody_waits_for_a_lock(admin)
        await store.close()
    assert await reading == []
    await until_nobody_else_is_connected(admin)


async def test_a_closed_store_connects_no_more(store: PostgreSQL) -> None:
    await store.close()
    with pytest.raises(StorageUnavailable):
        await store.append([entry()])
    with pytest.raises(StorageUnavailable):
        await store.read("lobby", limit=1)


async def test_an_append_that_is_given_up_leaves_no_connection_behind(
    store: PostgreSQL, admin: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    for turns, seconds in [(turns, seconds) for seconds in (0, 0.001) for turns in range(20)]:
        appending = asyncio.create_task(store.append([entry()]))
        for _ in range(turns):
            await asyncio.sleep(seconds)
        appending.cancel()
        await asyncio.wait([appending])
    await store.close()
    await until_nobody_else_is_connected(admin)


# --- transactions that fail ------------------------------------------------------------------------------------------

END_CONNECTION = "PERFORM pg_terminate_backend(pg_backend_pid())"
AT_COMMIT = "DEFERRABLE INITIALLY DEFERRED"


async def test_a_full_disk_is_told_apart(store: PostgreSQL, admin: "asyncpg.Connection[asyncpg.Record]") -> None:
    await on_insert(admin, "RAISE 'could not extend file' USING ERRCODE = 'disk_full'")
    with pytest.raises(StorageFull):
        await store.append([entry()])
    await admin.execute("DROP TRIGGER trouble ON chatserver.events")
    assert [stamp.offset for stamp in await store.append([entry()])] == [1]


async def test_a_connection_lost_before_the_commit_leaves_no_doubt(
    store: PostgreSQL, admin: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await on_insert(admin, END_CONNECTION)
    with pytest.raises(StorageUnavailable) as caught:
        await store.append([entry()])
    assert type(caught.value) is StorageUnavailable
    await admin.execute("DROP TRIGGER trouble ON chatserver.events")
    assert [stamp.offset for stamp in await store.append([entry()])] == [1]


async def test_a_connection_lost_during_the_commit_leaves_it_open(
    store: PostgreSQL, admin: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await on_insert(admin, END_CONNECTION, when=AT_COMMIT)
    with pytest.raises(StorageUnsure):
        await store.append([entry()])


async def test_what_was_left_open_is_found_by_its_key(
    store: PostgreSQL, admin: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await on_insert(admin, "PERFORM pg_sleep(3)", when=AT_COMMIT)
    async with asyncio.timeout(30):
        with pytest.raises(StorageUnsure):
            await store.append([entry(key="one")])
    await admin.execute("DROP TRIGGER trouble ON chatserver.events")
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(StorageUnavailable):  # the first one may not be over yet
                (stamp,) = await store.append([entry(key="one")])
                break
    assert (stamp.offset, stamp.new) == (1, False)


async def test_a_room_locked_by_somebody_else_keeps_nobody_waiting_for_long(
    store: PostgreSQL, admin: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await store.append([entry()])
    async with admin.transaction():
        await admin.execute("SELECT FROM chatserver.rooms FOR UPDATE")
        async with asyncio.timeout(30):
            with pytest.raises(StorageUnavailable) as caught:
                await store.append([entry("other"), entry()])
        assert type(caught.value) is StorageUnavailable
        assert [stamp.offset for stamp in await store.append([entry("other")])] == [1]
    assert [stamp.offset for stamp in await store.append([entry()])] == [2]


async def test_a_server_that_stands_still_in_an_append_does_not_lock_the_others_out(
    store: PostgreSQL, admin: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await store.append([entry()])
    await admin.execute(postgresql._BEGIN.format(milliseconds=200))
    await admin.execute("SELECT FROM chatserver.rooms FOR UPDATE")
    assert [stamp.offset for stamp in await store.append([entry()])] == [2]


async def test_a_room_that_could_not_be_appended_to_takes_no_space(
    store: PostgreSQL, admin: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await on_insert(admin, "RAISE 'no'")
    with pytest.raises(StorageUnavailable):
        await store.append([entry()])
    assert await admin.fetchval("SELECT count(*) FROM chatserver.rooms") == 0


async def test_defaults_of_the_database_change_nothing(url: str, admin: "asyncpg.Connection[asyncpg.Record]") -> None:
    name = await admin.fetchval("SELECT current_database()")
    for setting in ("synchronous_commit = off", "default_transaction_isolation = serializable",
                    "default_transaction_read_only = on", "search_path = nowhere"):  # fmt: skip
        await admin.execute(f"ALTER DATABASE {name} SET {setting}")
    store = PostgreSQL(url)
    await store.open()
    await admin.execute("CREATE TABLE seen (name text, setting text)")
    names = "('synchronous_commit'), ('transaction_isolation')"
    await on_insert(admin, f"INSERT INTO public.seen SELECT n, current_setting(n) FROM (VALUES {names}) AS names (n)")
    await store.append([entry()])
    await store.close()
    seen = {row["name"]: row["setting"] for row in await admin.fetch("SELECT * FROM seen")}
    assert seen == {"synchronous_commit": "on", "transaction_isolation": "read committed"}


# --- several servers on one database ---------------------------------------------------------------------------------


async def follow(store: PostgreSQL, room: str, end: int) -> list[Record]:
    """Reads on from what it has read, as a room does, until `end`."""
    seen: list[Record] = []
    while len(seen) < end:
        top = (await store.top([room]))[room]
        found = await store.read(room, after=len(seen), limit=100)
        assert len(seen) + len(found) >= min(top, len(seen) + 100), "what there was isn't read"
        seen += found
        assert [record.offset for record in seen] == list(range(1, len(seen) + 1))
    return seen


async def fill(store: PostgreSQL, number: int, batches: int) -> None:
    for batch in range(batches):
        await store.append([entry(room, f"{number}-{batch}-{room}") for room in ROOMS])


async def test_readers_never_see_a_hole_or_something_late(stores: list[PostgreSQL]) -> None:
    batches = 40
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        for number, store in enumerate(stores):
            group.create_task(fill(store, number, batches))
        followers = [
            (room, group.create_task(follow(store, room, batches * len(stores)))) for store in stores for room in ROOMS
        ]
    for room, follower in followers:
        log = await stores[0].read(room, after=0, limit=ALL)
        assert follower.result() == log
        assert sorted(record.time for record in log) == [record.time for record in log]


async def test_one_key_is_stored_once_whichever_server_it_is_sent_to(stores: list[PostgreSQL]) -> None:
    for number in range(20):
        sent = [entry(key=f"{number}")]
        stamps = [stamp for (stamp,) in await asyncio.gather(*(store.append(sent) for store in stores))]
        assert {stamp.offset for stamp in stamps} == {number + 1}
        assert [stamp.new for stamp in stamps].count(True) == 1


async def test_who_waits_for_a_room_that_another_server_makes_has_none_locked(
    store: PostgreSQL, admin: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await store.append([entry("old")])
    async with admin.transaction():
        await admin.execute("INSERT INTO chatserver.rooms (name) VALUES ('new')")
        appending = asyncio.create_task(store.append([entry("old"), entry("new")]))
        await until_somebody_waits_for_a_lock(admin)
        await admin.execute("SELECT FROM chatserver.rooms WHERE name = 'old' FOR UPDATE NOWAIT")
    assert [stamp.offset for stamp in await appending] == [2, 1]


@pytest.mark.parametrize("trimming", [False, True])
async def test_who_waits_for_a_room_has_none_locked_that_was_made_later(
    store: PostgreSQL, admin: "asyncpg.Connection[asyncpg.Record]", trimming: bool
) -> None:
    batch = [entry(f"room-{number}") for number in range(20)]
    await store.append(batch)
    async with admin.transaction():
        first, *others = [row["id"] for row in await admin.fetch("SELECT id FROM chatserver.rooms ORDER BY id")]
        await admin.execute("SELECT FROM chatserver.rooms WHERE id = $1 FOR UPDATE", first)
        work = store.trim(before=1 << 60, keep=0) if trimming else store.append(batch)
        working = asyncio.create_task(work)
        await until_somebody_waits_for_a_lock(admin)
        await admin.execute("SELECT FROM chatserver.rooms WHERE id = ANY ($1) FOR UPDATE NOWAIT", others)
    await working


# --- opening ---------------------------------------------------------------------------------------------------------


async def test_servers_started_at_once_on_an_empty_database_agree(url: str) -> None:
    stores = [PostgreSQL(url) for _ in range(6)]
    await asyncio.gather(*(store.open() for store in stores))
    assert len({store.epoch for store in stores}) == 1
    await asyncio.gather(*(store.append([entry()]) for store in stores))
    assert await stores[0].top(["lobby"]) == {"lobby": 6}
    await asyncio.gather(*(store.close() for store in stores))


async def refused(url: str) -> str:
    """Why `url` can't be opened. Then there is nothing left to be closed, but it may be."""
    store = PostgreSQL(url)
    with pytest.raises(StoreError) as caught:
        await store.open()
    await store.close()
    assert "\n" not in str(caught.value)
    return str(caught.value)


FIRST_VERSION = """
    CREATE SCHEMA chatserver;
    CREATE TABLE chatserver.meta (epoch text NOT NULL, version integer NOT NULL);
    CREATE TABLE chatserver.rooms (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        name text COLLATE "C" NOT NULL UNIQUE,
        top bigint NOT NULL DEFAULT 0,
        trimmed bigint NOT NULL DEFAULT 0,
        time bigint NOT NULL DEFAULT 0
    ) WITH (fillfactor = 50);
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
    INSERT INTO chatserver.meta VALUES ('0123456789abcdef', 1);
    INSERT INTO chatserver.rooms (name, top, trimmed, time) VALUES ('lobby', 3, 1, 8);
    INSERT INTO chatserver.events VALUES (1, 2, 7, 'message', 'alice', '{}', 'k'), (1, 3, 8, 'edit', 'bob', '[]', NULL);
"""
"""A schema that a server made which knew no `meta`."""


async def test_what_the_first_version_kept_is_kept_and_goes_on(
    url: str, admin: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await admin.execute(FIRST_VERSION)
    table = "SELECT relfilenode FROM pg_class WHERE oid = 'chatserver.events'::regclass"
    file = await admin.fetchval(table)
    kept = [Record(2, 7, "message", "alice", "{}", "k"), Record(3, 8, "edit", "bob", "[]")]
    stores = [PostgreSQL(url) for _ in range(4)]
    await asyncio.gather(*(store.open() for store in stores))
    assert {store.epoch for store in stores} == {"0123456789abcdef"}
    assert await admin.fetchval("SELECT version FROM chatserver.meta") == len(postgresql.MIGRATIONS)
    assert await admin.fetchval(table) == file, "the table was written anew, which takes long when it is big"
    assert await stores[0].read("lobby", after=1, limit=10) == kept
    entries = [Entry("lobby", "alice", "{}", key="k"), Entry("lobby", "bob", "{}", meta="[1]")]
    again, new = await stores[1].append(entries)
    assert again == Stamp(2, 7, new=False)
    added = Record(4, new.time, "message", "bob", "{}", None, "[1]")
    assert await stores[2].read("lobby", limit=10) == [*kept, added]
    await asyncio.gather(*(store.close() for store in stores))


async def test_an_older_server_leaves_what_a_newer_one_made_alone(
    url: str, store: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "MIGRATIONS", postgresql.MIGRATIONS[:1])
    assert "made by a later version of chatserver (schema 2, this one knows 1)" in await refused(url)
    await store.append([entry()])


async def test_tables_of_a_later_version_are_left_alone(
    url: str, store: PostgreSQL, admin: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await admin.execute("UPDATE chatserver.meta SET version = 99")
    assert "made by a later version of chatserver (schema 99" in await refused(url)
    assert await admin.fetchval("SELECT version FROM chatserver.meta") == 99


async def test_a_schema_that_somebody_else_uses_is_left_alone(
    url: str, admin: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await admin.execute("CREATE SCHEMA chatserver; CREATE TABLE chatserver.rooms (number integer)")
    assert "something else's" in await refused(url)


async def test_others_tables_in_the_same_database_do_not_matter(
    url: str, admin: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await admin.execute("CREATE TABLE rooms (x text); CREATE TABLE events (x text); CREATE TABLE meta (x text)")
    store = PostgreSQL(url)
    await store.open()
    await store.append([entry()])
    await store.close()
    assert await admin.fetchval("SELECT count(*) FROM public.events") == 0


async def test_who_may_not_make_a_schema_uses_one_that_was_made(
    postgres: Postgres, url: str, admin: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    role = url.rpartition("/")[2] + "_role"
    await admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
    theirs = url.replace("chat:", f"{role}:")
    assert "permission denied" in await refused(theirs)
    await admin.execute(f"CREATE SCHEMA chatserver AUTHORIZATION {role}")
    store = PostgreSQL(theirs)
    await store.open()
    await store.close()


async def test_a_wrong_password_is_refused_and_never_shown(url: str) -> None:
    reason = await refused(url.replace(PASSWORD, "wrong-horse"))
    assert "password authentication failed" in reason
    assert "127.0.0.1" in reason
    assert "wrong-horse" not in reason
    assert "wrong-horse" not in await refused(f"{url.replace(f':{PASSWORD}', '')}?password=wrong-horse")


async def test_a_url_that_makes_no_sense_is_refused_without_being_shown() -> None:
    reason = await refused("postgresql://chat:wrong/horse@127.0.0.1/chat")
    assert "not a URL of PostgreSQL" in reason
    assert "wrong" not in reason
    assert "horse" not in reason


async def test_a_reason_that_takes_several_lines_is_cut_to_the_first(url: str) -> None:
    assert 'invalid value for parameter "work_mem"' in await refused(f"{url}?work_mem=1XB")


async def test_a_server_that_is_not_there_is_named() -> None:
    port = free_port()
    assert f"127.0.0.1:{port}" in await refused(f"postgresql://chat@127.0.0.1:{port}/chat")


async def test_a_server_that_stands_still_is_no_reason_to_wait_for_long(server: Postgres, url: str) -> None:
    await asyncio.to_thread(server.suspend)
    async with asyncio.timeout(30):
        assert await refused(url)


async def test_a_database_that_cannot_hold_all_text_is_refused(
    url: str, admin: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await admin.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    assert "UTF8 is needed" in await refused(url.rpartition("/")[0] + "/latin")
