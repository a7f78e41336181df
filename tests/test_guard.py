"""What a guarded function may do, and what becomes of its faults."""

import asyncio
import contextlib
import inspect
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias

import pytest

from chatserver.errors import ChatError, Disconnect, InternalError
from chatserver.guard import FAILURES, Call, Guard
from tests.fakes import Clock, stopped_clock, turns

Function: TypeAlias = Callable[[Call], Awaitable[object]]


@pytest.fixture
async def clock() -> AsyncIterator[Clock]:
    with stopped_clock() as clock:
        yield clock


def plugin() -> None:
    """Gives the guards here their name."""


async def run(guard: Guard, function: Function) -> object:
    """One guarded call, as pool and chain make it."""
    call = Call(guard)
    return await call.run(function, call)


async def fine(call: Call) -> object:
    return "fine"


async def fail(call: Call) -> object:
    raise ZeroDivisionError("oops")


async def hang(call: Call) -> object:
    return await asyncio.Event().wait()


async def fail_times(guard: Guard, times: int, function: Function = fail) -> None:
    for _ in range(times):
        with pytest.raises(InternalError):
            await run(guard, function)


def problems(caplog: pytest.LogCaptureFixture) -> list[object]:
    """What the log says that went wrong."""
    return [vars(record).get("problem") for record in caplog.records if record.message == "plugin failed"]


async def test_what_the_function_returns_is_returned() -> None:
    assert await run(Guard(plugin, 0.5), fine) == "fine"


@pytest.mark.parametrize("answer", [ChatError("no links, please"), Disconnect("go away")])
async def test_refusals_and_disconnects_pass_and_are_no_failures(
    answer: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(call: Call) -> object:
        raise answer

    guard = Guard(plugin, 0.5)
    for _ in range(FAILURES):
        with pytest.raises(type(answer)) as caught:
            await run(guard, refuse)
        assert caught.value is answer
    assert guard.on
    assert not caplog.records


@pytest.mark.parametrize(
    "fault",
    [
        ZeroDivisionError("oops"),
        TimeoutError("of its own"),
        asyncio.CancelledError("of its own"),
        SystemExit(3),
        ExceptionGroup("group", [ValueError()]),
    ],
)
async def test_any_other_exception_is_an_internal_error_and_logged(
    fault: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async def break_down(call: Call) -> object:
        raise fault

    with pytest.raises(InternalError) as caught:
        await run(Guard(plugin, 0.5), break_down)
    assert str(caught.value) == "internal error"
    (record,) = caplog.records
    assert (record.name, record.levelno, record.message) == ("chatserver.guard", logging.ERROR, "plugin failed")
    assert vars(record)["plugin"] == f"{__name__}.plugin"
    assert vars(record)["problem"] == repr(fault)
    assert vars(record)["failures"] == 1
    assert record.exc_info
    assert record.exc_info[1] is fault


async def test_a_function_that_calls_sys_exit_ends_nothing_but_its_call() -> None:
    async def leave(call: Call) -> object:
        sys.exit("bye")

    with pytest.raises(InternalError):
        await run(Guard(plugin, 0.5), leave)


async def test_an_interrupt_of_the_whole_process_passes(caplog: pytest.LogCaptureFixture) -> None:
    async def interrupted(call: Call) -> object:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await run(Guard(plugin, 0.5), interrupted)
    assert not caplog.records


async def test_a_function_that_hangs_is_ended_at_its_deadline(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    running = asyncio.create_task(run(Guard(plugin, 0.5), hang))
    await clock.push(0.48)
    assert not running.done()
    await clock.push(0.04)
    assert isinstance(running.exception(), InternalError)
    assert problems(caplog) == ["took longer than 0.5 s"]


async def test_a_deadline_of_0_is_none(clock: Clock) -> None:
    running = asyncio.create_task(run(Guard(plugin, 0), hang))
    await clock.push(36000, step=3600)
    assert not running.done()
    running.cancel()


async def test_a_function_may_catch_its_cancellation_at_the_deadline(clock: Clock) -> None:
    async def stubborn(call: Call) -> object:
        try:
            return await hang(call)
        except asyncio.CancelledError:
            return "late"

    running = asyncio.create_task(run(Guard(plugin, 0.5), stubborn))
    await clock.push(1)
    assert running.result() == "late"


async def test_a_function_that_needs_most_of_its_time_has_not_failed(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async def dawdle(call: Call) -> object:
        return await asyncio.sleep(0.45, "answer")

    running = asyncio.create_task(run(Guard(plugin, 0.5), dawdle))
    await clock.push(0.6)
    assert running.result() == "answer"
    assert not caplog.records


@pytest.mark.parametrize("answer", [None, ChatError()])
async def test_a_function_that_blocks_the_loop_beyond_its_deadline_answers_but_has_failed(
    clock: Clock, caplog: pytest.LogCaptureFixture, answer: Exception | None
) -> None:
    async def block(call: Call) -> object:
        clock.now += 0.6
        if answer:
            raise answer
        return "late"

    with contextlib.suppress(ChatError):
        assert await run(Guard(plugin, 0.5), block) == "late"
    assert problems(caplog) == ["blocked the server for longer than 0.5 s"]


async def test_a_loop_blocked_by_what_is_onward_is_no_failure(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> str:
        clock.now += 0.6
        return "answer"

    async def ask(call: Call) -> object:
        return await call.onward(work())

    assert await run(Guard(plugin, 0.5), ask) == "answer"
    assert not caplog.records


async def test_time_spent_onward_does_not_count_against_the_deadline(clock: Clock) -> None:
    async def ask(call: Call) -> object:
        await asyncio.sleep(0.2)
        answer = await call.onward(asyncio.sleep(10, "answer"))
        await asyncio.sleep(0.2)
        return answer

    running = asyncio.create_task(run(Guard(plugin, 0.5), ask))
    await clock.push(11)
    assert running.result() == "answer"


async def test_time_before_and_after_going_onward_adds_up(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    async def ask(call: Call) -> object:
        await asyncio.sleep(0.3)
        await call.onward(asyncio.sleep(10))
        return await asyncio.sleep(0.3, None)

    running = asyncio.create_task(run(Guard(plugin, 0.5), ask))
    await clock.push(10.4)
    assert not running.done()
    await clock.push(0.2)
    assert isinstance(running.exception(), InternalError)
    assert problems(caplog) == ["took longer than 0.5 s"]


async def test_without_a_deadline_there_is_none_after_going_onward_either(clock: Clock) -> None:
    async def ask(call: Call) -> object:
        await call.onward(asyncio.sleep(1))
        return await asyncio.sleep(3600, "answer")

    running = asyncio.create_task(run(Guard(plugin, 0), ask))
    await clock.push(3602, step=1)
    assert running.result() == "answer"


async def test_two_calls_onward_at_once_do_not_count_against_the_deadline(clock: Clock) -> None:
    async def ask_twice(call: Call) -> object:
        return await asyncio.gather(call.onward(asyncio.sleep(0.1, "quick")), call.onward(asyncio.sleep(2, "slow")))

    running = asyncio.create_task(run(Guard(plugin, 0.5), ask_twice))
    await clock.push(3)
    assert running.result() == ["quick", "slow"]


async def test_the_deadline_holds_after_two_calls_onward_at_once(clock: Clock) -> None:
    async def ask_twice_and_hang(call: Call) -> object:
        await asyncio.gather(call.onward(asyncio.sleep(0.1)), call.onward(asyncio.sleep(0.2)))
        return await hang(call)

    running = asyncio.create_task(run(Guard(plugin, 0.5), ask_twice_and_hang))
    await clock.push(3)
    try:
        assert running.done()
        assert isinstance(running.exception(), InternalError)
    finally:
        running.cancel()


async def test_work_that_is_asked_for_when_the_function_is_back_is_done() -> None:
    """A plugin that answers at once, and calls on from a task of its own."""
    work: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    work.set_result("done")
    call = Call(Guard(plugin, 0.5))
    await call.run(fine, call)
    assert await call.onward(work) == "done"


async def test_work_that_takes_longer_than_the_function_is_done(clock: Clock) -> None:
    """A plugin that doesn't wait for what it called on for, and answers."""

    async def leave_it(call: Call) -> "asyncio.Task[str]":
        return asyncio.create_task(call.onward(asyncio.sleep(1, "done")))

    call = Call(Guard(plugin, 0.5))
    working = await call.run(leave_it, call)
    await clock.push(1.1)
    assert working.done()
    assert working.result() == "done"


async def test_work_that_is_asked_for_after_the_deadline_is_awaited_or_closed(clock: Clock) -> None:
    work = asyncio.sleep(0)

    async def stubborn(call: Call) -> object:
        try:
            return await hang(call)
        except asyncio.CancelledError:
            return await call.onward(work)

    running = asyncio.create_task(run(Guard(plugin, 0.5), stubborn))
    await clock.push(1)
    assert running.done()
    assert running.exception() is None or isinstance(running.exception(), InternalError)
    try:
        assert inspect.getcoroutinestate(work) == inspect.CORO_CLOSED
    finally:
        work.close()


@pytest.mark.parametrize("fault", [ZeroDivisionError(), TimeoutError(), ChatError(), Disconnect(), SystemExit()])
async def test_exceptions_from_onward_pass_and_are_nobodys_failure(
    fault: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        raise fault

    async def ask(call: Call) -> object:
        return await call.onward(work())

    guard = Guard(plugin, 0.5)
    for _ in range(FAILURES):
        with pytest.raises(type(fault)) as caught:
            await run(guard, ask)
        assert caught.value is fault
    assert guard.on
    assert not caplog.records


async def test_exceptions_from_onward_do_not_end_a_row_of_failures() -> None:
    async def ask(call: Call) -> object:
        return await call.onward(fail(call))

    guard = Guard(plugin, 0.5)
    await fail_times(guard, FAILURES - 1)
    with pytest.raises(ZeroDivisionError):
        await run(guard, ask)
    await fail_times(guard, 1)
    assert not guard.on


async def test_an_exception_made_of_one_from_onward_is_the_functions_own(caplog: pytest.LogCaptureFixture) -> None:
    async def ask(call: Call) -> object:
        try:
            return await call.onward(fail(call))
        except ZeroDivisionError as error:
            raise ValueError("clumsy") from error

    with pytest.raises(InternalError):
        await run(Guard(plugin, 0.5), ask)
    assert problems(caplog) == ["ValueError('clumsy')"]


async def test_a_function_may_handle_an_exception_from_onward(caplog: pytest.LogCaptureFixture) -> None:
    async def ask(call: Call) -> object:
        try:
            return await call.onward(fail(call))
        except ZeroDivisionError:
            return "handled"

    assert await run(Guard(plugin, 0.5), ask) == "handled"
    assert not caplog.records


async def test_ten_failures_in_a_row_switch_a_function_off(caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard(plugin, 0.5)
    await fail_times(guard, 9)
    assert guard.on
    await fail_times(guard, 1)
    assert [record.message for record in caplog.records] == ["plugin failed"] * 10 + ["plugin switched off"]
    last = caplog.records[-1]
    assert last.levelno == logging.ERROR
    assert vars(last)["plugin"] == f"{__name__}.plugin"
    assert [vars(record)["failures"] for record in caplog.records] == [*range(1, 11), 10]
    assert not guard.on


async def test_failures_of_every_kind_count(clock: Clock) -> None:
    guard = Guard(plugin, 0.5)
    await fail_times(guard, 8)
    guard.failed("returned int, not an event or None")
    running = asyncio.create_task(run(guard, hang))
    await clock.push(1)
    assert isinstance(running.exception(), InternalError)
    assert not guard.on


async def refuse(call: Call) -> object:
    raise ChatError


async def disconnect(call: Call) -> object:
    raise Disconnect


@pytest.mark.parametrize("function", [fine, refuse, disconnect])
async def test_an_answer_in_between_ends_a_row_of_failures(function: Function) -> None:
    guard = Guard(plugin, 0.5)
    await fail_times(guard, 9)
    with contextlib.suppress(ChatError, Disconnect):
        await run(guard, function)
    await fail_times(guard, 9)
    assert guard.on
    await fail_times(guard, 1)
    assert not guard.on


@pytest.mark.parametrize("inside", ["function", "onward"])
async def test_cancelling_the_task_passes_and_is_nobodys_failure(inside: str, caplog: pytest.LogCaptureFixture) -> None:
    async def ask(call: Call) -> object:
        return await call.onward(hang(call))

    guard = Guard(plugin, 0.5)
    for _ in range(FAILURES):
        running = asyncio.create_task(run(guard, hang if inside == "function" else ask))
        await turns()
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()
    assert guard.on
    assert not caplog.records


async def test_a_timeout_around_the_call_is_the_callers() -> None:
    guard = Guard(plugin, 3600)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await run(guard, hang)
    assert guard.on


class Plugin:
    def method(self) -> None:
        pass

    def __call__(self) -> None:
        pass


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (plugin, "plugin"),
        (Plugin, "Plugin"),
        (Plugin().method, "Plugin.method"),
        (Plugin(), "Plugin"),
    ],
)
def test_a_function_is_named_as_its_author_knows_it(function: Callable[[], object], name: str) -> None:
    assert Guard(function, 0.5).name == f"{__name__}.{name}"
