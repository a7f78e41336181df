"""The recent frames of one audience in one codec, and who has had how much of them."""

import time
from array import array
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from itertools import islice, repeat
from operator import attrgetter
from typing import Final, TypeAlias

from chatserver.client import WRITE_BYTES, Client
from chatserver.fanout import CHANGES, write_all, write_each
from chatserver.protocol import Codec

FLUSH_CLIENTS: Final = 2000
"""So many are written to, of one audience or of several, before others have their turn: about 10 ms."""

FIRST_CLIENTS: Final = 100
MOST_FIRST_CLIENTS: Final = 500
"""So many at least, and at most, are written to first, before others have their turn: what they say next is read, and
stored, while the rest is written to. The fewer they are, the longer the store may take."""

FIRST_PER_SPEAKER: Final = 5
"""So many of them for each who speaks, or what is said next isn't there yet when the first have been written to, and
takes two flushes where one would do: of 100 who spoke in a room of 500 a sixth less got through with one each."""

SPEAKERS_SHARE: Final = 0.1
"""Who has said more than this of what somebody else has is one of those who speak."""

ORDER_SECONDS: Final = 1.0
"""How often it is looked at who they are."""

ANSWERS: Final = 16
"""So many of one client wait for a flush: if each brings less than there is, the last piece before them never comes."""

_Answers: TypeAlias = tuple[int, tuple[bytes, ...]]
"""What is told to one client behind all pieces with lower numbers than this."""

_NO_ANSWERS: Final[_Answers] = 0, ()

_received = attrgetter("received")


class _Group:
    """Some who are level, in order, with their descriptors at hand: to look into clients that nobody has looked at for
    a while was a twelfth of all that a delivery took in a room of 5,000.
    """

    __slots__ = ("_descriptors", "_places", "_seen", "clients")

    def __init__(self, clients: list[Client]) -> None:
        self.clients = clients
        self._seen = -1
        self._descriptors = array("i")
        self._places: dict[Client, int] = {}

    @property
    def descriptors(self) -> "array[int]":
        """One for each of them."""
        if self._seen != CHANGES.count:
            self._seen = CHANGES.count
            self._descriptors = array("i", [client.transport.descriptor for client in self.clients])
        return self._descriptors

    @property
    def places(self) -> dict[Client, int]:
        """Where each of them is."""
        if not self._places:
            self._places = {client: place for place, client in enumerate(self.clients)}
        return self._places

    def without(self, some: Collection[Client]) -> "tuple[list[Client], array[int]]":
        """The others, and their descriptors."""
        if len(some) == len(self.clients):
            return [], array("i")
        clients, descriptors = self.clients.copy(), self.descriptors[:]
        for place in sorted(map(self.places.__getitem__, some), reverse=True):
            del clients[place], descriptors[place]
        return clients, descriptors


class Feed:
    """A list of encoded pieces with a place in it for every follower.

    Followers that are *level* share one place, so that a flush joins what is new once and hands the same bytes to all
    of them. The others, *apart*, have a place each and pull from it. Pieces are kept while somebody apart needs them,
    up to `keep_bytes`; who falls off their end is slow.

    Pieces are numbered from 0. `_base` is the number of the oldest kept, `_flushed` of the first that those who are
    level haven't had; those in `_groups_left` and `_unwritten` haven't had what is from `_flushing` on, `_data`.
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
        self._flushing = 0
        self._data = b""
        self._groups: list[_Group] | None = None  # all who are level, until they are others
        self._groups_left: list[_Group] = []
        self._unwritten: dict[Client, None] = {}  # instead, once one of them has gone
        self._ordered = 0.0  # when
        self._first = FIRST_CLIENTS  # how many
        self._level: dict[Client, int] = {}  # with the number of the first piece had while level
        self._apart: dict[Client, int] = {}  # with the number of the next piece to have
        self._answers: dict[Client, _Answers] = {}  # to those of the level who said something

    @property
    def followers(self) -> int:
        """How many clients follow."""
        return len(self._level) + len(self._apart)

    @property
    def unfinished(self) -> bool:
        """A flush has begun, and the next has to go on with it."""
        return bool(self._groups_left or self._unwritten)

    def extend(self, pieces: Sequence[bytes]) -> None:
        """Adds `pieces` for everybody who follows now."""
        size = sum(map(len, pieces))
        self._pieces.extend(pieces)
        self._kept_bytes += size
        self.pending_bytes += size

    def join(self, client: Client) -> None:
        self._apart[client] = self._end

    def leave(self, client: Client) -> None:
        self._answers.pop(client, None)
        self._apart.pop(client, None)
        self._leave_level(client)

    def part(self, client: Client) -> Sequence[bytes]:
        _, answers = self._answers.pop(client, _NO_ANSWERS)
        self._apart[client] = self._leave_level(client)
        return answers

    def answer(self, client: Client, piece: bytes) -> bool:
        """Tells `piece` to `client` alone, behind all pieces so far, with the flush that brings the last of them. False
        if none does that, or the client, if it is one of these at all, is served by itself.
        """
        if client not in self._level or not self.pending_bytes:
            return False
        before = self._answers.get(client)
        if before and len(before[1]) >= ANSWERS:
            return False
        self._answers[client] = self._base + len(self._pieces), (*before[1], piece) if before else (piece,)
        client.delivered += 1
        return True

    def pull(self, client: Client) -> list[bytes]:
        return self._pull(client, self._end)

    def catch_up(self, client: Client) -> list[bytes]:
        return self._pull(client, self._flushed)

    def even(self, client: Client) -> bool:
        return self._apart[client] == self._flushed

    def rejoin(self, client: Client) -> None:
        self._level[client] = self._apart.pop(client)
        self._groups = None

    def flush(self) -> Collection[Client]:
        """Writes what is pending, about `WRITE_BYTES`, to all who are level, to at most `FLUSH_CLIENTS` at once; then
        the next flush goes on. Returns those that can't take more.
        """
        if not self.unfinished:
            self._begin()
        stalled = self._write(self._next_group()) if self.unfinished else ()
        if not self.unfinished:
            self._data = b""
        return stalled

    def drop(self) -> Collection[Client]:
        """Lets go of all pieces, and returns all followers: they miss something that couldn't be told to them."""
        self._base = self._flushed = self._end
        self._pieces.clear()
        self._groups_left, self._unwritten = [], {}
        self._kept_bytes = self.pending_bytes = 0
        return [*self._level, *self._apart]

    def trim(self) -> Collection[Client]:
        """Lets go of what nobody needs, and of what is too much. Returns those that needed the latter: the slow."""
        if self.unfinished:  # whoever hasn't been written to, and parts now, needs it
            return ()
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

    def _begin(self) -> None:
        """Joins what is pending, for all who are level."""
        pieces = self._next()
        if not pieces:
            return
        self._data = self.codec.join(pieces)
        self._flushing = self._flushed
        self._flushed += len(pieces)
        self.pending_bytes -= sum(map(len, pieces))
        if len(self._level) > FIRST_CLIENTS:
            self._order()
        if self._groups is None:
            self._groups = _in_groups(list(self._level), self._first)
        self._groups_left = self._groups.copy()

    def _order(self) -> None:
        """Puts those who say the most first, unless it was done a moment ago."""
        now = time.monotonic()
        if now < self._ordered + ORDER_SECONDS:
            return
        self._ordered = now
        clients = sorted(self._level, key=_received, reverse=True)
        speakers = _count_speakers(clients)
        first = _count_first(speakers)
        if first != self._first or not set(clients[: min(speakers, first)]) <= set(islice(self._level, first)):
            self._first = first
            self._level = {client: self._level[client] for client in clients}
            self._groups = None

    def _next_group(self) -> _Group:
        """Takes the next of those who haven't been written to."""
        if self._groups_left:
            return self._groups_left.pop(0)
        group = _Group(list(islice(self._unwritten, FLUSH_CLIENTS)))
        for client in group.clients:
            del self._unwritten[client]
        return group

    def _write(self, group: _Group) -> Collection[Client]:
        data = self._data
        answers = self._answers and self._take_answers(group)
        if not answers:
            return _unable(group.clients, data, write_all(group.descriptors, data))
        # They speak, so they are the first: what they say next comes while the others are written to.
        answered, told = [*answers], [*answers.values()]
        sent = write_each([client.transport.descriptor for client in answered], data, told)
        clients, descriptors = group.without(answered)
        return [*_unable(answered, data, sent, told), *_unable(clients, data, write_all(descriptors, data))]

    def _take_answers(self, group: _Group) -> Mapping[Client, bytes]:
        """Those of `group` with whom what is written now brings the last piece that comes before their answers."""
        places, flushed = group.places, self._flushed
        told: dict[Client, bytes] = {}
        for client, (place, answers) in self._answers.items():
            if place <= flushed and client in places:
                told[client] = client.codec.join(answers)
        for client in told:
            del self._answers[client]
        return told

    @property
    def _end(self) -> int:
        return self._base + len(self._pieces)

    def _pull(self, client: Client, stop: int) -> list[bytes]:
        place = self._apart[client]
        if place >= stop:
            return []
        self._apart[client] = stop
        pieces = self._pieces[place - self._base : stop - self._base]
        client.delivered += len(pieces)
        return pieces

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

    def _leave_level(self, client: Client) -> int:
        """Returns the number of the first piece that it hasn't had."""
        place = self._flushing if self._spare(client) else self._flushed
        self._groups = None
        joined = self._level.pop(client, None)
        if joined is not None:
            client.delivered += place - joined
        return place

    def _spare(self, client: Client) -> bool:
        """The flush that has begun doesn't write to `client`. True if it was going to."""
        if self._groups_left:
            self._unwritten = dict.fromkeys(client for group in self._groups_left for client in group.clients)
            self._groups_left = []
        if client not in self._unwritten:
            return False
        del self._unwritten[client]
        return True


def _count_speakers(clients: Sequence[Client]) -> int:
    """How many of `clients`, of whom each says less than those before, or as much, say anything to speak of."""
    little = SPEAKERS_SHARE * clients[0].received
    return bisect_left(clients, -little, key=lambda client: -client.received)


def _count_first(speakers: int) -> int:
    if speakers > MOST_FIRST_CLIENTS:  # most of what they say takes another flush anyway
        return FIRST_CLIENTS
    return min(max(FIRST_CLIENTS, FIRST_PER_SPEAKER * speakers), MOST_FIRST_CLIENTS)


def _in_groups(clients: list[Client], first: int) -> list[_Group]:
    starts = range(first, len(clients), FLUSH_CLIENTS)
    return [_Group(clients[:first]), *(_Group(clients[start : start + FLUSH_CLIENTS]) for start in starts)]


def _unable(
    clients: Sequence[Client], data: bytes, sent: Sequence[int], answers: Sequence[bytes] = ()
) -> Collection[Client]:
    """Has the transports of `clients` take what the kernel didn't. Returns those that can't take more."""
    if sum(sent) == len(data) * len(sent) + sum(map(len, answers)):
        return ()
    unable = []
    for client, count, answer in zip(clients, sent, answers or repeat(b""), strict=False):
        if count < len(data) + len(answer):
            client.transport.write((data + answer)[count:])
            if client.transport.paused:
                unable.append(client)
    return unable
