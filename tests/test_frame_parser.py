"""Client frames made messages again, without a socket. What ends a connection is also in test_transport."""

from collections.abc import Iterable, Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatserver.errors import (
    Disconnect,
    InvalidText,
    MessageTooBig,
    PeerClosed,
    PolicyViolation,
    ProtocolError,
    UnsupportedData,
)
from chatserver.frame_parser import BINARY, CLOSE, CONTINUATION, PING, TEXT, FrameParser, Item, Other
from tests.fakes import PATIENT

MASK = b"\x12\x34\xab\xcd"


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bytes = MASK) -> bytes:
    """A client's frame."""
    length = len(payload)
    masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
    if length < 126:
        size = bytes([0x80 | length])
    elif length < 1 << 16:
        size = b"\xfe" + length.to_bytes(2, "big")
    else:
        size = b"\xff" + length.to_bytes(8, "big")
    return bytes([fin << 7 | opcode]) + size + mask + masked


def parsed(chunks: Iterable[bytes], most: int = 0) -> list[Item]:
    """All that stands in `chunks`, asked for after each."""
    parser = FrameParser(most, binary=True)
    return [item for chunk in chunks for item in taken(parser, chunk)]


def taken(parser: FrameParser, chunk: bytes) -> Iterator[Item]:
    parser.feed(chunk)
    while (item := parser.next()) is not None:
        yield item


def told(opcode: int, payload: bytes) -> Item:
    """What a whole frame brings."""
    if opcode == TEXT:
        return payload.decode()
    return payload if opcode == BINARY else Other(opcode, payload)


def ending(parser: FrameParser) -> Disconnect | None:
    """What `parser` raises, at last; None if it waits for more."""
    try:
        while parser.next() is not None:
            continue
    except Disconnect as end:
        return end
    return None


MESSAGES = st.one_of(
    st.text(max_size=300).map(lambda text: (TEXT, text.encode())),
    st.binary(max_size=70_000).map(lambda data: (BINARY, data)),
    st.binary(max_size=125).map(lambda data: (PING, data)),
)


@PATIENT
@given(st.lists(MESSAGES, max_size=6), st.data())
def test_where_the_stream_is_cut_makes_no_difference(messages: list[tuple[int, bytes]], data: st.DataObject) -> None:
    stream = b"".join(frame(opcode, payload) for opcode, payload in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    chunks = [stream[start:end] for start, end in pairwise([0, *cuts, len(stream)])]
    assert parsed(chunks) == [told(opcode, payload) for opcode, payload in messages]


@PATIENT
@given(st.text(min_size=1, max_size=40), st.integers(1, 9))
def test_a_message_in_pieces_is_one_message(text: str, size: int) -> None:
    payload = text.encode()
    pieces = [payload[start : start + size] for start in range(0, len(payload), size)]
    stream = frame(TEXT, pieces[0], fin=False) + frame(PING, b"between")
    stream += b"".join(frame(CONTINUATION, piece, fin=False) for piece in pieces[1:]) + frame(CONTINUATION)
    items = parsed([stream])
    assert items[-1] == text
    assert items.count(Other(PING, b"between")) == 1
    assert parsed(bytes([byte]) for byte in stream) == items


FRAMES = st.builds(
    frame,
    st.sampled_from([TEXT, TEXT, TEXT, BINARY, CONTINUATION, PING, CLOSE]),
    st.text(max_size=150).map(str.encode) | st.binary(max_size=130),
    fin=st.sampled_from([True, True, True, False]),
)
STRANGE = st.builds(lambda head, rest: bytes(head) + rest, st.lists(st.integers(0, 255), max_size=12), FRAMES)


def all_told(chunks: list[bytes], whole: bool) -> list[Item | type[Disconnect]]:
    """What stands in `chunks`, and at last what ends it; each is asked whether it is `whole` before it is fed."""
    parser = FrameParser(140, binary=True)
    items: list[Item | type[Disconnect]] = []
    try:
        for chunk in chunks:
            text = parser.whole(chunk) if whole else None
            items.extend(taken(parser, chunk) if text is None else [text])
    except Disconnect as end:
        items.append(type(end))
    return items


@PATIENT
@given(st.lists(FRAMES | FRAMES | STRANGE | st.binary(max_size=9), max_size=5))
def test_who_asks_for_whole_frames_is_told_the_same(chunks: list[bytes]) -> None:
    assert all_told(chunks, whole=True) == all_told(chunks, whole=False)


@pytest.mark.parametrize("length", [0, 1, 125, 126, 65535])
def test_a_whole_frame(length: int) -> None:
    parser = FrameParser(0, binary=False)
    assert parser.whole(frame(TEXT, b"x" * length)) == "x" * length
    assert parser.next() is None


@pytest.mark.parametrize(
    "stream",
    [
        frame(TEXT, b"x" * 65536),
        b"\x81\xff" + frame(TEXT, b"x" * 125),  # as long as its header would be in short
        b"\x81\xfe\0\0xx",  # empty, with a length in long, and half of its key
        b"\x81\xfe\0\0xxx",
        frame(TEXT, b"x")[:-1],
        frame(TEXT, b"x") + b"\x81",
        frame(TEXT, b"x", fin=False),
        frame(BINARY, b"x"),
        frame(TEXT, b"\xff"),
        frame(TEXT, b"x" * 1025),
        b"\x81\x02xxxxxx",
    ],
)
def test_what_is_no_whole_frame_is_to_be_fed(stream: bytes) -> None:
    parser = FrameParser(1024, binary=False)
    assert parser.whole(stream) is None


def test_a_frame_is_not_whole_behind_what_waits_and_in_a_message_and_behind_the_end() -> None:
    text = frame(TEXT, b"x")
    for before in (text[:1], frame(TEXT, fin=False), frame(CLOSE)):
        parser = FrameParser(0, binary=False)
        parser.feed(before)
        ending(parser)
        assert parser.whole(text) is None


def test_binary_messages_that_are_not_welcome() -> None:
    parser = FrameParser(0, binary=False)
    parser.feed(frame(BINARY))
    assert isinstance(ending(parser), UnsupportedData)


@pytest.mark.parametrize("length", [200, 70_000])
def test_a_header_in_two_halves(length: int) -> None:
    stream = frame(TEXT, b"x" * length)
    assert parsed([stream[:3], stream[3:]]) == ["x" * length]


def test_what_is_not_asked_for_waits() -> None:
    parser = FrameParser(0, binary=False)
    parser.feed(frame(TEXT, b"a") * 3)
    assert (parser.next(), parser.waiting) == ("a", 2 * 7)
    assert (parser.next(), parser.next(), parser.next(), parser.waiting) == ("a", "a", None, 0)


@pytest.mark.parametrize(
    ("stream", "kind"),
    [
        (b"\x81\x01\0\0\0\0x", ProtocolError),  # not masked
        (bytes([0xC1, 0x80]) + MASK, ProtocolError),  # a reserved bit
        (frame(TEXT, fin=False) + frame(TEXT), ProtocolError),
        (frame(CONTINUATION), ProtocolError),
        (frame(PING, fin=False), ProtocolError),
        (frame(0xB), ProtocolError),
        (frame(0x3), ProtocolError),
        (frame(CLOSE, b"\x03\xe8\xff"), InvalidText),
        (frame(CLOSE, b"\x03"), ProtocolError),
        (frame(TEXT, b"\xff"), InvalidText),
        (frame(TEXT, b"\xe2\x82", fin=False) + frame(CONTINUATION), InvalidText),
        (bytes([0x81, 0xFE, 0x04, 0x01]) + MASK, MessageTooBig),  # said, not sent
        (frame(TEXT, bytes(1000), fin=False) + frame(CONTINUATION, bytes(25)), MessageTooBig),
        (frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) * 1100, PolicyViolation),
        (frame(CLOSE), PeerClosed),
    ],
)
def test_what_ends_it_is_the_last_that_is_told(stream: bytes, kind: type[Disconnect]) -> None:
    parser = FrameParser(1024, binary=True)
    parser.feed(frame(TEXT, b"before") + stream + frame(TEXT, b"behind"))
    assert parser.next() == "before"
    assert type(ending(parser)) is kind
    parser.feed(frame(TEXT, b"later"))
    assert (parser.next(), parser.waiting) == (None, 0)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (1000, PeerClosed),
        (3000, PeerClosed),
        (4999, PeerClosed),
        (999, ProtocolError),
        (1004, ProtocolError),
        (5000, ProtocolError),
    ],
)
def test_close_codes(code: int, kind: type[Disconnect]) -> None:
    parser = FrameParser(0, binary=False)
    parser.feed(frame(CLOSE, code.to_bytes(2, "big") + b"bye"))
    with pytest.raises(kind) as ended:
        parser.next()
    assert not isinstance(ended.value, PeerClosed) or ended.value.code == code
