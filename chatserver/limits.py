"""How many commands a connection may send."""

import time
from collections.abc import Callable

from aiohttp import web

from chatserver.bucket import Limit
from chatserver.chain import Check
from chatserver.client import Client
from chatserver.config import CONFIG
from chatserver.errors import PolicyViolation
from chatserver.keys import CHAIN
from chatserver.message import Command


class RateLimit(Check):
    """A message middleware: one token bucket per connection, with a second's worth of tokens, at least one."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = Limit(per_second, clock)

    def check(self, command: Command, client: Client) -> None:
        """Raises `TooManyMessages` when the bucket is empty, `PolicyViolation` for a flood."""
        self._limit.spend(client, _flood)


def _flood() -> PolicyViolation:
    return PolicyViolation("too many messages")


def setup(app: web.Application) -> None:
    """Installs the limit that `RATE_LIMIT` names."""
    rate = app[CONFIG].rate_limit
    if rate:
        app[CHAIN].append(RateLimit(rate))
