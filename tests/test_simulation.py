"""Several nodes on one store, with a bad bus between them, in virtual time: whatever happens, everybody hears the log.

All chance comes from a seed, so that what was found once is found again.
"""

import asyncio
import logging
import selectors
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from random import Random
from unittest import mock

import pytest

from chatserver import recent, room, rooms
from chatserver.errors import ChatError, StorageUnavailable, StorageUnsure, Unrecoverable
from chatserver.message import Position
from chatserver.records import data_of
from chatserver.rooms import Retention
from chatserver.store import Entry, Record, Stamp
from chatserver.store.memory import Memory
from tests.chaos.history import Ack, Connection, History, Send, Stored, check
from tests.engine import Member, Node

SEEDS = 100
TOGETHER = 25
"""So many seeds in one test."""

ACTIVE_SECONDS = 10.0
QUIET_SECONDS = 8.0
"""After which all must be level: the store's slowest append, and some comparisons."""

ROOMS = ("here", "there")
CLIENTS = 8


class VirtualSelector(selectors.DefaultSelector):
    """Nobody waits for anything: where it would, time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "nothing would ever happen again"
        self.now += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with a time of its own."""

    def __init__(self) -> None:
        self._virtual = VirtualSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now


class Unreliable(Memory):
    """A store that takes its time, and now and then fails. Keeps in `all` also what was trimmed."""

    def __init__(self, random: Random) -> None:
        super().__init__()
        self.all: dict[str, list[Record]] = {name: [] for name in ROOMS}
        self.failing = True
        self._random = random

    async def append(self, entries: Sequence[Entry]) -> list[Stamp]:
        await self._work(0.03)
        self._fail(StorageUnavailable(), 0.05)
        self._fail(StorageUnsure(), 0.02)
        stamps = await super().append(entries)
        for entry, stamp in zip(entries, stamps, strict=True):
            if stamp.new:
                self.all[entry.room].append(Record(stamp.offset, 0, entry.kind, entry.user, entry.data, entry.key))
        await self._work(0.03)
        self._fail(StorageUnsure(), 0.02)
        return stamps

    async def read(self, room: str, *, after: int | None = None, before: int | None = None, limit: int) -> list[Record]:
        await self._work(0.02)
        self._fail(StorageUnavailable(), 0.05)
        records = await super().read(room, after=after, before=before, limit=limit)
        await self._work(0.02)
        return records

    async def top(self, rooms: Collection[str]) -> dict[str, int]:
        await self._work(0.02)
        self._fail(StorageUnavailable(), 0.05)
        tops = await super().top(rooms)
        await self._work(0.02)
        return tops

    async def _work(self, seconds: float) -> None:
        chance = self._random.random()
        if self.failing and chance < 0.02:
            seconds = 1.0 if chance < 0.017 else 6.0
        await asyncio.sleep(self._random.uniform(0, seconds))

    def _fail(self, error: ChatError, chance: float) -> None:
        if self.failing and self._random.random() < chance:
            raise error


@dataclass(eq=False)
class Visit:
    """A client on a node, as long as it lasts."""

    node: Node
    member: Member
    connection: Connection

    def note(self) -> None:
        """What was heard by now."""
        self.connection.bodies = [body for body in self.member.heard if not body.startswith("<")]

    async def end(self) -> None:
        self.note()
        await self.node.leave(self.member)


class Simulation:
    """What goes on, and the history that is seen of it."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.store = Unreliable(self.random)
        self.trimming = seed % 3 == 0
        retention = Retention(count=15 if self.trimming else 0)
        self.nodes = [Node(self.store, retention=retention) for _ in range(3)]
        self.history = History()
        self.joined: dict[int, int] = {}
        """By the identity of a connection how far the log went when it was a member."""

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    @property
    def over(self) -> bool:
        return self.now >= ACTIVE_SECONDS

    async def run(self) -> None:
        for node in self.nodes:
            await node.__aenter__()
        senders = [asyncio.create_task(self.send(f"sender{number}")) for number in range(4)]
        clients = [asyncio.create_task(self.live(f"client{number}")) for number in range(CLIENTS)]
        await asyncio.gather(*senders)
        visits = await asyncio.gather(*clients)
        await asyncio.sleep(QUIET_SECONDS)
        for visit in visits:
            visit.connection.to_end = visit.member.client.ending is None
            await visit.end()
        for node in self.nodes:
            await node.__aexit__()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    # Those who say something

    async def send(self, name: str) -> None:
        """Says something now and then, sometimes more at once, on this node and that."""
        sequence = stream = 0
        node = self.random.choice(self.nodes)
        while not self.over:
            await asyncio.sleep(self.random.uniform(0, 1.0))
            if self.random.random() < 0.2:
                node, stream = self.random.choice(self.nodes), stream + 1
            room = self.random.choice(ROOMS)
            sends = []
            for _ in range(self.random.choice((1, 1, 3, 12))):
                sequence += 1
                identity = f"{name}-{sequence}"
                sends.append(Send(identity, name, room, f"{identity} hello", stream, sequence, self.now, identity))
            self.history.sends += sends
            again = len(sends) == 1 and not self.trimming  # what isn't kept any more is known to nobody
            await asyncio.gather(*(self._publish(node, send, again=again) for send in sends))
        self.store.failing = False

    async def _publish(self, node: Node, send: Send, *, again: bool) -> None:
        sure = True
        for _ in range(3 if again else 1):
            try:
                entry = Entry(send.room, send.client, data_of(send.body), key=send.key)
                stamp = await node.rooms.append(entry)
            except StorageUnsure:
                sure = False
            except StorageUnavailable:
                pass
            else:
                self.history.acks.append(Ack(send.id, stamp.offset, self.now, copy=False))
                self._ring(node, send.room, stamp.offset)
                return
            node = self.random.choice(self.nodes) if again else node
        if sure:
            self.history.refused.append(send.id)

    # The bus

    def _ring(self, sender: Node, room: str, offset: int) -> None:
        """Loses some, says some twice, late, and in another order; some are wrong. In the end it is silent."""
        for node in self.nodes:
            while node is not sender and not self.over and self.random.random() > 0.3:
                wrong = self.random.random() < 0.03
                heard = offset + self.random.randint(-3, 5) if wrong else offset
                asyncio.get_running_loop().call_later(self.random.uniform(0, 1.5), node.rooms.heard, room, heard)
                if self.random.random() < 0.8:
                    break

    # Those who listen

    async def live(self, name: str) -> Visit:
        """Comes and goes, on this node and that, and goes on where it stopped. Returns its last visit."""
        room = self.random.choice(ROOMS)
        after: int | None = None
        while True:
            visit = await self._come(name, room, after)
            if visit and self.over:
                return visit
            if visit:
                await self._stay(visit)
                if self.over and visit.member.client.ending is None:
                    return visit
                await visit.end()
            after = self._position(room, after, visit)
            await asyncio.sleep(self.random.uniform(0, 0.5))

    async def _come(self, name: str, room: str, after: int | None) -> Visit | None:
        node = self.random.choice(self.nodes)
        last = self.random.choice((0, 0, 3, 10, 30)) if after is None else 0
        promised = 0 if self.trimming else last  # not so many may be kept
        connection = Connection(name, room, self.now, after, promised)
        self.history.connections.append(connection)
        try:
            member = await node.connect(room)
        except StorageUnavailable:
            return None
        visit = Visit(node, member, connection)
        try:
            if after is not None:
                await node.rooms.check(room, Position("", after))
            await node.join(member, room, after=after, last=last)
        except ChatError as error:
            assert isinstance(error, StorageUnavailable) or (isinstance(error, Unrecoverable) and self.trimming)
            await visit.end()
            return None
        connection.joined = self.now
        self.joined[id(connection)] = len(self.store.all[room])
        return visit

    async def _stay(self, visit: Visit) -> None:
        """Reads, with pauses."""
        transport = visit.member.transport
        for _ in range(self.random.randint(1, 3)):
            if self.random.random() < 0.3:
                transport.pause_after = len(transport.written) + 1
            await asyncio.sleep(self.random.uniform(0, 1.5))
            transport.resume()

    def _position(self, room: str, after: int | None, visit: Visit | None) -> int | None:
        """Where to go on; who knows of nothing, or was away for too long, begins anew."""
        if visit and visit.connection.bodies:
            heard = data_of(visit.connection.bodies[-1])
            after = next(record.offset for record in self.store.all[room] if record.data == heard)
        lost = after is not None and self.trimming and len(self.store.all[room]) - after > 10
        return None if lost or self.random.random() < 0.1 else after

    # What must hold

    def check(self) -> None:
        """Fails on any violation."""
        for name, records in self.store.all.items():
            self.history.rooms[name] = [
                Stored(record.offset, record.user, record.data[len('{"body":"') : -len('"}')], record.key)
                for record in records
            ]
        violations = [str(violation) for violation in check(self.history)]
        assert not violations
        for connection in self.history.connections:
            self._check_start(connection)
        assert self.trimming or sum(connection.to_end for connection in self.history.connections) == CLIENTS

    def _check_start(self, connection: Connection) -> None:
        """It is told nothing but what it asked for, and all from when it was a member."""
        log = [stored.body for stored in self.history.rooms[connection.room]]
        bodies = connection.bodies
        start = log.index(bodies[0]) if bodies else len(log)
        if connection.after is not None:
            assert not bodies or start == connection.after
        elif connection.to_end:
            assert start <= self.joined[id(connection)], "joined, and missed what came then"


def simulate(seed: int) -> Simulation:
    """One run."""
    simulation = Simulation(seed)
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        lost: list[object] = []
        loop.set_exception_handler(lambda _, context: lost.append(context))
        with mock.patch("time.monotonic", loop.time):
            runner.run(simulation.run())
    assert not lost
    simulation.check()
    return simulation


@pytest.fixture
def _small_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that short runs meet all that happens in long ones."""
    monkeypatch.setattr(recent, "KEEP_EVENTS", 8)
    monkeypatch.setattr(room, "KEEP_EVENTS", 8)
    monkeypatch.setattr(room, "PAGE_EVENTS", 12)
    monkeypatch.setattr(rooms, "IDLE_SECONDS", 0.5)
    monkeypatch.setattr(rooms, "TRIM_SECONDS", 0.5)


@pytest.mark.usefixtures("_small_numbers")
@pytest.mark.parametrize("first", range(0, SEEDS, TOGETHER))
def test_everybody_hears_the_log_whatever_the_bus_and_the_store_do(
    first: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "chatserver")
    heard = 0
    for seed in range(first, first + TOGETHER):
        try:
            heard += simulate(seed).history.receipts
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
    assert heard > TOGETHER * 100, "too little happened"
    assert not [line.getMessage() for line in caplog.records if line.exc_info]


@pytest.mark.usefixtures("_small_numbers")
def test_a_seed_decides_everything() -> None:
    first, second = simulate(7), simulate(7)
    assert first.history == second.history
