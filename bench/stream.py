"""What members of a room hear, and whether it is what was said: nothing lost, doubled, corrupted or out of order.

A body says who sent it, its number, and when, all of it twice, so that no byte can change unnoticed. A `Listener` looks
at each frame. That is too slow for a thousand members: but they all get the same bytes, so a `Follower` compares its
own with those that another member has had before it, and looks at frames only where they differ.
"""

import re
from bisect import bisect_right
from collections.abc import Mapping
from typing import NamedTuple

from bench.frames import BINARY, CLOSE, PING, PONG, TEXT, frames, masked

BODY_BYTES = 128

_SAID = re.compile(rb"~(\d{5})\.(\d{7})\.(\d{16})~\1\.\2\.\3~x{65}")
_OTHER = re.compile(rb'\{"type": ?1,|\{"id":\d+,"publish":|.\x08\x09')
"""Frames that no member said: notices, and answers to publishers, in JSON and Protobuf."""

_PINGS = {(TEXT, b"{}"), (BINARY, b"\0")}
"""Those of the Centrifuge protocol."""


def body(sender: bytes, number: int, microseconds: int) -> str:
    """The text of a message: `sender` is five digits, the time is of the monotonic clock."""
    said = f"{sender.decode()}.{number:07}.{microseconds:016}"
    return f"~{said}~{said}~".ljust(BODY_BYTES, "x")


class Faults(NamedTuple):
    """Messages of each kind; a message may be in more than one."""

    lost: int = 0
    doubled: int = 0
    reordered: int = 0
    corrupted: int = 0

    def __add__(self, other: "Faults") -> "Faults":  # type: ignore[override]
        return Faults(*map(sum, zip(self, other, strict=True)))


NO_FAULTS = Faults()


class Said(NamedTuple):
    """A message that was heard: who said it, and when, in microseconds of the monotonic clock."""

    sender: bytes
    microseconds: int


class Checker:
    """Whether each sender's messages came one after the other, from number 0."""

    def __init__(self) -> None:
        self.heard = 0
        self.due: dict[bytes, int] = {}
        """The number that each sender's next message will have."""
        self._missing: set[tuple[bytes, int]] = set()
        self._doubled = self._reordered = self._corrupted = 0

    def take(self, payload: bytes) -> list[Said]:
        """The messages in the payload of a frame."""
        found = []
        for match in _SAID.finditer(payload):
            sender, number, time = match.groups()
            self._count(sender, int(number))
            found.append(Said(sender, int(time)))
        if not found and not _OTHER.match(payload):
            self._corrupted += 1
        return found

    def _count(self, sender: bytes, number: int) -> None:
        self.heard += 1
        due = self.due.get(sender, 0)
        if number >= due:
            self.due[sender] = number + 1
            self._missing.update((sender, missing) for missing in range(due, number))
        elif (sender, number) in self._missing:
            self._missing.remove((sender, number))
            self._reordered += 1
        else:
            self._doubled += 1

    def faults(self, said: Mapping[bytes, int]) -> Faults:
        """Compared with how many messages each sender said."""
        unheard = sum(max(0, count - self.due.get(sender, 0)) for sender, count in said.items())
        invented = sum(max(0, due - said.get(sender, 0)) for sender, due in self.due.items())
        lost = len(self._missing) + unheard
        return Faults(lost, self._doubled, self._reordered, self._corrupted + invented)


class Listener:
    """A member whose frames are looked at, each."""

    def __init__(self) -> None:
        self.checker = Checker()
        self.answers: list[bytes] = []
        """Frames to be sent to the server."""
        self.tail = b""

    @property
    def heard(self) -> int:
        """Messages so far."""
        return self.checker.heard

    def feed(self, data: bytes | memoryview) -> list[Said]:
        """Takes what was received; returns the messages that are whole now."""
        data = self.tail + data
        found: list[Said] = []
        whole = 0
        for opcode, begin, whole in frames(data):
            payload = data[begin:whole]
            if not _answered(opcode, payload, self.answers):
                found += self.checker.take(payload)
        self.tail = data[whole:]
        return found

    def faults(self, said: Mapping[bytes, int]) -> Faults:
        """Compared with how many messages each sender said."""
        return self.checker.faults(said) + Faults(corrupted=bool(self.tail))


def _answered(opcode: int, payload: bytes, answers: list[bytes]) -> bool:
    """Whether the frame is for its receiver alone; its answer, if it asks for one, is added to `answers`."""
    if opcode == PING:
        answers.append(masked(PONG, payload))
    elif (opcode, payload) in _PINGS:
        answers.append(masked(opcode, payload))
    return opcode >= CLOSE or (opcode, payload) in _PINGS


class Room:
    """The frames of a room as the first member had them that got so far. There is never a fault in them."""

    def __init__(self) -> None:
        self.stream = bytearray()
        self.checker = Checker()
        self._ends = [0]
        self._heard = [0]

    def append(self, frame: bytes) -> bool:
        """Adds the next frame, if it is one that may come next."""
        payload = frame[next(frames(frame))[1] :]
        if not self._may_follow(payload):
            return False
        self.checker.take(payload)
        self.stream += frame
        self._ends.append(len(self.stream))
        self._heard.append(self.checker.heard)
        return True

    def _may_follow(self, payload: bytes) -> bool:
        due = dict(self.checker.due)
        messages = [(match[1], int(match[2])) for match in _SAID.finditer(payload)]
        for sender, number in messages:
            if number != due.get(sender, 0):
                return False
            due[sender] = number + 1
        return bool(messages or _OTHER.match(payload))

    def whole(self, position: int) -> int:
        """Where the last frame ends that ends at `position` or before."""
        return self._ends[bisect_right(self._ends, position) - 1]

    def heard(self, position: int) -> int:
        """How many messages are in the frames that end at `position` or before."""
        return self._heard[bisect_right(self._ends, position) - 1]

    def checker_at(self, position: int) -> Checker:
        """One that has taken what ends at `position`."""
        checker = Checker()
        checker.heard = self.heard(position)
        later: dict[bytes, int] = {}
        for match in _SAID.finditer(self.stream, position):
            later.setdefault(match[1], int(match[2]))
        checker.due = self.checker.due | later
        return checker


class Follower:
    """A member whose bytes are compared with those of its room.

    Where they differ it goes on as a listener: members may hear different senders in different orders, and the same
    messages in other frames. Once it has heard neither more nor less than the room has, it follows again.
    """

    def __init__(self, room: Room) -> None:
        self.answers: list[bytes] = []
        self._room = room
        self._position = 0
        self._tail = b""
        self._alone: Listener | None = None

    @property
    def heard(self) -> int:
        """Messages so far."""
        return self._alone.heard if self._alone else self._room.heard(self._position)

    def feed(self, data: bytes | memoryview) -> None:
        """Takes what was received."""
        if self._tail:
            data, self._tail = self._tail + data, b""
        if self._alone:
            self._listen(data)
        elif self._room.stream.startswith(data, self._position):
            self._position += len(data)
        else:
            self._look(bytes(data))

    def faults(self, said: Mapping[bytes, int]) -> Faults:
        """Compared with how many messages each sender said."""
        if self._alone:
            return self._alone.faults(said)
        behind = self._room.checker.heard - self.heard
        corrupted = bool(self._tail) or self._position != self._room.whole(self._position)
        return self._room.checker.faults(said) + Faults(lost=behind, corrupted=corrupted)

    def _look(self, data: bytes) -> None:
        """Takes what the room doesn't have at this place, or not yet."""
        stream = self._room.stream
        begun = self._room.whole(self._position)
        data = bytes(stream[begun : self._position]) + data
        self._position = begun
        at = 0
        for opcode, begin, end in frames(data):
            if not _answered(opcode, data[begin:end], self.answers) and not self._follow(data[at:end]):
                break
            at = end
        rest = data[at:]
        if self._alone:
            self._listen(rest)
        elif stream.startswith(rest, self._position):
            self._position += len(rest)
        else:
            self._tail = rest

    def _follow(self, frame: bytes) -> bool:
        """Takes a whole frame of the room; whether it is the one that the room has next."""
        new = self._position == len(self._room.stream)
        if self._room.append(frame) if new else self._room.stream.startswith(frame, self._position):
            self._position += len(frame)
            return True
        self._alone = Listener()
        self._alone.checker = self._room.checker_at(self._position)
        self._alone.answers = self.answers
        return False

    def _listen(self, data: bytes | memoryview) -> None:
        alone = self._alone
        assert alone
        alone.feed(data)
        checker = alone.checker
        level = checker.heard == self._room.checker.heard and checker.due == self._room.checker.due
        if level and not alone.tail and not any(checker.faults(checker.due)):
            self._position = len(self._room.stream)
            self._alone = None
