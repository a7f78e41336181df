"""The one place that reaches into aiohttp where it has no public way. A test fails when aiohttp changes it."""

import asyncio
import gc
import os
import re
import socket
import ssl
from collections import deque
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.http import RawRequestMessage, StreamWriter
from aiohttp.streams import EMPTY_PAYLOAD
from multidict import CIMultiDict

from chatserver import frame_parser
from chatserver.frame_parser import Unmask

_NO_MESSAGES: Final[deque[Any]] = deque()

_CACHES: Final = (CIMultiDict, dict)

_SETTLED_SECONDS: Final = 0.1
"""So long after an option of a listening socket was set, what it accepted before is known to asyncio."""

_TCP: Final = (socket.AF_INET, socket.AF_INET6)

_HEAD_END: Final = b"\r\n\r\n"
_UPGRADE: Final = re.compile(rb"\r\nupgrade:", re.IGNORECASE)

_CONSTANT: Final = (
    "_keepalive_timeout", "_lingering_time", "_logging_enabled", "_loop", "_max_msg_queue_size",
    "_msg_queue_resume_size", "_read_bufsize", "_tcp_keepalive", "_timeout_ceil_threshold", "access_log",
    "access_logger", "debug", "logger", "max_field_size", "max_headers", "max_line_size",
)  # fmt: skip
"""What is the same for all handlers of one server."""


def find_unmask() -> Unmask:
    """aiohttp's in machine code, which takes a fifth of the time of ours; or ours where aiohttp is built otherwise."""
    try:
        found: Unmask = import_module("aiohttp._websocket.mask")._websocket_mask_cython
    except (ImportError, AttributeError):
        return frame_parser.unmask
    return found


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
    if isinstance(connection, _Reception):
        transport.set_protocol(protocol)
        connection.leave(protocol)
    else:
        _disown(connection, transport, protocol)
    kept = gc.get_referents(request.headers)
    for cache in (getattr(request, "_cache", None), getattr(connection, "_cache", None), *kept):
        if isinstance(cache, _CACHES):
            cache.clear()


def has_send_buffer(request: web.Request) -> bool:
    """`Runner.set_send_buffer` has set that of the connection by which `request` came."""
    return getattr(request.protocol, "has_send_buffer", False)


def _disown(connection: web.RequestHandler, transport: asyncio.Transport, protocol: asyncio.Protocol) -> None:
    connection.set_parser(_Behind(protocol))  # type: ignore[arg-type]
    transport.set_protocol(protocol)
    connection.keep_alive(False)
    if hasattr(connection, "transport") and hasattr(connection, "_task_handler"):
        connection.transport = None  # or else it would be closed,
        connection._task_handler = None  # and the handler cancelled where the launcher wants that for lost connections
        connection.connection_lost(None)
    if hasattr(connection, "_messages"):
        connection._messages = _NO_MESSAGES


class Runner(web.AppRunner):
    """aiohttp's, with a shorter way from a connect to the handler of the request that asks for an upgrade."""

    async def _make_server(self) -> web.Server:
        return _quick(await super()._make_server())

    async def accept_together(self, count: int, *, ssl_context: ssl.SSLContext | None, backlog: int) -> None:
        """Has `count` connections accepted in one turn where they come by TCP, with what the sites were given.

        uvloop accepts one for each descriptor, so each listening socket gets some more. With all that a turn costs for
        each connection 5,000 at once took a third longer. asyncio's own loop accepts all who wait.
        """
        if type(asyncio.get_running_loop()).__module__.partition(".")[0] != "uvloop":
            return
        for listening in self._listening():
            for _ in range(count - 1 if listening.family in _TCP else 0):
                same = socket.socket(fileno=os.dup(listening.fileno()))
                await web.SockSite(self, same, ssl_context=ssl_context, backlog=backlog).start()

    def set_send_buffer(self, size: int) -> None:
        """Sets that of the connections which the sites accept from now on, where they inherit it: in TCP.

        For each by itself it takes uvloop several system calls, and a Python socket.
        """
        sockets = self._listening()
        if isinstance(self.server, _Server) and all(sock.family in _TCP for sock in sockets):
            for sock in sockets:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
            asyncio.get_running_loop().call_later(_SETTLED_SECONDS, setattr, self.server, "has_send_buffer", True)

    def _listening(self) -> list[socket.socket]:
        servers = [getattr(site, "_server", None) for site in self.sites]
        return [sock for server in servers for sock in getattr(server, "sockets", ())]


def _quick(server: web.Server) -> web.Server:
    """Stands in for `server`, which it is itself where aiohttp isn't built as `_Reception` has it."""
    try:
        quick = _Server(server)
        usual, own = _state(server()), _state(quick())
    except (AttributeError, TypeError):
        return server
    del own["has_send_buffer"]
    own |= {"_manager": server, "_messages": deque(), "_parser": usual.get("_parser"), "_upgraded": False}
    return quick if own == usual else server


def _state(handler: web.RequestHandler) -> dict[str, object]:
    """All that `handler` keeps."""
    names = (name for kind in type(handler).__mro__ for name in getattr(kind, "__slots__", ()))
    return {name: getattr(handler, name, None) for name in names}


class _Server(web.Server):
    """Has each connection begin with a `_Reception`."""

    def __init__(self, server: web.Server) -> None:
        """Serves what `server` would have served."""
        super().__init__(
            server.request_handler,
            request_factory=server.request_factory,
            handler_cancellation=server.handler_cancellation,
            loop=server._loop,
            **server._kwargs,
        )
        self.usual = super().__call__
        """Makes what aiohttp would begin with."""
        handler = self.usual()
        self.patience = handler.keepalive_timeout
        """Seconds for a request to come."""
        self.silent: dict[_Reception, float] = {}
        """The connections by which nothing has come yet, the oldest first, with the time when that has to end."""
        self.has_send_buffer = False
        """Connections come with what was set for all."""
        constant = {name: getattr(handler, name) for name in _CONSTANT}
        self._kind: Callable[[_Server], web.RequestHandler] = type(
            "_Reception", (_Reception,), {"__slots__": (), **constant}
        )
        self._parser = handler._parser
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self) -> web.RequestHandler:
        return self._kind(self)

    def expect(self, connection: "_Reception") -> None:
        """Something has to come by `connection`, in time."""
        if self.patience <= 0:
            return
        self.silent[connection] = deadline = self._loop.time() + self.patience
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._end_silent)

    def parse(self, data: bytes) -> RawRequestMessage | None:
        """The request in `data`, if there is one that asks for an upgrade, the whole of it, and nothing else."""
        if data.find(_HEAD_END) != len(data) - len(_HEAD_END) or not _UPGRADE.search(data):
            return None
        assert self._parser
        try:
            messages, upgraded, _ = self._parser.feed_data(data)
        except Exception:  # aiohttp's own handler will find it, too, and answers it
            messages, upgraded = [], False
        if len(messages) != 1 or not upgraded:
            self._parser = self.usual()._parser
            return None
        self._parser.set_upgraded(False)
        self._parser.message_consumed()
        message: RawRequestMessage = messages[0][0]
        return message

    def _end_silent(self) -> None:
        self._timer = None
        now = self._loop.time()
        for connection, deadline in list(self.silent.items()):
            if deadline > now:
                self._timer = self._loop.call_at(deadline, self._end_silent)
                return
            connection.force_close()


class _Reception(web.RequestHandler):
    """A connection until its first request is answered, or the connection taken over.

    If that request is what `_Server.parse` takes, it is handled here, as aiohttp would but without a parser, a timer
    and a second task for each connection. In all other cases, and afterwards, the connection is aiohttp's.
    """

    __slots__ = ("has_send_buffer",)
    _manager: _Server

    def __init__(self, server: _Server) -> None:
        """All that aiohttp's own would keep, except what is the server's, and a parser."""
        self.has_send_buffer = server.has_send_buffer
        self._manager = server
        self._request_factory = server.request_factory
        self._request_handler = server.request_handler
        self._keepalive = self._upgraded = True
        self._close = self._force_close = self._request_in_progress = False
        self._paused = self._reading_paused = self._buffer_paused = False
        self.transport = self._task_handler = self._current_request = self._parser = None
        self._waiter = self._handler_waiter = self._drain_waiter = self._keepalive_handle = None
        self._payload_parser = self._data_received_cb = None
        self._request_count = 0
        self._next_keepalive_close_time = 0.0
        self._messages = _NO_MESSAGES
        self._message_tail = b""
        self._cache = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's. Its loops, and uvloop, have set TCP_NODELAY."""
        self.transport = cast(asyncio.Transport, transport)
        self._manager.connection_made(self, self.transport)
        self._manager.expect(self)

    def data_received(self, data: bytes) -> None:
        """asyncio's: the first request, or what comes while that is handled."""
        if self._task_handler or self._force_close:
            super().data_received(data)
            return
        deadline = self._manager.silent.pop(self, None)
        message = self._manager.parse(data)
        if message:
            self._task_handler = self._loop.create_task(self._serve(message))
        else:
            self._pass_on(data, deadline)

    def connection_lost(self, exc: BaseException | None) -> None:
        """asyncio's."""
        if self._manager:
            self._manager.silent.pop(self, None)
        super().connection_lost(exc)

    def leave(self, successor: asyncio.Protocol) -> None:
        """The connection is that of `successor` now, who gets what came behind the request."""
        server, transport, tail = self._manager, self.transport, self._message_tail
        self.transport = self._task_handler = None
        server.connection_lost(self)
        self._manager = self._request_factory = self._request_handler = None  # type: ignore[assignment]
        self._message_tail = b""
        if transport and self._buffer_paused:
            transport.resume_reading()
        if tail:
            successor.data_received(tail)

    def close(self) -> None:
        """aiohttp's: the application shuts down."""
        super().close()
        if not self._task_handler:
            self.force_close()

    async def _serve(self, message: RawRequestMessage) -> None:
        """What aiohttp's `start` does with one request."""
        self._manager.requests_count += 1
        assert self._request_factory
        assert self._request_handler
        assert self._task_handler
        loop = self._loop
        request = self._request_factory(message, EMPTY_PAYLOAD, self, StreamWriter(self, loop), self._task_handler)
        started = loop.time() if self._logging_enabled else None
        try:
            response, reset = await self._handle_request(request, started, self._request_handler)
        except ConnectionError:
            self.force_close()
            return
        except Exception as error:
            self.log_exception("Unhandled exception", exc_info=error)
            self.force_close()
            return
        except BaseException:
            self.force_close()
            raise
        finally:
            request._task = None  # type: ignore[assignment] # it refers to this frame
        if not self._manager:  # taken over, or lost
            return
        if reset or not response.keep_alive or self._close or self._force_close:
            self.force_close()
        else:
            self._pass_on(self._message_tail, None)

    def _pass_on(self, data: bytes, deadline: float | None) -> None:
        """The connection is aiohttp's, with `data` that came already. A request has to be there by `deadline`."""
        server, transport = self._manager, self.transport
        assert transport
        handler = server.usual()
        transport.set_protocol(handler)
        handler.connection_made(transport)
        if deadline is not None and handler._keepalive_handle:
            handler._keepalive_handle.cancel()
            handler._next_keepalive_close_time = deadline
            handler._keepalive_handle = self._loop.call_at(deadline, handler._process_keepalive)
        self._message_tail = data
        self.leave(handler)
