"""Stores by URL, and the one in memory."""

import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatserver.store import GROUP, Entry, open_store, shown
from chatserver.store.memory import Memory
from chatserver.store.postgresql import PostgreSQL
from chatserver.store.sqlite import SQLite
from chatserver.testing import check_at_random
from tests.fakes import PATIENT

URLS = {
    "memory://": Memory,
    "sqlite:///chat.db": SQLite,
    "sqlite:////var/lib/chat.db": SQLite,
    "postgresql://chat:secret@localhost/chat": PostgreSQL,
    "postgres://chat:secret@localhost/chat": PostgreSQL,
}


@pytest.mark.parametrize("url", URLS)
def test_the_scheme_chooses_the_store(url: str) -> None:
    assert type(open_store(url)) is URLS[url]


async def test_time_in_memory_never_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    store, times = Memory(), []
    for now in (2, 1, 3):
        monkeypatch.setattr("chatserver.store.memory.time.time_ns", lambda now=now: now * 1_000_000)
        times += [stamp.time for stamp in await store.append([Entry("lobby", "alice", "{}")])]
    assert times == [2, 2, 3]
    assert [record.time for record in await store.read("lobby", after=0, limit=9)] == times


WRONG = (
    "", "chat.db", "memory", "memory:", "sqlite", "sqlite:/chat.db", "://", "redis://localhost", "SQLITE:///chat.db",
    "memory://chat", "memory:///", "sqlite://", "sqlite:///", "sqlite://chat.db", "sqlite:///:memory:", "http://[",
)  # fmt: skip


@pytest.mark.parametrize("url", WRONG)
def test_a_wrong_url_gets_one_line_that_says_what_is_allowed(url: str) -> None:
    with pytest.raises(ValueError, match=r"memory://|sqlite:///") as raised:
        open_store(url)
    assert len(str(raised.value).splitlines()) == 1


def test_a_wrong_url_is_told_without_its_password() -> None:
    with pytest.raises(
        ValueError, match=r"'mysql://chat:\*\*\*@localhost/chat' is no store; allowed: memory://"
    ) as raised:
        open_store("mysql://chat:secret@localhost/chat")
    assert "secret" not in str(raised.value)


SHOWN = {
    "memory://": "memory://",
    "sqlite:///chat.db": "sqlite:///chat.db",
    "sqlite:////home/a:b@c/chat.db": "sqlite:////home/a:b@c/chat.db",
    "postgresql://localhost/chat": "postgresql://localhost/chat",
    "postgresql://chat@localhost/chat": "postgresql://chat@localhost/chat",
    "postgresql://chat:secret@localhost:5432/chat?x=y": "postgresql://chat:***@localhost:5432/chat?x=y",
    "postgresql://chat:sec:ret@localhost/chat": "postgresql://chat:***@localhost/chat",
    "postgresql://chat:sec@ret@localhost/chat": "postgresql://chat:***@localhost/chat",
    "postgresql://chat:s%2Fe@localhost/chat": "postgresql://chat:***@localhost/chat",
    "postgresql://chat:se/c#r?t@localhost/chat": "postgresql://chat:***@localhost/chat",
    "postgresql://localhost/chat?user=chat&password=secret&x=1": "postgresql://localhost/chat?user=chat&password=***&x=1",
    "postgresql://:secret@localhost/chat": "postgresql://:***@localhost/chat",
}


@pytest.mark.parametrize("url", SHOWN)
def test_passwords_are_masked(url: str) -> None:
    assert shown(url) == SHOWN[url]


def test_what_cannot_be_taken_apart_is_masked_all_the_same() -> None:
    assert shown("postgresql://chat:secret@[::1/chat") == "postgresql://chat:***@[::1/chat"


def test_without_its_driver_the_store_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    monkeypatch.delitem(sys.modules, "chatserver.store.postgresql")
    with pytest.raises(
        ValueError, match=r"^postgresql:// needs the package asyncpg; pip install 'chatserver\[postgres\]'$"
    ):
        open_store("postgresql://localhost/chat")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that a package with stores of its own is installed in: `mine://` works, `broken://` doesn't."""
    (tmp_path / "somebodys_store.py").write_text("def make(url): return ('made for', url)\n")
    (tmp_path / "somebodys-1.dist-info").mkdir()
    (tmp_path / "somebodys-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys\nVersion: 1\n")
    (tmp_path / "somebodys-1.dist-info" / "entry_points.txt").write_text(
        f"[{GROUP}]\nmine = somebodys_store:make\nbroken = somebodys_missing:make\nmemory = somebodys_store:make\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("installed")
def test_other_packages_bring_stores() -> None:
    made: object = open_store("mine://somewhere")
    assert made == ("made for", "mine://somewhere")


@pytest.mark.usefixtures("installed")
def test_other_packages_do_not_replace_ours() -> None:
    assert type(open_store("memory://")) is Memory


@pytest.mark.usefixtures("installed")
def test_stores_of_other_packages_are_named_among_the_allowed() -> None:
    with pytest.raises(ValueError, match=r"'redis://x' is no store; allowed: .*mine://"):
        open_store("redis://x")


@pytest.mark.usefixtures("installed")
def test_a_package_that_cannot_be_loaded_is_named_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^broken:// can't be loaded: ModuleNotFoundError: .*somebodys_missing'$"):
        open_store("broken://somewhere")


@settings(PATIENT, max_examples=50)
@given(seed=st.integers(0), steps=st.integers(1, 80))
async def test_memory_does_what_the_model_does(seed: int, steps: int) -> None:
    await check_at_random([Memory()], Random(seed), steps=steps)


async def test_memory_trims_in_small_steps_and_lets_others_have_their_turn() -> None:
    store = Memory()
    await store.append([Entry("room", "alice", "{}") for _ in range(5000)])
    assert await store.trim(before=0, keep=1)
    assert len(await store.read("room", limit=5000)) == 4000


async def test_memory_forgets_rooms_that_nobody_appended_to() -> None:
    store = Memory()
    await store.top(["one"])
    await store.read("two", limit=1)
    assert store._logs == {}
