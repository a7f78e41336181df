"""The chat's procedures, by RPC; see also tests/golden/rpc-send.txt."""

from typing import Any

import pytest

from tests.play import FORMS, JSON, Peer, running

in_both_forms = pytest.mark.parametrize("form", FORMS)


async def call(peer: Peer, method: str, **data: Any) -> Any:
    """What the procedure returns. Fails if it is refused."""
    answer = await peer.ask("rpc", method=method, data=data)
    assert "rpc" in answer, answer
    return answer["rpc"]["data"]


async def page(peer: Peer, **wanted: Any) -> tuple[list[int], str]:
    """Offsets of a page, and the position behind it."""
    found = await call(peer, "history", **wanted)
    assert found.keys() == {"epoch", "messages", "position"}
    epoch, _, place = found["position"].rpartition(":")
    assert epoch == found["epoch"]
    return [message["offset"] for message in found["messages"]], place


WRONG: list[tuple[str, Any, int]] = [
    ("send", None, 107),
    ("send", 7, 107),
    ("send", [], 107),
    ("send", "hi", 107),
    ("send", {}, 107),
    ("send", {"room": "plain:x"}, 107),
    ("send", {"body": "hi"}, 107),
    ("send", {"room": "plain:x", "body": "hi", "data": {}}, 107),
    ("send", {"room": "plain:x", "body": None}, 107),
    ("send", {"room": "plain:x", "body": 7}, 107),
    ("send", {"room": 7, "body": "hi"}, 107),
    ("send", {"room": "plain:x", "body": "hi", "nosuch": 1}, 107),
    ("send", {"room": "plain:x", "body": "hi", "key": ""}, 107),
    ("send", {"room": "plain:x", "body": "hi", "key": "two words"}, 107),
    ("send", {"room": "plain:x", "body": "hi", "key": "é"}, 107),
    ("send", {"room": "plain:x", "body": "hi", "key": "k" * 129}, 107),
    ("send", {"room": "plain:x", "body": "hi", "key": 7}, 107),
    ("send", {"room": "a b", "body": "hi"}, 107),
    ("send", {"room": "nowhere:x", "body": "hi"}, 102),
    ("send", {"room": "r", "body": "hi"}, 103),
    ("send", {"room": "plain:x", "body": "x" * 32769}, 414),
    ("send", {"room": "plain:x", "data": {"body": "x" * 32769}}, 414),
    ("send", {"room": "plain:x", "body": "\0"}, 415),
    ("history", None, 107),
    ("history", {}, 107),
    ("history", {"room": "r"}, 103),
    ("history", {"room": "plain:x"}, 108),
    ("history", {"room": "nowhere:x"}, 102),
    ("history", {"room": "mine:x", "limit": 0}, 107),
    ("history", {"room": "mine:x", "limit": "1"}, 107),
    ("history", {"room": "mine:x", "after": -1}, 107),
    ("history", {"room": "mine:x", "before": 0}, 107),
    ("history", {"room": "mine:x", "after": 1, "before": 2}, 107),
    ("history", {"room": "mine:x", "nosuch": 1}, 107),
    ("history", {"room": "mine:x", "after": 0, "epoch": "_"}, 112),
    ("history", {"room": "mine:x", "before": 1, "epoch": "_"}, 112),
    ("Send", {"room": "plain:x", "body": "hi"}, 104),
    ("", {"room": "plain:x", "body": "hi"}, 104),
]

MINE = '{"":{},"mine":{"publish":"client","history":"client"},"plain":{"publish":"client","history":"nobody"}}'


@in_both_forms
async def test_what_is_asked_for_wrongly(form: str) -> None:
    """Each is refused with its number and what is wrong; the connection stays."""
    async with running(namespaces=MINE) as port:
        ann = await Peer.enter(port, form)
        for method, data, code in WRONG:
            answer = await ann.ask("rpc", method=method, data=data)
            assert answer["error"]["code"] == code, (method, data, answer)
            assert answer["error"]["message"]
        assert await ann.silent()


@pytest.mark.parametrize("key", ["k", "k" * 128, "!~", "a-b_c:1/2"])
async def test_keys_that_a_message_may_have(key: str) -> None:
    async with running() as port:
        ann = await Peer.enter(port, JSON)
        first = await call(ann, "send", room="plain:x", body="hi", key=key)
        assert first.keys() == {"epoch", "offset", "time"}
        assert await call(ann, "send", room="plain:x", body="hi", key=key) == first


async def test_many_with_the_same_key_at_once_are_one() -> None:
    """Also on the way into the storage."""
    async with running() as port:
        ann = await Peer.enter(port, JSON)
        assert "subscribe" in await ann.ask("subscribe", channel="r")
        send = '{"rpc":{"method":"send","data":{"room":"r","body":"hi","key":"k"}},"id":%d}'
        ann.say(*(send % number for number in range(100, 150)), send.replace('"k"', '"other"') % 150)
        told = [await ann.hear() for _ in range(53)]
        answers = [heard["rpc"]["data"]["offset"] for heard in told if "id" in heard]
        assert answers == [1] * 50 + [2]
        assert [heard["push"]["pub"]["offset"] for heard in told if "push" in heard] == [1, 2]


@in_both_forms
async def test_pages_of_a_log(form: str) -> None:
    async with running(namespaces=MINE) as port:
        ann = await Peer.enter(port, form)
        assert await page(ann, room="mine:x") == ([], "0")
        assert await page(ann, room="mine:x", after=0) == ([], "0")
        for number in range(1, 8):
            assert (await call(ann, "send", room="mine:x", data=number))["offset"] == number
        assert await page(ann, room="mine:x") == ([1, 2, 3, 4, 5, 6, 7], "7")
        assert await page(ann, room="mine:x", limit=3) == ([5, 6, 7], "7")
        assert await page(ann, room="mine:x", limit=3, before=5) == ([2, 3, 4], "4")
        assert await page(ann, room="mine:x", limit=3, before=2) == ([1], "1")
        assert (await page(ann, room="mine:x", before=1))[0] == []
        assert await page(ann, room="mine:x", before=99, limit=1) == ([7], "7")
        assert await page(ann, room="mine:x", limit=3, after=0) == ([1, 2, 3], "3")
        assert await page(ann, room="mine:x", limit=3, after=5) == ([6, 7], "7")
        assert await page(ann, room="mine:x", after=7) == ([], "7")
        epoch = (await call(ann, "history", room="mine:x"))["epoch"]
        assert await page(ann, room="mine:x", after=6, epoch=epoch) == ([7], "7")


@in_both_forms
async def test_what_a_page_has_of_a_message(form: str) -> None:
    async with running(namespaces=MINE) as port:
        ann = await Peer.enter(port, form)
        sent = await call(ann, "send", room="mine:x", body="hi", key="k1")
        (message,) = (await call(ann, "history", room="mine:x"))["messages"]
        assert message == {
            "offset": 1,
            "time": sent["time"],
            "user": "ann",
            "kind": "message",
            "data": {"body": "hi"},
            "key": None,
            "info": {"user": "ann", "client": message["info"]["client"]},
        }


async def test_a_page_has_at_most_300_messages_and_what_goes_into_an_answer() -> None:
    async with running(namespaces=MINE, rate_limit=0.0) as port:
        ann = await Peer.enter(port, JSON)
        for start in range(0, 400, 50):
            ann.say(*(f'{{"id":1,"publish":{{"channel":"mine:x","data":{start}}}}}' for _ in range(50)))
            for _ in range(50):
                assert await ann.hear() == {"id": 1, "publish": {}}
        assert await page(ann, room="mine:x", limit=1000, after=0) == ([*range(1, 301)], "300")
        for _ in range(10):
            await call(ann, "send", room="mine:x", data="x" * 20_000)
        offsets, place = await page(ann, room="mine:x", after=400)
        assert offsets == [*range(401, 401 + len(offsets))]
        assert 1 <= len(offsets) < 10
        assert place == f"{offsets[-1]}"
        offsets, _ = await page(ann, room="mine:x")
        assert offsets[-1] == 410
