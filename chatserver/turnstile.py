"""What many ask for at the same moment, a few in each turn of the event loop."""

import asyncio
from collections import deque
from typing import Final

ENDS_PER_TURN: Final = 200
"""So many connections that are lost at once are cleared away before others have their turn: about 20 ms on a
slow machine."""


class Turnstile:
    """Wakes those who wait in the order in which they are given, at most so many in a turn of the loop: others have
    theirs in between, however many came at once.
    """

    __slots__ = ("_left", "_per_turn", "_turning", "_waiting")

    def __init__(self, per_turn: int) -> None:
        self._per_turn = per_turn
        self._left = per_turn
        self._turning = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    def wake(self, waiter: "asyncio.Future[None]") -> None:
        """Has `waiter` be done: now, or in one of the next turns; unless it is done before, or cancelled."""
        if self._left:
            self._pass(waiter)
        else:
            self._waiting.append(waiter)

    def _pass(self, waiter: "asyncio.Future[None]") -> None:
        if waiter.done():
            return
        waiter.set_result(None)
        self._left -= 1
        if not self._turning:
            self._turning = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._turning = False
        self._left = self._per_turn
        while self._waiting and self._left:
            self._pass(self._waiting.popleft())
