"""Tells a room who comes and goes."""

import asyncio
import sys
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakKeyDictionary

from aiohttp import web

from chatserver.bucket import Bucket
from chatserver.client import Client
from chatserver.config import CONFIG
from chatserver.keys import ROOMS
from chatserver.message import Changes, Info, Joined, Left
from chatserver.query import called
from chatserver.room import Room

BURST: Final = 10
"""So many changes of a room are told one by one, at once or within a second. People who come and go aren't that many;
when all connect at the same time, a notice for each of N members to each of N members would keep the server busy."""

MERGE_SECONDS: Final = 0.5
"""From the first change that isn't told at once until all so far are told together: still live to who watches."""

CROWD_SECONDS: Final = 1.0
"""The same in a room of more members than may be named, which has more to write to."""


@dataclass(slots=True)
class _Told:
    """What one room knows of who is there, and isn't told yet."""

    known: dict[str, Info] = field(default_factory=dict)
    """By connection, who was told to have come, or soon will be. A member costs 20 to 50 bytes: ids and infos are the
    clients' own."""
    waiting: list[Joined | Left] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None

    def forget(self) -> None:
        """From now on nothing waits."""
        self.waiting = []
        if self.timer:
            self.timer.cancel()
        self.timer = None


class Presence:
    """Tells each change at once as long as they come singly, and many together; in a crowd, how many they were.

    Who is told to have gone was told to have come, and the other way round, each in its order. Nothing is kept of a
    room that is gone.
    """

    def __init__(self, room_limit: int = 0) -> None:
        """`room_limit`: in a room of more members nobody is named; 0 is no limit."""
        self._room_limit = room_limit or sys.maxsize
        self._rooms: WeakKeyDictionary[Room, _Told] = WeakKeyDictionary()
        self._single = Bucket(BURST, BURST)

    async def joined(self, client: Client, room: Room) -> None:
        """`client` has come; it hears it, too."""
        told = self._of(room)
        info = told.known[client.id] = room.members.get(client, client.info)
        self._change(room, told, Joined(_name(client), room.name, info))

    async def left(self, client: Client, room: Room) -> None:
        """`client` has gone."""
        told = self._of(room)
        info = told.known.pop(client.id, None)
        if info:
            self._change(room, told, Left(_name(client), room.name, info))

    async def stop(self, app: web.Application) -> None:
        """Tells nothing more that waits."""
        for told in self._rooms.values():
            told.forget()

    def _of(self, room: Room) -> _Told:
        told = self._rooms.get(room)
        if told is None:
            told = self._rooms[room] = _Told()
        return told

    def _change(self, room: Room, told: _Told, change: Joined | Left) -> None:
        if not room.members:  # nobody hears it
            told.forget()
            return
        if not told.waiting:
            loop = asyncio.get_running_loop()
            crowded = len(room.members) > self._room_limit
            if not crowded and not self._single.take(room.name, loop.time()):
                room.broadcast(change)
                return
            told.timer = loop.call_later(CROWD_SECONDS if crowded else MERGE_SECONDS, self._tell, room, told)
        told.waiting.append(change)

    def _tell(self, room: Room, told: _Told) -> None:
        changes = tuple(told.waiting)
        told.forget()
        self._single.empty(room.name, asyncio.get_running_loop().time())  # a burst that goes on stays merged
        members = len(room.members)
        room.broadcast(Changes(changes, room.name, members if members > self._room_limit else 0))


def _name(client: Client) -> str:
    return client.user or called(client.info.conn) or client.guest


def setup(app: web.Application) -> None:
    """Announces joins and leaves in each room."""
    presence = Presence(app[CONFIG].presence_room_limit)
    app[ROOMS].on_join.append(presence.joined)
    app[ROOMS].on_leave.append(presence.left)
    app.on_cleanup.append(presence.stop)  # after the rooms, which tell who leaves until they have stopped
