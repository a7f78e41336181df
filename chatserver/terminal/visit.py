"""A room as it is read: each message once, in order, and no gap without a word."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

from chatserver.terminal.events import Event, Missed, Moved, Problem, Said
from chatserver.terminal.link import Entered, Heard, Later, Link, Out, Refused
from chatserver.terminal.payloads import stored

PAGE: Final = 300
"""Messages that are asked for at once: more the server doesn't give."""

RELOAD: Final = 50
"""Messages that are read back at least when the room's log isn't the one that we know."""

_PAUSE: Final = 0.5
"""Seconds until the history is asked for again."""


class Visit:
    """What is heard waits in line until all before it is told: the history first, then what was missed, then the rest.

    What we miss while the connection is broken is read from the history, which knows when it was said; what the SDK
    recovers is the same, and is told only if it wasn't told yet.
    """

    def __init__(self, link: Link, room: str, tell: Callable[[Event], None], history: int) -> None:
        """`history`: so many messages are told at first."""
        self.room = room
        self.entered = asyncio.Event()
        """We are in the room, and its history is told."""
        self.out = asyncio.Event()
        """We aren't, and won't be."""
        self._link = link
        self._tell = tell
        self._history = history
        self._heard: asyncio.Queue[Heard] = asyncio.Queue()
        self._epoch = ""
        self._offset = 0
        """Of the last message that was told."""
        self._oldest = 0
        """The offset of the first one that was told, or would have been."""
        self._news = asyncio.Condition()

    async def run(self) -> None:
        """Enters, and tells what happens, until it is cancelled."""
        await self._link.enter(self.room, self._heard.put_nowait)
        while True:
            await self._take(await self._heard.get())
            async with self._news:
                self._news.notify_all()

    async def reached(self, offset: int) -> None:
        """Waits until the message at `offset` is told; not where positions aren't."""
        await self.entered.wait()
        async with self._news:
            await self._news.wait_for(lambda: self.out.is_set() or not self._epoch or self._offset >= offset)

    async def earlier(self, count: int) -> list[Said]:
        """The last messages before those that were told; they have been told then. Raises `Later` and `Refused`."""
        if self._oldest <= 1:
            return []
        found = await self._page(before=self._oldest, limit=min(count, PAGE))
        self._oldest = found[0].offset if found else 1
        return found

    async def _take(self, heard: Heard) -> None:
        match heard:
            case Entered():
                await self._enter(heard)
                self.entered.set()
            case Out():
                self._tell(Problem(heard.code, heard.text, self.room))
                self.out.set()
                self.entered.set()
            case Said():
                await self._hear(heard)
            case Moved() if heard.member.client != self._link.client_id:
                self._tell(heard)

    async def _enter(self, place: Entered) -> None:
        known, self._epoch = self._epoch, place.epoch
        if not place.positioned:
            if self.entered.is_set():
                self._tell(Missed(self.room, 0, 0, "this room keeps no history"))
        elif known == place.epoch:
            await self._catch_up()
        else:
            if known:
                self._tell(Missed(self.room, 0, 0, "the room's history was begun anew"))
            await self._begin(place, max(self._history, RELOAD) if known else self._history)

    async def _begin(self, place: Entered, count: int) -> None:
        self._offset, self._oldest = place.offset, place.offset + 1
        if count and place.offset:
            found = await self._patiently(before=place.offset + 1, limit=min(count, PAGE))
            for message in found:
                self._tell(message)
            self._oldest = found[0].offset if found else self._oldest

    async def _hear(self, message: Said) -> None:
        if message.offset > self._offset + 1:
            await self._catch_up(message.offset - 1)
        self._tell_next(message)

    async def _catch_up(self, last: int | None = None) -> None:
        """Tells what came after the last message that was told, up to the offset `last`, or all there is."""
        while last is None or self._offset < last:
            found = await self._patiently(after=self._offset, limit=PAGE)
            for message in found:
                self._tell_next(message)
            if not found:
                break

    def _tell_next(self, message: Said) -> None:
        if message.offset:
            if message.offset <= self._offset:
                return
            if message.offset > self._offset + 1:
                self._tell(Missed(self.room, self._offset + 1, message.offset - 1, "it isn't kept any more"))
            self._offset = message.offset
        self._tell(message)

    async def _patiently(self, **wanted: Any) -> list[Said]:
        """A page, as soon as it can be had. One that is refused is empty, which is told."""
        while True:
            with contextlib.suppress(Later):
                try:
                    return await self._page(**wanted)
                except Refused as error:
                    self._tell(Problem(error.code, f"history: {error.text}", self.room))
                    return []
            await asyncio.sleep(_PAUSE)

    async def _page(self, **wanted: Any) -> list[Said]:
        page = await self._link.call("history", {"room": self.room, "epoch": self._epoch, **wanted})
        return [stored(self.room, page["epoch"], message) for message in page["messages"]]
