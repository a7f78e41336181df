"""What clients saw of a server, and whether it kept its promises: `check(history)` knows no server and no network."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Send:
    """A message on its way. `body` is `id`, a space, and anything."""

    id: str
    client: str
    room: str
    body: str
    stream: int
    """What its sender sends in one stream, such as a connection, is stored in that order."""
    sequence: int
    at: float
    """Seconds, like all times here, of one monotonic clock; those of the first attempt."""
    key: str | None = None
    """With an idempotency key it may be sent again, and is stored once."""


@dataclass(frozen=True, slots=True)
class Ack:
    """The server said that it has the message: with its answer, or with the sender's own copy."""

    id: str
    offset: int | None
    """Where the server said that it is; None if it didn't."""
    at: float
    copy: bool = True
    """It was the copy: an answer may come before the message is delivered, in rare cases."""


@dataclass(slots=True)
class Connection:
    """What one connection received."""

    client: str
    room: str
    opened: float
    """Before it was asked for."""
    after: int | None = None
    """The offset from which it resumed. None: it asked for what comes from now on, and for the `last` messages."""
    last: int = 0
    joined: float | None = None
    """By when it was a member for certain."""
    bodies: list[str] = field(default_factory=list)
    to_end: bool = False
    """It was open when all was quiet."""


class Stored(NamedTuple):
    """A message in the history of a room, as the server tells it in the end."""

    offset: int
    user: str
    body: str
    key: str | None = None


@dataclass(slots=True)
class History:
    """All that was seen."""

    sends: list[Send] = field(default_factory=list)
    acks: list[Ack] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """The ids of messages of which the server said that they aren't stored and won't be."""
    connections: list[Connection] = field(default_factory=list)
    rooms: dict[str, list[Stored]] = field(default_factory=dict)

    @property
    def receipts(self) -> int:
        """How many messages were received, by all."""
        return sum(len(connection.bodies) for connection in self.connections)


class Kind(StrEnum):
    """What can be wrong."""

    ACKNOWLEDGED_THEN_LOST = "acknowledged, but not in the history"
    BEFORE = "received by somebody who wasn't a member yet, or who had it already"
    CORRUPTED = "not what was sent"
    CROSSED = "of another room"
    DOUBLED = "twice"
    HISTORY_OFFSET = "an offset in the history that doesn't follow the one before"
    MISATTRIBUTED = "not under the sender's name and key"
    MISSED = "not received by a member"
    MISSED_TAIL = "the last ones not received by a member"
    NOT_KEPT = "received, but not in the history"
    OVERTAKEN = "stored before what was acknowledged before it was sent"
    PHANTOM = "sent by nobody"
    REFUSED_THEN_STORED = "refused, but in the history"
    SENDER_ORDER = "not in the order of its sender"
    SWAPPED = "received in another order than that of the history"
    WRONG_OFFSET = "acknowledged with another offset than that in the history"


class Violation(NamedTuple):
    """A broken promise."""

    kind: Kind
    where: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}"


def check(history: History) -> list[Violation]:
    """All that is wrong; empty if all promises were kept. With n of whatever was seen it takes O(n log n)."""
    seen = _Seen(history)
    parts = (_check_log, _check_sender_order, _check_real_time, _check_acks, _check_refused, _check_connections)
    return [violation for part in parts for violation in part(seen)]


class _Latest:
    """The highest offset of what had happened before a moment."""

    def __init__(self, events: Iterable[tuple[float, int]]) -> None:
        self._times: list[float] = []
        self._offsets: list[int] = []
        highest = 0
        for at, offset in sorted(events):
            highest = max(highest, offset)
            self._times.append(at)
            self._offsets.append(highest)

    def before(self, at: float) -> int:
        count = bisect_left(self._times, at)
        return self._offsets[count - 1] if count else 0


class _Seen:
    """A history, and where to find what in it."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.sends = {send.id: send for send in history.sends}
        self.logs = {room: [stored.body for stored in log] for room, log in history.rooms.items()}
        self.places: dict[tuple[str, str], int] = {}
        """By room and id the place in the history, counted from 1."""
        for room, log in self.logs.items():
            for place, body in enumerate(log, 1):
                self.places.setdefault((room, _id(body)), place)
        self.acked = self._by_room((ack.id, ack.at) for ack in history.acks)
        self.heard = self._by_room((ack.id, ack.at) for ack in history.acks if ack.copy)
        self.sent = self._by_room((send.id, send.at) for send in history.sends)

    def place(self, send: Send) -> int | None:
        return self.places.get((send.room, send.id))

    def _by_room(self, moments: Iterable[tuple[str, float]]) -> dict[str, _Latest]:
        events: dict[str, list[tuple[float, int]]] = {room: [] for room in self.logs}
        for identity, at in moments:
            send = self.sends.get(identity)
            place = send and self.place(send)
            if send and place:
                events[send.room].append((at, place))
        return {room: _Latest(found) for room, found in events.items()}


def _id(body: str) -> str:
    return body.partition(" ")[0]


def _check_log(seen: _Seen) -> Iterator[Violation]:
    for room, log in seen.history.rooms.items():
        ids = set()
        for place, stored in enumerate(log, 1):
            where = f"{room} {stored}"
            if stored.offset != place:
                yield Violation(Kind.HISTORY_OFFSET, where)
            if _id(stored.body) in ids:
                yield Violation(Kind.DOUBLED, where)
            ids.add(_id(stored.body))
            yield from _check_stored(seen, room, stored)


def _check_stored(seen: _Seen, room: str, stored: Stored) -> Iterator[Violation]:
    where = f"{room} {stored}"
    problem = _content(seen, room, stored.body)
    if problem:
        yield Violation(problem, where)
    send = seen.sends.get(_id(stored.body))
    if send and (stored.user, stored.key) != (send.client, send.key):
        yield Violation(Kind.MISATTRIBUTED, where)


def _content(seen: _Seen, room: str, body: str) -> Kind | None:
    send = seen.sends.get(_id(body))
    if not send:
        return Kind.PHANTOM
    if send.room != room:
        return Kind.CROSSED
    return Kind.CORRUPTED if send.body != body else None


def _check_sender_order(seen: _Seen) -> Iterator[Violation]:
    for room, log in seen.logs.items():
        last: dict[tuple[str, int], int] = {}
        for body in log:
            send = seen.sends.get(_id(body))
            if send:
                stream = send.client, send.stream
                if send.sequence < last.get(stream, 0):
                    yield Violation(Kind.SENDER_ORDER, f"{room} {send}")
                last[stream] = send.sequence


def _check_real_time(seen: _Seen) -> Iterator[Violation]:
    for send in seen.history.sends:
        place = seen.place(send)
        if place and seen.acked[send.room].before(send.at) > place:
            yield Violation(Kind.OVERTAKEN, f"{place} {send}")


def _check_acks(seen: _Seen) -> Iterator[Violation]:
    for ack in seen.history.acks:
        send = seen.sends.get(ack.id)
        if not send:
            yield Violation(Kind.PHANTOM, f"{ack}")
            continue
        place = seen.place(send)
        if not place:
            yield Violation(Kind.ACKNOWLEDGED_THEN_LOST, f"{ack} {send}")
        elif ack.offset not in (None, place):
            yield Violation(Kind.WRONG_OFFSET, f"{ack} at {place}")


def _check_refused(seen: _Seen) -> Iterator[Violation]:
    for identity in seen.history.refused:
        send = seen.sends[identity]
        if seen.place(send):
            yield Violation(Kind.REFUSED_THEN_STORED, f"{send}")


def _check_connections(seen: _Seen) -> Iterator[Violation]:
    for connection in seen.history.connections:
        start = _start(seen, connection)
        log = seen.logs.get(connection.room, [])
        if log[start : start + len(connection.bodies)] != connection.bodies:
            yield from _explain(seen, connection, start)
        yield from _check_arrival(seen, connection, start)
        if connection.to_end:
            yield from _check_tail(seen, connection)


def _start(seen: _Seen, connection: Connection) -> int:
    """Behind which place the first message is that the connection should have received."""
    if connection.after is not None:
        return connection.after
    places = (seen.places.get((connection.room, _id(body))) for body in connection.bodies)
    return next((place - 1 for place in places if place), 0)


def _check_arrival(seen: _Seen, connection: Connection, start: int) -> Iterator[Violation]:
    """It got what came before it was a member as far as it asked for it, and all that came then."""
    if connection.room not in seen.logs:
        return
    least = seen.heard[connection.room].before(connection.opened)
    first = max(0, least - connection.last) if connection.after is None else connection.after
    if connection.bodies and start < first:
        yield Violation(Kind.BEFORE, f"{_name(connection)}: from {start}, {least} were there")
    if connection.joined is not None:
        most = seen.sent[connection.room].before(connection.joined)
        late = connection.after is None and connection.bodies and start > max(0, most - connection.last)
        if late or len(connection.bodies) < least - first:
            yield Violation(Kind.MISSED, f"{_name(connection)}: from {start}, {least} to {most} were there")


def _check_tail(seen: _Seen, connection: Connection) -> Iterator[Violation]:
    """What it received last is the end; without anything, nothing came since it is a member."""
    places = [seen.places.get((connection.room, _id(body)), 0) for body in connection.bodies]
    length = len(seen.logs.get(connection.room, []))
    last = max(places, default=connection.after)
    if last is None:
        last = length if connection.joined is None else seen.sent[connection.room].before(connection.joined)
    if last < length:
        yield Violation(Kind.MISSED_TAIL, f"{_name(connection)}: {last} of {length}")


def _explain(seen: _Seen, connection: Connection, start: int) -> Iterator[Violation]:
    """What makes the messages of the connection no piece of the history."""
    places: set[int] = set()
    last = start
    for body in connection.bodies:
        where = f"{_name(connection)}: {body[:80]!r}"
        place = seen.places.get((connection.room, _id(body)))
        kind = _content(seen, connection.room, body) or _order(place, start, last, places)
        if kind:
            yield Violation(kind, where)
        if place:
            places.add(place)
            last = max(last, place)
    missed = last - start - sum(place > start for place in places)
    if missed:
        yield Violation(Kind.MISSED, f"{_name(connection)}: {missed} of {start + 1} to {last}")


def _order(place: int | None, start: int, last: int, places: set[int]) -> Kind | None:
    if not place:
        return Kind.NOT_KEPT
    if place in places:
        return Kind.DOUBLED
    if place <= start:
        return Kind.BEFORE
    return Kind.SWAPPED if place < last else None


def _name(connection: Connection) -> str:
    asked = f"last {connection.last}" if connection.after is None else f"after {connection.after}"
    return f"{connection.client} in {connection.room} {asked}"
