"""If one of these fails, aiohttp has changed something that only `aiohttp_private` relies on."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest
from aiohttp import web
from aiohttp.http_parser import HttpRequestParser
from aiohttp.test_utils import TestServer

from chatserver.aiohttp_private import take_over
from chatserver.transport import HANDED_OVER
from tests import raw
from tests.raw import RawClient

SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n"
)


class Taker(asyncio.Protocol):
    """Takes connections over, and notes what comes."""

    def __init__(self) -> None:
        self.heard = b""
        self.paths: list[str] = []
        self.over = asyncio.Event()
        self.request: web.Request | None = None

    async def handler(self, request: web.Request) -> web.StreamResponse:
        self.paths.append(request.path)
        transport = request.transport
        assert transport
        transport.write(SWITCH)
        await asyncio.sleep(0.05)  # what comes in the meantime waits in aiohttp
        take_over(request, transport, self)
        self.request = request
        await self.over.wait()
        return HANDED_OVER

    def data_received(self, data: bytes) -> None:
        self.heard += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.over.set()


@asynccontextmanager
async def taken() -> AsyncIterator[tuple[Taker, RawClient]]:
    """A connection that was taken over while its client spoke."""
    taker = Taker()
    app = web.Application()
    app.router.add_get("/ws", taker.handler)
    async with TestServer(app) as server:
        client = await RawClient.connect(server.port or 0)
        client.send(raw.TEXT, b"early")
        while not taker.request:
            await asyncio.sleep(0.01)
        yield taker, client
        client.abort()
        await taker.over.wait()


async def test_what_came_behind_the_request_and_what_comes_later_arrives() -> None:
    async with taken() as (taker, client):
        client.send(raw.TEXT, b"late")
        while b"late" not in taker.heard:
            await asyncio.sleep(0.01)
        assert taker.heard == b"\x81\x85\0\0\0\0early\x81\x84\0\0\0\0late"


async def test_the_connection_stays_open_and_the_peers_end_is_told() -> None:
    async with taken() as (taker, client):
        await asyncio.sleep(0.05)
        assert not taker.over.is_set()
        client.writer.close()
        await asyncio.wait_for(taker.over.wait(), 10)


async def test_what_aiohttp_kept_for_the_connection_is_let_go_of() -> None:
    async with taken() as (taker, _):
        assert taker.request
        assert not taker.request.headers
        gc.collect()
        assert not [kept for kept in gc.get_objects() if isinstance(kept, HttpRequestParser)]


async def test_where_aiohttp_is_built_otherwise_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[str, Any] = {}

    class Otherwise:
        def set_parser(self, parser: Any) -> None:
            kept["parser"] = parser

        def keep_alive(self, alive: bool) -> None:
            kept["alive"] = alive

    class Request:
        protocol = Otherwise()
        headers: ClassVar = {"Host": "x"}

    class Transport:
        def set_protocol(self, protocol: Any) -> None:
            kept["protocol"] = protocol

    taker = Taker()
    take_over(Request(), Transport(), taker)  # type: ignore[arg-type]
    assert kept.pop("parser").feed_data(b"x") == (False, b"")
    assert kept == {"alive": False, "protocol": taker}
    assert (taker.heard, Request.headers) == (b"x", {"Host": "x"})
