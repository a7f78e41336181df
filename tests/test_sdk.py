"""The published client SDKs, unmodified, against a server process."""

import asyncio
import itertools
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from chatserver.tokens import make_token
from tests.raw import RawClient
from tests.sdks import ALL, NEW_JS, NEW_PY, PATIENCE, Driver, Sdk, driver, program
from tests.server import ROOT, Server
from tests.test_docs import block

SECRET = "a-secret-for-tests-of-thirty-two"
NEW = [sdk for sdk in ALL if sdk.version in (NEW_JS, NEW_PY)]

pytestmark = pytest.mark.timeout(300)  # the first one installs the SDKs
every_sdk = pytest.mark.parametrize("sdk", ALL, ids=str)
the_new_ones = pytest.mark.parametrize("sdk", NEW, ids=str)


@pytest.fixture
async def sdk_driver(sdk: Sdk) -> AsyncIterator[Driver]:
    async with driver(sdk) as found:
        yield found


@pytest.fixture
async def everybody() -> AsyncIterator[dict[str, Driver]]:
    """A driver for each, by its name."""
    async with AsyncExitStack() as stack:
        yield {str(sdk): await stack.enter_async_context(driver(sdk)) for sdk in ALL}


def url(server: Server) -> str:
    return f"ws://127.0.0.1:{server.port}/connection/websocket"


async def enter(driver: Driver, server: Server, client: str, channel: str = "lobby", **options: Any) -> None:
    """A client that is connected and subscribed."""
    driver.do("connect", client=client, url=url(server))
    await driver.event("connected", who=client)
    driver.do("subscribe", client=client, channel=channel, options=options)
    await driver.event("subscribed", who=client, channel=channel)


async def kept(server: Server, room: str = "lobby") -> list[tuple[int, Any]]:
    """The room's history."""
    found: list[tuple[int, Any]] = []
    async with aiohttp.ClientSession() as session:
        while True:
            after = found[-1][0] if found else 0
            path = f"http://127.0.0.1:{server.port}/api/rooms/{room}/messages?after={after}&limit=200"
            async with session.get(path) as answer:
                page = (await answer.json())["messages"]
            if not page:
                return found
            found += [(message["offset"], message["data"]) for message in page]


def publications(driver: Driver, client: str, channel: str = "lobby") -> list[tuple[int, Any]]:
    return [(event["offset"], event["data"]) for event in driver.all("publication", who=client, channel=channel)]


@every_sdk
async def test_all_that_a_client_does(server: Server, sdk_driver: Driver) -> None:
    server.start()
    d = sdk_driver
    await enter(d, server, "ann", joinLeave=True)
    (connected,) = d.all("connected", who="ann")
    assert connected["client"]
    await d.event("join", who="ann", channel="lobby")
    count = len(d.events)
    await enter(d, server, "bob")
    await d.event("join", who="ann", channel="lobby", after=count)
    assert "error" not in await d.call("ann", "publish", "lobby", {"body": "hi", "n": [1, 2.5, None]})
    for client in ("ann", "bob"):
        heard = await d.event("publication", who=client, channel="lobby")
        assert (heard["data"], heard["offset"]) == ({"body": "hi", "n": [1, 2.5, None]}, 1)
    stats = (await d.call("ann", "presenceStats", "lobby"))["result"]
    assert (stats["numClients"], stats["numUsers"]) == (2, 1)
    assert len((await d.call("ann", "presence", "lobby"))["result"]["clients"]) == 2
    for number in (2, 3):
        await d.call("bob", "publish", "lobby", number)
    history = (await d.call("ann", "history", "lobby", {"limit": 2, "reverse": True}))["result"]
    assert [(one["offset"], one["data"]) for one in history["publications"]] == [(3, 3), (2, 2)]
    since = {"offset": 1, "epoch": history["epoch"]}
    history = (await d.call("ann", "history", "lobby", {"limit": -1, "since": since}))["result"]
    assert ([one["data"] for one in history["publications"]], history["offset"]) == ([2, 3], 3)
    wrong = await d.call("ann", "history", "lobby", {"limit": 1, "since": {"offset": 1, "epoch": "other"}})
    assert wrong["error"]["code"] == 112
    said = [await d.call("ann", "rpc", "send", {"room": "lobby", "body": "once", "key": "k" * 16}) for _ in range(2)]
    assert [answer["result"]["data"]["offset"] for answer in said] == [4, 4]
    assert (await d.call("ann", "rpc", "nosuch", {}))["error"]["code"] == 104
    assert (await d.call("ann", "publish", "nowhere:x", {}))["error"]["code"] == 102
    d.do("subscribe", client="ann", channel="nowhere:x")
    assert (await d.event("unsubscribed", who="ann", channel="nowhere:x"))["code"] == 102
    d.do("unsubscribe", client="bob", channel="lobby")
    await d.event("unsubscribed", who="bob", channel="lobby")
    await d.event("leave", who="ann", channel="lobby")
    assert (await d.call("bob", "publish", "lobby", {}))["error"]["code"] == 103
    count = len(d.events)
    await d.call("ann", "publish", "lobby", "meanwhile")
    d.do("resubscribe", client="bob", channel="lobby")
    again = await d.event("subscribed", after=count, who="bob", channel="lobby")
    assert (again["wasRecovering"], again["recovered"]) == (True, True)
    assert (await d.event("publication", after=count, who="bob"))["data"] == "meanwhile"
    d.do("disconnect", client="bob")
    await d.event("disconnected", who="bob")


async def test_all_of_them_chat_with_each_other_and_with_the_simple_protocol(
    server: Server, everybody: dict[str, Driver]
) -> None:
    server.start()
    for name, member in everybody.items():
        await enter(member, server, name)
    bob = await RawClient.connect(server.port, "/ws?name=bob")
    assert await bob.text() == '{"type":1,"body":"bob connected"}'
    bob.say('{"type":2,"body":"hi"}')
    assert await bob.text() == '{"type":2,"body":"hi"}'
    said: list[Any] = [{"body": "hi"}]
    for name, member in everybody.items():
        said += [[name, "is not for bob"], {"body": name, "more": [1, {}]}]
        for data in said[-2:]:
            await member.call(name, "publish", "lobby", data)
        assert await bob.text() == f'{{"type":2,"body":"{name}"}}'
    for name, member in everybody.items():
        await member.event("publication", who=name, data=said[-1])
        assert publications(member, name) == list(enumerate(said, 1))


async def hand_out_tokens(driver: Driver, count: int) -> None:
    """Answers whoever asks for one: the first lasts for a second, the others for an hour."""
    handed_out = set()
    for number in range(count):
        await driver.told(lambda _: len(driver.all("token")) > number)  # noqa: B023
        ask = driver.all("token")[number]
        channel = ask.get("channel", "")
        seconds = 3600 if channel in handed_out else 1
        handed_out.add(channel)
        driver.do("token", id=ask["id"], token=make_token(SECRET, "ann", seconds=seconds, channel=channel))


@the_new_ones
async def test_tokens_are_refreshed_and_nobody_is_disconnected(server: Server, sdk_driver: Driver) -> None:
    server.start(TOKEN_HMAC_SECRET=SECRET)
    d = sdk_driver
    d.do("connect", client="ann", url=url(server), refresh=True)
    d.do("subscribe", client="ann", channel="$vault", refresh=True)
    await hand_out_tokens(d, 4)
    await d.event("subscribed", who="ann", channel="$vault")
    assert sorted(ask.get("channel", "") for ask in d.all("token")) == ["", "", "$vault", "$vault"]
    await d.call("ann", "publish", "$vault", "still here")
    await d.event("publication", who="ann", channel="$vault", data="still here")
    presence = (await d.call("ann", "presence", "$vault"))["result"]["clients"]
    assert [info["user"] for info in presence.values()] == ["ann"]
    assert len(d.all("connected", who="ann")) == 1
    assert len(d.all("subscribed", who="ann", channel="$vault")) == 1
    d.do("connect", client="eve", url=url(server), token=make_token("another-secret-of-thirty-two-byt", "eve"))
    assert (await d.event("disconnected", who="eve"))["code"] == 3500


async def talk(driver: Driver, client: str, stop: asyncio.Event) -> list[Any]:
    """Says numbers, each with its own as a key until it is acknowledged; those that were."""
    acknowledged: list[Any] = []
    for number in itertools.count():
        said = {"room": "lobby", "data": [client, number], "key": f"{client}-{number:020}"}
        while "result" not in await driver.call(client, "rpc", "send", said):
            await asyncio.sleep(0.02)
        acknowledged.append(said["data"])
        if stop.is_set():
            break
    return acknowledged


async def heard(driver: Driver, client: str, count: int) -> None:
    """Returns when the client has got so many."""
    await driver.told(lambda _: len(publications(driver, client)) >= count)


async def test_nothing_is_lost_or_doubled_over_restarts(server: Server, everybody: dict[str, Driver]) -> None:
    server.start()
    for name, member in everybody.items():
        await enter(member, server, name)
    stop = asyncio.Event()
    talking = {name: asyncio.create_task(talk(member, name, stop)) for name, member in everybody.items()}
    for times, number in enumerate((signal.SIGKILL, signal.SIGTERM), 2):
        for name, member in everybody.items():
            await heard(member, name, len(publications(member, name)) + 20)
        server.signal(number)
        await asyncio.to_thread(server.wait)
        server.start()
        for name, member in everybody.items():
            await member.told(lambda _: len(member.all("subscribed", who=name, channel="lobby")) >= times)  # noqa: B023
    stop.set()
    acknowledged = {name: await task for name, task in talking.items()}
    log = await kept(server)
    assert len(log) == sum(map(len, acknowledged.values()))
    for name, member in everybody.items():
        assert [data for _, data in log if data[0] == name] == acknowledged[name]
        await heard(member, name, len(log))
        assert publications(member, name) == log, name
        again = member.all("subscribed", who=name, channel="lobby")[1:]
        assert all(event["wasRecovering"] and event["recovered"] for event in again), name


async def test_slow_readers_are_disconnected_and_get_all_of_it(server: Server, everybody: dict[str, Driver]) -> None:
    server.start(MAX_QUEUE_BYTES="20000", MAX_BODY_BYTES="60000")
    for name, slow in everybody.items():
        await enter(slow, server, name)
    async with driver(NEW[0]) as other:
        await enter(other, server, "fast")
        for slow in everybody.values():
            slow.signal(signal.SIGSTOP)
        deadline = time.monotonic() + PATIENCE
        while len(server.events("slow")) < len(everybody):
            assert time.monotonic() < deadline
            await asyncio.gather(*(other.call("fast", "publish", "lobby", "x" * 55_000) for _ in range(10)))
        for slow in everybody.values():
            slow.signal(signal.SIGCONT)
    log = await kept(server)
    for name, slow in everybody.items():
        await heard(slow, name, len(log))
        assert publications(slow, name) == log, name
        again = slow.all("subscribed", who=name, channel="lobby")[1:]
        assert again, name
        assert all(event["wasRecovering"] and event["recovered"] for event in again), name
    assert {line["code"] for line in server.events("slow")} == {3008}


async def test_a_position_that_cannot_be_recovered_is_reported(server: Server, everybody: dict[str, Driver]) -> None:
    server.start(NAMESPACES=json.dumps({"": {"history_size": 5}}))
    for name, member in everybody.items():
        await enter(member, server, name)
    await member.call(name, "publish", "lobby", "before")
    for name, member in everybody.items():
        await member.event("publication", who=name, data="before")
        member.do("unsubscribe", client=name, channel="lobby")
        await member.event("unsubscribed", who=name, channel="lobby")
        await member.call(name, "rpc", "nosuch", {})  # SDKs say so before the server has heard it
    bob = await RawClient.connect(server.port, "/ws?name=bob")
    for number in range(9):
        bob.say(f'{{"type":2,"body":"{number}"}}')
    while await bob.text() != '{"type":2,"body":"8"}':
        continue
    counts = {name: len(member.events) for name, member in everybody.items()}
    for name, member in everybody.items():
        member.do("resubscribe", client=name, channel="lobby")
        again = await member.event("subscribed", after=counts[name], who=name, channel="lobby")
        assert (again["wasRecovering"], again["recovered"]) == (True, False), name
    bob.say('{"type":2,"body":"live"}')
    for name, member in everybody.items():
        live = await member.event("publication", after=counts[name], who=name)
        assert live["data"] == {"body": "live"}, name


@pytest.fixture
async def tokens() -> AsyncIterator[str]:
    """A URL that hands out tokens, each for two seconds at most."""

    async def hand_out(request: web.Request) -> web.Response:
        return web.Response(text=make_token(SECRET, request.query["user"], seconds=2))

    app = web.Application()
    app.router.add_get("/token", hand_out)
    async with TestServer(app) as found:
        yield str(found.make_url("/token"))


class Chatter:
    """A program of the docs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin
        assert process.stdout
        self.process, self._stdin, self._stdout = process, process.stdin, process.stdout

    def say(self, text: str) -> None:
        self._stdin.write(f"{text}\n".encode())

    async def hears(self, offset: int, user: str, text: str) -> None:
        """Returns if that is what it prints next."""
        printed, said = (await self._line()).split(" ", 2), {"body": text}
        assert printed[:2] == [str(offset), user]
        assert printed[2] in (json.dumps(said, separators=(",", ":")), str(said))

    async def ends(self) -> None:
        """Returns if it ends well when nobody has anything to say."""
        self._stdin.close()
        assert "disconnect" in await self._line()
        assert await self.process.wait() == 0

    async def _line(self) -> str:
        async with asyncio.timeout(PATIENCE):
            return (await self._stdout.readline()).decode().rstrip("\n")


@pytest.mark.parametrize("known", [False, True], ids=["anybody", "with-tokens"])
async def test_the_programs_in_the_docs_chat(server: Server, tokens: str, tmp_path: Path, known: bool) -> None:
    secret = SECRET if known else ""
    server.start(TOKEN_HMAC_SECRET=secret)
    ann, bob = ("ann", "bob") if known else ("", "")

    async def start(file: str, language: str, sdk: Sdk, user: str) -> Chatter:
        (tmp_path / file).write_text(block((ROOT / "docs" / "clients.md").read_text(), language))
        environment = {"CHAT_URL": url(server)} | ({"TOKEN_URL": f"{tokens}?user={user}"} if known else {})
        return Chatter(await stack.enter_async_context(program(sdk, tmp_path / file, **environment)))

    async with AsyncExitStack() as stack:
        javascript = await start("chat.mjs", "js", NEW[0], ann)
        javascript.say("is anybody there?")
        await javascript.hears(1, ann, "is anybody there?")
        python = await start("chat.py", "python", NEW[2], bob)
        python.say("yes")
        for chatter in (javascript, python):
            await chatter.hears(2, bob, "yes")
        server.stop(signal.SIGKILL)
        javascript.say("still?")
        server.start(TOKEN_HMAC_SECRET=secret)
        for chatter in (javascript, python):
            await chatter.hears(3, ann, "still?")
            await chatter.ends()


async def program_does(server: Server, method: str, **what: Any) -> None:
    """Calls the server API."""
    url = f"http://127.0.0.1:{server.port}/api/{method}"
    async with aiohttp.ClientSession() as session, session.post(url, json=what) as answer:
        assert "result" in await answer.json()


@the_new_ones
async def test_the_server_subscribes_over_a_restart_and_unsubscribes_and_disconnects(
    server: Server, sdk_driver: Driver
) -> None:
    server.start(TOKEN_HMAC_SECRET=SECRET)
    d = sdk_driver
    claims = {"sub": "ann", "exp": int(time.time()) + 3600, "channels": ["news"]}
    d.do("connect", client="ann", url=url(server), token=jwt.encode(claims, SECRET))
    await d.event("subscribed", who="ann", channel="news", server=True)
    await program_does(server, "publish", channel="news", data="one")
    await d.event("publication", who="ann", channel="news", server=True, data="one")
    server.kill()
    server.start(TOKEN_HMAC_SECRET=SECRET)
    await program_does(server, "publish", channel="news", data="two")
    await d.told(lambda _: len(d.all("subscribed", who="ann", channel="news")) > 1)
    await d.event("publication", who="ann", channel="news", data="two")
    d.do("subscribe", client="ann", channel="lobby")
    await d.event("subscribed", who="ann", channel="lobby")
    await program_does(server, "unsubscribe", user="ann", channel="lobby")
    assert (await d.event("unsubscribed", who="ann", channel="lobby"))["code"] == 2000
    await program_does(server, "disconnect", user="ann", disconnect={"code": 4501, "reason": "that's enough"})
    end = await d.event("disconnected", who="ann")
    assert (end["code"], end["reason"]) == (4501, "that's enough")
    heard = [event["data"] for event in d.all("publication", who="ann", channel="news")]
    assert heard == ["one", "two"]
