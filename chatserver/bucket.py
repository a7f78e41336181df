"""Token buckets: how much of something one client may do, or one room be told."""

import time
from collections.abc import Callable
from typing import Final

from chatserver.client import Client
from chatserver.errors import Disconnect, TooManyMessages

KEPT: Final = 1000
"""So many buckets are kept without a look at which of them are full."""

REFUSALS: Final = 100.0
"""So many at once are borne even where the limit is one message in a while."""

_ROUNDING: Final = 1e-9


class Bucket:
    """Token buckets, one for each owner, by its name. They are full at first.

    Each is kept as the moment when it would be full again (the "generic cell rate algorithm", ITU-T I.371), and
    forgotten some time after that.
    """

    def __init__(self, per_second: float, size: float) -> None:
        self._cost = 1 / per_second
        self._capacity = size * self._cost
        self._full_at: dict[str, float] = {}
        self._most = KEPT

    def take(self, owner: str, now: float) -> float:
        """Takes a token and returns 0, or else takes none and returns the seconds until there is one."""
        full_at = self._full_at.get(owner)
        if full_at is None:
            self._forget_full(now)
            full_at = now
        elif full_at < now:
            full_at = now
        full_at += self._cost
        wait = full_at - now - self._capacity
        if wait > _ROUNDING:
            return wait
        self._full_at[owner] = full_at
        return 0.0

    def empty(self, owner: str, now: float) -> None:
        """Takes all tokens that are there."""
        self._full_at[owner] = now + self._capacity

    def _forget_full(self, now: float) -> None:
        """Forgets those that are full, if there are many by now."""
        if len(self._full_at) < self._most:
            return
        self._full_at = {owner: full_at for owner, full_at in self._full_at.items() if full_at > now}
        self._most = max(KEPT, 2 * len(self._full_at))


class Limit:
    """So much per second, of which one second's worth may come at once.

    Refusals have a bucket of their own: who goes on and on while being refused, with more than as much again as is
    allowed, floods, and is disconnected.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._allowed = Bucket(per_second, max(1.0, per_second))
        self._refusals = Bucket(per_second, max(REFUSALS, per_second))

    def spend(self, client: Client, flood: Callable[[], Disconnect]) -> None:
        """Raises `TooManyMessages` when nothing is left, and `flood()` for a flood."""
        now = self._clock()
        wait = self._allowed.take(client.id, now)
        if not wait:
            return
        if self._refusals.take(client.id, now):
            raise flood()
        raise TooManyMessages(wait)
