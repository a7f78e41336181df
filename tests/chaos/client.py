"""Clients that write down all they see: see `Client`."""

import asyncio
import contextlib
import time
from random import Random
from typing import Any, Final

import aiohttp
import msgspec

from tests.chaos.history import Ack, Connection, History, Send
from tests.raw import CLOSE, PING, PONG, TEXT, Frame, RawClient

SENDING_SECONDS: Final = 0.03
"""Between two messages of one client, on average."""

ANSWER_SECONDS: Final = 15
"""Everything is answered by then: 5 s are promised, and the machine may be busy."""

PAGE: Final = 200
"""The most messages that one request gives."""

_FILLERS: Final = (
    "", " ", "hi", "grüß dich", "\N{PILE OF POO}" * 3, 'quo"te', "back\\slash", "<b>&amp;", "line\nbreak", "\x01\x7f",
    "\N{RIGHT-TO-LEFT OVERRIDE}abc", "{}", "null", "a sentence such as people write, of some length", "long " * 400,
)  # fmt: skip
_LOST: Final = (OSError, EOFError, TimeoutError, aiohttp.ClientError)
"""What a client sees of a server that is killed, or of a connection that is cut. Incomplete reads are `EOFError`."""

NOT_STORED: Final = (420, 421)
UNKNOWN: Final = 422


class _Said(msgspec.Struct):
    type: int
    body: str


_said = msgspec.json.Decoder(_Said).decode
_text = msgspec.json.Encoder().encode


class Record:
    """What all clients saw so far."""

    def __init__(self) -> None:
        self.history = History()
        self.problems: list[str] = []
        """What must not be, beside what the history shows."""
        self.resumes = 0
        self.quiet = asyncio.Event()
        """From now on nobody sends."""
        self._sends: dict[str, Send] = {}

    def send(self, client: "Client", stream: int, sequence: int, filler: str, *, keyed: bool) -> Send:
        """A new message."""
        identity = f"{client.name}-{sequence}"
        key = identity if keyed else None
        body = f"{identity} {filler}"
        send = Send(identity, client.name, client.room, body, stream, sequence, time.monotonic(), key)
        self.history.sends.append(send)
        self._sends[identity] = send
        return send

    def ack(self, identity: str, offset: int | None, *, copy: bool) -> None:
        """The server has it."""
        self.history.acks.append(Ack(identity, offset, time.monotonic(), copy))

    def receive(self, connection: Connection, body: str) -> str:
        """`connection` was told `body`. Returns its id."""
        identity = body.partition(" ")[0]
        send = self._sends.get(identity)
        # All receipts share one text with what was sent: there are millions of them.
        connection.bodies.append(send.body if send and send.body == body else body)
        return identity


class Client:
    """One user in one room, who comes back whenever the connection ends, mostly from where it was.

    Says something now and then, over the connection, and never twice, so it is stored once or not at all; or over
    HTTP with an idempotency key, until it is answered, so it is stored once.
    """

    def __init__(
        self,
        name: str,
        room: str,
        port: int,
        record: Record,
        http: aiohttp.ClientSession,
        random: Random,
        *,
        keyed: bool,
    ) -> None:
        self.name = name
        self.room = room
        self.live: Connection | None = None
        """The connection of now."""
        self._port = port
        self._record = record
        self._http = http
        self._random = random
        self._keyed = keyed
        self._epoch = ""
        self._position: int | None = None
        self._raw: RawClient | None = None
        self._stream = 0
        self._sequence = 0
        self._window = 1
        self._unanswered: dict[str, None] = {}
        """On this connection."""
        self._unacknowledged: set[str] = set()
        self._answered = asyncio.Event()

    @property
    def position(self) -> int | None:
        """The offset up to which it was told everything; None if it doesn't know."""
        if self.live is None:
            return self._position
        return None if self.live.after is None else self.live.after + len(self.live.bodies)

    async def listen(self) -> None:
        """Is connected, until it is cancelled."""
        while True:
            with contextlib.suppress(*_LOST):
                await self._connect(await self._ask())
            await asyncio.sleep(self._random.uniform(0, 0.1))

    async def visit(self, *, after: int | None = None, last: int = 0) -> None:
        """Is connected once, until it is cancelled."""
        self._epoch = (await top(self._http, self.room))[0]
        await self._connect(Connection(self.name, self.room, time.monotonic(), after, last))

    async def speak(self) -> None:
        """Says something now and then, until all are to be quiet. Returns when nothing needs to be tried again."""
        while not self._record.quiet.is_set():
            count = 1 if self._keyed else self._random.randint(1, self._window)
            await asyncio.sleep(self._random.expovariate(1 / SENDING_SECONDS) * count)
            for _ in range(count):
                if self._keyed:
                    await self._post_until_answered()
                elif self._raw:
                    await self._say(self._raw)

    def cut(self) -> bool:
        """Ends the connection, mostly without a word. False: there is none."""
        raw, self._raw = self._raw, None
        if raw is None:
            return False
        self._answered.set()
        if self._random.random() < 0.2:
            raw.send(CLOSE, (1000).to_bytes(2, "big"))
        else:
            raw.abort()
        return True

    # --- the connection ----------------------------------------------------------------------------------------------

    async def _connect(self, connection: Connection) -> None:
        path = f"/ws?room={self.room}&name={self.name}&"
        path += f"history={connection.last}" if connection.after is None else f"after={self._epoch}:{connection.after}"
        raw = RawClient(*await asyncio.open_connection("127.0.0.1", self._port))
        try:
            await raw.upgrade(path)
            if self._is_in(raw.status):
                await self._converse(raw, connection)
        finally:
            RawClient.opened.remove(raw)
            raw.abort()

    async def _ask(self) -> Connection:
        """From where on it wants to be told."""
        connection = Connection(self.name, self.room, time.monotonic())
        if self._random.random() < 0.1:
            connection.last = self._random.choice([0, 0, 1, 10, 300])
            return connection
        if self._position is None:
            self._epoch, self._position = await top(self._http, self.room)
        connection.after = self._position
        return connection

    def _is_in(self, status: int) -> bool:
        if status not in (101, 503):  # the storage may be down, and the server about to stop
            self._record.problems.append(f"{self.name} isn't let in: {status}, after {self._position}")
        return status == 101

    async def _converse(self, raw: RawClient, connection: Connection) -> None:
        self._record.resumes += bool(self._stream and connection.after is not None)
        self._record.history.connections.append(connection)
        self.live, self._raw = connection, raw
        self._stream += 1
        self._window = self._random.choice([1, 1, 4, 16])
        self._unanswered.clear()
        self._answered.set()
        try:
            while (frame := await raw.receive(60)) and frame.opcode != CLOSE:
                self._take(raw, connection, frame)
            if frame:
                raw.send(CLOSE, frame.payload[:2])
        finally:
            self._position = self.position
            self.live = self._raw = None
            self._answered.set()

    def _take(self, raw: RawClient, connection: Connection, frame: Frame) -> None:
        if frame.opcode == PING:
            raw.send(PONG, frame.payload)
            return
        said = _said(frame.text)
        if said.type == 2:
            self._receive(connection, said.body)
        elif said.body.startswith("error: "):
            self._refuse(said.body)
        elif connection.joined is None:  # only members are told who comes and goes
            connection.joined = time.monotonic()

    def _receive(self, connection: Connection, body: str) -> None:
        identity = self._record.receive(connection, body)
        if identity in self._unacknowledged:
            self._unacknowledged.remove(identity)
            self._record.ack(identity, self.position, copy=True)
            self._answer(identity)

    def _refuse(self, error: str) -> None:
        """Which message it is about isn't said: with one at a time it is clear."""
        code = int(error.rpartition("(")[2].rstrip(")"))
        if code not in (*NOT_STORED, UNKNOWN):
            self._record.problems.append(f"{self.name}: {error}")
        if self._unanswered:
            identity = next(iter(self._unanswered))
            if self._window == 1 and code in NOT_STORED:
                self._record.history.refused.append(identity)
            self._answer(identity)

    def _answer(self, identity: str) -> None:
        self._unanswered.pop(identity, None)
        self._answered.set()

    # --- messages ----------------------------------------------------------------------------------------------------

    def _new(self) -> Send:
        self._sequence += 1
        filler = self._random.choice(_FILLERS)
        send = self._record.send(self, self._stream, self._sequence, filler, keyed=self._keyed)
        self._unacknowledged.add(send.id)
        return send

    async def _say(self, raw: RawClient) -> None:
        while self._raw is raw and len(self._unanswered) >= self._window:
            await self._wait_for_answer(raw)
        if self._raw is raw:
            send = self._new()
            self._unanswered[send.id] = None
            self._transmit(raw, send)

    def _transmit(self, raw: RawClient, send: Send) -> None:
        raw.send(TEXT, _text(_Said(2, send.body)))

    async def _wait_for_answer(self, raw: RawClient) -> None:
        self._answered.clear()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._answered.wait()
        except TimeoutError:
            self._record.problems.append(f"no answer for {next(iter(self._unanswered))}")
            raw.abort()

    async def _post_until_answered(self) -> None:
        send = self._new()
        while not await self._post(send):
            await asyncio.sleep(self._random.uniform(0, 0.2))
        if self._random.random() < 0.05:
            await self._post(send)

    async def _post(self, send: Send) -> bool:
        """False: the answer is lost, or says that it isn't known to be stored."""
        impatient = self._random.random() < 0.05
        timeout = aiohttp.ClientTimeout(self._random.uniform(0.001, 0.01) if impatient else ANSWER_SECONDS)
        headers = {"Idempotency-Key": str(send.key)}
        message = {"user": send.client, "body": send.body}
        try:
            async with self._http.post(_path(send.room), json=message, headers=headers, timeout=timeout) as response:
                return self._is_taken(send, response.status, await response.read())
        except _LOST as error:
            if isinstance(error, TimeoutError) and not impatient:
                self._record.problems.append(f"no answer for {send}")
            return False

    def _is_taken(self, send: Send, status: int, answer: bytes) -> bool:
        if status in (200, 201):
            self._record.ack(send.id, msgspec.json.decode(answer)["offset"], copy=False)
            return True
        if status != 503:
            self._record.problems.append(f"{status} for {send}: {answer!r}")
        return False


async def top(http: aiohttp.ClientSession, room: str) -> tuple[str, int]:
    """The epoch, and the last offset of the room."""
    page = await _read(http, room, limit=1)
    return page["epoch"], max((message["offset"] for message in page["messages"]), default=0)


async def messages(http: aiohttp.ClientSession, room: str) -> list[dict[str, Any]]:
    """The whole history of the room."""
    found: list[dict[str, Any]] = []
    while page := (await _read(http, room, after=found[-1]["offset"] if found else 0, limit=PAGE))["messages"]:
        found += page
    return found


async def _read(http: aiohttp.ClientSession, room: str, **query: int) -> dict[str, Any]:
    timeout = aiohttp.ClientTimeout(ANSWER_SECONDS)
    async with http.get(_path(room), params=query, timeout=timeout, raise_for_status=True) as response:
        page: dict[str, Any] = await response.json()
        return page


def _path(room: str) -> str:
    return f"/api/rooms/{room}/messages"
