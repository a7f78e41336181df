"""Message middlewares in front of a handler."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace

from chatserver.chain import Check, Handler, Middleware, checks, compose
from chatserver.client import Client
from chatserver.errors import ChatError, Disconnect, InternalError
from chatserver.guard import FAILURES
from chatserver.message import Command, Event, Notice, Publish
from tests.fakes import Clock, make_client, stopped_clock, turns

SECONDS = 0.5


@pytest.fixture
async def clock() -> AsyncIterator[Clock]:
    with stopped_clock() as clock:
        yield clock


async def echo(command: Command, client: Client) -> Event | None:
    """The handler here."""
    return Notice(command.body)


async def shout(command: Command, client: Client, handler: Handler) -> Event | None:
    return await handler(replace(command, body=command.body.upper()), client)


async def answer(command: Command, client: Client, handler: Handler) -> Event | None:
    return Notice("answered")


async def swallow(command: Command, client: Client, handler: Handler) -> Event | None:
    return None


async def refuse(command: Command, client: Client, handler: Handler) -> Event | None:
    raise ChatError("no links, please")


async def disconnect(command: Command, client: Client, handler: Handler) -> Event | None:
    raise Disconnect("go away")


async def hang(command: Command, client: Client, handler: Handler) -> Event | None:
    await asyncio.Event().wait()
    return None


async def break_down(command: Command, client: Client, handler: Handler) -> Event | None:
    raise ZeroDivisionError("oops")


async def exit_process(command: Command, client: Client, handler: Handler) -> Event | None:
    raise SystemExit(1)


async def cancel_itself(command: Command, client: Client, handler: Handler) -> Event | None:
    raise asyncio.CancelledError


async def return_junk(command: Command, client: Client, handler: Handler) -> Any:
    return {"type": 2, "body": "hi"}


async def return_true(command: Command, client: Client, handler: Handler) -> Any:
    return True


async def return_command(command: Command, client: Client, handler: Handler) -> Any:
    return command


async def pass_on(command: Command, client: Client, handler: Handler) -> Event | None:
    return await handler(command, client)


FAULTS = [break_down, exit_process, cancel_itself, return_junk, return_true, return_command]


async def say(handler: Handler, body: str = "hi") -> Event | None:
    return await handler(Publish(body), make_client())


def writer(name: str, diary: list[str]) -> Middleware:
    """Notes its name on the way in and on the way out."""

    async def write(command: Command, client: Client, handler: Handler) -> Event | None:
        diary.append(name)
        reply = await handler(command, client)
        diary.append(f"/{name}")
        return reply

    return write


async def test_without_middlewares_the_handler_is_called() -> None:
    assert await say(compose([], echo, SECONDS)) == Notice("hi")


async def test_the_first_middleware_is_outermost() -> None:
    diary: list[str] = []
    chain = [writer("first", diary), writer("second", diary), writer("third", diary)]
    await say(compose(chain, echo, SECONDS))
    assert diary == ["first", "second", "third", "/third", "/second", "/first"]


async def test_a_middleware_gets_command_and_client() -> None:
    seen: list[object] = []

    async def look(command: Command, client: Client, handler: Handler) -> Event | None:
        seen.extend([command, client])
        return await handler(command, client)

    client = make_client()
    await compose([look], echo, SECONDS)(Publish("hi"), client)
    assert seen == [Publish("hi"), client]


async def test_a_middleware_may_change_the_command_for_all_behind_it() -> None:
    seen: list[Command] = []

    async def look(command: Command, client: Client, handler: Handler) -> Event | None:
        seen.append(command)
        return await handler(command, client)

    assert await say(compose([look, shout, look], echo, SECONDS)) == Notice("HI")
    assert seen == [Publish("hi"), Publish("HI")]


async def test_a_middleware_may_pass_on_another_client() -> None:
    other = make_client(user="bob")
    seen: list[Client] = []

    async def handler(command: Command, client: Client) -> Event | None:
        seen.append(client)
        return None

    async def impersonate(command: Command, client: Client, handler: Handler) -> Event | None:
        return await handler(command, other)

    await say(compose([impersonate], handler, SECONDS))
    assert seen == [other]


async def test_a_middleware_may_change_the_reply() -> None:
    async def decorate(command: Command, client: Client, handler: Handler) -> Event | None:
        reply = await handler(command, client)
        assert isinstance(reply, Notice)
        return Notice(f"*{reply.body}*")

    assert await say(compose([decorate, pass_on], echo, SECONDS)) == Notice("*hi*")


@pytest.mark.parametrize(("middleware", "reply"), [(answer, Notice("answered")), (swallow, None)])
async def test_a_middleware_may_answer_without_calling_on(middleware: Middleware, reply: Event | None) -> None:
    diary: list[str] = []
    assert await say(compose([middleware, writer("behind", diary)], echo, SECONDS)) == reply
    assert not diary


async def test_a_middleware_may_call_on_more_than_once() -> None:
    said: list[str] = []

    async def handler(command: Command, client: Client) -> Event | None:
        said.append(command.body)
        return None

    async def twice(command: Command, client: Client, handler: Handler) -> Event | None:
        await handler(command, client)
        return await handler(replace(command, body="again"), client)

    await say(compose([twice], handler, SECONDS))
    assert said == ["hi", "again"]


@pytest.mark.parametrize(
    ("middleware", "kind", "words"), [(refuse, ChatError, "no links, please"), (disconnect, Disconnect, "go away")]
)
async def test_a_refusal_reaches_the_caller_and_nobody_behind(
    middleware: Middleware, kind: type[Exception], words: str
) -> None:
    diary: list[str] = []
    handler = compose([writer("front", diary), middleware, writer("behind", diary)], echo, SECONDS)
    with pytest.raises(kind, match=words):
        await say(handler)
    assert diary == ["front"]


@pytest.mark.parametrize("middleware", FAULTS)
async def test_a_middleware_that_fails_costs_its_message_and_is_named_in_the_log(
    middleware: Middleware, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InternalError) as caught:
        await say(compose([pass_on, middleware], echo, SECONDS))
    assert (caught.value.code, str(caught.value)) == (100, "internal error")
    (record,) = caplog.records
    assert (record.levelno, record.message) == (logging.ERROR, "plugin failed")
    assert vars(record)["plugin"] == f"{__name__}.{middleware.__name__}"


async def test_the_log_says_what_junk_a_middleware_returned(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InternalError):
        await say(compose([return_junk], echo, SECONDS))
    assert vars(caplog.records[0])["problem"] == "TypeError('returned dict, not an event or None')"


async def test_a_middleware_that_hangs_costs_its_message_and_is_named_in_the_log(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    running = asyncio.create_task(say(compose([pass_on, hang], echo, SECONDS)))
    await clock.push(0.48)
    assert not running.done()
    await clock.push(0.04)
    assert isinstance(running.exception(), InternalError)
    (record,) = caplog.records
    assert vars(record)["plugin"] == f"{__name__}.hang"
    assert vars(record)["problem"] == "took longer than 0.5 s"


async def test_a_middleware_that_hangs_on_its_way_out_fails_too(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    async def hang_later(command: Command, client: Client, handler: Handler) -> Event | None:
        await handler(command, client)
        return await hang(command, client, handler)

    running = asyncio.create_task(say(compose([hang_later], echo, SECONDS)))
    await clock.push(1)
    assert isinstance(running.exception(), InternalError)
    assert "hang_later" in str(vars(caplog.records[0])["plugin"])


async def test_the_handlers_time_is_no_middlewares(clock: Clock) -> None:
    async def slow(command: Command, client: Client) -> Event | None:
        await asyncio.sleep(60)
        return Notice("at last")

    running = asyncio.create_task(say(compose([pass_on, shout], slow, SECONDS)))
    await clock.push(61, step=0.1)
    assert running.result() == Notice("at last")


async def test_one_middlewares_time_is_not_anothers(clock: Clock) -> None:
    async def dawdle(command: Command, client: Client, handler: Handler) -> Event | None:
        await asyncio.sleep(0.4)
        return await handler(command, client)

    running = asyncio.create_task(say(compose([dawdle, dawdle, dawdle], echo, SECONDS)))
    await clock.push(1.5)
    assert running.result() == Notice("hi")


async def test_a_deadline_of_0_is_none(clock: Clock) -> None:
    running = asyncio.create_task(say(compose([hang], echo, 0)))
    await clock.push(36000, step=3600)
    assert not running.done()
    running.cancel()


@pytest.mark.parametrize("fault", [ZeroDivisionError("oops"), ChatError(), Disconnect(), SystemExit()])
async def test_an_exception_of_the_handler_is_blamed_on_no_middleware(
    fault: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    calls = 0

    async def handler(command: Command, client: Client) -> Event | None:
        nonlocal calls
        calls += 1
        raise fault

    diary: list[str] = []
    chain = compose([pass_on, writer("in", diary)], handler, SECONDS)
    for _ in range(FAILURES + 1):
        with pytest.raises(type(fault)) as caught:
            await say(chain)
        assert caught.value is fault
    assert diary == ["in"] * (FAILURES + 1), "switched off"
    assert not caplog.records


@pytest.mark.parametrize("middleware", FAULTS)
async def test_ten_failures_in_a_row_switch_a_middleware_off_and_messages_pass(
    middleware: Middleware, caplog: pytest.LogCaptureFixture
) -> None:
    handler = compose([shout, middleware], echo, SECONDS)
    for _ in range(10):
        with pytest.raises(InternalError):
            await say(handler)
    assert [record.message for record in caplog.records] == ["plugin failed"] * 10 + ["plugin switched off"]
    for _ in range(10):
        assert await say(handler) == Notice("HI")
    assert len(caplog.records) == 11


def unreliable(failures: list[bool], between: Middleware) -> Middleware:
    """Fails as often as `failures` says; does what `between` does otherwise."""

    async def work(command: Command, client: Client, handler: Handler) -> Event | None:
        return await (break_down if failures.pop(0) else between)(command, client, handler)

    return work


@pytest.mark.parametrize("between", [pass_on, answer, swallow, refuse, disconnect])
async def test_a_success_in_between_starts_the_count_anew(between: Middleware) -> None:
    failures = [True] * 9 + [False] + [True] * 9 + [False]
    handler = compose([unreliable(failures, between)], echo, SECONDS)
    for failing in list(failures):
        if failing:
            with pytest.raises(InternalError):
                await say(handler)
        else:
            try:
                await say(handler)
            except (ChatError, Disconnect) as error:
                assert not isinstance(error, InternalError)
    assert not failures, "switched off"


async def test_one_middleware_is_switched_off_without_the_other() -> None:
    diary: list[str] = []
    handler = compose([writer("front", diary), break_down], echo, SECONDS)
    for _ in range(10):
        with pytest.raises(InternalError):
            await say(handler)
    diary.clear()
    await say(handler)
    assert diary == ["front", "/front"]


@pytest.mark.parametrize("where", ["middleware", "handler"])
async def test_cancelling_the_task_passes_through_unharmed(where: str, caplog: pytest.LogCaptureFixture) -> None:
    async def wait(command: Command, client: Client) -> Event | None:
        await asyncio.Event().wait()
        return None

    diary: list[str] = []
    handler = compose([writer("in", diary), hang] if where == "middleware" else [writer("in", diary)], wait, SECONDS)
    for _ in range(FAILURES + 1):
        running = asyncio.create_task(say(handler))
        await turns()
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()
    assert diary == ["in"] * (FAILURES + 1), "switched off"
    assert not caplog.records


async def test_messages_in_flight_do_not_share_a_deadline(clock: Clock) -> None:
    async def patient(command: Command, client: Client, handler: Handler) -> Event | None:
        await asyncio.sleep(0.4)
        return await handler(command, client)

    handler = compose([patient], echo, SECONDS)
    first = asyncio.create_task(say(handler, "first"))
    await clock.push(0.3)
    second = asyncio.create_task(say(handler, "second"))
    await clock.push(0.45)
    assert (first.result(), second.result()) == (Notice("first"), Notice("second"))


async def test_one_stall_of_the_loop_switches_no_middleware_off(clock: Clock) -> None:
    """Whoever blocked it; here ten messages are on their way through a middleware that is quick by itself."""
    asked: list[str] = []

    async def look_up(command: Command, client: Client, handler: Handler) -> Event | None:
        asked.append(command.body)
        await asyncio.sleep(0.05)
        return await handler(command, client)

    handler = compose([look_up], echo, SECONDS)
    running = [asyncio.create_task(say(handler)) for _ in range(FAILURES)]
    await turns()
    clock.now += 0.7
    await asyncio.wait(running)
    last = asyncio.create_task(say(handler, "last"))
    await clock.push(0.1)
    assert last.done()
    assert asked[-1] == "last"
    assert all(message.done() and (message.exception() or message.result()) for message in running)


class Ours(Check):
    """Fails for one body."""

    def check(self, command: Command, client: Client) -> None:
        if command.body == "boom":
            raise ZeroDivisionError


def test_only_where_there_are_nothing_but_checks_they_are_all() -> None:
    one, other = Ours(), Ours()
    assert checks([]) == []
    assert checks([one, other]) == [one, other]
    assert checks([one, shout]) is None


async def test_a_check_is_trusted_and_its_fault_is_a_bug_that_is_seen() -> None:
    heard: list[Command] = []

    async def hear(command: Command, client: Client) -> Event | None:
        heard.append(command)
        return Notice("heard")

    handler = compose([Ours()], hear, 0.5)
    for _ in range(2 * FAILURES):
        with pytest.raises(ZeroDivisionError):
            await handler(Publish("boom"), make_client())
    assert await handler(Publish("a"), make_client()) == Notice("heard")
    assert heard == [Publish("a")]
