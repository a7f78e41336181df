"""Writes to many sockets, mostly the same bytes, which is most of what a chat server does."""

import os
from collections.abc import Iterator, Sequence
from itertools import repeat


class _Changes:
    """Of any transport's descriptor: whoever keeps some may do so until `count` is another."""

    count = 0


CHANGES = _Changes()


def write_all(descriptors: Sequence[int], data: bytes) -> list[int]:
    """Writes `data` to each of `descriptors`, which must not block. Returns how many bytes each took; 0 where it took
    none, or is none.

    Between two writes there is no bytecode: a Python call for each took a fifth of the time, as the kernel leaves
    nothing of the interpreter in the processor's nearest caches.
    """
    return _taken(map(os.write, descriptors, repeat(data)))


def write_each(descriptors: Sequence[int], data: bytes, tails: Sequence[bytes]) -> list[int]:
    """`write_all` for those of whom each gets one of `tails` behind `data`, which isn't copied for it."""
    return _taken(map(os.writev, descriptors, zip(repeat(data), tails)))


def _taken(writes: Iterator[int]) -> list[int]:
    taken: list[int] = []
    while True:
        try:
            taken.extend(writes)  # what came before an error stays
        except OSError:
            taken.append(0)
        else:
            return taken
