"""The process that is killed: appends as fast as it can, and says on standard output what was acknowledged.

The arguments: the database's path, a seed, the number of the cut, and, for the control only, how synchronous SQLite is
to be instead of what the store has chosen. Seed and number determine what is appended; it begins with what the process
before this one began with, as clients do that had no answer.
"""

import asyncio
import json
import os
import random
import sys
import zlib
from collections.abc import Iterator
from itertools import chain, count, islice
from typing import Any, Final

from chatserver.store import Entry
from chatserver.store.sqlite import SQLite

ROOMS: Final = [f"room{number}" for number in range(12)]
AGAIN: Final = 20
"""So many batches of the run before are sent again."""


def batches(seed: int, cut: int) -> Iterator[list[Entry]]:
    """Without end. An entry's key says which cut and batch it belongs to, and how many entries the batch has."""
    chance = random.Random(f"{seed} {cut}")
    for batch in count():
        size = chance.randint(1, 30)
        yield [_entry(chance.choice(ROOMS), f"{cut} {batch} {size} {number}") for number in range(size)]


def content(key: str) -> str:
    """What stands in the event with this key."""
    return json.dumps(f"{key} " + "x" * (zlib.crc32(key.encode()) % 500))


def user(key: str) -> str:
    """Who sent it."""
    return f"user{zlib.crc32(key.encode()) % 5}"


def _entry(room: str, key: str) -> Entry:
    return Entry(room, user(key), content(key), key=key)


def _say(line: Any) -> None:
    os.write(1, json.dumps(line).encode() + b"\n")


async def main(path: str, seed: int, cut: int, synchronous: str | None = None) -> None:
    """Until it is killed."""
    store = SQLite(f"sqlite:///{path}")
    _say("opening")
    await store.open()
    _say(store.epoch)
    if synchronous:
        writer = store._writer
        await writer.run(lambda: writer.connection.execute(f"PRAGMA synchronous = {synchronous}"))
    again = islice(batches(seed, cut - 1), AGAIN if cut else 0)
    for entries in chain(again, batches(seed, cut)):
        stamps = await store.append(entries)
        _say([(entry.room, stamp.offset, entry.key) for entry, stamp in zip(entries, stamps, strict=True)])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]))
