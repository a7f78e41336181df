"""Work that is shared: done once for all who ask meanwhile."""

import asyncio

import pytest

from chatserver.shared import Shared
from tests.fakes import turns


class Work:
    """Counts its runs; each lasts until `gate` is set, and then raises `error`, if there is one."""

    def __init__(self) -> None:
        self.runs = 0
        self.cancelled = 0
        self.gate = asyncio.Event()
        self.error: Exception | None = None
        self.shared = Shared(self.run)

    async def run(self) -> None:
        self.runs += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error:
            raise self.error


@pytest.fixture
async def work() -> Work:
    return Work()


async def test_all_who_ask_meanwhile_wait_for_one_run(work: Work) -> None:
    waiting = [asyncio.create_task(work.shared.done()) for _ in range(1000)]
    await turns()
    assert not any(task.done() for task in waiting)
    work.gate.set()
    await asyncio.gather(*waiting)
    assert work.runs == 1


async def test_who_asks_later_gets_a_run_of_its_own(work: Work) -> None:
    work.gate.set()
    await work.shared.done()
    await work.shared.done()
    assert work.runs == 2


async def test_it_is_known_whether_it_runs(work: Work) -> None:
    running = [work.shared.running]
    task = work.shared.start()
    running.append(work.shared.running)
    assert work.shared.start() is task
    work.gate.set()
    await task
    assert [*running, work.shared.running] == [False, True, False]


async def test_a_failure_goes_to_all_who_wait_and_the_next_run_may_succeed(work: Work) -> None:
    work.error = ZeroDivisionError()
    work.gate.set()
    results = await asyncio.gather(*(work.shared.done() for _ in range(3)), return_exceptions=True)
    assert results == [work.error] * 3
    work.error = None
    await work.shared.done()


async def test_a_failure_that_nobody_waits_for_is_not_lost_in_a_task(work: Work) -> None:
    work.error = ZeroDivisionError()
    work.gate.set()
    work.shared.start()
    await turns()
    assert not work.shared.running


async def test_a_failure_after_its_last_waiter_went_is_not_lost_in_a_task(work: Work) -> None:
    work.error = ZeroDivisionError()
    waiting = asyncio.create_task(work.shared.done())
    await turns()
    waiting.cancel()
    await turns()
    work.gate.set()
    await turns()
    assert not work.shared.running


async def test_a_waiter_that_is_cancelled_cancels_it_for_nobody_else(work: Work) -> None:
    first, second = (asyncio.create_task(work.shared.done()) for _ in range(2))
    await turns()
    first.cancel()
    await turns()
    assert first.cancelled()
    work.gate.set()
    await second
    assert (work.runs, work.cancelled) == (1, 0)


async def test_stop_cancels_the_run_and_waits_for_its_end(work: Work) -> None:
    task = work.shared.start()
    await turns()
    await work.shared.stop()
    assert task.cancelled()
    assert work.cancelled == 1
    assert not work.shared.running


async def test_stop_of_nothing_is_no_problem(work: Work) -> None:
    await work.shared.stop()
    assert work.runs == 0
