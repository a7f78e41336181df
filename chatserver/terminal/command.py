"""`chatserver chat`: its options, and whether it is a screen or a pipe."""

import argparse
import asyncio
import getpass
import os
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

LOBBY: Final = "lobby"
URL: Final = "http://localhost:8080"
ENDPOINT: Final = "/connection/websocket"
MOST: Final = 300
"""Messages that the server gives at once."""

_SCHEMES: Final = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}

_STATUS: Final = """
In a pipe each line of standard input is a message. The exit status is 0 if the server has acknowledged all of them,
1 if it has refused something, 2 for wrong options, 3 without a connection, 130 if interrupted, 141 if nobody reads
what is printed. A token is better in CHAT_TOKEN_FILE, which names a file, or CHAT_TOKEN: other users of this machine
see options.
"""


def options(parser: argparse.ArgumentParser, command: str) -> None:
    """Adds those of `chat`."""
    parser.epilog = _STATUS
    parser.add_argument("room", nargs="?", default=LOBBY, metavar="ROOM", help=f"where to chat (default: {LOBBY})")
    parser.add_argument("--url", type=endpoint, help=f"the server (default: CHAT_URL, or {URL})")
    parser.add_argument("--name", help="what to be called, if no token says so (default: the login name)")
    parser.add_argument("--token", help="says who you are (default: from CHAT_TOKEN_FILE or CHAT_TOKEN)")
    parser.add_argument(
        "--history", type=_count, metavar="N", help="show the last N messages (default: 20; in a pipe 0)"
    )
    parser.add_argument("--json", action="store_true", help="print what happens, a JSON object a line")
    parser.add_argument(
        "--timeout", type=_seconds, default=30.0, metavar="SECONDS",
        help="in a pipe, how long to be without a connection before giving up (default: 30; 0: never)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Chats; returns the exit status."""
    try:
        from chatserver.terminal import pipe, screen
        from chatserver.terminal.chat import Wanted
    except ModuleNotFoundError as error:
        if str(error.name).startswith("chatserver"):
            raise
        print(f"chatserver chat: {error.name} is missing: pip install 'chatserver[cli]'", file=sys.stderr)
        return 2
    try:
        url = arguments.url or endpoint(os.environ.get("CHAT_URL") or URL)
        token, get_token = _token(arguments.token)
    except (argparse.ArgumentTypeError, OSError, UnicodeDecodeError) as error:
        print(f"chatserver chat: {error}", file=sys.stderr)
        return 2
    wanted = Wanted(url, arguments.room, _name(arguments.name), arguments.history, token, get_token)
    interactive = not arguments.json and _is_terminal(sys.stdin) and _is_terminal(sys.stdout)
    try:
        if interactive:
            return asyncio.run(screen.run(wanted))
        return asyncio.run(pipe.run(wanted, json=arguments.json, patience=arguments.timeout))
    except KeyboardInterrupt:
        return 130


def endpoint(text: str) -> str:
    """The WebSocket URL of the server at `text`; with a path in it, it is that one."""
    try:
        parts = urlsplit(text)
        fits = parts.scheme.lower() in _SCHEMES and parts.hostname and (parts.port or True) and not parts.fragment
    except ValueError:
        fits = False
    if not fits:
        raise argparse.ArgumentTypeError(f"{text!r} is no server; allowed: such as {URL}")
    path = parts.path if parts.path.strip("/") else ENDPOINT
    return parts._replace(scheme=_SCHEMES[parts.scheme.lower()], path=path).geturl()


def _token(given: str | None) -> tuple[str, Callable[[], Awaitable[str]] | None]:
    """The token, or how to get it: a file is read whenever one is needed, so that there may be a newer one in it."""
    file = os.environ.get("CHAT_TOKEN_FILE")
    if given is None and file:
        path = Path(file)

        async def read() -> str:
            return (await asyncio.to_thread(path.read_text)).strip()

        return path.read_text().strip(), read  # a pipe can't be read again
    return (os.environ.get("CHAT_TOKEN", "") if given is None else given).strip(), None


def _name(given: str | None) -> str:
    """As it is given, for the server to judge; or the login name, as far as it can be one."""
    if given is not None:
        return given
    try:
        login = getpass.getuser()
    except (OSError, KeyError):
        return ""
    return re.sub("[^A-Za-z0-9_.-]", "-", login).lstrip("_.-")[:32]


def _count(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or int(text) > MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; allowed: 0 to {MOST}")
    return int(text)


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return float(text)


def _is_terminal(stream: object) -> bool:
    return hasattr(stream, "isatty") and bool(stream.isatty())
