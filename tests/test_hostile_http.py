"""Requests that no browser sends, against a real process: each is refused, and the next one is served."""

import asyncio
import json

import pytest

from tests import raw
from tests.raw import RawClient
from tests.server import ROOT, Server

HOST = "Host: localhost\r\n"

REQUESTS = {
    "length and chunks": f"POST /ws HTTP/1.1\r\n{HOST}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": f"POST /ws HTTP/1.1\r\n{HOST}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "folded header": f"GET /ws HTTP/1.1\r\n{HOST}X: a\r\n b\r\n\r\n",
    "bare line feed": "GET /ws HTTP/1.1\nHost: localhost\nX: y\n\n",
    "space before colon": "GET /ws HTTP/1.1\r\nHost : localhost\r\n\r\n",
    "two hosts": f"GET /ws HTTP/1.1\r\n{HOST}{HOST}\r\n",
    "NUL in a header": f"GET /ws HTTP/1.1\r\n{HOST}X: a\0b\r\n\r\n",
    "a line too long": f"GET /{'x' * 10_000} HTTP/1.1\r\n{HOST}\r\n",
    "too many headers": f"GET /ws HTTP/1.1\r\n{HOST}" + "X: y\r\n" * 200 + "\r\n",
    "no HTTP": "\x16\x03\x01 hello\r\n\r\n",
    "parent folder": f"GET /../../etc/passwd HTTP/1.1\r\n{HOST}\r\n",
    "parent folder, quoted": f"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\n{HOST}\r\n",
    "two slashes": f"GET //etc/passwd HTTP/1.1\r\n{HOST}\r\n",
    "quoted NUL": f"GET /ws%00 HTTP/1.1\r\n{HOST}\r\n",
    "absolute": f"GET http://evil.example/etc HTTP/1.1\r\n{HOST}\r\n",
    "another method": f"DELETE /ws HTTP/1.1\r\n{HOST}\r\n",
}


@pytest.fixture
async def running(server: Server) -> Server:
    return server.start()


async def answer(port: int, request: str) -> int:
    """The status; 0 if the connection is closed without one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    client = RawClient(reader, writer)
    writer.write(request.encode("latin-1"))
    try:
        await client.read_head()
    except (asyncio.IncompleteReadError, ConnectionError):
        return 0
    return client.status


async def test_requests_that_are_none_are_refused_without_a_traceback(running: Server) -> None:
    statuses = {name: await answer(running.port, request) for name, request in REQUESTS.items()}
    assert {name: status for name, status in statuses.items() if not (status == 0 or 400 <= status < 500)} == {}
    assert await answer(running.port, f"GET /healthz HTTP/1.1\r\n{HOST}\r\n") == 200
    assert "Traceback" not in running.stderr
    assert not running.problems


async def test_compression_is_neither_agreed_to_nor_accepted(running: Server) -> None:
    client = await RawClient.connect(running.port, Sec_WebSocket_Extensions="permessage-deflate")
    assert client.status == 101
    assert "sec-websocket-extensions" not in client.headers
    await client.text()
    client.send(raw.TEXT, b"\xaa\x56\x4a", rsv=4)
    assert await client.until_closed() == 1002


async def test_frames_that_come_with_the_handshake_count(running: Server) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    client = RawClient(reader, writer)
    client.writer.write(
        f"GET /ws?name=hasty HTTP/1.1\r\n{HOST}Upgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    client.say('{"type":2,"body":"hi"}')
    await client.read_head()
    assert {json.loads(await client.text())["body"], json.loads(await client.text())["body"]} == {
        "hasty connected",
        "hi",
    }


def test_nothing_depends_on_the_wall_clock() -> None:
    """A clock that jumps moves no order and no deadline; the log's time stamps come from it, when tokens end, and how
    old a message is.
    """
    asking = {path.stem for path in (ROOT / "chatserver").glob("*.py") if "time.time(" in path.read_text()}
    assert asking == {"tokens", "session", "subscriptions", "ws", "room", "history"}
    assert not any("datetime" in path.read_text() for path in (ROOT / "chatserver").glob("*.py"))


async def test_a_herd_comes_back(server: Server) -> None:
    """Killed with everybody in it, and started anew: all are back, and all hear each other."""
    server.start(FEATURES="http")
    herd = [await RawClient.connect(server.port) for _ in range(200)]
    server.kill()
    for client in herd:
        assert await client.until_closed() == 1006
    server.start(FEATURES="http")
    herd = await asyncio.gather(*(RawClient.connect(server.port) for _ in range(200)))
    herd[0].say('{"type":2,"body":"all here?"}')
    assert {await client.text() for client in herd} == {'{"type":2,"body":"all here?"}'}
