"""Rooms: numbered logs with people in front of them."""

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Final

from chatserver.audience import Audience
from chatserver.channels import Channel
from chatserver.client import WRITE_BYTES, Client
from chatserver.context import report
from chatserver.errors import ChatError, InsufficientState, ServerFault, StorageUnavailable, Unrecoverable
from chatserver.message import Event, Info, Message
from chatserver.pool import Pool
from chatserver.protocol import Chained, Codec
from chatserver.recent import KEEP_EVENTS, Recent
from chatserver.records import Said, message_of
from chatserver.shared import Shared
from chatserver.store import Record, Store

logger = logging.getLogger(__name__)

PAGE_EVENTS: Final = 200

ANSWER_CHARACTERS: Final = WRITE_BYTES // 2
"""Payloads of one answer, about: a client that is behind needn't have more waiting than it may."""


def fitting(records: Sequence[Record]) -> Sequence[Record]:
    """The first of `records`, as many as go into one answer, but at least one."""
    size = 0
    for count, record in enumerate(records):
        size += len(record.data)
        if count and size > ANSWER_CHARACTERS:
            return records[:count]
    return records


class Room:
    """One room as this process has it: who is in it, and how much of its log they were told.

    `offset` is the last event that was delivered. Events come in whatever order, number and by whatever way; they
    are delivered in the order of the log, each once: what is missing is read from the store.
    """

    def __init__(self, channel: Channel, pool: Pool, store: Store) -> None:
        self.channel = channel
        self.name = channel.name
        self.audience: Audience = pool.audience()
        self.members: dict[Client, Info] = {}
        """Who is in the room, in this process, and what the others are told of them."""
        self.chained: dict[Codec, Chained] = {}
        """The codecs of this room alone, by those of the clients that use them."""
        self.held = 0
        """How many use the room just now: it is let go when nobody has for a while."""
        self.idle_since = 0.0
        self._pool = pool
        self._store = store
        self._positioned = channel.positioned
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

    def receive(self, stored: Iterable[tuple[Record, Said | None]]) -> None:
        """All these are in the log: delivers them, each if it is the next one, and together."""
        records: list[Record] = []
        messages: list[Message] = []
        expected = self.offset + 1 if self._open else 0
        name, positioned = self.name, self._positioned
        for record, said in stored:
            offset = record.offset
            if offset != expected:
                self.heard(offset)
                continue
            expected += 1
            records.append(record)
            if said:
                body, info = said
                messages.append(Message(record.user, body, name, record.data, offset if positioned else 0, info))
            elif message := self._message(record):
                messages.append(message)
        self._recent.extend(records)
        if messages:
            self._deliver(messages)

    def heard(self, offset: int) -> None:
        """The log is said to go up to `offset`: what is missing is read from the store."""
        self._heard = max(self._heard, offset)
        if self._open and self._heard > self.offset:
            self._repairing.start()

    async def join(
        self,
        client: Client,
        *,
        after: int | None = None,
        last: int = 0,
        info: Info | None = None,
        notices: bool = True,
        chained: Chained | None = None,
    ) -> None:
        """Tells `client` what came after the offset `after`, or else the `last` messages, and makes it a member.

        It misses nothing and gets nothing twice. Others see `info` (None: that of the client); with `notices` it is
        told who comes and goes; it is told all by `chained`, one of this room's, instead of its own codec. Raises
        `Unrecoverable`, and storage errors.
        """
        codec = chained.alone if chained else client.codec
        if after is None:
            after = await self._tell_last(client, last, codec) if last else self.offset
        else:
            await self.reach(after)
        while after < self.offset and not client.ending:
            records = await self._after(after)
            await self._tell(client, records, codec)
            after = records[-1].offset
        if chained:
            chained.anew()
        self.audience.join(client, codec=chained, notices=notices)  # nothing was awaited since the comparison
        self.members[client] = info or client.info

    def leave(self, client: Client) -> None:
        """`client` has what was told so far, and is no member any more."""
        self.audience.leave(client)
        self.members.pop(client, None)

    async def since(self, after: int) -> Sequence[Record]:
        """The first events after the offset `after`, as many as go into one answer; `join` tells the rest.

        Raises `Unrecoverable`, and storage errors.
        """
        await self.check(after)
        return fitting(await self._after(after)) if after < self.offset else []

    async def reach(self, offset: int) -> None:
        """Tells the members what there is up to `offset`: another process may know of more than this one.

        Raises `Unrecoverable` if the log never came so far, and storage errors.
        """
        if offset <= self.offset:
            return
        self.heard(offset)
        await self._repairing.done()
        if offset > self.offset:
            await self._store.read(self.name, after=offset, limit=1)  # raises what is the matter
            raise StorageUnavailable

    def forget(self, through: int) -> None:
        """Tells nobody any more, from memory, what came up to the offset `through`."""
        self._recent.forget(through)

    async def check(self, after: int) -> None:
        """Raises `Unrecoverable` if what came after that offset can't be told any more, and storage errors."""
        await self.reach(after)
        if after < self.channel.oldest(self.offset):
            raise Unrecoverable
        records = await self._recall(after)
        if records is None:
            records = await self._store.read(self.name, after=after, limit=1)
        if records and records[0].time < self.channel.since(time.time()):
            raise Unrecoverable

    def _message(self, record: Record) -> Message | None:
        return message_of(record, self.name, positioned=self._positioned)

    @property
    def busy(self) -> bool:
        """The room does something by itself."""
        return any(work.running for work in self._works)

    async def stop(self) -> None:
        """Ends what the room does by itself."""
        for work in self._works:
            await work.stop()

    def _deliver(self, messages: Sequence[Message]) -> None:
        try:
            self.audience.tell(messages)
        except Exception as error:  # a codec's: the members miss something now, and have to be told
            report(logger, logging.ERROR, "delivery failed", room=self.name, offset=self.offset, exc_info=error)
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
        self.receive((record, None) for record in records)  # some may have come in the meantime
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

    async def _tell_last(self, client: Client, count: int, codec: Codec) -> int:
        top = self.offset
        start = max(0, top - count, self.channel.oldest(top))
        try:
            records = await self._after(start)
        except Unrecoverable:  # not so many are kept
            records = await self._store.read(self.name, before=top + 1, limit=top - start)
        since = self.channel.since(time.time())
        await self._tell(client, [record for record in records if record.time >= since], codec)
        return records[-1].offset if records else top

    async def _tell(self, client: Client, records: Sequence[Record], codec: Codec) -> None:
        for record in records:
            message = self._message(record)
            if message:
                client.push(codec.encode(message))
                await client.emptied()
