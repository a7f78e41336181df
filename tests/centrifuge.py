"""Messages of the Centrifuge protocol for property tests."""

import json
from typing import Any

import msgspec
from hypothesis import strategies as st

from chatserver.protocol.schema import FIELDS, Field
from chatserver.protocol.wire import Wire, raw

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
PAYLOADS = JSON.map(lambda value: json.dumps(value, separators=(",", ":"), ensure_ascii=False))


def numbers(low: int, high: int) -> st.SearchStrategy[int]:
    """Such numbers, and often the outermost."""
    return st.sampled_from([0, low, high]) | st.integers(low, high)


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "u": numbers(0, 2**32 - 1),
    "U": numbers(0, 2**64 - 1),
    "i": numbers(-(2**31), 2**31 - 1),
    "I": numbers(-(2**63), 2**63 - 1),
    "b": st.booleans(),
    "s": TEXT,
    "y": st.just("").map(raw) | PAYLOADS.map(raw),
}


def messages(kind: type[Wire]) -> st.SearchStrategy[Any]:
    """Any messages of this kind."""
    required = {field.name for field in msgspec.structs.fields(kind) if field.required}
    fields = {field.name: values(field, field.name in required) for field in FIELDS[kind]}
    return st.fixed_dictionaries(fields).map(lambda found: kind(**found))


def values(field: Field, required: bool) -> st.SearchStrategy[Any]:
    """What `field` may hold."""
    one = messages(field.message) if field.message else VALUES[field.kind]
    if field.repeat == "<":
        return st.dictionaries(TEXT, one, max_size=3)
    if field.repeat:
        return st.lists(one, max_size=3)
    return st.none() | one if field.message and not required else one


KINDS = {kind.__name__: messages(kind) for kind in FIELDS}
COMMANDS = KINDS["Command"].filter(lambda command: command.request is not None or not command.id)
