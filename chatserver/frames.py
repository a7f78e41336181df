"""Server frames as RFC 6455 section 5.2 lays them out: unmasked and never fragmented."""

from chatserver.errors import REASON_BYTES, Disconnect

_TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x81, 0x82, 0x88, 0x89, 0x8A

_SHORT_TEXT = [bytes((_TEXT, length)) for length in range(126)]


def text(payload: bytes) -> bytes:
    """A whole text message; `payload` is UTF-8."""
    length = len(payload)
    return (_SHORT_TEXT[length] if length < 126 else _header(_TEXT, length)) + payload


def binary(payload: bytes) -> bytes:
    """A whole binary message."""
    return _header(_BINARY, len(payload)) + payload


def ping(payload: bytes = b"") -> bytes:
    """A ping of at most 125 bytes (section 5.5.2)."""
    return _header(_PING, len(payload)) + payload


def pong(payload: bytes) -> bytes:
    """The answer to a ping: the same payload (section 5.5.3)."""
    return _header(_PONG, len(payload)) + payload


def close(end: Disconnect) -> bytes:
    """A close frame with code and reason (section 5.5.1); the reason is cut at a character's end."""
    reason = str(end).encode(errors="replace")[:REASON_BYTES].decode(errors="ignore").encode()
    return _header(_CLOSE, 2 + len(reason)) + end.code.to_bytes(2, "big") + reason


def _header(first: int, length: int) -> bytes:
    if length < 126:
        return bytes((first, length))
    if length < 65536:
        return bytes((first, 126)) + length.to_bytes(2, "big")
    return bytes((first, 127)) + length.to_bytes(8, "big")
