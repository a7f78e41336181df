"""`/ws` from outside: sizes, floods, ends, and what nobody else may notice of them."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from bench.load import check, run
from chatserver.app import build
from chatserver.client import Client
from chatserver.config import Config
from chatserver.keys import POOL, ROOMS
from chatserver.message import Command
from chatserver.store import Entry, Stamp
from tests import raw
from tests.raw import RawClient

Start = Callable[..., Awaitable[TestServer]]


def chat(body: str) -> str:
    """A chat message on the wire."""
    return json.dumps({"type": 2, "body": body}, ensure_ascii=False, separators=(",", ":"))


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts a server in this process with the settings given."""
    servers = []

    async def start(prepare: Callable[[web.Application], None] = lambda app: None, **settings: object) -> TestServer:
        app = build(Config(**settings))  # type: ignore[arg-type]
        prepare(app)
        server = TestServer(app)
        await server.start_server()
        servers.append(server)
        return server

    yield start
    for server in servers:
        await server.close()


async def connect(server: TestServer, name: str, *others: RawClient) -> RawClient:
    """A client that has read the notice of its own arrival, as have `others`."""
    assert server.port
    client = await RawClient.connect(server.port, f"/ws?name={name}")
    for each in (client, *others):
        assert await each.text() == json.dumps({"type": 1, "body": f"{name} connected"}, separators=(",", ":"))
    return client


async def test_everybody_without_a_name_gets_one(start: Start) -> None:
    server = await start()
    assert server.port
    client = await RawClient.connect(server.port)
    body = json.loads(await client.text())["body"]
    assert body.startswith("guest-")
    assert body.endswith(" connected")


async def test_a_message_of_the_greatest_size_passes_and_a_longer_one_closes(start: Start) -> None:
    server = await start(max_message_bytes=1000, max_body_bytes=0)
    alice = await connect(server, "alice")
    bob = await connect(server, "bob", alice)
    just = chat("x" * (1000 - len(chat(""))))
    assert len(just) == 1000
    bob.say(just)
    assert await alice.text() == just
    assert await bob.text() == just
    bob.say(just + " ")
    assert await bob.until_closed() == 1009
    assert "bob disconnected" in await alice.text()


async def test_a_size_is_refused_before_its_payload_comes(start: Start) -> None:
    server = await start()
    client = await connect(server, "alice")
    client.writer.write(bytes([0x81, 0xFF]) + (1 << 62).to_bytes(8, "big") + b"\0\0\0\0")
    assert await client.until_closed() == 1009


async def test_fragments_count_together(start: Start) -> None:
    server = await start(max_message_bytes=1000)
    client = await connect(server, "alice")
    client.send(raw.TEXT, b"x" * 600, fin=False)
    client.send(raw.CONTINUATION, b"x" * 600)
    assert await client.until_closed() == 1009


async def test_a_body_too_long_is_answered(start: Start) -> None:
    server = await start(max_body_bytes=10)
    client = await connect(server, "alice")
    client.say(chat("é" * 5))
    assert await client.text() == chat("é" * 5)
    client.say(chat("é" * 5 + "x"))
    assert "error: body too long, at most 10 bytes" in await client.text()


async def test_a_fragmented_message_is_one_message(start: Start) -> None:
    server = await start()
    client = await connect(server, "alice")
    text = chat("in three pieces").encode()
    client.send(raw.TEXT, text[:5], fin=False)
    client.send(raw.CONTINUATION, text[5:9], fin=False)
    client.send(raw.PING, b"between")
    client.send(raw.CONTINUATION, text[9:])
    frames = {await client.receive(), await client.receive()}
    assert frames == {raw.Frame(raw.PONG, b"between"), raw.Frame(raw.TEXT, text)}


@pytest.mark.parametrize(
    ("code", "answer"),
    [(1000, 1000), (1001, 1001), (3000, 3000), (4999, 4999), (1006, 1002), (5000, 1002), (999, 1002)],
)
async def test_a_close_is_answered_with_its_own_code_if_that_is_one(start: Start, code: int, answer: int) -> None:
    server = await start()
    client = await connect(server, "alice")
    client.send(raw.CLOSE, code.to_bytes(2, "big"))
    assert await client.until_closed() == answer


async def test_a_close_without_code_is_answered(start: Start) -> None:
    server = await start()
    client = await connect(server, "alice")
    client.send(raw.CLOSE)
    assert await client.until_closed() == 1000
    assert await client.receive() is None


async def test_what_was_said_before_a_close_is_delivered(start: Start) -> None:
    server = await start()
    alice = await connect(server, "alice")
    bob = await connect(server, "bob", alice)
    bob.say(chat("last words"))
    await bob.close()
    assert await alice.text() == chat("last words")
    assert "bob disconnected" in await alice.text()


async def test_who_vanishes_is_announced(start: Start) -> None:
    server = await start()
    alice = await connect(server, "alice")
    bob = await connect(server, "bob", alice)
    bob.abort()
    assert "bob disconnected" in await alice.text()
    assert await alice.silent()


async def test_a_ping_flood_closes_the_flooder(start: Start) -> None:
    server = await start()
    alice = await connect(server, "alice")
    bob = await connect(server, "bob", alice)
    for _ in range(500):
        bob.send(raw.PING, b"x")
    assert await bob.until_closed() == 1008
    assert "bob disconnected" in await alice.text()


async def test_a_bug_costs_its_connection_only(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    def break_it(app: web.Application) -> None:
        append = app[ROOMS].append

        def broken(entry: Entry) -> asyncio.Future[Stamp]:
            if "boom" in entry.data:
                raise RuntimeError("a bug")
            return append(entry)

        app[ROOMS].append = broken  # type: ignore[method-assign]

    server = await start(break_it)
    alice = await connect(server, "alice")
    bob = await connect(server, "bob", alice)
    bob.say(chat("boom"))
    assert await bob.until_closed() == 1011
    assert "bob disconnected" in await alice.text()
    alice.say(chat("still here"))
    assert await alice.text() == chat("still here")


async def test_a_reply_goes_to_its_sender_alone(start: Start) -> None:
    from chatserver import Handler, Notice

    async def help_middleware(command: Command, client: Client, handler: Handler) -> Notice | None:
        if command.body == "/help":
            return Notice("say something")
        await handler(command, client)
        return None

    server = await start(lambda app: app["chain"].append(help_middleware))
    alice = await connect(server, "alice")
    bob = await connect(server, "bob", alice)
    bob.say(chat("/help"))
    assert await bob.text() == '{"type":1,"body":"say something"}'
    assert await alice.silent()
    bob.say(chat("hi"))
    assert await alice.text() == chat("hi")


async def test_everybody_hears_everything_once_in_one_order_beside_one_who_never_reads(start: Start) -> None:
    server = await start()
    problems = await run(f"ws://127.0.0.1:{server.port}/ws", clients=50, senders=5, messages=40)
    assert not problems


@pytest.mark.parametrize(
    "heard",
    [
        [["0:0"], ["0:0", "0:1"]],
        [["0:0", "0:1", "0:1"], ["0:0", "0:1"]],
        [["0:1", "0:0"], ["0:1", "0:0"]],
        [["0:0", "1:0", "0:1", "1:1"], ["1:0", "0:0", "0:1", "1:1"]],
        [["0:0", "1:0", "0:1"], ["0:0", "1:0", "0:1"]],
    ],
)
def test_the_checker_finds_what_it_is_for(heard: list[list[str]]) -> None:
    assert check(heard, 2 if "1:0" in heard[0] else 1, 2)


async def test_who_never_reads_is_dropped_and_nobody_waits_for_it(start: Start) -> None:
    server = await start(max_queue_bytes=50_000, rate_limit=0)
    assert server.port
    alice = await connect(server, "alice")
    stalled = await RawClient.connect(server.port, "/ws?name=stalled")
    await alice.text()
    stalled.writer.transport.pause_reading()  # type: ignore[attr-defined]
    body = "x" * 10_000
    heard: list[str] = []
    while not heard or "stalled" not in heard[-1]:
        alice.say(chat(body))
        heard.append(await alice.text())
        assert len(heard) < 3000
    assert set(heard[:-1]) == {chat(body)}


async def test_after_the_end_of_all_nothing_is_left(start: Start) -> None:
    server = await start()
    before = len(asyncio.all_tasks())
    clients = [await connect(server, "alice")]
    for _ in range(20):
        clients.append(await RawClient.connect(server.port or 0, "/ws?name=bob"))
    for client in clients[:10]:
        client.abort()
    for client in clients[10:]:
        await client.close()
    for _ in range(200):
        if len(asyncio.all_tasks()) <= before:
            break
        await asyncio.sleep(0.02)
    assert len(asyncio.all_tasks()) <= before
    assert not server.app[POOL].clients
