"""Where the application keeps what features share, with types: `app[POOL]` is `app["pool"]`."""

import warnings
from typing import Final

from aiohttp import web

from chatserver.chain import Middleware
from chatserver.config import Config
from chatserver.door import Door
from chatserver.pool import Pool
from chatserver.rooms import Rooms
from chatserver.sessions import Sessions

POOL: Final = web.AppKey("POOL", Pool)
ROOMS: Final = web.AppKey("ROOMS", Rooms)
CHAIN: Final = web.AppKey("CHAIN", list[Middleware])
DOOR: Final = web.AppKey("DOOR", Door)
SESSIONS: Final = web.AppKey("SESSIONS", Sessions)


def share(app: web.Application, config: Config, pool: Pool, rooms: Rooms) -> Door:
    """Makes `app["pool"]`, `app["rooms"]` and `app["chain"]`, the same under their typed keys, sessions and door."""
    chain: list[Middleware] = []
    app[POOL] = pool
    app[ROOMS] = rooms
    app[CHAIN] = chain
    app[SESSIONS] = Sessions()
    app[DOOR] = Door(config, pool, rooms, chain)
    with warnings.catch_warnings():  # aiohttp prefers typed keys; plugins and users are promised the plain ones
        warnings.simplefilter("ignore", web.NotAppKeyWarning)
        app["pool"] = pool
        app["rooms"] = rooms
        app["chain"] = chain
    return app[DOOR]
