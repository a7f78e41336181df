"""The simple protocol, byte for byte: transcripts of conversations in tests/wire/.

`NAME connects [PATH]`   · opens a connection
`NAME > TEXT`            · NAME sends a text frame; `NAME > OPCODE HEX` any other; `* COUNT` at the end repeats it
`NAME < TEXT`            · the next frame that NAME gets is this text; `NAME < close CODE` a close frame
`NAME hears nothing`     · no frame waits for NAME
`# …`                    · a remark
"""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer

from chatserver.app import build
from chatserver.config import Config
from tests import raw
from tests.raw import RawClient

TRANSCRIPTS = sorted((Path(__file__).parent / "wire").glob("*.txt"))
OPCODES = {"continuation": 0, "binary": raw.BINARY, "close": raw.CLOSE, "ping": raw.PING, "pong": raw.PONG, "text": 1}


@pytest.fixture
async def port(aiohttp_server: object) -> AsyncIterator[int]:
    """Of a server with default settings."""
    async with TestServer(build(Config(rate_limit=0))) as server:
        assert server.port
        yield server.port


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
async def test_transcript(path: Path, port: int) -> None:
    """Each conversation goes as it is written."""
    clients: dict[str, RawClient] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            await play(clients, port, line, f"{path.name}:{number}: {line}")
    for client in clients.values():
        client.abort()


async def play(clients: dict[str, RawClient], port: int, line: str, where: str) -> None:
    """One line of a transcript."""
    name, verb, rest = (*line.split(" ", 2), "")[:3]
    if verb == "connects":
        clients[name] = await RawClient.connect(port, rest or f"/ws?name={name}")
        assert clients[name].status == 101, where
    elif verb == ">":
        send(clients[name], rest)
    elif verb == "<":
        frame = await clients[name].receive()
        assert frame, where
        code = re.fullmatch(r"close (\d+)", rest)
        assert (frame.code == int(code[1])) if code else (frame.text == rest), (where, frame)
    else:
        assert (verb, rest) == ("hears", "nothing"), where
        assert await clients[name].silent(), where


def send(client: RawClient, what: str) -> None:
    """What stands behind `>`."""
    repeated = re.fullmatch(r"(.*) \* (\d+)", what)
    what, count = (repeated[1], int(repeated[2])) if repeated else (what, 1)
    named = re.fullmatch(rf"({'|'.join(OPCODES)}) ([0-9a-f]*)", what)
    for _ in range(count):
        if named:
            client.send(OPCODES[named[1]], bytes.fromhex(named[2]))
        else:
            client.say(what)


def test_there_are_transcripts() -> None:
    """A renamed folder would otherwise pass."""
    assert len(TRANSCRIPTS) >= 5
