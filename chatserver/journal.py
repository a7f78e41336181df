"""Group commit: what arrives while the store is at work is stored together, next."""

import asyncio
import contextlib
import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, islice, repeat, takewhile
from typing import Final, TypeAlias

import msgspec

from chatserver.context import report
from chatserver.errors import ChatError, InternalError, StorageUnavailable, StorageUnsure
from chatserver.records import Said
from chatserver.store import Entry, Stamp, Store

logger = logging.getLogger(__name__)

BATCH_ENTRIES: Final = 1000
BATCH_CHARACTERS: Final = 1 << 20
"""About what one transaction takes at most: more of either makes none faster, but those that wait wait longer."""

STORE_SECONDS: Final = 4.0
"""Who publishes hears within five seconds what became of it."""

DELIVERED_SECONDS: Final = 1.0
"""For a store to answer, before what it has is told whatever way it is heard of."""

GATHERING_TURNS: Final = 3
"""Of the event loop, between two batches: in the first the one is written to those who listen, by the third is read
what they answered. Without them batches come to take turns, each with half of what is there, and each message is
written to everybody at twice the cost."""

_LOOK_SECONDS: Final = 0.25

_LATE_SECONDS: Final = 0.1
"""Who looks so much too late was held up, and so was whoever would have asked the store, or heard its answer."""

Answered: TypeAlias = Callable[[Stamp | Exception], None]
"""Is told what became of an entry."""


def settling(future: "asyncio.Future[Stamp]") -> Answered:
    """Has `future` say it."""

    def settle(answer: Stamp | Exception) -> None:
        if future.done():  # whoever waited for it gave up
            return
        if isinstance(answer, Exception):
            future.set_exception(answer)
            future.exception()  # nobody has to ask
        else:
            future.set_result(answer)

    return settle


class Waiting(msgspec.Struct, eq=False):
    """An entry on its way into the log, and who waits for it."""

    entry: Entry
    answered: Answered
    said: Said | None
    """What is in the entry, if it is at hand."""
    since: float
    done: bool = False
    divides: bool = False
    """It is answered before what comes after it is delivered."""


Deliver: TypeAlias = Callable[[Sequence[Waiting], Sequence[Stamp]], None]


class Journal:
    """The one writer of this process: takes entries, has them stored, and delivers what is stored.

    Delivery is in the order of the log, before the sender is told, and whatever became of the sender.
    """

    def __init__(self, store: Store, deliver: Deliver) -> None:
        """`deliver(batch, stamps)` is called with what was stored together; it must not wait."""
        self._store = store
        self._deliver = deliver
        self._queue: list[Waiting] = []
        self._batch: list[Waiting] = []
        self._divided = False
        self._writing = asyncio.Lock()
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # asking asyncio for it is a system call

    def append(self, entry: Entry, answered: Answered, said: Said | None = None) -> None:
        """Takes `entry`: its place in the order is fixed from here on. `answered` is called with its stamp when it is
        stored, or with a `ChatError` within `STORE_SECONDS` and a moment.
        """
        loop = self._loop = self._loop or asyncio.get_running_loop()
        if not self._queue:
            self._idle.clear()
            self._work.set()
        self._queue.append(Waiting(entry, answered, said, loop.time()))
        if self._timer is None:
            self._look_later(loop)

    def divide(self) -> None:
        """What was taken so far is answered before anything that is taken from here on is delivered, though it may be
        stored together.
        """
        if self._queue:
            self._queue[-1].divides = True
            self._divided = True

    async def settle(self) -> None:
        """Returns when nothing waits; or when all that waits has been answered, though the store hasn't."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STORE_SECONDS + _LOOK_SECONDS):
                while not self._idle.is_set():  # something may come before it is this one's turn
                    await self._idle.wait()

    async def delivered(self) -> None:
        """Returns when what the store was given before has been delivered, or `DELIVERED_SECONDS` later."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DELIVERED_SECONDS), self._writing:
                return

    async def run(self) -> None:
        """Stores what is taken, until it is cancelled."""
        while True:
            await self._work.wait()
            self._work.clear()
            while self._queue:
                await self._store_some()
                await _gather()
            self._divided = False
            self._idle.set()

    async def trim(self, *, before: int, keep: int) -> bool:
        """`Store.trim`, when nothing is being appended: a store is asked for one of these at a time."""
        async with self._writing:
            return await self._store.trim(before=before, keep=keep)

    async def forget(self, room: str, through: int) -> bool:
        """`Store.forget`, when nothing is being appended."""
        async with self._writing:
            return await self._store.forget(room, through)

    async def _store_some(self) -> None:
        async with self._writing:
            self._batch = self._take()
            if self._batch:  # none may have had the patience
                await self._store_batch(self._batch)
            self._batch = []

    def _take(self) -> list[Waiting]:
        sizes = [len(waiting.entry.data) for waiting in self._queue[:BATCH_ENTRIES]]
        count = bisect_left([*accumulate(sizes)], BATCH_CHARACTERS) + 1  # with the one that makes it so much
        taken = self._queue[: min(count, BATCH_ENTRIES)]
        del self._queue[: len(taken)]
        return taken

    async def _store_batch(self, batch: Sequence[Waiting]) -> None:
        try:
            stamps = await self._store.append([waiting.entry for waiting in batch])
            if len(stamps) != len(batch):
                raise ValueError(f"{len(stamps)} stamps for {len(batch)} entries")
            left = iter(stamps)
            for part in self._parts(batch):
                told = list(islice(left, len(part)))
                self._deliver(part, told)
                _answer(part, told)
        except ChatError as error:
            report(logger, logging.ERROR, "not stored", problem=_cause(error), messages=len(batch))
            _fail(batch, error)
        except Exception as error:
            report(logger, logging.ERROR, "store failed", messages=len(batch), exc_info=error)
            _fail(batch, InternalError())

    def _parts(self, batch: Sequence[Waiting]) -> Sequence[Sequence[Waiting]]:
        if not self._divided:
            return [batch]
        parts: list[list[Waiting]] = [[]]
        for waiting in batch:
            parts[-1].append(waiting)
            if waiting.divides:
                parts.append([])
        return parts

    def _look_later(self, loop: asyncio.AbstractEventLoop) -> None:
        at = loop.time() + _LOOK_SECONDS
        self._timer = loop.call_at(at, self._look, loop, at)

    def _look(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        """At the time `at`, or later."""
        now = loop.time()
        if now - at >= _LATE_SECONDS:
            self._excuse(now, now - at)
        self._expire(now - STORE_SECONDS)
        self._timer = None
        if self._queue or self._batch:
            self._look_later(loop)

    def _excuse(self, now: float, seconds: float) -> None:
        """The time for which the loop was held up doesn't count."""
        for waiting in (*self._batch, *self._queue):
            waiting.since = min(now, waiting.since + seconds)

    def _expire(self, due: float) -> None:
        """What waits too long is answered: in the queue it can be taken back, in the store's hands nobody knows."""
        _fail([waiting for waiting in self._batch if waiting.since <= due], StorageUnsure())
        late = list(takewhile(lambda waiting: waiting.since <= due, self._queue))
        del self._queue[: len(late)]
        _fail(late, StorageUnavailable())


async def _gather() -> None:
    for _ in range(GATHERING_TURNS):
        await asyncio.sleep(0)


def _answer(batch: Sequence[Waiting], answers: Iterable[Stamp | Exception]) -> None:
    for waiting, answer in zip(batch, answers, strict=False):
        if waiting.done:
            continue
        waiting.done = True
        try:
            waiting.answered(answer)
        except Exception as fault:  # of one sender; the others of the batch are answered
            report(logger, logging.ERROR, "delivery failed", room=waiting.entry.room, exc_info=fault)


def _fail(batch: Sequence[Waiting], error: Exception) -> None:
    _answer(batch, repeat(error))


def _cause(error: Exception) -> str:
    return f"{error.__cause__}" if error.__cause__ else str(error)
