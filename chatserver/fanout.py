"""Writes to many sockets, mostly the same bytes, which is most of what a chat server does."""

import os
from collections.abc import Iterable, Sequence


class _Changes:
    """Of any transport's descriptor: whoever keeps some may do so until `count` is another."""

    count = 0


CHANGES = _Changes()


def write_all(descriptors: Sequence[int], data: Iterable[bytes]) -> list[int]:
    """Writes to each of `descriptors`, which must not block, the next of `data`. Returns how many bytes each took; 0
    where it took none, or is none.

    Between two writes there is no bytecode: a Python call for each took a fifth of the time, as the kernel leaves
    nothing of the interpreter in the processor's nearest caches.
    """
    sent: list[int] = []
    writes = map(os.write, descriptors, data)
    while True:
        try:
            sent.extend(writes)  # what came before an error stays
        except OSError:
            sent.append(0)
        else:
            return sent
