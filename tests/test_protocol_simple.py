"""The simple protocol, frame by frame."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatserver.errors import (
    BodyInvalid,
    BodyTooLong,
    ChatError,
    NotJSON,
    ServerOnly,
    UnknownType,
    WrongShape,
)
from chatserver.message import Changes, Event, Joined, Left, Message, Notice, Publish, Refused
from chatserver.protocol import Simple
from chatserver.protocol.simple import NAMES
from tests.fakes import PATIENT, split

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]))

GOOD = {
    "as in the manual": ('{"type":2,"body":"hi"}', "hi"),
    "as in the original": ('{"type": 2, "body": "text"}', "text"),
    "space around": (' \n\t{"type":2,"body":"hi"}\r\n ', "hi"),
    "fields in the other order": ('{"body":"hi","type":2}', "hi"),
    "empty body": ('{"type":2,"body":""}', ""),
    "line breaks": (r'{"type":2,"body":"a\nb\r\n"}', "a\nb\r\n"),
    "beyond the BMP": ('{"type":2,"body":"😀"}', "😀"),
    "surrogate pair escape": (r'{"type":2,"body":"\ud83d\ude00"}', "😀"),
    "escaped key": (r'{"t\u0079pe":2,"body":"hi"}', "hi"),
    "U+FFFF and BOM inside": ('{"type":2,"body":"\ufeff\uffff"}', "\ufeff\uffff"),
    "body that looks like a frame": (r'{"type":2,"body":"{\"type\":1}"}', '{"type":1}'),
    "duplicate key: the last one counts": ('{"type":1,"body":"a","type":2,"body":"b"}', "b"),
}

BAD: dict[str, tuple[str, type[ChatError]]] = {
    "empty": ("", NotJSON),
    "space": (" ", NotJSON),
    "word": ("hello", NotJSON),
    "NaN": ("NaN", NotJSON),
    "NaN as type": ('{"type":NaN,"body":"a"}', NotJSON),
    "NaN as body": ('{"type":2,"body":NaN}', NotJSON),
    "Infinity": ('{"type":Infinity,"body":"a"}', NotJSON),
    "byte order mark": ('\ufeff{"type":2,"body":"a"}', NotJSON),
    "trailing word": ('{"type":2,"body":"a"}x', NotJSON),
    "trailing comma": ('{"type":2,"body":"a"},', NotJSON),
    "comma before the end": ('{"type":2,"body":"a",}', NotJSON),
    "two objects": ('{"type":2,"body":"a"}{"type":2,"body":"a"}', NotJSON),
    "two lines": ('{"type":2,"body":"a"}\n{"type":2,"body":"a"}', NotJSON),
    "cut off": ('{"type":2,"body":"a"', NotJSON),
    "single quotes": ("{'type':2,'body':'a'}", NotJSON),
    "comment": ('/**/{"type":2,"body":"a"}', NotJSON),
    "leading zero": ('{"type":02,"body":"a"}', NotJSON),
    "raw NUL": ('{"type":2,"body":"\0"}', NotJSON),
    "raw line break": ('{"type":2,"body":"a\nb"}', NotJSON),
    "high surrogate escape": (r'{"type":2,"body":"\ud800"}', NotJSON),
    "low surrogate escape": (r'{"type":2,"body":"\udc00x"}', NotJSON),
    "surrogate escape in a key": (r'{"type":2,"body":"a","\ud800":1}', NotJSON),
    "null": ("null", WrongShape),
    "true": ("true", WrongShape),
    "number": ("2", WrongShape),
    "string": ('"hi"', WrongShape),
    "empty array": ("[]", WrongShape),
    "array": ('[2,"hi"]', WrongShape),
    "empty object": ("{}", WrongShape),
    "no body": ('{"type":2}', WrongShape),
    "no type": ('{"body":"a"}', WrongShape),
    "extra field": ('{"type":2,"body":"a","user":"eve"}', WrongShape),
    "extra empty field": ('{"type":2,"body":"a","":0}', WrongShape),
    "other case": ('{"Type":2,"body":"a"}', WrongShape),
    "type true": ('{"type":true,"body":"a"}', WrongShape),
    "type 1.0": ('{"type":1.0,"body":"a"}', WrongShape),
    "type 2.0": ('{"type":2.0,"body":"a"}', WrongShape),
    "type 2e0": ('{"type":2e0,"body":"a"}', WrongShape),
    "type 1e999": ('{"type":1e999,"body":"a"}', WrongShape),
    "type as string": ('{"type":"2","body":"a"}', WrongShape),
    "type null": ('{"type":null,"body":"a"}', WrongShape),
    "type array": ('{"type":[2],"body":"a"}', WrongShape),
    "type of 5000 digits": (f'{{"type":{"9" * 5000},"body":"a"}}', WrongShape),
    "type of minus 5000 digits": (f'{{"type":-{"9" * 5000},"body":"a"}}', WrongShape),
    "body null": ('{"type":2,"body":null}', WrongShape),
    "body true": ('{"type":2,"body":true}', WrongShape),
    "body number": ('{"type":2,"body":2}', WrongShape),
    "body array": ('{"type":2,"body":["a"]}', WrongShape),
    "body object": ('{"type":2,"body":{"text":"a"}}', WrongShape),
    "body null in a system message": ('{"type":1,"body":null}', WrongShape),
    "the last duplicate is wrong": ('{"type":2,"type":"2","body":"a"}', WrongShape),
    "deep array": ("[" * 100_000, WrongShape),
    "deep object": ('{"type":' * 100_000, WrongShape),
    "deep body": ('{"type":2,"body":' + "[" * 100_000, WrongShape),
    "deep extra field": ('{"type":2,"body":"a","x":' + "[" * 100_000, WrongShape),
    "type 1": ('{"type":1,"body":"a"}', ServerOnly),
    "the last duplicate is 1": ('{"type":2,"type":1,"body":"a"}', ServerOnly),
    "type 0": ('{"type":0,"body":"a"}', UnknownType),
    "type -0": ('{"type":-0,"body":"a"}', UnknownType),
    "type 3": ('{"type":3,"body":"a"}', UnknownType),
    "type -2": ('{"type":-2,"body":"a"}', UnknownType),
    "type 2 to the 64": ('{"type":18446744073709551616,"body":"a"}', UnknownType),
    "type 2 to the 64 plus 2": ('{"type":18446744073709551618,"body":"a"}', UnknownType),
    "type of 30 digits": (f'{{"type":{10**30},"body":"a"}}', UnknownType),
    "escaped NUL": (r'{"type":2,"body":"a\u0000b"}', BodyInvalid),
}


@pytest.mark.parametrize(("frame", "body"), GOOD.values(), ids=GOOD.keys())
def test_a_chat_frame_is_a_publish(frame: str, body: str) -> None:
    assert Simple().decode(frame) == Publish(body)


@pytest.mark.parametrize(("frame", "kind"), BAD.values(), ids=BAD.keys())
def test_anything_else_is_refused(frame: str, kind: type[ChatError]) -> None:
    with pytest.raises(ChatError) as refusal:
        Simple(32768).decode(frame)
    assert type(refusal.value) is kind


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        ("x", "not valid JSON"),
        ('{"type":2,"body":"a","user":"eve"}', "Object contains unknown field `user`"),
        ('{"type":"2","body":"a"}', "Expected `int`, got `str` - at `$.type`"),
        ('{"type":3,"body":"a"}', "unknown type 3"),
        ('{"type":1,"body":"a"}', "type 1 is for the server"),
    ],
)
def test_a_refusal_says_what_is_wrong(frame: str, text: str) -> None:
    with pytest.raises(ChatError) as refusal:
        Simple().decode(frame)
    assert str(refusal.value) == text


def test_a_refusal_that_quotes_a_field_is_short_however_long_the_field_is() -> None:
    with pytest.raises(WrongShape) as refusal:
        Simple().decode(f'{{"{"é" * 5000}":2}}')
    assert len(str(refusal.value)) <= 250


def test_a_refusal_that_quotes_a_type_is_short_however_long_the_type_is() -> None:
    with pytest.raises(UnknownType) as refusal:
        Simple().decode(f'{{"type":{"9" * 4000},"body":"a"}}')
    assert len(str(refusal.value)) <= 250


@PATIENT
@given(TEXT)
def test_any_text_is_a_publish_or_refused(frame: str) -> None:
    with contextlib.suppress(ChatError):
        assert isinstance(Simple().decode(frame), Publish)


@PATIENT
@given(
    st.dictionaries(
        st.sampled_from(["type", "body", "user"]),
        st.sampled_from([1, 2, 3, 2.0]) | st.none() | st.booleans() | st.integers() | TEXT | st.lists(TEXT),
    )
)
def test_an_object_is_a_publish_if_and_only_if_it_has_type_2_and_a_text(fields: dict[str, object]) -> None:
    kind, body = fields.get("type"), fields.get("body")
    good = fields.keys() == {"type", "body"} and type(kind) is int and kind == 2 and isinstance(body, str)
    try:
        assert Simple().decode(json.dumps(fields)) == Publish(str(body))
        assert good
    except BodyInvalid:
        assert good
        assert "\0" in str(body)
    except ChatError:
        assert not good


@pytest.mark.parametrize("body", ["x" * 8, "é" * 4, "€€xx", "😀😀", "x" * 7, ""])
def test_a_body_of_as_many_bytes_as_allowed_passes(body: str) -> None:
    assert Simple(8).decode(json.dumps({"type": 2, "body": body}, ensure_ascii=False)) == Publish(body)


@pytest.mark.parametrize("body", ["x" * 9, "é" * 4 + "x", "€€€", "😀😀x", "😀😀😀"])
@pytest.mark.parametrize("escaped", [True, False])
def test_a_body_of_a_byte_more_than_allowed_is_too_long(body: str, escaped: bool) -> None:
    with pytest.raises(BodyTooLong, match="body too long, at most 8 bytes"):
        Simple(8).decode(json.dumps({"type": 2, "body": body}, ensure_ascii=escaped))


def test_the_limit_is_of_the_body_not_of_the_frame() -> None:
    assert Simple(2).decode('   {"type": 2, "body": "\\u0061\\u0062"}   ') == Publish("ab")


def test_without_a_limit_a_body_is_as_long_as_it_likes() -> None:
    assert Simple().decode(json.dumps({"type": 2, "body": "😀" * 100_000})) == Publish("😀" * 100_000)


def test_a_long_body_with_a_nul_is_invalid_first() -> None:
    with pytest.raises(BodyInvalid):
        Simple(1).decode(r'{"type":2,"body":"aaa\u0000"}')


@PATIENT
@given(TEXT, st.integers(1, 50))
def test_a_body_passes_if_and_only_if_it_fits(body: str, limit: int) -> None:
    body = body.replace("\0", "")
    try:
        Simple(limit).decode(json.dumps({"type": 2, "body": body}))
        passed = True
    except BodyTooLong:
        passed = False
    assert passed == (len(body.encode()) <= limit)


@pytest.mark.parametrize(
    ("event", "wire"),
    [
        (Message("alice", "hi"), b'\x81\x16{"type":2,"body":"hi"}'),
        (Message("alice", ""), b'\x81\x14{"type":2,"body":""}'),
        (Message("alice", 'é"\\\n'), b'\x81\x1c{"type":2,"body":"\xc3\xa9\\"\\\\\\n"}'),
        (Joined("alice"), b'\x81\x23{"type":1,"body":"alice connected"}'),
        (Left("alice"), b'\x81\x26{"type":1,"body":"alice disconnected"}'),
        (Changes((Joined("alice"), Left("alice"))), b'\x81\x37{"type":1,"body":"alice connected; alice disconnected"}'),
        (Notice("maintenance at 9"), b'\x81\x24{"type":1,"body":"maintenance at 9"}'),
        (Refused(410, "not valid JSON"), b'\x81\x2f{"type":1,"body":"error: not valid JSON (410)"}'),
    ],
)
def test_an_event_has_these_bytes_on_the_wire(event: Event, wire: bytes) -> None:
    assert Simple().encode(event) == wire


@PATIENT
@given(TEXT)
def test_what_was_decoded_is_encoded_with_exactly_type_and_body(body: str) -> None:
    body = body.replace("\0", "")
    codec = Simple()
    command = codec.decode(json.dumps({"type": 2, "body": body}))
    ((opcode, payload),) = split(codec.encode(Message("alice", command.body)))
    fields: list[tuple[str, Any]] = json.loads(payload, object_pairs_hook=list)
    assert opcode == 1
    assert fields == [("type", 2), ("body", body)]


@PATIENT
@given(TEXT, TEXT)
def test_every_event_is_one_text_frame_of_type_and_body(user: str, text: str) -> None:
    together = Changes((Joined(user), Left(text), Joined(text)))
    for event in (Message(user, text), Joined(user), Left(user), together, Notice(text), Refused(400, text)):
        ((opcode, payload),) = split(Simple().encode(event))
        assert opcode == 1
        fields = json.loads(payload)
        assert fields.keys() == {"type", "body"}
        assert fields["type"] == (2 if isinstance(event, Message) else 1)
        assert isinstance(fields["body"], str)


def body(*changes: Joined | Left, crowd: int = 0) -> Any:
    """What is told of all of them together."""
    ((_, payload),) = split(Simple().encode(Changes(changes, crowd=crowd)))
    return json.loads(payload)["body"]


PEOPLE = [f"u{number}" for number in range(200)]


@pytest.mark.parametrize(
    ("count", "who"),
    [
        (1, "u0"),
        (2, "u0 and u1"),
        (3, "u0, u1 and u2"),
        (NAMES, "u0, u1, u2, u3, u4, u5, u6, u7, u8 and u9"),
        (NAMES + 1, "u0, u1, u2, u3, u4, u5, u6, u7, u8, u9 and 1 other"),
        (NAMES + 2, "u0, u1, u2, u3, u4, u5, u6, u7, u8, u9 and 2 others"),
        (200, "u0, u1, u2, u3, u4, u5, u6, u7, u8, u9 and 190 others"),
    ],
)
def test_of_those_who_come_or_go_together_the_first_are_named_and_all_counted(count: int, who: str) -> None:
    assert body(*map(Joined, PEOPLE[:count])) == f"{who} connected"
    assert body(*map(Left, PEOPLE[:count])) == f"{who} disconnected"


def test_what_happened_first_is_told_first() -> None:
    ann, bob = "ann", "bob"
    assert body(Joined(ann), Left(bob), Joined(bob)) == "ann and bob connected; bob disconnected"
    assert body(Left(bob), Joined(ann), Joined(bob)) == "bob disconnected; ann and bob connected"


def test_in_a_crowd_only_numbers_are_told() -> None:
    come, gone = map(Joined, PEOPLE[:37]), map(Left, PEOPLE[:5])
    assert body(*come, *gone, crowd=5032) == "37 connected, 5 disconnected; 5032 here"
    assert body(Left("ann"), crowd=1001) == "1 disconnected; 1001 here"


def test_what_the_server_says_cannot_be_sent_by_a_client() -> None:
    codec = Simple()
    ((_, payload),) = split(codec.encode(Joined("alice")))
    with pytest.raises(ServerOnly):
        codec.decode(payload.decode())


@PATIENT
@given(st.lists(st.binary(), min_size=1))
def test_join_puts_pieces_one_behind_the_other(pieces: list[bytes]) -> None:
    assert Simple().join(pieces) == b"".join(pieces)
