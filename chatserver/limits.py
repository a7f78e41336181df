"""How many commands a connection may send."""

import time
from collections.abc import Callable
from typing import Final
from weakref import WeakKeyDictionary

from aiohttp import web

from chatserver.chain import Handler
from chatserver.client import Client
from chatserver.config import CONFIG
from chatserver.errors import PolicyViolation, TooManyMessages
from chatserver.keys import CHAIN
from chatserver.message import Command, Event

REFUSALS: Final = 100.0
"""So many at once are borne even where the limit is one message in a while."""

_ROUNDING: Final = 1e-9


class RateLimit:
    """A message middleware: one token bucket per connection.

    A bucket holds a second's worth of tokens, at least one. It is kept as a single number, the time at which it would
    be full again (the "generic cell rate algorithm", ITU-T I.371). Refusals have a bucket of their own: who goes on and
    on while being refused, with more than as much again as is allowed, floods, and is disconnected.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._allowed = Bucket(per_second, max(1.0, per_second))
        self._refusals = Bucket(per_second, max(REFUSALS, per_second))

    async def __call__(self, command: Command, client: Client, handler: Handler) -> Event | None:
        """Raises `TooManyMessages` when the bucket is empty, `PolicyViolation` for a flood."""
        now = self._clock()
        wait = self._allowed.take(client, now)
        if not wait:
            return await handler(command, client)
        if self._refusals.take(client, now):
            raise PolicyViolation("too many messages")
        raise TooManyMessages(wait)


class Bucket:
    """Token buckets, one for each client; forgotten with it."""

    def __init__(self, per_second: float, size: float) -> None:
        self._cost = 1 / per_second
        self._capacity = size * self._cost
        self._full_at: WeakKeyDictionary[Client, float] = WeakKeyDictionary()

    def take(self, client: Client, now: float) -> float:
        """Takes a token and returns 0, or else takes none and returns the seconds until there is one."""
        full_at = max(now, self._full_at.get(client, now)) + self._cost
        wait = full_at - now - self._capacity
        if wait > _ROUNDING:
            return wait
        self._full_at[client] = full_at
        return 0.0


def setup(app: web.Application) -> None:
    """Installs the limit that `RATE_LIMIT` names."""
    rate = app[CONFIG].rate_limit
    if rate:
        app[CHAIN].append(RateLimit(rate))
