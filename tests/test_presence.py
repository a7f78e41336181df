"""Notices of who comes and goes, on `/ws`."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp.test_utils import TestServer

from chatserver.app import build
from chatserver.config import Config
from tests.raw import CLOSE, RawClient


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[int]:
    """A server with the settings given; its port."""
    async with TestServer(build(Config(**settings))) as server:
        assert server.port
        yield server.port


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """Of a server with default settings."""
    async with running() as port:
        yield port


async def heard(client: RawClient, count: int = 1) -> list[str]:
    """The next notices."""
    frames = [json.loads(await client.text()) for _ in range(count)]
    assert all(frame.keys() == {"type", "body"} and frame["type"] == 1 for frame in frames)
    return [frame["body"] for frame in frames]


async def hears_nothing_before(client: RawClient, body: str) -> None:
    """`client` says something, and that is the next that it hears."""
    frame = json.dumps({"type": 2, "body": body}, separators=(",", ":"))
    client.say(frame)
    assert await client.text() == frame


async def test_who_comes_is_told_to_everybody_the_newcomer_included(port: int) -> None:
    alice = await RawClient.connect(port, "/ws?name=alice")
    assert await heard(alice) == ["alice connected"]
    bob = await RawClient.connect(port, "/ws?name=bob")
    assert await heard(alice) == ["bob connected"]
    assert await heard(bob) == ["bob connected"]
    for client in (alice, bob):
        await hears_nothing_before(client, "once is enough")
        if client is alice:
            await bob.text()


@pytest.mark.parametrize("politely", [True, False])
async def test_who_goes_is_told_to_the_others_once(port: int, politely: bool) -> None:
    alice, bob = await RawClient.connect(port, "/ws?name=alice"), await RawClient.connect(port, "/ws?name=bob")
    assert await heard(alice, 2) == ["alice connected", "bob connected"]
    if politely:
        await bob.close()
    else:
        bob.abort()
    assert await heard(alice) == ["bob disconnected"]
    await hears_nothing_before(alice, "once is enough")


async def test_who_goes_is_not_told_of_it(port: int) -> None:
    alice = await RawClient.connect(port, "/ws?name=alice")
    await heard(alice)
    alice.send(CLOSE, (1000).to_bytes(2, "big"))
    frame = await alice.receive()
    assert frame
    assert (frame.opcode, frame.code) == (CLOSE, 1000)


async def test_who_is_refused_is_not_told(port: int) -> None:
    alice = await RawClient.connect(port, "/ws?name=alice")
    await heard(alice)
    assert (await RawClient.connect(port, "/ws?name=b%20b")).status == 400
    assert (await RawClient.connect(port, "/ws?name=bob", Origin="http://evil")).status == 403
    await hears_nothing_before(alice, "nobody came")


async def test_everybody_who_comes_without_a_name_goes_under_the_one_that_was_told(port: int) -> None:
    alice, guest = await RawClient.connect(port, "/ws?name=alice"), await RawClient.connect(port)
    [_, came] = await heard(alice, 2)
    await guest.close()
    assert await heard(alice) == [came.replace("connected", "disconnected")]
    assert came.startswith("guest-")


async def test_without_the_feature_nobody_is_announced() -> None:
    async with running(features=("limits", "http")) as port:
        alice = await RawClient.connect(port, "/ws?name=alice")
        bob = await RawClient.connect(port, "/ws?name=bob")
        await bob.close()
        await hears_nothing_before(alice, "alone at last")
