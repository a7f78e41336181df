"""A chat: the connection, the room, and what we say. It knows neither screen nor pipe."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from chatserver.terminal.events import Event, Member, Said
from chatserver.terminal.link import Link
from chatserver.terminal.outbox import Outbox
from chatserver.terminal.visit import Visit


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a chat is asked for."""

    url: str
    """Of the WebSocket endpoint."""
    room: str
    name: str
    history: int | None = None
    """So many messages are told at first; None: as many as whoever shows them likes."""
    token: str = ""
    get_token: Callable[[], Awaitable[str]] | None = None


class Chat:
    """Use it with `async with`: it connects then, and at the end waits for nothing."""

    def __init__(
        self, wanted: Wanted, tell: Callable[[Event], None], changed: Callable[[], None] = lambda: None
    ) -> None:
        """`tell` is told all that happens, `changed` is called when `outbox` changes."""
        self._tell = tell
        self._link = Link(wanted.url, name=wanted.name, tell=tell, token=wanted.token, get_token=wanted.get_token)
        self._history = wanted.history or 0
        self.outbox = Outbox(self._link, tell, changed)
        self.visit = Visit(self._link, wanted.room, tell, self._history)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Chat":
        self._tasks = [asyncio.create_task(self.visit.run()), asyncio.create_task(self.outbox.run())]
        self._connecting = asyncio.create_task(self._link.connect())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in (self._connecting, *self._tasks):
            task.cancel()
        await asyncio.gather(self._connecting, *self._tasks, return_exceptions=True)
        await self._link.close()

    @property
    def room(self) -> str:
        """The one that we are in, or want to be in."""
        return self.visit.room

    async def say(self, body: str) -> None:
        """Has it sent; waits only while too much else waits."""
        await self.outbox.put(self.room, body)

    async def join(self, room: str) -> None:
        """Changes the room, as soon as all is sent that is for this one."""
        while self.outbox.drafts:
            await self.outbox.emptied()
        self.visit = Visit(self._link, room, self._tell, self._history)
        self._tasks[0].cancel()
        await asyncio.gather(self._tasks[0], return_exceptions=True)
        await self._link.leave()
        self._tasks[0] = asyncio.create_task(self.visit.run())

    async def members(self) -> list[Member]:
        """Who is in the room. Raises `Later` and `Refused`."""
        return await self._link.members()

    async def earlier(self, count: int) -> list[Said]:
        """The last messages before those that were told so far. Raises `Later` and `Refused`."""
        return await self.visit.earlier(count)
