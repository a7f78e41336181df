"""Sends to many sockets in one system call, by io_uring(7) of Linux."""

import errno
import mmap
import os
import platform
import socket
import struct
import sys
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Final

DATA_BYTES: Final = 4096
"""As much as `Ring.send` can be asked for."""

ENTRIES: Final = 2048
"""So many sends in one system call."""

_SETUP: Final = 425  # on all machines that are younger than it
_ENTER: Final = 426
_SUBMIT_ALL: Final = 1 << 7  # IORING_SETUP_, from Linux 5.18 on
_FEATURES: Final = 1 << 0 | 1 << 11  # IORING_FEAT_: SINGLE_MMAP, CQE_SKIP
_ENTRIES_AT: Final = 0x10000000  # IORING_OFF_SQES

# struct io_uring_params, in words of four bytes
_PARAMS_WORDS: Final = 30
_CQ_ENTRIES, _FLAGS, _FEATURES_FOUND = 1, 2, 5
_SQ_HEAD, _SQ_TAIL, _SQ_ARRAY = 10, 11, 16  # places in the mapping, in bytes
_CQ_HEAD, _CQ_TAIL, _CQES = 20, 21, 25

_SQE: Final = struct.Struct("=BBHiQQIIQ24x")  # struct io_uring_sqe
_SQE_WORDS: Final = _SQE.size // 4
_SQE_FILE: Final = 1
_SQE_SIZE: Final = 6
_SEND: Final = 26  # IORING_OP_
_SKIP_SUCCESS: Final = 1 << 6  # IOSQE_CQE_: only what fails is told of
_SEND_FLAGS: Final = 0x100 | 0x4000 | 0x40  # MSG_: WAITALL, by which to take a part is to fail; NOSIGNAL; DONTWAIT

_CQE_WORDS: Final = 4  # struct io_uring_cqe: the place twice as wide, the result, flags
_CQE_RESULT: Final = 2


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
                self._tried = True
                self._queues = _opened()
            return self._queues.send(descriptors, data) if self._queues else None
        finally:
            self._lock.release()

    def close(self) -> None:
        """Lets go of everything. It may be used again; a process that was forked must not use its parent's."""
        queues = self._queues
        self._lock, self._queues, self._tried = threading.Lock(), None, False
        if queues:
            queues.close()


class _Queues:
    """The submission queue and the completion queue, SQ and CQ, which are shared with the kernel by io_uring_setup(2).

    The sends are over when the system call that submits them is, as they don't wait: one buffer does for all. Entries
    are used in turn, and differ in nothing but the socket and the number of bytes.
    """

    __slots__ = (
        "_cq_head",
        "_cq_mask",
        "_cq_tail",
        "_cqes",
        "_data",
        "_file",
        "_files",
        "_ring",
        "_sizes",
        "_sq_head",
        "_sq_tail",
    )

    def __init__(self) -> None:
        """Raises `OSError` or `ValueError` if there can be none."""
        params = array("I", [0]) * _PARAMS_WORDS
        params[_FLAGS] = _SUBMIT_ALL
        self._file = _call(_SETUP, ENTRIES, params.buffer_info()[0])
        try:
            if params[_FEATURES_FOUND] & _FEATURES != _FEATURES:
                raise OSError(errno.ENOSYS, "an io_uring that tells of each send")
            self._map(params)
            self._fill()
        except BaseException:
            self.close()
            raise

    def _map(self, params: Sequence[int]) -> None:
        size = max(params[_SQ_ARRAY] + 4 * ENTRIES, params[_CQES] + 4 * _CQE_WORDS * params[_CQ_ENTRIES])
        self._ring = memoryview(mmap.mmap(self._file, size)).cast("I")
        self._sq_head, self._sq_tail, at = (params[name] // 4 for name in (_SQ_HEAD, _SQ_TAIL, _SQ_ARRAY))
        self._cq_head, self._cq_tail, self._cqes = (params[name] // 4 for name in (_CQ_HEAD, _CQ_TAIL, _CQES))
        self._cq_mask = params[_CQ_ENTRIES] - 1
        self._ring[at : at + ENTRIES] = array("I", range(ENTRIES))

    def _fill(self) -> None:
        buffer = array("B", bytes(DATA_BYTES))
        self._data = memoryview(buffer)
        entries = memoryview(mmap.mmap(self._file, ENTRIES * _SQE.size, offset=_ENTRIES_AT))
        for place in range(ENTRIES):
            sqe = _SEND, _SKIP_SUCCESS, 0, -1, 0, buffer.buffer_info()[0], 0, _SEND_FLAGS, place
            _SQE.pack_into(entries, place * _SQE.size, *sqe)
        words = entries.cast("i")
        self._files, self._sizes = words[_SQE_FILE::_SQE_WORDS], words[_SQE_SIZE::_SQE_WORDS]

    def send(self, descriptors: Sequence[int], data: bytes) -> list[int]:
        size, files, done = len(data), array("i", descriptors), 0
        self._data[:size] = array("B", data)
        self._ring[self._cq_head] = self._ring[self._cq_tail]  # of sends that an exception interrupted
        taken = [size] * len(files)
        while done < len(files):
            place = self._ring[self._sq_head] % ENTRIES
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
        self._ring[self._sq_tail] = _after(self._ring[self._sq_head], count)
        try:
            return _call(_ENTER, self._file, count)
        except OSError:
            return 0

    def _failures(self) -> Iterator[tuple[int, int]]:
        """Which entries failed, and how many bytes were taken nevertheless."""
        ring = self._ring
        while (head := ring[self._cq_head]) != ring[self._cq_tail]:
            at = self._cqes + _CQE_WORDS * (head & self._cq_mask)
            result = ring[at + _CQE_RESULT]
            yield ring[at], 0 if result >> 31 else result
            ring[self._cq_head] = _after(head, 1)


def _after(number: int, count: int) -> int:
    """Heads and tails have 32 bits."""
    return number + count & 0xFFFFFFFF


def _opened() -> _Queues | None:
    """None if there are none here that can be relied on."""
    try:
        queues = _Queues()
    except (OSError, ValueError):
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
        with ours, theirs:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # it is more, but little
            taken = [*queues.send([ours.fileno()], bytes(1000)), *queues.send([ours.fileno()] * 9, bytes(DATA_BYTES))]
            ours.shutdown(socket.SHUT_WR)
            return any(0 < count < DATA_BYTES for count in taken[1:]) and _size(theirs) == sum(taken)
    except OSError:
        return False


def _size(sock: socket.socket) -> int:
    """Of all that has arrived."""
    sock.setblocking(False)
    size = 0
    while data := sock.recv(1 << 16):
        size += len(data)
    return size


def _libc() -> Callable[..., int] | None:
    """Its syscall(2), which lets other threads run meanwhile. None if there is none, or its numbers aren't known."""
    if sys.platform != "linux" or platform.machine() not in {"x86_64", "aarch64"}:
        return None
    try:
        import ctypes  # some Pythons have none

        syscall = ctypes.CDLL(None, use_errno=True).syscall
    except (ImportError, OSError):
        return None
    syscall.argtypes = (ctypes.c_long,) * 7
    syscall.restype = ctypes.c_long
    return syscall


_syscall = _libc()


def _call(number: int, *given: int) -> int:
    """A system call. Raises `OSError`."""
    if _syscall is None:
        raise OSError(errno.ENOSYS, "no system calls by number")
    result = _syscall(number, *given, *(0,) * (6 - len(given)))
    if result < 0:
        from ctypes import get_errno

        raise OSError(get_errno(), os.strerror(get_errno()))
    return result
