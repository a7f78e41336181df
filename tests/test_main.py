"""The command line: tokens and settings, printed with nothing beside them."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import jwt
import pytest

from chatserver.tokens import BadToken, Verifier
from tests import test_serve
from tests.commands import command

SECRET = "hunter2hunter2hunter2hunter2hunt"


async def made(*arguments: str, **env: str) -> str:
    """The token that is printed, on a line of its own and with nothing beside it."""
    done = await asyncio.to_thread(lambda: command("token", *arguments, TOKEN_HMAC_SECRET=SECRET, **env))
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    return line


async def test_a_token_says_who_somebody_is() -> None:
    found = await Verifier(hmac_secret=SECRET).connection(
        await made("--user", "alice", "--info", ' { "name": "Alice" }')
    )
    assert (found.user, found.info) == ("alice", '{"name":"Alice"}')


async def test_a_token_with_a_channel_is_a_subscriptions() -> None:
    found = await Verifier(hmac_secret=SECRET).subscription(await made("--user", "alice", "--channel", "$vault"))
    assert (found.user, found.channel) == ("alice", "$vault")


@pytest.mark.parametrize(
    ("ttl", "seconds"), [("30s", 30), ("15m", 900), ("1h", 3600), ("7d", 604_800), ("30", 30), (None, 3600)]
)
async def test_a_token_ends(ttl: str | None, seconds: int) -> None:
    """To the second, from when it was made: both are in it."""
    token = await made("--user", "alice", *(("--ttl", ttl) if ttl else ()))
    claims = jwt.decode(token, SECRET, algorithms=["HS256"])
    assert claims["exp"] - claims["iat"] == seconds


async def test_a_token_without_end() -> None:
    assert (
        await Verifier(hmac_secret=SECRET).connection(await made("--user", "alice", "--ttl", "0"))
    ).expires_at is None


async def test_the_server_takes_what_its_settings_make(tmp_path: Path) -> None:
    """Also with an audience and an issuer, and with a secret in a file of its own."""
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    (tmp_path / "chat.env").write_text(
        f"TOKEN_HMAC_SECRET_FILE={tmp_path / 'secret'}\nTOKEN_AUDIENCE=chat\nTOKEN_ISSUER=login\n"
    )
    done = test_serve.process("token", "--config", str(tmp_path / "chat.env"), "--user", "alice")
    known = Verifier(hmac_secret=SECRET, audience="chat", issuer="login", require=("exp", "aud", "iss", "iat"))
    assert (await known.connection(done.stdout.strip())).user == "alice"
    with pytest.raises(BadToken):
        await Verifier(hmac_secret="f" * 32).connection(done.stdout.strip())


def test_without_a_secret_there_is_one_line() -> None:
    done = command("token", "--user", "alice")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("TOKEN_HMAC_SECRET: ")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--user", "a\nb"),
        ("--user", "a" * 256),
        ("--user", "alice", "--ttl", "soon"),
        ("--user", "alice", "--ttl", "-1h"),
        ("--user", "alice", "--ttl", "1.5h"),
        ("--user", "alice", "--ttl", "\u0661h"),
        ("--user", "alice", "--info", "{"),
    ],
)
def test_what_makes_no_token_is_told(arguments: tuple[str, ...]) -> None:
    done = command("token", *arguments, TOKEN_HMAC_SECRET=SECRET)
    assert (done.returncode, done.stdout) == (2, "")
    assert "token: error: " in done.stderr
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKEN_HMAC_SECRET", "hunter2"),
        ("TOKEN_PUBLIC_KEY", "-----BEGIN PUBLIC KEY-----\nhunter2\n-----END PUBLIC KEY-----"),
        ("TOKEN_PUBLIC_KEY", '{"alg":"none","k":"hunter2"}'),
        ("TOKEN_JWKS_URL", "file:///hunter2"),
        ("TOKEN_JWKS_URL", "https://ann:hunter2@login.example/keys.json"),
        ("ANONYMOUS", "perhaps"),
    ],
)
def test_a_wrong_key_is_one_line_that_does_not_quote_it(name: str, value: str) -> None:
    done = command("check", **{name: value})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{name}: ")
    assert "hunter2" not in line


def test_the_settings_in_force_are_shown_without_the_secret() -> None:
    done = command("check", TOKEN_HMAC_SECRET=SECRET, TOKEN_AUDIENCE="chat")
    assert {"TOKEN_HMAC_SECRET=***", "TOKEN_AUDIENCE=chat", "TOKEN_REQUIRE=exp"} <= set(done.stdout.splitlines())
    assert SECRET not in done.stdout + done.stderr


def ran(*command: str, **env: str) -> tuple[int, str, str]:
    """Status and output of a process."""
    done = subprocess.run(
        command, env={"PATH": os.environ["PATH"], **env}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=30, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), ("check",), ("token",), ("chat", "--json", "a", "b")]
)
def test_the_script_is_the_module(arguments: tuple[str, ...]) -> None:
    script = Path(sys.executable).with_name("chatserver")
    assert ran(str(script), *arguments) == ran(sys.executable, "-m", "chatserver", *arguments)


def without_the_extra(*arguments: str) -> tuple[int, str, str]:
    """What a command does where the packages of the extra `cli` aren't installed."""
    hide = "import runpy, sys; sys.modules |= dict.fromkeys(['centrifuge', 'prompt_toolkit']); "
    run = f"sys.argv = ['chatserver', *{arguments!r}]; runpy.run_module('chatserver', run_name='__main__')"
    return ran(sys.executable, "-c", hide + run)


def test_the_server_does_not_need_what_the_client_needs() -> None:
    status, out, err = without_the_extra("check")
    assert (status, err) == (0, "")
    assert "PORT=8080" in out.splitlines()


def test_the_client_says_what_it_needs() -> None:
    status, out, err = without_the_extra("chat")
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line.endswith("is missing: pip install 'chatserver[cli]'")


@pytest.mark.parametrize("arguments", [("serve", "chat"), ("nothing",), ("--nothing",), ("chat", "--port", "80")])
def test_what_is_no_command_is_told(arguments: tuple[str, ...]) -> None:
    done = command(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: " in done.stderr


def test_whoever_reads_no_further_costs_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run([sys.executable, "-m", "chatserver", "check"], stdout=write, stderr=subprocess.PIPE)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")
