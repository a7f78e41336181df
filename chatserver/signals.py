"""Tells receivers, which may be plugins', who arrives and who departs."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Concatenate, Generic, ParamSpec, TypeAlias

from chatserver.client import Client
from chatserver.context import report
from chatserver.errors import ChatError, Disconnect
from chatserver.guard import Call, Guard
from chatserver.message import Refused

P = ParamSpec("P")

logger = logging.getLogger(__name__)

Receiver: TypeAlias = Callable[Concatenate[Client, P], Awaitable[None]]


class Signals(Generic[P]):
    """Arrivals of clients, and departures.

    `arrivals` and `departures` are lists of `async def receiver(client, *place)`, called in order. Who comes and goes
    more than once at one place is told in that order: each change when the one before has been told to all. Receivers
    that aren't ours are guarded: each has a deadline, and its faults are its own.
    """

    def __init__(self, seconds: float) -> None:
        """`seconds`: the deadline of each receiver."""
        self.arrivals: list[Receiver[P]] = []
        self.departures: list[Receiver[P]] = []
        self._seconds = seconds
        self._guards: dict[Receiver[P], Guard] = {}
        self._told: dict[tuple[object, ...], asyncio.Event] = {}  # when the last change so far is
        self._tasks: set[asyncio.Task[None]] = set()

    async def arrive(self, client: Client, *place: P.args, **named: P.kwargs) -> None:
        """Tells that `client` has come, and returns when all know."""
        if not self.arrivals:
            return
        await self._change(self.arrivals, self._turn(client, *place), client, *place, **named)

    def depart(self, client: Client, *place: P.args, **named: P.kwargs) -> None:
        """Has it told, soon, that `client` has left."""
        if not self.departures:
            return
        turn = self._turn(client, *place)
        task = asyncio.create_task(self._change(self.departures, turn, client, *place, **named))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settled(self, client: Client, *place: P.args, **named: P.kwargs) -> None:
        """Returns when all know of what changed so far."""
        told = self._told.get((client, *place))
        if told:
            await told.wait()

    async def stop(self) -> None:
        """Ends what is still being told."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _turn(self, *key: object) -> tuple[asyncio.Event | None, asyncio.Event]:
        before, told = self._told.get(key), asyncio.Event()
        self._told[key] = told
        return before, told

    async def _change(
        self,
        receivers: list[Receiver[P]],
        turn: tuple[asyncio.Event | None, asyncio.Event],
        client: Client,
        *place: P.args,
        **named: P.kwargs,
    ) -> None:
        before, told = turn
        try:
            if before:
                await before.wait()
            await self._tell(receivers, client, *place, **named)
        finally:
            told.set()
            if self._told.get((client, *place)) is told:
                del self._told[client, *place]

    async def _tell(self, receivers: list[Receiver[P]], client: Client, *place: P.args, **named: P.kwargs) -> None:
        for receiver in receivers:
            if _is_ours(receiver):  # what it does has to be done, and who holds the loop up is somebody else
                await _logged(receiver(client, *place, **named))
                continue
            guard = self._guards.get(receiver)
            if guard is None:
                guard = self._guards[receiver] = Guard(receiver, self._seconds)
            if guard.on:
                await _contained(guard, client, partial(receiver, client, *place, **named))


def _is_ours(receiver: Callable[..., object]) -> bool:
    module = getattr(receiver, "__module__", None) or ""
    return module.partition(".")[0] == __name__.partition(".")[0]


async def _logged(work: Awaitable[None]) -> None:
    try:
        await work
    except Exception as error:  # the other receivers are told nevertheless
        report(logger, logging.ERROR, "receiver failed", exc_info=error)


async def _contained(guard: Guard, client: Client, tell: Callable[[], Awaitable[None]]) -> None:
    try:
        await Call(guard).run(tell)
    except Disconnect as end:
        client.disconnect(end)
    except ChatError as error:
        client.enqueue(Refused(error.code, str(error)))
