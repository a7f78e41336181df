"""Finds the connections that are gone without a word: lost, silent, or stuck."""

import asyncio
import math
from collections.abc import Callable, Collection
from typing import Final, TypeAlias

from chatserver.client import Client
from chatserver.errors import ConnectionLost, Disconnect, NoPong, Slow
from chatserver.turnstile import ENDS_PER_TURN

TICK_SECONDS: Final = 0.5
"""How often all clients are looked at: a lost one's place is free within a second."""

LEAST_TICK_SECONDS: Final = 0.01
"""However short the times are that are asked for, the ticker leaves the processor to others."""

Lose: TypeAlias = Callable[[Client, Disconnect], None]


class Pulse:
    """One ticker for all clients. Each is pinged once per heartbeat, at a tick of its own so that the load is even.

    A client is dead when a whole heartbeat after a ping nothing has come from it; that is at most two heartbeats after
    its last sign of life. A stall of our own loop is nobody's death: a late tick judges nobody, and a suspect gets the
    benefit of what waits in its socket.
    """

    def __init__(self, clients: Collection[Client], heartbeat_seconds: float, write_seconds: float, lose: Lose) -> None:
        """`clients` is looked at, live. `heartbeat_seconds` and `write_seconds` (without progress): 0 is never."""
        self._clients = clients
        self._write_seconds = write_seconds
        self._lose = lose
        tick = min(TICK_SECONDS, heartbeat_seconds / 4 or TICK_SECONDS, write_seconds / 4 or TICK_SECONDS)
        self._tick = max(tick, LEAST_TICK_SECONDS)
        self._ticks = math.ceil(heartbeat_seconds / self._tick)
        self._stuck: dict[Client, tuple[int, float]] = {}

    async def run(self) -> None:
        """Ticks until it is cancelled."""
        loop = asyncio.get_running_loop()
        count = 0
        due = loop.time()
        while True:
            due += self._tick
            await asyncio.sleep(max(0.0, due - loop.time()))
            late = loop.time() - due > self._tick / 2
            if late:
                due = loop.time()
            await self._clear_away(self._look(loop.time(), late))
            if self._ticks:
                count = (count + 1) % self._ticks
                await self._beat(count, late)

    def _look(self, now: float, late: bool) -> list[Client]:
        """Returns those whose connection is over."""
        over = []
        stuck, self._stuck = self._stuck, {}
        for client in [one for one in self._clients if one.ending or one.parked or one.transport.lost]:  # hardly any
            if client.ending or client.transport.lost:
                over.append(client)
            elif self._write_seconds:
                buffered, since = stuck.get(client, (0, now))
                if client.transport.buffered != buffered or late:
                    buffered, since = client.transport.buffered, now
                self._stuck[client] = (buffered, since)
                if now - since >= self._write_seconds:
                    self._lose(client, Slow())
        return over

    async def _clear_away(self, over: list[Client]) -> None:
        for count, client in enumerate(over, 1):
            if client in self._clients:
                self._lose(client, client.ending or ConnectionLost())
            if count % ENDS_PER_TURN == 0:
                await asyncio.sleep(0)

    async def _beat(self, count: int, late: bool) -> None:
        suspects = []
        ticks = self._ticks
        for client in [one for one in self._clients if hash(one) % ticks == count]:
            heard = client.transport.heard()
            if client.parked:
                continue  # no ping gets through: the write deadline judges
            if heard or late or not client.pinged:
                self._ping(client)
            else:
                suspects.append(client)
        if suspects:
            await self._judge(suspects)

    async def _judge(self, suspects: list[Client]) -> None:
        for _ in range(3):  # the loop reads its sockets, and the readers take what came
            await asyncio.sleep(0)
        for client in suspects:
            if client.transport.heard():
                self._ping(client)
            elif client in self._clients:
                self._lose(client, NoPong())

    @staticmethod
    def _ping(client: Client) -> None:
        client.pinged = True
        client.control(client.codec.ping)
