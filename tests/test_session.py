"""What a client of the Centrifuge protocol asks for wrongly, command by command, and how long it may keep quiet."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn
from unittest import mock

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa
from msgspec.structs import replace

from chatserver import Client, Event, Handler
from chatserver.app import build
from chatserver.config import Config
from chatserver.door import IDENTIFY_SECONDS
from chatserver.errors import ChatError, StorageUnavailable
from chatserver.message import Notice, Publish
from chatserver.protocol import protobuf, wire
from chatserver.store.memory import Memory
from tests import play, raw
from tests.fakes import stopped_clock
from tests.play import FORMS, JSON, NAMESPACES, PROTOBUF, Peer, running, token

in_both_forms = pytest.mark.parametrize("form", FORMS)

MALFORMED = (3501, "bad request")


COMMANDS = [
    # No objects, or none that the protocol has
    "",
    "\n",
    " ",
    "nope",
    "[]",
    "null",
    "7",
    '"text"',
    "[{}]",
    '{"id":1',
    '{"id":9,"send":{}}\n\n{"id":9,"send":{}}',
    '{"id":9,"send":{}}\n\n',
    '\n{"id":9,"send":{}}',
    "{\n}",
    '{"id":9,\n"publish":{"channel":"r","data":1}}',
    '{"id":9}',
    '{"id":9,"nosuch":{}}',
    '{"id":9,"connect":{}}',
    '{"id":9,"ping":{}}',
    '{"id":9,"ping":{},"subscribe":{"channel":"r"}}',
    '{"id":9,"method":"publish","params":{}}',
    # Fields of another type
    '{"id":"9","rpc":{}}',
    '{"id":-1,"rpc":{}}',
    '{"id":4294967296,"rpc":{}}',
    '{"id":true,"rpc":{}}',
    '{"id":9.5,"rpc":{}}',
    '{"id":9,"rpc":[]}',
    '{"id":9,"rpc":"send"}',
    '{"id":9,"rpc":{"method":7}}',
    '{"id":9,"subscribe":{"channel":7}}',
    '{"id":9,"subscribe":{"channel":"r","token":7}}',
    '{"id":9,"subscribe":{"channel":"r","recover":1}}',
    '{"id":9,"subscribe":{"channel":"r","recover":"true"}}',
    '{"id":9,"subscribe":{"channel":"r","offset":"1"}}',
    '{"id":9,"subscribe":{"channel":"r","offset":-1}}',
    '{"id":9,"subscribe":{"channel":"r","offset":18446744073709551616}}',
    '{"id":9,"subscribe":{"channel":"r","epoch":1}}',
    '{"id":9,"subscribe":{"channel":"r","flag":"1"}}',
    '{"id":9,"subscribe":{"channel":"r","type":2147483648}}',
    '{"id":9,"subscribe":{"channel":"r","tf":[]}}',
    '{"id":9,"history":{"channel":"r","limit":"1"}}',
    '{"id":9,"history":{"channel":"r","limit":2147483648}}',
    '{"id":9,"history":{"channel":"r","reverse":0}}',
    '{"id":9,"history":{"channel":"r","since":1}}',
    '{"id":9,"history":{"channel":"r","since":{"offset":-1}}}',
    '{"id":9,"history":{"channel":"r","since":{"epoch":7}}}',
    # Values that make no sense, whoever asks
    '{"id":9,"subscribe":{}}',
    '{"id":9,"subscribe":{"channel":""}}',
    '{"id":9,"subscribe":{"channel":"r","delta":"nosuch"}}',
    '{"id":9,"unsubscribe":{}}',
    '{"id":9,"unsubscribe":{"channel":""}}',
    '{"id":9,"publish":{"data":1}}',
    '{"id":9,"presence":{}}',
    '{"id":9,"presence_stats":{}}',
    '{"id":9,"history":{}}',
    '{"id":9,"refresh":{}}',
    '{"id":9,"refresh":{"token":"a"}}',
]


@pytest.mark.parametrize("line", COMMANDS)
async def test_what_is_malformed_ends_the_connection(line: str) -> None:
    async with running() as port:
        ann = await Peer.enter(port, JSON)
        ann.client.say(line)
        assert await ann.end() == MALFORMED


BYTES = {
    "nothing at all": "",
    "a length without its message": "05",
    "more than there is": "05 08 01",
    "a length without end": "ff ff ff ff ff ff ff ff ff ff 01",
    "an id and no request": "02 08 09",
    "an id that isn't one": "06 08 80 80 80 80 10",
    "a request that is a number": "04 08 09 28 01",
    "a request without end": "04 08 09 2a 05",
    "a field's number is 0": "02 00 01",
    "text that isn't UTF-8": "08 08 09 2a 04 0a 02 ff fe",
    "a good one and half another": "05 08 09 3a 03 0a 01",
    "an unknown kind of value": "01 0f",
    "a ping": "04 08 09 5a 00",
    "a connect": "04 08 09 22 00",
    "no channel": "04 08 09 2a 00",
    "JSON": json.dumps({"id": 9, "rpc": {}}).encode().hex(),
}


@pytest.mark.parametrize("name", BYTES)
async def test_the_same_in_bytes(name: str) -> None:
    async with running() as port:
        ann = await Peer.enter(port, PROTOBUF)
        ann.client.send(raw.BINARY, bytes.fromhex(BYTES[name]))
        assert await ann.end() == MALFORMED


FIRST = [
    "{}",
    '{"id":1}',
    '{"connect":{}}',
    '{"id":1,"ping":{}}',
    '{"id":1,"send":{}}',
    '{"id":1,"connect":7}',
    '{"id":1,"connect":{"token":7}}',
    '{"id":1,"connect":{"subs":[]}}',
    '{"id":1,"connect":{"subs":{"r":7}}}',
    '{"id":1,"connect":{"headers":{"X":7}}}',
    *(
        f'{{"id":1,"{name}":{{"channel":"r"}}}}'
        for name in ("subscribe", "unsubscribe", "publish", "presence", "presence_stats", "history", "sub_refresh")
    ),
    '{"id":1,"rpc":{"method":"send"}}',
    '{"id":1,"refresh":{"token":"a"}}',
]


@pytest.mark.parametrize("line", FIRST)
async def test_nothing_but_connect_is_the_first_command(line: str) -> None:
    async with running(anonymous="on") as port:
        ann = await Peer.connect(port, JSON)
        ann.client.say(line)
        assert await ann.end() == MALFORMED


NAMES = {
    "r" * 128: None,
    "r" * 129: 107,
    "r" * 1000: 107,
    "$" + "r" * 128: 107,
    "é": 107,
    "a b": 107,
    "a\n": 107,
    "_": 107,
    ":x": 107,
    "nowhere:x": 102,
    "plain:": None,
    "plain:x:y": None,
    "tiny:x,y": None,
    "$": 107,
    "$$": 107,
    "$x": 103,
    "#": 103,
    "#ann": None,
    "r#ann": None,
    "r#": 103,
    "r#bob": 103,
    "r#bob,ann": None,
    "r#ann#bob": 103,
}


@in_both_forms
async def test_names_that_a_channel_may_have(form: str) -> None:
    async with running() as port:
        ann = await Peer.enter(port, form)
        for name, code in NAMES.items():
            answer = await ann.ask("subscribe", channel=name)
            assert answer.get("error", {}).get("code") == code, (name, answer)


WHO = ("client", "subscriber", "nobody")
USES: dict[str, dict[str, Any]] = {
    "publish": {"data": 1},
    "history": {"limit": 1},
    "presence": {},
    "presence_stats": {},
}


def verdict(option: str, who: str, *, member: bool) -> int | None:
    """The number of the error, or None."""
    if who == "nobody":
        return 103 if option == "publish" else 108
    return None if who == "client" or member else 103


@in_both_forms
@pytest.mark.parametrize("member", [True, False], ids=["member", "stranger"])
async def test_who_may_do_what_where(form: str, member: bool) -> None:
    """Every combination of the three options, each in a namespace of its own."""
    combinations = {
        f"n{number}": dict(zip(("publish", "history", "presence"), each, strict=True))
        for number, each in enumerate(itertools.product(WHO, repeat=3))
    }
    async with running(namespaces=json.dumps(NAMESPACES | combinations)) as port:
        ann = await Peer.enter(port, form)
        for name, options in combinations.items():
            if member:
                assert "subscribe" in await ann.ask("subscribe", channel=f"{name}:x")
            for command, request in USES.items():
                option = "presence" if command == "presence_stats" else command
                answer = await ann.ask(command, channel=f"{name}:x", **request)
                code = verdict(option, options[option], member=member)
                assert answer.get("error", {}).get("code") == code, (options, command, answer)


@in_both_forms
async def test_a_message_of_more_than_text_may_be_as_long_as_a_frame(form: str) -> None:
    async with running() as port:
        ann = await Peer.enter(port, form)
        assert await ann.ask("publish", channel="plain:x", data=["x" * 60_000]) == {"publish": {}}
        answer = await ann.ask("publish", channel="plain:x", data={"body": "x" * 40_000})
        assert answer["error"]["code"] == 414
        answer = await ann.ask("publish", channel="plain:x", data={"body": "\0"})
        assert answer["error"]["code"] == 415


def publishing(data: str) -> bytes:
    """The command that says just this."""
    return protobuf.delimited(wire.Command(id=9, publish=wire.PublishRequest("plain:x", wire.raw(data.encode()))))


@pytest.mark.parametrize("data", ["nope", "{", "[1,]", '"\\ud800"', "NaN", "[" * 70 + "]" * 70, ""])
async def test_what_is_said_in_bytes_has_to_be_json(data: str) -> None:
    """Or else those who speak JSON couldn't be told."""
    async with running() as port:
        ann = await Peer.enter(port, PROTOBUF)
        ann.client.send(raw.BINARY, publishing(data))
        assert (await ann.hear())["error"]["code"] == 107
        assert await ann.ask("publish", channel="plain:x", data=1) == {"publish": {}}


async def test_payloads_go_through_as_they_are_on_one_line() -> None:
    """Numbers keep their digits, and no line break gets between two answers."""
    payload = '{ "big": 123456789012345678901234567890,\r\n\t"exact": 1.10, "e": 1E400, "text": "\\u00e9\\n  \u2028" }'
    kept = '{"big":123456789012345678901234567890,"exact":1.10,"e":1E400,"text":"\\u00e9\\n  \u2028"}'
    async with running() as port:
        ann, bob = await Peer.enter(port, PROTOBUF), await Peer.enter(port, JSON, "bob")
        assert "subscribe" in await bob.ask("subscribe", channel="plain:x")
        ann.client.send(raw.BINARY, publishing(payload))
        frame = await bob.client.receive()
        assert frame
        assert f'"data":{kept},' in frame.text


async def test_too_fast_is_told_and_a_flood_is_the_end() -> None:
    """All in one frame: however slow the machine is, it takes them faster than they may come."""
    async with running(rate_limit=5.0) as port:
        ann = await Peer.enter(port, JSON)
        ann.say(*['{"id":9,"presence_stats":{"channel":"plain:x"}}'] * 500)
        codes = []
        while (frame := await ann.client.receive()) and frame.opcode == raw.TEXT:
            for line in frame.text.split("\n"):
                error = json.loads(line)["error"]
                assert error.get("temporary") is (True if error["code"] == 111 else None)
                codes.append(error["code"])
        assert codes[0] == 108
        assert codes[-1] == 111
        assert frame
        assert (frame.code, frame.payload[2:]) == (3013, b"too many requests")


@pytest.mark.parametrize("refused", [False, True], ids=["silent", "refused"])
@in_both_forms
async def test_who_does_not_connect_in_time_is_stale(form: str, refused: bool) -> None:
    async with running() as port:
        with stopped_clock() as clock:
            ann = await Peer.connect(port, form)
            if refused:
                assert (await ann.ask("connect", token=token(exp=1500000000)))["error"]["code"] == 109
            await clock.push(IDENTIFY_SECONDS - 1, 0.2)
            assert await ann.silent()
            await clock.push(1.2, 0.2)
            assert await ann.end() == (3502, "stale")


async def test_who_connected_is_not_stale() -> None:
    async with running() as port:
        with stopped_clock() as clock:
            ann = await Peer.enter(port, JSON)
            await clock.push(IDENTIFY_SECONDS + 1, 0.2)
            silent = asyncio.create_task(ann.silent())
            while not silent.done():  # the pause after a flush has to pass, too
                await clock.push(0.01, 0.01)
            assert await silent


@in_both_forms
async def test_while_the_storage_is_away(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who only asks is told to come again; who says something, that it isn't stored. Nobody is sent away for good."""

    async def away(self: Memory, *args: object, **named: object) -> NoReturn:
        raise StorageUnavailable

    again = {"error": {"code": 100, "message": "internal error", "temporary": True}}
    async with running() as port:
        ann = await Peer.enter(port, form)
        assert "subscribe" in await ann.ask("subscribe", channel="r")
        with monkeypatch.context() as patch:
            for method in ("top", "read", "append"):
                patch.setattr(Memory, method, away)
            assert await ann.ask("subscribe", channel="other") == again
            assert await ann.ask("history", channel="r", limit=1) == again
            assert (await ann.ask("publish", channel="r", data=1))["error"]["code"] == 420
            send = {"method": "send", "data": {"room": "r", "body": "hi"}}
            assert (await ann.ask("rpc", **send))["error"]["code"] == 420
            bob = await Peer.connect(port, form)
            assert await bob.ask("connect", token=token("bob", channels=["another"])) == again
            assert "presence_stats" in await ann.ask("presence_stats", channel="r")
        assert await ann.ask("publish", channel="r", data=1) == {"publish": {}}
        assert "subscribe" in await ann.ask("subscribe", channel="other")


Middleware = Callable[[Publish, Client, Handler], Awaitable[Event | None]]


async def answer(command: Publish, client: Client, handler: Handler) -> Event | None:
    return Notice("not today")


async def swallow(command: Publish, client: Client, handler: Handler) -> Event | None:
    return None


async def refuse(command: Publish, client: Client, handler: Handler) -> Event | None:
    raise ChatError("no links, please")


async def shout(command: Publish, client: Client, handler: Handler) -> Event | None:
    return await handler(replace(command, body=command.body.upper()), client)


@contextlib.asynccontextmanager
async def with_middleware(middleware: Middleware) -> AsyncIterator[int]:
    def built(config: Config) -> web.Application:
        app = build(config)
        app["chain"].append(middleware)
        return app

    with mock.patch.object(play, "build", built):
        async with running() as port:
            yield port


@in_both_forms
@pytest.mark.parametrize("middleware", [answer, swallow])
async def test_who_is_answered_by_a_middleware_is_answered(form: str, middleware: Middleware) -> None:
    async with with_middleware(middleware) as port:
        ann = await Peer.enter(port, form)
        await ann.ask("subscribe", channel="red")
        assert "publish" in await ann.ask("publish", channel="red", data={"body": "hi"})
        if middleware is answer:
            assert await ann.hear() == {"push": {"message": {"data": {"notice": "not today"}}}}
        sent = await ann.ask("rpc", method="send", data={"room": "red", "body": "hi"})
        assert sent["rpc"] == {"data": {}}
        assert (await ann.ask("history", channel="red", limit=-1))["history"]["publications"] == []


@in_both_forms
async def test_a_middleware_refuses_and_changes_what_is_said(form: str) -> None:
    async with with_middleware(refuse) as port:
        ann = await Peer.enter(port, form)
        await ann.ask("subscribe", channel="red")
        refused = await ann.ask("publish", channel="red", data={"body": "hi"})
        assert refused["error"] == {"code": 400, "message": "no links, please"}
    async with with_middleware(shout) as port:
        ann = await Peer.enter(port, form)
        await ann.ask("subscribe", channel="red")
        await ann.ask("publish", channel="red", data={"n": 1, "body": "hi"})
        (said,) = (await ann.ask("history", channel="red", limit=-1))["history"]["publications"]
        assert said["data"] == {"n": 1, "body": "HI"}


async def through(command: Publish, client: Client, handler: Handler) -> Event | None:
    return await handler(command, client)


SAID: dict[str, Any] = {
    "said": {"channel": "red", "data": {"body": "hi"}},
    "no text": {"channel": "red", "data": [1]},
    "not to be said": {"channel": "red", "data": {"body": "\0"}},
    "a room that nobody is in": {"channel": "pink", "data": 1},
    "of no namespace": {"channel": "nosuch:x", "data": 1},
    "no name": {"channel": "!", "data": 1},
}


async def told(port: int, form: str) -> tuple[list[Any], list[Any]]:
    """The answers to `SAID`, and what comes of it, when each comes in a frame of its own, with pongs between."""
    ann = await Peer.enter(port, form)
    await ann.ask("subscribe", channel="red")
    for number, request in enumerate([*SAID.values()] * 5, 1000):
        ann.say(json.dumps({"id": number, "publish": request}))
        ann.say("{}")
    ann.say(json.dumps({"id": 2000, "history": {"channel": "red", "limit": 1}}))
    heard = [await ann.hear()]
    while heard[-1].get("id") != 2000:
        heard.append(await ann.hear())
    pushed = [each["push"]["pub"] for each in heard if "push" in each]
    answers = sorted((each for each in heard[:-1] if "id" in each), key=lambda each: int(each["id"]))
    return answers, [(each["offset"], each["data"], each["info"]["user"]) for each in pushed]


@in_both_forms
async def test_what_is_said_comes_to_the_same_whether_or_not_a_middleware_is_waited_for(form: str) -> None:
    async with running() as port:
        at_once = await told(port, form)
    async with with_middleware(through) as port:
        assert await told(port, form) == at_once
    assert [offset for offset, *_ in at_once[1]] == [*range(1, 11)]
    assert len(at_once[0]) == 5 * len(SAID)


@in_both_forms
async def test_while_keys_cant_be_had_clients_are_told_to_come_again(form: str) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    made = jwt.encode({"sub": "ann", "channel": "$x"}, key, algorithm="RS256", headers={"kid": "one"})
    temporary = {"code": 100, "message": "internal error", "temporary": True}
    async with running(token_jwks_url="http://127.0.0.1:9/keys") as port:
        bob = await Peer.connect(port, form)
        assert (await bob.ask("connect", token=made))["error"] == temporary
        ann = await Peer.enter(port, form)
        assert (await ann.ask("subscribe", channel="$x", token=made))["error"] == temporary
