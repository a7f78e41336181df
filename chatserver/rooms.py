"""All rooms of this process, and what goes on in them by itself."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Final

from chatserver.channels import Channel, Channels
from chatserver.client import Client
from chatserver.context import report
from chatserver.errors import ChatError, Unrecoverable
from chatserver.journal import Answered, Journal, Waiting, settling
from chatserver.message import Info, Position, Publish
from chatserver.pool import Pool
from chatserver.protocol import Chained
from chatserver.protocol.payload import body_of
from chatserver.records import Said, entry_of
from chatserver.room import Room
from chatserver.signals import Signals
from chatserver.store import Entry, Record, Stamp, Store

logger = logging.getLogger(__name__)

COMPARE_SECONDS: Final = 1.0
"""How often the open rooms are compared with the store: what another process appended, or a lost ring, is seen then."""

COMPARE_ROOMS: Final = 500
"""So many in one question."""

IDLE_SECONDS: Final = 30.0
"""How long a room without members is kept for those who come right back."""

TRIM_SECONDS: Final = 10.0

_BREATH_SECONDS: Final = 0.01
"""Between two steps of what isn't urgent: appends go first."""


@dataclass(frozen=True, slots=True)
class Retention:
    """What may be let go of; 0 is nothing."""

    seconds: float = 0
    """Older events."""
    count: int = 0
    """All of a room but this many."""


class Rooms:
    """Rooms by name. A room is open while somebody holds it, and a while longer.

    `on_join` and `on_leave` are lists of `async def receiver(client, room)`, called in order when a client has become
    a member and when it is none any more.
    """

    def __init__(
        self,
        pool: Pool,
        store: Store,
        *,
        plugin_seconds: float,
        retention: Retention,
        channels: Channels | None = None,
    ) -> None:
        """`plugin_seconds`: deadline of each receiver. `channels`: None: all are as they are by default."""
        self.store = store
        self.channels = channels or Channels()
        self._pool = pool
        self._retention = retention
        self._rooms: dict[str, Room] = {}
        self._journal = Journal(store, self._deliver)
        self._signals: Signals[[Room]] = Signals(plugin_seconds)
        self.on_join = self._signals.arrivals
        self.on_leave = self._signals.departures
        self._of: dict[Client, tuple[Room, ...]] = {}  # nearly always one
        self._tasks: list[asyncio.Task[None]] = []
        pool.on_disconnect.append(self._gone)

    def __len__(self) -> int:
        """How many are open."""
        return len(self._rooms)

    async def start(self) -> None:
        """Opens the store. Raises `StoreError`."""
        await self.store.open()
        works = [self._journal.run(), self._compare()]
        if self._retention.seconds or self._retention.count:
            works.append(self._trim())
        self._tasks = [asyncio.create_task(work) for work in works]

    async def stop(self) -> None:
        """Stores what still waits, and closes the store."""
        if self._tasks:
            await self._journal.settle()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._signals.stop()
        for room in list(self._rooms.values()):
            await room.stop()
        await self.store.close()

    async def settle(self) -> None:
        """Returns when nothing waits for the store."""
        await self._journal.settle()

    @contextlib.asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[Room]:
        """The room `name`, open as long as it is held. Raises `BadRequest`, `UnknownChannel`, and storage errors."""
        room = await self.take(name)
        try:
            yield room
        finally:
            self.release(room)

    async def take(self, name: str) -> Room:
        """The room `name`, open until it is released as often as it was taken. Raises as `hold` does."""
        room = self._rooms.get(name)
        if room is None:
            room = self._rooms[name] = Room(self.channels.find(name), self._pool, self.store)
        room.held += 1
        try:
            await room.open()
        except BaseException:
            self.release(room)
            raise
        return room

    def release(self, room: Room) -> None:
        """Gives back what was taken."""
        room.held -= 1
        room.idle_since = time.monotonic()

    def get(self, name: str) -> Room | None:
        """The room `name`, if it is open."""
        return self._rooms.get(name)

    def channel(self, name: str) -> Channel:
        """What the name of a room says. Raises as `hold` does, except storage errors."""
        room = self._rooms.get(name)
        return room.channel if room else self.channels.find(name)

    def members(self, name: str) -> list[Info]:
        """Who is in the room `name`, in this process."""
        room = self._rooms.get(name)
        return list(room.members.values()) if room else []

    @property
    def open(self) -> Collection[Room]:
        """All that are."""
        return self._rooms.values()

    async def join(
        self,
        client: Client,
        room: Room,
        *,
        after: Position | None = None,
        last: int = 0,
        info: Info | None = None,
        notices: bool = True,
        chained: Chained | None = None,
    ) -> None:
        """Makes `client` a member of `room`, which the caller holds, and tells `on_join`. See `Room.join`."""
        offset = None if after is None else self.offset(after)
        await self._signals.settled(client, room)  # who comes back at once would be told of its own departure
        await room.join(client, after=offset, last=last, info=info, notices=notices, chained=chained)
        if client.ending:
            room.leave(client)
        else:
            rooms = self._of.get(client, ())
            self._of[client] = rooms if room in rooms else (*rooms, room)
            await self._signals.arrive(client, room)

    def leave(self, client: Client, room: Room) -> None:
        """`client` is no member any more, now, and `on_leave` is told, soon."""
        room.leave(client)
        rooms = self._of.get(client, ())
        if room in rooms:
            self._of[client] = tuple(other for other in rooms if other is not room)
            self._signals.depart(client, room)

    def publish(self, command: Publish, client: Client, answered: Answered) -> None:
        """`client` says what `command` has. See `Journal.append`."""
        room = self._rooms.get(command.room)
        info = (room and room.members.get(client)) or client.info
        entry = entry_of(command, client.user, info)
        said = body_of(entry.data) if command.data else command.body, info
        self._journal.append(entry, answered, said)

    def divide(self) -> None:
        """See `Journal.divide`."""
        self._journal.divide()

    def append(self, entry: Entry) -> asyncio.Future[Stamp]:
        """Takes `entry` for its room's log. The future has its stamp when it is durable, or a `ChatError` within five
        seconds. Who appends a lot awaits `ready` before. See `Journal.append`.
        """
        future: asyncio.Future[Stamp] = asyncio.get_running_loop().create_future()
        self._journal.append(entry, settling(future))
        return future

    async def check(self, name: str, after: Position) -> None:
        """Raises `Unrecoverable` if what came after that position can't be told any more, and storage errors."""
        async with self.hold(name) as room:
            await room.check(self.offset(after))

    async def forget(self, name: str) -> None:
        """Lets go of all that was said in the room `name` so far. Members are told it before, and go on.

        Raises as `hold` does; then some of it may be gone.
        """
        async with self.hold(name) as room:
            through = (await self.store.top([name]))[name]
            await room.reach(through)
            try:
                while await self._journal.forget(name, through):  # noqa: ASYNC110 - it is the work that is repeated
                    await asyncio.sleep(_BREATH_SECONDS)
            finally:
                room.forget(through)  # also what was read into memory meanwhile

    async def ready(self, name: str) -> None:
        """Waits while the members of the room have more to take than one flush."""
        room = self._rooms.get(name)
        if room and room.audience.crowded():
            await self._pool.settle(room.audience)

    def heard(self, name: str, offset: int) -> None:
        """The log of the room `name` is said to go up to `offset`; may be wrong, late, or said again."""
        room = self._rooms.get(name)
        if room:
            room.heard(offset)

    def offset(self, position: Position) -> int:
        """The offset in `position`. Raises `Unrecoverable` if that is of another log than ours."""
        if position.epoch not in ("", self.store.epoch):
            raise Unrecoverable
        return position.offset

    def _deliver(self, batch: Sequence[Waiting], stamps: Sequence[Stamp]) -> None:
        left = iter(stamps)
        for name, run in groupby(batch, _room_of):
            stored = list(zip(run, left, strict=False))  # `run` stands first: it ends before another stamp is taken
            room = self._rooms.get(name)
            if room:
                room.receive(_new(stored, room))

    async def _gone(self, client: Client) -> None:
        for room in self._of.pop(client, ()):
            room.leave(client)
            self._signals.depart(client, room)

    async def _compare(self) -> None:
        while True:
            await asyncio.sleep(COMPARE_SECONDS)
            self._let_go(time.monotonic() - IDLE_SECONDS)
            try:
                for names in _chunks(list(self._rooms)):
                    tops = await self.store.top(names)
                    await self._journal.delivered()  # what is ours is told in order with the answers to its senders
                    for name, top in tops.items():
                        self.heard(name, top)
            except ChatError as error:
                report(logger, logging.WARNING, "not compared", problem=str(error))
            except Exception as error:
                report(logger, logging.ERROR, "comparison failed", exc_info=error)

    def _let_go(self, since: float) -> None:
        unused = [room for room in self._rooms.values() if not room.held and room.idle_since <= since]
        for room in unused:
            if not room.busy:  # what is at work has to be stopped in the end
                del self._rooms[room.name]

    async def _trim(self) -> None:
        while True:
            more = await self._trim_some()
            await asyncio.sleep(_BREATH_SECONDS if more else TRIM_SECONDS)

    async def _trim_some(self) -> bool:
        seconds = self._retention.seconds
        before = time.time_ns() // 1_000_000 - int(1000 * seconds) if seconds else 0
        try:
            return await self._journal.trim(before=before, keep=self._retention.count)
        except ChatError as error:
            report(logger, logging.WARNING, "not trimmed", problem=str(error))
        except Exception as error:
            report(logger, logging.ERROR, "trim failed", exc_info=error)
        return False


_room_of = attrgetter("entry.room")


def _new(stored: Iterable[tuple[Waiting, Stamp]], room: Room) -> list[tuple[Record, Said | None]]:
    """What wasn't in the log of `room` before, of what was stored; it is told of the rest."""
    new: list[tuple[Record, Said | None]] = []
    for waiting, stamp in stored:
        if stamp.new:
            new.append((waiting.entry.at(stamp.offset, stamp.time), waiting.said))
        else:
            room.heard(stamp.offset)
    return new


def _chunks(names: list[str]) -> Iterable[list[str]]:
    for start in range(0, len(names), COMPARE_ROOMS):
        yield names[start : start + COMPARE_ROOMS]
