"""A client of the Centrifuge protocol, in its JSON form, that says just what it is told to."""

import asyncio
import json
from collections import deque
from typing import Any

import aiohttp
from yarl import URL

from chatserver.tokens import make_token

SECRET = "tests-know-this-secret-of-32-bytes"


class Subscriber:
    """One connection. Replies and pushes are told apart; pings are answered."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.id = ""
        self._socket = socket
        self._count = 0
        self._lines: deque[Any] = deque()
        self._pushes: deque[Any] = deque()

    @classmethod
    async def connect(
        cls, session: aiohttp.ClientSession, url: str | URL, user: str = "", **claims: Any
    ) -> "Subscriber":
        """A connection of `user`, or an anonymous one, that is let in."""
        subscriber = cls(await session.ws_connect(URL(url).with_path("/connection/websocket")))
        token = make_token(SECRET, user, seconds=60, **claims) if user else ""
        subscriber.id = (await subscriber.ask(connect={"token": token}))["connect"]["client"]
        return subscriber

    async def ask(self, **command: Any) -> Any:
        """The reply to a command."""
        self._count += 1
        await self._socket.send_json({"id": self._count, **command})
        while "push" in (reply := await self._next()):
            self._pushes.append(reply["push"])
        assert reply.pop("id") == self._count
        return reply

    async def join(self, *channels: str) -> "Subscriber":
        """Becomes a member."""
        for channel in channels:
            assert "subscribe" in await self.ask(subscribe={"channel": channel})
        return self

    async def push(self) -> Any:
        """The next one."""
        if self._pushes:
            return self._pushes.popleft()
        return (await self._next())["push"]

    async def silent(self) -> bool:
        """Nothing was told that isn't known."""
        await self.ask(unsubscribe={"channel": "nowhere"})
        return not self._pushes

    async def close(self) -> None:
        """Leaves."""
        await self._socket.close()

    async def end(self) -> tuple[int, str]:
        """Code and reason of the end of the connection, which comes next."""
        message = await asyncio.wait_for(self._socket.receive(), 10)
        assert message.type is aiohttp.WSMsgType.CLOSE, message
        return message.data, message.extra or ""

    async def _next(self) -> Any:
        while True:
            while self._lines:
                if line := self._lines.popleft():
                    return line
                await self._socket.send_str("{}")
            message = await asyncio.wait_for(self._socket.receive(), 10)
            assert message.type is aiohttp.WSMsgType.TEXT, message
            self._lines.extend(map(json.loads, message.data.split("\n")))
