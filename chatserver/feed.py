"""The recent frames of one audience in one codec, and who has had how much of them."""

from collections.abc import Collection

from chatserver.client import WRITE_BYTES, Client
from chatserver.protocol import Codec


class Feed:
    """A list of encoded pieces with a place in it for every follower.

    Followers that are *level* share one place, so that a flush joins what is new once and hands the same bytes to all
    of them. The others, *apart*, have a place each and pull from it. Pieces are kept while somebody apart needs them,
    up to `keep_bytes`; who falls off their end is slow.

    Pieces are numbered from 0. `_base` is the number of the oldest kept, `_flushed` of the first that those who are
    level haven't had.
    """

    def __init__(self, codec: Codec, keep_bytes: int) -> None:
        self.codec = codec
        self.pending_bytes = 0
        """Of the pieces that wait for a flush."""
        self._keep_bytes = keep_bytes
        self._kept_bytes = 0
        self._pieces: list[bytes] = []
        self._base = 0
        self._flushed = 0
        self._level: dict[Client, int] = {}  # with the number of the first piece had while level
        self._apart: dict[Client, int] = {}  # with the number of the next piece to have

    @property
    def followers(self) -> int:
        """How many clients follow."""
        return len(self._level) + len(self._apart)

    def append(self, piece: bytes) -> None:
        """Adds `piece` for everybody who follows now."""
        self._pieces.append(piece)
        self._kept_bytes += len(piece)
        self.pending_bytes += len(piece)

    def join(self, client: Client) -> None:
        self._apart[client] = self._end

    def leave(self, client: Client) -> None:
        self._apart.pop(client, None)
        self._leave_level(client)

    def part(self, client: Client) -> None:
        self._leave_level(client)
        self._apart[client] = self._flushed

    def pull(self, client: Client) -> list[bytes]:
        place = self._apart[client]
        if place == self._end:
            return []
        self._apart[client] = self._end
        pieces = self._pieces[place - self._base :]
        client.delivered += len(pieces)
        return pieces

    def even(self, client: Client) -> bool:
        return self._apart[client] == self._flushed

    def rejoin(self, client: Client) -> None:
        self._level[client] = self._apart.pop(client)

    def flush(self) -> Collection[Client]:
        """Writes what is pending, about `WRITE_BYTES`, to all who are level. Returns those that can't take more."""
        pieces = self._next()
        if not pieces:
            return ()
        data = self.codec.join(pieces)
        self._flushed += len(pieces)
        self.pending_bytes -= sum(map(len, pieces))
        stalled = []
        for client in self._level:
            transport = client.transport
            transport.write(data)
            if transport.paused:
                stalled.append(client)
        return stalled

    def drop(self) -> Collection[Client]:
        """Lets go of all pieces, and returns all followers: they miss something that couldn't be told to them."""
        self._base = self._flushed = self._end
        self._pieces.clear()
        self._kept_bytes = self.pending_bytes = 0
        return [*self._level, *self._apart]

    def trim(self) -> Collection[Client]:
        """Lets go of what nobody needs, and of what is too much. Returns those that needed the latter: the slow."""
        self._drop(min(self._apart.values(), default=self._flushed))
        over = self._kept_bytes - self.pending_bytes - self._keep_bytes
        if over <= 0:
            return ()
        count = 0
        while over > 0:
            over -= len(self._pieces[count])
            count += 1
        self._drop(self._base + count)
        return [client for client, place in self._apart.items() if place < self._base]

    @property
    def _end(self) -> int:
        return self._base + len(self._pieces)

    def _next(self) -> list[bytes]:
        start = self._flushed - self._base
        if self.pending_bytes <= WRITE_BYTES:
            return self._pieces[start:]
        size, stop = 0, start
        while size < WRITE_BYTES:  # more than that is pending
            size += len(self._pieces[stop])
            stop += 1
        return self._pieces[start:stop]

    def _drop(self, place: int) -> None:
        count = min(place, self._flushed) - self._base
        if count > 0:
            self._kept_bytes -= sum(map(len, self._pieces[:count]))
            del self._pieces[:count]
            self._base += count

    def _leave_level(self, client: Client) -> None:
        joined = self._level.pop(client, None)
        if joined is not None:
            client.delivered += self._flushed - joined
