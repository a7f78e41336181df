"""Mutated WebSocket frames and JSON texts: each gets an answer that the protocol's description has.

A mutant is the bytes of some frames. Each is followed by a valid message, the *trailer*, so that what comes in between
is its answer: one error for each text that is refused, to its sender alone, and nothing for one that is published,
which everybody hears. Or there is a close code instead of the trailer. What is to be expected is said by `Model`, the
frames of RFC 6455 as aiohttp takes them, and by `_valid`. A mutant that leaves something incomplete is completed after
it; that its trailer then comes shows that the connection had stayed.
"""

import asyncio
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.hostile.harness import PATIENCE_SECONDS, Figures, descriptors, eventually, main, rss
from tests.raw import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT
from tests.server import Server

NUMBERS: Final = {410, 411, 412, 413, 414, 415}
MAX_MESSAGE: Final = 65536
MAX_BODY: Final = 32768

PORTION: Final = 5000
"""So many mutants are made while the ones before are sent."""

BATCH: Final = 50
"""Mutants made of one example of Hypothesis's."""

WORKERS: Final = 6
PIPELINE: Final = 40
PER_CONNECTION: Final = 400  # with as many trailers below RATE_LIMIT
CONTROLS: Final = 80  # below 100 in a second
CANARY_SECONDS: Final = 0.05

_OPCODES: Final = {CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG}
_ERROR: Final = re.compile(r'\{"type":1,"body":"error: .*\((\d+)\)"\}', re.DOTALL)
_HEAD: Final = (
    b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


# --- What is sent ----------------------------------------------------------------------------------------------------


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    key: bytes | None = bytes(4),
    form: int = 0,
    declared: int | None = None,
) -> bytes:
    """One frame. `form`: 0 the shortest length, 2 or 8 bytes else. `declared`: a length that isn't the payload's."""
    length = len(payload) if declared is None else declared
    form = form or (0 if length < 126 else 2 if length < 65536 else 8)
    mask = 0x80 if key is not None else 0
    size = (
        bytes([mask | min(length, 125)])
        if not form
        else bytes([mask | (126 if form == 2 else 127)]) + (length % 256**form).to_bytes(form, "big")
    )
    if key and any(key):
        payload = bytes(byte ^ key[place % 4] for place, byte in enumerate(payload))
    return bytes([(0x80 if fin else 0) | rsv << 4 | opcode]) + size + (key or b"") + payload


_VALID: Final = [
    '{"type":2,"body":"hello"}',
    '{"type":2,"body":""}',
    '{ "body" : "\\u00e9\\ud83d\\ude00 \\"quoted\\"" , "type" : 2 }',
    '{"type":2,"body":"x","type":2}',
    '{"type":1,"body":"hello"}',
    '{"type":3,"body":"hello"}',
    '{"type":2,"body":"a\\u0000b"}',
]
_TOKENS: Final = [
    "", "\0", "\\u0000", "\\ud800", "\\udfff\\ud800", '"', "\\", "{", "}", "[", "]", ",", ":", "NaN", "1e999", "-0",
    "2", "true", "null", "2.0", "é", "😀", "\x7f", "\n", " ", "type", "body", '"type":1,', '"type":2,', '"id":0,', "//",
    "\ufeff", "9" * 400, "[" * 5000, '{"a":' * 200, "\\", "\\x", "\\u12", "a" * 300,
]  # fmt: skip

_INVALID_UTF8: Final = [b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b'"\xc3"', b"\xe2\x82"]
_CODES: Final = [0, 999, 1000, 1001, 1004, 1005, 1006, 1011, 1014, 1015, 1016, 2999, 3000, 4999, 5000, 65535]
_LENGTHS: Final = [None, None, None, 0, 1, 30, 125, 126, 65536, 65537, 2**31, 2**63 - 1, 2**64 - 1]

_scalar = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 5), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from(["\0", "2", "error: no (100)", "x" * 40000, "é" * 16384, "é" * 16385, "a\0b"]),
)  # fmt: skip
_value = st.one_of(_scalar, st.lists(_scalar, max_size=2), st.dictionaries(st.text(max_size=3), _scalar, max_size=2))
_object = st.fixed_dictionaries(
    {}, optional={"type": st.one_of(st.just(2), _scalar), "body": _value, "Type": st.just(2), "": _scalar}
)
_message = st.fixed_dictionaries({"type": st.just(2), "body": st.text()})
_text = st.one_of(
    st.one_of(_object, _message, _value).map(json.dumps),
    _message.map(lambda message: json.dumps(message, ensure_ascii=False).encode(errors="ignore").decode()),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)
_dough = st.tuples(st.integers(0, 2**64), st.lists(_text, min_size=10, max_size=10), st.binary(min_size=4, max_size=20))


class Baker:
    """Makes mutants of what Hypothesis has drawn: a seed, some texts, some bytes."""

    def __init__(self, seed: int, texts: list[str], data: bytes) -> None:
        self._random = random.Random(f"{seed} {texts} {data!r}")
        self._texts = texts
        self._bytes = data
        self._kinds = [
            (self.whole, 60),
            (self.parts, 20),
            (self.spoiled, 8),
            (self.odd, 7),
            (self.close, 4),
            (self.big, 1),
        ]

    def bake(self, count: int) -> list[bytes]:
        kinds = self._random.choices(*zip(*self._kinds, strict=True), k=count)
        return [kind() for kind in kinds]

    def text(self) -> str:
        choose = self._random
        text = choose.choice(_VALID if choose.random() < 0.5 else self._texts)
        for _ in range(choose.choice([0, 0, 1, 1, 1, 2, 3])):
            place = choose.randint(0, len(text))
            text = text[:place] + choose.choice(_TOKENS) + text[place + choose.choice([0, 0, 1, 2, 4]) :]
        return text

    def key(self) -> bytes | None:
        return self._random.choice([bytes(4), self._random.randbytes(4), self._random.randbytes(4), None])

    def whole(self) -> bytes:
        return frame(TEXT, self.text().encode(), key=self.key(), form=self._random.choice([0, 0, 0, 8]))

    def parts(self) -> bytes:
        payload = self.text().encode()
        cuts = sorted(self._random.randint(0, len(payload)) for _ in range(self._random.randint(1, 4)))
        return b"".join(_fragments(payload, cuts, ping=self._random.random() < 0.3))

    def spoiled(self) -> bytes:
        data = self._random.choice([self.whole, self.parts])()
        for _ in range(self._random.randint(1, 2)):
            place = self._random.randint(0, min(len(data), 40))
            gone, come = self._random.randint(0, 2), self._random.randint(0, 2)
            data = data[:place] + self._random.randbytes(come) + data[place + gone :]
        return data

    def odd(self) -> bytes:
        choose = self._random
        return frame(
            choose.choice([TEXT, TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG, choose.randint(0, 15)]),
            choose.choice([self.text().encode(), self._bytes, choose.choice(_INVALID_UTF8)]),
            fin=choose.random() < 0.7,
            rsv=choose.choice([0, 0, 0, 0, 0, 1, 2, 4, 7]),
            key=self.key(),
            form=choose.choice([0, 0, 2, 8]),
            declared=choose.choice(_LENGTHS),
        )

    def close(self) -> bytes:
        code = self._random.choice([*_CODES, self._random.randint(0, 65535)])
        reason = self._random.choice([b"", b"bye", self._bytes, *_INVALID_UTF8])
        return frame(CLOSE, (code.to_bytes(2, "big") + reason)[: self._random.choice([0, 1, 2, 100])], key=self.key())

    def big(self) -> bytes:
        size = self._random.choice([MAX_BODY, MAX_BODY + 1, MAX_MESSAGE - 20, MAX_MESSAGE - 19, MAX_MESSAGE])
        return frame(TEXT, b'{"type":2,"body":"%s"}' % (b"x" * size), key=self.key())


def _fragments(payload: bytes, cuts: list[int], *, ping: bool) -> Iterator[bytes]:
    start = 0
    for number, cut in enumerate([*cuts, len(payload)]):
        yield frame(CONTINUATION if number else TEXT, payload[start:cut], fin=number == len(cuts))
        start = max(start, cut)
        if ping and not number:
            yield frame(PING, b"between")


def mutants(count: int, seed: int) -> list[bytes]:
    """`count` of them, the same for the same seed."""
    made: list[bytes] = []

    @hypothesis.seed(seed)
    @settings(
        max_examples=max(1, -(-count // BATCH)), database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(_dough)
    def make(dough: tuple[int, list[str], bytes]) -> None:
        made.extend(Baker(*dough).bake(BATCH))

    make()
    assert len(made) >= count, len(made)
    return made[:count]


# --- What is to be expected ------------------------------------------------------------------------------------------


@dataclass
class Model:
    """What a server that is fed these bytes makes of them."""

    texts: list[str] = field(default_factory=list)
    close: int | None = None
    controls: int = 0
    wanted: bytes = b""
    """What would bring an incomplete frame, or message, nearer to its end."""
    _opcode: int | None = None
    _partial: bytes = b""

    def feed(self, data: bytes) -> bytes:
        """Takes whole frames, until one that ends the connection; returns the rest."""
        while data and self.close is None:
            rest = self._frame(data)
            if rest is None:
                return data
            data = rest
        self.wanted = b"" if self._opcode is None or self.close else frame(CONTINUATION)
        return b""

    def _frame(self, data: bytes) -> bytes | None:
        if self._wants(2 - len(data)):
            return None
        fin, opcode, length, size = data[0] >> 7, data[0] & 15, data[1] & 127, 2
        code = self._wrong(data[0], data[1])
        if code:
            return self._end(code)
        if length > 125:
            size += 2 if length == 126 else 8
            if self._wants(size - len(data)):
                return None
            length = int.from_bytes(data[2:size], "big")
        if opcode < 8 and length > MAX_MESSAGE - len(self._partial):
            return self._end(1009)
        key, size = data[size : size + 4], size + 4
        if self._wants(size + length - len(data)):
            return None
        payload = data[size : size + length]
        if any(key):
            payload = bytes(byte ^ key[place % 4] for place, byte in enumerate(payload))
        (self._control if opcode > 7 else self._data)(opcode, payload, bool(fin))
        return data[size + length :]

    def _wrong(self, first: int, second: int) -> int:
        """The close code for two bytes that can't begin a frame here, or 0."""
        fin, opcode = first >> 7, first & 15
        if first & 0x70 or not second & 128 or opcode not in _OPCODES:
            return 1002
        if opcode > 7:
            return 0 if fin and second & 127 <= 125 else 1002
        if (opcode == CONTINUATION) != (self._opcode is not None):
            return 1002
        return 1003 if opcode == BINARY else 0

    def _control(self, opcode: int, payload: bytes, fin: bool) -> None:
        self.controls += 1
        if opcode != CLOSE:
            return
        code = int.from_bytes(payload[:2], "big") if payload else 1000
        wrong = len(payload) == 1 or code in (1004, 1005, 1006) or not (1000 <= code <= 1014 or 3000 <= code <= 4999)
        self.close = 1002 if wrong else code if _utf8(payload[2:]) else 1007

    def _data(self, opcode: int, payload: bytes, fin: bool) -> None:
        if not fin:
            self._opcode = TEXT
            self._partial += payload
            return
        message, self._partial, self._opcode = self._partial + payload, b"", None
        if _utf8(message):
            self.texts.append(message.decode())
        else:
            self.close = 1007

    def _wants(self, count: int) -> bool:
        if count > 0:
            self.wanted = bytes(count)
        return count > 0

    def _end(self, code: int) -> bytes:
        self.close = code
        return b""


def _utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _valid(text: str) -> bool:
    """It is a message, as docs/protocol.md has it; of a field that stands twice, each has to be of its type."""
    try:
        pairs: Any = json.loads(text, parse_constant=_refuse, object_pairs_hook=tuple)
        if not isinstance(pairs, tuple) or {name for name, _ in pairs} != {"type", "body"}:
            return False
        if not all(type(value) is (int if name == "type" else str) for name, value in pairs):
            return False
        message = dict(pairs)
        return message["type"] == 2 and "\0" not in message["body"] and len(message["body"].encode()) <= MAX_BODY
    except (ValueError, RecursionError):
        return False


def _refuse(constant: str) -> None:
    raise ValueError(constant)


@dataclass(frozen=True)
class Case:
    """A mutant, completed, and what is expected of it."""

    mutant: bytes
    completion: bytes
    texts: list[str]
    valid: int
    close: int | None
    controls: int

    @classmethod
    def of(cls, data: bytes) -> "Case":
        model = Model()
        rest = model.feed(data)
        completion = b""
        while model.wanted and model.close is None:
            more, model.wanted = model.wanted, b""
            completion += more
            rest = model.feed(rest + more)
        return cls(data, completion, model.texts, sum(map(_valid, model.texts)), model.close, model.controls)


# --- Who sends it ----------------------------------------------------------------------------------------------------


class Wire(asyncio.Protocol):
    """A connection that takes whole frames as fast as they come."""

    def __init__(self) -> None:
        self.frames: list[tuple[int, bytes]] = []
        self.ended = False
        self.news = asyncio.Event()
        self._data = b""
        self._upgraded = False

    @classmethod
    async def connect(cls, port: int) -> "Wire":
        _, wire = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        while not wire._upgraded:
            await wire.wait()
            assert not wire.ended
        return wire

    async def wait(self) -> None:
        """Until there is something new."""
        await asyncio.wait_for(self.news.wait(), PATIENCE_SECONDS)
        self.news.clear()

    def say(self, body: str) -> None:
        self.transport.write(frame(TEXT, json.dumps({"type": 2, "body": body}).encode()))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(_HEAD)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        self.news.set()

    def data_received(self, data: bytes) -> None:
        data = self._data + data
        if not self._upgraded:
            head, found, data = data.partition(b"\r\n\r\n")
            if not found:
                self._data = head
                return
            assert head.startswith(b"HTTP/1.1 101 "), head
            self._upgraded = True
        start, end = 0, len(data)
        while end - start >= 2:
            length, size = data[start + 1], 2
            if length >= 126:
                size = 4 if length == 126 else 10
                if end - start < size:
                    break
                length = int.from_bytes(data[start + 2 : start + size], "big")
            if end - start < size + length:
                break
            self.frames.append((data[start], data[start + size : start + size + length]))
            start += size + length
        self._data = data[start:]
        self.news.set()


@dataclass
class Tally:
    """What came of the mutants."""

    answered: Counter[str] = field(default_factory=Counter)
    numbers: Counter[int] = field(default_factory=Counter)
    codes: Counter[int] = field(default_factory=Counter)
    published: int = 0
    connections: int = 0
    trailers: int = 0
    completed: int = 0


class Worker:
    """Sends mutants, over as many connections as they cost, and judges the answers."""

    def __init__(self, port: int, name: str, tally: Tally) -> None:
        self._port = port
        self._name = name
        self._tally = tally
        self._numbers = itertools.count()

    async def run(self, cases: Iterator[Case]) -> None:
        waiting: list[Case] = []
        while waiting or (waiting := list(itertools.islice(cases, PIPELINE))):
            wire = await Wire.connect(self._port)
            self._tally.connections += 1
            sent = controls = 0
            while waiting and sent < PER_CONNECTION and controls < CONTROLS:
                done, alive = await self._pipeline(wire, waiting)
                sent += done
                controls += sum(case.controls for case in waiting[:done])
                waiting = waiting[done:] or list(itertools.islice(cases, PIPELINE))
                if not alive:
                    break
            wire.transport.abort()

    async def _pipeline(self, wire: Wire, cases: list[Case]) -> tuple[int, bool]:
        """Sends all, up to one that is to end the connection. Returns how many were answered, and whether it lives."""
        last = next((place for place, case in enumerate(cases) if case.close is not None), len(cases) - 1)
        trailers: list[str] = []
        for case in cases[: last + 1]:
            wire.transport.write(case.mutant)
            if case.completion:
                self._tally.completed += 1
                await asyncio.sleep(0)
                wire.transport.write(case.completion)
            trailers.append(f"trailer {self._name} {next(self._numbers)}")
            wire.say(trailers[-1])
        for place, case in enumerate(cases[: last + 1]):
            code, errors = await self._answer(wire, trailers[place], case)
            self._judge(case, code, errors)
            if code is not None:
                return place + 1, False
        return last + 1, True

    async def _answer(self, wire: Wire, trailer: str, case: Case) -> tuple[int | None, list[int]]:
        """The close code, or None if the trailer came, and the numbers of the errors before."""
        mark = f'{{"type":2,"body":"{trailer}"}}'.encode()
        errors: list[int] = []
        while True:
            while not wire.frames:
                assert not wire.ended, f"1006 after {case}"
                try:
                    await wire.wait()
                except TimeoutError:
                    raise AssertionError(f"no answer to {case}") from None
            frames, wire.frames = wire.frames, []
            for place, (first, payload) in enumerate(frames):
                if first == 0x80 | CLOSE:
                    return int.from_bytes(payload[:2], "big"), errors
                if payload == mark:
                    self._tally.trailers += 1
                    wire.frames = frames[place + 1 :] + wire.frames
                    return None, errors
                if first == 0x80 | TEXT and (found := _ERROR.fullmatch(payload.decode())):
                    errors.append(int(found[1]))
                assert first in (0x80 | TEXT, 0x80 | PONG, 0x80 | PING), (first, payload)

    def _judge(self, case: Case, code: int | None, errors: list[int]) -> None:
        assert code == case.close, f"{code} instead of {case.close}: {case}"
        assert len(errors) == len(case.texts) - case.valid, f"{errors} for {case}"
        assert NUMBERS.issuperset(errors), f"{errors} for {case}"
        self._tally.published += case.valid
        self._tally.numbers.update(errors)
        if code is not None:
            self._tally.codes[code] += 1
        what = "closed" if code is not None else "error" if errors else "published" if case.valid else "nothing"
        self._tally.answered[what] += 1


class Canaries:
    """Two who talk with each other beside it all."""

    def __init__(self, pair: list[Wire]) -> None:
        self.pair = pair
        self.count = 0
        self.streams: list[list[bytes]] = [[], []]
        """All chat that each heard, from the first canary message on."""
        self.stop = False

    async def sing(self) -> None:
        while not self.stop:
            self._next()
            await asyncio.sleep(CANARY_SECONDS)
            self._take()
        self._next()
        last = f'"canary {self.count - 1}"'.encode()
        for number, wire in enumerate(self.pair):
            while not (self.streams[number] and last in self.streams[number][-1]):
                await wire.wait()
                self._take()

    def _next(self) -> None:
        self.pair[self.count % 2].say(f"canary {self.count}")
        self.count += 1

    def _take(self) -> None:
        for number, wire in enumerate(self.pair):
            assert not wire.ended, f"canary {number} lost its connection"
            frames, wire.frames = wire.frames, []
            for first, payload in frames:
                assert first in (0x80 | TEXT, 0x80 | PING), (first, payload)
                assert not payload.startswith(b'{"type":1,"body":"error'), f"a canary heard {payload!r}"
                if payload.startswith(b'{"type":2,'):
                    self.streams[number].append(payload)

    def check(self, tally: Tally) -> None:
        one, _ = self.streams
        heard = self.check_each_other()
        trailers = [line for line in one if line.startswith(b'{"type":2,"body":"trailer ')]
        assert len(trailers) == len(set(trailers)) == tally.trailers, (len(trailers), tally.trailers)
        assert len(one) == heard + len(trailers) + tally.published, "not each valid mutant was heard once"

    def check_each_other(self) -> int:
        """They heard the same, in one order, and each other once. Returns how often."""
        one, other = self.streams
        start = other.index(b'{"type":2,"body":"canary 0"}')
        assert one[one.index(other[start]) :] == other[start:], "the canaries heard different things"
        heard = [line for line in one if line.startswith(b'{"type":2,"body":"canary ')]
        said = [f'{{"type":2,"body":"canary {number}"}}'.encode() for number in range(self.count)]
        assert sorted(heard) == sorted(said)  # the one needn't be heard before the other says something
        return len(heard)


async def run(server: Server, *, count: int = 100000, seed: int = 1) -> Figures:
    await asyncio.to_thread(server.start, HEARTBEAT_SECONDS="0")
    canaries = Canaries([await Wire.connect(server.port) for _ in range(2)])
    base = descriptors(server) - len(canaries.pair)  # the first client has had the storage opened for reading
    singing = asyncio.create_task(canaries.sing())
    tally = Tally()
    loop = asyncio.get_running_loop()
    started = loop.time()
    before = rss(server)
    made = await asyncio.to_thread(mutants, min(PORTION, count), seed)
    for portion in range(-(-count // PORTION)):
        cases = map(Case.of, made)
        left = count - (portion + 1) * PORTION
        more = asyncio.create_task(asyncio.to_thread(mutants, max(0, min(PORTION, left)), seed + portion + 1))
        workers = [Worker(server.port, f"{portion}.{number}", tally).run(cases) for number in range(WORKERS)]
        await asyncio.gather(*workers)
        made = await more
    canaries.stop = True
    await asyncio.wait_for(singing, PATIENCE_SECONDS)
    seconds = loop.time() - started
    canaries.check(tally)
    for wire in canaries.pair:
        wire.transport.abort()
    await eventually(lambda: descriptors(server) <= base)
    assert server.process
    assert server.process.poll() is None
    problems = server.problems
    assert not problems, problems[:3]
    assert not server.foreign, server.foreign[:5]
    assert sum(tally.answered.values()) == count
    return {
        "mutants": count,
        "seconds": seconds,
        "connections": tally.connections,
        **{f"answered by: {what}": number for what, number in sorted(tally.answered.items())},
        "incomplete, then completed": tally.completed,
        "errors": ", ".join(f"{number}: {times}" for number, times in sorted(tally.numbers.items())),
        "close codes": ", ".join(f"{code}: {times}" for code, times in sorted(tally.codes.items()))[:400],
        "messages published": tally.published,
        "canary messages": canaries.count,
        "MiB of growth": (rss(server) - before) / 2**20,
    }


if __name__ == "__main__":
    main(run)
