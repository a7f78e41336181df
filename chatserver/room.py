"""Rooms: numbered logs with people in front of them."""

import logging
from collections.abc import Sequence
from typing import Final

import msgspec

from chatserver.audience import Audience
from chatserver.client import Client
from chatserver.context import report
from chatserver.errors import ChatError, InsufficientState, ServerFault, StorageUnavailable, Unrecoverable
from chatserver.message import Event, Message
from chatserver.pool import Pool
from chatserver.recent import KEEP_EVENTS, Recent
from chatserver.shared import Shared
from chatserver.store import Record, Store

logger = logging.getLogger(__name__)

PAGE_EVENTS: Final = 200

MESSAGE: Final = "message"
"""The kind of an event that is told as a `Message`."""


class _Body(msgspec.Struct):
    body: str


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Body).decode


def data_of(body: str) -> str:
    """How a text is kept in the log: `{"body": "text"}`."""
    return _encode(_Body(body)).decode()


def event_of(record: Record) -> Event | None:
    """What members are told of `record`; None if it is nothing that they know."""
    if record.kind != MESSAGE:
        return None
    try:
        return Message(record.user, _decode(record.data).body)
    except msgspec.DecodeError:
        return None


class Room:
    """One room as this process has it: who is in it, and how much of its log they were told.

    `offset` is the last event that was delivered. Events come in whatever order, number and by whatever way; they
    are delivered in the order of the log, each once: what is missing is read from the store.
    """

    def __init__(self, name: str, pool: Pool, store: Store) -> None:
        self.name = name
        self.audience: Audience = pool.audience()
        self.held = 0
        """How many use the room just now: it is let go when nobody has for a while."""
        self.idle_since = 0.0
        self._pool = pool
        self._store = store
        self._open = False
        self._recent = Recent(0)
        self._heard = 0
        self._opening = Shared(self._find_top)
        self._repairing = Shared(self._repair)
        self._remembering = Shared(self._remember)
        self._works = (self._opening, self._repairing, self._remembering)

    @property
    def offset(self) -> int:
        """Of the last event delivered."""
        return self._recent.top

    async def open(self) -> None:
        """Asks the store how far the log goes: members are told what comes after. Raises storage errors."""
        if not self._open:
            await self._opening.done()

    def broadcast(self, event: Event) -> None:
        """Tells `event`, which isn't kept, to all members."""
        self.audience.broadcast(event)

    def receive(self, record: Record) -> None:
        """`record` is in the log: delivers it, if it is the next one."""
        if self._open and record.offset == self.offset + 1:
            self._deliver(record)
        else:
            self.heard(record.offset)

    def heard(self, offset: int) -> None:
        """The log is said to go up to `offset`: what is missing is read from the store."""
        self._heard = max(self._heard, offset)
        if self._open and self._heard > self.offset:
            self._repairing.start()

    async def join(self, client: Client, *, after: int | None = None, last: int = 0) -> None:
        """Tells `client` what came after the offset `after`, or else the `last` messages, and makes it a member.

        It misses nothing and gets nothing twice. Raises `Unrecoverable`, and storage errors.
        """
        if after is None:
            after = await self._tell_last(client, last) if last else self.offset
        elif after > self.offset:
            await self._reach(after)
        while after < self.offset and not client.ending:
            records = await self._after(after)
            await self._tell(client, records)
            after = records[-1].offset
        self.audience.join(client)  # nothing was awaited since the comparison

    async def check(self, after: int) -> None:
        """Raises `Unrecoverable` if what came after that offset can't be told any more, and storage errors."""
        if after > self.offset:
            await self._reach(after)
        elif await self._recall(after) is None:
            await self._store.read(self.name, after=after, limit=1)

    @property
    def busy(self) -> bool:
        """The room does something by itself."""
        return any(work.running for work in self._works)

    async def stop(self) -> None:
        """Ends what the room does by itself."""
        for work in self._works:
            await work.stop()

    def _deliver(self, record: Record) -> None:
        self._recent.append(record)
        try:
            event = event_of(record)
            if event:
                self.audience.broadcast(event)
        except Exception as error:  # a codec's: the members miss something now, and have to be told
            report(logger, logging.ERROR, "delivery failed", room=self.name, offset=record.offset, exc_info=error)
            self.audience.disconnect(ServerFault())

    async def _find_top(self) -> None:
        self._recent = Recent(await self._ask_top())
        self._open = True
        self.heard(self._heard)

    async def _ask_top(self) -> int:
        return (await self._store.top([self.name]))[self.name]

    async def _repair(self) -> None:
        try:
            await self._catch_up()
        except ChatError as error:  # the next comparison with the store tries again
            report(logger, logging.WARNING, "not repaired", room=self.name, problem=str(error))
        except Exception as error:
            report(logger, logging.ERROR, "repair failed", room=self.name, exc_info=error)

    async def _catch_up(self) -> None:
        try:
            while self._heard > self.offset:
                await self._read_on()
        except Unrecoverable:
            await self._start_over()

    async def _read_on(self) -> None:
        await self._pool.settle(self.audience)
        heard, start = self._heard, self.offset
        records = await self._store.read(self.name, after=start, limit=PAGE_EVENTS)
        for record in records:
            if record.offset == self.offset + 1:  # some may have come in the meantime
                self._deliver(record)
        if records and self.offset == start:  # the log itself has a hole
            raise Unrecoverable
        if not records and self._heard == heard:  # a false alarm
            self._heard = self.offset

    async def _start_over(self) -> None:
        """What members miss isn't kept any more. They have to be told: a hole is never silent."""
        offset = self.offset
        top = await self._ask_top()
        if offset == self.offset:  # or else it came after all
            report(logger, logging.ERROR, "history lost", room=self.name, offset=offset)
            self.audience.disconnect(InsufficientState())  # also those who joined while the store was asked
            self._recent = Recent(top)

    async def _reach(self, offset: int) -> None:
        """Another process may have told a client of more than this one knows."""
        self.heard(offset)
        await self._repairing.done()
        if offset > self.offset:
            await self._store.read(self.name, after=offset, limit=1)  # raises what is the matter
            raise StorageUnavailable

    async def _after(self, offset: int) -> list[Record]:
        """Events after `offset`, at least one of those that are delivered already, but none beyond."""
        records = await self._recall(offset)
        if records is None:
            records = await self._store.read(self.name, after=offset, limit=PAGE_EVENTS)
        return [record for record in records if record.offset <= self.offset]

    async def _recall(self, offset: int) -> list[Record] | None:
        """All events after `offset`, if they are near enough to be remembered."""
        records = self._recent.after(offset)
        if records is None and not self._recent.complete:
            await self._remembering.done()
            records = self._recent.after(offset)
        return records

    async def _remember(self) -> None:
        """Reads the end of the log into memory, for all who want it."""
        self._recent.prepend(await self._store.read(self.name, before=self._recent.start + 1, limit=KEEP_EVENTS))

    async def _tell_last(self, client: Client, count: int) -> int:
        top = self.offset
        start = max(0, top - count)
        try:
            records = await self._after(start)
        except Unrecoverable:  # not so many are kept
            records = await self._store.read(self.name, before=top + 1, limit=count)
        await self._tell(client, records)
        return records[-1].offset if records else top

    @staticmethod
    async def _tell(client: Client, records: Sequence[Record]) -> None:
        for record in records:
            event = event_of(record)
            if event:
                client.enqueue(event)
                await client.emptied()
