"""Clients of the Centrifuge protocol for tests, and conversations between them and a server.

`A> TEXT`            · client A sends one frame; ⏎ stands for the end of a command when there are several
`A< JSON`            · the next that A is told is this, in JSON, or the same in Protobuf
`A<~ JSON`           · the same, but neighbouring lines of one client may come in any order
`A! CODE REASON`     · the server closes
`A.`                 · A closes
`H POST PATH JSON`   · a program calls the HTTP API, and `H< JSON` is what it is answered
`# …`                · a remark

In what is expected `"?s"` is any text but the empty one, `"?i"` any integer, a key that ends in `?` may be missing, and
`"$x"` is whatever stands there the first time, and the same from then on, also in what is sent. `TOK{…}` is a token
with these claims, and `BAD{…}` one with another secret. Pings are expected as `A< {}`, or else passed over.

Of our own there are these:

`S JSON`             · the server's settings, in the first line
`A connects FORM`    · A speaks `json` or `protobuf`, whatever the conversation is in; of others the first `>` connects
`A connects PATH`    · A speaks the simple protocol there
`A hears nothing`    · nothing waits for A
"""

import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
import jwt
import msgspec
from aiohttp.test_utils import TestServer

from chatserver.app import build
from chatserver.config import Config
from chatserver.protocol import protobuf, wire
from chatserver.protocol.nulls import without_nulls
from tests import raw
from tests.raw import RawClient

PATH: Final = "/connection/websocket"
SECRET, ANOTHER, API_KEY = "golden-secret-of-thirty-two-bytes", "another-secret-of-thirty-two-byte", "api_key"
NAMESPACES: Final[dict[str, dict[str, Any]]] = {
    "": {"history_size": 10, "history_seconds": 300},
    "lobby": {"publish": "nobody", "history": "nobody", "join_leave": "always"},
    "plain": {"publish": "client", "history": "nobody", "presence": "nobody", "join_leave": "off"},
    "tiny": {"history_size": 2},
    "now": {"history_size": 1, "recovery": "cache"},
    "delta": {"history_size": 10, "delta": "fossil"},
    "ro": {"publish": "nobody", "presence": "nobody", "join_leave": "off", "recovery": "off", "history_size": 10},
}
JSON, PROTOBUF, SIMPLE = "json", "protobuf", "simple"
FORMS: Final = (JSON, PROTOBUF)
PING: Final[dict[str, Any]] = {}

_LINE: Final = re.compile(r"(\w+)(<~|[<>!.]| connects| hears|(?= POST)) ?(.*)")


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[int]:
    """A server as all conversations have it, but for `settings`; its port."""
    usual: dict[str, Any] = {
        "store_url": "memory://",
        "namespaces": json.dumps(NAMESPACES),
        "token_hmac_secret": SECRET,
        "token_require": (),
        "api_token": API_KEY,
    }
    async with TestServer(build(Config(**usual | settings))) as server:
        assert server.port
        yield server.port
        await RawClient.clean_up()  # or else the server would wait for them


def token(user: str = "ann", secret: str = SECRET, **claims: Any) -> str:
    """Of a connection or, with a `channel`, of a subscription."""
    return jwt.encode({"sub": user, **claims}, secret)


class Peer:
    """A client: speaks and hears JSON, whatever goes over the wire."""

    def __init__(self, client: RawClient, form: str) -> None:
        self.client = client
        self.form = form
        self.heard: list[Any] = []
        self.id = 0

    @classmethod
    async def connect(cls, port: int, form: str, path: str = PATH) -> "Peer":
        """Opens the connection, and says nothing yet."""
        offer = "centrifuge-protobuf" if form == PROTOBUF else ""
        client = await RawClient.connect(port, path, Sec_WebSocket_Protocol=offer)
        assert client.status == 101
        assert client.headers.get("sec-websocket-protocol", "") == offer
        return cls(client, form)

    @classmethod
    async def enter(cls, port: int, form: str, user: str = "ann", **claims: Any) -> "Peer":
        """A client that is let in; anonymous if `user` is empty."""
        peer = await cls.connect(port, form)
        welcome = await peer.ask("connect", token=token(user, **claims) if user else "")
        assert "connect" in welcome, welcome
        return peer

    def say(self, *lines: str) -> None:
        """Sends one frame."""
        if self.form == PROTOBUF:
            self.client.send(raw.BINARY, b"".join(map(as_protobuf, lines)))
        else:
            self.client.say("\n".join(lines))

    async def ask(self, command: str, **request: Any) -> Any:
        """Sends a command; its answer. What is told before it stays to be heard."""
        self.id += 1
        self.say(json.dumps({"id": self.id, command: request}))
        told: list[Any] = []
        while (heard := await self.hear()).get("id") != self.id:
            told.append(heard)
        self.heard[:0] = told
        return {name: value for name, value in heard.items() if name != "id"}

    async def hear(self, *, pings: bool = False) -> Any:
        """The next thing that is told; `pings`, too, or not. Fails at the end of the connection."""
        while True:
            while not self.heard:
                frame = await self._frame()
                assert frame.opcode != raw.CLOSE, f"closed: {frame.code} {frame.payload[2:]!r}"
                self.heard += self._told(frame)
            heard = self.heard.pop(0)
            if pings or heard != PING:
                return heard

    async def end(self) -> tuple[int, str]:
        """Code and reason with which the server closes. Fails if anything but pings is told before."""
        while (frame := await self._frame()).opcode != raw.CLOSE:
            self.heard += self._told(frame)
        assert [heard for heard in self.heard if heard != PING] == []
        return frame.code, frame.payload[2:].decode()

    async def silent(self) -> bool:
        """Nothing waits for this client."""
        self.client.send(raw.PING, b"silence?")
        while (frame := await self._frame()) != raw.Frame(raw.PONG, b"silence?"):
            self.heard += self._told(frame)
        return [heard for heard in self.heard if heard != PING] == []

    async def _frame(self) -> raw.Frame:
        frame = await self.client.receive()
        assert frame is not None, "the connection ended without a close frame"
        return frame

    def _told(self, frame: raw.Frame) -> Iterator[Any]:
        if frame.opcode == raw.PING:
            return iter(())
        assert frame.opcode == (raw.BINARY if self.form == PROTOBUF else raw.TEXT), frame
        if self.form == PROTOBUF:
            return map(as_json, protobuf.split(frame.payload))
        return map(json.loads, frame.payload.split(b"\n"))


def as_protobuf(line: str) -> bytes:
    """A command in JSON; what is none becomes something that is none either."""
    try:
        fields = without_nulls(wire.Command, line)
        return protobuf.delimited(msgspec.json.decode(msgspec.json.encode(fields), type=wire.Command))
    except ValueError:
        return b"\x7f" + line.encode()[:100]


def as_json(message: bytes) -> Any:
    """What a reply is in JSON."""
    return json.loads(msgspec.json.encode(protobuf.decode(wire.Reply, message)))


class Play:
    """One conversation."""

    def __init__(self, port: int, form: str) -> None:
        self.port = port
        self.form = form
        self.peers: dict[str, Peer] = {}
        self.bound: dict[str, Any] = {}
        self.answer: Any = None

    async def line(self, name: str, verb: str, rest: str) -> None:
        """One line, but `<~`."""
        if name == "H":
            await self._program(verb, rest)
            return
        if verb == " connects" or (verb == ">" and name not in self.peers):
            self.peers[name] = await self._connect(rest if verb == " connects" else self.form)
        peer = self.peers[name]
        if verb == ">":
            peer.say(*(self.filled(part) for part in rest.split(" ⏎ ")))
        elif verb == "<":
            await self.expect(name, [json.loads(rest)])
        elif verb == "!":
            code, _, reason = rest.partition(" ")
            assert await peer.end() == (int(code), reason)
        elif verb == " hears":
            assert rest == "nothing"
            assert await peer.silent(), peer.heard
        elif verb == ".":
            await peer.client.close()

    async def expect(self, name: str, expected: list[Any]) -> None:
        """The next things that are told, in any order."""
        while expected:
            heard = await self.peers[name].hear(pings=PING in expected)
            found = next((one for one in expected if self.fits(heard, one, dict(self.bound))), None)
            assert found is not None, f"{heard} instead of {expected}"
            assert self.fits(heard, found, self.bound)
            expected.remove(found)

    async def _connect(self, how: str) -> Peer:
        return await (
            Peer.connect(self.port, how) if how in FORMS else Peer.connect(self.port, SIMPLE, self.filled(how))
        )

    async def _program(self, verb: str, rest: str) -> None:
        if verb == "<":
            assert self.fits(self.answer, json.loads(rest), self.bound), self.answer
            return
        method, path, body = rest.split(" ", 2)
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{self.port}{path}"
            async with session.request(method, url, data=self.filled(body), headers={"X-API-Key": API_KEY}) as answer:
                assert answer.status == 200, await answer.text()
                self.answer = await answer.json()

    def filled(self, text: str) -> str:
        """What is sent for `text`."""
        for name, value in self.bound.items():
            text = text.replace(f'"{name}"', json.dumps(value))
        while start := re.search(r"(TOK|BAD)\{", text):
            end = _closing(text, start.end())
            claims = json.loads(text[start.end() - 1 : end])
            made = jwt.encode(claims, SECRET if start[1] == "TOK" else ANOTHER)
            text = text[: start.start()] + made + text[end:]
        return text

    def fits(self, heard: Any, expected: Any, bound: dict[str, Any]) -> bool:
        """`heard` is what is `expected`, which may bind names."""
        if isinstance(expected, dict):
            return isinstance(heard, dict) and self._fits_object(heard, expected, bound)
        if isinstance(expected, list):
            same = isinstance(heard, list) and len(heard) == len(expected)
            return same and all(self.fits(one, other, bound) for one, other in zip(heard, expected, strict=True))
        if expected == "?s":
            return isinstance(heard, str) and heard != ""
        if expected == "?i":
            return type(heard) is int
        if isinstance(expected, str) and re.fullmatch(r"\$\w+", expected):
            expected = bound.setdefault(expected, heard)
        return type(heard) is type(expected) and bool(heard == expected)

    def _fits_object(self, heard: dict[str, Any], expected: dict[str, Any], bound: dict[str, Any]) -> bool:
        wanted = {bound.get(key.removesuffix("?"), key.removesuffix("?")): key for key in expected}
        needed = {name for name, key in wanted.items() if not key.endswith("?")}
        if not needed <= heard.keys() <= wanted.keys():
            return False
        return all(self.fits(value, expected[wanted[name]], bound) for name, value in heard.items())


def _closing(text: str, start: int) -> int:
    """Behind the brace that closes the one before `start`."""
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if not depth:
            return place + 1
    raise ValueError(text)


def settings_of(text: str) -> dict[str, Any]:
    """What a conversation says of its server; namespaces are added to the usual ones."""
    first = text.partition("\n")[0]
    settings: dict[str, Any] = json.loads(first[2:]) if first.startswith("S ") else {}
    if "namespaces" in settings:
        settings["namespaces"] = json.dumps(NAMESPACES | settings["namespaces"])
    return settings


async def converse(text: str, form: str, name: str) -> None:
    """Has the conversation `text` in `form`. Fails with the line where it goes another way."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(("#", "S "))]
    async with running(**settings_of(text)) as port:
        play = Play(port, form)
        unordered: list[Any] = []
        for line, after in zip(lines, [*lines[1:], ""], strict=True):
            match = _LINE.fullmatch(line)
            assert match, line
            who, verb, rest = match.groups()
            try:
                if verb != "<~":
                    await play.line(who, verb, rest)
                    continue
                unordered.append(json.loads(rest))
                if not after.startswith(f"{who}<~"):
                    await play.expect(who, unordered)
            except (AssertionError, TimeoutError) as error:
                raise AssertionError(f"{name}: {line}\n{error or type(error).__name__}") from error
