"""Where the rooms' logs are kept. `Store` is the interface, `open_store` finds the implementation for a URL."""

import re
from collections.abc import Callable, Collection, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Final, Protocol, TypeAlias

import msgspec

GROUP: Final = "chatserver.stores"
"""The entry-point group of other people's stores: the entry point is called like the URL's scheme."""

_OURS: Final = {
    "memory": ("memory", "Memory"),
    "sqlite": ("sqlite", "SQLite"),
    "postgresql": ("postgresql", "PostgreSQL"),
    "postgres": ("postgresql", "PostgreSQL"),
}


class StoreError(Exception):
    """A store that can't be opened; says why, for whoever runs the server."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """What is to be appended to the log of `room`."""

    room: str
    user: str
    data: str
    """JSON, as text."""
    kind: str = "message"
    key: str | None = None
    """The sender's own name for it, unique among what `user` says in `room`."""
    meta: str | None = None
    """JSON, as text: what goes with it beside the payload."""

    def at(self, offset: int, time: int) -> "Record":
        """The event that it became. `time`: milliseconds since 1970."""
        return Record(offset, time, self.kind, self.user, self.data, self.key, self.meta)


class Stamp(msgspec.Struct, frozen=True, gc=False):
    """Where an entry stands in the log."""

    offset: int
    time: int
    """Milliseconds since 1970; never less than that of the event before."""
    new: bool = True
    """False: the log had the entry already, by its key."""


class Record(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """An event in the log of a room."""

    offset: int
    time: int
    kind: str
    user: str
    data: str
    key: str | None = None
    meta: str | None = None


class Store(Protocol):
    """The logs of all rooms. What an implementation promises; `chatserver.testing.check_store` verifies it:

    1. Offsets are per room, start at 1, have no holes and become visible in order: who has read offset n will never
       see an event appear at or below n. That holds for all processes that use the same storage.
    2. `append` returns when the entries are durable: they survive the end of the process and of the machine's power.
    3. An entry whose (room, user, key) is in the log, or earlier among the same entries, isn't stored again: it gets
       the stamp of the first. That holds as long as the first is kept.
    4. An `append` stores all entries or none. It raises one of the storage errors of `chatserver.errors` within five
       seconds when it can't; of them only `StorageUnsure` leaves open which it was. After a failure the next call
       tries anew.
    5. What is kept of a log is its end, without holes. Offsets go on where they were when older events are let go.
    6. A room that nobody appended to takes no space.

    Calls may overlap, except that one process makes one `append`, `trim` or `forget` at a time. Whoever calls makes
    sure that names are short, and that no text has U+0000 or lone surrogates.
    """

    @property
    def epoch(self) -> str:
        """Random, made together with the storage: offsets of another epoch mean nothing here. Known once open."""

    async def open(self) -> None:
        """Makes what is missing in the storage, and brings what is old up to date. Raises `StoreError`."""

    async def close(self) -> None:
        """Lets go of files and connections; also after an `open` that failed."""

    async def append(self, entries: Sequence[Entry]) -> list[Stamp]:
        """Appends to the logs, in this order, in one transaction. One stamp for each entry."""

    async def read(self, room: str, *, after: int | None = None, before: int | None = None, limit: int) -> list[Record]:
        """At most `limit` events, in order: the first ones after the offset `after`, or else the last ones before the
        offset `before` (None: the last of all).

        With `after`, raises `Unrecoverable` if an event after it is no longer kept, or if the log never came so far.
        """

    async def top(self, rooms: Collection[str]) -> dict[str, int]:
        """The last offset of each of `rooms`, 0 where nothing was ever appended."""

    async def trim(self, *, before: int, keep: int) -> bool:
        """Lets go of some events older than `before` (milliseconds since 1970), and of some that `keep` or more
        later ones of the room follow (0: of none for that). Takes milliseconds, so that appends needn't wait.

        False: nothing is left to be let go.
        """

    async def forget(self, room: str, through: int) -> bool:
        """Lets go of some events of `room` up to the offset `through`. Takes milliseconds, as `trim` does.

        False: nothing is left to be let go.
        """


Make: TypeAlias = Callable[[str], Store]


def open_store(url: str) -> Store:
    """The store at `url`, not open yet. Raises `ValueError` with what is wrong with the URL.

    `memory://`, `sqlite:///relative.db`, `sqlite:////absolute.db`, `postgresql://user:password@host/database`, and
    the schemes of what is installed in the entry-point group `chatserver.stores`.
    """
    scheme = url.partition("://")[0]
    make = _ours(scheme) or _theirs(scheme)
    if not make or "://" not in url:
        raise ValueError(f"{shown(url)!r} is no store; allowed: {', '.join(_schemes())}")
    return make(url)


def shown(url: str) -> str:
    """`url` without its passwords."""
    masked = re.sub(r"(://[^:/@]*:).*@", r"\1***@", url)  # up to the last @: it may have what should have been quoted
    return re.sub(r"(password=)[^&#]*", r"\1***", masked)


def _schemes() -> list[str]:
    theirs = [f"{name}://…" for name in entry_points(group=GROUP).names]
    return ["memory://", "sqlite:///FILE", "postgresql://USER:PASSWORD@HOST/DATABASE", *sorted(theirs)]


def _ours(scheme: str) -> Make | None:
    if scheme not in _OURS:
        return None
    module, name = _OURS[scheme]
    try:
        make: Make = getattr(import_module(f"{__name__}.{module}"), name)
    except ModuleNotFoundError as error:
        raise ValueError(f"{scheme}:// needs the package {error.name}; pip install 'chatserver[postgres]'") from None
    return make


def _theirs(scheme: str) -> Make | None:
    for entry_point in entry_points(group=GROUP, name=scheme):
        try:
            make: Make = entry_point.load()
        except Exception as error:
            raise ValueError(f"{scheme}:// can't be loaded: {type(error).__name__}: {error}") from None
        return make
    return None
