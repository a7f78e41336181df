"""What we say, until the server has it: in order, and once, however often it has to be sent."""

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from chatserver.terminal.events import Event, Problem
from chatserver.terminal.link import SEND, Later, Link, Refused

MOST: Final = 64
"""Messages that wait for those in front of them; who has more to say waits as well."""

_PAUSES: Final = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds until a message is sent again; the last of them from then on."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A message that the server hasn't acknowledged yet."""

    room: str
    body: str
    key: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    """What the server knows it by when it is sent again: random, as all without a token share their keys."""


class Outbox:
    """One message is on its way at a time: of two, the first one might be refused for now, and the second one taken."""

    def __init__(self, link: Link, tell: Callable[[Event], None], changed: Callable[[], None]) -> None:
        """`tell` is told what is refused; `changed` is called when there is one draft more or less."""
        self.drafts: deque[Draft] = deque()
        self.refused = 0
        self.last = 0
        """The offset of the last message that was acknowledged."""
        self._link = link
        self._tell = tell
        self._changed = changed
        self._news = asyncio.Condition()

    async def put(self, room: str, body: str) -> None:
        """Has a message sent after those that wait; waits while those are too many."""
        async with self._news:
            await self._news.wait_for(lambda: len(self.drafts) < MOST)
            self.drafts.append(Draft(room, body))
            self._news.notify_all()
        self._changed()

    async def emptied(self) -> None:
        """Waits until none waits."""
        async with self._news:
            await self._news.wait_for(lambda: not self.drafts)

    async def run(self) -> None:
        """Sends, until it is cancelled."""
        while True:
            async with self._news:
                await self._news.wait_for(lambda: self.drafts)
            try:
                self.last = await self._send(self.drafts[0])
            except Refused as error:
                self.refused += 1
                self._tell(Problem(error.code, error.text, self.drafts[0].room, self.drafts[0].body))
            async with self._news:
                self.drafts.popleft()
                self._news.notify_all()
            self._changed()

    async def _send(self, draft: Draft) -> int:
        """Its offset; 0 if the server doesn't tell."""
        pauses = iter(_PAUSES)
        while True:
            with contextlib.suppress(Later):
                told = await self._link.call(SEND, {"room": draft.room, "body": draft.body, "key": draft.key})
                return int(told.get("offset", 0))
            await asyncio.sleep(next(pauses, _PAUSES[-1]))
