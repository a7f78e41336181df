"""Mutated commands of the Centrifuge protocol, in JSON and in Protobuf: each gets an answer that the protocol has.

Each mutant is the payload of one message, and is followed by a valid command, the *trailer*. Either the trailer is
answered, and what comes before it are replies and pushes that a client can read, with no error number but those of
docs/protocol.md; or the connection is closed, with one of the codes for what is malformed. Meanwhile two who chat over
`/ws` hear each other as if nothing happened, and at the end the log has no error.
"""

import asyncio
import itertools
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from chatserver.protocol import protobuf, wire
from tests.hostile.harness import Figures, descriptors, eventually, main, rss
from tests.hostile.mutations import Canaries
from tests.hostile.mutations import Wire as Canary
from tests.raw import BINARY, CLOSE, TEXT, RawClient
from tests.server import Server

CODES: Final = {1007, 3500, 3501}
NUMBERS: Final = {100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 110, 111, 112, 414, 415}
WORKERS: Final = 4

ROOM: Final = "mutants"
VALID: Final[list[dict[str, Any]]] = [
    {"connect": {"name": "js", "data": {"a": [1, None]}, "subs": {ROOM: {"recover": True, "offset": 1}}}},
    {"subscribe": {"channel": ROOM, "flag": 1, "recover": True, "offset": 3, "epoch": "e", "join_leave": True}},
    {"subscribe": {"channel": "$vault", "token": "ey.J.x", "delta": "fossil", "tf": {"op": "and"}, "type": 1}},
    {"unsubscribe": {"channel": "other"}},
    {"publish": {"channel": ROOM, "data": {"body": "hi \U0001f600", "n": [1.5, -1e3, True, None]}}},
    {"publish": {"channel": "other", "data": "text"}},
    {"presence": {"channel": ROOM}},
    {"presence_stats": {"channel": ROOM}},
    {"history": {"channel": ROOM, "limit": -1, "since": {"offset": 1, "epoch": ""}, "reverse": True}},
    {"send": {"data": [1]}},
    {"rpc": {"method": "send", "data": {"room": ROOM, "body": "hi", "key": "k1-of-nobody-in-particular"}}},
    {"rpc": {"method": "history", "data": {"room": ROOM, "after": 1, "limit": 3}}},
    {"refresh": {"token": "ey.J.x"}},
    {"sub_refresh": {"channel": ROOM, "token": "ey.J.x"}},
    {"ping": {}},
    {},
]
TOKENS: Final = [
    "", "\0", "\\u0000", "\\ud800", '"', "\\", "{", "}", "[", "]", ",", ":", "NaN", "1e999", "-1", "0", "true", "null",
    "2.0",
    "\u00e9", "\U0001f600", "\n", "\n\n", " ",
    '"id":1,', '"id":-1,', '"id":4294967296,', '"channel":', '"data":', "9" * 400,
    "[" * 5000, '{"a":' * 200, "18446744073709551615", "18446744073709551616", "\\x", "a" * 300, '{"id":5}',
]  # fmt: skip


def mutant(choose: random.Random, form: str) -> bytes:
    """The payload of one message."""
    commands = [
        ({"id": choose.randint(2, 2**20)} if choose.random() < 0.9 else {}) | choose.choice(VALID)
        for _ in range(choose.choice([1, 1, 1, 2, 3]))
    ]
    lines = [json.dumps(command, ensure_ascii=choose.random() < 0.5) for command in commands]
    if form == "json":
        return _spliced(choose, "\n".join(lines)).encode(errors="surrogatepass")
    return _spoiled(choose, b"".join(map(_as_protobuf, lines)))


def _as_protobuf(line: str) -> bytes:
    return protobuf.delimited(msgspec.json.decode(line, type=wire.Command))


def _spliced(choose: random.Random, text: str) -> str:
    for _ in range(choose.choice([0, 0, 1, 1, 1, 2])):
        place = choose.randint(0, len(text))
        text = text[:place] + choose.choice(TOKENS) + text[place + choose.choice([0, 0, 1, 2, 4]) :]
    return text


def _spoiled(choose: random.Random, data: bytes) -> bytes:
    for _ in range(choose.choice([0, 0, 1, 1, 1, 2])):
        place = choose.randint(0, len(data))
        come, gone = choose.choice([0, 1, 1, 2]), choose.choice([0, 1, 1, 3])
        data = data[:place] + choose.randbytes(come) + data[place + gone :]
    return data


@dataclass
class Tally:
    """What came of the mutants."""

    codes: Counter[int] = field(default_factory=Counter)
    numbers: Counter[int] = field(default_factory=Counter)
    replies: int = 0
    survived: int = 0
    connections: int = 0


class Mutineer:
    """Sends mutants in one form, over as many connections as they cost, and judges the answers."""

    def __init__(self, port: int, form: str, seed: int, tally: Tally) -> None:
        self._port = port
        self._form = form
        self._random = random.Random(f"{form} {seed}")
        self._tally = tally
        self._ids = itertools.count(2**30)

    async def run(self, count: int) -> None:
        client: RawClient | None = None
        for _ in range(count):
            client = client or await self._connect()
            if not await self._survives(client, mutant(self._random, self._form)):
                client.abort()
                client = None
        if client:
            client.abort()

    async def _connect(self) -> RawClient:
        self._tally.connections += 1
        client = await RawClient.connect(self._port, f"/connection/websocket?format={self._form}")
        self._say(client, {"id": 1, "connect": {}}, {"id": 2, "subscribe": {"channel": ROOM}})
        while not any(reply.subscribe and reply.id == 2 for reply in await self._hear(client) or []):
            continue
        return client

    async def _survives(self, client: RawClient, payload: bytes) -> bool:
        trailer = next(self._ids)
        client.send(TEXT if self._form == "json" else BINARY, payload)
        self._say(client, {"id": trailer, "history": {"channel": "other"}})
        while (replies := await self._hear(client)) is not None:
            for reply in replies:
                if reply.error:
                    self._tally.numbers[reply.error.code] += 1
                    assert reply.error.code in NUMBERS, (payload, reply)
                    assert reply.error.message
                if reply.id == trailer:
                    self._tally.survived += 1
                    return True
                self._tally.replies += reply.push is None
        return False

    def _say(self, client: RawClient, *commands: dict[str, Any]) -> None:
        lines = [json.dumps(command) for command in commands]
        if self._form == "json":
            client.say("\n".join(lines))
        else:
            client.send(BINARY, b"".join(map(_as_protobuf, lines)))

    async def _hear(self, client: RawClient) -> list[wire.Reply] | None:
        """What one message says, all of which has to be readable; None: the connection is closed as it should be."""
        frame = await client.receive(20)
        assert frame, "closed without a word"
        if frame.opcode == CLOSE:
            self._tally.codes[frame.code] += 1
            assert frame.code in CODES, frame
            assert frame.payload[2:]
            return None
        if self._form == "protobuf":
            assert frame.opcode == BINARY
            return [protobuf.decode(wire.Reply, message) for message in protobuf.split(frame.payload)]
        return [_reply(line) for line in frame.text.split("\n")]


def _reply(line: str) -> wire.Reply:
    json.loads(line)  # as other clients do it
    return msgspec.json.decode(line, type=wire.Reply)


async def run(server: Server, *, count: int = 20000, seed: int = 1) -> Figures:
    await asyncio.to_thread(server.start, HEARTBEAT_SECONDS="0", RATE_LIMIT="0")
    canaries = Canaries([await Canary.connect(server.port) for _ in range(2)])
    base = descriptors(server) - len(canaries.pair)
    singing = asyncio.create_task(canaries.sing())
    tally, before = Tally(), rss(server)
    share = count // (2 * WORKERS)
    mutineers = [Mutineer(server.port, form, seed + n, tally) for form in ("json", "protobuf") for n in range(WORKERS)]
    await asyncio.gather(*(mutineer.run(share) for mutineer in mutineers))
    canaries.stop = True
    await asyncio.wait_for(singing, 30)
    canaries.check_each_other()
    for wire_ in canaries.pair:
        wire_.transport.abort()
    await eventually(lambda: descriptors(server) <= base, 20)
    assert server.process
    assert server.process.poll() is None
    errors = server.problems
    problems = [line for line in errors if line["logger"] != "chatserver.watchdog"]  # a busy machine is no fault
    assert not problems, problems[:3]
    assert not server.foreign, server.foreign[:5]
    return {
        "mutants": share * 2 * WORKERS,
        "connections": tally.connections,
        "survived": tally.survived,
        "replies": tally.replies,
        "errors": ", ".join(f"{number}: {times}" for number, times in sorted(tally.numbers.items())),
        "close codes": ", ".join(f"{code}: {times}" for code, times in sorted(tally.codes.items())),
        "canary messages": canaries.count,
        "MiB of growth": (rss(server) - before) / 2**20,
    }


if __name__ == "__main__":
    main(run)
