"""`chatserver chat` as people see it, in a pseudo-terminal."""

import asyncio
import re
import signal
import threading
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.play import running, token
from tests.server import Server
from tests.terminal import IN_SHELL, terminal, tool


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """Of a server that lets everybody in."""
    async with running(anonymous="on", namespaces="", api_token="") as port:
        yield f"http://127.0.0.1:{port}"


async def post(url: str, room: str, body: str, user: str = "bob") -> None:
    """Says something, whatever a client may say."""
    async with aiohttp.ClientSession() as session:
        path = f"{url}/api/rooms/{room}/messages"
        async with session.post(path, json={"body": body, "user": user}) as answer:
            assert answer.status == 201, await answer.text()


def said(lines: list[str]) -> list[str]:
    """What was said, without the time."""
    return [line[6:] for line in lines if re.match(r"\d\d:\d\d ", line)]


async def test_an_evening(url: str) -> None:
    """History, a message from another, who is there, another room, what was said earlier, and good-bye."""
    for number in range(1, 26):
        await post(url, "lobby", f"old {number}")
    async with terminal("--url", url) as screen:
        await screen.until(lambda lines: said(lines) == [f"bob: old {number}" for number in range(6, 26)])
        await screen.shows("lobby | connected | /help")
        await tool("--url", url, "--name", "bob", given=b"hello\n")
        await screen.shows("bob: hello")
        screen.type("hi all")
        await screen.shows("ann: hi all")
        screen.type("/who")
        await screen.shows("- 1 here: ann")
        screen.type("/history 3")
        await screen.until(lambda lines: said(lines)[-3:] == ["bob: old 3", "bob: old 4", "bob: old 5"])
        screen.type("/history")
        await screen.until(lambda lines: said(lines)[-2:] == ["bob: old 1", "bob: old 2"])
        screen.type("/history")
        await screen.shows("- there are no earlier messages")
        screen.type("/join kitchen")
        await screen.shows("kitchen>")
        screen.type("//slash")
        await screen.shows("ann: /slash")
        screen.type("/help", "/nothing", "/join")
        await screen.shows("/join ROOM")
        await screen.shows("- there is no such order")
        await screen.shows("- /join is used in another way")
        screen.type("/quit")
        assert await screen.ends() == 0
    kitchen = await tool("kitchen", "--url", url, "--json", "--history", "9")
    assert [line for line in kitchen.out if "/slash" in line]


async def test_who_comes_and_goes_is_told_in_one_line(url: str) -> None:
    async with terminal("--url", url) as screen:
        await screen.shows("| connected |")
        async with terminal("--url", url, "--name", "bob") as bob, terminal("--url", url, "--name", "eve") as eve:
            await screen.until(lambda lines: [line for line in lines if line.startswith("- ")])
            await bob.shows("| connected |")
            await eve.shows("| connected |")
            screen.type("/who")
            await screen.shows("- 3 here: ann, bob and eve")
            eve.press("\x04")
            assert await eve.ends() == 0
        await screen.until(lambda lines: any("left" in line for line in lines))


async def test_a_server_that_is_killed_and_comes_back(server: Server) -> None:
    """What was said meanwhile is told, with what was typed, in one order, and nothing twice."""
    server.start()
    url = f"http://127.0.0.1:{server.port}"
    async with terminal("--url", url) as screen:
        await screen.shows("| connected |")
        screen.type("one")
        await screen.shows("ann: one")
        server.stop(signal.SIGKILL)
        await screen.shows("not connected, trying: connection refused")
        screen.type("two", "three", "/quit")
        await screen.shows("... two")
        await screen.shows("- not sent yet: 2; leave all the same by /quit again")
        server.start()
        await screen.until(lambda lines: said(lines) == ["ann: one", "ann: two", "ann: three"])
        assert not any("..." in line for line in screen.lines)
        screen.type("/quit")
        assert await screen.ends() == 0
    done = await tool("--url", url, "--json", "--history", "9")
    assert len([line for line in done.out if '"message"' in line]) == 3


async def test_to_leave_with_something_unsent_is_a_failure(server: Server) -> None:
    async with terminal("--url", f"http://127.0.0.1:{server.port}") as screen:
        screen.type("never")
        await screen.shows("... never")
        screen.press("\x04")
        await screen.shows("- not sent yet: 1")
        screen.press("\x04")
        assert await screen.ends() == 1


async def test_what_is_typed_meanwhile_is_not_lost(server: Server) -> None:
    """The terminal never goes back to whole lines, neither between two orders nor while something is printed: a
    Ctrl-D would be lost then."""
    async with terminal("--url", f"http://127.0.0.1:{server.port}") as screen:
        await screen.shows("/help")
        enough = threading.Event()
        watching = asyncio.create_task(asyncio.to_thread(screen.takes_whole_lines, enough))
        try:
            for number in range(30):
                screen.type(f"line {number}", f"/history {number}0000")
                await screen.shows(f"... and {number - 2} more" if number > 2 else f"... line {number}")
            await screen.until(lambda lines: sum("used in another way" in line for line in lines) == 30)
        finally:
            enough.set()
        assert not await watching


async def test_control_z_leaves_the_shell_a_terminal_that_takes_whole_lines(url: str) -> None:
    async with terminal("--url", url, command=IN_SHELL) as screen:
        await screen.shows("| connected |")
        screen.press("half a \x1a")
        await screen.shows(" icanon ")
        await screen.shows("lobby> half a")
        screen.type("line")
        await screen.shows("ann: half a line")
        screen.press("\x04")
        assert await screen.ends() == 0


EVIL = "a\x1b[2Jb\x1b]0;owned\x07c\x9b31md\x08\x08e\rf\x7fg\u202eh\ne"
"""Orders to a terminal, and a text that runs from right to left."""


async def test_nothing_that_is_said_or_that_somebody_is_called_drives_the_terminal(url: str) -> None:
    async with terminal("--url", url) as screen:
        await screen.shows("| connected |")
        evil = EVIL.replace("\n", " ")
        stranger = token("", info={"name": evil})
        await tool("--url", url, given=f"{evil}\n".encode(), env={"CHAT_TOKEN": stranger})
        shown = "a\u241b[2Jb\u241b]0;owned\u2407c\ufffd31md\u2408\u2408e\u240df\u2421g\ufffdh e"
        await screen.shows(f"{shown}: {shown}")
        await screen.shows(f"- {shown} left")
        for order in ("\x1b[2Jb", "owned\x07", "\x9b", "\x08\x08e", "\u202e"):
            assert order.encode() not in screen.raw


async def test_the_lines_of_a_message_stand_below_each_other(url: str) -> None:
    async with terminal("--url", url) as screen:
        await screen.shows("| connected |")
        await post(url, "lobby", "one\ntwo\n\tthree")
        await screen.until(lambda lines: "      two" in lines and "          three" in lines)


async def test_control_c_drops_what_is_typed_then_leaves(url: str) -> None:
    async with terminal("--url", url) as screen:
        await screen.shows("| connected |")
        screen.press("half a li")
        await screen.shows("lobby> half a li")
        screen.press("\x03")
        await screen.until(lambda lines: not any("half a li" in line for line in lines))
        screen.press("\x03")
        assert await screen.ends() == 130


@pytest.mark.parametrize(("more", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
async def test_colours_are_left_out_for_who_wants_none(url: str, more: dict[str, str], coloured: bool) -> None:
    async with terminal("--url", url, env=more) as screen:
        await screen.shows("| connected |")
        screen.type("hi")
        await screen.shows("ann: hi")
        assert bool(re.search(rb"\x1b\[[0-9;]*(3[0-7]|9[0-7])[;m]", screen.raw)) is coloured


async def test_who_is_not_let_in_is_told_why(url: str) -> None:
    async with terminal("--url", url, env={"CHAT_TOKEN": "nonsense"}) as screen:
        await screen.shows("not connected: invalid token (3500)")
        assert await screen.ends() == 3
