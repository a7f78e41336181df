"""Messages as Protobuf (proto3), both ways, by the schema."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from chatserver.errors import Malformed
from chatserver.protocol.schema import FIELDS, Field
from chatserver.protocol.wire import Wire, raw

Kind = TypeVar("Kind", bound=Wire)
Write: TypeAlias = Callable[[bytearray, Any], None]
Take: TypeAlias = Callable[[dict[str, Any], Any], None]

_VARINT, _FIXED64, _CHUNK, _GROUP, _END, _FIXED32 = range(6)
_UINT64: Final = 2**64 - 1
_LAST_TAG: Final = 2**32 - 1
_BYTES: Final = [bytes((number,)) for number in range(128)]


def encode(message: Wire) -> bytes:
    """Just `message`, without its length."""
    out = bytearray()
    for name, write in _WRITERS[type(message)]:
        value = getattr(message, name)
        if value:
            write(out, value)
    return bytes(out)


def delimited(message: Wire) -> bytes:
    """`message` with its length in front."""
    data = encode(message)
    return varint(len(data)) + data


def varint(value: int) -> bytes:
    """An unsigned number."""
    if value < 128:
        return _BYTES[value]
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode(kind: type[Kind], data: bytes, onto: Wire | None = None) -> Kind:
    """The message in `data`; what `onto` has and `data` hasn't is taken from there. Raises `Malformed`.

    Fields that we don't know are passed over. Of a field that stands twice the last one counts; messages are merged.
    """
    values = {name: zero() for name, zero in _REQUIRED[kind]} if onto is None else msgspec.structs.asdict(onto)
    _read(data, _TAKERS[kind], values)
    return kind(**values)


def split(data: bytes) -> Iterator[bytes]:
    """Messages that stand one behind the other, each with its length in front. Raises `Malformed`."""
    at = 0
    while at < len(data):
        message, at = _read_chunk(data, at)
        yield message


# Writing


def _write_varint(number: int) -> Write:
    tag = varint(number << 3 | _VARINT)

    def write(out: bytearray, value: int) -> None:
        out += tag
        out += varint(value & _UINT64)  # of a negative number the two's complement

    return write


def _write_chunk(number: int, dump: Callable[[Any], bytes]) -> Write:
    tag = varint(number << 3 | _CHUNK)

    def write(out: bytearray, value: Any) -> None:
        data = dump(value)
        out += tag
        out += varint(len(data))
        out += data

    return write


def _write_list(write_item: Write) -> Write:
    def write(out: bytearray, values: Iterable[Any]) -> None:
        for value in values:
            write_item(out, value)

    return write


def _write_map(number: int, dump: Callable[[Any], bytes]) -> Write:
    write_key, write_value = _write_chunk(1, str.encode), _write_chunk(2, dump)

    def entry(pair: tuple[str, Any]) -> bytes:
        out = bytearray()
        write_key(out, pair[0])
        write_value(out, pair[1])
        return bytes(out)

    write_entries = _write_list(_write_chunk(number, entry))
    return lambda out, values: write_entries(out, values.items())


def _writer(field: Field) -> Write:
    dump = _DUMP.get(field.kind)
    if not dump:
        return _write_varint(field.number)
    if field.repeat == "<":
        return _write_map(field.number, dump)
    write = _write_chunk(field.number, dump)
    return _write_list(write) if field.repeat else write


_DUMP: Final[dict[str, Callable[[Any], bytes]]] = {"s": str.encode, "y": bytes, "M": encode}
_WRITERS: Final = {kind: [(field.name, _writer(field)) for field in fields] for kind, fields in FIELDS.items()}


# Reading


def _read(data: bytes, takers: dict[int, Take], values: dict[str, Any]) -> None:
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        value, at = _read_value(data, at, tag)
        take = takers.get(tag)
        if take:
            take(values, value)
        elif not 8 <= tag <= _LAST_TAG:
            raise Malformed


def _read_value(data: bytes, at: int, tag: int) -> tuple[int | bytes, int]:
    kind = tag & 7
    if kind == _CHUNK:
        return _read_chunk(data, at)
    if kind == _VARINT:
        return _read_varint(data, at)
    if kind == _GROUP:
        return b"", _skip_group(data, at, tag)
    if kind == _FIXED32:
        return _read_bytes(data, at, 4)
    if kind == _FIXED64:
        return _read_bytes(data, at, 8)
    raise Malformed


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    for byte in data[at : at + 10]:
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if value > _UINT64:
                break
            return value, at
        shift += 7
    raise Malformed


def _read_chunk(data: bytes, at: int) -> tuple[bytes, int]:
    length, at = _read_varint(data, at)
    return _read_bytes(data, at, length)


def _read_bytes(data: bytes, at: int, length: int) -> tuple[bytes, int]:
    end = at + length
    if end > len(data):
        raise Malformed
    return data[at:end], end


def _skip_group(data: bytes, at: int, tag: int) -> int:
    opened = [tag]
    while opened:
        tag, at = _read_varint(data, at)
        if tag & 7 == _GROUP:
            opened.append(tag)
        elif tag & 7 != _END:
            _, at = _read_value(data, at, tag)
        elif opened.pop() >> 3 != tag >> 3:
            raise Malformed
    return at


def _load_text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Malformed from None


def _load_uint32(value: int) -> int:
    if value >> 32:
        raise Malformed
    return value


def _load_int64(value: int) -> int:
    return value - (value >> 63 << 64)


def _load_int32(value: int) -> int:
    value = _load_int64(value)
    if not -(2**31) <= value < 2**31:
        raise Malformed
    return value


def _loader(field: Field) -> Callable[..., Any]:
    return partial(decode, field.message) if field.message else _LOAD[field.kind]


def _zero(field: Field) -> Callable[[], Any]:
    """What makes the value of a field that wasn't sent."""
    if field.repeat:
        return list if field.repeat == "[" else dict
    return partial(decode, field.message, b"") if field.message else _ZERO[field.kind]


def _take_entry(field: Field) -> Take:
    name, value = field.name, field._replace(name="value", number=2, repeat="")
    takers, zero = _takers((Field("key", 1, "", "s", None), value)), _zero(value)

    def take(values: dict[str, Any], data: bytes) -> None:
        entry: dict[str, Any] = {"key": "", "value": zero()}
        _read(data, takers, entry)
        values.setdefault(name, {})[entry["key"]] = entry["value"]

    return take


def _taker(field: Field) -> Take:
    name, load = field.name, _loader(field)

    def take(values: dict[str, Any], value: Any) -> None:
        values[name] = load(value)

    def take_item(values: dict[str, Any], value: Any) -> None:
        values.setdefault(name, []).append(load(value))

    def take_message(values: dict[str, Any], value: Any) -> None:
        values[name] = load(value, values.get(name))

    if field.repeat:
        return take_item if field.repeat == "[" else _take_entry(field)
    return take_message if field.message else take


def _refuse(values: dict[str, Any], value: Any) -> None:
    raise Malformed


def _takers(fields: Iterable[Field]) -> dict[int, Take]:
    """By tag. A field that we know may be of no other type."""
    takers: dict[int, Take] = {field.number << 3 | kind: _refuse for field in fields for kind in range(8)}
    for field in fields:
        takers[field.number << 3 | (_CHUNK if field.kind in _DUMP else _VARINT)] = _taker(field)
    return takers


def _required(kind: type[Wire]) -> list[tuple[str, Callable[[], Any]]]:
    names = {field.name for field in msgspec.structs.fields(kind) if field.required}
    return [(field.name, _zero(field)) for field in FIELDS[kind] if field.name in names]


_LOAD: Final[dict[str, Callable[[Any], Any]]] = {
    "u": _load_uint32,
    "U": int,
    "i": _load_int32,
    "I": _load_int64,
    "b": bool,
    "s": _load_text,
    "y": raw,
}
_ZERO: Final[dict[str, Callable[[], Any]]] = {"u": int, "U": int, "s": str}  # of kinds that are ever required
_TAKERS: Final = {kind: _takers(fields) for kind, fields in FIELDS.items()}
_REQUIRED: Final = {kind: _required(kind) for kind in FIELDS}
