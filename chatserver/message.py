"""The vocabulary: clients send commands, the server tells events. Frozen values that know no I/O."""

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Publish:
    """Say `body` to everybody."""

    body: str


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
