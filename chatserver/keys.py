"""Where the application keeps what features share, with types: `app[POOL]` is `app["pool"]`."""

import warnings
from typing import Final

from aiohttp import web

from chatserver.chain import Middleware
from chatserver.pool import Pool

POOL: Final = web.AppKey("POOL", Pool)
CHAIN: Final = web.AppKey("CHAIN", list[Middleware])


def share(app: web.Application, pool: Pool, chain: list[Middleware]) -> None:
    """Makes `app["pool"]` and `app["chain"]`, and the same under their typed keys."""
    app[POOL] = pool
    app[CHAIN] = chain
    with warnings.catch_warnings():  # aiohttp prefers typed keys; plugins and users are promised the plain ones
        warnings.simplefilter("ignore", web.NotAppKeyWarning)
        app["pool"] = pool
        app["chain"] = chain
