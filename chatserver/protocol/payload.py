"""Payloads: JSON of any kind that goes through the server as it is."""

import re
from functools import lru_cache
from typing import Final

import msgspec
from msgspec import Raw

from chatserver.errors import BadRequest

DEPTH: Final = 64
"""How many arrays and objects may stand one in the other."""

_BETWEEN_BRACKETS: Final = re.compile(rb'(?:"(?:[^"\\]|\\.)*"|[^"\[\]{}])+')
_ALIKE: Final = bytes.maketrans(b"{}", b"[]")


class _Said(msgspec.Struct):
    body: Raw = Raw()


_said = msgspec.json.Decoder(_Said).decode
_text = msgspec.json.Decoder(str).decode
_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.Encoder().encode


def payload(raw: bytes | Raw) -> str:
    """`raw` on one line, without the space between its tokens; numbers keep their digits.

    Raises `BadRequest` for what is not JSON as RFC 8259 has it, for lone surrogates, and for what is too deep.
    """
    try:
        compact = msgspec.json.format(bytes(raw), indent=-1)
        text = compact.decode()
    except (ValueError, RecursionError):
        raise BadRequest("data is not valid JSON") from None
    if compact.count(b"[") + compact.count(b"{") > DEPTH and _deep(compact):
        raise BadRequest(f"data has more than {DEPTH} levels")
    return text


@lru_cache(64)
def body_of(payload: str) -> str | None:
    """The text `body` of a payload that is an object with one; of several the last.

    A message is asked for it several times on its way.
    """
    if not payload.startswith("{"):
        return None
    body = bytes(_said(payload).body)
    return _text(body) if body.startswith(b'"') else None


def with_body(payload: str, body: str) -> str:
    """`payload` with another `body`; what is no object becomes one."""
    fields = _fields(payload) if payload.startswith("{") else {}
    return _encode(fields | {"body": body}).decode()


def _deep(compact: bytes) -> bool:
    brackets = _BETWEEN_BRACKETS.sub(b"", compact).translate(_ALIKE)
    for _ in range(DEPTH):
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)
