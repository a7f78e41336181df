"""Where the application keeps what features share, with types: `app[POOL]` is `app["pool"]`."""

import warnings
from typing import Final

from aiohttp import web

from chatserver.chain import Middleware
from chatserver.pool import Pool
from chatserver.rooms import Rooms

POOL: Final = web.AppKey("POOL", Pool)
ROOMS: Final = web.AppKey("ROOMS", Rooms)
CHAIN: Final = web.AppKey("CHAIN", list[Middleware])


def share(app: web.Application, pool: Pool, rooms: Rooms, chain: list[Middleware]) -> None:
    """Makes `app["pool"]`, `app["rooms"]` and `app["chain"]`, and the same under their typed keys."""
    app[POOL] = pool
    app[ROOMS] = rooms
    app[CHAIN] = chain
    with warnings.catch_warnings():  # aiohttp prefers typed keys; plugins and users are promised the plain ones
        warnings.simplefilter("ignore", web.NotAppKeyWarning)
        app["pool"] = pool
        app["rooms"] = rooms
        app["chain"] = chain
