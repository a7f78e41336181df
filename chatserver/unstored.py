"""The messages of one connection that are on their way into the store."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final, TypeAlias

from chatserver.client import Client
from chatserver.journal import Answered
from chatserver.store import Stamp

UNSTORED: Final = 64
"""So many messages of one connection may be on their way."""

Answer: TypeAlias = Callable[[Stamp | Exception], None]
"""Tells a sender what became of a message, unless that goes without saying."""


class Unstored:
    """A connection needn't wait for one message to be stored before it sends the next; only so many are on their way.

    Its commands are handled one at a time. `begin` says how the next message is to be answered.
    """

    __slots__ = ("_answer", "_answered", "_client", "_waiting", "taken")

    def __init__(self, client: Client) -> None:
        self._client = client
        self._waiting: list[list[bytes] | None] = []
        """For each of them, what is to be told after it; None: nothing."""
        self._answered: asyncio.Event | None = None
        self._answer: Answer = _silent
        self.taken = False
        """A message was taken since `begin`, and is or will be answered."""

    def begin(self, answer: Answer) -> None:
        """What is taken from now on is answered so."""
        self._answer = answer
        self.taken = False

    @property
    def full(self) -> bool:
        """So many are on their way that the next has to wait."""
        return len(self._waiting) >= UNSTORED

    async def ready(self) -> None:
        """Waits while it is full."""
        await self._fewer_than(UNSTORED)

    async def settle(self) -> None:
        """Waits until none is."""
        await self._fewer_than(1)

    def add(self) -> Answered:
        """One more; to be called when it is known what became of it."""
        self.taken = True
        self._waiting.append(None)
        return partial(self._tell, self._answer)

    def tell(self, piece: bytes) -> None:
        """Answers come in the order of what they answer: this one after those to messages that are on their way."""
        if not self._waiting:
            self._client.push(piece)
            return
        replies = self._waiting[-1] = self._waiting[-1] or []
        replies.append(piece)

    async def _fewer_than(self, count: int) -> None:
        while len(self._waiting) >= count:
            if self._answered is None:
                self._answered = asyncio.Event()
            self._answered.clear()
            await self._answered.wait()

    def _tell(self, answer: Answer, outcome: Stamp | Exception) -> None:
        replies = self._waiting.pop(0)
        if self._answered:
            self._answered.set()
        answer(outcome)
        for reply in replies or ():
            self._client.push(reply)


def _silent(outcome: Stamp | Exception) -> None:
    return None
