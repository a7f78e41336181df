"""A thread that does one thing after the other."""

import asyncio
import os
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from chatserver.store.worker import Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker("worker under test")
    yield worker
    worker.close()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "worker under test"]


async def test_work_is_done_in_order_in_one_thread(worker: Worker) -> None:
    done: list[int] = []

    def work(number: int) -> tuple[int, int]:
        done.append(number)
        return number, threading.get_ident()

    results = await asyncio.gather(*(worker.run(partial(work, number)) for number in range(100)))
    (thread,) = threads()
    assert results == [(number, thread.ident) for number in range(100)]
    assert done == list(range(100))


async def test_the_loop_goes_on_meanwhile(worker: Worker) -> None:
    released = threading.Event()
    asyncio.get_running_loop().call_soon(released.set)
    assert await worker.run(lambda: released.wait(10))


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3)])
async def test_what_goes_wrong_is_raised_and_the_next_is_done(worker: Worker, error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        await worker.run(fail)
    assert caught.value is error
    assert await worker.run(lambda: 1) == 1


async def test_who_gives_up_before_it_has_begun_has_it_left_out(worker: Worker) -> None:
    released = threading.Event()
    done: list[str] = []
    first = asyncio.create_task(worker.run(lambda: released.wait(10)))
    second = asyncio.create_task(worker.run(lambda: done.append("second")))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.sleep(0)
    released.set()
    assert await first
    await worker.run(lambda: done.append("third"))
    assert done == ["third"]


async def test_who_gives_up_while_it_is_done_costs_the_next_nothing(worker: Worker) -> None:
    begun, released = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        released.wait(10)

    first = asyncio.create_task(worker.run(work))
    await asyncio.to_thread(begun.wait, 10)
    first.cancel()
    released.set()
    assert await worker.run(lambda: 1) == 1


async def test_more_may_wait_than_a_pipe_holds(worker: Worker) -> None:
    released = threading.Event()
    first = asyncio.create_task(worker.run(lambda: released.wait(10)))
    rest = [asyncio.create_task(worker.run(lambda: 1)) for _ in range(70_000)]
    await asyncio.sleep(0)
    released.set()
    assert await first
    assert sum(await asyncio.gather(*rest)) == len(rest)


async def test_it_ends_when_it_has_done_all(worker: Worker) -> None:
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    released = threading.Event()
    work = [asyncio.create_task(worker.run(lambda: released.wait(10))) for _ in range(2)]
    await asyncio.sleep(0)
    (thread,) = threads()
    worker.close()
    worker.close()
    released.set()
    assert await asyncio.gather(*work) == [True, True]
    await asyncio.to_thread(thread.join, 10)
    assert not threads()
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_loop_that_ends_first_is_not_told(worker: Worker) -> None:
    begun, released, done = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        released.wait(10)

    async def start() -> None:
        working = asyncio.create_task(worker.run(work))
        await asyncio.to_thread(begun.wait, 10)
        working.cancel()

    asyncio.run(start())
    released.set()
    asyncio.run(worker.run(done.set))
    assert done.is_set()
