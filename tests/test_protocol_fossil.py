"""Deltas lead from one payload to the next."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chatserver.protocol.fossil import MOST_BYTES, checksum, delta
from tests.fakes import PATIENT

DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~"


def apply(source: bytes, made: bytes) -> bytes:
    """What a client makes of it, by the format's description."""
    length, made = number(made, b"\n")
    target = b""
    while True:
        digits = 0
        while chr(made[digits]) in DIGITS:
            digits += 1
        value, (kind, made) = decoded(made[:digits]), (made[digits : digits + 1], made[digits + 1 :])
        if kind == b":":
            target, made = target + made[:value], made[value:]
        elif kind == b"@":
            place, made = number(made, b",")
            target += source[place : place + value]
        else:
            assert (kind, made) == (b";", b"")
            assert (len(target), checksum(target)) == (length, value)
            return target


def number(made: bytes, end: bytes) -> tuple[int, bytes]:
    digits, found, rest = made.partition(end)
    assert found
    return decoded(digits), rest


def decoded(digits: bytes) -> int:
    value = 0
    for digit in digits.decode():
        value = value * 64 + DIGITS.index(digit)
    return value


def test_what_stays_the_same_is_copied() -> None:
    text = b'{"k":"%b"}' % (b"a" * 48)
    assert delta(text, text) == b"t\nt@0,15qHtg;"


def test_a_change_at_both_ends_of_something_long_is_short() -> None:
    middle = bytes(range(256)) * 20
    made = delta(b"before" + middle + b"old end", b"after that" + middle + b"new")
    assert made
    assert len(made) < 60
    assert apply(b"before" + middle + b"old end", made) == b"after that" + middle + b"new"


@pytest.mark.parametrize(
    ("source", "target"),
    [(b"", b""), (b"abc", b"abd"), (b"a" * 40, b"b" * 40), (b"a" * 40, b"x"), (b"a" * (MOST_BYTES + 1), b"a" * 100)],
)
def test_what_would_not_be_shorter_is_none(source: bytes, target: bytes) -> None:
    assert delta(source, target) is None


parts = st.lists(st.sampled_from([bytes([n]) * 20 + b"%d" % n for n in range(6)]) | st.binary(max_size=40), max_size=12)


@PATIENT
@given(parts.map(b"".join), parts.map(b"".join))
@example(b"x" * 33, b"x" * 65)
def test_a_delta_makes_the_target_of_the_source(source: bytes, target: bytes) -> None:
    made = delta(source, target)
    if made is not None:
        assert len(made) < len(target)
        assert apply(source, made) == target


@pytest.mark.parametrize(
    ("data", "expected"), [(b"", 0), (b"a", 0x61000000), (b"abcd", 0x61626364), (b"\xff" * 8, 0xFFFFFFFE)]
)
def test_the_checksum_is_of_words(data: bytes, expected: int) -> None:
    assert checksum(data) == expected
