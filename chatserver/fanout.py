"""Writes to many sockets, mostly the same bytes, which is most of what a chat server does."""

import os
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Final

from chatserver.pages import PIPE_BYTES, Pages
from chatserver.uring import DATA_BYTES, Ring

MANY: Final = 16
"""From so many sockets on one system call writes to all: 16 cost as much either way, 100 a tenth less. Or, from
`SHARED_BYTES` on, they share pages instead of having a copy each."""

SHARED_BYTES: Final = DATA_BYTES
SPLICED_BYTES: Final = 12 * 1024
"""The same, where something of their own follows. A copy costs the more the farther the receiver's processor is from
ours: 24 kB took 7.5 to 16.5 us, and 5.8 to 7.5 us shared; 4 kB take as long either way when the processors are near."""

SHARERS: Final = 100
"""So many share the same pages: who counts how many do is in one place of memory, to which our processor adds while the
receivers' take away. In a closed loop of 1,000 that was a twentieth of all time."""

_PAGES: Final = Pages()
_RING: Final = Ring()
os.register_at_fork(after_in_child=_PAGES.close)
os.register_at_fork(after_in_child=_RING.close)


class _Changes:
    """Of any transport's descriptor: whoever keeps some may do so until `count` is another."""

    count = 0


CHANGES = _Changes()


def prepare() -> bool:
    """Makes what `write_all` needs before anybody waits for it. Whether one system call can write to many sockets."""
    return _RING.send([], b"") is not None


def write_all(descriptors: Sequence[int], data: bytes) -> list[int]:
    """Writes `data` to each of `descriptors`, sockets that don't block. Returns how many bytes each took; 0 where it
    took none, or is none.

    Between two writes there is no bytecode: a Python call for each took a fifth of the time, as the kernel leaves
    nothing of the interpreter in the processor's nearest caches. Nor are there system calls, if they can be had as one.
    """
    if len(descriptors) < MANY:
        return _copy(descriptors, data)
    if len(data) >= SHARED_BYTES:
        return _share(descriptors, data)
    taken = _RING.send(descriptors, data)
    return _copy(descriptors, data) if taken is None else taken


def _copy(descriptors: Sequence[int], data: bytes) -> list[int]:
    return _taken(map(os.write, descriptors, repeat(data)))


def _share(descriptors: Sequence[int], data: bytes) -> list[int]:
    taken: list[int] = []
    for start in range(0, len(descriptors), SHARERS):
        some = descriptors[start : start + SHARERS]
        place = _PAGES.put(data)
        if place is None:
            taken += _copy(some, data)
        else:
            taken += _taken(map(os.sendfile, some, repeat(_PAGES.file), repeat(place), repeat(len(data))))
    return taken


def write_each(descriptors: Sequence[int], data: bytes, tails: Sequence[bytes]) -> list[int]:
    """`write_all` for those of whom each gets one of `tails` behind `data`, which isn't copied for it."""
    size = len(data)
    place = _PAGES.put(data) if SPLICED_BYTES <= size <= PIPE_BYTES and len(descriptors) >= MANY else None
    if place is None:
        return _taken(map(os.writev, descriptors, zip(repeat(data), tails)))
    return _PAGES.send_each(descriptors, place, size, tails)


def _taken(writes: Iterator[int]) -> list[int]:
    taken: list[int] = []
    while True:
        try:
            taken.extend(writes)  # what came before an error stays
        except OSError:
            taken.append(0)
        else:
            return taken
