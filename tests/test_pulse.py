"""The pulse on a clock that tests push: what looks like minutes here takes no time."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest

from chatserver import pulse
from chatserver.client import Client
from chatserver.errors import ConnectionLost, Disconnect, GoingAway, NoPong, Slow
from chatserver.protocol import Codec
from chatserver.protocol.centrifuge import Json, Protobuf
from chatserver.pulse import TICK_SECONDS, Pulse
from tests.fakes import Clock, FakeTransport, make_client, stopped_clock, told, turns

HEARTBEAT = 25.0
WRITE = 10.0
STEP = TICK_SECONDS / 5
"""Of the clock: ticks are on time."""
LATE = TICK_SECONDS * 1.6
"""Of the clock: every tick is late."""


@pytest.fixture(autouse=True)
async def clock() -> AsyncIterator[Clock]:
    with stopped_clock() as clock:
        yield clock


class Ward:
    """Clients under a pulse, and what it did to them. Who is lost is removed, as by the pool."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.clients: set[Client] = set()
        self.lost: list[tuple[Client, Disconnect]] = []
        self.lost_at = 0.0
        self.pinged_at: dict[Client, list[float]] = {}
        self.busy = False
        """The pool's drain doesn't come."""

    def admit(self, transport: FakeTransport | None = None, codec: Codec | None = None) -> tuple[Client, FakeTransport]:
        transport = transport or FakeTransport()
        client = make_client(transport, codec, wake=self.wake)
        self.clients.add(client)
        self.pinged_at[client] = []
        return client, transport

    def wake(self, client: Client) -> None:
        """Stands in for the pool's drain, which notices pings."""
        if not client.parked and not self.busy:
            self.pinged_at[client].append(self.clock.now)
            client.serve()

    def lose(self, client: Client, end: Disconnect) -> None:
        self.clients.remove(client)
        self.lost.append((client, end))
        self.lost_at = self.clock.now

    @property
    def reasons(self) -> list[type[Disconnect]]:
        return [type(end) for _, end in self.lost]

    @contextlib.asynccontextmanager
    async def watched(self, heartbeat_seconds: float = HEARTBEAT, write_seconds: float = WRITE) -> AsyncIterator[None]:
        pulse = asyncio.create_task(Pulse(self.clients, heartbeat_seconds, write_seconds, self.lose).run())
        await turns()
        try:
            yield
        finally:
            pulse.cancel()
            await asyncio.wait([pulse])
            assert pulse.cancelled()


@pytest.fixture
def ward(clock: Clock) -> Ward:
    return Ward(clock)


# Lost connections, and those that end


async def test_a_lost_connection_is_found_within_a_second(ward: Ward, clock: Clock) -> None:
    client, transport = ward.admit()
    ward.admit()
    async with ward.watched():
        await clock.push(3, STEP)
        assert not ward.lost
        transport.lose()
        await clock.push(0.9, STEP)
        assert [client for client, _ in ward.lost] == [client]
        assert ward.reasons == [ConnectionLost]
        await clock.push(3, STEP)
    assert len(ward.lost) == 1


async def test_a_lost_connection_is_found_without_heartbeat_and_write_deadline(ward: Ward, clock: Clock) -> None:
    _, transport = ward.admit()
    async with ward.watched(0, 0):
        transport.lose()
        await clock.push(0.9, STEP)
    assert ward.reasons == [ConnectionLost]


async def test_a_lost_connection_is_found_by_a_late_tick_too(ward: Ward, clock: Clock) -> None:
    _, transport = ward.admit()
    async with ward.watched():
        transport.lose()
        await clock.push(LATE, LATE)
    assert ward.reasons == [ConnectionLost]


async def test_a_client_that_ends_is_found_with_its_own_reason(ward: Ward, clock: Clock) -> None:
    client, _ = ward.admit()
    async with ward.watched():
        end = GoingAway()
        client.disconnect(end)
        await clock.push(0.9, STEP)
    assert ward.lost == [(client, end)]


async def test_many_are_found_at_once(ward: Ward, clock: Clock) -> None:
    transports = [ward.admit()[1] for _ in range(50)]
    async with ward.watched():
        for transport in transports:
            transport.lose()
        await clock.push(0.9, STEP)
    assert ward.reasons == [ConnectionLost] * 50


async def test_a_few_of_many_are_cleared_away_in_a_turn(
    ward: Ward, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "ENDS_PER_TURN", 3)
    transports = [ward.admit()[1] for _ in range(8)]
    async with ward.watched():
        for transport in transports:
            transport.lose()
        clock.now += TICK_SECONDS
        while not ward.lost:
            await asyncio.sleep(0)
        assert len(ward.lost) == 3
        ward.clients.pop()  # goes by itself meanwhile, and isn't lost again
        await asyncio.sleep(0)
        assert len(ward.lost) <= 6
        await clock.push(0.1, STEP)
    assert ward.reasons == [ConnectionLost] * 7


# Heartbeats


async def test_a_client_that_answers_is_pinged_once_a_heartbeat(ward: Ward, clock: Clock) -> None:
    clients = [ward.admit()[0] for _ in range(20)]
    async with ward.watched():
        await clock.push(4 * HEARTBEAT, STEP)
    for client in clients:
        first, *others = ward.pinged_at[client]
        assert [round(at - first) for at in others] == [25, 50, 75]
    assert not ward.lost


@pytest.mark.parametrize("codec", [Json(), Protobuf()])
async def test_a_client_is_pinged_as_its_protocol_has_it(ward: Ward, clock: Clock, codec: Codec) -> None:
    _, transport = ward.admit(codec=codec)
    async with ward.watched():
        await clock.push(HEARTBEAT + 1, STEP)
    assert transport.wire in (codec.ping, 2 * codec.ping)  # when its first turn comes is chance


async def test_pings_are_spread_over_the_heartbeat(ward: Ward, clock: Clock) -> None:
    for _ in range(500):
        ward.admit()
    async with ward.watched():
        await clock.push(HEARTBEAT + TICK_SECONDS, STEP)
    moments = Counter(round(times[0], 1) for times in ward.pinged_at.values())
    assert max(moments.values()) < 250


async def test_a_short_heartbeat_is_kept_too(ward: Ward, clock: Clock) -> None:
    client, _ = ward.admit()
    async with ward.watched(0.4, 0):
        await clock.push(4, 0.02)
    assert 9 <= len(ward.pinged_at[client]) <= 10
    assert not ward.lost


async def test_a_heartbeat_is_never_shorter_than_asked_for(ward: Ward, clock: Clock) -> None:
    client, _ = ward.admit()
    async with ward.watched(heartbeat_seconds=25.4):
        await clock.push(3 * 26, STEP)
    first, second, *_ = ward.pinged_at[client]
    assert second - first > 25.4 - STEP


async def test_ticks_that_are_a_little_late_do_not_add_up(ward: Ward, clock: Clock) -> None:
    client, _ = ward.admit()
    async with ward.watched():
        await clock.push(4 * HEARTBEAT, TICK_SECONDS * 0.6)
    first, *_, last = ward.pinged_at[client]
    assert len(ward.pinged_at[client]) == 4
    assert abs(last - first - 3 * HEARTBEAT) < TICK_SECONDS


async def test_the_shortest_heartbeat_leaves_time_for_others(ward: Ward, clock: Clock) -> None:
    client, _ = ward.admit()
    async with ward.watched(0.001, 0.001):
        await clock.push(1, 0.001)
    assert 1 < len(ward.pinged_at[client]) <= 101


async def test_without_a_heartbeat_nobody_is_pinged_or_judged(ward: Ward, clock: Clock) -> None:
    _, transport = ward.admit()
    transport.answering = False
    async with ward.watched(heartbeat_seconds=0):
        await clock.push(300, STEP)
    assert not transport.written
    assert not ward.lost


async def test_a_silent_client_is_dead_a_heartbeat_after_a_ping(ward: Ward, clock: Clock) -> None:
    client, transport = ward.admit()
    transport.answering = False
    came = clock.now
    async with ward.watched():
        await clock.until(lambda: bool(ward.lost), 2 * HEARTBEAT + 1, STEP)
    assert [client for client, _ in ward.lost] == [client]
    assert ward.reasons == [NoPong]
    assert told(transport) == ["<ping >"]
    (pinged,) = ward.pinged_at[client]
    assert ward.lost_at - pinged > HEARTBEAT - STEP
    assert ward.lost_at - came < 2 * HEARTBEAT + 1


class Talker(FakeTransport):
    """Has something to say once; like the real one, it was heard if it was since the last time somebody asked."""

    def heard(self) -> bool:
        heard, self.answering = self.answering, False
        return heard


@pytest.mark.parametrize("after", [0.0, 10.0, 24.8])
async def test_a_client_that_falls_silent_is_dead_within_two_heartbeats(ward: Ward, clock: Clock, after: float) -> None:
    client, transport = ward.admit(Talker())
    async with ward.watched():
        await clock.until(lambda: bool(ward.pinged_at[client]), HEARTBEAT + 1, STEP)
        await clock.push(after, STEP)
        transport.answering = True
        spoke = clock.now
        await clock.until(lambda: bool(ward.lost), 2 * HEARTBEAT + 1, STEP)
    assert ward.reasons == [NoPong]
    assert ward.lost_at - spoke > HEARTBEAT - STEP
    assert ward.lost_at - ward.pinged_at[client][-1] > HEARTBEAT - STEP


async def test_one_sign_of_life_after_a_ping_is_enough(ward: Ward, clock: Clock) -> None:
    client, transport = ward.admit()
    transport.answering = False
    async with ward.watched():
        await clock.until(lambda: bool(ward.pinged_at[client]), HEARTBEAT + 1, STEP)
        transport.answering = True
        await clock.push(HEARTBEAT, STEP)
        transport.answering = False
        assert len(ward.pinged_at[client]) == 2
        await clock.push(HEARTBEAT - 2, STEP)
        assert not ward.lost
        await clock.push(3, STEP)
    assert ward.reasons == [NoPong]


async def test_the_silence_of_one_is_not_anothers(ward: Ward, clock: Clock) -> None:
    clients = [ward.admit() for _ in range(20)]
    for _, transport in clients[::2]:
        transport.answering = False
    async with ward.watched():
        await clock.push(3 * HEARTBEAT, STEP)
    assert {client for client, _ in ward.lost} == {client for client, _ in clients[::2]}


class Belated(FakeTransport):
    """Its pong is still in the socket when the pulse asks; loop, protocol and reader take a turn each to find it."""

    def heard(self) -> bool:
        heard, self.answering = self.answering, False
        if not heard:
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, loop.call_soon, self.read)
        return heard

    def read(self) -> None:
        self.answering = True
        asyncio.get_running_loop().call_later(1, self.forget)

    def forget(self) -> None:
        self.answering = False


async def test_a_pong_that_waits_in_the_socket_saves_its_client(ward: Ward, clock: Clock) -> None:
    transport = Belated()
    transport.answering = False
    client, _ = ward.admit(transport)
    async with ward.watched():
        await clock.push(4 * HEARTBEAT, STEP)
    assert not ward.lost
    assert len(ward.pinged_at[client]) == 4


class Leaver(FakeTransport):
    """Is gone in the turns after the pulse found it silent."""

    def __init__(self, leave: Callable[[], None]) -> None:
        super().__init__()
        self.leave = leave

    def heard(self) -> bool:
        asyncio.get_running_loop().call_soon(self.leave)
        return False


async def test_a_suspect_that_leaves_just_then_is_not_lost_again(ward: Ward, clock: Clock) -> None:
    def leave() -> None:
        if client.pinged and ward.clock.now > ward.pinged_at[client][0]:
            ward.clients.discard(client)

    client, _ = ward.admit(Leaver(leave))
    async with ward.watched():
        await clock.push(3 * HEARTBEAT, STEP)
    assert client not in ward.clients
    assert not ward.lost


# A stall of our own loop


async def test_late_ticks_call_nobody_dead(ward: Ward, clock: Clock) -> None:
    client, transport = ward.admit()
    transport.answering = False
    async with ward.watched():
        await clock.push(20 * HEARTBEAT, LATE)
        assert not ward.lost
        assert len(ward.pinged_at[client]) > 2
        await clock.push(2 * HEARTBEAT + 1, STEP)
    assert ward.reasons == [NoPong]
    assert ward.lost_at - ward.pinged_at[client][-1] > HEARTBEAT - STEP


async def test_one_late_tick_at_the_moment_of_judgement_gives_another_heartbeat(ward: Ward, clock: Clock) -> None:
    client, transport = ward.admit()
    transport.answering = False
    async with ward.watched():
        await clock.until(lambda: bool(ward.pinged_at[client]), HEARTBEAT + 1, STEP)
        await clock.push(HEARTBEAT - STEP, STEP)
        await clock.push(LATE, LATE)
        assert not ward.lost
        assert len(ward.pinged_at[client]) == 2
        await clock.push(HEARTBEAT - 1, STEP)
        assert not ward.lost
        await clock.push(2, STEP)
    assert ward.reasons == [NoPong]


async def test_late_ticks_call_nobody_slow(ward: Ward, clock: Clock) -> None:
    client, transport = ward.admit()
    transport.buffered = 1000
    client.park()
    async with ward.watched():
        await clock.push(20 * WRITE, LATE)
        assert not ward.lost
        await clock.push(WRITE - 1, STEP)
        assert not ward.lost
        await clock.push(2, STEP)
    assert ward.reasons == [Slow]


# Clients that do not read


@pytest.mark.parametrize("buffered", [0, 1, 100_000])
async def test_a_parked_client_without_progress_is_slow_at_the_write_deadline(
    ward: Ward, clock: Clock, buffered: int
) -> None:
    client, transport = ward.admit()
    ward.admit()
    transport.buffered = buffered
    async with ward.watched():
        client.park()
        await clock.push(WRITE - STEP, STEP)
        assert not ward.lost
        await clock.push(1 + STEP, STEP)
    assert [client for client, _ in ward.lost] == [client]
    assert ward.reasons == [Slow]


async def test_a_parked_client_with_progress_stays_until_it_stops(ward: Ward, clock: Clock) -> None:
    client, transport = ward.admit()
    transport.buffered = 1000
    async with ward.watched():
        client.park()
        for _ in range(20):
            transport.buffered -= 1
            await clock.push(WRITE - 1, STEP)
        assert not ward.lost
        await clock.push(2, STEP)
    assert ward.reasons == [Slow]


async def test_without_a_write_deadline_a_parked_client_stays(ward: Ward, clock: Clock) -> None:
    client, _ = ward.admit()
    client.park()
    async with ward.watched(write_seconds=0):
        await clock.push(300, STEP)
    assert not ward.lost


async def test_the_write_deadline_starts_anew_each_time_a_client_is_parked(ward: Ward, clock: Clock) -> None:
    client, transport = ward.admit()
    transport.buffered = 1000
    async with ward.watched(heartbeat_seconds=0):
        for _ in range(5):
            client.park()
            await clock.push(WRITE - 1, STEP)
            await client.drain()
            await clock.push(1, STEP)
        assert not ward.lost


async def test_a_short_write_deadline_is_kept_too(ward: Ward, clock: Clock) -> None:
    client, _ = ward.admit()
    async with ward.watched(0, 0.4):
        client.park()
        await clock.push(0.38, 0.02)
        assert not ward.lost
        await clock.push(0.22, 0.02)
    assert ward.reasons == [Slow]


async def test_a_parked_client_is_not_judged_by_its_silence(ward: Ward, clock: Clock) -> None:
    client, transport = ward.admit()
    transport.answering = False
    client.park()
    async with ward.watched():
        for count in range(30):
            transport.buffered = count
            await clock.push(5, STEP)
    assert not transport.written
    assert not ward.lost


async def test_a_client_that_was_parked_is_pinged_before_it_is_judged(ward: Ward, clock: Clock) -> None:
    client, transport = ward.admit()
    transport.answering = False
    async with ward.watched(write_seconds=0):
        await clock.until(lambda: bool(ward.pinged_at[client]), HEARTBEAT + 1, STEP)
        client.park()
        await clock.push(2 * HEARTBEAT, STEP)
        await client.drain()
        ward.pinged_at[client].clear()
        await clock.until(lambda: bool(ward.lost), 2 * HEARTBEAT + 1, STEP)
    assert ward.lost_at - ward.pinged_at[client][0] > HEARTBEAT - STEP


async def test_a_ping_that_was_held_back_counts_from_when_it_was_sent(ward: Ward, clock: Clock) -> None:
    """The client is parked before the pool's drain takes the ping, and reads again just before its next beat."""
    client, transport = ward.admit()
    transport.answering = False
    ward.busy = True
    async with ward.watched(write_seconds=0):
        await clock.until(lambda: client.pinged, HEARTBEAT + 1, STEP)
        transport.paused = True
        client.park()
        drain = asyncio.create_task(client.drain())
        await clock.push(HEARTBEAT - 1, STEP)
        assert not transport.written
        transport.resume()
        await drain
        assert told(transport) == ["<ping >"]
        await clock.push(2, STEP)
        assert not ward.lost
