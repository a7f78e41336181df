"""Deltas: how to get from one payload to the next, in the format of Fossil (reference: its "Delta Format").

A delta is the target's length, then commands, then the target's checksum. `COUNT@OFFSET,` copies bytes of the source,
`COUNT:BYTES` brings new ones. Numbers are in base 64.
"""

from typing import Final

BLOCK: Final = 16
"""The least that is worth a copy, and how far apart the places are that the source is known by."""

MOST_BYTES: Final = 16 * 1024
"""Of a payload for which a delta is looked for: a millisecond or two of the processor."""

_DIGITS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~"


def delta(source: bytes, target: bytes) -> bytes | None:
    """What makes `target` of `source`; None if that is no less than `target` itself."""
    if max(len(source), len(target)) > MOST_BYTES:
        return None
    commands = b"".join(_commands(source, target))
    made = b"%b\n%b%b;" % (_number(len(target)), commands, _number(checksum(target)))
    return made if len(made) < len(target) else None


def checksum(data: bytes) -> int:
    """The sum of its words of 32 bits, the most significant byte first, filled up with zeros."""
    padded = data + bytes(-len(data) % 4)
    return sum(int.from_bytes(padded[at : at + 4], "big") for at in range(0, len(padded), 4)) & 0xFFFF_FFFF


def _commands(source: bytes, target: bytes) -> list[bytes]:
    places: dict[bytes, int] = {}
    for place in range(0, len(source) - BLOCK + 1, BLOCK):
        places.setdefault(source[place : place + BLOCK], place)
    commands: list[bytes] = []
    done = at = 0
    while at + BLOCK <= len(target):
        found = places.get(target[at : at + BLOCK])
        if found is None:
            at += 1
            continue
        start, place, count = _longest(source, target, found, at, done)
        commands += [*_insert(target[done:start]), b"%b@%b," % (_number(count), _number(place))]
        done = at = start + count
    return [*commands, *_insert(target[done:])]


def _longest(source: bytes, target: bytes, place: int, at: int, done: int) -> tuple[int, int, int]:
    """The longest run that is the same around `place` and `at`, not before `done`: where it starts in the target and in
    the source, and its length.
    """
    end, stop = at + BLOCK, place + BLOCK
    while end < len(target) and stop < len(source) and target[end] == source[stop]:
        end, stop = end + 1, stop + 1
    while at > done and place > 0 and target[at - 1] == source[place - 1]:
        at, place = at - 1, place - 1
    return at, place, end - at


def _insert(data: bytes) -> list[bytes]:
    return [b"%b:%b" % (_number(len(data)), data)] if data else []


def _number(value: int) -> bytes:
    digits = ""
    while value or not digits:
        digits = _DIGITS[value & 63] + digits
        value >>= 6
    return digits.encode()
