"""Tells a room who comes and goes."""

from weakref import WeakKeyDictionary

from aiohttp import web

from chatserver.client import Client
from chatserver.keys import ROOMS
from chatserver.message import Info, Joined, Left
from chatserver.room import Room


class Presence:
    """Who was announced where."""

    def __init__(self) -> None:
        self._announced: WeakKeyDictionary[Client, dict[str, Info]] = WeakKeyDictionary()

    async def joined(self, client: Client, room: Room) -> None:
        """`client` has come; it hears it, too."""
        info = room.members.get(client, client.info)
        self._announced.setdefault(client, {})[room.name] = info
        room.broadcast(Joined(_name(client), room.name, info))

    async def left(self, client: Client, room: Room) -> None:
        """`client` has gone."""
        info = self._announced.get(client, {}).pop(room.name, client.info)
        room.broadcast(Left(_name(client), room.name, info))


def _name(client: Client) -> str:
    return client.user or f"guest-{client.id[:6]}"


def setup(app: web.Application) -> None:
    """Announces joins and leaves in each room."""
    presence = Presence()
    app[ROOMS].on_join.append(presence.joined)
    app[ROOMS].on_leave.append(presence.left)
