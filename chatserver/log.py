"""Structured logs: one JSON object a line, on standard error, the same under every launcher."""

import logging
import logging.config
import time
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler

from chatserver import context
from chatserver.config import Config

LINES_PER_SECOND: Final = 10
"""Of one kind; more are counted and told with the next line that is let through."""

access = logging.getLogger("chatserver.access")

_LIBRARIES: Final = ("aiohttp", "asyncio")
_PEER_FAULTS: Final = (
    HttpProcessingError,
    web.RequestPayloadError,
    ConnectionResetError,
    ConnectionAbortedError,
    BrokenPipeError,
)
_LEVELS: Final = {"debug": "DEBUG", "info": "INFO", "warn": "WARNING", "error": "ERROR"}


class ContextFilter(logging.Filter):
    """Puts connection and user on every line that doesn't name them itself."""

    def filter(self, record: logging.LogRecord) -> bool:
        for variable in (context.connection, context.user):
            value = variable.get()
            if value is not None and not hasattr(record, variable.name):
                setattr(record, variable.name, value)
        return True


class PeerFaultFilter(logging.Filter):
    """No traceback for what a peer did to aiohttp or asyncio: no HTTP, or a connection that it broke."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if record.name.split(".")[0] not in _LIBRARIES or not isinstance(error, _PEER_FAULTS):
            return True
        record.exc_info = None
        record.levelno, record.levelname = logging.INFO, "INFO"
        record.msg, record.args = "peer fault", ()
        record.problem = type(error).__name__
        return logging.getLogger().isEnabledFor(logging.INFO)


class FloodFilter(logging.Filter):
    """Lets through `LINES_PER_SECOND` of what one place in the code logs, and counts the rest."""

    def __init__(self) -> None:
        super().__init__()
        self._kinds: dict[tuple[str, int], list[float]] = {}  # since when, lines, of them not printed

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        kind = self._kinds.setdefault((record.pathname, record.lineno), [now, 0, 0])
        if now - kind[0] >= 1:
            if kind[2]:
                record.suppressed = int(kind[2])
            kind[:] = [now, 0, 0]
        kind[1] += 1
        if kind[1] <= LINES_PER_SECOND:
            return True
        kind[2] += 1
        return False


def configure(level: str) -> None:
    """Routes all loggers, aiohttp's and asyncio's too, to one JSON handler. `level` is one of config.LEVELS."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {
                "context": {"()": ContextFilter},
                "peer": {"()": PeerFaultFilter},
                "flood": {"()": FloodFilter},
            },
            "formatters": {
                "json": {
                    "()": "pythonjsonlogger.json.JsonFormatter",
                    "fmt": ["levelname", "name", "message"],
                    "rename_fields": {"levelname": "level", "name": "logger", "exc_info": "traceback"},
                    "timestamp": "timestamp",
                    "json_ensure_ascii": True,
                }
            },
            "handlers": {
                "stderr": {
                    "class": "logging.StreamHandler",
                    "stream": "ext://sys.stderr",
                    "formatter": "json",
                    "filters": ["peer", "flood", "context"],
                }
            },
            "root": {"level": _LEVELS[level], "handlers": ["stderr"]},
            "loggers": {
                # aiohttp's own access log has the query string, and with it people's tokens; ours stands in for it.
                "aiohttp.access": {"level": "WARNING", "handlers": [], "propagate": True},
                # Its warnings quote the subprotocols that a client offers, and there may be a token among them.
                "aiohttp.websocket": {"level": "ERROR", "handlers": [], "propagate": True},
            },
        }
    )
    logging.raiseExceptions = False  # a broken standard error is nobody's traceback


@web.middleware
async def log_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """One line for each HTTP request, without its query. WebSockets that are let in log their own events instead."""
    started = time.monotonic()
    try:
        response = await handler(request)
    except web.HTTPException as answer:
        _log_request("refused" if answer.status >= 400 else "request", request, answer.status, started, answer.text)
        raise
    if response.status != 101:
        _log_request("request", request, response.status, started)
    return response


def _log_request(event: str, request: web.Request, status: int, started: float, problem: str | None = None) -> None:
    fields = {"method": request.method, "path": request.path, "status": status, "address": request.remote}
    if problem:
        fields["problem"] = problem
    context.report(access, logging.INFO, event, seconds=round(time.monotonic() - started, 4), **fields)


def setup(app: web.Application, config: Config) -> None:
    """Configures logging and installs the logging middleware."""
    configure(config.log_level)
    app.middlewares.append(log_middleware)
