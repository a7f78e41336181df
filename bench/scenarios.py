"""What is done to a server."""

from dataclasses import dataclass, replace
from typing import Any

from bench.job import Dialect, Job
from bench.process import LOAD_CORES, SERVER_CORES

CURVE_CLIENTS = (100, 1000, 5000)
CURVE_DELIVERIES = 50_000
"""A second, in all, whatever the number of clients: about a third of a core for most servers."""

HEARTBEAT_SECONDS = 26
"""Every server that pings at all pings each client once in this time, with its defaults."""


@dataclass(frozen=True)
class Scenario:
    """A kind of load."""

    group: str
    clients: int
    rooms: int = 1
    publishers: int = 0
    window: int = 0
    rate: float = 0
    warmup: float = 0.5
    seconds: float = 1
    once: bool = False
    """In the first round only."""
    ours: bool = False
    """For our server only, and of that the plain one."""

    @property
    def name(self) -> str:
        """Unique."""
        return f"{self.group} {self.clients} {'idle' if not self.publishers else 'busy'}"

    def job(self, port: int, pid: int, dialect: Dialect) -> Job:
        """For the generator."""
        load: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("clients", "rooms", "publishers", "window", "rate", "warmup", "seconds")
        }
        return Job(port, pid, dialect, spin=LOAD_CORES != SERVER_CORES, **load)


FULL = [
    Scenario("saturate", clients=1000, publishers=10, window=4, warmup=1, seconds=5),
    Scenario("steady", clients=1000, publishers=50, rate=50, warmup=1, seconds=5),
    Scenario("idle", clients=5000),
    *(Scenario("curve", clients=count, seconds=HEARTBEAT_SECONDS, once=True) for count in CURVE_CLIENTS),
    *(
        Scenario("curve", clients=count, publishers=50, rate=CURVE_DELIVERIES / count, seconds=5, once=True)
        for count in CURVE_CLIENTS
    ),
    Scenario("rooms", clients=10_000, rooms=1000, publishers=10_000, rate=10_000, warmup=2, seconds=5, ours=True),
]

QUICK = [
    replace(FULL[0], clients=500, warmup=0.3, seconds=1),
    replace(FULL[1], clients=500, warmup=0.2, seconds=1.5),
    replace(FULL[2], clients=1000, warmup=0, seconds=0.1),
]
