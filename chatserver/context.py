"""Whom a log line is about, and the one way in which the running server writes one."""

import contextlib
import logging
from contextvars import ContextVar

connection: ContextVar[str | None] = ContextVar("connection", default=None)
"""The id of the connection that this task serves; every log line of the task carries it."""

user: ContextVar[str | None] = ContextVar("user", default=None)
"""The user on that connection."""


def report(logger: logging.Logger, level: int, event: str, *, exc_info: object = None, **fields: object) -> None:
    """Logs `event` with `fields`. Never raises: a broken log handler must not cost anybody a connection."""
    if not logger.isEnabledFor(level):
        return
    with contextlib.suppress(Exception):
        logger.log(level, event, exc_info=exc_info, extra=fields, stacklevel=2)  # type: ignore[arg-type]
