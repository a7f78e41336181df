"""Receivers are told who comes and goes, in order, and their faults are their own."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from chatserver.client import Client
from chatserver.errors import ChatError, PolicyViolation
from chatserver.guard import FAILURES
from chatserver.signals import Signals
from tests.fakes import Clock, FakeTransport, make_client, stopped_clock, told, turns

Places = Signals[[str]]


@pytest.fixture
async def clock() -> AsyncIterator[Clock]:
    with stopped_clock() as clock:
        yield clock


@pytest.fixture
async def signals(clock: Clock) -> AsyncIterator[Places]:
    signals = Places(0.5)
    yield signals
    await signals.stop()


class Diary:
    """Receivers that note what they are told; an arrival is over when `gate` is open."""

    def __init__(self, signals: Places, name: str = "") -> None:
        self.lines: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._name = name
        signals.arrivals.append(self.arrived)
        signals.departures.append(self.departed)

    async def arrived(self, client: Client, place: str) -> None:
        self.lines.append(f"{self._name}{client.user} comes to {place}")
        await self.gate.wait()
        self.lines.append(f"{self._name}{client.user} is in {place}")

    async def departed(self, client: Client, place: str) -> None:
        self.lines.append(f"{self._name}{client.user} left {place}")


async def test_receivers_are_told_who_came_where_one_after_the_other(signals: Places) -> None:
    diaries = [Diary(signals, name) for name in ("1 ", "2 ")]
    diaries[1].lines = diaries[0].lines
    await signals.arrive(make_client(), "lobby")
    assert diaries[0].lines == [
        "1 alice comes to lobby",
        "1 alice is in lobby",
        "2 alice comes to lobby",
        "2 alice is in lobby",
    ]


async def test_a_departure_is_told_soon(signals: Places) -> None:
    diary = Diary(signals)
    client = make_client()
    signals.depart(client, "lobby")
    assert not diary.lines
    await turns()
    assert diary.lines == ["alice left lobby"]


async def test_all_is_settled_when_the_last_change_is_told(signals: Places) -> None:
    diary = Diary(signals)
    client = make_client()
    await signals.settled(client, "lobby")
    diary.gate.clear()
    arriving = asyncio.create_task(signals.arrive(client, "lobby"))
    await turns()
    signals.depart(client, "lobby")
    settling = asyncio.create_task(signals.settled(client, "lobby"))
    await turns()
    assert not settling.done()
    await signals.settled(client, "garden")
    diary.gate.set()
    await settling
    assert diary.lines[-1] == "alice left lobby"
    await arriving


async def test_a_departure_is_told_when_the_arrival_was_told_to_all(signals: Places) -> None:
    first, second = Diary(signals, "1 "), Diary(signals, "2 ")
    second.lines = first.lines
    second.gate.clear()
    client = make_client()
    arriving = asyncio.create_task(signals.arrive(client, "lobby"))
    await turns()
    signals.depart(client, "lobby")
    await turns()
    assert first.lines[-1] == "2 alice comes to lobby"
    second.gate.set()
    await arriving
    await turns()
    assert first.lines[-3:] == ["2 alice is in lobby", "1 alice left lobby", "2 alice left lobby"]


async def test_a_departure_waits_for_no_other_place_and_nobody_else(signals: Places) -> None:
    diary = Diary(signals)
    diary.gate.clear()
    client, other = make_client(), make_client(user="bob")
    arriving = [asyncio.create_task(signals.arrive(*place)) for place in ((client, "here"), (other, "there"))]
    await turns()
    signals.depart(client, "there")
    signals.depart(other, "here")
    await turns()
    assert diary.lines[-2:] == ["alice left there", "bob left here"]
    diary.gate.set()
    await asyncio.gather(*arriving)


async def test_a_departure_is_told_also_if_the_arrival_was_cancelled(signals: Places) -> None:
    diary = Diary(signals)
    diary.gate.clear()
    client = make_client()
    arriving = asyncio.create_task(signals.arrive(client, "lobby"))
    await turns()
    signals.depart(client, "lobby")
    arriving.cancel()
    await turns()
    assert diary.lines == ["alice comes to lobby", "alice left lobby"]


async def test_stop_ends_what_is_still_told(clock: Clock) -> None:
    signals = Places(0)
    diary = Diary(signals)
    diary.gate.clear()
    client = make_client()
    arriving = asyncio.create_task(signals.arrive(client, "lobby"))
    await turns()
    signals.depart(client, "lobby")
    await turns()
    await signals.stop()
    diary.gate.set()
    await arriving
    await turns()
    assert "alice left lobby" not in diary.lines


# Faults of receivers


async def break_down(client: Client, place: str) -> None:
    raise ZeroDivisionError


async def hang(client: Client, place: str) -> None:
    await asyncio.Event().wait()


async def take_less(client: Client) -> None:
    raise AssertionError("it can't be called")


def call_a_plain_function(client: Client, place: str) -> None:
    raise ZeroDivisionError


def return_nothing(client: Client, place: str) -> None:
    pass


FAULTS = [break_down, hang, take_less, call_a_plain_function, return_nothing]
fault = pytest.mark.parametrize("receiver", FAULTS, ids=lambda receiver: receiver.__name__)
Faulty = Callable[..., Awaitable[None]]


@fault
async def test_a_receiver_that_fails_is_named_and_the_others_are_told(
    clock: Clock, signals: Places, receiver: Faulty, caplog: pytest.LogCaptureFixture
) -> None:
    signals.arrivals.append(receiver)
    diary = Diary(signals)
    telling = asyncio.create_task(signals.arrive(make_client(), "lobby"))
    await clock.push(0.6)
    await telling
    assert diary.lines[-1] == "alice is in lobby"
    (line,) = caplog.records
    assert (line.message, line.__dict__["plugin"]) == ("plugin failed", f"{__name__}.{receiver.__name__}")


@fault
async def test_a_receiver_of_departures_that_fails_costs_nobody_anything(
    clock: Clock, signals: Places, receiver: Faulty, caplog: pytest.LogCaptureFixture
) -> None:
    signals.departures.append(receiver)
    diary = Diary(signals)
    signals.depart(make_client(), "lobby")
    await clock.push(0.6)
    assert diary.lines == ["alice left lobby"]
    assert [line.levelno for line in caplog.records] == [logging.ERROR]


async def test_a_receiver_may_refuse_and_the_client_is_told(signals: Places) -> None:
    async def refuse(client: Client, place: str) -> None:
        raise ChatError("not on a Sunday")

    signals.arrivals.append(refuse)
    transport = FakeTransport()
    client = make_client(transport)
    await signals.arrive(client, "lobby")
    client.serve()
    assert told(transport) == ["error: not on a Sunday (400)"]


async def test_a_receiver_may_end_the_connection(signals: Places) -> None:
    async def throw_out(client: Client, place: str) -> None:
        raise PolicyViolation("out of " + place)

    signals.arrivals.append(throw_out)
    transport = FakeTransport()
    client = make_client(transport)
    await signals.arrive(client, "lobby")
    client.serve()
    assert told(transport) == ["<close 1008 out of lobby>"]
    client.gone()


async def test_a_receiver_that_keeps_failing_is_switched_off(signals: Places, caplog: pytest.LogCaptureFixture) -> None:
    signals.arrivals.append(break_down)
    for _ in range(FAILURES + 5):
        await signals.arrive(make_client(), "lobby")
    assert [line.message for line in caplog.records] == ["plugin failed"] * FAILURES + ["plugin switched off"]


async def test_one_of_ours_may_take_its_time_and_is_never_switched_off(
    signals: Places, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []

    async def slow(client: Client, place: str) -> None:
        await asyncio.sleep(10)
        heard.append(place)

    slow.__module__ = "chatserver.rooms"
    signals.arrivals.append(slow)
    places = [str(number) for number in range(FAILURES + 1)]
    for place in places:
        arriving = asyncio.create_task(signals.arrive(make_client(), place))
        await clock.push(11)
        await arriving
    assert heard == places
    assert not caplog.records


async def test_one_of_ours_that_fails_is_logged_and_the_others_are_told(
    signals: Places, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(client: Client, place: str) -> None:
        raise RuntimeError("broken")

    broken.__module__ = "chatserver.rooms"
    signals.arrivals.append(broken)
    diary = Diary(signals)
    for _ in range(FAILURES + 1):
        await signals.arrive(make_client(), "lobby")
    assert len(diary.lines) == 2 * (FAILURES + 1)
    assert [record.message for record in caplog.records] == ["receiver failed"] * (FAILURES + 1)


async def test_who_leaves_and_comes_back_at_once_is_told_in_that_order(signals: Places) -> None:
    diary, client = Diary(signals), make_client()
    await signals.arrive(client, "lobby")
    diary.gate.clear()
    signals.depart(client, "lobby")
    coming = asyncio.create_task(signals.arrive(client, "lobby"))
    await turns()
    signals.depart(client, "lobby")
    diary.gate.set()
    await coming
    await turns()
    assert diary.lines == [
        "alice comes to lobby",
        "alice is in lobby",
        "alice left lobby",
        "alice comes to lobby",
        "alice is in lobby",
        "alice left lobby",
    ]
    assert not signals._told
