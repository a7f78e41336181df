"""Bytes that many sockets share, instead of a copy for each."""

import fcntl
import mmap
import os
from collections.abc import Sequence
from typing import Final

KEPT_BYTES: Final = 512 * 1024
"""So much is put before all of it is let go of. What is under way to a peer stays until it has arrived."""

PIPE_BYTES: Final = 256 * 1024
"""As much as `send_each` can be asked for."""

_ABLE: Final = hasattr(os, "memfd_create") and hasattr(os, "splice")  # as Linux is
_MORE: Final = os.SPLICE_F_MORE | os.SPLICE_F_NONBLOCK if _ABLE else 0


class Pages:
    """Memory of the kernel, by memfd_create(2), that sendfile(2) and splice(2) have sockets refer to.

    They refer to it until the peers have it, so what was put is never changed: the next piece comes behind it, and when
    all is let go of, the kernel keeps the pages that are referred to.
    """

    __slots__ = ("_end", "_pipe", "file")

    def __init__(self) -> None:
        self.file = -1
        self._pipe = -1, -1
        self._end = 0

    def put(self, data: bytes) -> int | None:
        """Where `data` is in `file`; None if there is no such memory, or no more of it."""
        if not _ABLE:
            return None
        try:
            if self.file < 0:
                self._open()
            return self._append(data)
        except OSError:
            return None

    def send_each(self, descriptors: Sequence[int], place: int, size: int, tails: Sequence[bytes]) -> list[int]:
        """Writes what was put at `place`, `PIPE_BYTES` at most, to each of `descriptors`, and one of `tails` behind it,
        if that can be done at once. Returns how many bytes each took; 0 where it took none, or is none.
        """
        file, (source, sink), splice, write, taken = self.file, self._pipe, os.splice, os.write, []
        for descriptor, tail in zip(descriptors, tails, strict=True):
            held = sent = 0
            try:
                held = splice(file, sink, size, place)
                sent = splice(source, descriptor, held, None, None, _MORE)
                if sent == size:
                    sent += write(descriptor, tail)
            except OSError:
                pass
            if sent < held:
                self._empty(held - sent)
            taken.append(sent)
        return taken

    def close(self) -> None:
        """Lets go of everything. It may be used again; a process that was forked must not use its parent's."""
        for descriptor in (self.file, *self._pipe):
            if descriptor >= 0:
                os.close(descriptor)
        self.file, self._pipe, self._end = -1, (-1, -1), 0

    def _open(self) -> None:
        self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.fcntl(self._pipe[1], fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            self.file = os.memfd_create("chatserver")
        except OSError:
            self.close()
            raise

    def _append(self, data: bytes) -> int:
        if self._end >= KEPT_BYTES:
            os.ftruncate(self.file, 0)
            self._end = 0
        place = self._end
        self._end += -(-len(data) // mmap.PAGESIZE) * mmap.PAGESIZE  # a socket refers to pages: to as few as it can be
        if os.pwrite(self.file, data, place) < len(data):
            raise OSError("no more memory")
        return place

    def _empty(self, size: int) -> None:
        while size > 0:
            size -= len(os.read(self._pipe[0], size))
