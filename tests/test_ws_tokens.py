"""Tokens on `/ws`, and what namespaces allow there."""

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import jwt
import pytest
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric import rsa

from chatserver import door
from chatserver.app import build
from chatserver.config import Config
from chatserver.tokens import make_token
from tests.raw import RawClient

SECRET = "0123456789abcdef0123456789abcdef"
NAMESPACES = {
    "news": {"publish": "nobody", "history": "nobody"},
    "members": {"anonymous": False},
    "closed": {"subscribe": "nobody"},
}
GOOD = make_token(SECRET, "ann", seconds=3600)
WAYS: list[tuple[str, dict[str, str]]] = [
    (f"/ws?token={GOOD}", {}),
    ("/ws", {"Authorization": f"Bearer {GOOD}"}),
    ("/ws", {"Sec-WebSocket-Protocol": f"chat, bearer.{GOOD}"}),
    ("/ws?name=eve", {"Authorization": f"bearer {GOOD}"}),
]

Start = Callable[..., Awaitable[int]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    servers = []

    async def start(**settings: Any) -> int:
        config = Config(store_url="memory://", token_hmac_secret=SECRET, namespaces=json.dumps(NAMESPACES), **settings)
        servers.append(TestServer(build(config)))
        await servers[-1].start_server()
        return servers[-1].port or 0

    yield start
    await RawClient.clean_up()  # or else the servers would wait for them
    for server in servers:
        await server.close()


async def ended(client: RawClient) -> int:
    return await client.until_closed(20)


@pytest.mark.parametrize(("path", "headers"), WAYS)
async def test_a_token_says_who_comes(start: Start, path: str, headers: dict[str, str]) -> None:
    client = await RawClient.connect(await start(), path, **headers)
    assert client.status == 101
    assert client.headers.get("sec-websocket-protocol") == ("chat" if "Sec-WebSocket-Protocol" in headers else None)
    assert await client.text() == '{"type":1,"body":"ann connected"}'


@pytest.mark.parametrize("query", ["", "?auth=message"])
async def test_a_token_may_be_the_first_message(start: Start, query: str) -> None:
    client = await RawClient.connect(await start(anonymous="on" if query else ""), f"/ws{query}")
    assert client.status == 101
    client.say(json.dumps({"token": GOOD}))
    client.say('{"type":2,"body":"hi"}')
    assert await client.text() == '{"type":1,"body":"ann connected"}'
    assert await client.text() == '{"type":2,"body":"hi"}'


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ('{"token":"garbage"}', 3500),
        (json.dumps({"token": make_token(SECRET, "ann", seconds=1, now=1_500_000_000)}), 3500),
        ('{"type":2,"body":"hi"}', 3507),
        ('{"token":1}', 3507),
        ("[" * 5000, 3507),
        (json.dumps({"token": make_token(SECRET, "", seconds=3600)}), 3507),
    ],
)
async def test_what_is_no_token_ends_the_connection(start: Start, message: str, code: int) -> None:
    client = await RawClient.connect(await start(), "/ws?name=bob")
    client.say(message)
    assert await ended(client) == code


async def test_who_shows_none_in_time_is_stale(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "IDENTIFY_SECONDS", 0.1)
    assert await ended(await RawClient.connect(await start(), "/ws")) == 3502


@pytest.mark.parametrize("anonymous", ["", "on"])
async def test_a_token_that_does_not_count_is_refused_even_where_none_is_needed(start: Start, anonymous: str) -> None:
    port = await start(anonymous=anonymous)
    for token in ("garbage", make_token("another-secret-of-thirty-two-byt", "ann", seconds=60)):
        assert (await RawClient.connect(port, f"/ws?token={token}")).status == 401


async def test_a_token_without_a_user_counts_where_none_is_needed(start: Start) -> None:
    nobody = make_token(SECRET, "", seconds=3600)
    assert (await RawClient.connect(await start(), f"/ws?token={nobody}")).status == 403
    client = await RawClient.connect(await start(anonymous="on"), f"/ws?token={nobody}&name=bob")
    assert await client.text() == '{"type":1,"body":"bob connected"}'


async def test_the_connection_ends_with_its_token(start: Start) -> None:
    port = await start()
    token = make_token(SECRET, "ann", seconds=1, now=time.time())
    assert await ended(await RawClient.connect(port, f"/ws?token={token}")) == 3005


@pytest.mark.parametrize(
    ("path", "user", "status"),
    [
        ("/ws?room=nowhere:x", "ann", 404),
        ("/ws?room=$vault", "ann", 403),
        ("/ws?room=closed:x", "ann", 403),
        ("/ws?room=dm%23bob", "ann", 403),
        ("/ws?room=dm%23ann,bob", "ann", 101),
        ("/ws?room=members:x", "ann", 101),
        ("/ws?room=members:x", "", 403),
        ("/ws?room=dm%23ann", "", 403),
        ("/ws?room=news:today", "", 101),
        ("/ws?room=news:today&history=5", "ann", 403),
        ("/ws?room=news:today&after=0", "ann", 403),
    ],
)
async def test_namespaces_say_who_comes_in(start: Start, path: str, user: str, status: int) -> None:
    headers = {"Authorization": f"Bearer {make_token(SECRET, user, seconds=60)}"} if user else {}
    client = await RawClient.connect(await start(anonymous="on"), path, **headers)
    assert client.status == status


async def test_who_may_not_come_is_not_let_in_by_a_first_message_either(start: Start) -> None:
    client = await RawClient.connect(await start(), "/ws?room=dm%23bob")
    client.say(json.dumps({"token": GOOD}))
    assert await ended(client) == 3507


async def test_who_may_not_publish_is_told_so_and_stays(start: Start) -> None:
    client = await RawClient.connect(await start(anonymous="on"), "/ws?name=bob&room=news:today")
    assert await client.text() == '{"type":1,"body":"bob connected"}'
    client.say('{"type":2,"body":"hi"}')
    assert await client.text() == '{"type":1,"body":"error: permission denied (103)"}'
    assert await client.silent()


async def test_while_keys_cant_be_had_clients_are_told_to_come_again(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    token = jwt.encode({"sub": "ann"}, key, algorithm="RS256", headers={"kid": "one"})
    port = await start(token_jwks_url="http://127.0.0.1:9/keys")
    assert (await RawClient.connect(port, f"/ws?token={token}")).status == 503
    client = await RawClient.connect(port, "/ws")
    client.say(json.dumps({"token": token}))
    assert await ended(client) == 1011
    assert "connection failed" not in caplog.messages
