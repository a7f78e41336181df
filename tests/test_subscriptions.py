"""Being a member by the Centrifuge protocol: how often, and missing nothing; see also tests/golden/."""

import asyncio
import json
import time
from typing import Any

import pytest

from chatserver.subscriptions import GRACE_SECONDS, MOST
from tests.fakes import stopped_clock
from tests.play import FORMS, JSON, PROTOBUF, SIMPLE, Peer, running, token

in_both_forms = pytest.mark.parametrize("form", FORMS)

OPEN = json.dumps({"": {"publish": "client"}, "plain": {"history": "nobody"}})


async def publish(peer: Peer, *payloads: Any, channel: str = "r") -> None:
    """Says all of them, and waits until they are stored."""
    for start in range(0, len(payloads), 20):
        some = payloads[start : start + 20]
        peer.say(*(json.dumps({"id": 1, "publish": {"channel": channel, "data": each}}) for each in some))
        for _ in some:
            assert await peer.hear() == {"id": 1, "publish": {}}


async def offsets(peer: Peer, last: int) -> list[int]:
    """Of the publications that are told, up to one."""
    found = [0]
    while found[-1] < last:
        found.append((await peer.hear())["push"]["pub"]["offset"])
    return found[1:]


@in_both_forms
async def test_so_many_and_no_more(form: str) -> None:
    async with running(rate_limit=0.0) as port:
        ann = await Peer.enter(port, form)
        for number in range(MOST):
            assert "subscribe" in await ann.ask("subscribe", channel=f"r{number}")
        assert (await ann.ask("subscribe", channel="r0"))["error"] == {"code": 105, "message": "already subscribed"}
        limit = {"error": {"code": 106, "message": "limit exceeded"}}
        assert await ann.ask("subscribe", channel="one-more") == limit
        bob = await Peer.enter(port, form, "bob")
        assert "subscribe" in await bob.ask("subscribe", channel="one-more")
        assert await ann.ask("unsubscribe", channel="r7") == {"unsubscribe": {}}
        assert "subscribe" in await ann.ask("subscribe", channel="one-more")
        assert await ann.ask("subscribe", channel="r7") == limit


@in_both_forms
async def test_a_subscription_that_was_refused_does_not_count(form: str) -> None:
    async with running(rate_limit=0.0) as port:
        ann = await Peer.enter(port, form)
        for number in range(MOST + 1):
            assert (await ann.ask("subscribe", channel=f"r{number}#bob"))["error"]["code"] == 103
            unrecoverable = {"recover": True, "epoch": "_", "flag": 2}
            assert (await ann.ask("subscribe", channel="r", **unrecoverable))["error"]["code"] == 112
        assert "subscribe" in await ann.ask("subscribe", channel="r")


@in_both_forms
@pytest.mark.parametrize("size", [1, 3000], ids=["many", "long"])
async def test_more_than_goes_into_an_answer_follows_it(form: str, size: int) -> None:
    """All in order, each once, and what is said meanwhile as well."""
    count = 1000 if size == 1 else 150
    async with running(namespaces=OPEN, rate_limit=0.0) as port:
        bob = await Peer.enter(port, form, "bob")
        await publish(bob, *(["x" * size] * count))
        ann = await Peer.enter(port, form)
        ann.say('{"id":9,"subscribe":{"channel":"r","recover":true,"offset":3}}')
        await publish(bob, *(["x"] * 50))
        answer = await ann.hear()
        assert answer["id"] == 9
        told = answer["subscribe"]
        assert (told["was_recovering"], told["recovered"], told["offset"]) == (True, True, 3)
        found = [publication["offset"] for publication in told["publications"]]
        assert 1 <= len(found) < count - 3
        assert found + await offsets(ann, count + 50) == [*range(4, count + 51)]
        assert await ann.silent()


@in_both_forms
async def test_coming_and_going_misses_nothing_and_hears_nothing_twice(form: str) -> None:
    """While others speak; what is told between two visits comes with the next answer."""
    count = 400
    async with running(namespaces=OPEN, rate_limit=0.0) as port:
        ann, bob = await Peer.enter(port, form), await Peer.enter(port, form, "bob")
        speaking = asyncio.create_task(publish(bob, *range(1, count + 1)))
        heard = [0]
        while heard[-1] < count:
            place = json.dumps({"channel": "r", "recover": True, "offset": heard[-1]})
            ann.say('{"id":7,"unsubscribe":{"channel":"r"}}', f'{{"id":8,"subscribe":{place}}}')
            heard += await until_subscribed(ann, heard[-1])
        await speaking
        assert heard == [*range(count + 1)]


async def until_subscribed(peer: Peer, place: int) -> list[int]:
    """Offsets of what is told before and with the answer. What came before it was told again, as it was asked for."""
    early = []
    while "push" in (told := await peer.hear()):
        early.append(told["push"]["pub"]["offset"])
    assert early == [*range(place + 1, place + 1 + len(early))], "the last visit's"
    assert told == {"id": 7, "unsubscribe": {}}
    answer = (await peer.hear())["subscribe"]
    assert answer.get("recovered") is True
    found = [publication["offset"] for publication in answer.get("publications", [])]
    assert found[: len(early)] == early
    return found


async def test_all_members_hear_one_order() -> None:
    """Whatever they speak, and whoever says it."""
    async with running(namespaces=OPEN, rate_limit=0.0, anonymous="on") as port:
        ann = await Peer.connect(port, SIMPLE, "/ws?name=ann&room=r")
        bob, cy = await Peer.enter(port, JSON, "bob"), await Peer.enter(port, PROTOBUF, "cy")
        for peer in (bob, cy):
            assert "subscribe" in await peer.ask("subscribe", channel="r")
        for number in range(100):
            ann.say(json.dumps({"type": 2, "body": f"ann {number}"}))
            for name, peer in (("bob", bob), ("cy", cy)):
                payload = {"body": f"{name} {number}"}
                peer.say(json.dumps({"id": 9, "publish": {"channel": "r", "data": payload}}))
            if number % 10 == 0:
                await asyncio.sleep(0)
        simple = [body for body in [(await ann.hear()) for _ in range(303)] if body["type"] == 2]
        order = [message["body"] for message in simple]
        assert sorted(order) == sorted(f"{name} {number}" for name in ("ann", "bob", "cy") for number in range(100))
        for peer in (bob, cy):
            pushes = [told["push"]["pub"] for told in [(await peer.hear()) for _ in range(400)] if "push" in told]
            assert [pub["data"]["body"] for pub in pushes] == order
            assert [pub["offset"] for pub in pushes] == [*range(1, 301)]


@in_both_forms
async def test_a_subscription_ends_some_time_after_its_token(form: str) -> None:
    """Clients ask for a new one only when the old one has run out."""
    async with running(heartbeat_seconds=0.0) as port:
        ann = await Peer.enter(port, form)
        with stopped_clock() as clock:
            await clock.push(1, 1)
            expiring = token(channel="$x", expire_at=time.time() + 100)
            answer = await ann.ask("subscribe", channel="$x", token=expiring)
            assert answer["subscribe"]["expires"] is True
            await clock.push(answer["subscribe"]["ttl"] + GRACE_SECONDS - 5, 1)
            assert await ann.silent()
            await clock.push(10, 1)
            reason = {"code": 2501, "reason": "subscription expired"}
            assert await ann.hear() == {"push": {"channel": "$x", "unsubscribe": reason}}
            await clock.push(1, 1)
            assert (await ann.ask("presence_stats", channel="$x"))["error"]["code"] == 103


@in_both_forms
async def test_a_newer_token_keeps_it(form: str) -> None:
    async with running(heartbeat_seconds=0.0) as port:
        ann = await Peer.enter(port, form)
        with stopped_clock() as clock:
            await clock.push(1, 1)
            expiring = token(channel="$x", expire_at=time.time() + 100)
            assert "subscribe" in await ann.ask("subscribe", channel="$x", token=expiring)
            await clock.push(110, 1)
            newer = token(channel="$x", expire_at=time.time() + 1000)
            answer = await ann.ask("sub_refresh", channel="$x", token=newer)
            assert answer["sub_refresh"]["expires"] is True
            await clock.push(500, 1)
            assert "presence_stats" in await ann.ask("presence_stats", channel="$x")


@in_both_forms
async def test_a_connection_ends_some_time_after_its_token(form: str) -> None:
    async with running(heartbeat_seconds=0.0) as port:
        ann = await Peer.connect(port, form)
        with stopped_clock() as clock:
            welcome = (await ann.ask("connect", token=token(exp=time.time() + 100)))["connect"]
            assert welcome["expires"] is True
            await clock.push(welcome["ttl"] + GRACE_SECONDS - 5, 1)
            assert await ann.silent()
            await clock.push(3, 1)
            await clock.push(2.4, 0.2)
            assert await ann.end() == (3005, "connection expired")
