"""How entries get their place in the logs, whatever keeps them."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import msgspec

from chatserver.store import Entry, Stamp

Identity: TypeAlias = tuple[int, str, str]
"""A room's id, who said it, and the key: stored once."""


class Room(msgspec.Struct, array_like=True):
    """The end of a room's log."""

    id: int
    top: int
    trimmed: int
    time: int


def number(entries: Sequence[Entry], rooms: Mapping[str, Room], known: dict[Identity, Stamp], now: int) -> list[Stamp]:
    """The stamps of `entries`. Those that are new follow each other, in each room up to its `top`, and have its `time`.

    `known` are the stamps of what is stored under the entries' keys, each with `new=False`; `now` is in milliseconds
    since 1970. Brings `rooms` and `known` up to date.
    """
    stamps = []
    for entry in entries:
        room, key = rooms[entry.room], entry.key
        stamp = None if key is None else known.get((room.id, entry.user, key))
        if stamp is None:
            room.top = offset = room.top + 1
            if room.time < now:
                room.time = now
            stamp = Stamp(offset, room.time)
            if key is not None:
                known[room.id, entry.user, key] = Stamp(offset, room.time, new=False)
        stamps.append(stamp)
    return stamps


def keys(entries: Sequence[Entry], rooms: Mapping[str, Room]) -> list[tuple[int, str, str]]:
    """What may be known already of `entries`."""
    return [(rooms[entry.room].id, entry.user, entry.key) for entry in entries if entry.key is not None]
