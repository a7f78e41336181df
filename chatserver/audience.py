"""Those who hear the same."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from chatserver.client import WRITE_BYTES, Client
from chatserver.errors import Disconnect
from chatserver.feed import Feed
from chatserver.message import Changes, Event, Joined, Left, Message
from chatserver.protocol import Codec

_NOTICES: Final = (Joined, Left, Changes)


class Audience:
    """Clients that are told the same events, in one order; each event is encoded once for each codec among them."""

    __slots__ = ("_dirty", "_feeds", "_keep_bytes", "_noticing")

    def __init__(self, keep_bytes: int, dirty: Callable[[Feed], None]) -> None:
        """`keep_bytes`: of frames, for those who are behind. `dirty(feed)`: is called when `feed` is to be flushed."""
        self._keep_bytes = keep_bytes
        self._dirty = dirty
        self._feeds: dict[tuple[Codec, bool], Feed] = {}  # by codec, and whether who comes and goes is told
        self._noticing: dict[tuple[Codec, bool], Feed] = {}  # those of them where it is

    @property
    def size(self) -> int:
        """How many they are."""
        return sum(feed.followers for feed in self._feeds.values())

    def crowded(self) -> bool:
        """More waits for a flush than one flush takes."""
        for feed in self._feeds.values():  # noqa: SIM110 - `any` would take three times as long, for each message
            if feed.pending_bytes > WRITE_BYTES:
                return True
        return False

    def join(self, client: Client, *, codec: Codec | None = None, notices: bool = True) -> None:
        """From now on `client` is told what the others are, of who comes and goes only with `notices`. It is no more
        when it is disconnected. `codec`: one of this audience's, instead of the client's.
        """
        kind = (codec or client.codec, notices)
        feed = self._feeds.get(kind)
        if feed is None:
            feed = self._feeds[kind] = Feed(kind[0], self._keep_bytes)
            self._feeds = dict(sorted(self._feeds.items(), key=lambda each: id(each[0][0])))  # each codec's together
            self._noticing = {kind: feed for kind, feed in self._feeds.items() if kind[1]}
        client.follow(feed)

    def leave(self, client: Client) -> None:
        """`client` has what was told so far, and is told no more."""
        for feed in self._feeds.values():
            client.unfollow(feed)

    def broadcast(self, event: Event) -> None:
        """Tells `event` to all. Never waits: who broadcasts a lot pauses while the audience is `crowded`."""
        self._tell(self._noticing if isinstance(event, _NOTICES) else self._feeds, [event])

    def tell(self, messages: Sequence[Message]) -> None:
        """`broadcast` for several, together: all of them, or, if a codec fails, none."""
        self._tell(self._feeds, messages)

    def answer(self, client: Client, piece: bytes) -> None:
        """`Client.push` for what has a place behind all that was told here before, but none before what is told after
        it: to keep that would have everybody who says something served by itself.
        """
        for feed in self._feeds.values():
            if feed.answer(client, piece):
                return
        client.push(piece)

    def _tell(self, feeds: Mapping[tuple[Codec, bool], Feed], events: Sequence[Event]) -> None:
        pieces: list[bytes] = []
        encoded_by = None
        heard: list[tuple[Feed, list[bytes]]] = []
        for feed in feeds.values():
            if feed.followers:
                if feed.codec is not encoded_by:
                    encoded_by = feed.codec
                    encode = encoded_by.encode
                    pieces = [piece for event in events if (piece := encode(event))]
                if pieces:
                    heard.append((feed, pieces))
        for feed, pieces in heard:  # if a codec failed, nobody has heard anything
            feed.extend(pieces)
            self._dirty(feed)

    def disconnect(self, end: Disconnect) -> None:
        """Ends the connections of all: they miss something."""
        for feed in self._feeds.values():
            for client in feed.drop():
                client.disconnect(end)
