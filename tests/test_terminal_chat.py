"""The chat's model, against a server."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import AsyncMock

import pytest

from chatserver.errors import StorageUnavailable
from chatserver.store.memory import Memory
from chatserver.terminal.chat import Chat, Wanted
from chatserver.terminal.events import Event, Missed, Problem, Said, State
from chatserver.terminal.link import Later, Link, Refused
from tests.play import running, token
from tests.server import Server
from tests.terminal import PATIENCE


class Ear:
    """What a chat has told."""

    def __init__(self) -> None:
        self.told: list[Event] = []
        self._news = asyncio.Event()

    def __call__(self, event: Event) -> None:
        self.told.append(event)
        self._news.set()

    async def until(self, true: Callable[["Ear"], object]) -> None:
        """Waits until that is true."""
        async with asyncio.timeout(PATIENCE):
            while not true(self):
                self._news.clear()
                await self._news.wait()

    @property
    def bodies(self) -> list[str | None]:
        """Of the messages."""
        return [event.body for event in self.told if isinstance(event, Said)]

    def all(self, kind: type[Event]) -> list[Any]:
        """The events of that kind."""
        return [event for event in self.told if isinstance(event, kind)]


@asynccontextmanager
async def chatting(port: int, room: str = "lobby", name: str = "ann", **more: Any) -> AsyncIterator[tuple[Chat, Ear]]:
    """A chat that has entered its room."""
    ear = Ear()
    async with Chat(Wanted(f"ws://127.0.0.1:{port}/connection/websocket", room, name, **more), ear) as chat:
        await chat.visit.entered.wait()
        yield chat, ear


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """Of a server that lets everybody in."""
    async with running(anonymous="on", namespaces="", api_token="") as port:
        yield port


async def test_two_who_chat(port: int) -> None:
    async with chatting(port) as (ann, ears), chatting(port, name="bob") as (bob, others):
        await ann.say("one")
        await ears.until(lambda ear: ear.bodies == ["one"])
        await bob.say("two")
        await ears.until(lambda ear: ear.bodies == ["one", "two"])
        await others.until(lambda ear: ear.bodies == ["one", "two"])
        assert [event.name for event in ears.all(Said)] == ["ann", "bob"]
        assert sorted(member.name for member in await ann.members()) == ["ann", "bob"]
    async with chatting(port, history=1) as (_, ears):
        assert [(event.name, event.body, event.offset) for event in ears.all(Said)] == [("bob", "two", 2)]


async def test_what_is_lost_on_the_way_back_is_sent_again_and_stored_once(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, lost = Link.call, iter([True, True, False])

    async def losing(link: Link, method: str, data: dict[str, object]) -> Any:
        found = await call(link, method, data)
        if method == "send" and next(lost, False):
            raise Later("no answer")
        return found

    monkeypatch.setattr(Link, "call", losing)
    async with chatting(port) as (chat, ear):
        await chat.say("one")
        await chat.say("two")
        await chat.outbox.emptied()
        assert chat.outbox.last == 2
        await ear.until(lambda ear: ear.bodies == ["one", "two"])


async def test_what_was_said_while_the_server_was_away(server: Server) -> None:
    """By us and by others, with the times at which it was said."""
    server.start()
    async with chatting(server.port) as (ann, ear):
        await ann.say("one")
        await ear.until(lambda ear: ear.bodies == ["one"])
        server.stop(signal.SIGKILL)
        await ear.until(lambda ear: State("connecting", "connection refused") in ear.told)
        await ann.say("two")
        server.start()
        async with chatting(server.port, name="bob") as (bob, _):
            await bob.say("three")
            await ear.until(lambda ear: sorted(map(str, ear.bodies)) == ["one", "three", "two"])
        assert [event.offset for event in ear.all(Said)] == [1, 2, 3]
        assert not ear.all(Missed)


async def test_a_server_that_has_forgotten_everything(server: Server) -> None:
    server.start(STORE_URL="memory://")
    async with chatting(server.port) as (chat, ear):
        await chat.say("old")
        await ear.until(lambda ear: ear.bodies == ["old"])
        server.stop(signal.SIGKILL)
        server.start(STORE_URL="memory://")
        await ear.until(lambda ear: ear.all(Missed))
        await chat.say("new")
        await ear.until(lambda ear: ear.bodies == ["old", "new"])
        assert [event.reason for event in ear.all(Missed)] == ["the room's history was begun anew"]


async def test_order_is_kept_when_the_server_asks_to_wait() -> None:
    async with running(anonymous="on", namespaces="", rate_limit=30.0) as port, chatting(port) as (chat, ear):
        for number in range(50):
            await chat.say(str(number))
        await ear.until(lambda ear: ear.bodies == [str(number) for number in range(50)])
        assert not ear.all(Problem)


async def test_a_refused_message_holds_up_none(port: int) -> None:
    """Also one that is too big for the connection, which the server ends for it."""
    async with chatting(port) as (chat, ear):
        for body in ("one", "\0", "x" * 70_000, "two"):
            await chat.say(body)
        await ear.until(lambda ear: ear.bodies == ["one", "two"])
        assert [problem.code for problem in ear.all(Problem)] == [415, 1009]
        assert chat.outbox.refused == 2


async def test_another_room_gets_what_is_said_from_then_on(port: int) -> None:
    async with chatting(port) as (chat, ear):
        await chat.say("here")
        await chat.join("kitchen")
        await chat.say("there")
        await ear.until(lambda ear: len(ear.bodies) == 2)
        assert [(event.room, event.body) for event in ear.all(Said)] == [("lobby", "here"), ("kitchen", "there")]
        await chat.join("lobby")
        await chat.visit.entered.wait()
        assert [message.body for message in await chat.earlier(5)] == ["here"]
        assert [member.name for member in await chat.members()] == ["ann"]


async def test_a_room_that_refuses_us(port: int) -> None:
    async with chatting(port, room="$vault") as (chat, ear):
        assert [problem.code for problem in ear.all(Problem)] == [103]
        await chat.say("one")
        await chat.outbox.emptied()
        assert [problem.body for problem in ear.all(Problem)] == [None, "one"]
        with pytest.raises((Later, Refused)):
            await chat.members()
        await chat.join("lobby")
        await chat.say("two")
        await ear.until(lambda ear: ear.bodies == ["two"])


async def test_a_question_that_came_too_early_is_asked_again(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK asks on a new connection before it is in the room again: that it isn't allowed is no last word."""
    async with chatting(port) as (chat, ear):
        link = chat._link
        rpc = link._client.rpc

        async def early(method: str, data: Any) -> Any:
            monkeypatch.undo()
            await link._subscription.unsubscribe()
            link._out = None
            try:
                return await rpc(method, data)
            finally:
                await link._subscription.subscribe()

        monkeypatch.setattr(link._client, "rpc", early)
        await chat.say("one")
        await ear.until(lambda ear: ear.bodies == ["one"])
        assert chat.outbox.refused == 0


async def test_a_newer_token_is_asked_for_when_one_has_run_out(port: int) -> None:
    tokens = iter([token("ann", exp=1), token("ann", exp=int(time.time()) + 3600)])

    async def get_token() -> str:
        return next(tokens)

    async with chatting(port, get_token=get_token) as (chat, ear):
        await chat.say("one")
        await ear.until(lambda ear: ear.bodies == ["one"])
        assert ear.all(Said)[0].name == "ann"


async def test_who_says_more_than_the_server_takes_waits() -> None:
    """Else a fast program would fill the memory while the server is away."""
    ear = Ear()
    async with Chat(Wanted("ws://127.0.0.1:1/", "lobby", "ann"), ear) as chat:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                for number in range(1000):
                    await chat.say(str(number))
        assert len(chat.outbox.drafts) == 64


async def test_a_room_that_cannot_be_entered_for_now(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again, and until then we aren't called connected."""
    failing = AsyncMock(side_effect=StorageUnavailable)
    monkeypatch.setattr(Memory, "top", failing)
    ear = Ear()
    async with Chat(Wanted(f"ws://127.0.0.1:{port}/connection/websocket", "lobby", "ann"), ear) as chat:
        await ear.until(lambda ear: ear.told and ear.told[-1] == State("connecting", "internal error (100)"))
        monkeypatch.undo()
        await chat.visit.entered.wait()
        assert ear.told[-1] == State("connected")
