"""The clients of this process: fan-out, heartbeats, and their end."""

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from chatserver.audience import Audience
from chatserver.client import CLOSE_SECONDS, Client
from chatserver.context import report
from chatserver.errors import ConnectionLost, Disconnect, ServerFault, Slow
from chatserver.fanout import prepare
from chatserver.feed import FLUSH_CLIENTS, Feed
from chatserver.message import Event
from chatserver.pulse import Pulse
from chatserver.signals import Signals

logger = logging.getLogger(__name__)

PAUSE_SECONDS: Final = 0.001
"""The least time from the start of one round of flushes to the next."""

TURNS: Final = 3
"""Of the event loop, between two parts of a round: in the first is read what those said who have just been written to,
in the second it is given to the store, and by the third the store is at work."""

CLOSES_PER_TURN: Final = 500
"""So many connections are ended before others have their turn: about 10 ms."""


@dataclass(frozen=True, slots=True)
class Closed:
    """How the clients that a shutdown found were closed."""

    closed: int
    """Gone in time; told, unless they went by themselves."""
    aborted: int
    """Had to be dropped: they didn't take what was meant for them."""


class Pool:
    """All clients of this process.

    `broadcast` gives an event to everybody, an `audience` to some of them. The pool's drain task writes it; see
    `Client` for who writes what.
    `on_connect` and `on_disconnect` are lists of `async def receiver(client)`, called in order when a client has come
    (before its first command is handled) and gone.
    """

    def __init__(
        self, *, queue_bytes: int, heartbeat_seconds: float, write_seconds: float, plugin_seconds: float
    ) -> None:
        """`queue_bytes`: bound of a client's queue, and of the frames kept for those who are behind.
        `heartbeat_seconds`: between pings; 0 is none. `write_seconds`: the write deadline; 0 is none.
        `plugin_seconds`: deadline of each receiver.
        """
        self._signals: Signals[[]] = Signals(plugin_seconds)
        self.on_connect = self._signals.arrivals
        self.on_disconnect = self._signals.departures
        self.clients: set[Client] = set()
        self.draining = False
        """The server stops: no more clients, please."""
        self.queue_bytes = queue_bytes
        self._everybody: Audience | None = None  # most never tell anything to all, and it costs each connect
        self._expected: set[Client] = set()
        self._closing: list[Client] = []
        self._end: Disconnect | None = None
        self._unflushed: dict[Feed, None] = {}
        self._round: deque[Feed] = deque()  # of these, those whose turn is before any pause
        self._ready: dict[Client, None] = {}
        self._work = asyncio.Event()
        self._flushed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pulse = Pulse(self.clients, heartbeat_seconds, write_seconds, self._lose)

    async def start(self) -> None:
        """Starts the drain and the heartbeat."""
        report(logger, logging.DEBUG, "fan-out", io_uring=prepare())
        self._spawn(self._drain())
        self._spawn(self._pulse.run())

    async def stop(self) -> None:
        """Ends the pool's tasks; the clients should be gone."""
        await self._signals.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def expect(self, client: Client) -> None:
        """`client` is connected, but didn't say yet who it is: it is closed when all are, and told nothing."""
        self._expected.add(client)
        if self._end:
            client.disconnect(self._end)

    async def add(self, client: Client) -> None:
        """Lets `client` in, and tells `on_connect`. One that comes while all are closed is closed, too."""
        self._expected.discard(client)
        self.clients.add(client)
        if self._end:
            client.disconnect(self._end)
        if self._everybody:
            self._everybody.join(client)
        await self._signals.arrive(client)

    def remove(self, client: Client) -> None:
        """Frees the place of `client` now, and tells `on_disconnect` soon. Once for each client that came in."""
        self._expected.discard(client)
        if client not in self.clients:
            return
        self.clients.remove(client)
        client.disconnect(ConnectionLost())
        self._signals.depart(client)

    def audience(self) -> Audience:
        """A new audience, whose feeds this pool flushes."""
        return Audience(self.queue_bytes, self._flush_soon)

    def broadcast(self, event: Event) -> None:
        """Tells `event` to everybody, whatever room they are in. Never waits."""
        if self._everybody is None:
            self._everybody = self.audience()
            for client in self.clients:
                self._everybody.join(client)
        self._everybody.broadcast(event)

    async def settle(self, audience: Audience | None = None) -> None:
        """Waits while `audience` (None: everybody) is crowded: publishers slow down before memory grows."""
        audience = audience or self._everybody
        while audience and audience.crowded():
            await self._flushed.wait()

    def wake(self, client: Client) -> None:
        """`client` has something of its own to drain."""
        self._ready[client] = None
        self._work.set()

    async def close(self, end: Disconnect, seconds: float, *, answers: bool) -> Closed:
        """Disconnects everybody with `end`: what is queued, then the close frame, and in `seconds` all are gone.

        `answers`: the peers' close frames can still be read, so each has `CLOSE_SECONDS` to answer.
        """
        self.draining = True
        self._end = end
        clients = self._closing = [*self.clients, *self._expected]
        for client in clients:  # or those who are told first would miss what the last say meanwhile
            client.leaving = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        for count, client in enumerate(clients, 1):
            client.disconnect(end, deadline - loop.time())
            if count % CLOSES_PER_TURN == 0:
                await asyncio.sleep(0)
        patience = CLOSE_SECONDS if answers else 0.0
        told: dict[Client, float] = {}
        waiting = clients
        while waiting and loop.time() < deadline:
            await asyncio.sleep(0.02)
            waiting = [client for client in waiting if not _let_go(client, told, patience)]
        for client in waiting:
            client.abort()
        aborted = sum(client.aborted for client in clients)
        return Closed(len(clients) - aborted, aborted)

    def abort(self) -> None:
        """Drops everybody at once; ends a `close` that still waits."""
        for client in {*self.clients, *self._expected, *self._closing}:
            client.abort()

    def _flush_soon(self, feed: Feed) -> None:
        if feed not in self._unflushed:
            self._unflushed[feed] = None
            self._work.set()

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._work.wait()
            self._work.clear()
            next_round = loop.time() + PAUSE_SECONDS
            self._flush()
            while self._round:
                await _let_others()
                self._flush()
            await asyncio.sleep(next_round - loop.time())

    def _flush(self) -> None:
        """Writes to `FLUSH_CLIENTS` at most, of the round, or of a new one."""
        if not self._round:
            self._round.extend(self._unflushed)
        try:
            self._flush_some(self._due())
        except Exception as error:  # the drain serves everybody: it goes on, whatever happens
            report(logger, logging.ERROR, "flush failed", exc_info=error)

    def _due(self) -> list[Feed]:
        """Takes the next ones off the round: at least one, as a large one stops by itself."""
        due: list[Feed] = []
        clients = 0
        while self._round and (not due or clients + self._round[0].followers <= FLUSH_CLIENTS):
            feed = self._round.popleft()
            clients += feed.followers
            due.append(feed)
            self._unflushed.pop(feed, None)
        return due

    def _flush_some(self, feeds: Sequence[Feed]) -> None:
        for feed in feeds:
            self._flush_feed(feed)
        for client in self._take_ready():
            if not client.parked:
                self._serve(client)
        for feed in feeds:  # now that all who could take something have had it
            for client in feed.trim():
                client.disconnect(Slow())
        self._flushed.set()
        self._flushed.clear()

    def _take_ready(self) -> Iterable[Client]:
        """Those to be served by themselves, `FLUSH_CLIENTS` at most: the others have their turn in the next round."""
        if len(self._ready) <= FLUSH_CLIENTS:
            ready, self._ready = self._ready, {}
            return ready
        first = list(islice(self._ready, FLUSH_CLIENTS))
        for client in first:
            del self._ready[client]
        self._work.set()
        return first

    def _flush_feed(self, feed: Feed) -> None:
        try:
            for client in feed.flush():
                self._park(client)
        except Exception as error:  # a codec's; the others go on
            report(logger, logging.ERROR, "flush failed", exc_info=error)
            for client in feed.drop():
                client.disconnect(ServerFault())
        if feed.unfinished:
            self._round.appendleft(feed)
        elif feed.pending_bytes:
            self._flush_soon(feed)

    def _serve(self, client: Client) -> None:
        try:
            done = client.serve()
        except Exception as error:
            self._fail(client, error)
            return
        if client.transport.paused and not client.transport.lost:
            self._park(client)
        elif not done:
            self.wake(client)

    def _park(self, client: Client) -> None:
        client.park()
        self._spawn(self._drain_parked(client))

    async def _drain_parked(self, client: Client) -> None:
        try:
            await client.drain()
        except Exception as error:
            self._fail(client, error)

    @staticmethod
    def _fail(client: Client, error: Exception) -> None:
        report(logger, logging.ERROR, "drain failed", connection=client.id, user=client.user, exc_info=error)
        client.disconnect(ServerFault())

    def _lose(self, client: Client, end: Disconnect) -> None:
        """The pulse found that `client` is gone, or as good as gone."""
        if not client.ending:
            client.disconnect(end)
            if client.parked:  # nothing gets through to it any more
                client.abort()
        self.remove(client)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _let_others() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


def _let_go(client: Client, told: dict[Client, float], patience: float) -> bool:
    """The client is gone. Who has been told all, which `told` keeps the time of, and doesn't go in time is closed."""
    transport = client.transport
    if client.close_sent and not transport.lost and not transport.buffered:
        now = asyncio.get_running_loop().time()
        if now - told.setdefault(client, now) >= patience:
            transport.close()
    return transport.lost
