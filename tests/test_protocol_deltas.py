"""Publications by how they differ, in both forms."""

import json

import msgspec
import pytest

from chatserver.message import Changes, Info, Joined, Left, Message, Notice
from chatserver.protocol import protobuf, wire
from chatserver.protocol.centrifuge import Json, Protobuf
from chatserver.protocol.deltas import Deltas
from tests.test_protocol_fossil import apply

FORMS = [Json(), Protobuf()]
LONG = json.dumps({"text": "the same old story, " * 10})
in_both_forms = pytest.mark.parametrize("form", FORMS, ids=["json", "protobuf"])


def told(form: Json | Protobuf, piece: bytes) -> tuple[bytes, bool]:
    """What a publication has in it, and whether it is a delta."""
    if isinstance(form, Json):
        pub = msgspec.json.decode(piece, type=wire.Reply).push
        assert pub
        assert pub.pub
        return json.loads(bytes(pub.pub.data)).encode(), pub.pub.delta
    (message,) = protobuf.split(piece)
    reply = protobuf.decode(wire.Reply, message)
    assert reply.push
    assert reply.push.pub
    return bytes(reply.push.pub.data), reply.push.pub.delta


def said(data: str) -> Message:
    return Message("ann", None, "lobby", data, 1)


@in_both_forms
def test_the_first_is_whole_and_what_follows_is_a_delta_if_that_is_shorter(form: Json | Protobuf) -> None:
    codec = Deltas(form)
    assert told(form, codec.encode(said(LONG))) == (LONG.encode(), False)
    difference, is_delta = told(form, codec.encode(said(LONG.replace("old", "new", 1))))
    assert is_delta
    assert apply(LONG.encode(), difference) == LONG.replace("old", "new", 1).encode()
    assert told(form, codec.encode(said("1"))) == (b"1", False)
    assert told(form, codec.encode(said(LONG))) == (LONG.encode(), False)


@in_both_forms
def test_who_joins_is_told_the_next_one_whole_and_what_came_before_too(form: Json | Protobuf) -> None:
    codec = Deltas(form)
    codec.encode(said(LONG))
    assert told(form, codec.alone.encode(said(LONG))) == (LONG.encode(), False)
    assert told(form, codec.encode(said(LONG)))[1]
    codec.anew()
    assert told(form, codec.encode(said(LONG))) == (LONG.encode(), False)


@in_both_forms
def test_a_character_is_not_cut_in_two(form: Json | Protobuf) -> None:
    codec = Deltas(form)
    before, after = (json.dumps("x" * 60 + char + "y" * 60, ensure_ascii=False) for char in "\u00e9\u00e8")
    codec.encode(said(before))
    text, is_delta = told(form, codec.encode(said(after)))
    assert (text, is_delta) == (after.encode(), False)


@in_both_forms
def test_everything_else_is_told_as_always(form: Json | Protobuf) -> None:
    codec = Deltas(form)
    info = Info("ann", "c1")
    joined, left = Joined("ann", "lobby", info), Left("ann", "lobby", info)
    for event in (Notice("hi"), joined, Changes((joined, left))):
        assert codec.encode(event) == form.encode(event)
    pieces = [codec.encode(said("1")), codec.encode(said("2"))]
    assert codec.join(pieces) == form.join(pieces)
    assert codec.ping == form.ping
