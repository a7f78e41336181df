"""How many commands a connection may send."""

import time
from collections.abc import Callable
from weakref import WeakKeyDictionary

from aiohttp import web

from chatserver.chain import Handler
from chatserver.client import Client
from chatserver.config import CONFIG
from chatserver.errors import TooManyMessages
from chatserver.keys import CHAIN
from chatserver.message import Command, Event


class RateLimit:
    """A message middleware: one token bucket per connection.

    A bucket holds a second's worth of tokens, at least one. It is kept as a single number, the time at which it would
    be full again (the "generic cell rate algorithm", ITU-T I.371).
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._cost = 1 / per_second
        self._capacity = max(1.0, self._cost)
        self._full_at: WeakKeyDictionary[Client, float] = WeakKeyDictionary()

    async def __call__(self, command: Command, client: Client, handler: Handler) -> Event | None:
        """Raises `TooManyMessages` when the bucket is empty."""
        now = self._clock()
        full_at = max(now, self._full_at.get(client, now)) + self._cost
        wait = full_at - now - self._capacity
        if wait > 1e-9:
            raise TooManyMessages(wait)
        self._full_at[client] = full_at
        return await handler(command, client)


def setup(app: web.Application) -> None:
    """Installs the limit that `RATE_LIMIT` names."""
    rate = app[CONFIG].rate_limit
    if rate:
        app[CHAIN].append(RateLimit(rate))
