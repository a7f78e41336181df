"""The load generator, a process of its own: `python -m bench.generator` takes a job on stdin and prints its result.

Everything is one loop over epoll. Most members cost it a `recv` into one big buffer and a comparison of bytes.
"""

import resource
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import cycle

from bench.frames import masked, request
from bench.job import Job, Result, dump, job_from
from bench.stream import Faults, Follower, Listener, Room, Said, body
from bench.usage import cpu_seconds, rss_bytes

FIRST_CLIENTS = 50
"""They connect before the server's memory is looked at first: what it loads only once isn't theirs."""

CONNECTING = 64
"""Handshakes at a time."""

LISTENERS = 50
"""Members whose frames are looked at, each, for latencies."""

QUIET_SECONDS = 0.2
PATIENCE_SECONDS = 10
"""Without progress, while something is missing."""


class Connection:
    """One client. `feed` takes what it receives."""

    def __init__(self, job: Job, number: int) -> None:
        room = f"?room=r{number % job.rooms}" if job.rooms > 1 else ""
        self.sender = b"%05d" % number
        self.open = False
        self.ready = False
        self.ear: Listener | Follower = Listener()
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.connect_ex(("127.0.0.1", job.port))
        hello = job.dialect.hello.encode("latin-1")
        self._first = request(job.dialect.path + room, job.port) + (masked(job.dialect.opcode, hello) if hello else b"")
        self._sign = job.dialect.ready.encode("latin-1")
        self._greeting = b""

    def greet(self) -> None:
        """The connection is there."""
        self.open = True
        self.send(self._first)

    def be_greeted(self, data: bytes) -> None:
        """Takes the beginning of what the server sends."""
        self._greeting += data
        head, end, rest = self._greeting.partition(b"\r\n\r\n")
        if end and not head.startswith(b"HTTP/1.1 101"):
            raise SystemExit(f"the server said {head[:100]!r}")
        if end and self._sign in rest:
            self.ready = True
            self.ear.feed(rest)
            self._greeting = b""

    def send(self, data: bytes) -> None:
        """Little at a time: a server that doesn't even read that is none that can be measured."""
        if self.open and self.socket.send(data) != len(data):
            raise SystemExit("the server doesn't read what publishers send")


class Load:
    """All clients of one server."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.connections: dict[int, Connection] = {}
        self.said: Counter[bytes] = Counter()
        self.dropped = 0
        self.idle = 0.0
        """Seconds in which there was nothing to do."""
        self.last = time.perf_counter()
        """When something came."""
        self.latencies: list[float] = []
        self._opcode = job.dialect.opcode
        self._before, self._after = job.dialect.say.encode("latin-1").split(b"%s")
        self._since = sys.maxsize
        self._free = self.last
        self._epoll = select.epoll()
        self._buffer = bytearray(1 << 18)
        self._view = memoryview(self._buffer)
        self._on_own: Callable[[Connection], None] = lambda connection: None

    def connect(self, count: int) -> float:
        """Makes `count` more clients; returns how long it took."""
        started = time.perf_counter()
        waiting: set[Connection] = set()
        first = len(self.connections)
        for number in range(first, first + count):
            connection = Connection(self.job, number)
            waiting.add(connection)
            self.connections[connection.socket.fileno()] = connection
            self._epoll.register(connection.socket, select.EPOLLIN | select.EPOLLOUT)
            while len(waiting) >= (CONNECTING if number < first + count - 1 else 1):
                self._turn(0.1)
                waiting = {each for each in waiting if not each.ready}
                if time.perf_counter() - self.last > PATIENCE_SECONDS:
                    raise SystemExit(f"{len(waiting)} handshakes weren't answered")
        return time.perf_counter() - started

    def settle(self) -> None:
        """Waits until the server has nothing more to say."""
        self.last = started = time.perf_counter()
        while time.perf_counter() - self.last < QUIET_SECONDS and self.last - started < PATIENCE_SECONDS:
            self._turn(0.01)

    def begin(self) -> list[Connection]:
        """From now on everything counts; returns the publishers."""
        members = list(self.connections.values())
        publishers = (
            members[:: len(members) // self.job.publishers][: self.job.publishers] if self.job.publishers else []
        )
        listeners = {*members[:: max(1, len(members) // LISTENERS)]}
        if self.job.window:
            listeners |= {*publishers}
        rooms = [Room() for _ in range(self.job.rooms)]
        for number, connection in enumerate(members):
            connection.ear = Listener() if connection in listeners else Follower(rooms[number % self.job.rooms])
        return publishers

    def closed_loop(self, publishers: list[Connection], marks: Iterator[float]) -> None:
        """Each publisher has `window` messages in flight, until the last mark."""
        mine = {connection.sender for connection in publishers}
        self._on_own = lambda connection: self.say(connection) if connection.sender in mine else None
        for connection in publishers * self.job.window:
            self.say(connection)
        for mark in marks:
            while time.perf_counter() < mark:
                self._turn(mark - time.perf_counter())
        self._on_own = lambda connection: None

    def evenly(self, publishers: list[Connection], marks: Iterator[float]) -> None:
        """`rate` messages a second, of each publisher in turn, until the last mark."""
        turn = cycle(publishers)
        due = time.perf_counter()
        for mark in marks:
            while (now := time.perf_counter()) < mark:
                if now >= due:
                    self.say(next(turn))
                    due += 1 / self.job.rate
                self._turn(max(0.0, min(due, mark) - now))

    def wait(self, marks: Iterator[float]) -> None:
        """Nobody says anything."""
        for mark in marks:
            while (now := time.perf_counter()) < mark:
                self._turn(mark - now)

    def say(self, connection: Connection) -> None:
        """Sends the next message of a publisher."""
        text = body(connection.sender, self.said[connection.sender], _microseconds())
        connection.send(masked(self._opcode, self._before + text.encode() + self._after))
        self.said[connection.sender] += 1
        self._free = time.perf_counter()

    def heard(self) -> int:
        """Deliveries so far."""
        return sum(connection.ear.heard for connection in self.connections.values())

    def measure_latencies(self) -> None:
        """Of what is said from now on."""
        self._since = _microseconds()

    def drain(self) -> None:
        """Waits until everybody has heard everything, or nothing comes any more."""
        expected = sum(self.said.values()) * len(self.connections) // self.job.rooms
        heard, since = -1, time.perf_counter()
        while time.perf_counter() - since < PATIENCE_SECONDS and heard < expected and not self.dropped:
            self.wait(iter([time.perf_counter() + 0.05]))
            if self.heard() != heard:
                heard, since = self.heard(), time.perf_counter()
        self.settle()

    def faults(self) -> Faults:
        """Of all clients together."""
        rooms: list[Counter[bytes]] = [Counter() for _ in range(self.job.rooms)]
        for sender, count in self.said.items():
            rooms[int(sender) % self.job.rooms][sender] = count
        found = Faults()
        for number, connection in enumerate(self.connections.values()):
            found += connection.ear.faults(rooms[number % self.job.rooms])
        return found

    def _turn(self, seconds: float) -> None:
        """Does what is to be done, or waits for it."""
        events = self._epoll.poll(0 if self.job.spin else seconds, 1024)
        now = time.perf_counter()
        if events:
            self.last = now
        else:
            self.idle += now - self._free
        for fd, _ in events:
            connection = self.connections[fd]
            if not connection.open:
                self._epoll.modify(fd, select.EPOLLIN)
                connection.greet()
            else:
                self._receive(connection)
        self._free = time.perf_counter() if events else now

    def _receive(self, connection: Connection) -> None:
        try:
            size = connection.socket.recv_into(self._buffer)
        except ConnectionError:
            size = 0
        if not size:
            self.dropped += 1
            connection.open = False
            self._epoll.unregister(connection.socket)
        elif not connection.ready:
            connection.be_greeted(bytes(self._view[:size]))
        else:
            found = connection.ear.feed(self._view[:size])
            if found:
                self._note(connection, found)
            if connection.ear.answers:
                connection.send(b"".join(connection.ear.answers))
                connection.ear.answers.clear()

    def _note(self, connection: Connection, found: list[Said]) -> None:
        now = _microseconds()
        self.latencies += [(now - said.microseconds) / 1e6 for said in found if said.microseconds >= self._since]
        for said in found:
            if said.sender == connection.sender:
                self._on_own(connection)


def _microseconds() -> int:
    return time.monotonic_ns() // 1000


def run(job: Job) -> Result:
    """Does it all. Raises `SystemExit` if the server can't be measured."""
    load = Load(job)
    first = min(FIRST_CLIENTS, job.clients // 2)
    load.connect(first)
    load.settle()
    before = rss_bytes(job.pid)
    connect_seconds = load.connect(job.clients - first)
    load.settle()
    publishers = load.begin()
    window = Window(load)
    work = load.closed_loop if job.window else load.evenly
    work(publishers, window.marks()) if publishers else load.wait(window.marks())
    memory = rss_bytes(job.pid) - before
    load.drain()
    return Result(
        deliveries=window.deliveries,
        seconds=window.seconds,
        cpu=window.cpu,
        busy=1 - window.idle / window.seconds,
        connect_seconds=connect_seconds,
        memory=memory,
        grown_by=job.clients - first,
        dropped=load.dropped,
        faults=load.faults(),
        latencies=percentiles(load.latencies),
    )


class Window:
    """What happens between the end of the warm-up and the end of the measurement."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self.deliveries = 0
        self.seconds = self.cpu = self.idle = 0.0

    def marks(self) -> Iterator[float]:
        """When the generator has to come back: at the beginning of the window, and at its end."""
        yield time.perf_counter() + self._load.job.warmup
        self._load.measure_latencies()
        begin = self._now()
        yield time.perf_counter() + self._load.job.seconds
        end = self._now()
        self.seconds, self.cpu, self.idle, heard = (after - before for before, after in zip(begin, end, strict=True))
        self.deliveries = int(heard)

    def _now(self) -> tuple[float, float, float, float]:
        load = self._load
        return time.perf_counter(), cpu_seconds(load.job.pid), load.idle, load.heard()


def percentiles(values: list[float]) -> list[float]:
    """The 50th and the 99th."""
    values = sorted(values)
    return [values[len(values) * share // 100] for share in (50, 99)] if values else []


def main() -> None:
    """Prints the result."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(dump(run(job_from(sys.stdin.read()))))


if __name__ == "__main__":
    main()
