"""How what is said is kept in a log, and told again."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatserver.channels import Channels, Namespace
from chatserver.errors import BadRequest, BodyInvalid, BodyTooLong
from chatserver.message import Info, Message, Publish
from chatserver.records import data_of, entry_for, entry_of, message_of, messages_of, meta_of, said
from chatserver.store import Entry, Record
from tests.fakes import PATIENT

INFO = Info("ann", "c1", '{"name":"Ann"}', '{"role":"mod"}')


def kept(entry: Entry, offset: int = 1) -> Record:
    return Record(offset, 0, entry.kind, entry.user, entry.data, entry.key, entry.meta)


def test_a_text_is_kept_as_json() -> None:
    assert data_of('a "b"\n') == '{"body":"a \\"b\\"\\n"}'


@pytest.mark.parametrize(
    ("body", "data", "expected"),
    [
        ("hi", '{"n":1.0,"body":"hi"}', '{"n":1.0,"body":"hi"}'),
        ("HI", '{"n":1.0,"body":"hi"}', '{"n":1.0,"body":"HI"}'),
        ("", "[1.0]", "[1.0]"),
        ("", '{"body":7}', '{"body":7}'),
        ("was nothing", '{"body":7}', '{"body":"was nothing"}'),
    ],
)
def test_a_payload_is_kept_as_it_was_said_unless_its_text_was_changed(body: str, data: str, expected: str) -> None:
    assert data_of(body, data) == expected


@PATIENT
@given(
    st.builds(
        Message,
        user=st.text(max_size=5),
        body=st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
        room=st.just("lobby"),
        offset=st.integers(1, 1 << 50),
        info=st.none() | st.sampled_from([INFO, Info("", "c2"), Info("ann", "", chan="[1]")]),
        tags=st.none() | st.dictionaries(st.text("ab"), st.text("cd"), min_size=1),
    )
)
def test_what_is_said_is_told(message: Message) -> None:
    told = message_of(kept(entry_for(message), message.offset), "lobby")
    assert isinstance(told, Message)
    assert (told.user, told.body, told.offset) == (message.user, message.body, message.offset)
    assert (told.info, told.tags) == (message.info, message.tags)
    assert told.data == data_of(message.body or "")


@given(st.builds(Publish, body=st.text(max_size=9), room=st.just("kitchen"), key=st.none() | st.just("k")))
def test_what_a_client_says_is_kept_as_any_other_message_is(command: Publish) -> None:
    for info in (INFO, Info("", "c2", '{"name":"bob"}'), INFO):
        message = Message("ann", command.body, command.room, info=info)
        assert entry_of(command, "ann", info) == entry_for(message, command.key)


def test_what_has_no_sender_and_no_tags_needs_no_space_for_them() -> None:
    assert meta_of(None) is None
    assert meta_of(None, {}) is None


@pytest.mark.parametrize("data", ['{"text":"a"}', '{"body":7}', "[]", "null", '"body"'])
def test_what_has_no_text_is_told_without(data: str) -> None:
    assert message_of(Record(1, 0, "message", "ann", data)) == Message("ann", None, data=data, offset=1)


@pytest.mark.parametrize(
    "record",
    [
        Record(1, 0, "edit", "alice", '{"body":"a","of":3}'),
        Record(1, 0, "message", "alice", "no JSON"),
        Record(1, 0, "message", "alice", ""),
    ],
)
def test_what_is_no_message_is_not_told(record: Record) -> None:
    assert message_of(record) is None


def test_positions_are_told_where_they_are_to_be() -> None:
    record = Record(7, 0, "message", "ann", "1")
    for history, offset in (("subscriber", 7), ("nobody", 0)):
        channel = Channels({"": Namespace(history=history)}).find("lobby")  # type: ignore[arg-type]
        assert [message.offset for message in messages_of([record], channel)] == [offset]


def test_a_payload_becomes_a_command() -> None:
    assert said("red", b'{ "body": "hi", "n": 1.0 }', 100, key="k") == Publish(
        "hi", "red", '{"body":"hi","n":1.0}', "k"
    )
    assert said("red", b"[1,\n2]", 100) == Publish("", "red", "[1,2]")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.just("body") | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


@PATIENT
@given(JSON | st.builds(lambda text: {"body": text}, st.text(max_size=9)), st.booleans())
def test_a_payload_is_kept_byte_for_byte_but_for_the_space_between(value: object, ascii_only: bool) -> None:
    raw = json.dumps(value, separators=(",", ":"), ensure_ascii=ascii_only)
    try:
        command = said("red", raw.encode(), 100)
    except (BadRequest, BodyInvalid, UnicodeEncodeError):  # what is no text, or none that may be said
        return
    assert entry_of(command, "ann", INFO).data == raw
    assert said("red", f" {raw}\n".encode(), 100).body == command.body


def test_what_is_just_a_text_is_a_command_with_just_a_text() -> None:
    assert said("red", b'{"body":"hi"}', 100) == said("red", b' { "body" : "hi" }', 100) == Publish("hi", "red")
    assert said("red", b'{"body":"h\\u0069"}', 100) == Publish("hi", "red", '{"body":"h\\u0069"}')
    assert said("red", b'{"body":"a","body":"hi"}', 100) == Publish("hi", "red", '{"body":"a","body":"hi"}')


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"", BadRequest),
        (b"{", BadRequest),
        (b"NaN", BadRequest),
        (b'"\\ud800"', BadRequest),
        (b'{"body":"a', BadRequest),
        (b'{"body":"\xff"}', BadRequest),
        (b'{"body":"a","b":' + b"[" * 5000, BadRequest),
        (b'{"body":"a\\u0000"}', BodyInvalid),
        (b'{"body":"abcd"}', BodyTooLong),
    ],
)
def test_what_nobody_may_say_is_refused(raw: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        said("red", raw, 3)
