"""Whoever blocks the loop is named while it blocks."""

import asyncio
import logging
import select
from collections.abc import Callable
from typing import Any

import pytest

from chatserver import watchdog
from chatserver.chain import compose
from chatserver.client import Client
from chatserver.message import Command, Event, Publish
from chatserver.watchdog import Watchdog
from tests.fakes import make_client


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(watchdog, "BLOCKED_SECONDS", 0.1)


def block(until: Callable[[], bool]) -> None:
    for _ in range(3000):
        if until():
            return
        select.select([], [], [], 0.01)  # sleeps, too, but the fixture against blocking calls doesn't mind
    raise AssertionError("nobody is named while it blocks")


async def echo(command: Command, client: Client) -> Event | None:
    return None


def blocked(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if record.getMessage() == "loop blocked"]


async def test_a_plugin_that_blocks_is_named_once_and_before_it_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    async def blocking(command: Command, client: Client, handler: object) -> None:
        caplog.clear()  # the machine itself may have held the loop up
        block(lambda: bool(blocked(caplog)))
        select.select([], [], [], 0.1)  # time for a second line

    watching = asyncio.create_task(Watchdog().run())
    await asyncio.sleep(0.05)
    await compose([blocking], echo, 60)(Publish("hi"), make_client())
    (line,) = blocked(caplog)
    assert line["plugin"] == f"{__name__}.{blocking.__qualname__}"
    assert line["where"].startswith(f"{__file__}:")
    assert line["levelno"] == logging.ERROR
    watching.cancel()


async def test_each_block_is_a_line_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    watching = asyncio.create_task(Watchdog().run())
    await asyncio.sleep(0.05)
    for number in (1, 2):
        block(lambda number=number: len(blocked(caplog)) == number)  # type: ignore[misc]
        await asyncio.sleep(0.1)
    assert len(blocked(caplog)) == 2
    watching.cancel()


async def test_a_loop_that_turns_is_not_blocked(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "BLOCKED_SECONDS", 5.0)
    watching = asyncio.create_task(Watchdog().run())
    await asyncio.sleep(0.2)
    assert not blocked(caplog)
    watching.cancel()
