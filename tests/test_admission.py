"""Who may open a WebSocket: origins, the handshake, names, and how many."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import WSServerHandshakeError
from aiohttp.test_utils import TestClient, TestServer, make_mocked_request
from multidict import CIMultiDict

from chatserver import admission
from chatserver.admission import Admission
from chatserver.app import build
from chatserver.config import Config
from chatserver.keys import POOL
from tests.raw import RawClient
from tests.test_log import Log

KEY = "dGhlIHNhbXBsZSBub25jZQ=="

Start = Callable[..., Awaitable[TestServer]]


@pytest.fixture
def log() -> Log:
    """What the servers write to standard error."""
    return Log()


@pytest.fixture
async def start(log: Log) -> AsyncIterator[Start]:
    """Starts a server with the settings given."""
    async with contextlib.AsyncExitStack() as servers:

        async def start(**settings: Any) -> TestServer:
            with contextlib.redirect_stderr(log):
                app = build(Config(**settings))
            server = TestServer(app)
            servers.push_async_callback(server.close)
            await server.start_server()
            return server

        yield start
        await RawClient.clean_up()  # or else the server waits for answers to its close frames


async def ask(server: TestServer, path: str = "/ws", **headers: str) -> RawClient:
    """A handshake, with its answer."""
    return await RawClient.connect(server.port or 0, path, **headers)


async def send(server: TestServer, *lines: str, version: str = "HTTP/1.1", body: str = "", **changes: str) -> RawClient:
    """A handshake of the usual lines, `changes` to these (empty: left out), then `lines` and a body."""
    usual = {
        "Host": "localhost", "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": KEY,
    } | {name.replace("_", "-"): value for name, value in changes.items()}  # fmt: skip
    client = RawClient(*await asyncio.open_connection("127.0.0.1", server.port))
    head = [f"GET /ws {version}", *(f"{name}: {value}" for name, value in usual.items() if value), *lines, "", body]
    client.writer.write("\r\n".join(head).encode("latin-1"))
    await client.read_head()
    return client


async def text(client: RawClient) -> str:
    """The body of a refusal."""
    return (await client.reader.readexactly(int(client.headers["content-length"]))).decode()


async def admitted(connect: Callable[[], Awaitable[RawClient]]) -> RawClient:
    """Tries until a place is free; fails if none ever is."""
    for _ in range(500):
        client = await connect()
        if client.status == 101:
            return client
        client.abort()
        await asyncio.sleep(0.02)
    raise AssertionError("no place ever was free")


# Origin


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("good:8080", "http://good:8080"),
        ("good:8080", "https://good:8080"),
        ("good:8080", "http://GOOD:8080"),
        ("GOOD:8080", "http://good:8080"),
        ("good:8080", "HTTP://good:8080"),
        ("good", "http://good"),
        ("good", "https://good"),
        ("good", "http://good:80"),
        ("good", "https://good:443"),
        ("good:80", "http://good"),
        ("good:443", "https://good"),
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("[::1]:8080", "http://[::1]:8080"),
        ("[::1]", "https://[::1]"),
        ("xn--gd-fka:8080", "http://xn--gd-fka:8080"),
        ("under_score", "http://under_score"),
    ],
)
async def test_a_page_of_the_same_host_may_connect(start: Start, host: str, origin: str) -> None:
    assert (await ask(await start(), Host=host, Origin=origin)).status == 101


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("good:8080", "http://evil"),
        ("good:8080", "http://evil:8080"),
        ("good:8080", "null"),
        ("good:8080", "NULL"),
        ("good:8080", "http://good:8081"),
        ("good:8080", "http://good"),
        ("good:8080", "http://good.evil:8080"),
        ("good:8080", "http://evil.good:8080"),
        ("good:8080", "http://evilgood:8080"),
        ("good:8080", "http://goodevil:8080"),
        ("good:8080", "http://good:8080.evil"),
        ("good:8080", "http://good:80800"),
        ("good:8080", "http://good:08080"),
        ("good:8080", "http://good.:8080"),
        ("good:8080", "http://good:8080/"),
        ("good:8080", "http://good:8080/chat"),
        ("good:8080", "http://good:8080?x"),
        ("good:8080", "http://good:8080#x"),
        ("good:8080", "http://evil@good:8080"),
        ("good:8080", "http://good:8080@evil"),
        ("good:8080", "http://good:8080 http://evil"),
        ("good:8080", "http://evil http://good:8080"),
        ("good:8080", "http://good:8080, http://evil"),
        ("good:8080", "http://good:8080\thttp://evil"),
        ("good:8080", "ftp://good:8080"),
        ("good:8080", "ws://good:8080"),
        ("good:8080", "file://"),
        ("good:8080", "chrome-extension://good:8080"),
        ("good:8080", "good:8080"),
        ("good:8080", "//good:8080"),
        ("good:8080", "http:good:8080"),
        ("good:8080", "http://g\xf6\xf6d:8080"),
        ("good:8080", "http://xn--gd-fka:8080"),
        ("good:8080", "*"),
        ("good", "https://good:81"),
        ("good", "http://good:443"),
        ("good", "https://good:80"),
        ("[::1]", "http://[::2]"),
        ("[::1]", "http://::1"),
    ],
)
async def test_a_page_of_another_host_may_not_connect(start: Start, host: str, origin: str) -> None:
    client = await ask(await start(), Host=host, Origin=origin)
    assert (client.status, await text(client)) == (403, "this origin is not allowed")


async def test_who_sends_no_origin_is_no_browser_and_may_connect(start: Start) -> None:
    for server in (await start(), await start(allowed_origins=("https://good",))):
        assert (await ask(server)).status == 101


@pytest.mark.parametrize(
    "lines",
    [
        ["Origin: http://localhost", "Origin: http://localhost"],
        ["Origin: http://localhost", "Origin: http://evil"],
        ["Origin: http://evil", "Origin: http://localhost"],
        ["Origin: "],
        ["Origin:"],
        ["Origin: ", "Origin: http://localhost"],
    ],
)
async def test_two_origins_or_an_empty_one_are_refused(start: Start, lines: list[str]) -> None:
    assert (await send(await start(), *lines)).status == 403
    assert (await send(await start(allowed_origins=("http://localhost",)), *lines)).status == 403


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://good", 101),
        ("https://good:443", 101),
        ("HTTPS://Good", 101),
        ("http://other:81", 101),
        ("http://good", 403),
        ("https://good:81", 403),
        ("https://good.", 403),
        ("https://sub.good", 403),
        ("https://good.evil", 403),
        ("http://other", 403),
        ("https://other:81", 403),
        ("null", 403),
        ("http://localhost", 403),
    ],
)
async def test_a_list_of_origins_stands_in_for_the_same_host(start: Start, origin: str, status: int) -> None:
    server = await start(allowed_origins=("https://good", "http://other:81"))
    assert (await ask(server, Host="localhost", Origin=origin)).status == status


@pytest.mark.parametrize("listed", ["null", "good", "https://good/", ""])
async def test_what_is_listed_but_is_no_origin_allows_nobody(start: Start, listed: str) -> None:
    server = await start(allowed_origins=("https://better", listed))
    assert (await ask(server, Origin="https://better")).status == 101
    for origin in ("null", "https://good", "good"):
        assert (await ask(server, Origin=origin)).status == 403


@pytest.mark.parametrize("origin", ["http://evil", "null", "https://good", "nonsense"])
async def test_a_star_allows_every_origin(start: Start, origin: str) -> None:
    assert (await ask(await start(allowed_origins=("*",)), Origin=origin)).status == 101
    assert (await ask(await start(allowed_origins=("https://good", "*")), Origin=origin)).status == 101


async def test_the_origin_of_a_common_client_library_is_understood(start: Start) -> None:
    async with TestClient(await start()) as client:
        own = f"http://{client.host}:{client.port}"
        async with client.ws_connect("/ws", origin=own) as socket:
            assert "connected" in await socket.receive_str()
        with pytest.raises(WSServerHandshakeError) as refused:
            await client.ws_connect("/ws", origin=f"{own}1")
        assert refused.value.status == 403


# The handshake


async def test_the_usual_handshake_is_accepted(start: Start) -> None:
    client = await send(await start())
    assert (client.status, client.headers["sec-websocket-accept"]) == (101, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")


@pytest.mark.parametrize("upgrade", ["", "h2c", "websocket2", "web socket", "h2c, websocket"])
async def test_without_upgrade_to_websocket_that_is_asked_for(start: Start, upgrade: str) -> None:
    client = await send(await start(), Upgrade=upgrade)
    assert (client.status, client.headers["upgrade"]) == (426, "websocket")
    assert await text(client) == "this is a WebSocket endpoint"


async def test_a_plain_request_is_answered_with_426(start: Start) -> None:
    async with TestClient(await start()) as client, client.get("/ws") as response:
        assert (response.status, response.headers["Upgrade"]) == (426, "websocket")


@pytest.mark.parametrize("upgrade", ["WebSocket", "WEBSOCKET"])
async def test_upgrade_is_written_in_any_case(start: Start, upgrade: str) -> None:
    assert (await send(await start(), Upgrade=upgrade)).status == 101


@pytest.mark.parametrize("version", ["", "7", "8", "12", "14", "013", "13.0", "x", "13, 8", "130"])
async def test_version_13_is_asked_for(start: Start, version: str) -> None:
    client = await send(await start(), Sec_WebSocket_Version=version)
    assert (client.status, client.headers["sec-websocket-version"]) == (426, "13")
    assert await text(client) == "WebSocket version 13 only"


@pytest.mark.parametrize("other", ["13", "8"])
async def test_two_versions_are_refused(start: Start, other: str) -> None:
    assert (await send(await start(), f"Sec-WebSocket-Version: {other}")).status in (400, 426)


async def test_http_1_0_is_refused(start: Start) -> None:
    client = await send(await start(), version="HTTP/1.0")
    assert (client.status, await text(client)) == (400, "WebSocket takes HTTP/1.1")


@pytest.mark.parametrize(
    ("line", "body"),
    [
        ("Content-Length: 5", "hello"),
        ("Content-Length: 5", ""),
        ("Content-Length: 00", ""),
        ("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked", "0\r\n\r\n"),
        ("Transfer-Encoding: gzip, chunked", "0\r\n\r\n"),
    ],
)
async def test_a_body_is_refused(start: Start, line: str, body: str) -> None:
    client = await send(await start(), line, body=body)
    assert (client.status, await text(client)) == (400, "an upgrade has no body")
    client.abort()  # the server would wait for the rest of the body


async def test_a_body_that_is_said_to_be_empty_is_none(start: Start) -> None:
    assert (await send(await start(), "Content-Length: 0")).status == 101


@pytest.mark.parametrize(
    "key",
    [
        "",
        "x",
        KEY[:-1],
        KEY[:-2],
        KEY + "=",
        "A" + KEY,
        KEY[1:],
        "-" + KEY[1:],
        "_" + KEY[1:],
        "=" * 24,
        KEY + "junk",
        "junk" + KEY,
        KEY + " " + KEY,
        KEY + ", " + KEY,
        "dGhlIHNhbXBsZSBub25jZQ",
        "dGhlIHNhbXBsZSBub25jZSE=",
        "\xe9" + KEY[1:],
    ],
)
async def test_a_key_that_is_no_16_bytes_in_base64_is_refused(start: Start, key: str) -> None:
    client = await send(await start(), Sec_WebSocket_Key=key)
    assert client.status == 400
    assert await text(client) == "Sec-WebSocket-Key: one key of 16 bytes in base64 is needed"


async def test_two_keys_are_refused(start: Start) -> None:
    assert (await send(await start(), f"Sec-WebSocket-Key: {KEY}")).status == 400


async def test_without_connection_upgrade_it_is_no_upgrade(start: Start) -> None:
    for connection in ("", "keep-alive"):
        assert (await send(await start(), Connection=connection)).status == 400


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_no_other_method_leads_to_a_websocket(start: Start, method: str) -> None:
    async with TestClient(await start()) as client, client.request(method, "/ws") as response:
        assert response.status == 405


# Names


async def told(client: RawClient) -> str:
    """The name in the notice of one's own arrival."""
    return str(json.loads(await client.text())["body"]).removesuffix(" connected")


@pytest.mark.parametrize("name", ["alice", "A", "7", "a.b-c_d", "x" * 32, "Alice.", "0-0", "a..b"])
async def test_a_name_is_taken_as_it_is(start: Start, name: str) -> None:
    client = await ask(await start(), f"/ws?name={name}")
    assert client.status == 101
    assert await told(client) == name


@pytest.mark.parametrize("path", ["/ws", "/ws?", "/ws?name=", "/ws?name", "/ws?other=1", "/ws?Name=alice"])
async def test_who_gives_no_name_gets_one(start: Start, path: str) -> None:
    name = await told(await ask(await start(), path))
    assert name.startswith("guest-")
    assert len(name) == 12


async def test_made_up_names_differ(start: Start) -> None:
    server = await start()
    assert len({await told(await ask(server)) for _ in range(5)}) == 5


@pytest.mark.parametrize(
    "query",
    [
        "x" * 33,
        "x" * 5000,
        "%C3%A9lan",
        "%D0%B0lice",
        "alice%E2%80%8B",
        "a%20b",
        "a+b",
        "%20alice",
        "alice%20",
        "alice%0A",
        "%0Aalice",
        "a%00b",
        "a%1Bb",
        "a%7Fb",
        "a%C2%85b",
        "a%E2%80%A8b",
        "..",
        "../x",
        "..%2Fx",
        "a%2Fb",
        "a%5Cb",
        "a%22b",
        "a%27b",
        "%22",
        "%3Cscript%3E",
        "a%3Ab",
        "-a",
        "_a",
        ".a",
        "%FF",
        "%ED%A0%80",
        "%F0%9F%98%80",
        "%EF%BC%A1",
        "%D9%A1",
    ],
    ids=lambda query: query[:40],
)
async def test_what_is_no_name_is_refused_in_clear_words(start: Start, query: str) -> None:
    client = await ask(await start(), f"/ws?name={query}")
    assert client.status == 400
    assert await text(client) == ("name: 1 to 32 of A-Z a-z 0-9 _ . - are allowed, the first of them a letter or digit")


# How many


async def test_no_more_than_max_connections_and_a_place_is_free_again(start: Start) -> None:
    server = await start(max_connections=2)
    clients = [await ask(server), await ask(server)]
    assert [client.status for client in clients] == [101, 101]
    refused = await ask(server)
    assert (refused.status, refused.headers["retry-after"], await text(refused)) == (503, "5", "too many connections")
    await clients[0].close()
    third = await admitted(lambda: ask(server))
    assert (await ask(server)).status == 503
    third.abort()
    await admitted(lambda: ask(server))


async def test_no_more_than_max_connections_per_address_and_others_may_come(start: Start) -> None:
    server = await start(max_connections_per_address=1)

    async def from_address(address: str) -> RawClient:
        client = RawClient(*await asyncio.open_connection("127.0.0.1", server.port, local_addr=(address, 0)))
        await client.upgrade()
        return client

    first = await from_address("127.0.0.1")
    refused = await from_address("127.0.0.1")
    assert (refused.status, refused.headers["retry-after"]) == (429, "5")
    assert await text(refused) == "too many connections from this address"
    assert (await from_address("127.0.0.2")).status == 101
    assert (await from_address("127.0.0.2")).status == 429
    await first.close()
    await admitted(lambda: from_address("127.0.0.1"))
    assert (await from_address("127.0.0.2")).status == 429


async def test_an_address_cannot_be_made_up(start: Start) -> None:
    server = await start(max_connections_per_address=1)
    assert (await ask(server)).status == 101
    assert (await ask(server, X_Forwarded_For="10.0.0.1", Forwarded="for=10.0.0.1")).status == 429


@pytest.mark.parametrize(
    ("path", "changes", "status"),
    [
        ("/ws", {"Connection": "keep-alive"}, 400),
        ("/ws?name=-", {}, 400),
        ("/ws", {"Origin": "http://evil"}, 403),
        ("/ws", {"Sec_WebSocket_Version": "8"}, 426),
    ],
)
async def test_who_is_refused_takes_no_place(start: Start, path: str, changes: dict[str, str], status: int) -> None:
    server = await start(max_connections=1, max_connections_per_address=1)
    for _ in range(3):
        assert (await ask(server, path, **changes)).status == status
    assert (await ask(server)).status == 101


async def test_without_limits_many_may_come(start: Start) -> None:
    server = await start()
    assert {(await ask(server)).status for _ in range(20)} == {101}


async def test_without_a_limit_the_file_descriptors_are_one(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = SimpleNamespace(RLIMIT_NOFILE=0, getrlimit=lambda number: (66, 1000))
    monkeypatch.setattr(admission, "resource", limits)
    server = await start()
    assert [(await ask(server)).status for _ in range(3)] == [101, 101, 503]


async def test_a_server_that_drains_lets_nobody_in(start: Start) -> None:
    server = await start()
    server.app[POOL].draining = True
    client = await ask(server)
    assert (client.status, client.headers["retry-after"], await text(client)) == (503, "5", "the server stops")


# The log


@pytest.mark.parametrize(
    ("changes", "status", "problem"),
    [
        ({"Origin": "http://evil"}, 403, "this origin is not allowed"),
        ({"Sec_WebSocket_Version": "8"}, 426, "WebSocket version 13 only"),
        ({"Sec_WebSocket_Key": "x"}, 400, "Sec-WebSocket-Key: one key of 16 bytes in base64 is needed"),
        ({}, 429, "too many connections from this address"),
    ],
)
async def test_who_is_refused_is_logged_with_the_status_but_not_the_query(
    start: Start, log: Log, changes: dict[str, str], status: int, problem: str
) -> None:
    server = await start(max_connections_per_address=1)
    assert (await ask(server, "/ws?name=first")).status == 101
    assert (await ask(server, "/ws?name=mallory&token=canary-1b2c3d", **changes)).status == status
    [line] = log.of("refused")
    assert (line["level"], line["path"], line["status"], line["problem"]) == ("INFO", "/ws", status, problem)
    assert line["address"] == "127.0.0.1"
    assert "canary" not in log.getvalue()
    assert "mallory" not in log.getvalue()


# Proxies


@pytest.mark.parametrize(
    ("trusted", "forwarded", "address"),
    [
        ((), ["1.1.1.1"], "127.0.0.1"),
        (("127.0.0.1",), [], "127.0.0.1"),
        (("127.0.0.1",), ["1.1.1.1"], "1.1.1.1"),
        (("127.0.0.0/8",), ["6.6.6.6, 1.1.1.1"], "1.1.1.1"),
        (("127.0.0.0/8",), ["6.6.6.6", "1.1.1.1"], "1.1.1.1"),
        (("127.0.0.0/8", "10.0.0.0/8"), ["6.6.6.6, 1.1.1.1, 10.0.0.7"], "1.1.1.1"),
        (("127.0.0.0/8", "10.0.0.0/8"), ["10.0.0.8, 10.0.0.7"], "10.0.0.8"),
        (("127.0.0.1",), ["::1"], "::1"),
        (("127.0.0.1",), ["nonsense"], "127.0.0.1"),
        (("127.0.0.1",), ["1.1.1.1, nonsense"], "127.0.0.1"),
        (("127.0.0.1",), [""], "127.0.0.1"),
        (("9.9.9.9",), ["1.1.1.1"], "127.0.0.1"),
    ],
)
def test_whose_address_counts(trusted: tuple[str, ...], forwarded: list[str], address: str) -> None:
    headers = CIMultiDict(("X-Forwarded-For", text) for text in forwarded)
    request = make_mocked_request("GET", "/ws", headers=headers).clone(remote="127.0.0.1")
    assert Admission(Config(trusted_proxies=trusted)).address(request) == address


@pytest.mark.parametrize(("trusted", "address"), [((), "unix"), (("127.0.0.1",), "1.1.1.1")])
def test_a_peer_on_a_unix_socket_is_a_proxy_if_any_is(trusted: tuple[str, ...], address: str) -> None:
    request = make_mocked_request("GET", "/ws", headers=CIMultiDict({"X-Forwarded-For": "1.1.1.1"})).clone(remote="")
    assert Admission(Config(trusted_proxies=trusted)).address(request) == address
