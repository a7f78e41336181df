"""A field that is `null` is one that isn't there; a payload that is `null` is a payload."""

from typing import Any, Final

import msgspec
from msgspec import Raw

from chatserver.protocol.schema import FIELDS, Field
from chatserver.protocol.wire import Wire

_FIELDS: Final = {kind: {field.name: field for field in fields} for kind, fields in FIELDS.items()}

_read = msgspec.json.Decoder(dict[str, Raw]).decode


def without_nulls(kind: type[Wire], message: str | bytes | Raw) -> dict[str, Any]:
    """The fields in the JSON object `message` that `kind` has, down to all messages in it that commands have.

    Of a field that stands twice the last one counts. Raises `ValueError` for what is no object.
    """
    known, found = _FIELDS[kind], _read(message)
    return {name: _value(known[name], value) for name, value in found.items() if _is_there(known.get(name), value)}


def _is_there(field: Field | None, value: Raw) -> bool:
    return field is not None and (field.kind == "y" or bytes(value) != b"null")


def _value(field: Field, value: Raw) -> Any:
    if field.repeat:
        entries = {key: entry for key, entry in _read(value).items() if bytes(entry) != b"null"}
        return {key: without_nulls(field.message, entry) if field.message else entry for key, entry in entries.items()}
    return without_nulls(field.message, value) if field.message else value
