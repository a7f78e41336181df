"""The endpoint of the Centrifuge protocol: handshakes, frames, and which form is spoken."""

import json
import logging
from typing import Any

import pytest

from chatserver.centrifuge import PATH
from chatserver.protocol import protobuf, wire
from tests import raw
from tests.play import FORMS, JSON, PROTOBUF, Peer, running, token
from tests.raw import Frame, RawClient

in_both_forms = pytest.mark.parametrize("form", FORMS)

HELLO = wire.Command(id=1, connect=wire.ConnectRequest(token=token()))


async def greeted(client: RawClient) -> int:
    """Connects in both forms at once; the opcode of the answer."""
    client.send(raw.BINARY, protobuf.delimited(HELLO))
    frame = await client.receive()
    assert frame
    return frame.opcode


@pytest.mark.parametrize(
    ("offer", "selected"),
    [
        ("centrifuge-protobuf", "centrifuge-protobuf"),
        ("centrifuge-json", "centrifuge-json"),
        ("other, centrifuge-protobuf", "centrifuge-protobuf"),
        ("centrifuge-json, centrifuge-protobuf", "centrifuge-json"),
        ("other", ""),
    ],
)
async def test_the_subprotocol_that_is_offered_is_selected(offer: str, selected: str) -> None:
    async with running() as port:
        client = await RawClient.connect(port, PATH, Sec_WebSocket_Protocol=offer)
        assert client.status == 101
        assert client.headers.get("sec-websocket-protocol", "") == selected
        peer = Peer(client, PROTOBUF if selected == "centrifuge-protobuf" else JSON)
        assert "connect" in await peer.ask("connect", token=token())


@pytest.mark.parametrize(
    ("query", "form"),
    [
        ("cf_protocol=protobuf", PROTOBUF),
        ("format=protobuf", PROTOBUF),
        ("cf_protocol=json", JSON),
        ("format=json", JSON),
        ("cf_protocol_version=v2", JSON),
        ("nosuch=1&cf_protocol=protobuf&cf_protocol_version=v2", PROTOBUF),
        ("", JSON),
    ],
)
async def test_the_form_may_be_asked_for_in_the_address(query: str, form: str) -> None:
    async with running() as port:
        client = await RawClient.connect(port, f"{PATH}?{query}")
        assert client.status == 101
        assert "sec-websocket-protocol" not in client.headers
        assert "connect" in await Peer(client, form).ask("connect", token=token())


async def test_an_empty_offer_is_none(caplog: pytest.LogCaptureFixture) -> None:
    """As one SDK sends it."""
    async with running() as port:
        client = await RawClient.connect(port, PATH, Sec_WebSocket_Protocol=" ")
        assert client.status == 101
        assert "sec-websocket-protocol" not in client.headers
        assert "connect" in await Peer(client, JSON).ask("connect", token=token())
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@in_both_forms
async def test_either_kind_of_frame_is_taken(form: str) -> None:
    """Answers are of the form's own kind."""
    async with running() as port:
        peer = await Peer.connect(port, form)
        if form == JSON:
            peer.client.send(raw.BINARY, json.dumps({"id": 1, "connect": {"token": token()}}).encode())
        else:
            peer.client.send(raw.TEXT, protobuf.delimited(HELLO))
        assert "connect" in await peer.hear()


@pytest.mark.parametrize(
    ("origin", "allowed", "status"),
    [
        ("", "", 101),
        ("http://localhost", "", 101),
        ("https://localhost", "", 101),
        ("http://evil.example", "", 403),
        ("null", "", 403),
        ("https://chat.example", "https://chat.example", 101),
        ("http://localhost", "https://chat.example", 403),
        ("http://evil.example", "*", 101),
    ],
)
async def test_pages_of_another_origin_are_refused(origin: str, allowed: str, status: int) -> None:
    async with running(allowed_origins=(allowed,) if allowed else ()) as port:
        assert (await RawClient.connect(port, PATH, Origin=origin)).status == status


@in_both_forms
async def test_a_message_may_be_so_long_and_no_longer(form: str) -> None:
    async with running(max_message_bytes=1000) as port:
        ann = await Peer.enter(port, form)
        exact = sized(form, 1000)
        assert len(exact) == 1000
        ann.client.send(raw.TEXT if form == JSON else raw.BINARY, exact)
        assert (await ann.hear())["error"]["code"] == 104
        ann.client.send(raw.TEXT if form == JSON else raw.BINARY, sized(form, 1001))
        assert await ann.end() == (1009, "message too big")


def sized(form: str, size: int) -> bytes:
    """A command of just so many bytes."""
    for length in range(size):
        method = "x" * length
        line = json.dumps({"id": 9, "rpc": {"method": method}})
        command = wire.Command(id=9, rpc=wire.RPCRequest(method=method))
        message = line.encode() if form == JSON else protobuf.delimited(command)
        if len(message) == size:
            return message
    raise ValueError(size)


@in_both_forms
async def test_pings_may_be_those_of_websocket(form: str) -> None:
    async with running(heartbeat_seconds=1.0) as port:
        offer = "centrifuge-protobuf" if form == PROTOBUF else ""
        path = f"{PATH}?cf_ws_frame_ping_pong=true"
        peer = Peer(await RawClient.connect(port, path, Sec_WebSocket_Protocol=offer), form)
        welcome = await peer.ask("connect", token=token())
        assert welcome["connect"].keys() == {"client", "version"}
        for _ in range(2):  # unanswered, the first would be the last
            assert await peer.client.receive() == Frame(raw.PING, b"")
            peer.client.send(raw.PONG)


@in_both_forms
async def test_there_may_be_no_pings_at_all(form: str) -> None:
    async with running(heartbeat_seconds=0.0) as port:
        peer = await Peer.connect(port, form)
        welcome = await peer.ask("connect", token=token())
        assert welcome["connect"].keys() == {"client", "version"}


@in_both_forms
async def test_who_answers_no_ping_is_dropped(form: str) -> None:
    async with running(heartbeat_seconds=0.5) as port:
        peer = await Peer.enter(port, form)
        assert await peer.hear(pings=True) == {}
        assert await peer.end() == (3012, "no pong")


@in_both_forms
async def test_a_websocket_ping_is_answered(form: str) -> None:
    async with running() as port:
        peer = await Peer.connect(port, form)
        peer.client.send(raw.PING, b"there?")
        assert await peer.client.receive() == Frame(raw.PONG, b"there?")


@in_both_forms
async def test_whatever_is_in_a_frame_is_one_frame_of_answers_or_several(form: str) -> None:
    """No blank lines, and no line break at the end."""
    async with running() as port:
        ann = await Peer.enter(port, form)
        ann.say(*(json.dumps({"id": number, "rpc": {"method": "nosuch"}}) for number in range(10, 500)))
        assert [(await ann.hear())["id"] for _ in range(10, 500)] == [*range(10, 500)]


@in_both_forms
async def test_one_connection_at_a_time_is_refused_for_what_it_says(form: str) -> None:
    """Others go on."""
    async with running() as port:
        ann, bob = await Peer.enter(port, form), await Peer.enter(port, form, "bob")
        for peer in (ann, bob):
            assert "subscribe" in await peer.ask("subscribe", channel="plain:x")
        ann.say("nope")
        assert await ann.end() == (3501, "bad request")
        assert await bob.ask("publish", channel="plain:x", data=1) == {"publish": {}}
        heard: dict[str, Any] = await bob.hear()
        assert heard["push"]["pub"]["data"] == 1


@pytest.mark.parametrize(
    ("settings", "offer", "status"),
    [({"features": ("http",)}, {}, 404), ({}, {"Upgrade": ""}, 426), ({}, {"Sec_WebSocket_Version": "12"}, 426)],
    ids=["switched off", "no upgrade", "another version"],
)
async def test_refusals_before_the_upgrade(settings: dict[str, Any], offer: dict[str, str], status: int) -> None:
    async with running(**settings) as port:
        assert (await RawClient.connect(port, PATH, **offer)).status == status
