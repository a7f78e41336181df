"""The Centrifuge protocol in conversations: tests/golden/, each in JSON and in Protobuf; see tests/play.py."""

import re
from pathlib import Path

import pytest

from chatserver.protocol import protobuf
from tests import raw
from tests.play import FORMS, JSON, PROTOBUF, Peer, converse, running

CONVERSATIONS = sorted((Path(__file__).parent / "golden").glob("*.txt"))


@pytest.mark.parametrize(
    ("path", "form"),
    [(path, form) for path in CONVERSATIONS for form in FORMS if form == JSON or not path.stem.endswith("-in-json")],
    ids=lambda value: value if isinstance(value, str) else value.stem,
)
async def test_a_conversation_goes_as_it_is_written(path: Path, form: str) -> None:
    await converse(path.read_text(), form, path.name)


def test_there_are_conversations() -> None:
    """A renamed folder would otherwise pass."""
    assert len(CONVERSATIONS) >= 14


class Hex:
    """A client that speaks bytes: nothing of ours translates, but for where a message ends."""

    def __init__(self, peer: Peer) -> None:
        self.client = peer.client
        self.heard: list[bytes] = []

    def say(self, text: str) -> None:
        self.client.send(raw.BINARY, bytes.fromhex(text))

    async def hear(self, *, pings: bool = False) -> bytes:
        while True:
            while not self.heard:
                frame = await self.client.receive()
                assert frame
                assert frame.opcode == raw.BINARY
                self.heard += protobuf.split(frame.payload)
            heard = self.heard.pop(0)
            if heard or pings:
                return heard


async def test_protobuf_to_the_byte() -> None:
    async with running(anonymous="on", namespaces="") as port:
        ann = Hex(await Peer.connect(port, PROTOBUF))
        ann.say("04 08 01 22 00")
        welcome = await ann.hear()
        assert re.fullmatch(rb"\x08\x01\x2a.\x0a\x0c[0-9a-f]{12}\x12.[0-9.]+\x38\x19\x40\x01", welcome, re.DOTALL)
        ann.say("09 08 02 2a 05 0a 03 66 6f 6f")
        subscribed = await ann.hear()
        assert re.fullmatch(rb"\x08\x02\x32.\x18\x01\x32.[!-~]+\x50\x01", subscribed, re.DOTALL)
        ann.say("0d 08 03 3a 09 0a 03 66 6f 6f 12 02 7b 7d")
        told = {await ann.hear(), await ann.hear()}
        published = b"\x22\x02{}" + b"\x2a\x0e\x12\x0c" + welcome[6:18] + b"\x30\x01"
        assert told == {b"\x08\x03\x42\x00", b"\x22\x1d" + b"\x12\x03foo" + b"\x22\x16" + published}


async def test_a_ping_is_one_byte_and_so_is_its_answer() -> None:
    async with running(anonymous="on", heartbeat_seconds=1.0) as port:
        ann = await Peer.connect(port, PROTOBUF)
        ann.client.send(raw.BINARY, bytes.fromhex("04 08 01 22 00"))
        welcome = await ann.client.receive()
        assert welcome
        assert welcome.payload.endswith(b"\x38\x01\x40\x01")
        for _ in range(2):  # unanswered, the first would be the last
            assert await ann.client.receive() == raw.Frame(raw.BINARY, b"\0")
            ann.client.send(raw.BINARY, b"\0")
