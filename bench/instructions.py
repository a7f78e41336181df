"""How many instructions our server needs: a figure that doesn't depend on what else the machine does.

python -m bench.instructions

Valgrind's callgrind counts them in user space, without what the kernel does. One message is on its way at a time:
the next is sent when every member has the one before. Four runs, of few and many members and few and many messages, are
compared, so that what they have in common cancels out. Everything is done twice, to see how far the figures can be
trusted. It takes some minutes.
"""

import os
import re
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from bench.frames import TEXT, frames, masked, request
from bench.process import started
from bench.servers import SERVERS
from bench.stream import body

MEMBERS = 50, 250
MESSAGES = 20, 520
TIMES = 2

WITHOUT_UVLOOP = "import runpy, sys; sys.modules['uvloop'] = None; runpy.run_module('chatserver', run_name='__main__')"
LOOPS = {"uvloop": ["-m", "chatserver"], "asyncio": ["-c", WITHOUT_UVLOOP]}


class Costs(NamedTuple):
    """Instructions."""

    delivery: float
    """Of one message to one member."""
    message: float
    """To take a message, whoever hears it."""
    connection: float
    """From the handshake to the end."""


def costs(count: Callable[[int, int], float]) -> Costs:
    """From the instructions of whole runs: `count(members, messages)`."""
    (few, many), (short, long) = MEMBERS, MESSAGES
    small, large = ((count(members, long) - count(members, short)) / (long - short) for members in MEMBERS)
    delivery = (large - small) / (many - few)
    connection = (count(many, short) - count(few, short)) / (many - few) - short * delivery
    return Costs(delivery, small - few * delivery, connection)


def command(loop: str, out: Path) -> list[str]:
    """What is started."""
    valgrind = ["valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={out}"]
    return [*valgrind, sys.executable, *LOOPS[loop]]


def counted(loop: str, members: int, messages: int) -> int:
    """Instructions of a server from its start to its end. Raises `RuntimeError` if it doesn't start."""
    ours = SERVERS[0]
    env = {**ours.env, "PYTHONHASHSEED": "0", "HEARTBEAT_SECONDS": "0"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind"
        with started(command(loop, out), Path(folder), env) as (port, pid):
            drive(port, members, messages)
            os.kill(pid, signal.SIGTERM)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        found = re.search(r"^totals: (\d+)", out.read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def drive(port: int, members: int, messages: int) -> None:
    """One after the other: members connect, the first one speaks and all hear it, members go."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(_connected(port)) for _ in range(members)]
        for number in range(messages):
            text = body(b"00000", number, 0).encode()
            sockets[0].sendall(masked(TEXT, b'{"type":2,"body":"%s"}' % text))
            for each in sockets:
                _hear(each, text)


def _connected(port: int) -> socket.socket:
    connected = socket.create_connection(("127.0.0.1", port))
    connected.sendall(request("/ws", port))
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connected.recv(4096)
    assert head.startswith(b"HTTP/1.1 101"), head
    return connected


def _hear(member: socket.socket, text: bytes) -> None:
    data = b""
    while not [*frames(data)]:
        data += member.recv(4096)
    assert text in data


def main() -> int:
    """Prints a table. Exit status 1 without valgrind."""
    if not shutil.which("valgrind"):
        print("valgrind isn't installed", file=sys.stderr)
        return 1
    print("| loop | instructions | a delivery | a message | a connection |\n| --- | --- | --: | --: | --: |")
    for loop in LOOPS:
        runs = [costs(lambda members, messages: _told(loop, members, messages)) for _ in range(TIMES)]  # noqa: B023
        means = [sum(column) / TIMES for column in zip(*runs, strict=True)]
        spreads = [100 * (max(column) / min(column) - 1) for column in zip(*runs, strict=True)]
        print(f"| {loop} | mean | {' | '.join(f'{value:,.0f}' for value in means)} |")
        print(f"| | max/min - 1 | {' | '.join(f'{value:.2f} %' for value in spreads)} |")
    print("\nThe commands:", *(" ".join(command(loop, Path("FILE"))) for loop in LOOPS), sep="\n")
    return 0


def _told(loop: str, members: int, messages: int) -> int:
    print(f"{loop}: {members} members, {messages} messages", file=sys.stderr)
    return counted(loop, members, messages)


if __name__ == "__main__":
    sys.exit(main())
