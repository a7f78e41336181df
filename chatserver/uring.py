"""Sends to many sockets in one system call, by io_uring(7) of Linux."""

import ctypes
import errno
import mmap
import os
import platform
import socket
import struct
import sys
import threading
from array import array
from collections.abc import Iterator, Sequence
from typing import Final

DATA_BYTES: Final = 4096
"""As much as `Ring.send` can be asked for."""

ENTRIES: Final = 2048
"""So many sends in one system call."""

_ABLE: Final = sys.platform == "linux" and platform.machine() in {"x86_64", "aarch64"}
_SETUP: Final = 425
_ENTER: Final = 426
_SUBMIT_ALL: Final = 1 << 7  # IORING_SETUP_: those behind one that fails, too
_FEATURES: Final = 1 << 0 | 1 << 11  # IORING_FEAT_: SINGLE_MMAP, CQE_SKIP
_ENTRIES_AT: Final = 0x10000000  # IORING_OFF_SQES

_ENTRY: Final = struct.Struct("=BBHiQQIIQ24x")  # struct io_uring_sqe
_SEND: Final = 26  # IORING_OP_
_SKIP_SUCCESS: Final = 1 << 6  # IOSQE_CQE_: only what fails is told of
_FLAGS: Final = 0x100 | 0x4000 | 0x40  # MSG_: WAITALL, by which to take a part is to fail; NOSIGNAL, DONTWAIT

_WORDS: Final = _ENTRY.size // 4
_FILE_WORD: Final = 1
_SIZE_WORD: Final = 6


class _Submissions(ctypes.Structure):
    """struct io_sqring_offsets."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("head", "tail", "mask", "entries", "flags", "dropped", "array", "_")),
        ("address", ctypes.c_uint64),
    )


class _Completions(ctypes.Structure):
    """struct io_cqring_offsets."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("head", "tail", "mask", "entries", "overflow", "cqes", "flags", "_")),
        ("address", ctypes.c_uint64),
    )


class _Params(ctypes.Structure):
    """struct io_uring_params."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("sq_entries", "cq_entries", "flags", "cpu", "idle", "features")),
        ("_", ctypes.c_uint32 * 4),
        ("sq", _Submissions),
        ("cq", _Completions),
    )


class Ring:
    """A queue of sends, made when it is first needed.

    A send costs what the kernel does for it, and nothing else: no system call, and nothing of the interpreter between
    two of them.
    """

    __slots__ = ("_lock", "_queues", "_tried")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: _Queues | None = None
        self._tried = False

    def send(self, descriptors: Sequence[int], data: bytes) -> list[int] | None:
        """Sends `data`, `DATA_BYTES` at most, to each of `descriptors`, in this order, without waiting. Returns how
        many bytes each took; 0 where it took none, or is no socket. None if that can't be done here, or another thread
        is at it: then nothing was sent.
        """
        if not self._lock.acquire(blocking=False):
            return None
        try:
            if not self._tried:
                self._tried, self._queues = True, _opened()
            return self._queues.send(descriptors, data) if self._queues else None
        finally:
            self._lock.release()

    def close(self) -> None:
        """Lets go of everything. It may be used again; a process that was forked must not use its parent's."""
        if self._queues:
            self._queues.close()
        self._lock, self._queues, self._tried = threading.Lock(), None, False


class _Queues:
    """What is shared with the kernel, by io_uring_setup(2). Raises `OSError` if it can't be.

    The sends are over when the system call that submits them is, as they don't wait: one buffer does for all. Entries
    are used in turn, and differ in nothing but the socket and the number of bytes.
    """

    def __init__(self) -> None:
        given = _Params(flags=_SUBMIT_ALL)
        self._file = _call(_SETUP, ENTRIES, ctypes.addressof(given))
        try:
            if given.features & _FEATURES != _FEATURES:
                raise OSError(errno.ENOSYS, "an io_uring that tells of each send")
            self._map(given)
        except BaseException:
            self.close()
            raise

    def _map(self, given: _Params) -> None:
        size = max(given.sq.array + 4 * ENTRIES, given.cq.cqes + 16 * given.cq_entries)
        self._ring = memoryview(mmap.mmap(self._file, size)).cast("I")
        self._head, self._tail = given.sq.head // 4, given.sq.tail // 4
        self._told, self._told_tail = given.cq.head // 4, given.cq.tail // 4
        self._cqe, self._mask = given.cq.cqes // 4, given.cq_entries - 1
        at = given.sq.array // 4
        self._ring[at : at + ENTRIES] = array("I", range(ENTRIES))
        buffer = ctypes.create_string_buffer(DATA_BYTES)
        self._data = memoryview(buffer).cast("B")
        entries = memoryview(mmap.mmap(self._file, ENTRIES * _ENTRY.size, offset=_ENTRIES_AT))
        for place in range(ENTRIES):
            entry = _SEND, _SKIP_SUCCESS, 0, -1, 0, ctypes.addressof(buffer), 0, _FLAGS, place
            _ENTRY.pack_into(entries, place * _ENTRY.size, *entry)
        words = entries.cast("i")
        self._files, self._sizes = words[_FILE_WORD::_WORDS], words[_SIZE_WORD::_WORDS]

    def send(self, descriptors: Sequence[int], data: bytes) -> list[int]:
        size, files, done = len(data), array("i", descriptors), 0
        self._data[:size] = data
        taken = [size] * len(files)
        while done < len(files):
            place = self._ring[self._head] % ENTRIES
            some = files[done : done + ENTRIES - place]
            self._files[place : place + len(some)] = some
            self._sizes[place : place + len(some)] = array("i", (size,)) * len(some)
            count = self._submit(len(some))
            for failed, sent in self._failures():
                taken[done + failed - place] = sent
            done += count
            if count < len(some):
                taken[done:] = [0] * (len(files) - done)
                break
        return taken

    def close(self) -> None:
        os.close(self._file)

    def _submit(self, count: int) -> int:
        """Returns how many of the next entries were: fewer if the kernel has no memory for more."""
        self._ring[self._tail] = self._ring[self._head] + count & 0xFFFFFFFF
        try:
            return _call(_ENTER, self._file, count)
        except OSError:
            return 0

    def _failures(self) -> Iterator[tuple[int, int]]:
        """Places, and how many bytes were taken nevertheless."""
        ring = self._ring
        while (head := ring[self._told]) != ring[self._told_tail]:
            at = self._cqe + 4 * (head & self._mask)
            result = ring[at + 2]
            yield ring[at], 0 if result >> 31 else result
            ring[self._told] = head + 1 & 0xFFFFFFFF


def _opened() -> _Queues | None:
    """None if there are none here that can be relied on."""
    if not _ABLE:
        return None
    try:
        queues = _Queues()
    except OSError:
        return None
    if _counts(queues):
        return queues
    queues.close()
    return None


def _counts(queues: _Queues) -> bool:
    """Whether as much arrives as is said to have been taken, by a socket that can't take all: a kernel that loses count
    would tear what goes to a slow peer.
    """
    try:
        ours, theirs = socket.socketpair()
    except OSError:
        return False
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # it is more, but little
        taken = [*queues.send([ours.fileno()], bytes(1000)), *queues.send([ours.fileno()] * 9, bytes(DATA_BYTES))]
        ours.shutdown(socket.SHUT_WR)
        theirs.setblocking(False)
        arrived = 0
        while data := theirs.recv(1 << 16):
            arrived += len(data)
    return arrived == sum(taken)


def _call(number: int, *given: int) -> int:
    """A system call. Raises `OSError`."""
    result: int = _syscall(number, *given, *(0,) * (6 - len(given)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


if _ABLE:
    _syscall = ctypes.CDLL(None, use_errno=True).syscall  # lets other threads run meanwhile
    _syscall.argtypes = (ctypes.c_long,) * 7
    _syscall.restype = ctypes.c_long
