"""What the HTTP API takes and gives, and its description in OpenAPI 3.1, made of the same types."""

from collections.abc import Iterable
from functools import cache
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from chatserver import __version__
from chatserver.channels import ROOM_PATTERN
from chatserver.message import Position
from chatserver.query import USER_PATTERN
from chatserver.records import speaker
from chatserver.server_api_types import SIGNATURES, ClientInfo, Failure, client_info
from chatserver.store import Record


class Said(msgspec.Struct, forbid_unknown_fields=True):
    """What is to be published."""

    body: Annotated[str, Meta(description="the text, without U+0000", extra_json_schema={"pattern": "^[^\\u0000]*$"})]
    user: Annotated[str, Meta(description="in whose name", pattern=f"^{USER_PATTERN}$")] = "server"


class Published(msgspec.Struct):
    """Where a message stands in its room's log."""

    epoch: str
    offset: int
    time: Annotated[int, Meta(description="milliseconds since 1970")]


class Stored(msgspec.Struct):
    """An event in a room's log."""

    offset: int
    time: Annotated[int, Meta(description="milliseconds since 1970")]
    user: str
    kind: str
    data: msgspec.Raw
    key: str | None
    info: Annotated[ClientInfo | None, Meta(description="who said it, as members are told; null for a program")]


class History(msgspec.Struct):
    """A page of a room's log, oldest first."""

    epoch: Annotated[str, Meta(description="of the log: offsets of another one mean nothing here")]
    messages: list[Stored]
    position: Annotated[str, Meta(description="of the last of them: `after` for the next page, or for /ws")]


def history(epoch: str, records: Iterable[Record], place: int) -> History:
    """A page of `records`, behind the last of which, or where they would be, is the offset `place`."""
    return History(epoch, [_stored(record) for record in records], str(Position(epoch, place)))


def _stored(record: Record) -> Stored:
    data, info = msgspec.Raw(record.data.encode()), speaker(record)
    who = client_info(info) if info else None
    return Stored(record.offset, record.time, record.user, record.kind, data, record.key, who)


class Problem(msgspec.Struct):
    """The answer to what can't be done."""

    error: Failure


MODE_HEADER: Final = "X-Centrifugo-Error-Mode"

_REFUSED: Final = {
    "400": "the body isn't what is described here; refused",
    "404": "there is no such namespace",
    "413": "the body, or a text in it, is too long",
    "416": "that position is none of this log",
    "500": "a fault of the server, or the storage doesn't answer",
}
"""What else than 200 there is for methods: the body alone decides, or, if they are asked for, the errors."""

_PLACE: Final = {"type": "string", "pattern": "^([0-9a-f]{1,64}:)?[0-9]{1,15}$"}
_ROOM: Final = {
    "name": "room",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": f"^{ROOM_PATTERN}$"},
}


def _parameter(name: str, description: str, schema: dict[str, Any], place: str = "query") -> dict[str, Any]:
    return {"name": name, "in": place, "description": description, "schema": schema}


def _reference(kind: type) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _answer(description: str, *kinds: type) -> dict[str, Any]:
    schemas = [_reference(kind) for kind in kinds]
    return _content(description, schemas[0] if len(schemas) == 1 else {"anyOf": schemas})


def _content(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _failures(**texts: str) -> dict[str, Any]:
    return {status.removeprefix("_"): _answer(text, Problem) for status, text in texts.items()}


_SECURITY: Final = {
    "token": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}

_DENIED: Final = _failures(
    _400="the request is wrong",
    _401="API_TOKEN is set, and this isn't it",
    _404="there is no such namespace",
    _403="API_TOKEN isn't set, and the request isn't from this machine",
    _500="a fault of the server",
    _503="the storage doesn't answer",
)


@cache
def document(*, token: bool) -> dict[str, Any]:
    """The description, as `/api/openapi.json` has it. `token`: one is needed."""
    kinds = {Said, Published, History, Problem, Failure, *(kind for pair in SIGNATURES.values() for kind in pair)}
    _, schemas = msgspec.json.schema_components(sorted(kinds, key=str), ref_template="#/components/schemas/{name}")
    return {
        "openapi": "3.1.0",
        "info": {"title": "chatserver", "version": __version__, "license": {"name": "MIT", "identifier": "MIT"}},
        "paths": {
            "/api/rooms/{room}/messages": {"get": _read(), "post": _publish()},
            **{f"/api/{name}": {"post": _call(name)} for name in SIGNATURES},
        },
        "components": {"schemas": schemas, "securitySchemes": _SECURITY},
        "security": [{name: []} for name in _SECURITY] if token else [],
    }


def _read() -> dict[str, Any]:
    return {
        "operationId": "history",
        "summary": "A page of a room's history, oldest first: the last one, or what is after or before a position",
        "parameters": [
            _ROOM,
            _parameter("after", "the first messages after this offset, or EPOCH:OFFSET", _PLACE),
            _parameter("before", "the last messages before this offset, or EPOCH:OFFSET", _PLACE),
            _parameter("limit", "1 to 200; what is outside is taken for the nearest of them", {"type": "integer"}),
        ],
        "responses": {
            "200": _answer("the page", History),
            **_DENIED,
            **_failures(_410="what follows that position isn't kept, or it is none of this log: read from scratch"),
        },
    }


def _publish() -> dict[str, Any]:
    key = {"type": "string", "pattern": "^[!-~]{1,128}$"}
    reference = {"$ref": "#/components/schemas/Said"}
    return {
        "operationId": "publish",
        "summary": "Says something in a room; the answer comes when it is stored",
        "parameters": [
            _ROOM,
            _parameter("Idempotency-Key", "the same again is stored once, and answered alike", key, "header"),
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": reference}}},
        "responses": {
            "201": _answer("stored", Published),
            **_DENIED,
            **_failures(_408="the body doesn't come", _413="the text is too long"),
        },
    }


def _call(name: str) -> dict[str, Any]:
    asked, given = SIGNATURES[name]
    mode = {"type": "string", "examples": ["transport"]}
    return {
        "operationId": f"server_{name}",
        "summary": (asked.__doc__ or "").removesuffix("."),
        "parameters": [
            _parameter(
                MODE_HEADER, "with `transport` an error has an HTTP status, and is the whole answer", mode, "header"
            )
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": _reference(asked)}}},
        "responses": {
            "200": _content("done, or refused with an error", _result(name, given)),
            **_failures(
                _401=_DENIED["401"]["description"],
                _403=_DENIED["403"]["description"],
                _408="the body doesn't come",
            ),
            **{status: _answer(text, Failure, Problem) for status, text in _REFUSED.items()},
        },
    }


def _result(name: str, given: type) -> dict[str, Any]:
    if name == "batch":
        return _reference(given)
    result = {"type": "object", "properties": {"result": _reference(given)}, "required": ["result"]}
    return {"anyOf": [result, _reference(Problem)]}
