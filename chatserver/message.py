"""The vocabulary: clients send commands, the server tells events. Frozen values that know no I/O.

`msgspec.structs.replace` makes one out of another. They are made for each message, several times: as frozen dataclasses
they took a tenth of all that a message costs.
"""

from collections.abc import Mapping
from typing import Final, TypeAlias

import msgspec

LOBBY: Final = "lobby"
"""The room of those who name none."""


SPEAKERS: Final = 1 << 14
"""What is worked out about those who say something is kept of so many: about as many as a process has connections."""


class Position(msgspec.Struct, frozen=True, gc=False):
    """A place in a room's log: just behind the event with this offset, or before all with 0.

    `epoch` says which log: of another one the offset means nothing. Empty: whichever there is.
    """

    epoch: str
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}:{self.offset}"


class Info(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
    """Who somebody is, as the members of a room are told."""

    user: str
    """What a token says; empty for those who have shown none."""
    client: str
    """The connection's id."""
    conn: str = ""
    """JSON that goes with the connection; empty: none."""
    chan: str = ""
    """JSON that goes with the membership; empty: none."""


class Publish(msgspec.Struct, frozen=True, gc=False):
    """Say `body` in `room`."""

    body: str
    room: str = LOBBY
    data: str = ""
    """JSON: what is said, if that is more than a text, or a text with needless escapes. Its string field `body` is then
    `body`, which is empty where it has none."""
    key: str | None = None
    """The sender's own name for it: the same again is stored once."""


Command: TypeAlias = Publish


class Message(msgspec.Struct, frozen=True, gc=False):
    """`user` said `body`."""

    user: str
    body: str | None
    """None: what was said has no text in it."""
    room: str = LOBBY
    data: str = ""
    """JSON: all that was said; empty: just `body`."""
    offset: int = 0
    """In the log of `room`; 0 where members aren't told."""
    info: Info | None = None
    """Who said it; None: a program, not a member."""
    tags: Mapping[str, str] | None = None


class Joined(msgspec.Struct, frozen=True, gc=False):
    """`user` connected."""

    user: str
    room: str = LOBBY
    info: Info | None = None


class Left(msgspec.Struct, frozen=True, gc=False):
    """`user` disconnected."""

    user: str
    room: str = LOBBY
    info: Info | None = None


class Changes(msgspec.Struct, frozen=True, gc=False):
    """Several connected or disconnected within a short while."""

    changes: tuple[Joined | Left, ...]
    """In the order in which it happened."""
    room: str = LOBBY
    crowd: int = 0
    """So many are there now, too many for names: only numbers are told. 0: it is told who it was."""


class Notice(msgspec.Struct, frozen=True, gc=False):
    """The server, or a plugin, has something to say."""

    body: str


class Refused(msgspec.Struct, frozen=True, gc=False):
    """A command of this client was refused; `code` and `text` are those of the `ChatError`."""

    code: int
    text: str


Event: TypeAlias = Message | Joined | Left | Changes | Notice | Refused
EVENTS = (Message, Joined, Left, Changes, Notice, Refused)
