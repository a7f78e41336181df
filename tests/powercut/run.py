"""Power cuts, one after the other on the same database: what was acknowledged is there, whatever wasn't synchronised.

`python -m tests.powercut.run --cuts 50 --seed 1`; with `--torn` a part of what wasn't synchronised survives, in no
order. `--synchronous NORMAL` is the control: it must lose some. The exit status says whether it came out as it must.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from chatserver.store import Record as Event
from chatserver.store.sqlite import SQLite
from tests.powercut.disk import Disk, Files, Record, check_log, read_files, read_log, write_files
from tests.powercut.writer import ROOMS, content, user
from tests.server import ROOT

DATABASE: Final = "chat.db"
LONGEST_SECONDS: Final = 0.8
"""From the moment at which a process opens the database to its end, at most. Short times are more frequent."""

FEWEST: Final = 20
"""Events that must be acknowledged for each cut; with fewer nothing is proved."""


@dataclass
class Figures:
    """What came out."""

    cuts: int = 0
    acknowledged: int = 0
    """Events, those not counted again that are acknowledged a second time."""
    missing: int = 0
    """Events that were acknowledged, or had been seen after an earlier cut."""
    checkpoints: int = 0
    opening: int = 0
    """Cuts before `open` returned, so in a start or a recovery."""
    committing: int = 0
    """Cuts with something in the WAL that wasn't synchronised."""
    checkpointing: int = 0
    """Cuts with something in the database that wasn't synchronised."""
    wrong: list[str] = field(default_factory=list)
    """Whatever must not be with any setting: holes, doubles, other content, half a batch, a damaged file."""

    def problems(self, *, lossy: bool) -> list[str]:
        """Why it isn't as it must be. `lossy`: the control, of which it must be seen that it loses some."""
        found = list(self.wrong)
        if self.acknowledged < FEWEST * self.cuts:
            found.append("too few were acknowledged")
        if not self.checkpoints:
            found.append("there was no checkpoint")
        if lossy and not self.missing:
            found.append("nothing is missing, so a loss can't be seen")
        if not lossy and self.missing:
            found.append(f"{self.missing} acknowledged events are missing")
        return found

    def __str__(self) -> str:
        return (
            f"{self.cuts} cuts ({self.opening} while opening, {self.committing} while committing, "
            f"{self.checkpointing} in a checkpoint), {self.checkpoints} checkpoints, "
            f"{self.acknowledged} acknowledged, {self.missing} missing, {len(self.wrong)} wrong"
        )


class Cuts:
    """One database that loses its power again and again."""

    def __init__(self, folder: Path, seed: int, synchronous: str | None = None, *, torn: bool = False) -> None:
        """`folder`: an empty directory. `synchronous`: for the control, instead of what the store has chosen."""
        self.figures = Figures()
        self.folder = folder.resolve()
        self.live = self.folder / "live"
        self.live.mkdir()
        self._library = build(self.folder)
        self._log = self.folder / "log"
        self._seed = seed
        self._synchronous = synchronous
        self._torn = torn
        self._chance = random.Random(f"cuts {seed}")
        self._epoch: str | None = None
        self._known: dict[str, tuple[str, int]] = {}
        """Where each event is that must be there, by key: room and offset."""

    async def cut(self) -> None:
        """One more: a process works for a moment, the power goes, and what is left is looked at."""
        before = read_files(self.live)
        records, said = await self.work(LONGEST_SECONDS * self._chance.random() ** 2)
        disk = Disk(before)
        disk.replay(records)
        check_log(disk, records, read_files(self.live))
        self._count(disk, said)
        self._learn(said)
        left = disk.left(self.survival())
        self._restart_with(left)
        await self._look(left)

    async def work(self, seconds: float, lines: int = 1) -> tuple[list[Record], list[Any]]:
        """Lets a process work until it said so many lines (with the first it opens the database), and so much longer.

        Returns what it did to its files, and what it said from the second line on.
        """
        self._log.unlink(missing_ok=True)
        process = await self._start()
        assert process.stdout
        try:
            first = [await process.stdout.readline() for _ in range(lines)]
            rest = asyncio.create_task(process.stdout.read())
            await asyncio.wait([rest], timeout=seconds)
            assert not rest.done(), "the writer ended by itself"
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
        said = (b"".join(first) + await rest).split(b"\n")[1:-1]  # behind the last line break is what was cut short
        return list(read_log(self._log.read_bytes())), [json.loads(line) for line in said]

    async def _start(self) -> asyncio.subprocess.Process:
        arguments = [str(self.live / DATABASE), str(self._seed), str(self.figures.cuts)]
        if self._synchronous:
            arguments.append(self._synchronous)
        # The path only, as for servers: the machine may be set up not to keep compiled modules.
        environ = {"PATH": os.environ["PATH"], "LD_PRELOAD": str(self._library)}
        environ |= {"FSYNCED_LOG": str(self._log), "FSYNCED_DIRECTORY": str(self.live)}
        command = [sys.executable, "-m", "tests.powercut.writer", *arguments]
        return await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environ, stdout=subprocess.PIPE)

    def survival(self) -> Callable[[], bool]:
        """Of each thing that wasn't synchronised, whether it survives the next cut."""
        share = self._chance.random() if self._torn else 0.0
        return lambda: self._chance.random() < share

    def _count(self, disk: Disk, said: list[Any]) -> None:
        figures, unsafe = self.figures, disk.unsafe()
        figures.cuts += 1
        figures.opening += not said
        figures.committing += f"{DATABASE}-wal" in unsafe
        figures.checkpointing += DATABASE in unsafe
        figures.checkpoints += disk.synchronised.count(DATABASE)

    def _learn(self, said: list[Any]) -> None:
        for line in said[:1]:
            self._expect(self._epoch in (None, line), "the epoch is another one")
            self._epoch = line
        for room, offset, key in (event for line in said[1:] for event in line):
            self.figures.acknowledged += key not in self._known
            known = self._known.setdefault(key, (room, offset))
            self._expect(known == (room, offset), f"{key} at {known} has been acknowledged at {(room, offset)}")

    def _restart_with(self, left: Files) -> None:
        shutil.rmtree(self.live)
        write_files(left, self.live)

    async def _look(self, left: Files) -> None:
        """At a copy: the next process itself has to recover what is left."""
        rooms, epoch = await look(left, self.folder / "copy")
        self._expect(self._epoch in (None, epoch), "the epoch is another one")
        for room, events in rooms.items():
            self._expect([event.offset for event in events] == list(range(1, len(events) + 1)), f"{room} has holes")
        every = [(room, event) for room, events in rooms.items() for event in events]
        found = {str(event.key): (room, event.offset) for room, event in every}
        self._expect(len(found) == len(every), "events are double")
        self._expect(all(_is_sound(event) for _, event in every), "events have another content")
        self._expect(_are_whole(found), "half of a batch is there")
        missing = self._known.keys() - found.keys()
        moved = [key for key in self._known.keys() & found.keys() if self._known[key] != found[key]]
        self._expect(not moved, f"{len(moved)} events are in another place")
        self.figures.missing += len(missing)
        self._known = found

    def _expect(self, holds: bool, problem: str) -> None:
        if not holds:
            self.figures.wrong.append(f"cut {self.figures.cuts}: {problem}")


async def look(left: Files, folder: Path) -> tuple[dict[str, list[Event]], str]:
    """Opens what a power cut left: the events of all rooms, and the epoch. Fails if the database is damaged.

    `folder` is made for it, and removed.
    """
    write_files(left, folder)
    store = SQLite(f"sqlite:///{folder / DATABASE}")
    try:
        await store.open()
        events = {room: await _read(store, room) for room in ROOMS}
    finally:
        await store.close()
    _check_integrity(folder / DATABASE)
    shutil.rmtree(folder)
    return events, store.epoch


async def _read(store: SQLite, room: str) -> list[Event]:
    events: list[Event] = []
    last = 0
    while page := await store.read(room, after=last, limit=2000):
        events += page
        last = page[-1].offset
    assert await store.top([room]) == {room: last}
    return events


def _check_integrity(path: Path) -> None:
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    finally:
        connection.close()


def _is_sound(event: Event) -> bool:
    key = str(event.key)
    return (event.user, event.data) == (user(key), content(key))


def _are_whole(keys: Iterable[str]) -> bool:
    """All of a batch is there, or nothing."""
    there = Counter(tuple(key.split()[:3]) for key in keys)
    return all(int(size) == number for (_, _, size), number in there.items())


def impossible() -> str:
    """Why power can't be cut here; empty if it can."""
    if sys.platform != "linux":
        return "LD_PRELOAD is for Linux"
    return "" if shutil.which("cc") else "there is no C compiler"


def build(folder: Path) -> Path:
    """Compiles `fsynced.c` to a library in `folder`."""
    library = folder / "fsynced.so"
    source = Path(__file__).with_name("fsynced.c")
    options = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread"]
    subprocess.run(["cc", *options, "-o", library, source], check=True, timeout=60)
    return library


async def first_start(cuts: Cuts) -> int:
    """Cuts a first start at each of its moments, up to the first acknowledgement and a little further.

    Fails if the database can't be opened afterwards, or if what was acknowledged isn't there at the end. Returns the
    number of moments.
    """
    records, said = await cuts.work(0, lines=3)
    for moment in range(len(records) + 1):
        disk = Disk({})
        disk.replay(records[:moment])
        rooms, _ = await look(disk.left(cuts.survival()), cuts.folder / "copy")
    there = {event.key for events in rooms.values() for event in events}
    assert {key for line in said[1:] for _, _, key in line} <= there
    return moment


async def run(folder: Path, cuts: int, seed: int, synchronous: str | None = None, *, torn: bool = False) -> Figures:
    """So many cuts, in an empty directory."""
    power = Cuts(folder, seed, synchronous, torn=torn)
    for _ in range(cuts):
        await power.cut()
    return power.figures


def main() -> int:
    """Runs it by hand. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--synchronous", choices=["NORMAL"], help="the control; default: as the store has it")
    parser.add_argument("--torn", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(run(Path(folder), **vars(options)))
    problems = figures.problems(lossy=bool(options.synchronous))
    variant = f"{options.synchronous or 'as the store has it'}{', torn' if options.torn else ''}, seed {options.seed}"
    print(f"{variant}: {figures}: {'FAILED: ' + '; '.join(problems[:5]) if problems else 'as it must be'}")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
