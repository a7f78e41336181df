"""A log in pages."""

import time
from typing import Any
from unittest import mock

import pytest

from chatserver.channels import Channel, Channels, Namespace
from chatserver.errors import BadRequest
from chatserver.history import LIMIT, page
from chatserver.room import ANSWER_CHARACTERS
from tests.engine import Puppet, entry, fill, numbers

LOBBY = Channels().find("lobby")


def lobby(**options: float) -> Channel:
    return Channels({"": Namespace(**options)}).find("lobby")  # type: ignore[arg-type]


@pytest.fixture
async def store() -> Puppet:
    """With ten messages."""
    store = Puppet()
    await fill(store, numbers(1, 10))
    return store


async def offsets(store: Puppet, channel: Channel = LOBBY, **wanted: Any) -> list[int]:
    records, top = await page(store, channel, **wanted)
    assert top == (await store.top(["lobby"]))["lobby"]
    return [record.offset for record in records]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"limit": 0}, []),
        ({"limit": 0, "since": 3}, []),
        ({"limit": 3}, [1, 2, 3]),
        ({"limit": -1}, [*range(1, 11)]),
        ({"limit": 3, "reverse": True}, [10, 9, 8]),
        ({"limit": 3, "since": 4}, [5, 6, 7]),
        ({"limit": 3, "since": 9}, [10]),
        ({"limit": 3, "since": 10}, []),
        ({"limit": 3, "since": 99}, []),
        ({"limit": 3, "since": 4, "reverse": True}, [3, 2, 1]),
        ({"limit": 3, "since": 1, "reverse": True}, []),
        ({"limit": 3, "since": 99, "reverse": True}, [10, 9, 8]),
        ({"limit": -1, "reverse": True}, [*range(10, 0, -1)]),
    ],
)
async def test_a_page_is_what_was_asked_for(store: Puppet, wanted: dict[str, Any], expected: list[int]) -> None:
    assert await offsets(store, **wanted) == expected


async def test_before_the_first_there_is_nothing_to_be_asked_for(store: Puppet) -> None:
    with pytest.raises(BadRequest):
        await page(store, LOBBY, limit=1, since=0, reverse=True)


@pytest.mark.parametrize("trimmed", range(11))
async def test_who_asks_for_what_is_not_kept_gets_the_oldest_kept(store: Puppet, trimmed: int) -> None:
    if trimmed:
        store._logs["lobby"].records = store._logs["lobby"].records[trimmed:]
        store._logs["lobby"].trimmed = trimmed
    for since in range(11):
        oldest = max(trimmed, since) + 1
        assert await offsets(store, limit=-1, since=since) == [*range(oldest, 11)]
    assert await offsets(store, limit=2, reverse=True) == [10, 9][: 10 - trimmed]


async def test_a_window_of_so_many(store: Puppet) -> None:
    window = lobby(history_size=4)
    assert await offsets(store, window, limit=-1) == [7, 8, 9, 10]
    assert await offsets(store, window, limit=2, since=1) == [7, 8]
    assert await offsets(store, window, limit=-1, reverse=True) == [10, 9, 8, 7]
    assert await offsets(store, window, limit=2, since=8, reverse=True) == [7]


async def test_a_window_of_so_long(store: Puppet) -> None:
    with mock.patch("time.time_ns", return_value=time.time_ns() + 60 * 10**9):
        await fill(store, numbers(11, 14))
    with mock.patch("time.time", return_value=time.time() + 60):
        window = lobby(history_seconds=30)
        assert await offsets(store, window, limit=-1) == [11, 12, 13, 14]
        assert await offsets(store, window, limit=1, since=3) == [11]
        assert await offsets(store, window, limit=-1, reverse=True) == [14, 13, 12, 11]
    with mock.patch("time.time", return_value=time.time() + 1000):
        assert await offsets(store, window, limit=-1) == []


async def test_a_page_is_no_longer_than_an_answer(store: Puppet) -> None:
    await fill(store, numbers(11, LIMIT + 100))
    assert len(await offsets(store, limit=-1)) == LIMIT
    assert len(await offsets(store, limit=LIMIT + 50, reverse=True)) == LIMIT
    await store.append([entry("x" * (ANSWER_CHARACTERS // 3)) for _ in range(9)])
    assert await offsets(store, limit=-1, since=LIMIT + 100) == [*range(LIMIT + 101, LIMIT + 103)]
    await store.append([entry("x" * 2 * ANSWER_CHARACTERS)])
    assert len(await offsets(store, limit=2, reverse=True)) == 1


async def test_a_room_that_nobody_wrote_to_is_empty(store: Puppet) -> None:
    records, top = await page(store, Channels().find("void"), limit=5)
    assert (list(records), top) == ([], 0)
