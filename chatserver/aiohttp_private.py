"""The one place that reaches into aiohttp where it has no public way. A test fails when aiohttp changes it."""

import asyncio
import gc
from collections import deque
from typing import Any, Final

from aiohttp import web
from multidict import CIMultiDict

_NO_MESSAGES: Final[deque[Any]] = deque()


class _Behind:
    """Passes on what came behind the request that asked for the upgrade."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        self._protocol = protocol

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self._protocol.data_received(data)
        return False, b""

    def feed_eof(self) -> None:
        return


def take_over(request: web.Request, transport: asyncio.Transport, protocol: asyncio.Protocol) -> None:
    """From now on `protocol` has the connection that `request` came by. Nothing is written to it by aiohttp any more.

    What aiohttp kept for the connection is let go of: its parser, its queues, its timer, and the headers of `request`,
    which are empty from here on. Where aiohttp is built otherwise, that stays, and costs memory, nothing else.
    """
    connection = request.protocol
    connection.set_parser(_Behind(protocol))  # type: ignore[arg-type]
    transport.set_protocol(protocol)
    connection.keep_alive(False)
    if hasattr(connection, "transport") and hasattr(connection, "_task_handler"):
        connection.transport = None  # or else it would be closed,
        connection._task_handler = None  # and the handler cancelled where the launcher wants that for lost connections
        connection.connection_lost(None)
    if hasattr(connection, "_messages"):
        connection._messages = _NO_MESSAGES
    caches = (getattr(owner, "_cache", None) for owner in (request, connection))
    for kept in (*gc.get_referents(request.headers), *caches):
        if isinstance(kept, CIMultiDict | dict):
            kept.clear()
