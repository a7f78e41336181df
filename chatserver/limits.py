"""How many commands a connection may send."""

import time
from collections.abc import Callable
from typing import Final

from aiohttp import web

from chatserver.bucket import Limit
from chatserver.chain import Handler
from chatserver.client import Client
from chatserver.config import CONFIG
from chatserver.errors import PolicyViolation
from chatserver.keys import CHAIN
from chatserver.message import Command, Event


class RateLimit:
    """A message middleware: one token bucket per connection, with a second's worth of tokens, at least one."""

    trusted: Final = True
    """See `compose`."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = Limit(per_second, clock)

    async def __call__(self, command: Command, client: Client, handler: Handler) -> Event | None:
        """Raises `TooManyMessages` when the bucket is empty, `PolicyViolation` for a flood."""
        self._limit.spend(client, _flood)
        return await handler(command, client)


def _flood() -> PolicyViolation:
    return PolicyViolation("too many messages")


def setup(app: web.Application) -> None:
    """Installs the limit that `RATE_LIMIT` names."""
    rate = app[CONFIG].rate_limit
    if rate:
        app[CHAIN].append(RateLimit(rate))
