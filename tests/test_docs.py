"""The documentation says what the code does."""

import argparse
import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from chatserver import errors, tokens
from chatserver.config import FIELDS
from chatserver.errors import ChatError, Disconnect
from chatserver.protocol import payload
from chatserver.server_api_types import SIGNATURES
from chatserver.terminal import command, orders, pipe, wording
from chatserver.tokens import Verifier
from tests import play
from tests.server import ROOT

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text()
PLUGINS = (ROOT / "docs" / "plugins.md").read_text()
TOKENS = (ROOT / "docs" / "tokens.md").read_text()
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
SHOUT = ROOT / "examples" / "shout"


def block(text: str, language: str) -> str:
    """The first code block in this language."""
    found = re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)
    assert found
    return found[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("text", [README, PLUGINS], ids=["README.md", "plugins.md"])
def test_the_plugin_shown_is_the_one_that_is_tested(text: str) -> None:
    assert block(text, "python") == (SHOUT / "chatserver_shout.py").read_text()


def test_the_packaging_shown_is_the_one_that_is_tested() -> None:
    assert tomllib.loads(block(PLUGINS, "toml")) == tomllib.loads((SHOUT / "pyproject.toml").read_text())


async def test_the_tokens_shown_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_HMAC_SECRET", "s" * 32)
    shown: dict[str, Any] = {}
    exec(block(TOKENS, "python"), shown)
    known = Verifier(hmac_secret="s" * 32, require=("exp", "iat", "sub"))
    connection = await known.connection(shown["connection_token"]("alice", "Alice"))
    assert (connection.user, connection.info) == ("alice", '{"name":"Alice"}')
    subscription = await known.subscription(shown["subscription_token"]("alice", "vault"))
    assert (subscription.user, subscription.channel) == ("alice", "vault")


def test_every_claim_that_counts_is_in_the_table_and_no_other_is() -> None:
    table = TOKENS.split("## Claims")[1].split("##")[0]
    assert {*re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)} == {*tokens._Claims.__struct_fields__}
    assert f"at most {payload.DEPTH} levels" in table
    assert f"at most {tokens.TOKEN_CHARACTERS} characters" in table
    assert f"at most {tokens.USER_BYTES} bytes" in table
    assert f"{tokens.LEEWAY_SECONDS:.0f} seconds earlier" in table


def test_the_settings_of_tokens_are_all_there() -> None:
    table = TOKENS.split("## Settings")[1]
    named = re.findall(r"^\| `([A-Z_]+)` \|", table, re.MULTILINE)
    assert named == [name for name in FIELDS if name.startswith("TOKEN_") or name == "ANONYMOUS"]


@pytest.mark.parametrize("text", [README, TOKENS], ids=["README.md", "tokens.md"])
def test_settings_shown_exist_with_their_defaults(text: str) -> None:
    table = text.split("## Settings")[1].split("##")[0]
    rows = re.findall(r"^\| (`[A-Z].*?) \|(.*?)\|", table, re.MULTILINE)
    assert len(rows) > 5
    for names, defaults in rows:
        named = re.findall(r"`([A-Z_]+)`", names)
        shown = re.findall(r"`(.*?)`", defaults) or [""] * len(named)
        assert {name: FIELDS[name].metadata["default"] for name in named} == dict(zip(named, shown, strict=True))


def codes(kind: type[ChatError | Disconnect]) -> list[int]:
    """Those of its subclasses, and theirs, that are ours."""
    own = [below for below in kind.__subclasses__() if below.__module__ == errors.__name__]
    return [code for below in own for code in (below.code, *codes(below))]


def test_every_error_has_its_number_in_the_table_and_no_other_has() -> None:
    table = PROTOCOL.split("## Errors")[1].split("##")[0]
    documented = [int(number) for number in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)]
    assert documented == sorted([ChatError.code, *codes(ChatError)])


def test_every_close_code_is_in_the_table_and_no_other_is() -> None:
    table = PROTOCOL.split("## The end of a connection")[1]
    documented = {int(number) for number in re.findall(r"^\| (\d+)", table, re.MULTILINE)}
    assert documented == set(codes(Disconnect))


def test_every_method_is_in_the_table_and_no_other_is() -> None:
    table = (ROOT / "docs" / "http-api.md").read_text().split("## Methods")[1]
    assert re.findall(r"^\| `([a-z_]+)` \|", table, re.MULTILINE) == list(SIGNATURES)


def test_every_log_event_is_in_the_table() -> None:
    table = (ROOT / "docs" / "operation.md").read_text().split("## Logs")[1].split("##")[0]
    code = "\n".join(path.read_text() for path in (ROOT / "chatserver").glob("*.py"))
    reported = set(re.findall(r"report\(\s*logger,\s*logging\.[A-Z]+,\s*\"([^\"]+)\"", code))
    assert len(reported) > 8
    for event in reported:
        assert re.search(rf"^\|[^|]*\b{event}\b", table, re.MULTILINE), event


def test_launchers_in_the_readme_are_those_that_are_tested() -> None:
    from tests.test_launchers import LAUNCHERS

    table = README.split("## Launchers")[1]
    shown = {command.replace("'", "") for command in re.findall(r"^\| `(.*?)` \|", table, re.MULTILINE)}
    tested = {
        " ".join(("python" if "python" in word else Path(word).name) for word in command)
        for command in LAUNCHERS.values()
    }
    assert shown <= tested


def test_each_promise_names_a_test_that_is_there() -> None:
    rows = re.findall(r"^\|.*\| ([^|]*) \|$", (ROOT / "docs" / "robustness.md").read_text(), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)}
    tests = {path.stem for path in (ROOT / "tests").rglob("*.py")}
    assert len(named) >= 12
    assert named <= tests


TERMINAL = (ROOT / "docs" / "terminal.md").read_text()


async def test_the_commands_of_the_terminal_client_do_what_is_said(tmp_path: Path) -> None:
    """A shell runs those that end: they make a token, send, and read back."""
    blocks = re.findall(r"```sh\n(.*?)```", TERMINAL, re.DOTALL)
    assert len(blocks) == 3
    async with play.running(namespaces="") as port:
        env = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "CHAT_URL": f"http://127.0.0.1:{port}",
            "TOKEN_HMAC_SECRET": play.SECRET,
        }
        shell = await asyncio.create_subprocess_exec(
            "sh", "-euc", "".join(blocks[1:]), cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        out, err = await shell.communicate()
    assert (shell.returncode, err) == (0, b"")
    told = [event for event in map(json.loads, out.splitlines()) if event["event"] == "message"]
    assert (told[-1]["name"], told[-1]["room"]) == ("alice", "ops")
    assert "deploy is done" in [event["body"] for event in told]


@pytest.mark.parametrize("page", [README, TERMINAL], ids=["README.md", "terminal.md"])
def test_options_of_the_terminal_client_exist(page: str) -> None:
    parser = argparse.ArgumentParser()
    command.options(parser, "chat")
    shown = re.findall(r"chatserver chat\b([^|<`\n]*)", page)
    assert shown
    for options in shown:
        parser.parse_args(shlex.split(options))


def test_the_options_orders_and_events_of_the_terminal_client_are_all_there() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    command.options(parser, "chat")
    assert re.findall(r"^\| `(--\w+)` \|", TERMINAL, re.MULTILINE) == [
        action.option_strings[0] for action in parser._actions if action.option_strings
    ]
    assert re.findall(r"^\| `/(\w+)", TERMINAL, re.MULTILINE) == [*orders._ARGUMENTS]
    statuses = re.findall(r"^\| (\d+) \|", TERMINAL, re.MULTILINE)
    assert [*map(int, statuses)] == [pipe.DONE, pipe.REFUSED, 2, pipe.NOT_CONNECTED, 130, pipe.NOBODY_READS]
    table = TERMINAL.split("## Events as JSON")[1]
    shown = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert shown == set(re.findall(r'"event": "(\w+)"', Path(wording.__file__).read_text())) | {"join", "leave"}
