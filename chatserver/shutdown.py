"""How the server says goodbye."""

import logging
import time

from aiohttp import web

from chatserver.config import CONFIG
from chatserver.context import report
from chatserver.errors import Disconnect, GoingAway
from chatserver.keys import POOL, ROOMS

logger = logging.getLogger(__name__)


async def drain(app: web.Application, end: Disconnect, *, answers: bool) -> None:
    """Closes all clients with `end`, within `DRAIN_SECONDS`, and logs how that went.

    `answers`: the clients' close frames still arrive; aiohttp throws away what comes once its own shutdown began.
    """
    started = time.monotonic()
    await app[ROOMS].settle()  # within seconds: what was sent before is answered before the close
    closed = await app[POOL].close(end, app[CONFIG].drain_seconds, answers=answers)
    report(
        logger,
        logging.INFO,
        "drained",
        code=end.code,
        closed=closed.closed,
        aborted=closed.aborted,
        seconds=round(time.monotonic() - started, 3),
    )


async def on_shutdown(app: web.Application) -> None:
    """Drains under launchers that aren't ours; `python -m chatserver` has done it before."""
    if not app[POOL].draining:
        await drain(app, GoingAway(), answers=False)


def setup(app: web.Application) -> None:
    """Has the clients closed when the application shuts down."""
    app.on_shutdown.append(on_shutdown)
