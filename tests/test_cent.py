"""The server API with `cent`, a client library of others, as it is."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import cent
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from chatserver import __version__
from chatserver.app import build
from chatserver.config import Config
from tests.subscriber import SECRET, Subscriber

Client = TestClient[web.Request, web.Application]
Send: TypeAlias = Callable[..., Awaitable[Any]]
"""Has a request sent, which is told by its method's name and its fields; returns the result."""

KEY = "api_key"
NAMESPACES = {"plain": {"presence": "nobody", "history": "nobody"}}
REQUESTS: dict[str, Any] = {
    "publish": cent.PublishRequest,
    "broadcast": cent.BroadcastRequest,
    "subscribe": cent.SubscribeRequest,
    "unsubscribe": cent.UnsubscribeRequest,
    "disconnect": cent.DisconnectRequest,
    "presence": cent.PresenceRequest,
    "presence_stats": cent.PresenceStatsRequest,
    "history": cent.HistoryRequest,
    "history_remove": cent.HistoryRemoveRequest,
    "channels": cent.ChannelsRequest,
    "info": cent.InfoRequest,
    "batch": cent.BatchRequest,
}


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """Of a server in this process that keeps nothing."""
    config = Config(
        store_url="memory://",
        api_token=KEY,
        token_hmac_secret=SECRET,
        anonymous="on",
        namespaces=json.dumps(NAMESPACES),
    )
    async with TestClient(TestServer(build(config))) as client:
        yield client


@pytest.fixture(params=["sync", "async"])
async def send(request: pytest.FixtureRequest, client: Client) -> AsyncIterator[Send]:
    """With either client of the library."""
    url = str(client.make_url("/api"))
    if request.param == "sync":
        with cent.Client(url, KEY) as sync:
            yield lambda name, **body: asyncio.to_thread(getattr(sync, name), REQUESTS[name](**body))
    else:
        async with cent.AsyncClient(url, KEY, session=client.session) as api:
            yield lambda name, **body: getattr(api, name)(REQUESTS[name](**body))


async def connect(client: Client, user: str = "ann") -> Subscriber:
    return await Subscriber.connect(client.session, client.make_url("/"), user)


async def test_publish(client: Client, send: Send) -> None:
    ann = await (await connect(client)).join("here")
    result = await send("publish", channel="here", data={"body": "hi"}, tags={"k": "v"}, idempotency_key="k")
    again = await send("publish", channel="here", data={"body": "hi"}, idempotency_key="k")
    assert (result.offset, bool(result.epoch)) == (1, True)
    assert again == result
    assert await ann.push() == {"channel": "here", "pub": {"data": {"body": "hi"}, "offset": 1, "tags": {"k": "v"}}}
    assert (await send("publish", channel="plain:1", data=1)).offset == 0
    assert (await send("publish", channel="here", data=1, skip_history=True)).offset == 0


async def test_broadcast(client: Client, send: Send) -> None:
    ann = await (await connect(client)).join("here", "there")
    result = await send("broadcast", channels=["here", "nowhere:1", "there"], data=[1])
    assert [response.result and response.result.offset for response in result.responses] == [1, None, 1]
    assert result.responses[1].error.code == 102
    assert [(await ann.push())["channel"] for _ in range(2)] == ["here", "there"]


async def test_subscribe_and_unsubscribe(client: Client, send: Send) -> None:
    ann = await connect(client)
    position = (await send("publish", channel="here", data=1)).epoch
    since = cent.StreamPosition(offset=0, epoch=position)
    await send("subscribe", user="ann", channel="here", data={"topic": 1}, info={"role": "mod"}, recover_since=since)
    assert (await ann.push())["subscribe"]["data"] == {"topic": 1}
    assert (await ann.push())["pub"] == {"data": 1, "offset": 1}
    await send("unsubscribe", user="ann", channel="here", client=ann.id)
    assert await ann.push() == {"channel": "here", "unsubscribe": {"code": 2000, "reason": "server unsubscribe"}}
    await send("subscribe", user="nobody", channel="here")


async def test_disconnect(client: Client, send: Send) -> None:
    ann, too, bob = await connect(client), await connect(client), await connect(client, "bob")
    ending = cent.Disconnect(code=4001, reason="kicked")
    await send("disconnect", user="ann", disconnect=ending, whitelist=[too.id])
    assert await ann.end() == (4001, "kicked")
    assert await too.silent()
    await send("disconnect", user="bob", client=bob.id)
    assert await bob.end() == (3503, "force disconnect")


async def test_presence(client: Client, send: Send) -> None:
    ann = await (await connect(client)).join("here")
    presence = (await send("presence", channel="here")).presence
    assert {name: (info.user, info.client) for name, info in presence.items()} == {ann.id: ("ann", ann.id)}
    stats = await send("presence_stats", channel="here")
    assert (stats.num_clients, stats.num_users) == (1, 1)
    assert (await send("presence", channel="empty")).presence == {}


async def test_history(client: Client, send: Send) -> None:
    ann = await (await connect(client)).join("here")
    await ann.ask(publish={"channel": "here", "data": 1})
    epoch = (await send("publish", channel="here", data=2)).epoch
    page = await send("history", channel="here", limit=10)
    assert [(entry.data, entry.offset) for entry in page.publications] == [(1, 1), (2, 2)]
    assert page.publications[0].info.client == ann.id
    assert (page.offset, page.epoch) == (2, epoch)
    since = cent.StreamPosition(offset=2, epoch=epoch)
    page = await send("history", channel="here", limit=1, since=since, reverse=True)
    assert [entry.data for entry in page.publications] == [1]
    await send("history_remove", channel="here")
    page = await send("history", channel="here", limit=10)
    assert (page.publications, page.offset, page.epoch) == ([], 2, epoch)


async def test_channels_and_info(client: Client, send: Send) -> None:
    ann = await (await connect(client)).join("here", "plain:1")
    found = (await send("channels")).channels
    assert {name: channel.num_clients for name, channel in found.items()} == {"here": 1, "plain:1": 1}
    assert (await send("channels", pattern="plain:*")).channels.keys() == {"plain:1"}
    (node,) = (await send("info")).nodes
    assert (node.version, node.num_clients, node.num_users, node.num_subs) == (__version__, 1, 1, 2)
    assert await ann.silent()


@pytest.mark.parametrize("parallel", [False, True])
async def test_batch(client: Client, send: Send, parallel: bool) -> None:
    ann = await (await connect(client)).join("here")
    requests = [
        cent.PublishRequest(channel="here", data=1),
        cent.PresenceStatsRequest(channel="here"),
        cent.BroadcastRequest(channels=["there"], data=1),
        cent.UnsubscribeRequest(user="ann", channel="there"),
    ]
    publish, stats, broadcast, _ = (await send("batch", requests=requests, parallel=parallel)).replies
    assert (publish.offset, stats.num_clients, broadcast.responses[0].result.offset) == (1, 1, 1)
    assert (await ann.push())["pub"]["data"] == 1


async def test_errors_have_their_numbers(send: Send) -> None:
    for name, number in (("presence", 108), ("history", 108)):
        with pytest.raises(cent.CentApiResponseError) as error:
            await send(name, channel="plain:1")
        assert error.value.code == number
    for channel, data, number in (
        ("nowhere:1", 1, 102),
        ("", 1, 107),
        ("here", None, 107),
    ):  # it leaves out what is None
        with pytest.raises(cent.CentApiResponseError) as error:
            await send("publish", channel=channel, data=data)
        assert error.value.code == number


async def test_a_wrong_key_is_told(client: Client) -> None:
    url = str(client.make_url("/api"))
    async with cent.AsyncClient(url, "wrong", session=client.session) as api:
        with pytest.raises(cent.CentUnauthorizedError):
            await api.info(cent.InfoRequest())
