"""Clients of the Centrifuge protocol that write down all they see."""

import asyncio
import itertools
import json
import time
from typing import Any, Final

from chatserver.tokens import make_token
from tests.chaos.client import ANSWER_SECONDS, NOT_STORED, UNKNOWN, Client, top
from tests.chaos.history import Connection, Send
from tests.raw import TEXT, Frame, RawClient

SECRET: Final = "the-secret-of-a-chaotic-server-32"

PATH: Final = "/connection/websocket"
CONNECT, SUBSCRIBE = 1, 2


class Subscriber(Client):
    """A `Client` that speaks the Centrifuge protocol in JSON, and recovers as its SDKs do.

    Says something by `publish`, and never twice; or by the procedure `send` with a key, until it is answered.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._ids = itertools.count(SUBSCRIBE + 1)
        self._asked: dict[int, Send | asyncio.Future[dict[str, Any]]] = {}

    async def _connect(self, connection: Connection) -> None:
        raw = RawClient(*await asyncio.open_connection("127.0.0.1", self._port))
        self._asked.clear()
        try:
            await raw.upgrade(PATH)
            if self._is_in(raw.status):
                wanted = {"channel": self.room, "recover": True, "offset": connection.after, "epoch": self._epoch}
                hello = {"id": CONNECT, "connect": {"token": make_token(SECRET, self.name, seconds=3600)}}
                raw.say(f"{json.dumps(hello)}\n{json.dumps({'id': SUBSCRIBE, 'subscribe': wanted})}")
                await self._converse(raw, connection)
        finally:
            RawClient.opened.remove(raw)
            raw.abort()
            for asked in self._asked.values():
                if isinstance(asked, asyncio.Future) and not asked.done():
                    asked.set_exception(ConnectionResetError())
                    asked.exception()

    async def _ask(self) -> Connection:
        if self._position is None:
            self._epoch, self._position = await top(self._http, self.room)
        return Connection(self.name, self.room, time.monotonic(), self._position)

    def _take(self, raw: RawClient, connection: Connection, frame: Frame) -> None:
        for line in frame.text.split("\n"):
            told = json.loads(line)
            if not told:
                raw.say("{}")
            elif "push" in told:
                self._hear(connection, told["push"]["pub"])
            elif told["id"] == SUBSCRIBE:
                self._enter(raw, connection, told)
            elif told["id"] != CONNECT:
                self._answered_by(self._asked.pop(told["id"]), told)

    def _enter(self, raw: RawClient, connection: Connection, told: dict[str, Any]) -> None:
        if "error" in told:  # the storage is down
            if told["error"] != {"code": 100, "message": "internal error", "temporary": True}:
                self._record.problems.append(f"{self.name} can't subscribe: {told}")
            raw.abort()
            return
        if not told["subscribe"].get("recovered"):
            self._record.problems.append(f"{self.name} isn't told what it missed after {connection.after}: {told}")
        connection.joined = time.monotonic()
        for publication in told["subscribe"].get("publications", []):
            self._hear(connection, publication)

    def _hear(self, connection: Connection, publication: dict[str, Any]) -> None:
        self._receive(connection, publication["data"]["body"])
        if publication["offset"] != self.position:
            self._record.problems.append(f"{self.name} is told the offset {publication['offset']}, not {self.position}")

    def _answered_by(self, asked: "Send | asyncio.Future[dict[str, Any]]", told: dict[str, Any]) -> None:
        if isinstance(asked, asyncio.Future):
            if not asked.done():
                asked.set_result(told)
        elif "error" in told:
            code = told["error"]["code"]
            if code in NOT_STORED:
                self._record.history.refused.append(asked.id)
            elif code != UNKNOWN:
                self._record.problems.append(f"{told} for {asked}")
            self._answer(asked.id)
        else:
            if asked.id in self._unacknowledged:  # its own copy may have come before
                self._unacknowledged.remove(asked.id)
                self._record.ack(asked.id, None, copy=False)
            self._answer(asked.id)

    def _transmit(self, raw: RawClient, send: Send) -> None:
        number = next(self._ids)
        self._asked[number] = send
        command = {"id": number, "publish": {"channel": self.room, "data": {"body": send.body}}}
        raw.send(TEXT, json.dumps(command).encode())

    async def _post(self, send: Send) -> bool:
        raw = self._raw
        if raw is None or self.live is None or self.live.joined is None:
            return False
        number, answer = next(self._ids), asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        said = {"room": self.room, "body": send.body, "key": send.key}
        raw.send(TEXT, json.dumps({"id": number, "rpc": {"method": "send", "data": said}}).encode())
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                told = await answer
        except ConnectionError:
            return False
        except TimeoutError:
            self._record.problems.append(f"no answer for {send}")
            return False
        if "error" not in told:
            self._record.ack(send.id, told["rpc"]["data"]["offset"], copy=False)
            return True
        if told["error"]["code"] not in (*NOT_STORED, UNKNOWN):
            self._record.problems.append(f"{told} for {send}")
        return False
