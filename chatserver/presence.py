"""Tells a room who comes and goes."""

from aiohttp import web

from chatserver.client import Client
from chatserver.keys import ROOMS
from chatserver.message import Joined, Left
from chatserver.room import Room


async def joined(client: Client, room: Room) -> None:
    """`client` has come; it hears it, too."""
    room.broadcast(Joined(client.user))


async def left(client: Client, room: Room) -> None:
    """`client` has gone."""
    room.broadcast(Left(client.user))


def setup(app: web.Application) -> None:
    """Announces joins and leaves in each room."""
    app[ROOMS].on_join.append(joined)
    app[ROOMS].on_leave.append(left)
