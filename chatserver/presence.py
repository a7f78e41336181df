"""Tells everybody who comes and goes."""

from aiohttp import web

from chatserver.client import Client
from chatserver.keys import POOL
from chatserver.message import Joined, Left


def setup(app: web.Application) -> None:
    """Announces connects and disconnects, the newcomer included."""
    pool = app[POOL]

    async def joined(client: Client) -> None:
        pool.broadcast(Joined(client.user))

    async def left(client: Client) -> None:
        pool.broadcast(Left(client.user))

    pool.on_connect.append(joined)
    pool.on_disconnect.append(left)
