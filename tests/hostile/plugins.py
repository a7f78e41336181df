"""Plugins that misbehave: they raise, hang, block the loop, answer junk, leak tasks, or try to end the process."""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path

from chatserver.log import LINES_PER_SECOND
from tests.hostile.harness import Figures, main
from tests.raw import RawClient
from tests.server import Server, patched

FAULTS = ("raise", "hang", "block", "junk", "leak", "exit")

PLUGIN = """
import asyncio, os, sys, time

async def fault(command, client, handler):
    kind, seconds = os.environ["FAULT"], float(os.environ["FAULT_SECONDS"])
    if kind == "raise":
        raise RuntimeError("fault")
    if kind == "hang":
        await asyncio.sleep(seconds)
    if kind == "block":
        time.sleep(seconds)
    if kind == "leak":
        for _ in range(100):
            asyncio.create_task(asyncio.sleep(3600))
    if kind == "exit":
        sys.exit(3)
    reply = await handler(command, client)
    return {"junk": True} if kind == "junk" else reply

def setup(app):
    app["chain"].append(fault)
"""

QUICK = patched(
    "from chatserver import watchdog", "watchdog.BEAT_SECONDS, watchdog.BLOCKED_SECONDS = 0.02, 0.1"
)  # fmt: skip
"""Sooner takes its loop for blocked."""


async def run(server: Server, *, kinds: str = ",".join(FAULTS), messages: int = 30, seconds: float = 5.0) -> Figures:
    """`messages` from each of two clients through a plugin with each fault; it hangs or blocks for `seconds`."""
    figures: Figures = {}
    path = install(server.folder)
    for kind in kinds.split(","):
        found = await suffer(server, kind, path, messages, seconds)
        figures |= {f"{kind}: {name}": figure for name, figure in found.items()}
        (server.folder / "stderr").unlink()
    return figures


async def suffer(
    server: Server, kind: str, path: str, messages: int, seconds: float, *argv: str, deadline: float = 0.5
) -> Figures:
    """One fault, of a plugin on the `path` that has a `deadline`, in a server started by `argv`."""
    server.start(
        *argv, PYTHONPATH=path, PLUGINS="fault", PLUGIN_SECONDS=str(deadline), FAULT=kind, FAULT_SECONDS=str(seconds),
        HEARTBEAT_SECONDS="1",
    )  # fmt: skip
    refused = await converse(server.port, messages)
    assert await asyncio.to_thread(server.stop) == 0
    return account(server, kind) | {"answered with an error": refused}


def install(folder: Path) -> str:
    """A distribution with the plugin, as pip would leave it; returns a PYTHONPATH that has it."""
    site = folder / "site"
    (site / "fault-1.0.dist-info").mkdir(parents=True)
    (site / "chatserver_fault.py").write_text(PLUGIN)
    (site / "fault-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: fault\nVersion: 1.0\n")
    (site / "fault-1.0.dist-info" / "entry_points.txt").write_text("[chatserver.plugins]\nfault = chatserver_fault\n")
    return os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))


class Talker:
    """One who says something, and waits for its own copy or a refusal before it says more."""

    def __init__(self, name: str, client: RawClient) -> None:
        self.name = name
        self.client = client
        self.heard: list[str] = []
        self.refused: list[str] = []

    async def talk(self, messages: int) -> None:
        """Says so many messages."""
        for number in range(messages):
            await self.say(f"{self.name} {number}")

    async def say(self, said: str) -> None:
        """Says it and waits for what comes of it."""
        self.client.say(json.dumps({"type": 2, "body": said}))
        await self.until(lambda frame: frame["body"] == said or frame["body"].startswith("error: "))
        if self.heard[-1:] != [said]:
            self.refused.append(said)

    async def until(self, wanted: Callable[[dict[str, str]], bool]) -> None:
        """Listens until that comes."""
        while True:
            frame = json.loads(await self.client.text(60))
            if frame["type"] == 2:
                self.heard.append(frame["body"])
            else:
                assert frame["body"].endswith(("connected", "error: internal error (100)")), frame
            if wanted(frame):
                return

    def check(self) -> None:
        """Of what was said each message was heard or refused, and what was heard came once and in order."""
        mine = [said for said in self.heard if said.startswith(self.name)]
        numbers = [int(said.split()[1]) for said in mine]
        assert numbers == sorted(set(numbers))
        assert {*mine, *self.refused} == {f"{self.name} {number}" for number in range(len({*mine, *self.refused}))}


async def converse(port: int, messages: int) -> int:
    """Two talk at once. Nothing is lost, doubled or reordered, nobody disconnected. Returns how many were refused."""
    alice, bob = [Talker(name, await RawClient.connect(port, f"/ws?name={name}")) for name in ("alice", "bob")]
    await asyncio.gather(alice.talk(messages), bob.talk(messages))
    await alice.say("end")  # by now the plugin is switched off, or works
    await bob.until(lambda frame: frame["body"] == "end")
    assert alice.heard == bob.heard
    for talker in (alice, bob):
        talker.check()
        await talker.client.close()
    return len(alice.refused) + len(bob.refused)


def account(server: Server, kind: str) -> Figures:
    """What the log says: the culprit by name, in time, and that it was switched off."""
    disconnected = [line["code"] for line in server.events("disconnected")]
    assert disconnected == [1000, 1000]
    if kind == "leak":
        assert not server.events("plugin failed")
        return {"failures": 0}
    failed = server.events("plugin failed")
    assert {line["plugin"] for line in failed} == {"chatserver_fault.fault"}
    counted = max(line["failures"] for line in failed)  # not those that a busy machine noticed late
    assert counted <= 11  # the other client's may be under way when it is switched off
    assert counted >= 10 or len(failed) >= LINES_PER_SECOND  # of more, noticed late, the log leaves out the last
    assert len(server.events("plugin switched off")) == 1
    figures: Figures = {"failures": len(failed)}
    if kind == "block":
        blocked = server.events("loop blocked")  # also, on a busy machine, what is nobody's fault
        named = [line for line in blocked if line["plugin"] == "chatserver_fault.fault"]
        figures["named while it blocks"] = len(named)
        assert named
    return figures


if __name__ == "__main__":
    main(run)
