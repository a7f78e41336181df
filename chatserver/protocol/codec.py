"""What the engine needs of a wire protocol."""

from collections.abc import Sequence
from typing import Protocol

from chatserver.message import Event


class Codec(Protocol):
    """One wire protocol, as those who speak it are written to.

    `encode` makes a piece of one event, `join` the bytes on the wire of many pieces: a fan-out encodes an event once
    for all who speak the codec, and joins once for all who have read equally far.
    """

    @property
    def ping(self) -> bytes:
        """A whole WebSocket frame that a client which is there answers."""

    def encode(self, event: Event) -> bytes:
        """The piece that stands for `event`; empty if those who speak this protocol aren't told of it."""

    def join(self, pieces: Sequence[bytes]) -> bytes:
        """Whole WebSocket frames that carry `pieces`, in order; of empty ones nothing."""


class Chained(Codec, Protocol):
    """A codec of one audience, whose pieces build on each other: who misses one can't read the next."""

    @property
    def alone(self) -> Codec:
        """For what somebody is told before it joins the audience."""

    def anew(self) -> None:
        """The next piece builds on nothing: somebody has joined."""
