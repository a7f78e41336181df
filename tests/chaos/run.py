"""A server that is killed and restarted, clients that are cut off and come back; then every promise is checked.

`python -m tests.chaos.run --seconds 12 --seed 1`, or `--minutes 30`; `--store postgresql` for that store, whose server
has its share of trouble, too. The exit status is 1 if a promise was broken, or if too little happened to prove one.
"""

import argparse
import asyncio
import contextlib
import itertools
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import aiohttp

from tests.chaos.client import Client, Record, messages, top
from tests.chaos.history import History, Stored, check
from tests.chaos.subscriber import SECRET, Subscriber
from tests.postgres import Postgres
from tests.raw import RawClient
from tests.server import Server

ROOMS: Final = ("red", "green", "blue")
CLIENTS: Final = 20
KEYED: Final = 6
"""So many of them publish over HTTP."""

SUBSCRIBERS: Final = 8
"""So many speak the Centrifuge protocol, the others the simple one; half of these publish with keys."""

VISITS: Final = ((None, 0), (None, 1), (None, 250), (None, 1000), (0, 0), (1, 0))
"""What newcomers ask for in the end: what came after an offset, or the last ones."""

QUIET_SECONDS: Final = 30
"""In the end everybody has everything by then, and long before."""

SHORT_SECONDS: Final = 60
"""A run of less is mostly starts."""

EXTRA_SECONDS: Final = 60
"""So much longer goes a run on at most, on a slow machine, until enough has happened."""

TROUBLES: Final = "troubles of PostgreSQL"

_SHOWN: Final = 20


@dataclass(frozen=True)
class Outcome:
    """What happened."""

    seconds: float
    counts: Counter[str]
    """Of kills, cuts and so on."""
    history: History
    wrong: list[str]
    """Broken promises."""

    def problems(self) -> list[str]:
        """What is wrong, and of what there was too little."""
        few = lacking(self.counts, self.seconds)
        return self.wrong + [f"too few {name}: {self.counts[name]}" for name in few]

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        return f"{self.seconds:.0f} s: {counts}, {len(self.wrong)} violations"


def demands(seconds: float) -> dict[str, int]:
    """How much has to happen at least, beside one of each: in 30 minutes 100 kills and 300,000 acknowledgements."""
    if seconds < SHORT_SECONDS:
        return {"kills": int(seconds / 5), "cuts": int(seconds), "resumes": int(seconds), "acks": int(40 * seconds)}
    return {"kills": int(seconds / 18), "cuts": int(seconds), "resumes": int(seconds), "acks": int(seconds * 500 / 3)}


def lacking(counts: Counter[str], seconds: float) -> list[str]:
    """Of what there was too little in a run of so long."""
    least = demands(seconds)
    return [name for name, count in counts.items() if count < least.get(name, 1)]


class Run:
    """One server with its clients, in a folder. All that is left to chance follows from `seed`."""

    def __init__(self, folder: Path, seconds: float, seed: int, postgres: Postgres | None = None) -> None:
        self.server = Server(folder)
        self.record = Record()
        self.counts: Counter[str] = Counter(kills=0, cuts=0)
        if postgres:
            self.counts[TROUBLES] = 0
        self._seconds = seconds
        self._seed = seed
        self._postgres = postgres
        self._store = postgres.url() if postgres else f"sqlite:///{folder}/chat.db"
        self._clients: list[Client] = []
        self._visitors: list[Client] = []

    async def run(self) -> Outcome:
        """Lets it happen, and checks. Leaves no server behind, and PostgreSQL at work."""
        try:
            await asyncio.to_thread(self._start)
            async with aiohttp.ClientSession(f"http://127.0.0.1:{self.server.port}") as http:
                await self._live(http)
                await self._read_history(http)
        finally:
            self.server.kill()
            if self._postgres:
                self._postgres.start()
        return self._outcome()

    # --- what happens ------------------------------------------------------------------------------------------------

    async def _live(self, http: aiohttp.ClientSession) -> None:
        self._clients = [self._client(f"client{number}", number, http) for number in range(CLIENTS)]
        listening = [asyncio.create_task(client.listen()) for client in self._clients]
        speaking = [asyncio.create_task(client.speak()) for client in self._clients]
        cutting = asyncio.create_task(self._cut())
        try:
            await self._kill()
            cutting.cancel()
            self.record.quiet.set()
            await self._settle(http, speaking)
        finally:
            await _end([*listening, *speaking, cutting])

    def _client(self, name: str, number: int, http: aiohttp.ClientSession) -> Client:
        room = ROOMS[number % len(ROOMS)]
        subscriber = CLIENTS - SUBSCRIBERS <= number < CLIENTS
        keyed = number < KEYED or (subscriber and number >= CLIENTS - SUBSCRIBERS // 2)
        kind = Subscriber if subscriber else Client
        return kind(name, room, self.server.port, self.record, http, self._random(name), keyed=keyed)

    def _random(self, name: str) -> Random:
        return Random(f"{self._seed} {name}")

    async def _cut(self) -> None:
        """Cuts connections, one after the other; sometimes all of them."""
        random = self._random("cuts")
        while True:
            await asyncio.sleep(random.uniform(0, 0.3))
            victims = self._clients if random.random() < 0.02 else [random.choice(self._clients)]
            self.counts["cuts"] += sum(client.cut() for client in victims)

    async def _kill(self) -> None:
        """Makes trouble for as long as it takes."""
        random = self._random("kills")
        troubles = itertools.cycle(random.sample(["stop", "kill", "suspend"], 3))
        end = time.monotonic() + self._seconds
        while (left := end - time.monotonic()) > 0 or (left > -EXTRA_SECONDS and self._lacking()):
            long = random.random() < 0.05
            pause = random.uniform(2, 40) if long and left > 60 else random.uniform(0.2, 2)
            await asyncio.sleep(min(left, pause) if left > 0 else pause)
            if self._postgres and random.random() < 0.5:
                await asyncio.to_thread(self._trouble, self._postgres, next(troubles), random)
            else:
                await asyncio.to_thread(self._restart, random)

    def _lacking(self) -> list[str]:
        self._count()
        return lacking(self.counts, self._seconds)

    def _restart(self, random: Random) -> None:
        if random.random() < 0.4:
            self._terminate()
        else:
            self.server.kill()
        self.counts["kills"] += 1
        if random.random() < 0.15:  # again, while it starts
            self._start(wait=False)
            time.sleep(random.uniform(0, 1))
            self.server.kill()
            self.counts["kills"] += 1
        self._start()

    def _terminate(self) -> None:
        status = self.server.stop(signal.SIGTERM)
        if status != 0:
            self.record.problems.append(f"exit status {status} after SIGTERM")

    def _start(self, *, wait: bool = True) -> None:
        self.server.start(
            wait=wait,
            STORE_URL=self._store,
            LOG_LEVEL="warn",
            RATE_LIMIT="0",
            TOKEN_HMAC_SECRET=SECRET,
            ANONYMOUS="on",
        )

    def _trouble(self, postgres: Postgres, trouble: str, random: Random) -> None:
        getattr(postgres, trouble)()
        self.counts[TROUBLES] += 1
        time.sleep(random.choice([0, 0.1, 0.5, 3, 6] if self._seconds >= SHORT_SECONDS else [0, 0.1, 0.5, 3]))
        postgres.start()

    # --- how it ends -------------------------------------------------------------------------------------------------

    async def _settle(self, http: aiohttp.ClientSession, speaking: list[asyncio.Task[None]]) -> None:
        """Returns when all have said and heard everything, and visitors, too."""
        visiting: list[asyncio.Task[None]] = []
        try:
            async with asyncio.timeout(QUIET_SECONDS):
                await asyncio.gather(*speaking)
                tops: dict[str, int] = {}
                while tops != (tops := await self._tops(http)) or not self._level(tops):
                    await asyncio.sleep(1.5)  # longer than it takes until rooms are compared with the store
                visiting = self._visit(http)
                while not all(visitor.live and visitor.live.joined for visitor in self._visitors):
                    await asyncio.sleep(0.1)
        except TimeoutError:
            self.record.problems.append(f"not quiet after {QUIET_SECONDS} s")
        for client in [*self._clients, *self._visitors]:
            if client.live:
                client.live.to_end = True
            else:
                self.record.problems.append(f"{client.name} isn't connected in the end")
        await _end(visiting)

    def _visit(self, http: aiohttp.ClientSession) -> list[asyncio.Task[None]]:
        """While nobody speaks it is known exactly what a newcomer is to be told."""
        visiting = []
        for number, (after, last) in enumerate(VISITS * len(ROOMS)):
            visitor = self._client(f"visitor{number}", number // len(VISITS), http)
            self._visitors.append(visitor)
            visiting.append(asyncio.create_task(visitor.visit(after=after, last=last)))
        return visiting

    async def _tops(self, http: aiohttp.ClientSession) -> dict[str, int]:
        return {room: (await top(http, room))[1] for room in ROOMS}

    def _level(self, tops: dict[str, int]) -> bool:
        return all(client.live and client.position in (None, tops[client.room]) for client in self._clients)

    async def _read_history(self, http: aiohttp.ClientSession) -> None:
        """After a last crash: what is there then is what the server keeps."""
        await asyncio.to_thread(self.server.kill)
        await asyncio.to_thread(self._start)
        for room in ROOMS:
            self.record.history.rooms[room] = [
                Stored(message["offset"], message["user"], message["data"]["body"], message["key"])
                for message in await messages(http, room)
            ]

    def _outcome(self) -> Outcome:
        self._count()
        history = self.record.history
        wrong = [str(violation) for violation in check(history)]
        return Outcome(self._seconds, self.counts, history, wrong + self.record.problems + list(self._log_problems()))

    def _count(self) -> None:
        history = self.record.history
        self.counts["resumes"] = self.record.resumes
        self.counts["sends"] = len(history.sends)
        self.counts["acks"] = len({ack.id for ack in history.acks})
        self.counts["receipts"] = history.receipts

    def _log_problems(self) -> Iterator[str]:
        for line in self.server.stderr.splitlines():
            if '"traceback"' in line or not line.startswith("{"):
                yield f"the server's log: {line}"


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    """Cancels them. Raises what one of them died of."""
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result


async def _by_hand(folder: Path, seconds: float, seed: int, postgres: Postgres | None) -> Outcome:
    try:
        return await Run(folder, seconds, seed, postgres).run()
    finally:
        await RawClient.clean_up()


def main() -> int:
    """Runs it by hand. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=12)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", choices=["sqlite", "postgresql"], default="sqlite")
    options = parser.parse_args()
    seconds = options.minutes * 60 if options.minutes else options.seconds
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        postgres = stack.enter_context(Postgres()) if options.store == "postgresql" else None
        outcome = asyncio.run(_by_hand(Path(folder), seconds, options.seed, postgres))
    problems = outcome.problems()
    print(f"{options.store} seed={options.seed}: {outcome}: {'FAILED' if problems else 'all promises kept'}")
    print("\n".join(problems[:_SHOWN]), file=sys.stderr)
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
