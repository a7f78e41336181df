"""What all WebSocket endpoints have in common: who is let in, how a connection lives, and how it ends."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Final, TypeAlias

from aiohttp import web

from chatserver import admission, context
from chatserver.admission import Admission
from chatserver.chain import Handler, Middleware, compose
from chatserver.client import Client
from chatserver.config import Config
from chatserver.errors import Disconnect, GoingAway, NoPong, PeerClosed, ServerFault, Slow, Stale
from chatserver.message import Command, Event
from chatserver.pool import Pool
from chatserver.protocol import Codec
from chatserver.rooms import Rooms
from chatserver.store import StoreError
from chatserver.tokens import Verifier
from chatserver.transport import WebSocketTransport
from chatserver.unstored import Unstored
from chatserver.watchdog import Watchdog

logger = logging.getLogger(__name__)

IDENTIFY_SECONDS: Final = 10.0
"""For a client to say who it is, where that is needed."""

Talk: TypeAlias = Callable[[], Awaitable[None]]
"""Reads what a client sends, and answers it. Raises `Disconnect` when the connection ends; returns if it was ended."""


class Door:
    """Lets clients in. One for all endpoints, so that they share limits and message middlewares."""

    def __init__(self, config: Config, pool: Pool, rooms: Rooms, chain: list[Middleware]) -> None:
        self.config = config
        self.pool = pool
        self.rooms = rooms
        self.verifier = Verifier(
            hmac_secret=config.token_hmac_secret,
            public_key_pem=config.token_public_key,
            jwks_url=config.token_jwks_url,
            audience=config.token_audience,
            issuer=config.token_issuer,
            require=config.token_require,
        )
        self.handler: Handler = self._publish
        """What handles a message: the chain, and behind it the room's log."""
        self.unstored: dict[Client, Unstored] = {}
        """Of those who are connected."""
        self._chain = chain
        self._admission = Admission(config)

    async def run(self, app: web.Application) -> AsyncIterator[None]:
        """For `cleanup_ctx`: composes the chain, to which all features have added by now, and runs pool and rooms."""
        self.handler = compose(self._chain, self._publish, self.config.plugin_seconds)
        await self._open_store()
        await self.pool.start()
        watchdog = asyncio.create_task(Watchdog().run())
        yield
        watchdog.cancel()
        await self.pool.stop()
        await self.rooms.stop()

    @contextlib.contextmanager
    def admitted(self, request: web.Request) -> Iterator[str]:
        """Counts a connection in, and out at the end; gives its address. Raises the `web.HTTPException` that refuses
        `request`, if it is to be refused.
        """
        if self.pool.draining:
            raise web.HTTPServiceUnavailable(text="the server stops", headers=admission.retry())
        self._admission.check(request)
        address = self._admission.address(request)
        self._admission.enter(address)
        try:
            yield address
        finally:
            self._admission.leave(address)

    def client(self, transport: WebSocketTransport, codec: Codec, address: str) -> Client:
        """A client that nobody knows yet. It has to be `identified` in time."""
        client = Client(
            transport,
            codec,
            id=secrets.token_hex(6),
            user="",
            address=address,
            queue_bytes=self.pool.queue_bytes,
            wake=self.pool.wake,
        )
        transport.answer, transport.refuse = client.control, client.disconnect
        self.unstored[client] = Unstored(client)
        context.connection.set(client.id)
        return client

    async def converse(self, client: Client, transport: WebSocketTransport, talk: Talk) -> None:
        """The life of a connection: `talk`, and then the rest of the closing handshake."""
        try:
            end = await self._talk(client, talk)
        except BaseException:  # our task is cancelled: the process goes, and waits for nobody
            end = GoingAway()
            transport.abort()
            raise
        finally:
            client.disconnect(end)
            self.pool.remove(client)
            del self.unstored[client]
            _log_end(client)
        await _close(client, transport)

    @contextlib.contextmanager
    def identifying(self, client: Client) -> Iterator[None]:
        """Within it, `client` has to say who it is, in time."""
        self.pool.expect(client)
        timer = asyncio.get_running_loop().call_later(IDENTIFY_SECONDS, client.disconnect, Stale())
        try:
            yield
        finally:
            timer.cancel()

    async def _open_store(self) -> None:
        """Launchers that aren't ours would show a traceback for what is only a wrong address."""
        try:
            await self.rooms.start()
        except StoreError as error:
            context.report(logger, logging.ERROR, "cannot open storage", problem=str(error))
            await self.rooms.stop()
            raise SystemExit(1) from None

    async def _talk(self, client: Client, talk: Talk) -> Disconnect:
        """Returns how the connection ends."""
        try:
            await talk()
        except Disconnect as end:
            if not client.ending:
                await self.unstored[client].settle()
            return end
        except Exception as error:
            context.report(logger, logging.ERROR, "connection failed", exc_info=error)
            return ServerFault()
        return client.ending or ServerFault()

    async def _publish(self, command: Command, client: Client) -> Event | None:
        """Returns when the message's place in the order is fixed. Its sender hears of it when it is stored, or not."""
        await self.rooms.ready(command.room)
        unstored = self.unstored.get(client) or Unstored(client)  # a middleware may take longer than the connection
        await unstored.ready()
        self.rooms.publish(command, client, unstored.add())
        return None


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
