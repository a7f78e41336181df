"""A room as it is read: whatever comes in, each message once, in order, and no gap without a word."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from chatserver.terminal.events import Event, Member, Missed, Moved, Problem, Said
from chatserver.terminal.link import Entered, Heard, Later, Link, Out, Refused
from chatserver.terminal.visit import Visit

ROOM = "r"


class Server:
    """Stands in for the connection: a room's log, of which the oldest messages may be gone."""

    client_id = "own"

    def __init__(self, *, top: int = 0, epoch: str = "e", kept_from: int = 1, page: int = 300) -> None:
        self.top = top
        self.epoch = epoch
        self.kept_from = kept_from
        self.page = page
        self.failures: list[Exception] = []
        self.asked = 0
        self.hear: Callable[[Heard], None]

    async def enter(self, room: str, hear: Callable[[Heard], None]) -> None:
        self.hear = hear

    async def call(self, method: str, wanted: dict[str, Any]) -> Any:
        self.asked += 1
        if self.failures:
            raise self.failures.pop(0)
        if wanted["epoch"] != self.epoch:
            raise Refused(112, "unrecoverable position")
        limit = min(wanted["limit"], self.page)
        if "after" in wanted:
            start = max(wanted["after"] + 1, self.kept_from)
            offsets = range(start, min(self.top, start + limit - 1) + 1)
        else:
            offsets = range(max(self.kept_from, wanted["before"] - limit), min(self.top + 1, wanted["before"]))
        messages = [
            {"offset": offset, "time": offset, "user": "bob", "info": None, "data": {"body": str(offset)}}
            for offset in offsets
        ]
        return {"epoch": self.epoch, "messages": messages}

    def place(self) -> Entered:
        """What is told when the room is entered now."""
        return Entered(self.epoch, self.top, positioned=True)

    def says(self, offset: int) -> None:
        """Live."""
        self.top = max(self.top, offset)
        self.hear(Said(ROOM, self.epoch, offset, 0, "bob", str(offset)))


@asynccontextmanager
async def visit(server: Server, history: int = 0) -> AsyncIterator[tuple[Visit, list[Event]]]:
    """A visit that has begun, and what it tells."""
    told: list[Event] = []
    made = Visit(cast("Link", server), ROOM, told.append, history)
    task = asyncio.create_task(made.run())
    await asyncio.sleep(0)
    yield made, told
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def offsets(told: list[Event]) -> list[int | tuple[int, int]]:
    """Of the messages; a pair for those that are said to be missing."""
    return [
        event.offset if isinstance(event, Said) else (event.first, event.last)
        for event in told
        if isinstance(event, Said | Missed)
    ]


async def test_the_history_comes_before_what_is_heard_meanwhile() -> None:
    server = Server(top=9)
    async with visit(server, history=3) as (room, told):
        server.hear(server.place())
        server.says(10)
        await room.reached(10)
    assert offsets(told) == [7, 8, 9, 10]


async def test_no_history_is_asked_for_where_none_is_wanted() -> None:
    server = Server(top=9)
    async with visit(server) as (room, told):
        server.hear(server.place())
        server.says(10)
        await room.reached(10)
    assert offsets(told) == [10]
    assert not server.asked


async def test_what_was_missed_is_read_from_the_history_page_by_page() -> None:
    """With the times at which it was said; what the SDK recovers of it isn't told again."""
    server = Server(top=2, page=2)
    async with visit(server) as (room, told):
        server.hear(server.place())
        server.top = 7
        server.hear(Entered("e", 2, positioned=True))
        for offset in range(3, 9):
            server.says(offset)
        await room.reached(8)
    assert offsets(told) == [3, 4, 5, 6, 7, 8]
    assert [event.time for event in told if isinstance(event, Said)] == [3, 4, 5, 6, 7, 8]


async def test_a_gap_is_filled_before_what_comes_after_it() -> None:
    server = Server(top=1)
    async with visit(server) as (room, told):
        server.hear(server.place())
        for offset in (2, 5, 4, 5, 6):
            server.says(offset)
        await room.reached(6)
    assert offsets(told) == [2, 3, 4, 5, 6]


async def test_what_is_not_kept_any_more_is_said_to_be_missing() -> None:
    server = Server(top=2)
    async with visit(server) as (room, told):
        server.hear(server.place())
        server.top, server.kept_from = 9, 6
        server.hear(server.place())
        server.says(10)
        await room.reached(10)
    assert offsets(told) == [(3, 5), 6, 7, 8, 9, 10]


async def test_another_log_is_told_and_shown_anew() -> None:
    server = Server(top=5)
    async with visit(server, history=1) as (room, told):
        server.hear(server.place())
        await room.reached(5)
        server.epoch, server.top = "other", 3
        server.hear(server.place())
        server.says(4)
        server.hear(Out(2000, "end"))
        await room.out.wait()
        assert offsets(told) == [5, (0, 0), 1, 2, 3, 4]


async def test_the_history_is_asked_for_until_it_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatserver.terminal.visit._PAUSE", 0)
    server = Server(top=3)
    server.failures = [Later("no answer")] * 3
    async with visit(server, history=2) as (room, told):
        server.hear(server.place())
        await room.entered.wait()
    assert offsets(told) == [2, 3]


async def test_a_history_that_is_refused_is_told() -> None:
    server = Server(top=3)
    server.failures = [Refused(108, "not available")]
    async with visit(server, history=2) as (room, told):
        server.hear(server.place())
        server.says(4)
        await room.reached(4)
    assert told[0] == Problem(108, "history: not available", ROOM)
    assert offsets(told) == [4]


async def test_a_room_without_positions() -> None:
    """What was missed isn't known, which is said."""
    server = Server()
    async with visit(server, history=2) as (room, told):
        server.hear(Entered("", 0, positioned=False))
        server.says(0)
        await room.entered.wait()
        await room.reached(7)
        server.hear(Entered("", 0, positioned=False))
        server.says(0)
        server.hear(Out(2000, "end"))
        await room.out.wait()
    assert offsets(told) == [0, (0, 0), 0]
    assert told[-1] == Problem(2000, "end", ROOM)


async def test_others_come_and_go_and_we_do_not() -> None:
    server = Server()
    bob, own = (Moved(ROOM, 0, Member(client, client), came=True) for client in ("bob", "own"))
    async with visit(server) as (room, told):
        server.hear(server.place())
        server.hear(own)
        server.hear(bob)
        server.says(1)
        await room.reached(1)
    assert told[0] == bob
    assert len(told) == 2


async def test_earlier_messages_page_by_page() -> None:
    server = Server(top=9, kept_from=3)
    async with visit(server, history=2) as (room, _):
        assert await room.earlier(5) == []
        server.hear(server.place())
        await room.entered.wait()
        pages = [[message.offset for message in await room.earlier(3)] for _ in range(3)]
    assert pages == [[5, 6, 7], [3, 4], []]
