"""The engine of rooms as a server process runs it, on a store that does what a test wants."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import count

from chatserver.client import Client
from chatserver.message import Position
from chatserver.pool import Pool
from chatserver.protocol import Codec, Simple
from chatserver.records import data_of
from chatserver.rooms import Retention, Rooms
from chatserver.store import Entry, Record, Stamp, Store
from chatserver.store.memory import Memory
from tests.fakes import FakeTransport, make_client, told

CODEC = Simple()
"""Of all who have no other."""


class Puppet(Memory):
    """A store in memory under a test's control.

    Each call has two moments, such as `read` before it is done and `read done` after it. Each moment is counted; it
    waits for its gate, takes its seconds, and raises its error, as far as it has any.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self.gates: dict[str, asyncio.Event] = {}
        self.seconds: dict[str, float] = {}
        self.errors: dict[str, Exception] = {}
        self.batches: list[list[str]] = []
        """The data of the entries of each `append`."""

    def shut(self, moment: str) -> asyncio.Event:
        """Nobody passes `moment` until the event is set."""
        gate = self.gates[moment] = asyncio.Event()
        return gate

    async def append(self, entries: Sequence[Entry]) -> list[Stamp]:
        self.batches.append([entry.data for entry in entries])
        await self._at("append")
        stamps = await super().append(entries)
        await self._at("append done")
        return stamps

    async def read(self, room: str, *, after: int | None = None, before: int | None = None, limit: int) -> list[Record]:
        await self._at("read")
        records = await super().read(room, after=after, before=before, limit=limit)
        await self._at("read done")
        return records

    async def top(self, rooms: Collection[str]) -> dict[str, int]:
        await self._at("top")
        tops = await super().top(rooms)
        await self._at("top done")
        return tops

    async def trim(self, *, before: int, keep: int) -> bool:
        await self._at("trim")
        more = await super().trim(before=before, keep=keep)
        await self._at("trim done")
        return more

    async def forget(self, room: str, through: int) -> bool:
        await self._at("forget")
        more = await super().forget(room, through)
        await self._at("forget done")
        return more

    async def _at(self, moment: str) -> None:
        self.count[moment] += 1
        if moment in self.gates:
            await self.gates[moment].wait()
        if moment in self.seconds:
            await asyncio.sleep(self.seconds[moment])
        if moment in self.errors:
            raise self.errors[moment]


def entry(body: object, room: str = "lobby", *, user: str = "alice", key: str | None = None) -> Entry:
    """A message."""
    return Entry(room, user, data_of(f"{body}"), key=key)


async def fill(store: Store, bodies: Sequence[object], room: str = "lobby") -> list[Stamp]:
    """Appends messages, as another process would."""
    return await store.append([entry(body, room) for body in bodies])


def numbers(first: int, last: int) -> list[str]:
    """Bodies that say their offsets."""
    return [f"{number}" for number in range(first, last + 1)]


@dataclass(eq=False)
class Member:
    """A client in a room."""

    client: Client
    transport: FakeTransport
    hold: contextlib.AsyncExitStack

    @property
    def heard(self) -> list[str]:
        """What it was told, with the end of the connection."""
        return told(self.transport)


class Node:
    """Pool and rooms of one process. As a context manager it runs them."""

    def __init__(self, store: Store, *, queue_bytes: int = 1 << 20, retention: Retention | None = None) -> None:
        self.pool = Pool(queue_bytes=queue_bytes, heartbeat_seconds=0, write_seconds=0, plugin_seconds=0.5)
        self.rooms = Rooms(self.pool, store, plugin_seconds=0.5, retention=retention or Retention())
        self._numbers = count()

    async def __aenter__(self) -> "Node":
        await self.pool.start()
        await self.rooms.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.pool.stop()
        await self.rooms.stop()

    async def connect(self, room: str = "lobby", *, codec: Codec = CODEC) -> Member:
        """Lets a client in, and holds the room for it."""
        hold = contextlib.AsyncExitStack()
        await hold.enter_async_context(self.rooms.hold(room))
        transport = FakeTransport()
        user = f"user{next(self._numbers)}"
        client = make_client(transport, codec, user=user, queue_bytes=self.pool.queue_bytes, wake=self.pool.wake)
        await self.pool.add(client)
        return Member(client, transport, hold)

    async def join(self, member: Member, room: str = "lobby", *, after: int | None = None, last: int = 0) -> None:
        """Makes it a member of the room, which is held."""
        async with self.rooms.hold(room) as held:
            position = None if after is None else Position(self.rooms.store.epoch, after)
            await self.rooms.join(member.client, held, after=position, last=last)

    async def enter(
        self, room: str = "lobby", *, after: int | None = None, last: int = 0, codec: Codec = CODEC
    ) -> Member:
        """A client that connected and joined."""
        member = await self.connect(room, codec=codec)
        await self.join(member, room, after=after, last=last)
        return member

    async def leave(self, member: Member) -> None:
        """Its connection is over."""
        member.transport.lose()
        self.pool.remove(member.client)
        await member.hold.aclose()

    async def say(self, *bodies: object, room: str = "lobby") -> list[Stamp]:
        """Publishes messages, and waits until they are stored."""
        return await asyncio.gather(*(self.rooms.append(entry(body, room)) for body in bodies))
