"""If one of these fails, aiohttp has changed something that only `aiohttp_private` relies on."""

import asyncio
import contextlib
import gc
import os
import re
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, TypeVar

import pytest
import uvloop
from aiohttp import web
from aiohttp.http_parser import HttpRequestParser
from aiohttp.test_utils import TestServer

from chatserver.aiohttp_private import Runner, find_unmask, has_send_buffer, take_over
from chatserver.frame_parser import unmask
from chatserver.transport import HANDED_OVER
from tests import raw
from tests.raw import RawClient


@pytest.mark.parametrize("length", [0, 1, 3, 4, 7, 8, 9, 70_001])
def test_aiohttp_unmasks_in_machine_code_as_we_do(length: int) -> None:
    assert find_unmask() is not unmask
    key, data = os.urandom(4), os.urandom(length)
    theirs, ours = bytearray(data), bytearray(data)
    find_unmask()(key, theirs)
    unmask(key, ours)
    assert theirs == ours == bytes(byte ^ key[place % 4] for place, byte in enumerate(data))


@pytest.mark.parametrize("module", [None, ModuleType("mask")])
def test_what_aiohttp_has_no_more_is_done_by_us(module: ModuleType | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp._websocket.mask", module)
    assert find_unmask() is unmask


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


# The shorter way to a handler


UPGRADE = b"GET %b HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n%b\r\n"
KEY = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
SEEN = web.RequestKey("SEEN", str)
END = b"GET /end HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


class Echo(asyncio.Protocol):
    """Gives everything back until it is told to end."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.over = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)
        if b"end" in data:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.over.set()


async def taken_over(request: web.Request) -> web.StreamResponse:
    transport = request.transport
    assert transport
    transport.write(SWITCH)
    echo = Echo(transport)
    take_over(request, transport, echo)
    await echo.over.wait()
    return HANDED_OVER


async def shown(request: web.Request) -> web.StreamResponse:
    """All that a handler may know of a request."""
    assert request.protocol.connected
    assert request.task
    assert isinstance(request.remote, str)
    seen = (request.method, request.path_qs, request.version, request.keep_alive, request.scheme, request.raw_headers)
    return web.Response(text=repr((seen, await request.text())))


async def answered(request: web.Request) -> web.StreamResponse:
    """aiohttp's own WebSocket."""
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    await socket.send_bytes(await socket.receive_bytes())
    await socket.close()
    return socket


async def streamed(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"some")
    await response.write_eof(b" more")
    return response


async def failing(request: web.Request) -> web.StreamResponse:
    raise ValueError("a fault")


async def refusing(request: web.Request) -> web.StreamResponse:
    raise web.HTTPForbidden(text="not you")


async def lost(request: web.Request) -> web.StreamResponse:
    raise ConnectionResetError


@web.middleware
async def middleware(request: web.Request, handler: Any) -> web.StreamResponse:
    if "X-Middleware" in request.headers:
        return web.Response(text="from a middleware", headers={"X-Middleware": request[SEEN]})
    answer: web.StreamResponse = await handler(request)
    return answer


@web.middleware
async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
    request[SEEN] = "passed on"
    answer: web.StreamResponse = await handler(request)
    return answer


def served() -> web.Application:
    app = web.Application(middlewares=[outer, middleware])
    for handler in (taken_over, answered, streamed, failing, refusing, lost, sized, kind):
        app.router.add_get(f"/{handler.__name__}", handler)
    app.router.add_route("*", "/shown", shown)
    app.router.add_get("/end", shown)
    return app


Kind = TypeVar("Kind", bound=web.AppRunner)


@asynccontextmanager
async def running(kind: type[Kind], **options: Any) -> AsyncIterator[tuple[Kind, int]]:
    runner = kind(served(), access_log=None, shutdown_timeout=1, **options)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner, runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def said(port: int, *pieces: bytes) -> bytes:
    """What comes back for `pieces`, of which the server takes each before the next is sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
        if piece and piece is not END:
            await said(port, END)
    try:
        answer = await reader.read()
    except ConnectionResetError:
        answer = b"reset"
    writer.close()
    return re.sub(rb"Date: [^\r]*", b"Date:", answer)


WHOLE = [
    UPGRADE % (b"/taken_over", KEY),
    UPGRADE % (b"/taken_over", KEY) + b"early",
    UPGRADE % (b"/taken_over", KEY.lower()),
    UPGRADE % (b"/taken_over", KEY + b"X-Middleware: 1\r\n"),
    UPGRADE % (b"/shown?a=b&c=%20", KEY + b"Cookie: a=b\r\nCookie: c=d\r\nX-Odd: \xff\xfe\r\n"),
    UPGRADE % (b"/shown", b"Content-Length: 0\r\n"),
    UPGRADE % (b"/shown", b"Content-Length: 3\r\n") + b"abc",
    UPGRADE % (b"/shown", b"Transfer-Encoding: chunked\r\n") + b"3\r\nabc\r\n0\r\n\r\n",
    UPGRADE % (b"/shown", b"Expect: 100-continue\r\n"),
    UPGRADE % (b"/shown", b"Connection: close\r\n"),
    (UPGRADE % (b"/shown", b"")).replace(b"Connection: Upgrade\r\n", b""),
    (UPGRADE % (b"/shown", b"")).replace(b"HTTP/1.1", b"HTTP/1.0"),
    (UPGRADE % (b"/shown", b"")).replace(b"GET", b"POST"),
    (UPGRADE % (b"/shown", b"")).replace(b"GET /shown", b"GET http://y/shown"),
    (UPGRADE % (b"/shown", b"")).replace(b"Host: x\r\n", b""),
    (UPGRADE % (b"/shown", b"")).replace(b"\r\n", b"\n"),
    UPGRADE % (b"/shown", b"Host: y\r\n"),
    UPGRADE % (b"/shown", b"No colon\r\n"),
    UPGRADE % (b"/shown", b"X: \x00\r\n"),
    UPGRADE % (b"/shown", b"X: " + 9000 * b"x" + b"\r\n"),
    UPGRADE % (b"/shown", 200 * b"X: x\r\n"),
    UPGRADE % (b"/" + 9000 * b"x", b""),
    UPGRADE % (b"/refusing", KEY),
    UPGRADE % (b"/failing", KEY),
    UPGRADE % (b"/lost", KEY),
    UPGRADE % (b"/streamed", KEY),
    UPGRADE % (b"/nowhere", KEY),
    UPGRADE % (b"/refusing", KEY) + UPGRADE % (b"/taken_over", KEY),
    b"GET /shown HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /shown HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
    b"nonsense\r\nupgrade:\r\n\r\n",
    b"\r\n\r\n",
    b"\x16\x03\x01",
]


async def test_every_answer_is_that_of_aiohttp() -> None:
    async with running(web.AppRunner) as (_, usual), running(Runner) as (_, own):
        for request in WHOLE:
            head, line, rest = request.partition(b"\r\n\r\n")
            for pieces in (
                [request, END],
                [request[:40], request[40:], END],
                [head + line, rest, END],
                [request + END],
            ):
                assert await said(own, *pieces) == await said(usual, *pieces), pieces


async def test_what_comes_while_the_first_request_is_handled_is_handled_next() -> None:
    second = UPGRADE % (b"/taken_over", KEY)
    async with running(web.AppRunner) as (_, usual), running(Runner) as (_, own):
        for first in (UPGRADE % (b"/refusing", KEY), UPGRADE % (b"/shown", KEY)):
            pieces = (first, second, b"heard", b"end")
            assert await said(own, *pieces) == await said(usual, *pieces)
            assert (await said(own, *pieces)).endswith(SWITCH + b"heardend")


async def test_another_upgrade_is_answered_as_by_aiohttp() -> None:
    request = (UPGRADE % (b"/shown", b"")).replace(b"websocket", b"h2c")
    async with running(web.AppRunner) as (_, usual), running(Runner) as (_, own):
        assert await said(own, request, END) == await said(usual, request, END)


async def test_a_websocket_of_aiohttps_own_is_served() -> None:
    async with running(Runner) as (_, port):
        client = await RawClient.connect(port, "/answered")
        client.send(raw.BINARY, b"x")
        assert await client.receive() == raw.Frame(raw.BINARY, b"x")
        client.abort()


async def test_the_shorter_way_is_taken_and_leaves_nothing() -> None:
    async with running(Runner) as (runner, port):
        assert isinstance(runner.server, web.Server)
        assert type(runner.server) is not web.Server
        client = await RawClient.connect(port, "/taken_over")
        assert client.status == 101
        assert not runner.server.connections
        gc.collect()
        [parser] = [kept for kept in gc.get_objects() if isinstance(kept, HttpRequestParser)]
        assert isinstance(parser.protocol, web.RequestHandler)
        assert not parser.protocol.connected
        client.send(raw.TEXT, b"end")
        await client.reader.read()


async def kind(request: web.Request) -> web.StreamResponse:
    return web.Response(text=f"by {type(request.protocol).__name__}")


async def test_the_shorter_way_stays_open_whatever_others_send() -> None:
    asked = UPGRADE % (b"/kind", KEY)
    broken = (UPGRADE % (b"/kind", b"No colon\r\n"),)
    with_body = UPGRADE % (b"/shown", b"Content-Length: 3\r\n"), b"abc"
    async with running(Runner) as (_, port):
        for other in (*[(asked,)] * 40, broken, with_body):
            await said(port, *other, END)
            assert b"by _Reception" in await said(port, asked, END)


async def test_who_asks_for_nothing_in_time_is_let_go_of() -> None:
    late = UPGRADE % (b"/shown", b"")
    async with running(Runner, keepalive_timeout=0.2) as (runner, port):
        silent = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(3)))
        for reader, writer in silent:
            assert await reader.read() == b""
            writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(late)
        assert (await reader.read()).startswith(b"HTTP/1.1 200")  # the second request has its time, too
        writer.close()
        assert runner.server
        while runner.server.connections:
            await asyncio.sleep(0.01)


async def test_the_time_to_ask_is_counted_from_the_connect() -> None:
    async with running(Runner, keepalive_timeout=0.4) as (_, port):
        slow, writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(0.2)
        silent, other = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(0.1)
        writer.write(b"GET ")
        assert await silent.read() == b""
        assert slow.at_eof()  # it came first
        writer.close()
        other.close()


async def test_nothing_is_kept_of_a_connection_that_asked_for_nothing() -> None:
    async with running(Runner) as (runner, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        await said(port, END)
        assert runner.server
        assert len(runner.server.connections) == 1
        writer.close()
        while runner.server.connections:
            await asyncio.sleep(0.01)
        gc.collect()
        assert not [kept for kept in gc.get_objects() if type(kept).__name__ == "_Reception"]


async def test_a_connection_that_asked_for_nothing_ends_as_soon_as_the_server_does() -> None:
    async with running(Runner) as (runner, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await said(port, END)
        assert runner.server
        runner.server.pre_shutdown()
        assert await reader.read() == b""
        writer.close()


async def sized(request: web.Request) -> web.StreamResponse:
    assert request.transport
    sock = request.transport.get_extra_info("socket")
    return web.json_response([has_send_buffer(request), sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)])


async def test_the_send_buffer_of_all_connections_is_set_at_once() -> None:
    size = 48 * 1024
    asked = UPGRADE % (b"/sized", b"")
    async with running(Runner) as (runner, port):
        runner.set_send_buffer(size)
        assert b"[false, " in await said(port, asked, END)  # asyncio may have accepted it before
        while b"[true, %d]" % (2 * size) not in await said(port, asked, END):  # Linux doubles it
            await asyncio.sleep(0.02)


async def test_where_connections_do_not_inherit_a_send_buffer_nothing_is_set(tmp_path: Path) -> None:
    size = 48 * 1024
    async with running(Runner) as (runner, port):
        await web.UnixSite(runner, tmp_path / "socket").start()
        runner.set_send_buffer(size)
        assert b", %d]" % (2 * size) not in await said(port, UPGRADE % (b"/sized", b""), END)


async def turns_to_accept(count: int) -> int:
    """How many turns of the loop pass until all who have come are in."""
    async with running(Runner) as (runner, port):
        await runner.accept_together(8, ssl_context=None, backlog=1024)
        assert runner.server
        turns = 0
        with contextlib.ExitStack() as clients:
            for _ in range(count):
                clients.enter_context(socket.create_connection(("127.0.0.1", port)))
            while len(runner.server.connections) < count:
                turns += 1
                await asyncio.sleep(0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    return turns


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_many_who_come_at_once_are_accepted_in_a_few_turns(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(turns_to_accept(80)) <= 20


def test_unix_sockets_are_accepted_one_at_a_time(tmp_path: Path) -> None:
    async def sites() -> int:
        async with running(Runner) as (runner, _):
            await web.UnixSite(runner, tmp_path / "socket").start()
            await runner.accept_together(8, ssl_context=None, backlog=1024)
            return len(runner.sites)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(sites()) == 1 + 8


class Changed(web.RequestHandler):
    """Keeps something that we know nothing of."""

    __slots__ = ("_new",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._new = 1


async def test_where_handlers_are_built_otherwise_aiohttps_own_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiohttp.web_server.RequestHandler", Changed)
    async with running(Runner) as (runner, port):
        assert type(runner.server) is web.Server
        assert (await said(port, UPGRADE % (b"/taken_over", KEY), b"end")) == SWITCH + b"end"
