"""What a chat tells whoever shows it. Frozen values."""

from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class Said:
    """A message."""

    room: str
    epoch: str
    offset: int
    """In the room's log of that epoch; 0 where positions aren't told."""
    time: int
    """Milliseconds since 1970: when it was stored or, of what was heard live, when it was heard."""
    name: str
    """What to call who said it."""
    body: str | None
    """None: it has no text."""
    data: object = None
    """All that was said, if that is more than a text."""


@dataclass(frozen=True, slots=True)
class Member:
    """One connection of somebody."""

    client: str
    name: str


@dataclass(frozen=True, slots=True)
class Moved:
    """Somebody has come, or gone."""

    room: str
    time: int
    member: Member
    came: bool


@dataclass(frozen=True, slots=True)
class State:
    """Of the connection. `ended`: it won't be tried again."""

    state: Literal["connecting", "connected", "ended"]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Missed:
    """What was said meanwhile can't be told; `first` and `last` are 0 if it isn't known how much that is."""

    room: str
    first: int
    last: int
    reason: str


@dataclass(frozen=True, slots=True)
class Problem:
    """The server refused something: the message `body`, or if that is None something else."""

    code: int
    text: str
    room: str
    body: str | None = None


Event: TypeAlias = Said | Moved | State | Missed | Problem
