"""If one of these fails, aiohttp has changed something that only `aiohttp_private` relies on."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.test_utils import TestServer

from chatserver.aiohttp_private import PayloadParser, finished, tap
from tests.raw import RawClient


@asynccontextmanager
async def connected(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[RawClient]:
    """A client of a server with this handler."""
    app = web.Application()
    app.router.add_get("/ws", handler)
    async with TestServer(app) as server:
        yield await RawClient.connect(server.port or 0)


class Between:
    """Stands in front of a parser and remembers what passes."""

    def __init__(self) -> None:
        self.parser: PayloadParser | None = None
        self.seen: list[bytes] = []

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.seen.append(data)
        assert self.parser
        return self.parser.feed_data(data)

    def feed_eof(self) -> None:
        self.seen.append(b"eof")
        assert self.parser
        self.parser.feed_eof()


async def test_what_comes_after_an_upgrade_passes_through() -> None:
    between = Between()

    async def handler(request: web.Request) -> web.StreamResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        between.parser = tap(request.protocol, between)
        await ws.send_str(await ws.receive_str())
        await ws.receive()
        return ws

    async with connected(handler) as client:
        client.say("hi")
        assert await client.text() == "hi"
        client.abort()
    assert b"".join(between.seen).startswith(b"\x81\x82\0\0\0\0hi")
    assert between.seen[-1] == b"eof"


async def test_what_waits_for_the_reader_can_be_told() -> None:
    told: list[bool] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        await ws.receive_str()
        told.append(finished(ws))
        await ws.send_str("more?")
        for _ in range(2000):
            await asyncio.sleep(0.01)
            if finished(ws):
                break
        told.append(finished(ws))
        return ws

    async with connected(handler) as client:
        client.say("hi")
        assert await client.text() == "more?"
        client.say("more")
        await client.until_closed()
        client.abort()
    assert told == [False, True]
    assert finished(object()), "then no flood is seen, but nobody is accused"


def test_where_aiohttp_keeps_it_elsewhere_nothing_is_done() -> None:
    assert tap(object(), Between()) is None
