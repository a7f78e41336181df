"""The vocabulary: clients send commands, the server tells events. Frozen values that know no I/O."""

from dataclasses import dataclass
from typing import Final, TypeAlias

LOBBY: Final = "lobby"
"""The room of those who name none."""


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a room's log: just behind the event with this offset, or before all with 0.

    `epoch` says which log: of another one the offset means nothing. Empty: whichever there is.
    """

    epoch: str
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}:{self.offset}"


@dataclass(frozen=True, slots=True)
class Publish:
    """Say `body` in `room`."""

    body: str
    room: str = LOBBY


Command: TypeAlias = Publish


@dataclass(frozen=True, slots=True)
class Message:
    """`user` said `body`."""

    user: str
    body: str


@dataclass(frozen=True, slots=True)
class Joined:
    """`user` connected."""

    user: str


@dataclass(frozen=True, slots=True)
class Left:
    """`user` disconnected."""

    user: str


@dataclass(frozen=True, slots=True)
class Notice:
    """The server, or a plugin, has something to say."""

    body: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A command of this client was refused; `code` and `text` are those of the `ChatError`."""

    code: int
    text: str


Event: TypeAlias = Message | Joined | Left | Notice | Refused
EVENTS = (Message, Joined, Left, Notice, Refused)
