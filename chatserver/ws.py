"""`/ws`: upgrade, reader loop, and whatever ends them."""

import asyncio
import logging
import secrets
import sys
import time
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import web

from chatserver import admission, context
from chatserver.admission import Admission
from chatserver.chain import Handler, Middleware, compose
from chatserver.client import Client
from chatserver.config import Config
from chatserver.errors import (
    ChatError,
    Disconnect,
    GoingAway,
    NoPong,
    PeerClosed,
    PolicyViolation,
    ServerFault,
    Slow,
)
from chatserver.keys import share
from chatserver.message import Command, Event, Message, Refused
from chatserver.pool import Pool
from chatserver.protocol import Simple
from chatserver.transport import WebSocketTransport
from chatserver.watchdog import Watchdog

logger = logging.getLogger(__name__)

BAD_FRAMES: Final = 10
"""So many frames in a row that aren't commands end a connection."""


class Door:
    """Lets WebSocket clients in, and speaks the simple protocol with them."""

    def __init__(self, config: Config, pool: Pool, chain: list[Middleware]) -> None:
        self._config = config
        self._pool = pool
        self._chain = chain
        self._admission = Admission(config)
        self._codec = Simple(config.max_body_bytes)
        self._handler: Handler = self._publish

    async def run(self, app: web.Application) -> AsyncIterator[None]:
        """For `cleanup_ctx`: composes the chain, to which all features have added by now, and runs the pool."""
        self._handler = compose(self._chain, self._publish, self._config.plugin_seconds)
        await self._pool.start()
        watchdog = asyncio.create_task(Watchdog().run())
        yield
        watchdog.cancel()
        await self._pool.stop()

    async def connect(self, request: web.Request) -> web.StreamResponse:
        """The handler of `/ws`: lives as long as the connection."""
        if self._pool.draining:
            raise web.HTTPServiceUnavailable(text="the server stops", headers=admission.retry())
        self._admission.check(request)
        user, address = admission.name(request), self._admission.address(request)
        self._admission.enter(address)
        try:
            transport = WebSocketTransport(self._config.max_message_bytes)
            await transport.prepare(request)
            await self._converse(transport, user, address)
        finally:
            self._admission.leave(address)
        return transport.response

    async def _converse(self, transport: WebSocketTransport, user: str, address: str) -> None:
        client = Client(
            transport,
            self._codec,
            id=secrets.token_hex(6),
            user=user,
            address=address,
            queue_bytes=self._pool.queue_bytes,
            wake=self._pool.wake,
        )
        transport.answer, transport.refuse = client.control, client.disconnect
        context.connection.set(client.id)
        context.user.set(user)
        context.report(logger, logging.INFO, "connected", address=address)
        try:
            end = await self._read(client, transport)
        except BaseException:  # our task is cancelled: the process goes, and waits for nobody
            end = GoingAway()
            transport.abort()
            raise
        finally:
            client.disconnect(end)
            self._pool.remove(client)
            _log_end(client)
        await self._close(client, transport)

    async def _read(self, client: Client, transport: WebSocketTransport) -> Disconnect:
        """The reader loop. Returns how the connection ends."""
        try:
            await self._pool.add(client)
            bad = 0
            while not client.ending:
                text = await transport.receive()
                assert isinstance(text, str)
                client.received += 1
                bad = 0 if await self._answer(client, text) else bad + 1
                if bad == BAD_FRAMES:
                    raise PolicyViolation("too many bad frames")
        except Disconnect as end:
            return end
        except Exception as error:
            context.report(logger, logging.ERROR, "connection failed", exc_info=error)
            return ServerFault()
        return client.ending

    async def _answer(self, client: Client, text: str) -> bool:
        """Handles one frame; what it asks for wrongly is answered. False: it was no command at all."""
        try:
            command = self._codec.decode(text)
        except ChatError as error:
            client.enqueue(Refused(error.code, str(error)))
            return False
        try:
            reply = await self._handler(command, client)
        except ChatError as error:
            reply = Refused(error.code, str(error))
        if reply:
            client.enqueue(reply)
        return True

    async def _publish(self, command: Command, client: Client) -> Event | None:
        await self._pool.settle()
        self._pool.broadcast(Message(client.user, command.body))
        return None

    @staticmethod
    async def _close(client: Client, transport: WebSocketTransport) -> None:
        """The rest of the closing handshake (RFC 6455 section 7.1.1), which the client's timer bounds."""
        if not isinstance(client.ending, PeerClosed):
            await transport.discard()
        await transport.finish(lambda: client.close_sent)
        client.gone()


def _log_end(client: Client) -> None:
    end = client.ending
    assert end is not None
    if isinstance(end, Slow | NoPong):
        event = "slow" if isinstance(end, Slow) else "dropped"
        context.report(logger, logging.WARNING, event, code=end.code)
    context.report(
        logger,
        logging.INFO,
        "disconnected",
        code=end.code,
        reason=str(end),
        seconds=round(time.monotonic() - client.connected_at, 3),
        messages_in=client.received,
        messages_out=client.delivered,
    )


def setup(app: web.Application, config: Config) -> None:
    """Makes `app["pool"]` and `app["chain"]`, serves `/ws`, and runs the pool as long as the application runs."""
    pool = Pool(
        queue_bytes=config.max_queue_bytes or sys.maxsize,
        heartbeat_seconds=config.heartbeat_seconds,
        write_seconds=config.write_seconds,
        plugin_seconds=config.plugin_seconds,
    )
    chain: list[Middleware] = []
    share(app, pool, chain)
    door = Door(config, pool, chain)
    app.router.add_get("/ws", door.connect)
    app.cleanup_ctx.append(door.run)
