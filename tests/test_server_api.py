"""`POST /api/METHOD`: what programs do with channels, users and connections."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any
from unittest import mock

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from chatserver import __version__, subscriptions
from chatserver.app import build
from chatserver.config import Config
from chatserver.errors import StorageFull, StorageUnavailable, StorageUnsure
from chatserver.keys import POOL, ROOMS
from chatserver.protocol.payload import DEPTH
from chatserver.store import Entry, Stamp, Store
from chatserver.tokens import make_token
from tests.raw import RawClient
from tests.subscriber import SECRET, Subscriber

Client = TestClient[web.Request, web.Application]

TOKEN = "correct-horse"
NAMESPACES = {
    "secret": {"presence": "nobody", "history": "nobody"},
    "last": {"recovery": "cache"},
    "plain": {"recovery": "off"},
}
METHODS = ["publish", "broadcast", "subscribe", "unsubscribe", "disconnect", "presence", "presence_stats"]
METHODS += ["history", "history_remove", "channels", "info", "batch"]


def serving(**settings: Any) -> Client:
    """A server in this process that keeps nothing, and a client of it."""
    usual = {"store_url": "memory://", "features": ("api", "centrifuge"), "namespaces": json.dumps(NAMESPACES)}
    return TestClient(TestServer(build(Config(**usual | {"token_hmac_secret": SECRET, "anonymous": "on"} | settings))))


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with serving() as client:
        yield client


async def post(client: Client, method: str, body: Any, **headers: str) -> tuple[int, Any]:
    """Status and JSON; `body` is sent as it is if it is bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with client.post(f"/api/{method}", data=data, headers=headers) as response:
        assert response.content_type == "application/json"
        return response.status, await response.json()


async def call(client: Client, method: str, /, **body: Any) -> Any:
    """The result."""
    status, answer = await post(client, method, body)
    assert (status, answer.keys()) == (200, {"result"}), answer
    return answer["result"]


async def refused(client: Client, method: str, /, **body: Any) -> int:
    """The number of the error."""
    status, answer = await post(client, method, body)
    assert (status, answer.keys()) == (200, {"error"}), answer
    assert {name: type(value) for name, value in answer["error"].items()} == {"code": int, "message": str}
    number: int = answer["error"]["code"]
    return number


async def connect(client: Client, user: str = "", **claims: Any) -> Subscriber:
    return await Subscriber.connect(client.session, client.make_url("/"), user, **claims)


def store_of(client: Client) -> Store:
    return client.app[ROOMS].store


async def payloads(client: Client, channel: str = "here") -> list[Any]:
    """All that was said in the channel."""
    page = await call(client, "history", channel=channel, limit=-1)
    return [publication["data"] for publication in page["publications"]]


def told(channel: str, **pub: Any) -> Any:
    """A push."""
    return {"channel": channel, "pub": pub}


# --- publish ---------------------------------------------------------------------------------------------------------


async def test_what_is_published_is_told_to_members_and_answered_with_its_place(client: Client) -> None:
    ann, bob = await connect(client, "ann"), await connect(client, "bob")
    await ann.join("here")
    result = await call(client, "publish", channel="here", data={"body": "hi"}, tags={"k": "v"})
    assert result == {"offset": 1, "epoch": store_of(client).epoch}
    assert await ann.push() == told("here", data={"body": "hi"}, offset=1, tags={"k": "v"})
    assert await bob.silent()


@pytest.mark.parametrize("data", [1, 1.5, "text", None, True, [], {}, ["é", {"🙂": None}], {"body": 7}])
async def test_any_json_may_be_published(client: Client, data: Any) -> None:
    ann = await (await connect(client)).join("here")
    for given in ({"data": data}, {"b64data": base64.b64encode(json.dumps(data).encode()).decode()}):
        await call(client, "publish", channel="here", **given)
        assert (await ann.push())["pub"]["data"] == data
    assert await payloads(client) == [data, data]


async def test_of_two_payloads_the_one_in_base64_counts(client: Client) -> None:
    await call(client, "publish", channel="here", data=1, b64data=base64.b64encode(b"2").decode())
    assert await payloads(client) == [2]


async def test_members_with_the_simple_protocol_hear_the_text(client: Client) -> None:
    member = await RawClient.connect(client.port or 0, "/ws?room=here")
    await call(client, "publish", channel="here", data={"body": "hi", "more": 1})
    assert await member.text() == '{"type":2,"body":"hi"}'
    assert (await store_of(client).read("here", limit=1))[0].user == "server"


async def test_where_positions_are_not_told_none_is(client: Client) -> None:
    ann = await (await connect(client)).join("secret:1")
    assert await call(client, "publish", channel="secret:1", data=1) == {}
    assert await ann.push() == told("secret:1", data=1)


DEEP = "[" * (DEPTH + 1) + "]" * (DEPTH + 1)
UNSAYABLE: dict[str, tuple[int, dict[str, Any]]] = {
    "an unknown namespace": (102, {"channel": "nowhere:1", "data": 1}),
    "no channel's name": (107, {"channel": "-", "data": 1}),
    "an empty name": (107, {"channel": "", "data": 1}),
    "nothing to be said": (107, {"channel": "here"}),
    "nothing in base64": (107, {"channel": "here", "b64data": ""}),
    "no base64": (107, {"channel": "here", "b64data": "e30"}),
    "almost base64": (107, {"channel": "here", "b64data": "e!30="}),
    "no base64, no ASCII": (107, {"channel": "here", "b64data": "é"}),
    "no JSON in base64": (107, {"channel": "here", "b64data": "aGk="}),
    "too deep": (107, {"channel": "here", "b64data": base64.b64encode(DEEP.encode()).decode()}),
    "a lone surrogate": (107, {"channel": "here", "b64data": base64.b64encode(b'"\\ud800"').decode()}),
    "U+0000 in the text": (415, {"channel": "here", "data": {"body": "a\0b"}}),
    "U+0000 in the key": (107, {"channel": "here", "data": 1, "idempotency_key": "a\0b"}),
    "too long a text": (414, {"channel": "here", "data": {"body": "x" * 32769}}),
}


@pytest.mark.parametrize(("number", "body"), UNSAYABLE.values(), ids=list(UNSAYABLE))
async def test_what_cant_be_published_is_refused(client: Client, number: int, body: dict[str, Any]) -> None:
    assert await refused(client, "publish", **body) == number
    assert await payloads(client) == []


async def test_a_key_is_stored_and_told_once_in_its_channel(client: Client) -> None:
    ann = await (await connect(client)).join("here")
    key = "order 17: é"
    answers = [await call(client, "publish", channel="here", data=n, idempotency_key=key) for n in range(3)]
    assert answers == [answers[0]] * 3
    await call(client, "publish", channel="there", data=0, idempotency_key=key)
    assert (await ann.push())["pub"]["data"] == 0
    assert await ann.silent()
    assert (await payloads(client), await payloads(client, "there")) == ([0], [0])


async def test_an_empty_key_is_none(client: Client) -> None:
    for _ in range(2):
        await call(client, "publish", channel="here", data=1, idempotency_key="")
    assert await payloads(client) == [1, 1]


async def test_without_history_it_is_told_and_not_kept(client: Client) -> None:
    ann = await (await connect(client)).join("here")
    assert await call(client, "publish", channel="here", data=1, skip_history=True) == {}
    assert await call(client, "publish", channel="empty", data=1, skip_history=True) == {}
    assert await ann.push() == told("here", data=1)
    assert await payloads(client) == []


@pytest.mark.parametrize("error", [StorageUnavailable(), StorageFull(), StorageUnsure()], ids=lambda error: error.code)
async def test_what_cant_be_stored_is_an_internal_error(client: Client, error: Exception) -> None:
    with mock.patch.object(store_of(client), "append", side_effect=error):
        assert await refused(client, "publish", channel="here", data=1) == 100
        responses = (await call(client, "broadcast", channels=["here"], data=1))["responses"]
        assert [response["error"]["code"] for response in responses] == [100]
    assert (await call(client, "publish", channel="here", data=1))["offset"] == 1


async def test_the_answer_comes_when_it_is_stored(client: Client) -> None:
    stored, append = asyncio.Event(), store_of(client).append

    async def slow(entries: list[Entry]) -> list[Stamp]:
        await stored.wait()
        return await append(entries)

    with mock.patch.object(store_of(client), "append", slow):
        answer = asyncio.create_task(call(client, "publish", channel="here", data=1))
        assert await payloads(client) == []
        await asyncio.sleep(0.05)
        assert not answer.done()
        stored.set()
        assert (await answer)["offset"] == 1


async def test_who_publishes_waits_for_members_who_have_more_to_take(client: Client) -> None:
    taken = asyncio.Event()

    async def crowded(room: str) -> None:
        await taken.wait()

    with mock.patch.object(client.app[ROOMS], "ready", crowded):
        answers = [
            asyncio.create_task(call(client, "publish", channel="here", data=1, skip_history=no))
            for no in (False, True)
        ]
        await asyncio.sleep(0.05)
        assert not any(answer.done() for answer in answers)
        taken.set()
        await asyncio.gather(*answers)


# --- broadcast -------------------------------------------------------------------------------------------------------


async def test_a_broadcast_is_answered_for_each_channel_in_order(client: Client) -> None:
    channels, epoch = ["here", "nowhere:1", "-", "here", "secret:1", "there"], store_of(client).epoch
    responses = (await call(client, "broadcast", channels=channels, data={"body": "hi"}))["responses"]
    assert [response.get("result") for response in responses] == [
        {"offset": 1, "epoch": epoch},
        None,
        None,
        {"offset": 2, "epoch": epoch},
        {},
        {"offset": 1, "epoch": epoch},
    ]
    assert [response["error"]["code"] for response in responses if "error" in response] == [102, 107]


async def test_a_broadcast_to_many_channels_reaches_all(client: Client) -> None:
    channels = [f"room{number}" for number in range(350)]
    responses = (await call(client, "broadcast", channels=channels, data=1, idempotency_key="k"))["responses"]
    assert [response["result"]["offset"] for response in responses] == [1] * 350
    assert await store_of(client).top(channels) == dict.fromkeys(channels, 1)


async def test_nothing_is_broadcast_that_cant_be_said(client: Client) -> None:
    assert await refused(client, "broadcast", channels=["here"], b64data="?") == 107
    assert await call(client, "broadcast", channels=[], data=1) == {"responses": []}


# --- subscribe -------------------------------------------------------------------------------------------------------


async def test_a_users_connections_become_members(client: Client) -> None:
    ann, too, bob = await connect(client, "ann", info='{"n":1}'), await connect(client, "ann"), await connect(client)
    epoch = store_of(client).epoch
    request = {"user": "ann", "channel": "here", "data": {"topic": "hi"}, "info": {"role": "mod"}}
    assert await call(client, "subscribe", **request) == {}
    for each in (ann, too):
        subscribe = {"recoverable": True, "positioned": True, "epoch": epoch, "data": {"topic": "hi"}}
        assert await each.push() == {"channel": "here", "subscribe": subscribe}
    await call(client, "publish", channel="here", data=1)
    for each in (ann, too):
        assert await each.push() == told("here", data=1, offset=1)
    assert await bob.silent()
    presence = (await call(client, "presence", channel="here"))["presence"]
    assert presence == {
        ann.id: {"user": "ann", "client": ann.id, "conn_info": {"n": 1}, "chan_info": {"role": "mod"}},
        too.id: {"user": "ann", "client": too.id, "chan_info": {"role": "mod"}},
    }


async def test_a_subscription_needs_no_data(client: Client) -> None:
    ann = await connect(client, "ann")
    await call(client, "subscribe", user="ann", channel="plain:1", info=None, data=None, b64data="", client="")
    assert await ann.push() == {"channel": "plain:1", "subscribe": {}}


async def test_data_and_info_may_be_in_base64(client: Client) -> None:
    ann, text = await connect(client, "ann"), base64.b64encode(b'{ "x": 1 }').decode()
    await call(client, "subscribe", user="ann", channel="plain:1", b64info=text, b64data=text)
    assert await ann.push() == {"channel": "plain:1", "subscribe": {"data": {"x": 1}}}
    (info,) = (await call(client, "presence", channel="plain:1"))["presence"].values()
    assert info["chan_info"] == {"x": 1}


async def test_one_connection_may_be_chosen(client: Client) -> None:
    ann, too = await connect(client, "ann"), await connect(client, "ann")
    await call(client, "subscribe", user="ann", channel="here", client=too.id)
    await call(client, "subscribe", user="bob", channel="here", client=ann.id)
    await call(client, "subscribe", user="ann", channel="here", session="some")
    assert await ann.silent()
    assert "subscribe" in await too.push()


async def test_no_user_is_those_without_a_token(client: Client) -> None:
    ann, somebody = await connect(client, "ann"), await connect(client)
    await call(client, "subscribe", user="", channel="here")
    assert await ann.silent()
    assert "subscribe" in await somebody.push()


async def test_who_is_a_member_stays_one(client: Client) -> None:
    ann = await (await connect(client, "ann")).join("here")
    for channel in ("here", "there", "there"):
        await call(client, "subscribe", user="ann", channel=channel)
    assert (await ann.push())["channel"] == "there"
    assert await ann.silent()


async def test_the_server_may_what_a_user_may_not(client: Client) -> None:
    ann = await connect(client, "ann")
    assert "error" in await ann.ask(subscribe={"channel": "$private"})
    await call(client, "subscribe", user="ann", channel="$private")
    assert "subscribe" in await ann.push()


async def test_who_isnt_there_is_subscribed_to_nothing(client: Client) -> None:
    assert await call(client, "subscribe", user="nobody", channel="here") == {}
    async with serving(features=("api",)) as other:
        assert await call(other, "subscribe", user="nobody", channel="here") == {}


async def test_who_leaves_just_then_is_subscribed_to_nothing(client: Client) -> None:
    asked, told, top = asyncio.Event(), asyncio.Event(), store_of(client).top

    async def slow(rooms: list[str]) -> dict[str, int]:
        asked.set()
        await told.wait()
        return await top(rooms)

    ann = await connect(client, "ann")
    with mock.patch.object(store_of(client), "top", slow):
        answer = asyncio.create_task(call(client, "subscribe", user="ann", channel="here"))
        await asked.wait()
        await ann.close()
        while client.app[POOL].clients:
            await asyncio.sleep(0.01)
        told.set()
        assert await answer == {}
    assert await call(client, "channels") == {"channels": {}}


async def test_what_came_after_a_position_is_told(client: Client) -> None:
    for number in (1, 2, 3):
        await call(client, "publish", channel="here", data=number)
    ann, epoch = await connect(client, "ann"), store_of(client).epoch
    await call(client, "subscribe", user="ann", channel="here", recover_since={"offset": 1, "epoch": epoch})
    assert (await ann.push())["subscribe"] == {"recoverable": True, "positioned": True, "epoch": epoch, "offset": 1}
    assert [await ann.push() for _ in range(2)] == [told("here", data=n, offset=n) for n in (2, 3)]
    await call(client, "publish", channel="here", data=4)
    assert await ann.push() == told("here", data=4, offset=4)


async def test_the_last_message_is_told_where_that_is_enough(client: Client) -> None:
    for number in (1, 2, 3):
        await call(client, "publish", channel="last:1", data=number)
    ann = await connect(client, "ann")
    await call(client, "subscribe", user="ann", channel="last:1", recover_since={"offset": None})
    assert "subscribe" in await ann.push()
    assert await ann.push() == told("last:1", data=3, offset=3)
    assert await ann.silent()


async def test_who_cant_be_told_all_is_told_where_it_starts(client: Client) -> None:
    await call(client, "publish", channel="here", data=1)
    ann = await connect(client, "ann")
    await call(client, "subscribe", user="ann", channel="here", recover_since={"offset": 0, "epoch": "other"})
    assert (await ann.push())["subscribe"]["offset"] == 1
    assert await ann.silent()


async def test_a_subscription_of_the_servers_ends_with_the_connection(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "GRACE_SECONDS", 0.05)
    ann = await connect(client, "ann")
    await call(client, "subscribe", user="ann", channel="here", expire_at=0)
    await call(client, "subscribe", user="ann", channel="there", expire_at=int(time.time()) - 5)
    assert [(await ann.push())["channel"] for _ in range(2)] == ["here", "there"]
    assert await ann.end() == (3006, "subscription expired")


async def test_what_cant_be_subscribed_is_refused(client: Client) -> None:
    ann = await connect(client, "ann")
    assert await refused(client, "subscribe", user="nobody", channel="nowhere:1") == 102
    assert await refused(client, "subscribe", user="nobody", channel="") == 107
    assert await refused(client, "subscribe", user="nobody", channel="here", b64info="?") == 107
    assert await refused(client, "subscribe", user="nobody", channel="here", b64data="e30") == 107
    with mock.patch.object(store_of(client), "top", side_effect=StorageUnavailable()):
        assert await refused(client, "subscribe", user="ann", channel="here") == 100
    assert await ann.silent()


async def test_a_connection_has_only_so_many_subscriptions(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriptions, "MOST", 1)
    ann = await (await connect(client, "ann")).join("here")
    assert await refused(client, "subscribe", user="ann", channel="there") == 106
    assert await ann.silent()


# --- unsubscribe -----------------------------------------------------------------------------------------------------


async def test_a_user_is_no_member_any_more(client: Client) -> None:
    ann, too, bob = await connect(client, "ann"), await connect(client, "ann"), await connect(client, "bob")
    for each in (ann, too, bob):
        await each.join("here", "there")
    assert await call(client, "unsubscribe", user="ann", channel="here") == {}
    for each in (ann, too):
        assert await each.push() == {"channel": "here", "unsubscribe": {"code": 2000, "reason": "server unsubscribe"}}
    await call(client, "publish", channel="here", data=1)
    assert await ann.silent()
    assert await bob.push() == told("here", data=1, offset=1)
    assert await call(client, "presence_stats", channel="there") == {"num_clients": 3, "num_users": 2}


async def test_all_subscriptions_end_if_no_channel_is_named(client: Client) -> None:
    ann = await (await connect(client, "ann")).join("here", "there")
    for _ in range(2):
        assert await call(client, "unsubscribe", user="ann", channel=None) == {}
    assert {(await ann.push())["channel"] for _ in range(2)} == {"here", "there"}
    assert await ann.silent()
    assert await call(client, "channels") == {"channels": {}}


async def test_one_connection_may_be_unsubscribed(client: Client) -> None:
    ann = await (await connect(client, "ann")).join("here")
    for other in ({"client": "other"}, {"session": "some"}, {"user": "bob", "client": ann.id}):
        await call(client, "unsubscribe", **{"user": "ann", "channel": "here"} | other)
    await call(client, "unsubscribe", user="ann", channel="there")
    await call(client, "unsubscribe", user="ann", channel="no channel")
    assert await ann.silent()
    await call(client, "unsubscribe", user="ann", channel="here", client=ann.id)
    assert "unsubscribe" in await ann.push()


# --- disconnect ------------------------------------------------------------------------------------------------------


async def test_a_users_connections_end(client: Client) -> None:
    ann, too, bob = await connect(client, "ann"), await connect(client, "ann"), await connect(client, "bob")
    assert await call(client, "disconnect", user="ann") == {}
    for each in (ann, too):
        assert await each.end() == (3503, "force disconnect")
    assert await bob.silent()
    assert await call(client, "disconnect", user="ann") == {}


async def test_code_and_reason_are_the_programs(client: Client) -> None:
    for number, (code, reason) in enumerate([(3000, "x"), (4001, "kicked"), (4999, "é" * 61 + "x")]):
        user = await connect(client, f"user{number}")
        ending = {"code": code, "reason": reason}
        assert await call(client, "disconnect", user=f"user{number}", disconnect=ending) == {}
        assert await user.end() == (code, reason)


async def test_some_connections_may_be_chosen(client: Client) -> None:
    ann, too, three = [await connect(client, "ann") for _ in range(3)]
    await call(client, "disconnect", user="bob", client=ann.id)
    await call(client, "disconnect", user="ann", client="other")
    await call(client, "disconnect", user="ann", session="some")
    await call(client, "disconnect", user="ann", whitelist=[ann.id, too.id, three.id])
    for each in (ann, too, three):
        assert await each.silent()
    await call(client, "disconnect", user="ann", client=three.id)
    assert (await three.end())[0] == 3503
    await call(client, "disconnect", user="ann", whitelist=[ann.id])
    assert (await too.end())[0] == 3503
    assert await ann.silent()


async def test_connections_with_the_simple_protocol_end_too(client: Client) -> None:
    member = await RawClient.connect(client.port or 0, "/ws?name=ann")
    token = make_token(SECRET, "ann", seconds=60)
    ann = await RawClient.connect(client.port or 0, f"/ws?token={token}")
    await call(client, "disconnect", user="ann")  # a name that anybody can choose is no user
    assert await ann.until_closed() == 3503
    assert await member.silent()
    await call(client, "disconnect", user="", disconnect={"code": 4001, "reason": "kicked"})
    assert await member.until_closed() == 4001


BAD_ENDINGS = [(0, ""), (2999, "x"), (5000, "x"), (1000, "x"), (-1, "x"), (10**30, "x"), (4001, "")]
BAD_ENDINGS += [
    (4001, reason) for reason in ("x" * 124, "é" * 62, "42", '{"a":1}', "true", ' "x" ', "null", "1e999", '"\\ud800"')
]


async def test_an_ending_that_clients_wouldnt_understand_is_refused(client: Client) -> None:
    ann = await connect(client, "ann")
    for code, reason in BAD_ENDINGS:
        ending = {"code": code, "reason": reason}
        assert await refused(client, "disconnect", user="ann", disconnect=ending) == 107, ending
    assert await ann.silent()


# --- presence and history --------------------------------------------------------------------------------------------


async def test_who_is_there(client: Client) -> None:
    ann, too, bob = await connect(client, "ann"), await connect(client, "ann"), await connect(client)
    for each in (ann, too, bob):
        await each.join("here")
    presence = (await call(client, "presence", channel="here"))["presence"]
    assert presence == {
        each.id: {"user": user, "client": each.id} for each, user in ((ann, "ann"), (too, "ann"), (bob, ""))
    }
    assert await call(client, "presence_stats", channel="here") == {"num_clients": 3, "num_users": 2}
    assert await call(client, "presence", channel="empty") == {"presence": {}}
    assert await call(client, "presence_stats", channel="empty") == {"num_clients": 0, "num_users": 0}


async def test_what_was_said(client: Client) -> None:
    ann = await (await connect(client, "ann", info='{"n":1}')).join("here")
    await ann.ask(publish={"channel": "here", "data": "one"})
    await call(client, "publish", channel="here", data="two", tags={"k": "v"})
    epoch = store_of(client).epoch
    one = {"data": "one", "info": {"user": "ann", "client": ann.id, "conn_info": {"n": 1}}, "offset": 1}
    two = {"data": "two", "offset": 2, "tags": {"k": "v"}}
    place = {"epoch": epoch, "offset": 2}
    assert await call(client, "history", channel="here") == {"publications": [], **place}
    nulls = {"limit": None, "since": None, "reverse": None}
    assert await call(client, "history", channel="here", **nulls) == {"publications": [], **place}
    assert await call(client, "history", channel="here", limit=-1) == {"publications": [one, two], **place}
    assert (await call(client, "history", channel="here", limit=1, reverse=True))["publications"] == [two]
    for since in ({"offset": 1}, {"offset": 1, "epoch": epoch}, {"offset": 1, "epoch": None}):
        assert (await call(client, "history", channel="here", limit=9, since=since))["publications"] == [two]
    empty = {"publications": [], "epoch": epoch, "offset": 0}
    assert await call(client, "history", channel="empty", limit=9) == empty


async def test_what_cant_be_told_is_refused(client: Client) -> None:
    assert await refused(client, "history", channel="here", since={"offset": 1, "epoch": "other"}) == 112
    assert await refused(client, "history", channel="here", since={"offset": 0}, reverse=True) == 107
    assert await refused(client, "history", channel="nowhere:1") == 102
    for method in ("presence", "presence_stats", "history"):
        assert await refused(client, method, channel="secret:1") == 108
        assert await refused(client, method, channel="nowhere:1") == 102
        assert await refused(client, method, channel="") == 107
    with mock.patch.object(store_of(client), "top", side_effect=StorageUnavailable()):
        assert await refused(client, "history", channel="here") == 100


async def test_what_was_said_is_let_go_and_positions_go_on(client: Client) -> None:
    for number in range(3):
        await call(client, "broadcast", channels=["here", "there"], data=number)
    assert await call(client, "history_remove", channel="here") == {}
    assert await call(client, "history_remove", channel="empty") == {}
    assert (await payloads(client), await payloads(client, "there")) == ([], [0, 1, 2])
    assert (await call(client, "publish", channel="here", data=3))["offset"] == 4
    assert await payloads(client) == [3]
    assert await refused(client, "history_remove", channel="nowhere:1") == 102


# --- channels, info, batch -------------------------------------------------------------------------------------------


async def test_channels_are_those_with_somebody_in_them(client: Client) -> None:
    assert await call(client, "channels") == {"channels": {}}
    ann, bob = await connect(client, "ann"), await connect(client, "bob")
    await ann.join("here", "plain:1")
    await bob.join("here", "plain:21")
    await call(client, "publish", channel="empty", data=1)
    one, two = {"num_clients": 1}, {"num_clients": 2}
    everything = {"here": two, "plain:1": one, "plain:21": one}
    for pattern in (None, "", "*", "*e*", "[hp]*"):
        expected = {name: count for name, count in everything.items() if pattern != "*e*" or "e" in name}
        assert await call(client, "channels", pattern=pattern) == {"channels": expected}
    assert (await call(client, "channels", pattern="plain:*"))["channels"].keys() == {"plain:1", "plain:21"}
    assert (await call(client, "channels", pattern="plain:?"))["channels"].keys() == {"plain:1"}
    assert (await call(client, "channels", pattern="HERE"))["channels"] == {}


async def test_the_server_tells_what_it_is_busy_with(client: Client) -> None:
    (node,) = (await call(client, "info"))["nodes"]
    assert {name: node[name] for name in node if name.startswith("num_")} == {
        "num_clients": 0, "num_users": 0, "num_subs": 0, "num_channels": 0,
    }  # fmt: skip
    assert (node["version"], bool(node["name"]), node["uptime"] >= 0) == (__version__, True, True)
    ann, too, bob = await connect(client, "ann"), await connect(client, "ann"), await connect(client)
    await ann.join("here", "there")
    await bob.join("here")
    (later,) = (await call(client, "info"))["nodes"]
    assert {name: later[name] for name in later if name.startswith("num_")} == {
        "num_clients": 3, "num_users": 2, "num_subs": 3, "num_channels": 2,
    }  # fmt: skip
    assert later["uid"] == node["uid"]
    async with serving() as other:
        assert (await call(other, "info"))["nodes"][0]["uid"] != node["uid"]
    assert await too.silent()


@pytest.mark.parametrize("parallel", [None, False, True])
async def test_a_batch_is_answered_in_order(client: Client, parallel: bool | None) -> None:
    ann = await connect(client, "ann")
    commands: list[dict[str, Any]] = [
        {"publish": {"channel": "here", "data": 1}},
        {"presence": {"channel": "nowhere:1"}},
        {"subscribe": {"user": "ann", "channel": "there"}},
        {"channels": {"pattern": "none"}, "info": None},
        {"presence_stats": {"channel": "empty"}},
        {},
        {"info": {}, "channels": {}},
    ]
    status, answer = await post(client, "batch", {"commands": commands, "parallel": parallel})
    replies = answer["replies"]
    assert (status, answer.keys()) == (200, {"replies"})
    assert [reply.get("error", {}).get("code") for reply in replies] == [None, 102, None, None, None, 107, 107]
    del replies[1], replies[4:]
    assert replies == [
        {"publish": {"offset": 1, "epoch": store_of(client).epoch}},
        {"subscribe": {}},
        {"channels": {"channels": {}}},
        {"presence_stats": {"num_clients": 0, "num_users": 0}},
    ]
    assert "subscribe" in await ann.push()


async def test_all_methods_can_be_called_in_a_batch(client: Client) -> None:
    requests: dict[str, dict[str, Any]] = {name: {"channel": "here", "user": "ann"} for name in METHODS}
    requests["publish"] |= {"data": 1}
    requests["broadcast"] |= {"data": 1, "channels": ["here"]}
    del requests["batch"]
    _, answer = await post(client, "batch", {"commands": [{name: body} for name, body in requests.items()]})
    assert [list(reply) for reply in answer["replies"]] == [[name] for name in requests]


async def test_in_a_batch_one_command_waits_for_the_one_before(client: Client) -> None:
    commands = [{"publish": {"channel": "here", "data": n}} for n in range(150)]
    commands.append({"history": {"channel": "here", "limit": -1}})
    _, answer = await post(client, "batch", {"commands": commands})
    assert [entry["data"] for entry in answer["replies"][-1]["history"]["publications"]] == list(range(150))


# --- bodies, errors, and who may -------------------------------------------------------------------------------------


MALFORMED = [b"", b"hi", b'{"channel":"here"', b"null", b"[]", b'"here"', b"{}", b'{"channel":1}', b'{"channel":null}']
MALFORMED += [b'{"channel":"here","data":NaN}', b'{"channel":"here","data":1}{}', b'{"channel":"\\ud800","data":1}']
MALFORMED += [b'{"channel":"\xff","data":1}', b"[" * 60_000, b'{"channel":"here","data":' + b"[" * 60_000]
MALFORMED += [b'{"channel":"here","data":1,"tags":{"k":1}}', b'{"channel":"here","data":1,"skip_history":"no"}']
MALFORMED += [b'{"channel":"here","data":1,"idempotency_key":"%s"}' % (b"k" * 129)]


async def test_a_body_that_isnt_one_is_refused(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    for body in MALFORMED:
        status, answer = await post(client, "publish", body)
        assert (status, answer["error"]["code"]) == (400, 107), body
    assert await payloads(client) == []
    assert "Traceback" not in capsys.readouterr().err


async def test_of_a_batch_with_a_malformed_command_nothing_is_done(client: Client) -> None:
    commands = [{"publish": {"channel": "here", "data": 1}}, {"publish": {"data": 1}}]
    assert (await post(client, "batch", {"commands": commands}))[0] == 400
    assert await payloads(client) == []


async def test_what_is_unknown_is_ignored(client: Client) -> None:
    await call(client, "publish", channel="here", data=1, delta=True, version=7, version_epoch="x", other=[])
    assert await payloads(client) == [1]


async def test_too_much_is_refused() -> None:
    async with serving(max_message_bytes=100) as client:
        assert (await post(client, "publish", {"channel": "here", "data": "x" * 100}))[0] == 413


STATUSES: list[tuple[str, dict[str, Any], int, int]] = [
    ("publish", {"channel": "nowhere:1", "data": 1}, 404, 102),
    ("publish", {"channel": "-", "data": 1}, 400, 107),
    ("publish", {"channel": "here", "data": {"body": "x" * 40_000}}, 413, 414),
    ("presence", {"channel": "secret:1"}, 400, 108),
    ("history", {"channel": "here", "since": {"epoch": "other"}}, 416, 112),
]


async def test_errors_have_a_status_for_those_who_want_one(client: Client) -> None:
    for method, body, status, number in STATUSES:
        answered, answer = await post(client, method, body, **{"X-Centrifugo-Error-Mode": "transport"})
        assert (answered, answer["code"], answer.keys()) == (status, number, {"code", "message"}), body
        assert (await post(client, method, body, **{"X-Centrifugo-Error-Mode": "other"}))[0] == 200
    with mock.patch.object(store_of(client), "append", side_effect=StorageUnavailable()):
        body = {"channel": "here", "data": 1}
        answered, answer = await post(client, "publish", body, **{"X-Centrifugo-Error-Mode": "transport"})
        assert (answered, answer["code"]) == (500, 100)
    good = await post(client, "publish", {"channel": "here", "data": 1}, **{"X-Centrifugo-Error-Mode": "transport"})
    assert (good[0], good[1]["result"]["offset"]) == (200, 1)


RIGHT = [{"X-API-Key": TOKEN}, {"Authorization": f"apikey {TOKEN}"}, {"Authorization": f"Bearer {TOKEN}"}]
RIGHT += [{"Authorization": f"APIKEY  {TOKEN}"}, {"X-API-Key": TOKEN, "Authorization": "Basic eDp5"}]
WRONG = [{}, {"X-API-Key": ""}, {"X-API-Key": "wrong"}, {"X-API-Key": f"Bearer {TOKEN}"}, {"Authorization": TOKEN}]
WRONG += [{"Authorization": "apikey"}, {"Authorization": f"key {TOKEN}"}, {"X-API-Key": f"{TOKEN},{TOKEN}"}]
ROOM = "rooms/here/messages"


async def test_a_key_opens_all_of_the_api_and_nothing_else_does() -> None:
    async with serving(api_token=TOKEN) as client:
        for headers in RIGHT:
            assert (await post(client, "info", {}, **headers))[0] == 200, headers
            given = {"Content-Type": "application/json"} | headers
            assert (await post(client, ROOM, {"body": "hi"}, **given))[0] == 201, headers
        for headers in WRONG:
            for method in (*METHODS, ROOM):
                status, answer = await post(client, method, b"\xff", **headers)
                assert (status, answer["error"]["code"]) == (401, 101), (method, headers)
        twice = [("X-API-Key", TOKEN), ("X-API-Key", TOKEN)]
        async with client.post("/api/info", json={}, headers=twice) as response:
            assert response.status == 401
        for query in (f"api_key={TOKEN}", f"X-API-Key={TOKEN}"):
            assert (await post(client, f"info?{query}", {}))[0] == 401


async def test_without_a_key_this_machine_is_answered_and_no_web_page(client: Client) -> None:
    for method in METHODS:
        for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}, {"X-Forwarded-For": "::1"}):
            status, answer = await post(client, method, {}, **headers)
            assert (status, answer["error"]["code"]) == (403, 103)
        with mock.patch("aiohttp.web.Request.remote", "192.0.2.1"):
            assert (await post(client, method, {}))[0] == 403


async def test_methods_are_posted(client: Client) -> None:
    for method in METHODS:
        async with client.get(f"/api/{method}") as response:
            assert (response.status, (await response.json())["error"]["code"]) == (405, 107)


async def test_neither_keys_nor_what_is_said_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    canary = "CANARY-7d1f"
    async with serving(api_token=canary, log_level="debug") as client:
        for body in ({"channel": "here", "data": canary}, {"channel": canary + ":1", "data": 1}, {"data": canary}):
            await post(client, "publish", body, **{"X-API-Key": canary})
        await post(client, "publish", b'{"%s' % canary.encode(), **{"X-API-Key": canary})
        await post(client, "info", {}, **{"X-API-Key": canary + "x"})
    log = capsys.readouterr().err
    assert log.count("chatserver.access") == 5
    assert canary not in log
    assert "Traceback" not in log
