"""What only the store in a file has: files, other processes, and what goes wrong with them."""

import asyncio
import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatserver.errors import StorageFull, StorageUnavailable
from chatserver.store import Entry, Record, Stamp, StoreError, sqlite
from chatserver.store.sqlite import MIGRATIONS, OFFSET_BITS, ROWS, SEGMENT_EVENTS, SQLite
from chatserver.testing import check_at_random
from tests.fakes import PATIENT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store will be."""
    return tmp_path / "chat.db"


@contextlib.asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SQLite]:
    store = SQLite(f"sqlite:///{path}")
    try:
        await store.open()
        yield store
    finally:
        await store.close()


def entries(count: int, *, room: str = "room", data: str = "{}") -> list[Entry]:
    return [Entry(room, "alice", data) for _ in range(count)]


def other(path: Path) -> contextlib.closing[sqlite3.Connection]:
    """Somebody else's connection to the file."""
    return contextlib.closing(sqlite3.connect(path, isolation_level=None))


def ask(path: Path, query: str) -> object:
    with other(path) as connection:
        return connection.execute(query).fetchone()[0]


EVENTS = "SELECT coalesce(sum(json_array_length(events)), 0) FROM segments"


# --- opening ---------------------------------------------------------------------------------------------------------


async def test_file_and_schema_are_made_on_the_first_start(path: Path) -> None:
    async with opened(path) as store:
        assert store.epoch
        assert ask(path, "PRAGMA journal_mode") == "wal"
        assert ask(path, "PRAGMA user_version") == len(MIGRATIONS)
        assert ask(path, "SELECT epoch FROM meta") == store.epoch


async def test_a_relative_path_starts_at_the_working_folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    async with opened(Path("chat.db")):
        assert path.exists()


async def test_an_append_beside_a_busy_loop_waits_for_few_of_its_turns(path: Path) -> None:
    """The loop has the interpreter's lock, but for a moment in each turn."""
    async with opened(path) as store:
        await store.append(entries(1))
        assert min([await turns_of_append(store) for _ in range(5)]) < 2000  # with 5 ms they were ten times as many


async def turns_of_append(store: SQLite) -> int:
    appending = asyncio.create_task(store.append(entries(1)))
    count = 0
    while not appending.done():
        count += 1
        until = time.perf_counter() + 0.0005
        while time.perf_counter() < until:
            pass
        await asyncio.sleep(0)
    return count


async def test_every_commit_is_synced(path: Path) -> None:
    async with opened(path) as store:
        assert store._writer.connection.execute("PRAGMA synchronous").fetchone() == (2,)


async def test_segments_are_indexed_by_time_where_old_ones_are_let_go_of_and_nowhere_else(path: Path) -> None:
    indexes = "SELECT count(*) FROM sqlite_schema WHERE name = 'segments_time'"
    async with opened(path) as store:
        await store.append(entries(3))
        await store.trim(before=0, keep=2)
        assert ask(path, indexes) == 0
        for _ in range(2):
            await store.trim(before=1, keep=0)
            assert ask(path, indexes) == 1
        plan = f"EXPLAIN QUERY PLAN {sqlite._OLD.replace('?', '1')}"
        with other(path) as connection:
            assert "USING COVERING INDEX segments_time" in str(connection.execute(plan).fetchall())


async def test_what_is_let_go_of_is_found_without_looking_at_the_rest_of_its_room(path: Path) -> None:
    async with opened(path):
        with other(path) as connection:
            keys, segments = (
                str(connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall())
                for statement, parameters in (
                    (sqlite._TRIM_KEYS, {"room": 1, "end": 1}),
                    (sqlite._TRIM_SEGMENTS, ["[]"]),
                )
            )
    assert "SEARCH keys USING PRIMARY KEY (room=? AND user=? AND key=?)" in keys
    assert "SEARCH segments USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)" in keys
    assert "SEARCH segments USING INTEGER PRIMARY KEY (rowid=?)" in segments
    assert "SEARCH segments USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)" in segments


async def test_closing_leaves_one_file_and_lets_go_of_it(path: Path) -> None:
    async with opened(path) as store:
        await store.append(entries(3))
        assert open_files(path)
    assert [found.name for found in path.parent.iterdir()] == ["chat.db"]
    assert not open_files(path)


async def test_a_start_that_is_broken_off_lets_go_of_the_file(path: Path) -> None:
    for turns in range(5):
        store = SQLite(f"sqlite:///{path}")
        task = asyncio.ensure_future(store.open())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await store.close()
        assert not open_files(path)


def open_files(path: Path) -> list[str]:
    """Of this process, those that belong to the store at `path`."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(link))
    return [name for name in found if name.startswith(str(path))]


async def test_an_older_schema_is_brought_up_to_date(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(path) as store:
        epoch = store.epoch
        await store.append(entries(3))
    more = "ALTER TABLE rooms ADD COLUMN topic TEXT; CREATE TABLE pins (room INTEGER) STRICT"
    monkeypatch.setattr(sqlite, "MIGRATIONS", (*MIGRATIONS, more))
    async with opened(path) as store:
        assert store.epoch == epoch
        assert len(await store.read("room", limit=10)) == 3
        assert ask(path, "PRAGMA user_version") == len(MIGRATIONS) + 1
        assert ask(path, "SELECT count(*) FROM pins") == 0
    async with opened(path) as store:  # and only once
        assert (await store.append(entries(1)))[0].offset == 4


FIRST_VERSION = """
    PRAGMA journal_mode = WAL;
    CREATE TABLE meta (epoch TEXT NOT NULL) STRICT;
    CREATE TABLE rooms (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        top INTEGER NOT NULL DEFAULT 0,
        trimmed INTEGER NOT NULL DEFAULT 0,
        time INTEGER NOT NULL DEFAULT 0
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
    CREATE INDEX events_time ON events (time);
    PRAGMA user_version = 1;
    INSERT INTO meta VALUES ('0123456789abcdef');
    INSERT INTO rooms VALUES (1, 'room', 3, 1, 8);
    INSERT INTO events VALUES (1, 2, 7, 'message', 'alice', '{}', 'k'), (1, 3, 8, 'edit', 'bob', '[]', NULL);
"""
"""A file that a server made which knew no `meta`."""


@pytest.fixture
def old(path: Path) -> Path:
    with other(path) as connection:
        connection.executescript(FIRST_VERSION)
    return path


async def test_what_the_first_version_kept_is_kept_and_goes_on(old: Path) -> None:
    kept = [Record(2, 7, "message", "alice", "{}", "k"), Record(3, 8, "edit", "bob", "[]")]
    async with opened(old) as store:
        assert store.epoch == "0123456789abcdef"
        assert await store.read("room", after=1, limit=10) == kept
        again, new = await store.append([Entry("room", "alice", "{}", key="k"), Entry("room", "bob", "{}", meta="[1]")])
        assert again == Stamp(2, 7, new=False)
        assert new.offset == 4
    async with opened(old) as store:
        assert await store.read("room", limit=10) == [*kept, Record(4, new.time, "message", "bob", "{}", None, "[1]")]


async def test_what_older_versions_kept_is_kept_to_the_letter(path: Path) -> None:
    texts = [
        '{ "b" : 1.50 ,\n\t"a":[ ] } ',
        r'{"a":"\ud83d\ude00 \u0001 \" \\ \/"}',
        '"\U0001f600 \u2028 \x7f \uffff"',
        "1e400",
        '"x"' * 9999,
    ]
    with other(path) as connection:
        for script in MIGRATIONS[:2]:
            connection.executescript(script)
        connection.execute("PRAGMA user_version = 2")
        connection.execute("INSERT INTO meta VALUES ('0123456789abcdef')")
        connection.execute("INSERT INTO rooms VALUES (1, 'room', ?, 0, 7)", [len(texts)])
        for offset, text in enumerate(texts, 1):
            row = [1, offset, 7, "message", text, text, f"{text[:9]}{offset}", text]
            connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
    async with opened(path) as store:
        kept = await store.read("room", limit=9)
        assert [(record.user, record.data, record.meta) for record in kept] == [(text, text, text) for text in texts]
        for record in kept:
            again = await store.append([Entry("room", record.user, "1", key=record.key)])
            assert again == [Stamp(record.offset, 7, new=False)]


async def test_a_file_of_the_first_version_that_is_opened_twice_at_once_is_brought_up_to_date_once(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: Counter[int] = Counter()
    look = sqlite._version

    def look_and_dawdle(connection: sqlite3.Connection) -> int:
        version = look(connection)
        looks[threading.get_ident()] += 1
        if looks[threading.get_ident()] == 2:
            time.sleep(0.2)  # the other one comes as far meanwhile, if anything lets it
        return version

    monkeypatch.setattr(sqlite, "_version", look_and_dawdle)
    stores = [SQLite(f"sqlite:///{old}") for _ in range(2)]
    try:
        await asyncio.gather(*(store.open() for store in stores))
    finally:
        await asyncio.gather(*(store.close() for store in stores))
    assert list(looks.values()) == [2, 2]
    assert ask(old, "PRAGMA user_version") == len(MIGRATIONS)


async def test_an_older_server_leaves_what_a_newer_one_made_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(path) as store:
        await store.append(entries(3))
    monkeypatch.setattr(sqlite, "MIGRATIONS", MIGRATIONS[:1])
    assert f"made by a later version of chatserver (schema {len(MIGRATIONS)}, this one knows 1)" in await refusal(path)
    assert ask(path, "PRAGMA user_version") == len(MIGRATIONS)


async def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(path) as store:
        await store.append(entries(3))
    with monkeypatch.context() as patch:
        patch.setattr(sqlite, "MIGRATIONS", (*MIGRATIONS, "CREATE TABLE pins (room INTEGER); INSERT INTO nothing"))
        assert "syntax" in await refusal(path)
    assert ask(path, "PRAGMA user_version") == len(MIGRATIONS)
    assert ask(path, "SELECT count(*) FROM sqlite_schema WHERE name = 'pins'") == 0
    async with opened(path) as store:
        assert len(await store.read("room", limit=10)) == 3


async def test_a_migration_that_lacks_its_end_is_not_left_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unfinished = "CREATE TRIGGER pin AFTER INSERT ON rooms BEGIN SELECT 1"
    monkeypatch.setattr(sqlite, "MIGRATIONS", (*MIGRATIONS, unfinished))
    assert "incomplete" in await refusal(path)


async def test_a_newer_schema_is_refused(path: Path) -> None:
    async with opened(path):
        pass
    with other(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    assert f"made by a later version of chatserver (schema 99, this one knows {len(MIGRATIONS)})" in await refusal(path)


FOREIGN = {
    "without a version": "CREATE TABLE songs (title TEXT)",
    "with a version": "CREATE TABLE songs (title TEXT); PRAGMA user_version = 1",
    "with a high version": "CREATE TABLE songs (title TEXT); PRAGMA user_version = 99",
    "with a table of the same name": "CREATE TABLE meta (title TEXT); PRAGMA user_version = 1",
    "without tables": "PRAGMA user_version = 1",
}


@pytest.mark.parametrize("kind", FOREIGN)
async def test_the_database_of_something_else_is_refused_and_left_as_it_is(path: Path, kind: str) -> None:
    with other(path) as connection:
        connection.executescript(FOREIGN[kind])
    before = path.read_bytes()
    assert "this database is something else's" in await refusal(path)
    assert path.read_bytes() == before


async def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(path: Path) -> None:
    path.write_text("Dear diary, " * 1000)
    assert "not a database" in await refusal(path)
    assert path.read_text() == "Dear diary, " * 1000


async def test_a_folder_is_refused(path: Path) -> None:
    path.mkdir()
    assert "unable to open" in await refusal(path)


async def test_a_file_in_a_folder_that_is_missing_is_refused(path: Path) -> None:
    assert "unable to open" in await refusal(path / "chat.db")


@pytest.mark.parametrize("lock", ["EXCLUSIVE", "IMMEDIATE"])
async def test_a_file_that_others_hold_is_refused(path: Path, lock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.1)
    with other(path) as connection:
        connection.execute(f"BEGIN {lock}")
        assert "locked" in await refusal(path)


async def test_a_new_file_that_another_opens_just_now_is_waited_for(path: Path) -> None:
    with other(path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        asyncio.get_running_loop().call_later(0.2, connection.execute, "COMMIT")
        async with opened(path):
            assert not connection.in_transaction
            assert ask(path, "PRAGMA journal_mode") == "wal"


async def refusal(path: Path) -> str:
    """What whoever starts the server is told."""
    with pytest.raises(StoreError) as raised:
        async with opened(path):
            pass
    told = str(raised.value)
    assert told.startswith(f"{path}: ")
    assert len(told.splitlines()) == 1
    return told


async def test_a_start_that_fails_lets_go_of_the_file(path: Path) -> None:
    path.write_text("Dear diary, " * 1000)
    await refusal(path)
    assert not open_files(path)


@pytest.fixture
def not_allowed() -> Iterator[Path]:
    """A folder in which this process may not write."""
    folder = Path(tempfile.mkdtemp())  # those of pytest may not even be entered
    yield folder
    os.seteuid(os.getuid())
    shutil.rmtree(folder)


def become_nobody(folder: Path) -> None:
    """Takes the right to write; root always has it."""
    for found in folder.iterdir():
        found.chmod(0o444)
    folder.chmod(0o555)
    if os.geteuid() == 0:
        os.seteuid(65534)


async def test_a_folder_that_may_not_be_written_is_refused(not_allowed: Path) -> None:
    become_nobody(not_allowed)
    assert "unable to open" in await refusal(not_allowed / "chat.db")


async def test_a_file_that_may_not_be_written_is_refused(not_allowed: Path) -> None:
    async with opened(not_allowed / "chat.db"):
        pass
    become_nobody(not_allowed)
    assert "readonly" in await refusal(not_allowed / "chat.db")


# --- what is in the file ---------------------------------------------------------------------------------------------


@settings(PATIENT, max_examples=15)
@given(seed=st.integers(0), steps=st.integers(1, 40))
async def test_two_stores_in_one_file_do_what_the_model_does(seed: int, steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chat.db"
        async with opened(path) as one, opened(path) as two:
            await check_at_random([one, two], Random(seed), steps=steps)


def mixed(count: int) -> list[Entry]:
    """In three rooms, every other one with a key and something beside it."""
    return [
        Entry(
            f"room {nth % 3}",
            f"user {nth % 5}",
            f"{nth}",
            "kind",
            f"{nth}" if nth % 2 else None,
            "[]" if nth % 4 else None,
        )
        for nth in range(count)
    ]


@pytest.mark.parametrize("count", [1, 2, 3, ROWS - 1, ROWS, ROWS + 1, 3 * ROWS - 1])
async def test_all_of_an_append_are_kept_in_order_however_many_statements_it_takes(path: Path, count: int) -> None:
    said = mixed(count)
    async with opened(path) as store:
        stamps = await store.append(said)
        for room in {entry.room for entry in said}:
            assert await store.read(room, limit=count) == [
                Record(stamp.offset, stamp.time, entry.kind, entry.user, entry.data, entry.key, entry.meta)
                for entry, stamp in zip(said, stamps, strict=True)
                if entry.room == room
            ]


async def test_what_the_last_statement_of_an_append_fails_to_add_takes_the_others_back(path: Path) -> None:
    said = [*entries(1), *(Entry(f"room {nth}", "alice", "{}") for nth in range(2 * ROWS))]
    async with opened(path) as store:
        await store.append(said)
        with other(path) as connection:
            [trigger] = connection.execute("SELECT sql FROM sqlite_schema WHERE type = 'trigger'").fetchone()
            connection.execute("DROP TRIGGER segments_follow")
            connection.execute("INSERT INTO segments SELECT (max(id) << 38) + 2, 2, 0, '[]' FROM rooms")
            connection.execute(trigger)
        with pytest.raises(StorageUnavailable):
            await store.append(said)
        assert ask(path, EVENTS) == len(said)
        with other(path) as connection:
            connection.execute("DELETE FROM segments WHERE events = '[]'")
        assert {stamp.offset for stamp in await store.append(said)} == {2}


async def test_an_append_to_rooms_whose_ends_are_at_hand_is_one_statement(path: Path) -> None:
    async with opened(path) as store:
        await store.append([*entries(1), *entries(1, room="other")])
        statements: list[str] = []
        store._writer.connection.set_trace_callback(statements.append)
        stamps = await store.append([*entries(20), *entries(20, room="other")])
        assert [stamp.offset for stamp in stamps] == [*range(2, 22)] * 2
        [statement] = set(statements)  # what a trigger does is told as the statement that set it off
        assert statement.startswith("INSERT")
        assert ask(path, "SELECT count(*) FROM segments") == 4


@pytest.mark.parametrize(("first", "sooner"), [(3, 0), (5, 0), (4, 1)])
async def test_a_segment_follows_the_log_whoever_adds_it(path: Path, first: int, sooner: int) -> None:
    async with opened(path) as store:
        last = (await store.append(entries(3)))[-1]
        segment = [(1 << OFFSET_BITS) + first, first, last.time - sooner]
        with other(path) as connection, pytest.raises(sqlite3.IntegrityError, match="the log ends elsewhere"):
            connection.execute("INSERT INTO segments VALUES (?, ?, ?, '[]')", segment)
        assert await store.top(["room"]) == {"room": 3}


@pytest.mark.parametrize("count", [0, SEGMENT_EVENTS + 1])
async def test_a_segment_with_more_events_than_readers_expect_or_none_is_refused(path: Path, count: int) -> None:
    async with opened(path) as store:
        await store.append(entries(3))
        segment = [(1 << OFFSET_BITS) + 4, 3 + count, 1 << 60]
        with other(path) as connection, pytest.raises(sqlite3.IntegrityError, match="CHECK"):
            connection.execute("INSERT INTO segments VALUES (?, ?, ?, '[]')", segment)


async def test_a_segment_has_no_more_than_its_number_of_events(path: Path) -> None:
    async with opened(path) as store:
        await store.append(entries(2 * SEGMENT_EVENTS + 1))
        assert ask(path, "SELECT group_concat(json_array_length(events)) FROM segments") == "64,64,1"


@settings(PATIENT, max_examples=20)
@given(sizes=st.lists(st.integers(1, 70), min_size=1, max_size=6), data=st.data())
async def test_a_page_is_cut_out_of_segments_of_any_size(sizes: list[int], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with opened(Path(folder) / "chat.db") as store:
            for size in sizes:
                await store.append(entries(size))
            top = sum(sizes)
            gone = data.draw(st.integers(0, top))
            while await store.forget("room", gone):
                pass
            for _ in range(10):
                place, limit = data.draw(st.tuples(st.integers(gone, top), st.integers(0, 150)))
                later = await store.read("room", after=place, limit=limit)
                assert [record.offset for record in later] == list(range(place + 1, min(place + limit, top) + 1))
                earlier = await store.read("room", before=place + 1, limit=limit)
                assert [record.offset for record in earlier] == list(range(max(gone, place - limit) + 1, place + 1))


async def test_of_a_segment_that_is_let_go_of_in_part_the_rest_is_kept(path: Path) -> None:
    said = [Entry("room", "alice", f'{{"n": {nth}}}', key=f"{nth}", meta="[]") for nth in range(10)]
    async with opened(path) as store:
        stamps = await store.append(said)
        assert await store.forget("room", 4)
        assert ask(path, EVENTS) == 6
        assert ask(path, "SELECT count(*) FROM keys") == 6
        assert await store.read("room", after=4, limit=10) == [
            entry.at(stamp.offset, stamp.time) for entry, stamp in zip(said[4:], stamps[4:], strict=True)
        ]
        again = await store.append(said[3:5])
        assert [(stamp.offset, stamp.new) for stamp in again] == [(11, True), (5, False)]


async def test_an_append_that_may_have_been_stored_is_not_tried_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def store_and_fail(connection: sqlite3.Connection, segments: Sequence[sqlite._Segment]) -> None:
        monkeypatch.undo()
        sqlite._add_segments(connection, segments)
        raise sqlite3.OperationalError

    async with opened(path) as store:
        await store.append(entries(1))
        monkeypatch.setattr(sqlite, "_add_segments", store_and_fail)
        with pytest.raises(StorageUnavailable):
            await store.append(entries(1))
        assert await store.top(["room"]) == {"room": 2}


async def test_an_append_goes_behind_what_another_appended_though_nothing_of_it_is_kept(path: Path) -> None:
    async with opened(path) as one, opened(path) as two:
        await one.append(entries(1))
        await two.append(entries(5))
        assert await two.forget("room", 6)
        assert [stamp.offset for stamp in await one.append(entries(2))] == [7, 8]
        assert await one.top(["room"]) == {"room": 8}


async def test_what_was_not_added_leaves_no_hole(path: Path) -> None:
    async with opened(path) as store:
        await store.append(entries(1))
        for count in (1, 2 * ROWS):
            with pytest.raises(UnicodeEncodeError):
                await store.append([*entries(count), Entry("room", "user", "\ud800")])
        assert [stamp.offset for stamp in await store.append(entries(2))] == [2, 3]


@pytest.mark.parametrize("field", ["user", "data", "kind"])
async def test_what_could_not_be_read_again_is_not_stored(path: Path, field: str) -> None:
    async with opened(path) as store:
        for _ in range(2):  # in a new room, and in one whose end is at hand
            wrong = msgspec.structs.replace(Entry("room", "user", "1"), **{field: None})
            with pytest.raises(msgspec.ValidationError):
                await store.append([*entries(2), wrong])
            top = await store.top(["room"])
            assert (await store.append(entries(1)))[0].offset == top["room"] + 1


async def test_of_a_batch_all_goes_behind_what_another_appended_to_one_of_its_rooms(path: Path) -> None:
    batch = [*entries(2), *entries(2, room="other"), *entries(1)]
    async with opened(path) as one, opened(path) as two:
        await one.append(batch)
        await two.append(entries(1, room="other"))
        assert [stamp.offset for stamp in await one.append(batch)] == [4, 5, 4, 5, 6]
        assert [record.offset for record in await two.read("room", limit=9)] == list(range(1, 7))
        assert [record.offset for record in await two.read("other", limit=9)] == list(range(1, 6))


@pytest.mark.parametrize("limit", [10, 1 << 50, 1 << 70])
async def test_a_page_of_any_size_has_nothing_of_other_rooms(path: Path, limit: int) -> None:
    async with opened(path) as store:
        for room in ("one", "room", "two"):
            await store.append(entries(3, room=room, data=f'"{room}"'))
        for bounds in ({"after": 1}, {"before": 3}):
            records = await store.read("room", limit=limit, **bounds)
            assert [(record.offset, record.data) for record in records] == [
                (offset, '"room"') for offset in ((2, 3) if "after" in bounds else (1, 2))
            ]


async def test_ends_that_are_not_kept_at_hand_are_asked_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "LOG_ENDS", 1)
    rooms = ["one", "two", "three", "four", "five"]
    async with opened(path) as store:
        for some in (rooms[:1], rooms[:2], rooms[2:3], rooms[3:]) * 3:
            await store.append([Entry(room, "user", "1") for room in some])
            assert len(store._log_ends) <= 3  # one, and those of a batch
        assert await store.top(rooms) == {"one": 6, "two": 3, "three": 3, "four": 3, "five": 3}


async def test_rooms_that_nobody_appended_to_are_not_in_the_file(path: Path) -> None:
    async with opened(path) as store:
        await store.top(["one", "two"])
        await store.read("three", limit=1)
        with pytest.raises(UnicodeEncodeError):
            await store.append([*entries(1), Entry("room", "alice", "\ud800")])
        assert ask(path, "SELECT count(*) FROM rooms") == 0


async def test_events_that_are_let_go_are_not_in_the_file(path: Path) -> None:
    async with opened(path) as store:
        await store.append(entries(1000))
        while await store.trim(before=0, keep=7):
            pass
        assert ask(path, EVENTS) == 7


async def test_a_room_that_always_has_too_many_does_not_keep_others_from_being_trimmed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "TRIM_ROOMS", 1)
    async with opened(path) as store:
        await store.append([*entries(3, room="busy"), *entries(9, room="quiet")])
        for _ in range(3):
            await store.trim(before=0, keep=1)
            await store.append(entries(2, room="busy"))
        assert len(await store.read("quiet", limit=9)) == 1


async def test_trimming_goes_in_steps(path: Path) -> None:
    async with opened(path) as store:
        await store.append(entries(6000))
        last = (await store.read("room", limit=1))[0]
        for before, keep in ((0, 1), (last.time + 1, 0)):
            kept = len(await store.read("room", limit=6000))
            assert await store.trim(before=before, keep=keep)
            assert 0 < kept - len(await store.read("room", limit=6000)) < 4000


async def test_events_that_are_forgotten_are_not_in_the_file(path: Path) -> None:
    async with opened(path) as store:
        await store.append([*entries(1200), *entries(3, room="other")])
        while await store.forget("room", 1193):
            pass
        assert ask(path, EVENTS) == 10
        assert ask(path, "SELECT count(*) FROM rooms") == 2


async def test_forgetting_goes_in_steps(path: Path) -> None:
    async with opened(path) as store:
        await store.append(entries(3000))
        assert await store.forget("room", 3000)
        assert 2000 < len(await store.read("room", limit=3000)) < 3000


# --- other processes -------------------------------------------------------------------------------------------------

WRITER = """
import asyncio, sys
from chatserver.store import Entry
from chatserver.store.sqlite import SQLite

async def main(path, user, count):
    store = SQLite(f"sqlite:///{path}")
    print("ready", flush=True)
    sys.stdin.readline()
    await store.open()
    for number in range(int(count)):
        entries = [Entry("room", user, f"{number}"), Entry("room", "all", f'"{user}"', key=f"{number}")]
        stamps = await store.append(entries)
        print(*(stamp.offset for stamp in stamps), flush=True)
    await store.close()

asyncio.run(main(*sys.argv[1:]))
"""


class Writers:
    """Processes that append to one file, from the same moment on."""

    def __init__(self, path: Path, users: list[str], count: int) -> None:
        command = [sys.executable, "-c", WRITER, str(path)]
        self.processes = {
            user: subprocess.Popen(
                [*command, user, str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for user in users
        }
        for process in self.processes.values():
            assert self.line(process) == "ready\n"
        for process in self.processes.values():
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()

    def __enter__(self) -> "Writers":
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes.values():
            process.kill()
            process.communicate()

    def line(self, process: "subprocess.Popen[str]") -> str:
        assert process.stdout
        return process.stdout.readline()

    def acknowledged(self, user: str, lines: int = 1_000_000) -> list[tuple[int, int]]:
        """For each turn the offset of the user's own entry, and of the one that all append: until the end of the
        process, or so many."""
        found: list[tuple[int, int]] = []
        while len(found) < lines and (line := self.line(self.processes[user])):
            own, common = line.split()
            found.append((int(own), int(common)))
        return found

    def end(self) -> None:
        for process in self.processes.values():
            assert process.wait(20) == 0


async def log(path: Path) -> list[Record]:
    async with opened(path) as store:
        return await store.read("room", limit=1_000_000)


async def test_processes_that_open_a_new_file_and_append_at_once_lose_and_double_nothing(path: Path) -> None:
    users = ["one", "two", "three"]
    with Writers(path, users, 40) as writers:
        acknowledged = {user: writers.acknowledged(user) for user in users}
        writers.end()
    records = await log(path)
    assert [record.offset for record in records] == list(range(1, 161))
    for user in users:
        assert [own for own, _ in acknowledged[user]] == [record.offset for record in records if record.user == user]
        common = [common for _, common in acknowledged[user]]
        assert [records[offset - 1].key for offset in common] == [str(number) for number in range(40)]
    assert Counter(record.key for record in records if record.key) == Counter(str(number) for number in range(40))


async def test_processes_that_open_a_file_of_the_first_version_at_once_bring_it_up_to_date_once(
    old: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "alone.db"
    shutil.copy(old, alone)
    async with opened(alone):
        pass
    users = ["one", "two", "three", "four"]
    with Writers(old, users, 3) as writers:
        acknowledged = [writers.acknowledged(user) for user in users]
        writers.end()
    assert [len(lines) for lines in acknowledged] == [3] * 4
    assert [record.offset for record in await log(old)] == list(range(2, 19))
    assert ask(old, "PRAGMA user_version") == len(MIGRATIONS)
    assert ask(old, "PRAGMA schema_version") == ask(alone, "PRAGMA schema_version")


async def test_what_was_acknowledged_survives_sigkill(path: Path) -> None:
    total = 0
    for turn, lines in enumerate((5, 20, 50)):
        user = f"user-{turn}"
        with Writers(path, [user], 1_000_000) as writers:
            acknowledged = writers.acknowledged(user, lines)
            writers.processes[user].kill()
            acknowledged += writers.acknowledged(user)
        records = await log(path)
        assert [record.offset for record in records] == list(range(1, len(records) + 1))
        own = [record.offset for record in records if record.user == user]
        assert own[: len(acknowledged)] == [offset for offset, _ in acknowledged]
        assert len(own) - len(acknowledged) in (0, 1)
        assert [record.data for record in records if record.user == user] == [f"{number}" for number in range(len(own))]
        total += len(own)
    assert total >= 75


# --- what goes wrong -------------------------------------------------------------------------------------------------


async def test_while_another_holds_the_file_appends_are_refused_in_time_and_reads_go_on(path: Path) -> None:
    async with opened(path) as store:
        await store.append(entries(3))
        with other(path) as connection:
            connection.execute("BEGIN IMMEDIATE")
            refused = asyncio.ensure_future(store.append(entries(2)))
            async with asyncio.timeout(30):
                turns = 0
                while not refused.done():
                    assert len(await store.read("room", limit=10)) == 3
                    assert await store.top(["room"]) == {"room": 3}
                    turns += 1
                with pytest.raises(StorageUnavailable, match="not stored: storage unavailable"):
                    await refused
            assert turns > 2
        assert (await store.append(entries(1)))[0].offset == 4


async def test_an_append_waits_for_others_that_hold_the_file_for_a_moment(path: Path) -> None:
    async with opened(path) as store:
        with other(path) as connection:
            connection.execute("BEGIN IMMEDIATE")
            waiting = asyncio.ensure_future(store.append(entries(1)))
            await asyncio.sleep(0.1)
            assert not waiting.done()
            connection.execute("COMMIT")
        assert (await waiting)[0].offset == 1


@pytest.mark.parametrize("table", ["rooms", "segments"])
async def test_every_failure_of_the_storage_has_its_number_and_heals(path: Path, table: str) -> None:
    async with opened(path) as store:
        await store.append(entries(3))
        with other(path) as connection:
            connection.execute(f"ALTER TABLE {table} RENAME TO elsewhere")
            fails = store.top(["room"]) if table == "rooms" else store.append(entries(1))
            for call in (fails, store.read("room", limit=1), store.trim(before=0, keep=1)):
                with pytest.raises(StorageUnavailable):
                    await call
            connection.execute(f"ALTER TABLE elsewhere RENAME TO {table}")
        assert (await store.append(entries(1)))[0].offset == 4
        assert await store.top(["room"]) == {"room": 4}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("nothing can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(path: Path) -> None:
    """Until nothing is left."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 1000)


async def test_on_a_full_disk_appends_are_refused_and_reads_go_on(small_disk: Path) -> None:
    path, ballast = small_disk / "chat.db", small_disk / "ballast"
    async with opened(path) as store:
        await store.append(entries(3))
        for _ in range(3):
            fill(ballast)
            tops = await append_until_full(store)
            assert await store.top(tops) == tops
            assert len(await store.read("room", limit=1000)) == tops["room"]
            ballast.unlink()
            assert (await store.append(entries(1)))[0].offset == tops["room"] + 1
    assert ask(path, "PRAGMA integrity_check") == "ok"
    assert [record.offset for record in await log(path)] == list(range(1, tops["room"] + 2))


async def append_until_full(store: SQLite) -> dict[str, int]:
    """Appends batches until one is refused; the tops of two rooms then, if it is refused as a whole."""
    tops = await store.top(["room", "new"])
    for _ in range(100):
        try:
            stamps = await store.append([*entries(5, data=f'"{"x" * 8000}"'), *entries(1, room="new")])
        except StorageFull as error:
            assert str(error) == "not stored: storage full"
            return tops
        tops = {"room": stamps[4].offset, "new": stamps[5].offset}
    raise AssertionError("the disk has no end")


async def test_a_file_that_may_not_grow_refuses_appends_and_heals(path: Path) -> None:
    async with opened(path) as store:
        await store.append(entries(3))
        limit = store._writer.connection.execute("PRAGMA max_page_count").fetchone()[0]
        pages = store._writer.connection.execute("PRAGMA page_count").fetchone()[0]
        store._writer.connection.execute(f"PRAGMA max_page_count = {pages}")
        assert await append_until_full(store) == {"room": 3, "new": 0}
        assert len(await store.read("room", limit=10)) == 3
        store._writer.connection.execute(f"PRAGMA max_page_count = {limit}")
        assert [stamp.offset for stamp in await store.append([*entries(1), *entries(1, room="new")])] == [4, 1]


async def test_nothing_is_acknowledged_that_goes_to_a_file_that_was_moved_away(path: Path) -> None:
    elsewhere = path.with_name("elsewhere.db")
    async with opened(path) as store:
        await store.append(entries(3))
        assert await store.top(["room"]) == {"room": 3}
        path.rename(elsewhere)
        with pytest.raises(StorageUnavailable):
            await store.append(entries(1))
        with pytest.raises(StorageUnavailable):
            await store.trim(before=0, keep=1)
        assert len(await store.read("room", limit=10)) == 3
        elsewhere.rename(path)
        assert (await store.append(entries(1)))[0].offset == 4


async def test_nothing_is_acknowledged_that_goes_to_a_file_that_was_replaced(path: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup.db"
    async with opened(backup):
        pass
    async with opened(path) as store:
        await store.append(entries(3))
        backup.replace(path)
        with pytest.raises(StorageUnavailable):
            await store.append(entries(1))
        assert not path.with_name("chat.db-journal").exists()
