"""Those who hear the same."""

from collections.abc import Callable

from chatserver.client import WRITE_BYTES, Client
from chatserver.errors import Disconnect
from chatserver.feed import Feed
from chatserver.message import Event
from chatserver.protocol import Codec


class Audience:
    """Clients that are told the same events, in one order; each event is encoded once for each codec among them."""

    __slots__ = ("_dirty", "_feeds", "_keep_bytes")

    def __init__(self, keep_bytes: int, dirty: Callable[[Feed], None]) -> None:
        """`keep_bytes`: of frames, for those who are behind. `dirty(feed)`: is called when `feed` is to be flushed."""
        self._keep_bytes = keep_bytes
        self._dirty = dirty
        self._feeds: dict[Codec, Feed] = {}

    @property
    def size(self) -> int:
        """How many they are."""
        return sum(feed.followers for feed in self._feeds.values())

    @property
    def crowded(self) -> bool:
        """More waits for a flush than one flush takes."""
        return any(feed.pending_bytes > WRITE_BYTES for feed in self._feeds.values())

    def join(self, client: Client) -> None:
        """From now on `client` is told what the others are. It is no more when it is disconnected."""
        feed = self._feeds.get(client.codec)
        if feed is None:
            feed = self._feeds[client.codec] = Feed(client.codec, self._keep_bytes)
        client.follow(feed)

    def broadcast(self, event: Event) -> None:
        """Tells `event` to all. Never waits: who broadcasts a lot pauses while the audience is `crowded`."""
        heard = [feed for feed in self._feeds.values() if feed.followers]
        pieces = [feed.codec.encode(event) for feed in heard]  # if one fails, nobody has heard anything
        for feed, piece in zip(heard, pieces, strict=True):
            feed.append(piece)
            self._dirty(feed)

    def disconnect(self, end: Disconnect) -> None:
        """Ends the connections of all: they miss something."""
        for feed in self._feeds.values():
            for client in feed.drop():
                client.disconnect(end)
