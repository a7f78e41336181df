"""Storage that fails under a running server, and heals: full, locked by another process, standing still, gone.

While it fails, sends are answered with a numbered error within five seconds, those who are connected stay, newcomers
come in and read back; once it has healed, the first send is stored. In the end the history is what was acknowledged.
"""

import json
import re
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Final

from aiohttp import ClientSession

from tests.hostile.harness import PATIENCE_SECONDS, Figures, echo, judged, main
from tests.postgres import Postgres
from tests.raw import RawClient
from tests.server import Server

ANSWER_SECONDS: Final = 5.0


class Chat:
    """A sender's view: what was acknowledged, what was refused, and what isn't known."""

    def __init__(self, client: RawClient) -> None:
        self.client = client
        self.acknowledged: list[str] = []
        self.unsure: list[str] = []
        self.slowest = 0.0

    async def say(self, body: str) -> int:
        """Returns 0 when it is stored, or else the number of the error."""
        started = time.monotonic()
        self.client.say(json.dumps({"type": 2, "body": body}))
        code = await self._answer(body)
        self.slowest = max(self.slowest, time.monotonic() - started)
        if not code:
            self.acknowledged.append(body)
        elif code == 422:
            self.unsure.append(body)
        return code

    async def _answer(self, body: str) -> int:
        while True:
            frame = json.loads(await self.client.text(PATIENCE_SECONDS))
            if frame == {"type": 2, "body": body}:
                return 0
            if found := re.search(r"error: .*\((\d+)\)$", frame["body"]):
                return int(found[1])


async def history(server: Server) -> list[str]:
    """All bodies, by pages."""
    bodies: list[str] = []
    async with ClientSession(f"http://127.0.0.1:{server.port}") as session:
        after = 0
        while True:
            query = {"after": str(after), "limit": "200"}
            async with session.get("/api/rooms/lobby/messages", params=query) as response:
                assert response.status == 200, await response.text()
                messages = (await response.json())["messages"]
            if not messages:
                return bodies
            assert [message["offset"] for message in messages] == [after + 1 + place for place in range(len(messages))]
            bodies += [message["data"]["body"] for message in messages]
            after = messages[-1]["offset"]


async def suffer(server: Server, fault: AbstractAsyncContextManager[str], url: str, tells: int = 2) -> Figures:
    """One fault, from before it to after it; meanwhile `tells` messages fail, one after the other."""
    server.start(STORE_URL=url, LOG_LEVEL="warn")
    alice = Chat(await RawClient.connect(server.port, "/ws?name=alice"))
    bob = await RawClient.connect(server.port, "/ws?name=bob")
    assert await alice.say("before") == 0
    async with fault as padding:
        codes = await _fail(alice, padding, tells)
        newcomer = await RawClient.connect(server.port, "/ws?name=carol&history=1")
        assert json.loads(await newcomer.text())["body"] == alice.acknowledged[-1]
    assert await alice.say("after") == 0
    await echo(bob)
    found = [body for body in await history(server) if not body.startswith("echo?")]
    assert [body for body in found if body not in alice.unsure] == alice.acknowledged
    assert len(found) == len(set(found))
    assert "Traceback" not in server.stderr
    assert server.stop() == 0
    figures: Figures = {"slowest answer, s": alice.slowest, "codes": ", ".join(map(str, sorted(codes)))}
    return judged(figures, {"slowest answer, s": ANSWER_SECONDS})


async def _fail(alice: Chat, padding: str, tells: int) -> set[int]:
    codes: list[int] = []
    number = 0
    while len(codes) < tells:
        code = await alice.say(f"{number} {padding}")
        number += 1
        codes += [code] if code else []
        assert number < 1000, "it never fails"
    return set(codes)


@asynccontextmanager
async def full(folder: Path) -> AsyncIterator[str]:
    """The file system of the database has no space left, until it gets some."""
    yield "x" * 30_000  # makes it full
    _mount(folder, "remount,size=16m")


@asynccontextmanager
async def locked(folder: Path) -> AsyncIterator[str]:
    """Another process holds the file."""
    connection = sqlite3.connect(folder / "chat.db", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    yield ""
    connection.close()


@asynccontextmanager
async def suspended(postgres: Postgres) -> AsyncIterator[str]:
    """The database server stands still, its connections stay."""
    postgres.suspend()
    yield ""
    postgres.start()


@asynccontextmanager
async def gone(postgres: Postgres) -> AsyncIterator[str]:
    """The database server ends, and starts again."""
    postgres.kill()
    yield ""
    postgres.start()


def _mount(folder: Path, options: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    subprocess.run(command, check=True, timeout=30)


async def run_full(server: Server) -> Figures:
    """On a small file system of its own."""
    folder = server.folder / "small"
    folder.mkdir()
    _mount(folder, "size=1m")
    try:
        return await suffer(server, full(folder), f"sqlite:///{folder}/chat.db")
    finally:
        server.kill()
        subprocess.run(["umount", str(folder)], check=True, timeout=30)


async def run_locked(server: Server, tells: int = 2) -> Figures:
    """SQLite, and somebody with a transaction open."""
    return await suffer(server, locked(server.folder), f"sqlite:///{server.folder}/chat.db", tells)


async def run(server: Server) -> Figures:
    """All faults, one after the other."""
    figures: Figures = {}
    for name, work in (("full", run_full), ("locked", run_locked)):
        figures |= {f"{name}: {figure}": value for figure, value in (await work(server)).items()}
        (server.folder / "chat.db").unlink(missing_ok=True)
    with Postgres() as postgres:
        for name, fault in (("suspended", suspended), ("gone", gone)):
            found = await suffer(server, fault(postgres), postgres.url())
            figures |= {f"{name}: {figure}": value for figure, value in found.items()}
    return figures


if __name__ == "__main__":
    main(run)
