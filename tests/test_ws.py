"""`/ws` from outside: sizes, floods, ends, and what nobody else may notice of them."""

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from unittest import mock

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from bench.load import check, run
from chatserver.app import build
from chatserver.chain import Handler
from chatserver.client import Client
from chatserver.config import Config
from chatserver.errors import ChatError, Disconnect, StorageFull, StorageUnavailable, StorageUnsure
from chatserver.fanout import MANY, SPLICED_BYTES
from chatserver.journal import Answered
from chatserver.keys import POOL, ROOMS
from chatserver.message import Command, Event, Position, Publish
from chatserver.query import HISTORY
from chatserver.records import data_of
from chatserver.store import Entry, Stamp, Store
from chatserver.unstored import UNSTORED
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
    await RawClient.clean_up()  # or else the server waits for answers to its close frames
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
        publish = app[ROOMS].publish

        def broken(command: Publish, client: Client, answered: Answered) -> None:
            if "boom" in command.body:
                raise RuntimeError("a bug")
            publish(command, client, answered)

        app[ROOMS].publish = broken  # type: ignore[method-assign]

    server = await start(break_it)
    alice = await connect(server, "alice")
    bob = await connect(server, "bob", alice)
    bob.say(chat("boom"))
    assert await bob.until_closed() == 1011
    assert "bob disconnected" in await alice.text()
    alice.say(chat("still here"))
    assert await alice.text() == chat("still here")


async def test_a_reply_goes_to_its_sender_alone(start: Start) -> None:
    from chatserver import Notice

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


async def test_what_is_large_is_heard_by_many(start: Start) -> None:
    server = await start()
    clients: list[RawClient] = []
    for number in range(MANY + 1):
        clients.append(await connect(server, f"user-{number}", *clients))
    large = chat("x" * SPLICED_BYTES)
    clients[0].say(large)
    assert [await client.text() for client in clients] == [large] * len(clients)


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize(
    ("path", "first", "said"),
    [
        ("/ws?name=bob", "", chat("late")),
        (
            "/connection/websocket",
            '{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"lobby"}}',
            '{"id":3,"publish":{"channel":"lobby","data":{"body":"late"}}}',
        ),
    ],
)
async def test_who_is_told_the_end_in_a_moment_is_not_heard_any_more(
    start: Start, path: str, first: str, said: str, waits: bool
) -> None:
    async def patient(command: Command, client: Client, handler: Handler) -> Event | None:
        await asyncio.sleep(0)
        return await handler(command, client)

    server = await start(lambda app: app["chain"].extend([patient] if waits else []))
    assert server.port
    alice = await connect(server, "alice")
    bob = await RawClient.connect(server.port, path)
    if first:
        bob.say(first)
    assert "connected" in await alice.text()
    (other,) = (client for client in server.app[POOL].clients if client.user != "alice")
    other.leaving = True
    bob.say(said)
    bob.send(raw.PING, b"taken")
    while await bob.receive() != raw.Frame(raw.PONG, b"taken"):
        pass
    alice.say(chat("still here"))
    assert await alice.text() == chat("still here")


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
    for _ in range(1000):
        if len(asyncio.all_tasks()) <= before:
            break
        await asyncio.sleep(0.02)
    assert len(asyncio.all_tasks()) <= before
    assert not server.app[POOL].clients


# --- rooms -----------------------------------------------------------------------------------------------------------

QUIET: dict[str, object] = {"features": ("limits",), "store_url": "memory://", "rate_limit": 0}
"""Without notices of presence."""


async def enter(server: TestServer, query: str = "") -> RawClient:
    """A client in the room `here`, who may ask for more."""
    client = await RawClient.connect(server.port or 0, f"/ws?room=here{query}")
    assert client.status == 101
    return client


async def refusal(server: TestServer, query: str) -> tuple[int, str]:
    """Status, and the text."""
    client = await RawClient.connect(server.port or 0, f"/ws?room=here{query}")
    return client.status, (await client.reader.readexactly(int(client.headers["content-length"]))).decode()


async def hear(client: RawClient, count: int) -> list[str]:
    """The bodies of the next chat messages; nothing else may come."""
    frames = [json.loads(await client.text()) for _ in range(count)]
    assert {frame["type"] for frame in frames} <= {2}
    return [frame["body"] for frame in frames]


def store_of(server: TestServer) -> Store:
    return server.app[ROOMS].store


async def fill(server: TestServer, count: int) -> list[str]:
    """So many messages in the log; their bodies."""
    said = [str(number) for number in range(1, count + 1)]
    await store_of(server).append([Entry("here", "alice", data_of(body)) for body in said])
    return said


async def log_of(server: TestServer) -> list[str]:
    """All that was said, in order."""
    records = await store_of(server).read("here", limit=1_000_000)
    return [json.loads(record.data)["body"] for record in records]


@contextlib.contextmanager
def held(server: TestServer) -> Iterator[asyncio.Event]:
    """Nothing is stored until the event is set."""
    release, append = asyncio.Event(), store_of(server).append

    async def wait(entries: Sequence[Entry]) -> list[Stamp]:
        await release.wait()
        return await append(entries)

    with mock.patch.object(store_of(server), "append", wait):
        try:
            yield release
        finally:
            release.set()


async def test_messages_and_notices_of_a_room_reach_that_room_only(start: Start) -> None:
    server = await start()
    alice = await connect(server, "alice")
    bob = await RawClient.connect(server.port or 0, "/ws?name=bob&room=red")
    assert "bob connected" in await bob.text()
    bob.say(chat("red"))
    assert await bob.text() == chat("red")
    assert await alice.silent()
    alice.say(chat("lobby"))
    assert await alice.text() == chat("lobby")
    assert await bob.silent()
    await bob.close()
    assert await alice.silent()


async def test_no_command_speaks_in_a_room_that_its_sender_isnt_in(start: Start) -> None:
    server = await start(**QUIET)
    here = await enter(server)
    lobby = await RawClient.connect(server.port or 0, "/ws")
    here.say('{"type":2,"body":"hi","room":"lobby"}')
    assert "(411)" in await here.text()
    here.say(chat("hi"))
    assert await hear(here, 1) == ["hi"]
    assert await lobby.silent()
    assert await store_of(server).top(["here", "lobby"]) == {"here": 1, "lobby": 0}


async def test_a_room_that_cant_be_one_is_refused_with_its_grammar(start: Start) -> None:
    server = await start(**QUIET)
    for room in ("-a", "a%20b", "a/b", "a%0A", "%C3%A9", "a" * 129, "%00", "a%00b", "..", "$", "$$a"):
        client = await RawClient.connect(server.port or 0, f"/ws?room={room}")
        assert client.status == 400, room
        assert (await client.reader.readexactly(6)) == b"room: "
    assert len(server.app[ROOMS]) == 0


@pytest.mark.parametrize("count", [0, 1, 3, 300])
async def test_a_history_is_the_last_messages_before_what_comes(start: Start, count: int) -> None:
    server = await start(**QUIET)
    said = await fill(server, count)
    for asked in (0, 1, 2, 250, 10_000):
        client = await enter(server, f"&history={asked}")
        expected = said[-asked:] if asked else []
        assert await hear(client, len(expected)) == expected
        assert await client.silent()
    speaker = await enter(server, "&history=1")
    speaker.say(chat("live"))
    assert await hear(speaker, min(1, count) + 1) == [*said[-1:], "live"]


async def test_a_history_is_clamped(start: Start) -> None:
    server = await start(**QUIET)
    said = await fill(server, HISTORY + 100)
    client = await enter(server, "&history=1000000")
    assert await hear(client, HISTORY) == said[-HISTORY:]
    assert await client.silent()


async def test_a_history_is_what_is_kept(start: Start) -> None:
    server = await start(**QUIET)
    said = await fill(server, 50)
    await store_of(server).trim(before=0, keep=7)
    client = await enter(server, "&history=20")
    assert await hear(client, 7) == said[-7:]
    assert await client.silent()


@pytest.mark.parametrize("name", ["history", "after"])
async def test_what_is_no_number_is_refused_with_what_is_allowed(start: Start, name: str) -> None:
    server = await start(**QUIET)
    for value in ("-1", "+1", "1.0", "1e3", "NaN", "x", "%201", "1%0A", "%D9%A3", "9" * 16, "9" * 400):
        status, text = await refusal(server, f"&{name}={value}")
        assert (status, text.partition(":")[0]) == (400, name), value


async def speak(server: TestServer, name: str, dice: random.Random, count: int = 250) -> None:
    """Says many things, with pauses; returns when they are stored."""
    speaker = await RawClient.connect(server.port or 0, "/ws?room=here")
    for number in range(count):
        speaker.say(chat(f"{name}-{number}"))
        if dice.random() < 0.3:
            await asyncio.sleep(dice.random() * 0.004)
    await hear_out(speaker, f"{name}-{count - 1}")


async def hear_out(client: RawClient, last: str) -> list[str]:
    """All bodies, notices too, up to this one."""
    heard: list[str] = []
    while heard[-1:] != [last]:
        heard.append(json.loads(await client.text())["body"])
    return heard


@pytest.mark.parametrize("seed", [1, 2])
async def test_joining_while_others_speak_misses_nothing_and_gets_nothing_twice(start: Start, seed: int) -> None:
    server = await start(rate_limit=0)
    dice = random.Random(seed)

    async def join(name: str) -> tuple[RawClient, int]:
        await asyncio.sleep(dice.random() * 0.5)
        asked = dice.choice([0, 1, 2, 7, 50, 210, 1000])
        return await enter(server, f"&name={name}&history={asked}"), asked

    joins = [join(f"listener-{number}") for number in range(30)]
    speakers = [asyncio.create_task(speak(server, name, dice)) for name in "abc"]
    listeners = await asyncio.gather(*joins)
    await asyncio.gather(*speakers)
    last = await enter(server)
    last.say(chat("end"))
    await hear_out(last, "end")
    log = await log_of(server)
    for client, asked in listeners:
        heard = await hear_out(client, "end")
        said = [body for body in heard if not body.endswith("connected")]
        assert len(said) >= min(asked, len(log))
        assert said == log[-len(said) :]
    assert len(log) == 751


async def test_who_comes_back_with_its_place_gets_what_it_missed_once(start: Start) -> None:
    server = await start(**QUIET | {"store_url": "sqlite:///chat.db"})
    dice = random.Random(3)

    async def listen() -> list[str]:
        heard: list[str] = []
        while heard[-1:] != ["end"]:
            epoch = dice.choice(["", f"{store_of(server).epoch}:"])
            client = await enter(server, f"&after={epoch}{len(heard)}")
            for _ in range(dice.randrange(1, 150)):
                heard += await hear(client, 1)
                if heard[-1] == "end":
                    break
            client.abort()
        return heard

    listeners = [asyncio.create_task(listen()) for _ in range(5)]
    await asyncio.gather(*(speak(server, name, dice) for name in "abc"))
    (await enter(server)).say(chat("end"))
    for heard in await asyncio.gather(*listeners):
        assert heard == await log_of(server)


async def test_a_place_says_more_than_a_number(start: Start) -> None:
    server = await start(**QUIET)
    said = await fill(server, 10)
    for query in ("&after=3&history=1", "&history=9&after=3"):
        client = await enter(server, query)
        assert await hear(client, 7) == said[3:]
        assert await client.silent()


async def test_what_cant_be_resumed_is_410_before_the_upgrade(start: Start) -> None:
    server = await start(**QUIET)
    await fill(server, 20)
    await store_of(server).trim(before=0, keep=10)
    epoch = store_of(server).epoch
    for place in (0, 9, 21, "9" * 15, Position(epoch, 9), Position("0" + epoch, 15), Position("abc", 15)):
        status, text = await refusal(server, f"&after={place}")
        assert (status, text.partition(":")[0]) == (410, "after"), place
    for place, missed in ((10, 10), (Position(epoch, 15), 5), (20, 0)):
        client = await enter(server, f"&after={place}")
        assert len(await hear(client, missed)) == missed
        assert await client.silent()


# --- storage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", "&history=5", "&after=0"])
async def test_who_cant_be_let_in_for_the_storage_is_told_when_to_come_back(start: Start, query: str) -> None:
    server = await start(**QUIET)
    await fill(server, 3)
    with mock.patch.multiple(store_of(server), top=unavailable(), read=unavailable()):
        client = await RawClient.connect(server.port or 0, f"/ws?room=here{query}")
        assert client.status == 503
        assert int(client.headers["retry-after"]) > 0
    client = await enter(server, "&after=0")
    assert await hear(client, 3) == ["1", "2", "3"]


def unavailable() -> mock.AsyncMock:
    return mock.AsyncMock(side_effect=StorageUnavailable())


async def test_who_is_let_in_and_cant_be_told_the_history_has_to_come_back(start: Start) -> None:
    server = await start(**QUIET)
    await fill(server, 3)
    alice = await enter(server)
    with mock.patch.object(store_of(server), "read", unavailable()):
        bob = await enter(server, "&history=5")
        assert "(420)" in await bob.text()
        assert await bob.until_closed() == 3010
        alice.say(chat("still here"))
        assert await hear(alice, 1) == ["still here"]


@pytest.mark.parametrize("error", [StorageUnavailable(), StorageFull(), StorageUnsure()], ids=lambda error: error.code)
async def test_what_cant_be_stored_is_said_to_its_sender_alone(start: Start, error: ChatError) -> None:
    server = await start(**QUIET)
    alice, bob = await enter(server), await enter(server)
    with mock.patch.object(store_of(server), "append", side_effect=error):
        alice.say(chat("lost"))
        assert json.loads(await alice.text()) == {"type": 1, "body": f"error: {error} ({error.code})"}
        assert await bob.silent()
    alice.say(chat("healed"))
    for client in (alice, bob):
        assert await hear(client, 1) == ["healed"]
        assert await client.silent()
    assert await log_of(server) == ["healed"]


async def test_storage_that_fails_for_long_costs_nobody_the_connection(start: Start) -> None:
    server = await start(**QUIET)
    alice = await enter(server)
    with mock.patch.object(store_of(server), "append", side_effect=StorageUnavailable()):
        for number in range(50):
            alice.say(chat(f"{number}"))
        for _ in range(50):
            assert "(420)" in await alice.text()
    alice.say(chat("healed"))
    assert await hear(alice, 1) == ["healed"]


async def test_nobody_hears_what_isnt_stored_yet(start: Start) -> None:
    server = await start(**QUIET)
    alice, bob = await enter(server), await enter(server)
    with held(server) as release:
        alice.say(chat("hi"))
        for client in (alice, bob):
            assert await client.silent()
        late = await enter(server, "&history=5")
        assert await late.silent()
        release.set()
        for client in (alice, bob, late):
            assert await hear(client, 1) == ["hi"]
            assert await client.silent()


async def test_what_is_sent_at_once_is_stored_and_heard_in_that_order(start: Start) -> None:
    server = await start(**QUIET)
    clients = [await enter(server) for _ in range(3)]
    said = [[f"{name}-{number}" for number in range(300)] for name in "abc"]
    for client, bodies in zip(clients, said, strict=True):
        for body in bodies:
            client.say(chat(body))
    heard = [await hear(client, 900) for client in clients]
    assert heard == [await log_of(server)] * 3
    for name, bodies in zip("abc", said, strict=True):
        assert [body for body in heard[0] if body.startswith(name)] == bodies


async def test_answers_come_in_the_order_of_what_they_answer(start: Start) -> None:
    server = await start(**QUIET)
    alice = await enter(server)
    with held(server) as release:
        for text in (chat("one"), "nope", chat("two"), '{"type":1,"body":""}', chat("three")):
            alice.say(text)
        assert await alice.silent()
        release.set()
        answers = [json.loads(await alice.text())["body"] for _ in range(5)]
    assert [answer.rpartition("(")[2] for answer in answers] == ["one", "410)", "two", "413)", "three"]


async def test_an_answer_waits_for_those_before_it_also_if_they_are_refusals(start: Start) -> None:
    server = await start(**QUIET)
    alice = await enter(server)
    failing = asyncio.Event()

    async def fail(entries: Sequence[Entry]) -> list[Stamp]:
        await failing.wait()
        raise StorageUnavailable

    with mock.patch.object(store_of(server), "append", fail):
        alice.say(chat("lost"))
        alice.say("nope")
        assert await alice.silent()
        failing.set()
        assert "(420)" in await alice.text()
        assert "(410)" in await alice.text()


async def test_what_was_on_its_way_when_its_sender_left_is_stored_and_heard(start: Start) -> None:
    server = await start(**QUIET)
    alice, bob = await enter(server), await enter(server)
    with held(server) as release:
        alice.say(chat("last words"))
        assert await alice.silent()
        alice.abort()
        release.set()
        assert await hear(bob, 1) == ["last words"]
    assert await log_of(server) == ["last words"]


async def test_who_is_being_disconnected_says_nothing_any_more(start: Start) -> None:
    server = await start(**QUIET)
    alice = await enter(server)
    (client,) = server.app[POOL].clients
    client.disconnect(Disconnect("banned"))
    alice.say(chat("one"))
    alice.say(chat("two"))
    assert await alice.until_closed() == 1008
    await server.app[ROOMS].settle()
    assert await log_of(server) == []


async def test_whoever_sends_faster_than_it_is_stored_waits(start: Start) -> None:
    server = await start(**QUIET)
    alice = await enter(server)
    (client,) = server.app[POOL].clients
    texts = [str(number) for number in range(UNSTORED + 10)]
    with held(server) as release:
        for number, text in enumerate(texts):
            alice.say(chat(text))
            while client.received < min(number, UNSTORED):  # it takes them one by one
                await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        assert client.received == UNSTORED + 1
        release.set()
        assert await hear(alice, len(texts)) == texts
    assert await log_of(server) == texts
