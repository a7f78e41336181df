"""Protobuf, byte by byte."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatserver.errors import Malformed
from chatserver.protocol import protobuf, wire
from chatserver.protocol.wire import Wire, raw
from tests.centrifuge import COMMANDS, KINDS
from tests.fakes import PATIENT

KNOWN: dict[str, tuple[Wire, str]] = {
    "nothing": (wire.Command(), ""),
    "an empty message in a message": (wire.Command(1, wire.ConnectRequest()), "0801 2200"),
    "a text": (wire.Command(2, subscribe=wire.SubscribeRequest("foo")), "0802 2a05 0a03666f6f"),
    "a payload": (wire.Command(3, publish=wire.PublishRequest("foo", raw("{}"))), "0803 3a09 0a03666f6f 12027b7d"),
    "a two-byte length": (wire.RefreshRequest("a" * 300), "0aac02" + "61" * 300),
    "the largest uint32": (wire.Command(2**32 - 1), "08ffffffff0f"),
    "the largest uint64": (wire.StreamPosition(2**64 - 1), "08ffffffffffffffffff01"),
    "a negative int32": (wire.HistoryRequest(limit=-1), "38ffffffffffffffffff01"),
    "the least int32": (wire.HistoryRequest(limit=-(2**31)), "3880808080f8ffffffff01"),
    "the largest int32": (wire.HistoryRequest(limit=2**31 - 1), "38ffffffff07"),
    "the least int64": (wire.SubscribeRequest(flag=-(2**63)), "7080808080808080808001"),
    "true": (wire.SubscribeRequest(recover=True, join_leave=True), "1801 5801"),
    "beyond the BMP": (wire.RefreshRequest("😀"), "0a04f09f9880"),
    "a map of texts": (wire.ConnectRequest(headers={"a": "b", "": ""}), "3206 0a0161 120162 3204 0a00 1200"),
    "a map of messages": (
        wire.ConnectRequest(subs={"a": wire.SubscribeRequest(offset=5), "b": wire.SubscribeRequest()}),
        "1a07 0a0161 1202 3805 1a05 0a0162 1200",
    ),
    "a list of messages": (
        wire.HistoryResult([wire.Publication(offset=1), wire.Publication()], "e", 1),
        "0a02 3001 0a00 120165 1801",
    ),
    "a field number over 15": (wire.SubscribeResult(positioned=True, was_recovering=True), "5001 6001"),
    "a reply": (
        wire.Reply(1, connect=wire.ConnectResult("c", "v", ping=25, pong=True)),
        "0801 2a0a 0a0163 120176 3819 4001",
    ),
    "a push": (
        wire.Reply(push=wire.Push("r", wire.Publication(raw("1"), wire.ClientInfo("u", "c"), 7, {"k": "v"}))),
        "221a 120172 2215 220131 2a06 0a0175 120163 3007 3a06 0a016b 120176",
    ),
}


@pytest.mark.parametrize(("message", "data"), KNOWN.values(), ids=KNOWN.keys())
def test_a_message_has_these_bytes(message: Wire, data: str) -> None:
    assert protobuf.encode(message).hex() == data.replace(" ", "")
    assert protobuf.decode(type(message), bytes.fromhex(data)) == message


LENIENT: dict[str, tuple[Wire, str]] = {
    "any number but 0 is true": (wire.SubscribeRequest(recover=True), "1802"),
    "zeros that needn't be there": (wire.SubscribeRequest(), "0a00 1200 1800 3200 3800 4200"),
    "a number longer than it needs to be": (wire.Command(1), "08818000"),
    "fields in any order": (wire.SubRefreshRequest("c", "t"), "120174 0a0163"),
    "the last of two numbers": (wire.Command(2), "0801 0802"),
    "the last of two texts": (wire.RefreshRequest("b"), "0a0161 0a0162"),
    "two halves of a message": (
        wire.Command(1, history=wire.HistoryRequest("c", 3, wire.StreamPosition(5, "e"))),
        "0801 5207 0a0163 4202 0805 5207 3803 4203 120165",
    ),
    "two halves of a message with a map": (
        wire.Command(1, wire.ConnectRequest("t", headers={"a": "b", "c": "d"})),
        "0801 220b 0a0174 3206 0a0161 120162 2208 3206 0a0163 120164",
    ),
    "the last of two entries": (wire.ConnectRequest(headers={"a": "c"}), "3206 0a0161 120162 3206 0a0161 120163"),
    "an entry without a key": (wire.ConnectRequest(headers={"": "b"}), "3203 120162"),
    "an entry without a value": (wire.ConnectRequest(headers={"a": ""}), "3203 0a0161"),
    "an entry without a message": (wire.ConnectRequest(subs={"a": wire.SubscribeRequest()}), "1a03 0a0161"),
    "an entry with the value first": (wire.ConnectRequest(headers={"a": "b"}), "3206 120162 0a0161"),
    "an entry with more in it": (wire.ConnectRequest(headers={"a": "b"}), "3208 0a0161 120162 1801"),
    "what a filter is made of": (wire.SubscribeRequest(tf=wire.FilterNode()), "6a05 0a0361 6e64"),
    "an unknown number": (wire.Command(1), "a00601 0801"),
    "unknown 64 bits": (wire.Command(1), "a1060102030405060708 0801"),
    "unknown bytes": (wire.Command(1), "a20603616263 0801"),
    "an unknown group": (wire.Command(1), "a306 0801 a406 0801"),
    "an unknown empty group": (wire.Command(1), "a306a406 0801"),
    "unknown groups in each other": (wire.Command(1), "a306 1b 2205a306ffffff 1c 0d01020304 0801 a406 0801"),
    "unknown 32 bits": (wire.Command(1), "a50601020304 0801"),
    "the largest field number": (wire.Command(1), "f8ffffff0f01 0801"),
}


@pytest.mark.parametrize(("message", "data"), LENIENT.values(), ids=LENIENT.keys())
def test_a_message_may_be_written_otherwise(message: Wire, data: str) -> None:
    assert protobuf.decode(type(message), bytes.fromhex(data)) == message


def test_what_makes_a_message_complete_is_taken_from_all_its_parts() -> None:
    data = bytes.fromhex("0a03 0a0175 0a03 120163")
    assert protobuf.decode(wire.Join, data) == wire.Join(wire.ClientInfo("u", "c"))


HOSTILE: dict[str, tuple[type[Wire], str]] = {
    "half a tag": (wire.Command, "88"),
    "a tag without a value": (wire.Command, "08"),
    "half a number": (wire.Command, "0880"),
    "a number of eleven bytes": (wire.Command, "08" + "80" * 10 + "00"),
    "a number of 65 bits": (wire.StreamPosition, "08ffffffffffffffffff02"),
    "an unknown number of 65 bits": (wire.Command, "a006ffffffffffffffffff02"),
    "a uint32 of 33 bits": (wire.Command, "088080808010"),
    "an int32 of 32 bits": (wire.HistoryRequest, "388080808008"),
    "an int32 of minus 33 bits": (wire.HistoryRequest, "38fffffffff7ffffffff01"),
    "a text that ends too soon": (wire.RefreshRequest, "0a0261"),
    "a text without a length": (wire.RefreshRequest, "0a"),
    "a text of 2 to the 64 bytes": (wire.RefreshRequest, "0affffffffffffffffff01"),
    "a text that is not UTF-8": (wire.RefreshRequest, "0a01ff"),
    "a text with half a character": (wire.RefreshRequest, "0a02f09f"),
    "a surrogate": (wire.RefreshRequest, "0a03eda080"),
    "a key that is not UTF-8": (wire.ConnectRequest, "3206 0a01ff 120162"),
    "a message that ends too soon": (wire.Command, "0801 2203 0a0261"),
    "an entry that ends too soon": (wire.ConnectRequest, "3203 0a0261"),
    "a text as a number": (wire.RefreshRequest, "0801"),
    "a number as a text": (wire.Command, "0a0131"),
    "a number as 64 bits": (wire.Command, "090100000000000000"),
    "a number as 32 bits": (wire.Command, "0d01000000"),
    "a message as a number": (wire.Command, "2001"),
    "a message as a group": (wire.Command, "2324"),
    "a value of an entry as a number": (wire.ConnectRequest, "3205 0a0161 1001"),
    "unknown 64 bits that end too soon": (wire.Command, "a10601020304050607"),
    "unknown 32 bits that end too soon": (wire.Command, "a506010203"),
    "unknown bytes that end too soon": (wire.Command, "a206046162"),
    "a group without an end": (wire.Command, "a306 0801"),
    "a group with another's end": (wire.Command, "a306 ac06"),
    "a group with half a number": (wire.Command, "a306 0880"),
    "groups in the wrong order": (wire.Command, "a306 ab06 a406 ac06"),
    "an end without a group": (wire.Command, "a406"),
    "wire type 6": (wire.Command, "a606"),
    "wire type 7": (wire.Command, "a706"),
    "wire type 6 in a group": (wire.Command, "a306 a606 a406"),
    "field number 0": (wire.Command, "0001"),
    "a field number of 30 bits": (wire.Command, "808080801001"),
}


@pytest.mark.parametrize(("kind", "data"), HOSTILE.values(), ids=HOSTILE.keys())
def test_anything_else_is_malformed(kind: type[Wire], data: str) -> None:
    with pytest.raises(Malformed):
        protobuf.decode(kind, bytes.fromhex(data))


def test_groups_are_passed_over_however_deep() -> None:
    assert protobuf.decode(wire.Command, b"\xa3\x06" * 30_000 + b"\xa4\x06" * 30_000 + b"\x08\x01") == wire.Command(1)


def test_the_longest_number_is_not_read_further_than_ten_bytes() -> None:
    with pytest.raises(Malformed):
        protobuf.decode(wire.Command, b"\x08" + b"\x80" * 60_000)


@PATIENT
@given(COMMANDS, st.data())
def test_a_message_cut_short_is_another_or_malformed(command: wire.Command, data: st.DataObject) -> None:
    whole = protobuf.encode(command)
    with contextlib.suppress(Malformed):
        protobuf.decode(wire.Command, whole[: data.draw(st.integers(0, len(whole)))])


@PATIENT
@given(st.sampled_from(sorted(KINDS)), st.binary())
def test_bytes_are_a_message_or_malformed(kind: str, data: bytes) -> None:
    with contextlib.suppress(Malformed):
        message = protobuf.decode(getattr(wire, kind), data)
        assert protobuf.decode(type(message), protobuf.encode(message)) == message


@PATIENT
@given(st.lists(st.binary(max_size=300)))
def test_messages_with_their_lengths_are_told_apart(messages: list[bytes]) -> None:
    data = b"".join(protobuf.varint(len(message)) + message for message in messages)
    assert list(protobuf.split(data)) == messages


@pytest.mark.parametrize("data", ["05 0801", "80", "ffffffffffffffffff01 00", "8080808080808080808000"])
def test_a_length_beyond_the_end_is_malformed(data: str) -> None:
    messages = protobuf.split(bytes.fromhex("00" + data))
    assert next(messages) == b""
    with pytest.raises(Malformed):
        next(messages)


@pytest.mark.parametrize(("number", "data"), [(0, "00"), (127, "7f"), (128, "8001"), (300, "ac02"), (16384, "808001")])
def test_a_number_has_seven_bits_a_byte(number: int, data: str) -> None:
    assert protobuf.varint(number).hex() == data
