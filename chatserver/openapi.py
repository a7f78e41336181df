"""What the HTTP API takes and gives, and its description in OpenAPI 3.1, made of the same types."""

from functools import cache
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from chatserver import __version__
from chatserver.query import ROOM_PATTERN, USER_PATTERN


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


class History(msgspec.Struct):
    """A page of a room's log, oldest first."""

    epoch: Annotated[str, Meta(description="of the log: offsets of another one mean nothing here")]
    messages: list[Stored]
    position: Annotated[str, Meta(description="of the last of them: `after` for the next page, or for /ws")]


class Failure(msgspec.Struct):
    """What went wrong."""

    code: Annotated[int, Meta(description="as in docs/protocol.md")]
    message: str


class Problem(msgspec.Struct):
    """The answer to what can't be done."""

    error: Failure


_PLACE: Final = {"type": "string", "pattern": "^([0-9a-f]{1,64}:)?[0-9]{1,15}$"}
_ROOM: Final = {
    "name": "room",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": f"^{ROOM_PATTERN}$"},
}


def _parameter(name: str, description: str, schema: dict[str, Any], place: str = "query") -> dict[str, Any]:
    return {"name": name, "in": place, "description": description, "schema": schema}


def _answer(description: str, kind: type) -> dict[str, Any]:
    reference = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {"description": description, "content": {"application/json": {"schema": reference}}}


def _failures(**texts: str) -> dict[str, Any]:
    return {status.removeprefix("_"): _answer(text, Problem) for status, text in texts.items()}


_DENIED: Final = _failures(
    _400="the request is wrong",
    _401="API_TOKEN is set, and this isn't it",
    _403="API_TOKEN isn't set, and the request isn't from this machine",
    _500="a fault of the server",
    _503="the storage doesn't answer",
)


@cache
def document(*, token: bool) -> dict[str, Any]:
    """The description, as `/api/openapi.json` has it. `token`: one is needed."""
    kinds = (Said, Published, History, Problem)
    _, schemas = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    return {
        "openapi": "3.1.0",
        "info": {"title": "chatserver", "version": __version__, "license": {"name": "MIT", "identifier": "MIT"}},
        "paths": {"/api/rooms/{room}/messages": {"get": _read(), "post": _publish()}},
        "components": {"schemas": schemas, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}] if token else [],
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
