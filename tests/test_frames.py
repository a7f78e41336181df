"""Frames against the bytes that RFC 6455 section 5.2 asks for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatserver import frames
from chatserver.errors import Disconnect, GoingAway, PeerClosed, PolicyViolation
from tests.fakes import PATIENT, split

HEADERS = [
    (0, "81 00"),
    (1, "81 01"),
    (125, "81 7d"),
    (126, "81 7e 00 7e"),
    (65535, "81 7e ff ff"),
    (65536, "81 7f 00 00 00 00 00 01 00 00"),
]


@pytest.mark.parametrize(("length", "header"), HEADERS)
def test_text_has_the_shortest_header_for_its_length(length: int, header: str) -> None:
    assert frames.text(b"x" * length) == bytes.fromhex(header) + b"x" * length


def test_binary_has_its_own_opcode() -> None:
    assert frames.binary(b"hi") == b"\x82\x02hi"


def test_ping_is_empty_or_carries_its_payload() -> None:
    assert frames.ping() == b"\x89\x00"
    assert frames.ping(b"hi") == b"\x89\x02hi"
    assert frames.ping(b"x" * 125) == b"\x89\x7d" + b"x" * 125


def test_pong_carries_the_payload_of_the_ping() -> None:
    assert frames.pong(b"") == b"\x8a\x00"
    assert frames.pong(b"hi") == b"\x8a\x02hi"


def test_close_carries_code_and_reason() -> None:
    assert frames.close(GoingAway()) == b"\x88\x11\x03\xe9server shutdown"
    assert frames.close(PeerClosed(4321)) == b"\x88\x08\x10\xe1closed"


@pytest.mark.parametrize(
    ("reason", "kept"),
    [
        ("x" * 122, 122),
        ("x" * 123, 123),
        ("x" * 124, 123),
        ("é" * 61 + "x", 123),
        ("é" * 62, 122),
        ("x" + "é" * 61, 123),
        ("€" * 41, 123),
        ("€" * 42, 123),
        ("x" + "€" * 41, 121),
        ("😀" * 31, 120),
        ("xxx" + "😀" * 30, 123),
    ],
)
def test_a_long_reason_is_cut_after_the_last_character_that_fits(reason: str, kept: int) -> None:
    expected = reason.encode()[:kept]
    assert frames.close(Disconnect(reason)) == bytes((0x88, 2 + kept)) + b"\x03\xf0" + expected


@PATIENT
@given(st.text(min_size=1, alphabet=st.characters(exclude_categories=["Cs"])))
def test_a_close_frame_has_as_much_of_the_reason_as_fits(reason: str) -> None:
    ((opcode, payload),) = split(frames.close(Disconnect(reason)))
    kept = payload[2:].decode()
    assert opcode == 8
    assert len(payload) <= 125
    assert reason.startswith(kept)
    assert kept == reason or len((kept + reason[len(kept)]).encode()) > 123


@PATIENT
@given(st.lists(st.binary(max_size=300)))
def test_frames_in_a_row_can_be_told_apart(payloads: list[bytes]) -> None:
    assert split(b"".join(map(frames.text, payloads))) == [(1, payload) for payload in payloads]


def test_a_reason_that_is_no_text_is_replaced() -> None:
    assert frames.close(PolicyViolation("no \ud800")) == b"\x88\x06\x03\xf0no ?"
