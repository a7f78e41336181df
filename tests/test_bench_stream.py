"""The load generator finds what a server does wrong, wherever frames are cut and whoever comes first."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.frames import frames, masked
from bench.stream import BODY_BYTES, Faults, Follower, Listener, Room, body
from chatserver.frames import ping, text
from tests.fakes import PATIENT

SENDERS = (b"00000", b"00007")
MESSAGES = 6
SAID = dict.fromkeys(SENDERS, MESSAGES)
NOTICE = text(b'{"type":1,"body":"alice connected"}')


def frame(sender: bytes, number: int) -> bytes:
    """A message as a server sends it."""
    return text(b'{"type": 2, "body": "%s"}' % body(sender, number, 1_000_000 + number).encode())


STREAM = [frame(sender, number) for number in range(MESSAGES) for sender in SENDERS]


def feed(ear: Listener | Follower, stream: Sequence[bytes], cuts: Sequence[int] = ()) -> None:
    """Feeds the frames, in pieces that end at the cuts."""
    whole = b"".join(stream)
    edges = sorted({0, *(cut % (len(whole) + 1) for cut in cuts), len(whole)})
    for begin, end in pairwise(edges):
        ear.feed(memoryview(whole)[begin:end])


def listener() -> Listener:
    return Listener()


def second() -> Follower:
    """A member of a room whose first member had everything."""
    room = Room()
    feed(Follower(room), STREAM)
    return Follower(room)


def first() -> Follower:
    """A member that nobody is ahead of."""
    return Follower(Room())


EARS = pytest.mark.parametrize("ear_of", [listener, first, second])
Ear = Callable[[], Listener | Follower]


def lose(stream: list[bytes]) -> None:
    del stream[4]


def lose_the_last(stream: list[bytes]) -> None:
    del stream[-1]


def double(stream: list[bytes]) -> None:
    stream.insert(7, stream[4])


def double_the_last(stream: list[bytes]) -> None:
    stream.append(stream[-1])


def swap(stream: list[bytes]) -> None:
    stream[4], stream[6] = stream[6], stream[4]


def corrupt(stream: list[bytes]) -> None:
    stream[4] = stream[4].replace(b".0000002.", b".0000003.", 1)


def cut_off(stream: list[bytes]) -> None:
    stream[-1] = stream[-1][:-1]


def make_up(stream: list[bytes]) -> None:
    stream.append(frame(SENDERS[0], MESSAGES))


@EARS
@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (lose, Faults(lost=1)),
        (lose_the_last, Faults(lost=1)),
        (double, Faults(doubled=1)),
        (double_the_last, Faults(doubled=1)),
        (swap, Faults(reordered=1)),
        (corrupt, Faults(lost=1, corrupted=1)),
        (cut_off, Faults(lost=1, corrupted=1)),
        (make_up, Faults(corrupted=1)),
    ],
)
@PATIENT
@given(st.data())
def test_each_fault_is_found(
    harm: Callable[[list[bytes]], None], found: Faults, ear_of: Ear, data: st.DataObject
) -> None:
    stream = list(STREAM)
    harm(stream)
    ear = ear_of()
    feed(ear, stream, data.draw(st.lists(st.integers(0, 4000), max_size=20)))
    assert ear.faults(SAID) == found


@EARS
@PATIENT
@given(
    cuts=st.lists(st.integers(0, 4000), max_size=40),
    extra=st.lists(st.tuples(st.integers(0, len(STREAM)), st.sampled_from([ping(b"?"), NOTICE, text(b"{}")]))),
)
def test_what_is_no_message_is_no_fault_wherever_frames_are_cut(
    ear_of: Ear, cuts: list[int], extra: list[tuple[int, bytes]]
) -> None:
    stream = list(STREAM)
    for place, other in extra:
        stream.insert(place, other)
    ear = ear_of()
    feed(ear, stream, cuts)
    assert ear.heard == len(STREAM)
    assert ear.faults(SAID) == Faults()
    pongs = {ping(b"?"): masked(10, b"?"), text(b"{}"): masked(1, b"{}")}
    assert ear.answers == [pongs[each] for each in stream if each in pongs]


@PATIENT
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 400)), min_size=40, max_size=200))
def test_members_may_hear_senders_in_different_orders(pieces: list[tuple[int, int]]) -> None:
    """Four members, served by turns, in pieces of any size; the orders of two of them differ from the others'."""
    room = Room()
    ears = [Follower(room) for _ in range(4)]
    by_sender = sorted(STREAM, key=lambda each: SENDERS[1] in each)
    left = [b"".join(STREAM), b"".join(by_sender), b"".join(STREAM), b"".join(reversed_pairs())]
    for number, size in pieces:
        ears[number].feed(left[number][:size])
        left[number] = left[number][size:]
    for ear, rest in zip(ears, left, strict=True):
        ear.feed(rest)
    assert [ear.faults(SAID) for ear in ears] == [Faults()] * 4
    assert [ear.heard for ear in ears] == [len(STREAM)] * 4


def test_what_the_first_member_misses_is_missed_by_nobody_else() -> None:
    room = Room()
    ears = [Follower(room) for _ in range(3)]
    feed(ears[0], [*STREAM[:4], *STREAM[5:]])
    feed(ears[1], STREAM)
    feed(ears[2], STREAM)
    assert [ear.faults(SAID) for ear in ears] == [Faults(lost=1), Faults(), Faults()]


def reversed_pairs() -> list[bytes]:
    return [STREAM[number ^ 1] for number in range(len(STREAM))]


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_frames_of_all_sizes_are_taken_apart(size: int) -> None:
    payload = b"x" * size
    data = text(payload) + ping(b"!")
    assert [(opcode, data[begin:end]) for opcode, begin, end in frames(data)] == [(1, payload), (9, b"!")]
    assert [*frames(text(payload)[:-1])] == []


def test_a_body_has_its_size() -> None:
    assert len(body(b"00001", 9_999_999, 10**15)) == BODY_BYTES
