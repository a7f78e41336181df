"""What the load generator is told, and what it tells: both go through a pipe as JSON."""

import json
from dataclasses import asdict, dataclass, field

from bench.frames import TEXT
from bench.stream import NO_FAULTS, Faults


@dataclass(frozen=True)
class Dialect:
    """How a server is spoken with on its WebSocket."""

    path: str = "/ws"
    hello: str = ""
    """What a client says first."""
    ready: str = ""
    """Is in the answer to it."""
    say: str = '{"type":2,"body":"%s"}'
    """A message; %s is its text, of `BODY_BYTES`."""
    opcode: int = TEXT
    """Of all frames. The bytes of binary ones stand in the fields above as Latin-1."""


@dataclass(frozen=True)
class Job:
    """One measurement of a server that listens on `port`."""

    port: int
    pid: int
    dialect: Dialect
    clients: int
    rooms: int = 1
    """1: all are where the server puts them. More: the clients are spread over rooms named `r0`, `r1`, ..."""
    publishers: int = 0
    """They are spread evenly over the clients. 0: everybody is idle."""
    window: int = 0
    """Messages that each publisher has in flight; 0: `rate` in all."""
    rate: float = 0
    warmup: float = 0.5
    seconds: float = 1
    spin: bool = True
    """Whether the generator never sleeps, so that the server never has to wake it up."""


@dataclass(frozen=True)
class Result:
    """Times in seconds, memory in bytes. Deliveries are those of the window, faults those of the whole run."""

    deliveries: int
    seconds: float
    cpu: float
    """Of the server's processes, user and system, in the window."""
    busy: float
    """Share of the window in which the generator had something to do."""
    connect_seconds: float
    memory: int
    """Growth while `grown_by` clients connected."""
    grown_by: int
    dropped: int = 0
    """Connections that the server ended."""
    faults: Faults = NO_FAULTS
    latencies: list[float] = field(default_factory=list)
    """p50 and p99; empty if nothing was said."""

    @property
    def sound(self) -> bool:
        """Whether nothing went wrong."""
        return not any(self.faults) and not self.dropped


def job_from(text: str) -> Job:
    """The other way round: `json.dumps(asdict(job))`."""
    given = json.loads(text)
    return Job(**given | {"dialect": Dialect(**given["dialect"])})


def result_from(text: str) -> Result:
    """The other way round: `dump`."""
    given = json.loads(text)
    return Result(**given | {"faults": Faults(*given["faults"])})


def dump(value: Job | Result) -> str:
    """As JSON."""
    return json.dumps(asdict(value))
