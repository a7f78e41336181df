"""Token buckets: how much of something one client may do, or one room be told."""

import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar
from weakref import ref

from chatserver.client import Client
from chatserver.errors import Disconnect, TooManyMessages

K = TypeVar("K")

REFUSALS: Final = 100.0
"""So many at once are borne even where the limit is one message in a while."""

_ROUNDING: Final = 1e-9


class Bucket(Generic[K]):
    """Token buckets, one for each client, or whatever else has some; forgotten with it.

    Each is kept as the moment when it would be full again (the "generic cell rate algorithm", ITU-T I.371).
    """

    def __init__(self, per_second: float, size: float) -> None:
        self._cost = 1 / per_second
        self._capacity = size * self._cost
        self._full_at: dict[ref[K], list[float]] = {}

    def take(self, owner: K, now: float) -> float:
        """Takes a token and returns 0, or else takes none and returns the seconds until there is one."""
        kept = self._full_at.get(ref(owner)) or self._keep(owner)
        full_at = (kept[0] if kept[0] > now else now) + self._cost
        wait = full_at - now - self._capacity
        if wait > _ROUNDING:
            return wait
        kept[0] = full_at
        return 0.0

    def empty(self, owner: K, now: float) -> None:
        """Takes all tokens that are there."""
        kept = self._full_at.get(ref(owner)) or self._keep(owner)
        kept[0] = now + self._capacity

    def _keep(self, owner: K) -> list[float]:
        kept = self._full_at[ref(owner, self._full_at.pop)] = [0.0]
        return kept


class Limit:
    """So much per second, of which one second's worth may come at once.

    Refusals have a bucket of their own: who goes on and on while being refused, with more than as much again as is
    allowed, floods, and is disconnected.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._allowed: Bucket[Client] = Bucket(per_second, max(1.0, per_second))
        self._refusals: Bucket[Client] = Bucket(per_second, max(REFUSALS, per_second))

    def spend(self, client: Client, flood: Callable[[], Disconnect]) -> None:
        """Raises `TooManyMessages` when nothing is left, and `flood()` for a flood."""
        now = self._clock()
        wait = self._allowed.take(client, now)
        if not wait:
            return
        if self._refusals.take(client, now):
            raise flood()
        raise TooManyMessages(wait)
