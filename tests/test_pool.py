"""The pool with its drain and pulse, on transports and a clock that tests control."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chatserver import frames
from chatserver.client import WRITE_BYTES, Client
from chatserver.errors import ChatError, ConnectionLost, GoingAway, PolicyViolation, ServiceRestart, Slow
from chatserver.feed import Feed
from chatserver.message import Event, Joined, Left, Message, Notice
from chatserver.pool import TURNS, Closed, Pool
from chatserver.protocol import Codec, Simple
from tests.fakes import PATIENT, Clock, FakeTransport, make_client, stopped_clock, told, turns

CODEC = Simple()
MOMENT = 0.06
"""More than the longest pause between two flushes."""
QUEUE_BYTES = 1 << 20


@pytest.fixture
async def clock() -> AsyncIterator[Clock]:
    with stopped_clock() as clock:
        yield clock


@contextlib.asynccontextmanager
async def running(
    queue_bytes: int = QUEUE_BYTES, heartbeat_seconds: float = 0, write_seconds: float = 0
) -> AsyncIterator[Pool]:
    pool = Pool(
        queue_bytes=queue_bytes,
        heartbeat_seconds=heartbeat_seconds,
        write_seconds=write_seconds,
        plugin_seconds=0.5,
    )
    await pool.start()
    try:
        yield pool
    finally:
        await pool.stop()


@pytest.fixture
async def pool(clock: Clock) -> AsyncIterator[Pool]:
    async with running() as pool:
        yield pool


async def enter(pool: Pool, user: str = "alice", codec: Codec = CODEC) -> tuple[Client, FakeTransport]:
    """A client that came in."""
    transport = FakeTransport()
    client = make_client(transport, codec, user=user, queue_bytes=pool.queue_bytes, wake=pool.wake)
    await pool.add(client)
    return client, transport


async def enter_level(pool: Pool, clock: Clock, count: int) -> list[tuple[Client, FakeTransport]]:
    """Clients that came in some time ago."""
    found = [await enter(pool, f"user{number}") for number in range(count)]
    await clock.push(MOMENT)
    return found


def say(pool: Pool, *bodies: str) -> None:
    for body in bodies:
        pool.broadcast(Message("alice", body))


class Broken(Simple):
    """A codec that works until it is told not to."""

    encoding = True
    joining = True

    def encode(self, event: Event) -> bytes:
        if not self.encoding:
            raise ZeroDivisionError("encode")
        return super().encode(event)

    def join(self, pieces: Sequence[bytes]) -> bytes:
        if not self.joining:
            raise ZeroDivisionError("join")
        return super().join(pieces)


# Broadcast


async def test_everybody_is_told_what_is_broadcast_the_sender_included(pool: Pool, clock: Clock) -> None:
    members = await enter_level(pool, clock, 5)
    say(pool, "a", "b")
    await clock.push(MOMENT)
    for _, transport in members:
        assert told(transport) == ["a", "b"]


async def test_the_first_message_goes_out_at_once_and_the_next_ones_together(pool: Pool, clock: Clock) -> None:
    ((_, transport),) = await enter_level(pool, clock, 1)
    say(pool, "first")
    await turns()
    assert told(transport) == ["first"]
    for body in "abc":
        say(pool, body)
        await turns()
    assert told(transport) == ["first"]
    await clock.push(MOMENT)
    assert told(transport) == ["first", "a", "b", "c"]
    assert len(transport.written) == 2


async def test_an_event_is_encoded_once_for_all_who_speak_the_codec(pool: Pool, clock: Clock) -> None:
    codec = Simple()
    with mock.patch.object(codec, "encode", wraps=codec.encode) as encode:
        for _ in range(5):
            await enter(pool, codec=codec)
        say(pool, "a")
        await clock.push(MOMENT)
    assert encode.call_count == 1


async def test_codecs_do_not_get_in_each_others_way(pool: Pool, clock: Clock) -> None:
    class Shouting(Simple):
        def encode(self, event: Event) -> bytes:
            assert isinstance(event, Message)
            return super().encode(Message(event.user, (event.body or "").upper()))

    members = [await enter(pool, codec=codec) for codec in (Simple(), Shouting())]
    say(pool, "a", "b")
    await clock.push(MOMENT)
    assert [told(transport) for _, transport in members] == [["a", "b"], ["A", "B"]]


async def test_a_newcomer_is_told_what_comes_after_it(pool: Pool, clock: Clock) -> None:
    ((_, old),) = await enter_level(pool, clock, 1)
    say(pool, "before")
    _, new = await enter(pool, "bob")
    say(pool, "after")
    await clock.push(MOMENT)
    assert told(old) == ["before", "after"]
    assert told(new) == ["after"]


async def test_nobody_is_no_problem(pool: Pool, clock: Clock) -> None:
    say(pool, "a")
    client, _ = await enter(pool)
    pool.remove(client)
    say(pool, "b")
    await pool.settle()
    await clock.push(MOMENT)
    _, transport = await enter(pool)
    await clock.push(MOMENT)
    assert told(transport) == []


async def test_nothing_is_encoded_for_a_codec_that_nobody_speaks_any_more(pool: Pool, clock: Clock) -> None:
    codec = Simple()
    client, _ = await enter(pool, codec=codec)
    pool.remove(client)
    with mock.patch.object(codec, "encode", wraps=codec.encode) as encode:
        say(pool, "a")
    assert encode.call_count == 0


async def test_an_event_for_one_keeps_its_place_among_those_for_all(pool: Pool, clock: Clock) -> None:
    (alice, bob) = await enter_level(pool, clock, 2)
    say(pool, "1")
    alice[0].enqueue(Notice("for alice"))
    say(pool, "2")
    bob[0].enqueue(Notice("for bob"))
    await clock.push(MOMENT)
    assert told(alice[1]) == ["1", "for alice", "2"]
    assert told(bob[1]) == ["1", "2", "for bob"]


async def test_who_is_answered_hears_it_in_one_write_with_what_everybody_hears(pool: Pool, clock: Clock) -> None:
    members, audience = await enter_level(pool, clock, 4), pool.audience()
    for client, _ in members:
        audience.join(client)
    audience.broadcast(Message("alice", "a"))
    for client, _ in members[::2]:
        audience.answer(client, CODEC.encode(Notice("stored")))
    audience.broadcast(Message("alice", "b"))
    await clock.push(MOMENT)
    assert [told(transport) for _, transport in members] == [["a", "b", "stored"], ["a", "b"]] * 2
    assert [len(transport.written) for _, transport in members] == [1] * 4


async def test_a_broadcast_bigger_than_a_write_is_cut_and_arrives_in_order(pool: Pool, clock: Clock) -> None:
    members = await enter_level(pool, clock, 2)
    members[1][0].enqueue(Notice("private"))
    bodies = [f"{number:02}" + "x" * 20_000 for number in range(30)]
    say(pool, *bodies)
    await clock.push(1)
    assert told(members[0][1]) == bodies
    assert told(members[1][1]) == ["private", *bodies]
    for _, transport in members:
        assert max(map(len, transport.written)) < WRITE_BYTES + 20_100
        assert len(transport.written) > 3


async def test_a_pong_goes_out_at_once(pool: Pool, clock: Clock) -> None:
    ((client, transport),) = await enter_level(pool, clock, 1)
    client.control(frames.pong(b"hi"))
    await turns()
    assert told(transport) == ["<pong hi>"]


# Clients that do not read


async def test_a_paused_client_gets_all_when_it_reads_again(pool: Pool, clock: Clock) -> None:
    (slow, other) = await enter_level(pool, clock, 2)
    slow[1].pause_after = 1
    bodies = [str(number) for number in range(20)]
    for body in bodies:
        say(pool, body)
        await clock.push(MOMENT)
    slow[0].enqueue(Notice("private"))
    say(pool, "later")
    assert told(slow[1]) == ["0"]
    slow[1].resume()
    await clock.push(MOMENT)
    say(pool, "last")
    await clock.push(MOMENT)
    assert told(slow[1]) == [*bodies, "private", "later", "last"]
    assert told(other[1]) == [*bodies, "later", "last"]


async def test_a_client_that_pauses_while_it_is_served_alone_is_parked(pool: Pool, clock: Clock) -> None:
    ((client, transport),) = await enter_level(pool, clock, 1)
    transport.pause_after = 1
    client.enqueue(Notice("private"))
    await clock.push(MOMENT)
    assert client.parked
    say(pool, "a")
    client.enqueue(Notice("b"))
    await clock.push(MOMENT)
    assert told(transport) == ["private"]
    transport.resume()
    await clock.push(MOMENT)
    say(pool, "c")
    await clock.push(MOMENT)
    assert told(transport) == ["private", "a", "b", "c"]
    assert not client.parked


async def test_a_client_that_stays_paused_is_disconnected_and_the_others_lose_nothing(clock: Clock) -> None:
    async with running(queue_bytes=200_000) as pool:
        members = await enter_level(pool, clock, 4)
        slow, transport = members[1]
        transport.pause_after = 1
        bodies = [f"{number:02}" + "x" * 10_000 for number in range(30)]
        for body in bodies:
            say(pool, body)
            await clock.push(MOMENT)
        assert isinstance(slow.ending, Slow)
        assert told(transport) == [bodies[0], "<close 3008 slow>"]
        transport.resume()
        await clock.push(MOMENT)
        assert told(transport) == [bodies[0], "<close 3008 slow>"]
        for client, other in members:
            if client is not slow:
                assert told(other) == bodies
                assert client.ending is None


async def test_a_client_may_be_behind_by_as_much_as_is_kept(clock: Clock) -> None:
    size = len(CODEC.encode(Notice("x" * 100)))
    async with running(queue_bytes=10 * size) as pool:
        ((client, transport),) = await enter_level(pool, clock, 1)
        transport.pause_after = 1
        for _ in range(11):
            say(pool, "x" * 100)
            await clock.push(MOMENT)
        assert client.ending is None
        say(pool, "x" * 100)
        await clock.push(MOMENT)
        assert isinstance(client.ending, Slow)


async def test_a_paused_client_that_is_told_too_much_alone_is_disconnected(clock: Clock) -> None:
    async with running(queue_bytes=10_000) as pool:
        ((client, transport),) = await enter_level(pool, clock, 1)
        transport.pause_after = 1
        say(pool, "held")
        await clock.push(MOMENT)
        for _ in range(20):
            client.enqueue(Notice("x" * 1000))
        await clock.push(MOMENT)
        assert told(transport) == ["held", "<close 3008 slow>"]


@pytest.mark.parametrize("way", ["newcomer", "answered"])
async def test_a_client_that_reads_is_not_slow_however_much_is_flushed_at_once(clock: Clock, way: str) -> None:
    """The bound is small, but the transport takes all that it is given."""
    bodies = [f"{number:02}" + "x" * 1000 for number in range(50)]
    async with running(queue_bytes=20_000) as pool:
        ((old, transport),) = await enter_level(pool, clock, 1)
        client, transport = await enter(pool, "bob") if way == "newcomer" else (old, transport)
        if way == "answered":
            client.enqueue(Notice("answer"))
        say(pool, *bodies)
        await clock.push(MOMENT)
        assert client.ending is None
        assert told(transport)[-50:] == bodies


async def test_a_client_that_reads_is_not_slow_because_of_what_waits_for_the_flush(clock: Clock) -> None:
    """The bound is small, and an answer comes while the feed hasn't been flushed; its transport is idle."""
    bodies = [f"{number:02}" + "x" * 1000 for number in range(50)]
    async with running(queue_bytes=20_000) as pool:
        ((client, transport),) = await enter_level(pool, clock, 1)
        say(pool, *bodies)
        client.enqueue(Notice("answer"))
        await clock.push(MOMENT)
        assert client.ending is None
        assert told(transport) == [*bodies, "answer"]


async def test_the_drain_has_no_work_with_a_client_that_was_lost_while_paused(pool: Pool, clock: Clock) -> None:
    """A lost connection never says that it takes data again; asyncio's and aiohttp's `paused` stay true."""
    transport = FakeTransport()
    woken: list[Client] = []

    def wake(client: Client) -> None:
        woken.append(client)
        pool.wake(client)

    client = make_client(transport, CODEC, wake=wake)
    await pool.add(client)
    transport.pause_after = 1
    say(pool, "a")
    await clock.push(MOMENT)
    assert client.parked
    transport.abort()
    await clock.push(2)
    assert client not in pool.clients
    woken.clear()
    await clock.push(1)
    assert len(woken) <= 1


# Publishers


async def test_room_does_not_wait_while_little_is_pending(pool: Pool, clock: Clock) -> None:
    await enter_level(pool, clock, 1)
    await asyncio.wait_for(pool.settle(), 1)
    say(pool, "x" * (WRITE_BYTES // 2))
    waiting = asyncio.create_task(pool.settle())
    await asyncio.sleep(0)
    assert waiting.done()


async def test_room_holds_publishers_until_enough_is_flushed(pool: Pool, clock: Clock) -> None:
    ((_, transport),) = await enter_level(pool, clock, 1)
    bodies = [f"{number:02}" + "x" * 50_000 for number in range(20)]
    say(pool, *bodies)
    publishers = [asyncio.create_task(pool.settle()) for _ in range(3)]
    await turns()
    assert not any(publisher.done() for publisher in publishers)
    await clock.until(publishers[0].done, 1)
    assert all(publisher.done() for publisher in publishers)
    assert len(transport.wire) >= 20 * 50_000 - WRITE_BYTES
    await clock.push(MOMENT)
    assert told(transport) == bodies


async def test_room_keeps_what_is_pending_small(pool: Pool, clock: Clock) -> None:
    ((_, transport),) = await enter_level(pool, clock, 1)
    said = 0

    async def publish() -> None:
        nonlocal said
        for _ in range(10):
            await pool.settle()
            say(pool, "x" * 10_000)
            said += 10_000

    publishers = [asyncio.create_task(publish()) for _ in range(20)]
    for _ in range(100):
        await clock.push(0.01)
        assert said - len(transport.wire) < 2 * WRITE_BYTES
    assert all(publisher.done() for publisher in publishers)
    assert len(told(transport)) == 200


# Coming and going


async def test_receivers_are_told_in_order_of_who_came_and_who_went(pool: Pool, clock: Clock) -> None:
    diary: list[str] = []

    def receiver(name: str) -> Callable[[Client], Awaitable[None]]:
        async def receive(client: Client) -> None:
            diary.append(f"{name} {client.user}")

        return receive

    pool.on_connect += [receiver("came"), receiver("greeted")]
    pool.on_disconnect += [receiver("went"), receiver("missed")]
    client, _ = await enter(pool)
    assert diary == ["came alice", "greeted alice"]
    assert pool.clients == {client}
    pool.remove(client)
    assert not pool.clients
    await turns()
    assert diary == ["came alice", "greeted alice", "went alice", "missed alice"]


async def test_a_client_goes_once(pool: Pool, clock: Clock) -> None:
    gone: list[Client] = []

    async def went(client: Client) -> None:
        gone.append(client)

    pool.on_disconnect.append(went)
    client, _ = await enter(pool)
    stranger = make_client()
    for _ in range(2):
        pool.remove(client)
        pool.remove(stranger)
        await turns()
    assert gone == [client]
    assert stranger.ending is None


async def test_who_went_is_told_nothing_any_more(pool: Pool, clock: Clock) -> None:
    ((client, transport), (_, other)) = await enter_level(pool, clock, 2)
    client.disconnect(GoingAway())
    pool.remove(client)
    say(pool, "a")
    await clock.push(MOMENT)
    assert told(transport) == ["<close 1001 server shutdown>"]
    assert told(other) == ["a"]


async def test_who_is_removed_without_an_end_is_disconnected(pool: Pool, clock: Clock) -> None:
    ((client, transport), _) = await enter_level(pool, clock, 2)
    pool.remove(client)
    say(pool, "a")
    await clock.push(1.1)
    assert isinstance(client.ending, ConnectionLost)
    assert told(transport) == []
    assert transport.aborted


async def test_presence_can_be_announced_from_the_receivers(pool: Pool, clock: Clock) -> None:
    async def came(client: Client) -> None:
        pool.broadcast(Joined(client.user))

    async def went(client: Client) -> None:
        pool.broadcast(Left(client.user))

    pool.on_connect.append(came)
    pool.on_disconnect.append(went)
    _, alice = await enter(pool, "alice")
    bob, _ = await enter(pool, "bob")
    pool.remove(bob)
    await clock.push(MOMENT)
    assert told(alice) == ["alice connected", "bob connected", "bob disconnected"]


async def test_a_client_that_goes_while_it_still_comes_is_announced_in_order(pool: Pool, clock: Clock) -> None:
    diary: list[str] = []
    going_on = asyncio.Event()

    async def came(client: Client) -> None:
        diary.append("comes")
        await going_on.wait()
        diary.append("came")

    async def greeted(client: Client) -> None:
        diary.append("greeted")

    async def went(client: Client) -> None:
        diary.append("went")

    pool.on_connect += [came, greeted]
    pool.on_disconnect.append(went)
    client = make_client(wake=pool.wake)
    arrival = asyncio.create_task(pool.add(client))
    await turns()
    pool.remove(client)
    await turns()
    assert not pool.clients
    assert diary == ["comes"]
    going_on.set()
    await arrival
    await turns()
    assert diary == ["comes", "came", "greeted", "went"]


async def test_a_client_whose_coming_is_cancelled_still_goes(pool: Pool, clock: Clock) -> None:
    gone: list[Client] = []

    async def came(client: Client) -> None:
        await asyncio.Event().wait()

    async def went(client: Client) -> None:
        gone.append(client)

    pool.on_connect.append(came)
    pool.on_disconnect.append(went)
    client = make_client(wake=pool.wake)
    arrival = asyncio.create_task(pool.add(client))
    await turns()
    arrival.cancel()
    pool.remove(client)
    await turns()
    assert arrival.cancelled()
    assert gone == [client]


async def test_what_is_told_meanwhile_reaches_a_client_that_still_comes(pool: Pool, clock: Clock) -> None:
    async def came(client: Client) -> None:
        await asyncio.sleep(0.3)

    pool.on_connect.append(came)
    transport = FakeTransport()
    arrival = asyncio.create_task(pool.add(make_client(transport, CODEC, wake=pool.wake)))
    await turns()
    say(pool, "a")
    await clock.push(MOMENT)
    assert told(transport) == ["a"]
    assert not arrival.done()
    await clock.push(0.3)
    assert arrival.done()


# Receivers that are not ours


async def break_down(client: Client) -> None:
    raise ZeroDivisionError("oops")


async def hang(client: Client) -> None:
    await asyncio.Event().wait()


async def refuse(client: Client) -> None:
    raise ChatError("no guests, please")


async def disconnect(client: Client) -> None:
    raise PolicyViolation("go away")


@pytest.mark.parametrize(
    ("receiver", "heard"),
    [
        (break_down, ["error: internal error (100)", "a"]),
        (hang, ["error: internal error (100)", "a"]),
        (refuse, ["error: no guests, please (400)", "a"]),
        (disconnect, ["<close 1008 go away>"]),
    ],
)
async def test_a_receiver_costs_its_own_client_only(
    pool: Pool, clock: Clock, receiver: Callable[[Client], Awaitable[None]], heard: list[str]
) -> None:
    told_too: list[Client] = []

    async def next_receiver(client: Client) -> None:
        told_too.append(client)

    ((_, other),) = await enter_level(pool, clock, 1)
    pool.on_connect += [receiver, next_receiver]
    arrival = asyncio.create_task(enter(pool))
    await clock.push(0.6)
    client, transport = arrival.result()
    say(pool, "a")
    await clock.push(MOMENT)
    assert told_too == [client]
    assert told(transport) == heard
    assert told(other) == ["a"]


@pytest.mark.parametrize("receiver", [break_down, hang])
async def test_a_receiver_that_fails_is_named_in_the_log(
    pool: Pool, clock: Clock, receiver: Callable[[Client], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    pool.on_connect.append(receiver)
    arrival = asyncio.create_task(enter(pool))
    await clock.push(0.6)
    assert arrival.done()
    (record,) = caplog.records
    assert (record.levelno, record.message) == (logging.ERROR, "plugin failed")
    assert vars(record)["plugin"] == f"{__name__}.{receiver.__name__}"


@pytest.mark.parametrize("receiver", [break_down, hang, refuse, disconnect])
async def test_a_receiver_of_departures_costs_nobody_anything(
    pool: Pool, clock: Clock, receiver: Callable[[Client], Awaitable[None]]
) -> None:
    gone: list[Client] = []

    async def went(client: Client) -> None:
        gone.append(client)

    pool.on_disconnect += [receiver, went]
    client, transport = await enter(pool)
    client.disconnect(GoingAway())
    pool.remove(client)
    await clock.push(0.6)
    assert gone == [client]
    assert told(transport) == ["<close 1001 server shutdown>"]


async def test_a_receiver_that_fails_ten_times_in_a_row_is_switched_off(
    pool: Pool, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    pool.on_connect.append(break_down)
    for _ in range(12):
        await enter(pool)
    assert [record.message for record in caplog.records] == ["plugin failed"] * 10 + ["plugin switched off"]


async def test_a_receiver_that_works_in_between_stays_on(
    pool: Pool, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async def moody(client: Client) -> None:
        if client.user != "alice":
            raise ZeroDivisionError

    pool.on_connect.append(moody)
    for _ in range(3):
        for _ in range(9):
            await enter(pool, "bob")
        await enter(pool, "alice")
    assert [record.message for record in caplog.records] == ["plugin failed"] * 27


# The pulse


async def test_a_lost_connections_place_is_free_within_a_second(pool: Pool, clock: Clock) -> None:
    gone: list[Client] = []

    async def went(client: Client) -> None:
        gone.append(client)

    pool.on_disconnect.append(went)
    ((client, transport), (other, _)) = await enter_level(pool, clock, 2)
    transport.lose()
    await clock.push(1)
    assert pool.clients == {other}
    assert gone == [client]


async def test_a_disconnected_clients_place_is_free_within_a_second_even_if_it_does_not_read(
    pool: Pool, clock: Clock
) -> None:
    ((client, transport),) = await enter_level(pool, clock, 1)
    transport.pause_after = 1
    say(pool, "a")
    await clock.push(MOMENT)
    client.enqueue(Notice("b"))
    client.disconnect(PolicyViolation())
    await clock.push(1.05)
    assert not pool.clients
    assert transport.aborted


async def test_a_client_that_does_not_pong_is_dropped(clock: Clock) -> None:
    async with running(heartbeat_seconds=2) as pool:
        ((_, transport),) = await enter_level(pool, clock, 1)
        transport.answering = False
        await clock.push(5)
        assert not pool.clients
        assert transport.aborted
        assert told(transport) == ["<ping >", "<close 3012 no pong>"]


async def test_a_client_that_does_not_read_is_dropped_at_the_write_deadline(clock: Clock) -> None:
    async with running(write_seconds=2) as pool:
        ((client, transport),) = await enter_level(pool, clock, 1)
        transport.pause_after = 1
        say(pool, "a")
        await clock.push(1.5)
        assert pool.clients
        await clock.push(1.5)
        assert not pool.clients
        assert transport.aborted
        assert isinstance(client.ending, Slow)


# Codecs that break


async def test_a_join_that_fails_ends_the_client_it_was_for(
    pool: Pool, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    codec = Broken()
    client, transport = await enter(pool, codec=codec)
    _, other = await enter(pool, "bob", codec)
    await clock.push(MOMENT)
    codec.joining = False
    client.enqueue(Notice("a"))
    await turns()
    codec.joining = True
    say(pool, "b")
    await clock.push(MOMENT)
    assert told(transport) == ["<close 1011 internal server error>"]
    assert told(other) == ["b"]
    (record,) = caplog.records
    assert (record.levelno, record.message) == (logging.ERROR, "drain failed")
    assert vars(record)["connection"] == "id-alice"
    assert record.exc_info


async def test_a_client_whose_join_keeps_failing_is_aborted(pool: Pool, clock: Clock) -> None:
    codec = Broken()
    client, transport = await enter(pool, codec=codec)
    await clock.push(MOMENT)
    codec.joining = False
    client.enqueue(Notice("x" * WRITE_BYTES))
    client.enqueue(Notice("b"))
    await clock.push(1.1)
    assert client.ending
    assert transport.aborted


async def test_a_join_that_fails_in_a_flush_is_logged_and_the_drain_goes_on(
    pool: Pool, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    broken, good = Broken(), Simple()
    await enter(pool, codec=broken)
    _, transport = await enter(pool, "bob", good)
    await clock.push(MOMENT)
    broken.joining = False
    say(pool, "a")
    await clock.push(MOMENT)
    assert [record.message for record in caplog.records] == ["flush failed"]
    broken.joining = True
    say(pool, "b")
    await clock.push(MOMENT)
    assert told(transport) == ["a", "b"]


async def test_a_join_that_fails_in_a_flush_delays_no_other_codec(pool: Pool, clock: Clock) -> None:
    broken, good = Broken(), Simple()
    await enter(pool, codec=broken)
    client, transport = await enter(pool, "bob", good)
    await clock.push(MOMENT)
    broken.joining = False
    say(pool, "a")
    client.enqueue(Notice("b"))
    await clock.push(1)
    assert told(transport) == ["a", "b"]


async def test_a_join_that_fails_in_a_flush_leaves_no_hole_in_anybodys_stream(pool: Pool, clock: Clock) -> None:
    codec = Broken()
    client, transport = await enter(pool, codec=codec)
    await clock.push(MOMENT)
    codec.joining = False
    say(pool, "a")
    await turns()
    codec.joining = True
    say(pool, "b")
    await clock.push(MOMENT)
    assert client.ending or told(transport) == ["a", "b"]


async def test_a_join_that_fails_in_a_flush_holds_no_publisher_for_ever(pool: Pool, clock: Clock) -> None:
    codec = Broken()
    await enter(pool, codec=codec)
    await clock.push(MOMENT)
    say(pool, "a")
    await turns()
    codec.joining = False
    say(pool, *["x" * WRITE_BYTES] * 3)
    publisher = asyncio.create_task(pool.settle())
    await turns()
    assert not publisher.done(), "the drain makes its pause"
    await clock.push(2)
    ended = publisher.done()
    publisher.cancel()
    assert ended


async def test_a_join_that_fails_for_a_parked_client_ends_it(pool: Pool, clock: Clock) -> None:
    codec = Broken()
    client, transport = await enter(pool, codec=codec)
    await clock.push(MOMENT)
    transport.pause_after = 1
    say(pool, "a")
    await clock.push(MOMENT)
    client.enqueue(Notice("b"))
    codec.joining = False
    transport.resume()
    await clock.push(2)
    assert client.ending
    assert client.ending.code == 1011


async def test_an_encode_that_fails_for_one_event_costs_no_later_one(pool: Pool, clock: Clock) -> None:
    codec = Broken()
    client, transport = await enter(pool, codec=codec)
    await clock.push(MOMENT)
    say(pool, "a")
    codec.encoding = False
    with pytest.raises(ZeroDivisionError):
        client.enqueue(Notice("b"))
    codec.encoding = True
    say(pool, "c")
    await clock.push(MOMENT)
    assert told(transport) == ["a", "c"]


async def test_what_cannot_be_encoded_for_some_is_told_to_nobody(pool: Pool, clock: Clock) -> None:
    codecs = [Simple(), Broken(), Simple()]
    members = [await enter(pool, codec=codec) for codec in codecs]
    await clock.push(MOMENT)
    with mock.patch.object(codecs[1], "encoding", False), pytest.raises(ZeroDivisionError):
        say(pool, "a")
    say(pool, "b")
    await clock.push(MOMENT)
    assert [told(transport) for _, transport in members] == [["b"], ["b"], ["b"]]


async def test_an_encode_that_fails_in_a_broadcast_leaves_the_drain_going(pool: Pool, clock: Clock) -> None:
    codec = Broken()
    _, transport = await enter(pool, codec=codec)
    codec.encoding = False
    with pytest.raises(ZeroDivisionError):
        say(pool, "a")
    codec.encoding = True
    say(pool, "b")
    await clock.push(MOMENT)
    assert told(transport) == ["b"]


# Shutdown


async def test_close_sends_what_is_queued_and_the_close_frame_and_waits_for_the_peers(pool: Pool, clock: Clock) -> None:
    members = await enter_level(pool, clock, 3)
    say(pool, "a")
    members[0][0].enqueue(Notice("b"))
    closing = asyncio.create_task(pool.close(ServiceRestart(), 8, answers=True))
    await clock.push(0.5)
    assert [told(transport) for _, transport in members] == [
        ["a", "b", "<close 1012 server restart>"],
        ["a", "<close 1012 server restart>"],
        ["a", "<close 1012 server restart>"],
    ]
    assert not closing.done()
    for _, transport in members:
        assert not transport.closed
        transport.lose()
    await clock.push(0.1)
    assert closing.result() == Closed(closed=3, aborted=0)


async def test_close_without_answers_closes_as_soon_as_all_is_sent(pool: Pool, clock: Clock) -> None:
    ((_, quick), (_, behind)) = await enter_level(pool, clock, 2)
    behind.buffered = 1000
    closing = asyncio.create_task(pool.close(GoingAway(), 8, answers=False))
    await clock.push(0.1)
    assert told(quick) == told(behind) == ["<close 1001 server shutdown>"]
    assert [quick.closed, behind.closed, closing.done()] == [True, False, False]
    behind.buffered = 0
    await clock.push(0.1)
    assert [quick.closed, behind.closed, closing.done()] == [True, True, True]
    assert closing.result() == Closed(closed=2, aborted=0)
    assert [quick.aborted, behind.aborted] == [False, False]


async def test_close_without_clients_is_done_at_once(pool: Pool, clock: Clock) -> None:
    assert await asyncio.wait_for(pool.close(GoingAway(), 8, answers=True), 1) == Closed(closed=0, aborted=0)


async def test_close_says_that_the_pool_drains(pool: Pool, clock: Clock) -> None:
    draining = [pool.draining]
    await enter(pool)
    closing = asyncio.create_task(pool.close(GoingAway(), 8, answers=True))
    await turns()
    draining.append(pool.draining)
    assert draining == [False, True]
    await clock.push(9)
    assert closing.done()


@pytest.mark.parametrize("answers", [True, False])
async def test_close_is_done_at_its_deadline_with_a_client_that_never_reads(
    pool: Pool, clock: Clock, answers: bool
) -> None:
    ((good, other), (stuck, transport)) = await enter_level(pool, clock, 2)
    await get_stuck(pool, clock, stuck, transport)
    closing = asyncio.create_task(pool.close(GoingAway(), 3, answers=answers))
    await clock.push(1)
    other.lose()
    good.gone()
    await clock.push(1.9)
    assert [closing.done(), other.aborted, transport.aborted] == [False, False, False]
    await clock.push(0.2)
    assert [closing.done(), other.aborted, transport.aborted] == [True, False, True]


async def get_stuck(pool: Pool, clock: Clock, client: Client, transport: FakeTransport) -> None:
    """`client` reads nothing any more, and has something queued."""
    transport.pause_after = 1
    say(pool, "held")
    await clock.push(MOMENT)
    client.enqueue(Notice("queued"))
    assert client.parked


async def test_close_counts_a_client_that_never_took_its_queue_as_aborted(pool: Pool, clock: Clock) -> None:
    ((_, good), (stuck, transport)) = await enter_level(pool, clock, 2)
    await get_stuck(pool, clock, stuck, transport)
    closing = asyncio.create_task(pool.close(GoingAway(), 3, answers=True))
    await clock.push(1)
    good.lose()
    await clock.push(2.1)
    assert closing.result() == Closed(closed=1, aborted=1)


async def test_close_waits_a_second_for_an_answer_and_no_longer(pool: Pool, clock: Clock) -> None:
    ((_, silent),) = await enter_level(pool, clock, 1)
    closing = asyncio.create_task(pool.close(GoingAway(), 8, answers=True))
    await clock.push(0.9)
    assert not closing.done()
    await clock.push(0.3)
    assert silent.closed
    assert not silent.aborted
    assert closing.result() == Closed(closed=1, aborted=0)


async def test_close_aborts_who_does_not_take_the_close_frame(pool: Pool, clock: Clock) -> None:
    ((_, good), (_, stubborn)) = await enter_level(pool, clock, 2)
    stubborn.buffered = 1000
    closing = asyncio.create_task(pool.close(GoingAway(), 3, answers=True))
    await clock.push(1)
    good.lose()
    await clock.push(2.1)
    assert stubborn.aborted
    assert closing.result() == Closed(closed=1, aborted=1)


async def test_close_aborts_a_client_that_was_given_longer_before(pool: Pool, clock: Clock) -> None:
    ((client, transport),) = await enter_level(pool, clock, 1)
    transport.buffered = 1000
    client.disconnect(PolicyViolation(), 60)
    await clock.push(MOMENT)
    closing = asyncio.create_task(pool.close(GoingAway(), 3, answers=True))
    await clock.push(3.1)
    assert transport.aborted
    assert closing.result() == Closed(closed=0, aborted=1)


async def test_close_counts_no_less_than_nobody(pool: Pool, clock: Clock) -> None:
    await enter_level(pool, clock, 3)
    closed = await asyncio.wait_for(pool.close(GoingAway(), 0, answers=True), 1)
    assert closed == Closed(closed=0, aborted=3)


async def test_close_lets_others_have_their_turn_between_a_few_and_the_next(pool: Pool, clock: Clock) -> None:
    members = await enter_level(pool, clock, 9)
    told_at_once: list[int] = []
    served_at_once: list[int] = []

    async def watch() -> None:
        ending = served = 0
        for _ in range(50):
            told_at_once.append(sum(client.ending is not None for client, _ in members) - ending)
            served_at_once.append(sum(client.close_sent for client, _ in members) - served)
            ending, served = ending + told_at_once[-1], served + served_at_once[-1]
            await (clock.push(0.01) if ending == len(members) else asyncio.sleep(0))

    with mock.patch("chatserver.pool.CLOSES_PER_TURN", 2), mock.patch("chatserver.pool.FLUSH_CLIENTS", 3):
        closing = asyncio.create_task(pool.close(GoingAway(), 8, answers=False))
        await asyncio.sleep(0)
        assert all(client.leaving for client, _ in members)
        await watch()
        await clock.push(1)
    assert (max(told_at_once), max(served_at_once)) == (2, 3)
    assert closing.result() == Closed(closed=9, aborted=0)
    assert [told(transport) for _, transport in members] == [["<close 1001 server shutdown>"]] * 9


async def test_abort_ends_a_close_that_waits(pool: Pool, clock: Clock) -> None:
    members = await enter_level(pool, clock, 3)
    closing = asyncio.create_task(pool.close(GoingAway(), 60, answers=True))
    await clock.push(1)
    assert not closing.done()
    pool.abort()
    await clock.push(0.1)
    assert closing.done()
    assert all(transport.aborted for _, transport in members)


async def test_abort_drops_everybody_also_before_close(pool: Pool, clock: Clock) -> None:
    members = await enter_level(pool, clock, 3)
    pool.abort()
    assert all(transport.aborted for _, transport in members)


async def test_stop_ends_all_tasks_of_the_pool(clock: Clock) -> None:
    before = asyncio.all_tasks()
    async with running(heartbeat_seconds=25, write_seconds=10) as pool:
        ((_, transport),) = await enter_level(pool, clock, 1)
        transport.pause_after = 1
        say(pool, "a")
        await clock.push(MOMENT)
        assert len(asyncio.all_tasks() - before) == 3
    assert asyncio.all_tasks() == before


# Whatever happens, in whatever order


@dataclass
class Member:
    """A client, and what it must have been told in the end."""

    client: Client
    transport: FakeTransport
    expected: list[str] = field(default_factory=list)
    alone: set[str] = field(default_factory=set)
    """Of these, what nobody else was told."""
    answers: set[str] = field(default_factory=set)
    """Of those, what may come behind what was told to all later."""
    paused: bool = False
    ended: bool = False
    """By the test."""


class World:
    """A pool under random operations, with a model of what everybody is told."""

    def __init__(self, pool: Pool, clock: Clock) -> None:
        self.pool = pool
        self.audience = pool.audience()
        self.clock = clock
        self.members: list[Member] = []
        self.count = 0

    def pick(self, number: int) -> Member | None:
        here = [member for member in self.members if not member.ended and not member.client.ending]
        return here[number % len(here)] if here else None

    def body(self, size: int) -> str:
        self.count += 1
        return f"{self.count}{'.' * size}"

    async def enter(self, number: int, size: int) -> None:
        client, transport = await enter(self.pool, str(len(self.members)))
        self.audience.join(client)
        self.members.append(Member(client, transport))

    async def broadcast(self, number: int, size: int) -> None:
        body = self.body(size)
        for member in self.members:
            if not member.ended and not member.client.ending:
                member.expected.append(body)
        self.audience.broadcast(Message("alice", body))

    async def broadcast_often(self, number: int, size: int) -> None:
        for _ in range(number):
            await self.broadcast(number, size)

    async def tell(self, number: int, size: int) -> None:
        if member := self.pick(number):
            body = self.body(size)
            member.expected.append(body)
            member.alone.add(body)
            member.client.enqueue(Notice(body))

    async def answer(self, number: int, size: int) -> None:
        if member := self.pick(number):
            body = self.body(size)
            member.expected.append(body)
            member.alone.add(body)
            member.answers.add(body)
            member.client.received += 1
            self.audience.answer(member.client, CODEC.encode(Notice(body)))

    async def interrupt(self, number: int, size: int) -> None:
        """Tells one something while what was told to all is being written."""
        await self.clock.push(MOMENT)
        await self.broadcast(number, size)
        await turns(1 + number % 4)
        await (self.answer if number % 2 else self.tell)(size, size)

    async def pong(self, number: int, size: int) -> None:
        if member := self.pick(number):
            member.client.control(frames.pong(b""))

    async def pause(self, number: int, size: int) -> None:
        if member := self.pick(number):
            member.paused = True
            member.transport.pause_after = len(member.transport.written) + 1 + size % 3

    async def resume(self, number: int, size: int) -> None:
        if member := self.pick(number):
            member.transport.resume()

    async def leave(self, number: int, size: int) -> None:
        if member := self.pick(number):
            member.ended = True
            member.client.disconnect(GoingAway())
            if number % 2:
                self.pool.remove(member.client)

    async def lose(self, number: int, size: int) -> None:
        if member := self.pick(number):
            member.ended = True
            member.transport.lose()

    async def turn(self, number: int, size: int) -> None:
        await turns(number)

    async def wait(self, number: int, size: int) -> None:
        await self.clock.push(0.01 * (number % 3 + 1))

    async def settle(self) -> None:
        for member in self.members:
            member.transport.resume()
        await self.clock.push(0.5)

    def heard(self, member: Member) -> list[str]:
        return [body for body in told(member.transport) if not body.startswith("<pong")]

    def check(self, member: Member) -> None:
        heard = self.heard(member)
        if not member.client.ending and not member.transport.lost:
            assert len(heard) == len(member.expected)
            check_order(member, heard)
            assert not member.client.parked
            return
        end = member.client.ending
        if heard and heard[-1].startswith("<close"):
            assert end
            assert heard.pop() == f"<close {end.code} {end}>"
            if not isinstance(end, Slow):
                assert len(heard) == len(member.expected)
        check_order(member, heard)
        assert member.transport.lost or member.client.close_sent
        assert member.ended or member.paused, "slow, but it always read"


def check_order(member: Member, heard: list[str]) -> None:
    """All is heard in the order in which it was told, but that what all are told later may come before an answer."""
    others = [body for body in member.expected if body not in member.answers]
    told_others = [body for body in heard if body not in member.answers]
    assert told_others == others[: len(told_others)]
    alone = [body for body in heard if body in member.alone]
    assert alone == [body for body in member.expected if body in alone]
    for place, body in enumerate(heard):
        if body in member.answers:
            assert {*heard[:place]}.issuperset(member.expected[: member.expected.index(body)])


NAMES = [
    "enter",
    "broadcast",
    "broadcast_often",
    "tell",
    "answer",
    "interrupt",
    "pong",
    "pause",
    "resume",
    "leave",
    "lose",
    "turn",
    "wait",
]
OFTEN = ["broadcast", "tell", "answer", "pause", "resume", "turn"]
OPERATIONS = st.lists(
    st.tuples(st.sampled_from(NAMES + OFTEN), st.integers(0, 11), st.integers(0, 60)), min_size=5, max_size=60
)


@contextlib.contextmanager
def small_writes() -> Iterator[None]:
    """Makes a flush as small as 200 bytes to one client, so that a few short texts to a few are cut into many."""
    with contextlib.ExitStack() as stack:
        for module in ("feed", "pool"):
            stack.enter_context(mock.patch(f"chatserver.{module}.FLUSH_CLIENTS", 1))
        stack.enter_context(
            mock.patch.multiple("chatserver.feed", FIRST_CLIENTS=1, MOST_FIRST_CLIENTS=1, ORDER_SECONDS=0)
        )
        for module in ("client", "feed", "audience"):
            stack.enter_context(mock.patch(f"chatserver.{module}.WRITE_BYTES", 200))
        yield


@settings(PATIENT, max_examples=150)
@example([("enter", 0, 0), ("interrupt", 0, 0), ("broadcast", 0, 0), ("answer", 1, 0), ("leave", 1, 0)])
@given(OPERATIONS)
async def test_everybody_hears_all_that_was_told_to_it_once_and_in_order(
    operations: list[tuple[str, int, int]],
) -> None:
    with stopped_clock() as clock, small_writes():
        async with running() as pool:
            world = World(pool, clock)
            for _ in range(3):
                await world.enter(0, 0)
            for name, number, size in operations:
                await getattr(world, name)(number, size)
            await world.settle()
            for member in world.members:
                assert not isinstance(member.client.ending, Slow)
                world.check(member)
                if not member.ended:
                    member.client.disconnect(GoingAway())
                    assert member.client.delivered == len(member.expected)


@settings(PATIENT, max_examples=150)
@given(OPERATIONS)
async def test_the_slow_are_disconnected_and_nobody_else_loses_anything(operations: list[tuple[str, int, int]]) -> None:
    with stopped_clock() as clock, small_writes():
        async with running(queue_bytes=600) as pool:
            world = World(pool, clock)
            for _ in range(3):
                await world.enter(0, 0)
            for name, number, size in operations:
                await getattr(world, name)(number % 3 if name == "broadcast_often" else number, size)
                if name in ("broadcast", "broadcast_often", "tell", "answer", "interrupt"):
                    await clock.push(0.003)
            await world.settle()
            for member in world.members:
                world.check(member)


@pytest.fixture
async def few_at_once() -> AsyncIterator[None]:
    """Two clients are written to before others have their turn."""
    with (
        mock.patch.multiple("chatserver.feed", FIRST_CLIENTS=2, MOST_FIRST_CLIENTS=2, FLUSH_CLIENTS=2),
        mock.patch("chatserver.pool.FLUSH_CLIENTS", 2),
    ):
        yield


async def looked_at(members: Sequence[tuple[Client, FakeTransport]], clock: Clock) -> list[int]:
    """How many writes there were in each turn, while all that is to be written is."""
    seen: list[int] = []

    async def look() -> None:
        while True:
            seen.append(sum(len(transport.written) for _, transport in members))
            await asyncio.sleep(0)

    looking = asyncio.create_task(look())
    await clock.push(MOMENT)
    looking.cancel()
    return seen


@pytest.mark.usefixtures("few_at_once")
async def test_while_many_are_told_others_have_their_turn(pool: Pool, clock: Clock) -> None:
    members = await enter_level(pool, clock, 5)
    say(pool, "hello")
    await clock.push(MOMENT)
    say(pool, "a")
    seen = await looked_at(members, clock)
    assert [seen.count(writes) for writes in (7, 9)] == [TURNS, TURNS]
    assert seen[-1] == 10
    say(pool, "b")
    await turns()  # no pause is made in between
    assert [told(transport) for _, transport in members] == [["hello", "a", "b"]] * 5


@pytest.mark.usefixtures("few_at_once")
async def test_while_many_audiences_are_told_others_have_their_turn(pool: Pool, clock: Clock) -> None:
    members, audiences = await enter_level(pool, clock, 6), [pool.audience() for _ in range(6)]
    for (client, _), audience in zip(members, audiences, strict=True):
        audience.join(client)
    await clock.push(MOMENT)
    for audience in audiences:
        audience.broadcast(Message("alice", "a"))
    seen = await looked_at(members, clock)
    assert {2, 4, 6} <= {*seen} <= {0, 2, 4, 6}
    assert [told(transport) for _, transport in members] == [["a"]] * 6


async def test_a_client_that_comes_while_all_are_closed_is_closed_too(pool: Pool, clock: Clock) -> None:
    await pool.close(GoingAway(), 0, answers=True)
    client, transport = await enter(pool)
    await clock.push(MOMENT)
    assert isinstance(client.ending, GoingAway)
    assert told(transport) == ["<close 1001 server shutdown>"]


async def test_the_drain_survives_whatever_a_flush_does(
    pool: Pool, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    _, transport = await enter(pool)
    await clock.push(MOMENT)
    with mock.patch.object(Feed, "trim", side_effect=ZeroDivisionError):
        say(pool, "a")
        await clock.push(MOMENT)
    say(pool, "b")
    await clock.push(MOMENT)
    assert told(transport) == ["a", "b"]
    assert [record.message for record in caplog.records] == ["flush failed"]


async def test_who_is_expected_is_told_nothing_and_closed_with_the_rest(pool: Pool, clock: Clock) -> None:
    transport = FakeTransport()
    stranger = make_client(transport, CODEC, wake=pool.wake)
    pool.expect(stranger)
    say(pool, "a")
    await clock.push(MOMENT)
    assert stranger not in pool.clients
    assert told(transport) == []
    closing = asyncio.create_task(pool.close(GoingAway(), 5, answers=False))
    await clock.push(0.1)
    assert await closing == Closed(1, 0)
    assert told(transport) == ["<close 1001 server shutdown>"]
    late = make_client(FakeTransport(), CODEC, wake=pool.wake)
    pool.expect(late)
    assert isinstance(late.ending, GoingAway)
    for client in (stranger, late):
        pool.remove(client)
        client.gone()


async def test_who_was_expected_comes_in_like_everybody(pool: Pool, clock: Clock) -> None:
    gone: list[str] = []

    async def left(client: Client) -> None:
        gone.append(client.user)

    pool.on_disconnect.append(left)
    stranger, member = (make_client(FakeTransport(), CODEC, user=user, wake=pool.wake) for user in ("eve", "bob"))
    for client in (stranger, member):
        pool.expect(client)
    await pool.add(member)
    for client in (stranger, member):
        pool.remove(client)
        client.gone()
    await clock.push(MOMENT)
    assert gone == ["bob"]
