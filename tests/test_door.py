"""What all endpoints have in common: limits, and that nothing is left of those who are gone."""

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest
from aiohttp.test_utils import TestServer

from chatserver import door
from chatserver.app import build
from chatserver.client import Client
from chatserver.config import Config
from chatserver.keys import POOL
from tests.raw import CLOSE, RawClient

PATHS = ["/ws", "/connection/websocket", "/connection/websocket?format=protobuf"]
both = pytest.mark.parametrize("path", PATHS)


@pytest.fixture
async def server() -> AsyncIterator[TestServer]:
    server = TestServer(build(Config(store_url="memory://", max_connections=5)))
    await server.start_server()
    yield server
    await server.close()


def clients(server: TestServer) -> int:
    """Of this server, those whose memory isn't free."""
    gc.collect()
    wake = server.app[POOL].wake
    return sum(isinstance(thing, Client) and thing._wake == wake for thing in gc.get_objects())


async def until_nobody_is_left(server: TestServer) -> None:
    async with asyncio.timeout(20):
        while clients(server):
            await asyncio.sleep(0.01)


@both
async def test_nothing_is_left_of_who_was_there(server: TestServer, path: str) -> None:
    for _ in range(3):
        client = await RawClient.connect(server.port or 0, path)
        client.say('{"id":1,"connect":{}}')
        client.say('{"id":2,"publish":{"channel":"lobby","data":1}}')
        assert await client.receive()
        client.abort()
    await until_nobody_is_left(server)


async def test_the_endpoints_share_the_limit(server: TestServer) -> None:
    for number in range(6):
        client = await RawClient.connect(server.port or 0, PATHS[number % 3])
        assert client.status == (101 if number < 5 else 503)


async def test_who_says_nothing_is_stale(server: TestServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "IDENTIFY_SECONDS", 0.1)
    client = await RawClient.connect(server.port or 0, PATHS[1])
    frame = await client.receive()
    assert frame
    assert (frame.opcode, frame.payload) == (CLOSE, (3502).to_bytes(2, "big") + b"stale")
    client.send(CLOSE, frame.payload[:2])
    await until_nobody_is_left(server)


async def test_a_shutdown_closes_those_too_who_said_nothing_yet(server: TestServer) -> None:
    client = await RawClient.connect(server.port or 0, PATHS[1])
    closing = asyncio.create_task(server.close())
    assert await client.until_closed() == 1001
    await closing
