"""Runs functions that aren't ours (plugins') so that their faults cost nobody else anything."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import CoroutineType, coroutine
from typing import Any, Final, TypeVar

from chatserver.context import report
from chatserver.errors import ChatError, Disconnect, InternalError

T = TypeVar("T")

logger = logging.getLogger(__name__)

FAILURES: Final = 10
"""So many failures in a row switch a function off."""

LATE_SECONDS: Final = 0.1
"""A deadline that is noticed so much later was missed because something blocked the loop: nobody's failure."""


def _anything(result: object) -> None:
    """Every result is one."""


class Guard:
    """The account of one function of a plugin."""

    def __init__(
        self, function: Callable[..., object], seconds: float, check: Callable[[object], None] = _anything
    ) -> None:
        """`seconds`: the deadline of each call; 0 is none. `check`: raises for what `function` mustn't return."""
        self.name = f"{function.__module__}.{getattr(function, '__qualname__', type(function).__name__)}"
        self.on = True
        """False once it has failed too often; the caller does without it then."""
        self.seconds = seconds or math.inf
        self.check = check
        self._failures = 0
        self._running: set[Call] = set()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, call: "Call") -> None:
        """`call` waits for something, and may have to be interrupted."""
        if self.seconds == math.inf:
            return
        self._running.add(call)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(min(call.deadline, loop.time() + self.seconds), self._look)

    def end(self, call: "Call") -> None:
        """`call`, which was watched, is over."""
        self._running.discard(call)

    def _look(self) -> None:
        """One timer for all calls: nearly all are over long before it comes."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for call in [call for call in self._running if call.deadline <= now]:
            self._running.discard(call)
            call.expire()
        self._timer = None
        if self._running:
            soonest = min(call.deadline for call in self._running)
            self._timer = loop.call_at(min(soonest, now + self.seconds), self._look)

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self, problem: str, exc_info: BaseException | None = None, *, counts: bool = True) -> None:
        """Logs a failure and, if it `counts`, counts it."""
        self._failures += counts
        fields = {"plugin": self.name, "failures": self._failures}
        report(logger, logging.ERROR, "plugin failed", problem=problem, exc_info=exc_info, **fields)
        if counts and self._failures == FAILURES:
            self.on = False
            report(logger, logging.ERROR, "plugin switched off", **fields)


class Call:
    """One call of a guarded function: `run` makes it.

    `ChatError` and `Disconnect` are answers, and pass. Whatever else the function raises, or taking longer than its
    deadline, is a failure and becomes `InternalError`. What `onward` awaits is somebody else's work: it doesn't
    count against the deadline, and its exceptions pass.
    """

    _beyond: BaseException | None = None  # what most calls never change costs them nothing
    _away = 0
    _left: float | None = None
    _over = False
    _expired = False

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._time = asyncio.get_running_loop().time
        self.deadline = math.inf
        """By the loop's clock; infinity while somebody else's work is awaited."""

    @coroutine
    def run(self, function: Callable[..., Awaitable[T]], *args: object) -> Generator[Any, Any, T]:
        """Awaits `function(*args)`. Nearly all calls are over without having waited for anything: only the others need
        a timer.
        """
        self.deadline = self._time() + self._guard.seconds
        try:
            given = function(*args)
            work: Coroutine[Any, Any, T] = given if type(given) is CoroutineType else _awaited(given)
            asked = work.send(None)
        except StopIteration as done:
            self._succeed(done.value)
            return done.value  # type: ignore[no-any-return]
        except BaseException as error:
            self._fail(error)
            raise
        return (yield from self._watched(work, asked))

    async def onward(self, work: Awaitable[T]) -> T:
        """Awaits `work`, which the function asked for but isn't to blame for."""
        self._away += 1
        self._stop_clock()
        try:
            return await work
        except BaseException as error:
            self._beyond = error
            raise
        finally:
            self._away -= 1
            if not self._away:
                self._start_clock()

    def expire(self) -> None:
        """The deadline has come: the function is interrupted."""
        self._expired = True
        self._task.cancel()

    def _watched(self, work: Coroutine[Any, Any, T], asked: object) -> Generator[Any, Any, T]:
        """The rest of `work`, which waits for what it `asked`."""
        task = asyncio.current_task()
        assert task
        self._task, self._cancelling = task, task.cancelling()
        self._guard.watch(self)
        try:
            answer = yield from _go_on(work, asked)
        except BaseException as error:
            self._guard.end(self)
            self._interrupted(error)
            self._fail(error)
            raise
        self._guard.end(self)
        self._interrupted(None)
        self._succeed(answer)
        return answer

    def _interrupted(self, error: BaseException | None) -> None:
        """Raises `InternalError` if it was us who interrupted the function, and nobody else, too."""
        if self._expired and self._task.uncancel() <= self._cancelling and isinstance(error, asyncio.CancelledError):
            self._over = True
            late = self._time() - self.deadline
            self._guard.failed(f"took longer than {self._guard.seconds} s", counts=late < LATE_SECONDS)
            raise InternalError from None

    def _succeed(self, answer: object) -> None:
        self._over = True
        try:
            self._guard.check(answer)
        except Exception as error:
            self._guard.failed(repr(error), error)
            raise InternalError from None
        self._in_time()

    def _fail(self, error: BaseException) -> None:
        """Raises `InternalError` if `error` is the function's fault."""
        self._over = True
        if error is self._beyond:
            return
        if isinstance(error, ChatError | Disconnect):
            self._in_time()
        elif _is_failure(error):
            self._guard.failed(repr(error), error)
            raise InternalError from None

    def _in_time(self) -> None:
        """It came back in time; or too late, which the clock couldn't say as the function blocked the loop."""
        if self._time() > self.deadline:
            self._guard.failed(f"blocked the server for longer than {self._guard.seconds} s")
        else:
            self._guard.succeeded()

    def _stop_clock(self) -> None:
        if self._left is None and not self._over and not self._expired:
            self._left = self.deadline - self._time()
            self.deadline = math.inf

    def _start_clock(self) -> None:
        if self._left is not None and not self._over:
            self.deadline = self._time() + self._left
            self._left = None


async def _awaited(work: Awaitable[T]) -> T:
    return await work


def _go_on(work: Coroutine[Any, Any, T], asked: object) -> Generator[Any, Any, T]:
    """What `yield from work` would do (PEP 380) if `work` hadn't asked for something already."""
    try:
        while True:
            try:
                given = yield asked
            except BaseException as error:
                asked = work.throw(error)
            else:
                asked = work.send(given)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]


def _is_failure(error: BaseException) -> bool:
    """An exception of the function's own making, `SystemExit` included, and not our cancelling it."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and not task.cancelling()
    return isinstance(error, Exception | SystemExit)
