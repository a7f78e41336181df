"""The options of `chatserver chat`, and the tokens that `chatserver token` makes for it."""

import argparse
import json
import os
import sys
from pathlib import Path

import pytest

from chatserver.terminal.command import endpoint
from tests.commands import command
from tests.play import SECRET, running, token
from tests.terminal import terminal, tool
from tests.test_main import ran


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("http://localhost:8080", "ws://localhost:8080/connection/websocket"),
        ("http://localhost:8080/", "ws://localhost:8080/connection/websocket"),
        ("https://chat.example", "wss://chat.example/connection/websocket"),
        ("ws://[::1]:80", "ws://[::1]:80/connection/websocket"),
        ("WSS://chat.example/chat/socket?a=b", "wss://chat.example/chat/socket?a=b"),
        ("ws://localhost:8080/connection/websocket", "ws://localhost:8080/connection/websocket"),
    ],
)
def test_urls(given: str, found: str) -> None:
    assert endpoint(given) == found


@pytest.mark.parametrize(
    "given",
    ["", "localhost:8080", "ftp://localhost", "http://", "http://a:x", "http://a/#b", "http://[", "http://a:99999"],
)
def test_what_is_no_url(given: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no server"):
        endpoint(given)


@pytest.mark.parametrize(
    ("arguments", "env"),
    [
        (("--url", "localhost:8080"), {}),
        ((), {"CHAT_URL": "localhost:8080"}),
        (("--history", "301"), {}),
        (("--history", "-1"), {}),
        (("--timeout", "soon"), {}),
        (("lobby", "kitchen"), {}),
        (("--port", "80"), {}),
        ((), {"CHAT_TOKEN_FILE": "/nonexistent"}),
    ],
)
def test_wrong_options_are_told(arguments: tuple[str, ...], env: dict[str, str]) -> None:
    done = command("chat", *arguments, **env)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "env", "name"),
    [
        ((), {}, "ann"),
        (("--name", "bob"), {}, "bob"),
        ((), {"LOGNAME": "WORK\\J\u00f6rg M\u00fcller"}, "WORK-J-rg-M-ller"),
        ((), {"LOGNAME": "_apt"}, "apt"),
        ((), {"CHAT_TOKEN": token("eve")}, "eve"),
        (("--token", token("eve"), "--name", "bob"), {"CHAT_TOKEN": token("mallory")}, "eve"),
    ],
)
async def test_who_we_are(arguments: tuple[str, ...], env: dict[str, str], name: str) -> None:
    async with running(anonymous="on", namespaces="") as port:
        done = await tool(*arguments, "--json", given=b"hi\n", env={"CHAT_URL": f"http://127.0.0.1:{port}", **env})
        assert done.status == 0
        assert [event["name"] for event in map(json.loads, done.out) if event["event"] == "message"] == [name]


async def test_the_server_takes_a_token_that_it_has_made(tmp_path: Path) -> None:
    """From a file, which nobody else need be able to read."""
    status, made, _ = ran(
        sys.executable, "-m", "chatserver", "token", "--user", "alice", "--ttl", "1m", TOKEN_HMAC_SECRET=SECRET
    )
    assert status == 0
    (tmp_path / "token").write_text(made)
    async with running(namespaces="") as port:
        env = {"CHAT_URL": f"http://127.0.0.1:{port}", "CHAT_TOKEN_FILE": str(tmp_path / "token")}
        done = await tool("--json", given=b"hi\n", env=env)
        assert done.status == 0
        assert [event["name"] for event in map(json.loads, done.out) if event["event"] == "message"] == ["alice"]


async def test_the_file_is_read_whenever_a_token_is_needed(tmp_path: Path) -> None:
    """Here the server doesn't take the first one any more, and the second one is there in time."""
    file = tmp_path / "token"
    file.write_text(token("ann", exp=1))
    env = {"CHAT_TOKEN_FILE": str(file)}
    async with running(namespaces="") as port, terminal("--url", f"http://127.0.0.1:{port}", env=env) as screen:
        await screen.shows("not connected, trying: token expired (109)")
        file.write_text(token("ann"))
        screen.type("hi")
        await screen.shows("ann: hi")


async def test_a_token_from_another_program() -> None:
    """As a shell has it: `CHAT_TOKEN_FILE=<(get-token) chatserver chat`. It can be read once."""
    read, write = os.pipe()
    os.write(write, token("eve").encode())
    os.close(write)
    async with running(namespaces="") as port:
        env = {"CHAT_TOKEN_FILE": f"/dev/fd/{read}"}
        done = await tool("--url", f"http://127.0.0.1:{port}", given=b"hi\n", env=env, pass_fds=[read])
    os.close(read)
    assert done.status == 0, done.err


async def test_a_file_that_has_no_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"\xff")
    done = await tool(env={"CHAT_TOKEN_FILE": str(tmp_path / "token")})
    assert (done.status, len(done.err)) == (2, 1)
