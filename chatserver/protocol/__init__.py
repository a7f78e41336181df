"""Codecs: frames to commands, events to frames. Pure, without I/O or state, so that literal frames test them."""

from chatserver.protocol.codec import Chained, Codec
from chatserver.protocol.simple import Simple, check_body

__all__ = ["Chained", "Codec", "Simple", "check_body"]
