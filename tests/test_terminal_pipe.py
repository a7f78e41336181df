"""`chatserver chat` as a tool: lines in, JSON out, exit statuses."""

import asyncio
import json
import os
import pty
import signal
import subprocess
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.play import running, token
from tests.server import Server
from tests.terminal import COMMAND, PATIENCE, Done, environment, running_tool, terminal, tool

LIMITED = 20.0


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """Of a server that lets everybody in."""
    async with running(anonymous="on", namespaces="", api_token="") as port:
        yield f"http://127.0.0.1:{port}"


def events(done: Done, *kinds: str) -> list[dict[str, Any]]:
    """Those of `kinds` among what was printed, all of which has to be JSON."""
    return [event for event in map(json.loads, done.out) if event["event"] in kinds]


async def bodies(url: str, room: str = "lobby") -> list[str]:
    """The room's history."""
    done = await tool(room, "--url", url, "--json", "--history", "300")
    assert done.status == 0
    return [event["body"] for event in events(done, "message")]


async def test_each_line_is_sent_and_acknowledged(url: str) -> None:
    done = await tool("ops", "--url", url, given="one\r\n\nzwei \u00e4\nlast".encode())
    assert done == Done(0, [], [])
    assert await bodies(url, "ops") == ["one", "", "zwei \u00e4", "last"]


async def test_without_input_it_reads_back_and_ends(url: str) -> None:
    await tool("--url", url, "--name", "bob", given=b"one\ntwo\nthree\n")
    done = await tool("--url", url, "--json", "--history", "2")
    assert done.status == 0
    assert events(done, "state") == [{"event": "state", "state": "connected", "reason": ""}]
    first, second = events(done, "message")
    assert first.pop("time") <= second.pop("time")
    epoch = first["epoch"]
    assert first == {"event": "message", "room": "lobby", "epoch": epoch, "offset": 2, "name": "bob", "body": "two"}
    assert second == first | {"offset": 3, "body": "three"}


async def test_what_it_sends_is_among_what_it_prints(url: str) -> None:
    done = await tool("--url", url, "--json", given=b"one\ntwo\n")
    assert [event["body"] for event in events(done, "message")] == ["one", "two"]


async def test_a_listener_in_a_pipe(url: str) -> None:
    """Standard input is a terminal: it is left alone, and what happens is told at once, until it is interrupted."""
    read, write = os.pipe()
    async with terminal("--url", url, "--json", stdout=write) as listener:
        os.close(write)
        reader = asyncio.StreamReader()
        pipe = os.fdopen(read)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        assert json.loads(await reader.readline())["state"] == "connected"
        await tool("--url", url, "--name", "bob", given=b"one\ntwo\n")
        told = [json.loads(await reader.readline()) for _ in range(4)]
        assert [(event["event"], event["name"]) for event in told] == [
            ("join", "bob"), ("message", "bob"), ("message", "bob"), ("leave", "bob"),
        ]  # fmt: skip
        listener.process.send_signal(signal.SIGINT)
        assert await listener.ends() == 130
        transport.close()


async def test_a_listener_without_json_has_lines_for_people(url: str) -> None:
    read, write = os.pipe()
    await tool("--url", url, "--name", "bob", given="a\x1b[2Jb\n\u202e".encode())
    async with terminal("--url", url, "--history", "5", stdout=write) as listener:
        os.close(write)
        with os.fdopen(read) as pipe:
            shown = [await asyncio.to_thread(pipe.readline) for _ in range(2)]
            listener.process.send_signal(signal.SIGINT)
            await listener.ends()
    assert [line[5:] for line in shown] == [" bob: a\u241b[2Jb\n", " bob: \ufffd\n"]


async def test_json_is_harmless_to_a_terminal(url: str) -> None:
    stranger = token("", info={"name": "\x1b[2J\x9b"})
    given = "a\x1b[2Jb\x9b\u202e\u2028\n".encode()
    done = await tool("--url", url, "--json", given=given, env={"CHAT_TOKEN": stranger})
    assert all(line.isascii() and line.isprintable() for line in done.out)
    (message,) = events(done, "message")
    assert (message["name"], message["body"]) == ("\x1b[2J\x9b", "a\x1b[2Jb\x9b\u202e\u2028")


async def test_what_is_refused_is_named_and_the_rest_is_sent(url: str) -> None:
    given = b"one\nz\x00ero\n" + b"x" * 70_000 + b"\n" + b"y" * 40_000 + b"\ntwo\n"
    done = await tool("--url", url, given=given)
    assert done.status == 1
    assert await bodies(url) == ["one", "two"]
    refused = [line for line in done.err if "not sent" in line]
    assert refused[0] == "chatserver chat: not sent: z\u2400ero: body must not contain U+0000 (415)"
    assert refused[1] == f"chatserver chat: not sent: {'x' * 60}\u2026: message too big (1009)"
    assert refused[2].startswith(f"chatserver chat: not sent: {'y' * 60}\u2026: body too long")
    assert len(refused) == 3


async def test_refusals_as_json(url: str) -> None:
    done = await tool("--url", url, "--json", given=b"\0\n")
    assert (done.status, done.err) == (1, [])
    (error,) = events(done, "error")
    assert (error["code"], error["room"], error["body"]) == (415, "lobby", "\0")


@pytest.mark.parametrize(("room", "code"), [("$vault", 103), ("no:where", 102), ("a b", 107)])
async def test_a_room_that_does_not_let_us_in(url: str, room: str, code: int) -> None:
    done = await tool(room, "--url", url, given=b"one\n")
    assert (done.status, done.out) == (1, [])
    (line,) = done.err
    assert line.startswith(f"chatserver chat: {room}: ")
    assert line.endswith(f"({code})")


async def test_a_server_that_is_not_there() -> None:
    done = await tool("--url", "http://127.0.0.1:1", "--timeout", "0.2", given=b"one\n")
    assert (done.status, done.out) == (3, [])
    assert done.err[-1] == "chatserver chat: not connected for 0.2 s: connection refused"


@pytest.mark.parametrize(
    ("arguments", "env", "reason"),
    [
        (("--name", "a" * 33), {}, "name: 1 to 32 characters"),
        (("--token", "nonsense"), {}, "invalid token (3500)"),
        ((), {"CHAT_TOKEN": "nonsense"}, "invalid token (3500)"),
        ((), {"CHAT_TOKEN": token("ann", exp=1)}, "unauthorized"),
    ],
)
async def test_who_is_not_let_in(url: str, arguments: tuple[str, ...], env: dict[str, str], reason: str) -> None:
    done = await tool("--url", url, *arguments, given=b"one\n", env=env)
    assert (done.status, done.out) == (3, [])
    assert reason in done.err[-1]


async def test_who_needs_a_token_is_told_so() -> None:
    async with running(namespaces="") as port:
        done = await tool("--url", f"http://127.0.0.1:{port}", given=b"one\n")
    assert done.status == 3
    assert "a token may be needed" in done.err[-1]


async def test_nothing_is_lost_or_said_twice_over_a_crash(server: Server) -> None:
    """Lines that come while the server is down are sent when it is back, in order."""
    server.start()
    url = f"http://127.0.0.1:{server.port}"
    async with running_tool("--url", url, stdout=subprocess.DEVNULL) as sender:
        assert sender.stdin
        assert sender.stderr
        for number in range(60):
            sender.stdin.write(f"{number}\n".encode())
            if number == 20:
                while not await bodies(url):
                    pass
            elif number == 30:
                server.stop(signal.SIGKILL)
                assert b"not connected, trying" in await sender.stderr.readline()
            elif number == 50:
                server.start()
        sender.stdin.close()
        async with asyncio.timeout(PATIENCE):
            assert await sender.wait() == 0
    assert await bodies(url) == [str(number) for number in range(60)]


async def test_who_sends_faster_than_the_server_takes_waits() -> None:
    async with running(anonymous="on", namespaces="", rate_limit=LIMITED) as port:
        url = f"http://127.0.0.1:{port}"
        done = await tool("--url", url, given=b"".join(b"%d\n" % number for number in range(30)))
        assert done == Done(0, [], [])
        assert await bodies(url) == [str(number) for number in range(30)]


async def test_an_interrupt_says_what_was_not_sent() -> None:
    async with (
        running(anonymous="on", namespaces="", rate_limit=0.01) as port,  # the second one has to wait
        running_tool("--url", f"http://127.0.0.1:{port}", "--json") as sender,
    ):
        assert sender.stdin
        assert sender.stdout
        sender.stdin.write(b"one\ntwo\nthree\n")
        async with asyncio.timeout(PATIENCE):
            while json.loads(await sender.stdout.readline()).get("body") != "one":
                pass
            sender.send_signal(signal.SIGINT)
            _, err = await sender.communicate()
        assert sender.returncode == 130
        assert err.decode() == "chatserver chat: not known to be sent, nor what follows it: two\n"


@pytest.mark.parametrize("history", ["0", "300"])
async def test_it_ends_quietly_when_nobody_reads(url: str, history: str) -> None:
    """At once, also if there is nothing to be told."""
    await tool("--url", url, given=b"one\ntwo\n")
    master, slave = pty.openpty()
    async with running_tool("--url", url, "--json", "--history", history, stdin=slave) as listener:
        assert listener.stdout
        assert listener.stderr
        await listener.stdout.readline()
        listener._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
        async with asyncio.timeout(PATIENCE):
            assert await listener.wait() == 141
            assert await listener.stderr.read() == b""
    os.close(master)
    os.close(slave)


async def test_input_from_a_file(url: str, tmp_path: Any) -> None:
    """Which no loop can wait for."""
    (tmp_path / "lines").write_bytes(b"one\ntwo\n")
    with (tmp_path / "lines").open("rb") as file:
        process = await asyncio.create_subprocess_exec(*COMMAND, "--url", url, stdin=file, env=environment())
        assert await process.wait() == 0
    assert await bodies(url) == ["one", "two"]


async def test_without_standard_input_and_output(url: str) -> None:
    """As a service manager may start it."""
    process = await asyncio.create_subprocess_shell(
        f"exec {' '.join(COMMAND)} --url {url} --json <&- >&-", stderr=subprocess.PIPE, env=environment()
    )
    _, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
