"""Reading a room's log in pages."""

import time
from collections.abc import Sequence
from typing import Final

from chatserver.channels import Channel
from chatserver.errors import BadRequest, Unrecoverable
from chatserver.room import fitting
from chatserver.store import Record, Store

LIMIT: Final = 300
"""Events of one page at most."""


async def page(
    store: Store, channel: Channel, *, limit: int, since: int | None = None, reverse: bool = False
) -> tuple[Sequence[Record], int]:
    """Events of `channel` that may be told, and the offset of its last one.

    `limit` at most, negative: as many as there are, but `LIMIT` at most, and no more than go into one answer. The
    first ones after the offset `since`, or with `reverse` the last ones before it, newest first. Without `since` they
    are the oldest, or the newest. A `since` older than what is kept is no error: the oldest kept come. Raises
    `BadRequest`, and storage errors.
    """
    top = (await store.top([channel.name]))[channel.name]
    if reverse and since == 0:
        raise BadRequest
    count = min(limit, LIMIT) if limit >= 0 else LIMIT
    if not count:
        return [], top
    records = await (_newest if reverse else _oldest)(store, channel, top, count, since)
    return fitting(records), top


async def _newest(store: Store, channel: Channel, top: int, count: int, before: int | None) -> Sequence[Record]:
    end = top + 1 if before is None else min(before, top + 1)
    records = await store.read(channel.name, before=end, limit=count)
    oldest, since = channel.oldest(top), channel.since(time.time())
    return [record for record in reversed(records) if record.offset > oldest and record.time >= since]


async def _oldest(store: Store, channel: Channel, top: int, count: int, after: int | None) -> Sequence[Record]:
    start = max(after or 0, channel.oldest(top))
    if start >= top:
        return []
    if not await _told(store, channel, start):
        start = await _first_told(store, channel, start, top)
    return await store.read(channel.name, after=start, limit=min(count, top - start)) if start < top else []


async def _first_told(store: Store, channel: Channel, below: int, top: int) -> int:
    """The least offset, above `below`, after which all is told; times never go back within a room."""
    while below + 1 < top:
        middle = (below + top) // 2
        if await _told(store, channel, middle):
            top = middle
        else:
            below = middle
    return top


async def _told(store: Store, channel: Channel, after: int) -> bool:
    """The event after that offset is kept, and not too old."""
    try:
        records = await store.read(channel.name, after=after, limit=1)
    except Unrecoverable:
        return False
    return bool(records) and records[0].time >= channel.since(time.time())
