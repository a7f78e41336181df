"""The one place that reaches into aiohttp where it has no public way. A test fails when aiohttp changes it."""

from typing import Any, Protocol


class PayloadParser(Protocol):
    """What aiohttp feeds with the bytes that come after an upgrade."""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Takes bytes; returns whether there is an end, and what stands behind it."""

    def feed_eof(self) -> None:
        """The stream has ended."""


def finished(response: Any) -> bool:
    """Something whole, a message or a control frame, waits for `response.receive`. True also if that can't be told."""
    return bool(getattr(getattr(response, "_reader", None), "_buffer", True))


def tap(protocol: Any, between: PayloadParser) -> PayloadParser | None:
    """Puts `between` in front of the parser that `protocol` feeds, and returns that parser.

    None, and nothing done, where aiohttp keeps it somewhere else: then floods of fragments are not noticed, and only
    whole frames are signs of life.
    """
    parser: PayloadParser | None = getattr(protocol, "_payload_parser", None)
    if parser is not None:
        protocol._payload_parser = between
    return parser
