"""`/healthz` and `/readyz`."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from chatserver.app import build
from chatserver.config import Config
from chatserver.errors import GoingAway
from chatserver.keys import POOL
from tests.raw import RawClient

Client = TestClient[web.Request, web.Application]


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """Of a server with default settings."""
    async with TestClient(TestServer(build(Config()))) as client:
        yield client


async def get(client: Client, path: str) -> tuple[int, object]:
    """Status and JSON."""
    async with client.get(path) as response:
        assert response.content_type == "application/json"
        return response.status, await response.json()


async def test_a_server_is_alive_and_ready(client: Client) -> None:
    assert await get(client, "/healthz") == (200, {"status": "alive"})
    assert await get(client, "/readyz") == (200, {"status": "ready"})


async def test_a_server_that_drains_is_alive_but_not_ready_from_the_first_moment(client: Client) -> None:
    pool = client.app[POOL]
    chatter = await RawClient.connect(client.port or 0)
    await chatter.text()
    closing = asyncio.create_task(pool.close(GoingAway(), 30, answers=True))  # the chatter doesn't answer
    await asyncio.sleep(0)
    assert await get(client, "/readyz") == (503, {"status": "draining"})
    assert await get(client, "/healthz") == (200, {"status": "alive"})
    chatter.abort()
    await closing
    assert await get(client, "/readyz") == (503, {"status": "draining"})


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_head_is_answered_and_nothing_else(client: Client, path: str) -> None:
    async with client.head(path) as response:
        assert (response.status, await response.read()) == (200, b"")
    for method in ("POST", "PUT", "DELETE"):
        async with client.request(method, path) as response:
            assert response.status == 405


async def test_without_the_feature_there_is_nothing() -> None:
    async with TestClient(TestServer(build(Config(features=("presence", "limits"))))) as client:
        for path in ("/healthz", "/readyz"):
            async with client.get(path) as response:
                assert response.status == 404
