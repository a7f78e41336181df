"""Client frames as RFC 6455 section 5.2 lays them out, made messages again."""

import struct
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

from chatserver.errors import (
    InvalidText,
    MessageTooBig,
    PeerClosed,
    PolicyViolation,
    ProtocolError,
    UnsupportedData,
)

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

_FIN, _RESERVED, _OPCODE, _MASKED, _LENGTH = 0x80, 0x70, 0x0F, 0x80, 0x7F
_SHORT, _MEDIUM = 125, 126
_TEXT_WHOLE: Final = _FIN | TEXT
_CODES: Final = frozenset({1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014})
"""Close codes below 3000 that may be sent (RFC 6455 section 7.4, and the registry it makes)."""


class Other(NamedTuple):
    """A frame that brings no message: a ping or pong, or a piece of a message that goes on."""

    opcode: int
    payload: bytes


Item: TypeAlias = str | bytes | Other

Unmask: TypeAlias = Callable[[bytes, bytearray], None]
"""Applies a key of four bytes to a payload, which it changes."""


def unmask(key: bytes, payload: bytearray) -> None:
    """`Unmask` (section 5.3), in one step: as one large number."""
    length = len(payload)
    mask = int.from_bytes((key * (length // 4 + 1))[:length], "little")
    payload[:] = (int.from_bytes(payload, "little") ^ mask).to_bytes(length, "little")


class FrameParser:
    """`feed` takes bytes as they come, `next` gives what stands in them, one frame at a time.

    What isn't asked for isn't parsed: many tiny frames cost nobody else a turn. What is left over costs one copy,
    however small the pieces are in which it comes.
    """

    __slots__ = (
        "_at",
        "_binary",
        "_data",
        "_most",
        "_most_unfinished",
        "_opcode",
        "_over",
        "_parts",
        "_size",
        "_unmask",
        "_wire",
    )

    def __init__(self, max_bytes: int, *, binary: bool, unmask: Unmask = unmask) -> None:
        """`max_bytes`: of a message; 0 is no limit. `binary`: binary messages are welcome."""
        self._unmask = unmask
        self._most = max_bytes
        self._most_unfinished = 2 * max_bytes + 4096
        self._binary = binary
        self._data: bytes | bytearray = b""
        self._at = 0
        self._opcode = 0
        self._parts: list[bytes] | None = None
        self._size = 0
        self._wire = 0
        self._over = False

    @property
    def waiting(self) -> int:
        """Bytes that were fed and not asked for."""
        return len(self._data) - self._at

    def whole(self, data: bytes) -> str | None:
        """The text of a message, if `data`, which has just come, is the one frame of it, no more and no less, as nearly
        always is. None if it isn't, or if anything is wrong with it: then it is to be fed.
        """
        size = len(data)
        if size < 6 or data[0] != _TEXT_WHOLE or self._data or self._over or self._parts is not None:
            return None
        length = data[1] - _MASKED
        if length < _MEDIUM:
            key, payload = data[2:6], bytearray(data[6:])
        elif length == _MEDIUM and size >= 8:
            length = data[2] << 8 | data[3]
            key, payload = data[4:8], bytearray(data[8:])
        else:
            return None
        if len(payload) != length or (length > self._most and self._most):
            return None
        self._unmask(key, payload)
        try:
            return payload.decode()
        except UnicodeDecodeError:
            return None

    def feed(self, data: bytes) -> None:
        """More bytes. Behind a close frame or an error they are thrown away."""
        if self._over:
            return
        if self._at == len(self._data):
            self._data, self._at = data, 0
            return
        if isinstance(self._data, bytes):
            self._data = bytearray(memoryview(self._data)[self._at :])
        else:
            del self._data[: self._at]
        self._at = 0
        self._data += data

    def next(self) -> Item | None:
        """What the next frame brings; None: it hasn't come as a whole.

        Raises `PeerClosed` for a close frame, and the `Disconnect` that is the answer to what the peer did wrong;
        then there is nothing any more.
        """
        data, at = self._data, self._at
        if len(data) - at < 2:
            return None
        try:
            return self._parse(data, at)
        except Exception:
            self._over = True
            self._data, self._at, self._parts = b"", 0, None
            raise

    def _parse(self, data: bytes | bytearray, at: int) -> Item | None:
        first, second, size = data[at], data[at + 1], len(data)
        whole = first == _TEXT_WHOLE and self._parts is None  # nearly all are
        if not whole or second < _MASKED:
            self._check(first, second)
        start, length = at + 6, second & _LENGTH
        if length > _SHORT:
            medium = length == _MEDIUM
            start += 2 if medium else 8
            if start - 4 > size:
                return None
            length = data[at + 2] << 8 | data[at + 3] if medium else int.from_bytes(data[at + 2 : at + 10], "big")
        if self._most and self._size + length > self._most and first & _OPCODE < CLOSE:
            raise MessageTooBig
        end = start + length
        if end > size:
            return None
        payload = bytearray(data[start:end])
        self._unmask(bytes(data[start - 4 : start]), payload)
        if end == size:
            self._data, self._at = b"", 0
        else:
            self._at = end
        return _text(payload) if whole else self._take(first, bytes(payload), end - at)

    def _check(self, first: int, second: int) -> None:
        opcode, length = first & _OPCODE, second & _LENGTH
        if first & _RESERVED or not second & _MASKED:
            raise ProtocolError
        if opcode >= CLOSE:
            if not first & _FIN or length > _SHORT or opcode > PONG:
                raise ProtocolError
        elif opcode > BINARY or (opcode == CONTINUATION) != (self._parts is not None):
            raise ProtocolError
        elif opcode == BINARY and not self._binary:
            raise UnsupportedData

    def _take(self, first: int, payload: bytes, wire: int) -> Item:
        opcode = first & _OPCODE
        if opcode == CLOSE:
            raise _closed(payload)
        if opcode >= PING:
            return Other(opcode, payload)
        if self._parts is None:
            if first & _FIN:
                return payload
            self._parts, self._opcode = [], opcode
        if payload:
            self._parts.append(payload)
        if not first & _FIN:
            self._size += len(payload)
            self._wire += wire
            if self._most and self._wire > self._most_unfinished:
                raise PolicyViolation("fragments without end")
            return Other(CONTINUATION, payload)
        whole = b"".join(self._parts)
        self._parts, self._size, self._wire = None, 0, 0
        return _text(whole) if self._opcode == TEXT else whole


def _text(payload: bytes | bytearray) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise InvalidText from None


def _closed(payload: bytes) -> PeerClosed | ProtocolError | InvalidText:
    """Section 5.5.1."""
    if not payload:
        return PeerClosed(0)
    if len(payload) == 1:
        return ProtocolError()
    (code,) = struct.unpack_from("!H", payload)
    if code not in _CODES and not 3000 <= code < 5000:
        return ProtocolError("bad close code")
    try:
        payload[2:].decode()
    except UnicodeDecodeError:
        return InvalidText()
    return PeerClosed(code)
