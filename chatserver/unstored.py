"""The messages of one connection that are on their way into the store."""

import asyncio
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from chatserver.client import Client
from chatserver.journal import Answered
from chatserver.store import Stamp

UNSTORED: Final = 64
"""So many messages of one connection may be on their way."""

Answer: TypeAlias = Callable[[Stamp | Exception], None]
"""Tells a sender what became of a message, unless that goes without saying."""


class Unstored:
    """A connection needn't wait for one message to be stored before it sends the next; only so many are on their way.

    Its commands are handled one at a time. `begin` says how what their handler takes is to be answered.
    """

    __slots__ = ("_answered", "_client", "_divide", "_waiting", "answer", "taken")

    def __init__(self, client: Client, divide: Callable[[], None]) -> None:
        """`divide()`: what is on its way by now is answered before anything that comes after it is delivered."""
        self._client = client
        self._divide = divide
        self._waiting: list[Answer | bytes] = []
        """How each of them is to be answered, and what is to be told in between."""
        self._answered: asyncio.Event | None = None
        self.answer: Answer = _silent
        """How the next message is to be answered."""
        self.taken = False
        """A message was taken since `begin`, and is or will be answered."""

    def begin(self, answer: Answer) -> None:
        """What is taken from now on is answered so."""
        self.answer = answer
        self.taken = False

    def full(self) -> bool:
        """So many are on their way that the next has to wait."""
        return len(self._waiting) >= UNSTORED

    async def ready(self) -> None:
        """Waits while it is full."""
        await self._fewer_than(UNSTORED)

    async def settle(self) -> None:
        """Waits until none is."""
        await self._fewer_than(1)

    def add(self, answer: Answer) -> Answered:
        """One more, which is to be answered so; what is returned is to be called when it is known what became of it."""
        self.taken = True
        self._waiting.append(answer)
        return self._tell

    def tell(self, piece: bytes) -> None:
        """Answers come in the order of what they answer: this one after those to messages that are on their way."""
        if self._waiting:
            self._divide()
            self._waiting.append(piece)
        else:
            self._client.push(piece)

    async def _fewer_than(self, count: int) -> None:
        while len(self._waiting) >= count:
            if self._answered is None:
                self._answered = asyncio.Event()
            self._answered.clear()
            await self._answered.wait()

    def _tell(self, outcome: Stamp | Exception) -> None:
        """Of the first of them: what becomes of them is known in their order."""
        waiting = self._waiting
        answer: Any = waiting.pop(0)  # no bytes: those are told with the answer before them
        if self._answered:
            self._answered.set()
        answer(outcome)
        while waiting and isinstance(piece := waiting[0], bytes):
            del waiting[0]
            self._client.push(piece)


def _silent(outcome: Stamp | Exception) -> None:
    return None
