"""The log: one JSON object a line, whatever is logged by whom; what a line tells, and what it never does."""

import asyncio
import contextlib
import contextvars
import gc
import io
import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, BadStatusLine
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given
from hypothesis import strategies as st

from chatserver import context, log
from chatserver.app import build
from chatserver.config import Config
from chatserver.context import report
from chatserver.guard import Guard
from tests.fakes import PATIENT
from tests.raw import RawClient

ours = logging.getLogger("chatserver.somewhere")

CANARY = "canary-1b2c3d"

HOSTILE = {
    "line feed": '\n{"level": "ERROR", "message": "forged"}',
    "carriage return": '\r{"level": "ERROR", "message": "forged"}',
    "both": "\r\n\r\n",
    "line separator": '\u2028{"message": "forged"}\u2029',
    "next line": '\x85{"message": "forged"}',
    "other breaks": "\x0b\x0c\x1c\x1d\x1e",
    "escape": "\x1b[2J\x1b]0;title\x07",
    "NUL": "a\x00b",
    "delete": "a\x7fb",
    "quote": '", "level": "ERROR',
    "backslash": "\\",
    "end of object": '"}\n{"level": "ERROR", "message": "forged"}',
    "lone surrogate": "\ud800",
    "low surrogate": "a\udcffb",
    "format": "%s %d %(name)s {level}",
    "right to left": "\u202eecila",
    "astral": "\U0001f600",
}


class Log(io.StringIO):
    """Stands in for standard error."""

    @property
    def lines(self) -> list[dict[str, Any]]:
        """All lines so far; fails on one that is no JSON object."""
        text = self.getvalue()
        assert not text or text.endswith("\n")
        assert text.isascii()
        assert all(char >= " " or char == "\n" for char in text)
        lines = [json.loads(line) for line in text.splitlines()]
        assert all(isinstance(line, dict) for line in lines)
        return lines

    @property
    def line(self) -> dict[str, Any]:
        """The only one."""
        [line] = self.lines
        return line

    def of(self, message: str) -> list[dict[str, Any]]:
        """The lines with this message."""
        return [line for line in self.lines if line["message"] == message]


def configured(level: str = "info") -> Log:
    """Configures logging; returns what stands in for standard error."""
    stream = Log()
    with contextlib.redirect_stderr(stream):
        log.configure(level)
    return stream


def built(**settings: Any) -> tuple[web.Application, Log]:
    """An application, and what stands in for its standard error."""
    stream = Log()
    with contextlib.redirect_stderr(stream):
        app = build(Config(**settings))
    return app, stream


def alone(function: Callable[..., object], *arguments: object) -> None:
    """Calls it in a context of its own."""
    contextvars.copy_context().run(function, *arguments)


# What a line is made of


@pytest.mark.parametrize("name", ["chatserver.ws", "aiohttp.server", "asyncio", "anybody", "chatserver"])
def test_each_line_of_any_logger_is_one_json_object(name: str) -> None:
    stream = configured()
    before = datetime.now(UTC)
    logging.getLogger(name).warning("%s happened", "it")
    line = stream.line
    time = datetime.fromisoformat(line.pop("timestamp"))
    assert before.replace(microsecond=0) <= time <= datetime.now(UTC)
    assert line == {"level": "WARNING", "logger": name, "message": "it happened"}


def test_loggers_made_before_are_not_silenced() -> None:
    early = logging.getLogger("made.before")
    stream = configured()
    early.info("heard")
    assert stream.line["message"] == "heard"


def test_fields_stand_beside_the_message() -> None:
    stream = configured()
    report(ours, logging.INFO, "event", number=1, text="x", none=None, list=["a", 1], flag=True)
    line = stream.line
    assert {name: line[name] for name in ("number", "text", "none", "list", "flag")} == {
        "number": 1, "text": "x", "none": None, "list": ["a", 1], "flag": True,
    }  # fmt: skip


@pytest.mark.parametrize("value", [b"\xff\n", {1, 2}, ValueError("x"), object(), datetime.now(UTC), Config])
def test_a_field_that_json_does_not_know_is_told_somehow(value: object) -> None:
    stream = configured()
    report(ours, logging.INFO, "event", value=value)
    assert stream.line["value"]


def test_configuring_twice_does_not_double_lines() -> None:
    configured()
    stream = configured()
    ours.info("once")
    assert len(stream.lines) == 1


# Whom a line is about


def test_connection_and_user_are_on_every_line_of_their_task() -> None:
    stream = configured()

    def serve() -> None:
        context.connection.set("c1")
        context.user.set("alice")
        report(ours, logging.INFO, "ours")
        logging.getLogger("asyncio").warning("theirs")

    alone(serve)
    assert [(line["connection"], line["user"]) for line in stream.lines] == [("c1", "alice")] * 2


def test_a_line_about_nobody_names_nobody() -> None:
    stream = configured()
    alone(ours.info, "event")
    assert not {"connection", "user"} & set(stream.line)


def test_a_line_that_names_them_itself_is_right() -> None:
    stream = configured()

    def serve() -> None:
        context.connection.set("c1")
        context.user.set("alice")
        report(ours, logging.INFO, "about another", connection="c2", user="bob")

    alone(serve)
    assert (stream.line["connection"], stream.line["user"]) == ("c2", "bob")


async def test_tasks_do_not_mix_up_whom_they_serve() -> None:
    stream = configured()

    async def serve(user: str) -> None:
        context.user.set(user)
        await asyncio.sleep(0)
        report(ours, logging.INFO, user)

    await asyncio.gather(*(serve(user) for user in ("alice", "bob", "carol")))
    assert [(line["message"], line["user"]) for line in stream.lines] == [(n, n) for n in ("alice", "bob", "carol")]


# Forgery


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_nothing_that_a_peer_sends_can_forge_a_line(text: str) -> None:
    stream = configured()
    report(ours, logging.INFO, "fields", user=text, path=text)
    report(ours, logging.INFO, text)
    ours.info("%s", text)
    report(ours, logging.ERROR, "exception", exc_info=ValueError(text))
    fields, event, argument, exception = stream.lines
    assert (fields["user"], fields["path"]) == (text, text)
    assert (event["message"], argument["message"]) == (text, text)
    assert text in exception["traceback"]
    assert [line["level"] for line in stream.lines] == ["INFO", "INFO", "INFO", "ERROR"]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_user_from_the_context_can_forge_nothing(text: str) -> None:
    stream = configured()

    def serve() -> None:
        context.user.set(text)
        ours.info("event")

    alone(serve)
    assert (stream.line["user"], stream.line["level"]) == (text, "INFO")


@PATIENT
@given(st.text(st.characters(exclude_categories=())))
def test_no_text_at_all_can_forge_a_line(text: str) -> None:
    stream = configured()
    report(ours, logging.INFO, text, user=text, **{f"field {text}": text})
    assert stream.line["level"] == "INFO"
    assert stream.line["logger"] == ours.name


@pytest.mark.parametrize("path", ["/%0A%7B%22level%22:1%7D", "/%00", "/%1b[2J", "/%E2%80%A8", "/%ff", "/%22%2c%22"])
async def test_a_hostile_path_is_one_line(path: str) -> None:
    app, stream = built()
    async with TestServer(app) as server:
        client = await RawClient.connect(server.port or 0, path)
        assert client.status == 404
    [line] = stream.of("refused")
    assert line["logger"] == "chatserver.access"


async def test_hostile_headers_do_not_reach_the_log() -> None:
    app, stream = built()
    async with TestServer(app) as server:
        evil = f'"}}{{"level": "ERROR"}} \x80\xff {CANARY}'
        client = await RawClient.connect(server.port or 0, "/nowhere", User_Agent=evil, Referer=evil, Cookie=evil)
        assert client.status == 404
    assert stream.of("refused")
    assert CANARY not in stream.getvalue()


# Floods


class Clock:
    """A time that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(log, "time", SimpleNamespace(monotonic=lambda: self.now))


def flood(count: int) -> None:
    """Logs from one place."""
    for number in range(count):
        report(ours, logging.INFO, f"line {number}", number=number)


def test_one_place_logs_ten_lines_a_second_and_the_rest_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = Clock(monkeypatch), configured()
    flood(25)
    assert [line["number"] for line in stream.lines] == list(range(10))
    clock.now += 0.99
    flood(1)
    assert len(stream.lines) == 10
    clock.now += 0.01
    flood(1)
    assert stream.lines[-1]["suppressed"] == 16
    clock.now += 1
    flood(1)
    assert [line.get("suppressed") for line in stream.lines] == [None] * 10 + [16, None]


def test_ten_lines_in_each_second_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = Clock(monkeypatch), configured()
    for _ in range(5):
        flood(10)
        clock.now += 1
    assert len(stream.lines) == 50
    assert not any("suppressed" in line for line in stream.lines)


def test_a_flood_of_one_place_costs_others_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    stream = configured()
    flood(25)
    report(ours, logging.INFO, "another place, the same level and logger")
    ours.info("and one more")
    assert len(stream.lines) == 12


def test_lines_that_the_level_filters_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    stream = configured()
    for number in range(100):
        report(ours, logging.ERROR if number > 90 else logging.DEBUG, "event")
    assert len(stream.lines) == 9


# Peers' faults and ours

PEER_FAULTS = [
    BadStatusLine("\x16\x03\x01"),
    BadHttpMessage("no HTTP"),
    ConnectionResetError("reset"),
    BrokenPipeError("pipe"),
    ConnectionAbortedError("aborted"),
]


def fail(error: BaseException, name: str = "aiohttp.server") -> None:
    """Logs `error` as aiohttp does: from where it was caught, with its traceback."""
    try:
        raise error
    except BaseException:
        logging.getLogger(name).exception("Error handling request from %s", "1.2.3.4")


@pytest.mark.parametrize("error", PEER_FAULTS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("name", ["aiohttp.server", "asyncio"])
def test_a_peers_fault_is_a_line_without_traceback(error: Exception, name: str) -> None:
    stream = configured()
    fail(error, name)
    line = stream.line
    del line["timestamp"]
    assert line == {"level": "INFO", "logger": name, "message": "peer fault", "problem": type(error).__name__}


@pytest.mark.parametrize(("level", "lines"), [("debug", 1), ("info", 1), ("warn", 0), ("error", 0)])
def test_a_peers_fault_is_worth_an_info(level: str, lines: int) -> None:
    stream = configured(level)
    fail(PEER_FAULTS[0])
    assert len(stream.lines) == lines


@pytest.mark.parametrize("level", ["debug", "info", "warn", "error"])
@pytest.mark.parametrize("error", [RuntimeError("ours"), KeyError("ours"), OSError("ours"), AssertionError("ours")])
def test_our_own_exceptions_keep_their_traceback(error: Exception, level: str) -> None:
    stream = configured(level)
    fail(error)
    line = stream.line
    assert (line["level"], line["message"]) == ("ERROR", "Error handling request from 1.2.3.4")
    assert line["traceback"].startswith("Traceback (most recent call last):\n")
    assert "ours" in line["traceback"].splitlines()[-1]
    assert "in fail" in line["traceback"]


def test_a_plugin_whose_database_refuses_it_is_no_peers_fault() -> None:
    stream = configured("error")

    async def plugin() -> None:
        """Asks its database."""

    Guard(plugin, 1).failed("ConnectionRefusedError()", ConnectionRefusedError("database"))
    line = stream.line
    assert (line["level"], line["message"]) == ("ERROR", "plugin failed")
    assert "ConnectionRefusedError: database" in line["traceback"]


async def test_a_request_handler_whose_database_refuses_it_is_no_peers_fault() -> None:
    async def history(request: web.Request) -> web.Response:
        raise ConnectionRefusedError("database")

    app, stream = built(log_level="error")
    app.router.add_get("/history", history)
    async with TestServer(app) as server:
        assert (await RawClient.connect(server.port or 0, "/history")).status == 500
    assert stream.line["level"] == "ERROR"
    assert "ConnectionRefusedError: database" in stream.line["traceback"]


async def test_a_lost_task_whose_database_refused_it_is_no_peers_fault() -> None:
    async def refresh() -> None:
        raise ConnectionRefusedError("database")

    stream = configured("error")
    asyncio.get_running_loop().set_exception_handler(None)  # asyncio's own, which logs
    task = asyncio.create_task(refresh())
    await asyncio.sleep(0)
    del task
    gc.collect()
    assert stream.line["level"] == "ERROR"
    assert "ConnectionRefusedError: database" in stream.line["traceback"]


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"GET\r\n\r\n", b"\r\n\r\n\x00\r\n\r\n"])
async def test_garbage_from_the_network_is_no_error_in_the_log(garbage: bytes) -> None:
    app, stream = built(log_level="debug")
    async with TestServer(app) as server:
        client = RawClient(*await asyncio.open_connection("127.0.0.1", server.port))
        client.writer.write(garbage)
        await client.read_head()
        assert client.status == 400
    [line] = stream.of("peer fault")
    assert (line["logger"], line["problem"]) == ("aiohttp.server", "BadHttpMethod")
    assert all(line["level"] in ("DEBUG", "INFO") and "traceback" not in line for line in stream.lines)


# LOG_LEVEL


@pytest.mark.parametrize(("level", "printed"), [("debug", 4), ("info", 3), ("warn", 2), ("error", 1)])
def test_the_level_filters_all_loggers(level: str, printed: int) -> None:
    for name in ("chatserver.ws", "chatserver.access", "aiohttp.server", "asyncio", "a.plugin"):
        stream = configured(level)
        for number in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            logging.getLogger(name).log(number, "event")
        expected = [(name, word) for word in ("DEBUG", "INFO", "WARNING", "ERROR")][-printed:]
        assert [(line["logger"], line["level"]) for line in stream.lines] == expected


def test_the_level_is_that_of_the_configuration() -> None:
    _, stream = built(log_level="warn")
    ours.info("unheard")
    ours.warning("heard")
    assert stream.line["message"] == "heard"


# A log that is broken itself


class Breaking(logging.Handler):
    """Fails at every record."""

    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError("a handler is broken")


def test_a_broken_handler_on_the_root_logger_never_makes_report_raise() -> None:
    stream = configured()
    logging.getLogger().addHandler(Breaking())
    report(ours, logging.ERROR, "event", exc_info=ValueError())
    assert stream.line["message"] == "event"


def test_a_closed_standard_error_raises_nothing() -> None:
    stream = configured()
    stream.close()
    report(ours, logging.ERROR, "ours")
    logging.getLogger("aiohttp.server").error("theirs")
    fail(RuntimeError("theirs"))


def test_a_broken_standard_error_is_not_filled_with_tracebacks(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError("no space left on device")

    with contextlib.redirect_stderr(Broken()):
        log.configure("info")
    logging.getLogger("aiohttp.server").error("event")
    assert capsys.readouterr() == ("", "")


def test_a_field_that_breaks_the_formatter_costs_its_line_only() -> None:
    stream = configured()
    endless: list[object] = []
    endless.append(endless)
    report(ours, logging.INFO, "broken", field=endless)
    report(ours, logging.INFO, "whole")
    assert stream.line["message"] == "whole"


# The log middleware


async def answer(request: web.Request) -> web.StreamResponse:
    """What the path asks for."""
    match request.path:
        case "/found":
            raise web.HTTPFound("/elsewhere")
        case "/forbidden":
            raise web.HTTPForbidden(text="not for you")
        case "/bug":
            raise RuntimeError("ours")
        case "/teapot":
            return web.Response(status=418)
    return web.Response(text="fine")


@pytest.fixture
async def client() -> Any:
    """Of an application that only logs; `client.log` is what it wrote."""
    app, stream = web.Application(), Log()
    with contextlib.redirect_stderr(stream):
        log.setup(app, Config())
    for path in ("/fine", "/found", "/forbidden", "/bug", "/teapot"):
        app.router.add_get(path, answer)
    async with TestClient(TestServer(app)) as client:
        client.log = stream  # type: ignore[attr-defined]
        yield client


@pytest.mark.parametrize(
    ("path", "status", "event", "problem"),
    [
        ("/fine", 200, "request", None),
        ("/found", 302, "request", "302: Found"),
        ("/forbidden", 403, "refused", "not for you"),
        ("/nowhere", 404, "refused", "404: Not Found"),
        ("/teapot", 418, "request", None),
    ],
)
async def test_a_request_is_one_line(client: Any, path: str, status: int, event: str, problem: str | None) -> None:
    async with client.get(path, allow_redirects=False) as response:
        assert response.status == status
    line = client.log.line
    assert 0 <= line.pop("seconds") < 60
    assert line.pop("timestamp")
    assert line.pop("problem", None) == problem
    assert line == {
        "level": "INFO", "logger": "chatserver.access", "message": event, "method": "GET", "path": path,
        "status": status, "address": "127.0.0.1",
    }  # fmt: skip


async def test_a_method_that_is_not_allowed_is_refused(client: Any) -> None:
    async with client.post("/fine") as response:
        assert response.status == 405
    assert (client.log.line["message"], client.log.line["method"]) == ("refused", "POST")


async def test_a_bug_in_a_handler_is_logged_with_its_traceback(client: Any) -> None:
    async with client.get("/bug") as response:
        assert response.status == 500
        assert "ours" not in await response.text()
    assert client.log.line["level"] == "ERROR"
    assert "RuntimeError: ours" in client.log.line["traceback"]


@pytest.mark.parametrize("path", ["/fine", "/found", "/forbidden", "/nowhere", "/bug"])
async def test_no_query_reaches_the_log(client: Any, path: str) -> None:
    async with client.get(f"{path}?token={CANARY}#{CANARY}", allow_redirects=False):
        pass
    assert client.log.lines
    assert CANARY not in client.log.getvalue()


async def test_no_query_of_a_websocket_reaches_the_log() -> None:
    app, stream = built(log_level="debug")
    async with TestServer(app) as server:
        path = f"/ws?name=alice&from={CANARY}"
        client = await RawClient.connect(server.port or 0, path)
        assert client.status == 101
        await client.close()
        assert (await RawClient.connect(server.port or 0, path, Origin="http://evil")).status == 403
        assert (await RawClient.connect(server.port or 0, f"/ws?token={CANARY}")).status == 401
    assert [line["user"] for line in stream.of("connected") + stream.of("disconnected")] == ["alice", "alice"]
    assert len(stream.of("refused")) == 2
    assert CANARY not in stream.getvalue()


async def test_a_websocket_that_is_let_in_is_no_request_line() -> None:
    app, stream = built()
    async with TestServer(app) as server:
        client = await RawClient.connect(server.port or 0, "/ws?name=alice")
        await client.close()
    assert not stream.of("request")
    assert len(stream.of("connected")) == len(stream.of("disconnected")) == 1
