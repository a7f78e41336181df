"""Runs functions that aren't ours (plugins') so that their faults cost nobody else anything."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, TypeVar

from chatserver.context import report
from chatserver.errors import ChatError, Disconnect, InternalError

T = TypeVar("T")

logger = logging.getLogger(__name__)

FAILURES: Final = 10
"""So many failures in a row switch a function off."""

LATE_SECONDS: Final = 0.1
"""A deadline that is noticed so much later was missed because something blocked the loop: nobody's failure."""


class Guard:
    """The account of one function of a plugin."""

    def __init__(self, function: Callable[..., object], seconds: float) -> None:
        """`seconds`: the deadline of each call; 0 is none."""
        self.name = f"{function.__module__}.{getattr(function, '__qualname__', type(function).__name__)}"
        self.on = True
        """False once it has failed too often; the caller does without it then."""
        self.seconds = seconds
        self._failures = 0
        self._running: set[Call] = set()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, call: "Call") -> float:
        """`call` runs from now on. Returns its deadline."""
        if not self.seconds:
            return math.inf
        loop = asyncio.get_running_loop()
        self._running.add(call)
        if self._timer is None:
            self._timer = loop.call_later(self.seconds, self._look)
        return loop.time() + self.seconds

    def end(self, call: "Call") -> None:
        """`call` is over."""
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
    """One call of a guarded function, as a context manager around it.

    `ChatError` and `Disconnect` are answers, and pass. Whatever else the function raises, or taking longer than its
    deadline, is a failure and becomes `InternalError`. What `onward` awaits is somebody else's work: it doesn't
    count against the deadline, and its exceptions pass.
    """

    __slots__ = (
        "_away",
        "_beyond",
        "_cancelling",
        "_expired",
        "_guard",
        "_left",
        "_over",
        "_task",
        "_time",
        "deadline",
    )

    def __init__(self, guard: Guard) -> None:
        self.deadline = math.inf
        """By the loop's clock; infinity while somebody else's work is awaited."""
        self._guard = guard
        self._beyond: BaseException | None = None
        self._away = 0
        self._left: float | None = None
        self._over = False
        self._expired = False
        self._time = asyncio.get_running_loop().time

    async def __aenter__(self) -> "Call":
        task = asyncio.current_task()
        assert task
        self._task = task
        self._cancelling = task.cancelling()
        self.deadline = self._guard.begin(self)
        return self

    def expire(self) -> None:
        """The deadline has come: the function is interrupted."""
        self._expired = True
        self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        self._guard.end(self)
        if self._expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            late = self._time() - self.deadline
            self._guard.failed(f"took longer than {self._guard.seconds} s", counts=late < LATE_SECONDS)
            raise InternalError from None
        if error is None:
            self._succeed()
        elif error is self._beyond:
            return
        elif isinstance(error, ChatError | Disconnect):
            self._succeed()
        elif _is_failure(error):
            self._guard.failed(repr(error), error)
            raise InternalError from None

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

    def _succeed(self) -> None:
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


def _is_failure(error: BaseException) -> bool:
    """An exception of the function's own making, `SystemExit` included, and not our cancelling it."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and not task.cancelling()
    return isinstance(error, Exception | SystemExit)
