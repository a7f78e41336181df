"""What every test gets: no blocking call in the loop, no exception lost in a task."""

import asyncio
import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from blockbuster import blockbuster_ctx

from tests.postgres import postgres as postgres
from tests.raw import RawClient
from tests.server import Server

# In the background of a script an interrupt is ignored, and would be by all programs that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """For the whole suite some more than there are cores, as many tests wait. What somebody has chosen is run in this
    process, where it can be looked at.
    """
    chosen = config.args_source is pytest.Config.ArgsSource.ARGS or config.option.keyword
    return 0 if chosen else len(os.sched_getaffinity(0)) + 2


def pytest_collection_finish() -> None:
    """What is there by now stays: the collections that look for lost exceptions needn't go through it each time."""
    gc.collect()
    gc.freeze()


def pytest_runtest_logfinish() -> None:
    """So does what is left when a test is over: imports, caches."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def no_blocking_calls() -> Iterator[None]:
    """Fails each test in which chatserver blocks the event loop."""
    with blockbuster_ctx("chatserver") as blocking:
        blocking.functions["os.sendfile"].can_block_in("chatserver/fanout.py", "write_all")  # whose sockets never do
        yield


@pytest.fixture(autouse=True)
def a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a server in this process keeps its messages."""
    monkeypatch.chdir(tmp_path)


async def watch_for_lost_exceptions() -> AsyncIterator[None]:
    """Fails if a task's exception goes nowhere in this loop."""
    lost: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: lost.append(context))
    yield
    gc.collect()
    await asyncio.sleep(0)
    assert not lost


@pytest.fixture(autouse=True)
async def no_lost_exceptions() -> AsyncIterator[None]:
    """Fails a test in which a task's exception went nowhere."""
    async for nothing in watch_for_lost_exceptions():
        yield nothing


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """What a test configures ends with it; pytest has handlers of its own on the root logger."""
    root, access = logging.getLogger(), logging.getLogger("aiohttp.access")
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    of_access = access.handlers[:], access.level, access.propagate
    yield
    root.handlers[:], logging.raiseExceptions = handlers, raising
    access.handlers[:], access.propagate = of_access[0], of_access[2]
    access.setLevel(of_access[1])
    root.setLevel(level)


@pytest.fixture(autouse=True)
async def no_raw_clients_left() -> AsyncIterator[None]:
    """Ends the test's raw connections."""
    yield
    await RawClient.clean_up()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server process, to be started by the test; killed after it."""
    server = Server(tmp_path)
    yield server
    server.kill()
