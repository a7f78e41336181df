"""What all WebSocket endpoints have in common: who is let in, how a connection lives, and how it ends."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, TypeAlias

from aiohttp import web

from chatserver import admission, context
from chatserver.admission import Admission
from chatserver.chain import Handler, Middleware, checks, compose
from chatserver.client import CLOSE_SECONDS, Client
from chatserver.config import Config
from chatserver.errors import Disconnect, GoingAway, NoPong, PeerClosed, ServerFault, Slow, Stale
from chatserver.message import Command, Event
from chatserver.pool import Pool
from chatserver.protocol import Codec
from chatserver.rooms import Rooms
from chatserver.store import StoreError
from chatserver.tokens import Verifier
from chatserver.transport import WebSocketTransport
from chatserver.turnstile import ENDS_PER_TURN, Turnstile
from chatserver.unstored import Answer, Unstored
from chatserver.watchdog import Watchdog

logger = logging.getLogger(__name__)

IDENTIFY_SECONDS: Final = 10.0
"""For a client to say who it is, where that is needed."""

Talk: TypeAlias = Awaitable[None]
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
        self.immediate = False
        """The chain has nothing to wait for: messages may be handed to `publish`."""
        self._checks: list[Callable[[Command, Client], None]] = []
        self.ends = Turnstile(ENDS_PER_TURN)
        """For the transports of all."""
        self._unstored: dict[Client, Unstored] = {}
        self._conversations: set[asyncio.Task[object]] = set()  # asyncio and aiohttp would forget them
        self._chain = chain
        self._wake = pool.wake  # one method object for all clients
        self._admission = Admission(config)

    async def run(self, app: web.Application) -> AsyncIterator[None]:
        """For `cleanup_ctx`: composes the chain, to which all features have added by now, and runs pool and rooms."""
        self.handler = compose(self._chain, self._publish, self.config.plugin_seconds)
        found = checks(self._chain)
        self.immediate, self._checks = found is not None, [each.check for each in found or ()]
        await self._open_store()
        await self.pool.start()
        watchdog = asyncio.create_task(Watchdog().run())
        yield
        watchdog.cancel()
        await self._end_conversations()
        await self.pool.stop()
        await self.rooms.stop()

    def admit(self, request: web.Request) -> str:
        """Counts a connection in, and gives its address, which `dismiss` has to be called with at the end.

        Raises the `web.HTTPException` that refuses `request`, if it is to be refused.
        """
        if self.pool.draining:
            raise web.HTTPServiceUnavailable(text="the server stops", headers=admission.retry())
        self._admission.check(request)
        address = self._admission.address(request)
        self._admission.enter(address)
        return address

    def dismiss(self, address: str) -> None:
        """Counts out one that was admitted."""
        self._admission.leave(address)

    def client(self, transport: WebSocketTransport, codec: Codec, address: str) -> Client:
        """A client that nobody knows yet. It has to be `identified` in time."""
        client = Client(
            transport,
            codec,
            id=os.urandom(6).hex(),
            user="",
            address=address,
            queue_bytes=self.pool.queue_bytes,
            wake=self._wake,
        )
        transport.answer = client.control
        context.connection.set(client.id)
        return client

    def unstored(self, client: Client) -> Unstored:
        """The messages of `client` that are on their way; most never send any."""
        found = self._unstored.get(client)
        if found is None:
            found = Unstored(client, self.rooms.divide)
            if client in self.pool.clients:  # a middleware may take longer than the connection
                self._unstored[client] = found
        return found

    def publish(self, command: Command, client: Client, unstored: Unstored, answer: Answer) -> None:
        """What `handler` does if the door is `immediate`, and if neither the room nor `unstored` has to be waited for.

        Raises `ChatError` and `Disconnect`.
        """
        assert self.immediate  # or else a middleware would be passed over
        for check in self._checks:
            check(command, client)
        self.rooms.publish(command, client, unstored.add(answer))

    async def settle(self, client: Client) -> None:
        """Waits until it is known of each message of `client` what became of it."""
        if client in self._unstored:
            await self._unstored[client].settle()

    async def converse(self, client: Client, transport: WebSocketTransport, talk: Talk) -> None:
        """The life of a connection: `talk`, and then the rest of the closing handshake."""
        task = asyncio.current_task()
        assert task
        self._conversations.add(task)
        task.add_done_callback(self._conversations.discard)
        try:
            await talk
            end = client.ending or ServerFault()
        except Disconnect as reason:
            end = reason
            if not client.ending:
                await self.settle(client)
        except Exception as error:
            context.report(logger, logging.ERROR, "connection failed", exc_info=error)
            end = ServerFault()
        except BaseException:  # our task is cancelled: the process goes, and waits for nobody
            end = GoingAway()
            transport.abort()
            raise
        finally:
            client.disconnect(end)
            self.pool.remove(client)
            self._unstored.pop(client, None)
            _log_end(client)
        await _close(client, transport)

    def expect(self, client: Client) -> asyncio.TimerHandle:
        """`client` has to say who it is, in time, which ends when what is returned is cancelled."""
        self.pool.expect(client)
        return asyncio.get_running_loop().call_later(IDENTIFY_SECONDS, client.disconnect, Stale())

    async def _end_conversations(self) -> None:
        """All clients have been told that this is the end; whoever isn't through in a while is cancelled."""
        if self._conversations:
            _, late = await asyncio.wait(self._conversations, timeout=2 * CLOSE_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _open_store(self) -> None:
        """Launchers that aren't ours would show a traceback for what is only a wrong address."""
        try:
            await self.rooms.start()
        except StoreError as error:
            context.report(logger, logging.ERROR, "cannot open storage", problem=str(error))
            await self.rooms.stop()
            raise SystemExit(1) from None

    async def _publish(self, command: Command, client: Client) -> Event | None:
        """Returns when the message's place in the order is fixed. Its sender hears of it when it is stored, or not."""
        await self.rooms.ready(command.room)
        unstored = self.unstored(client)
        await unstored.ready()
        self.rooms.publish(command, client, unstored.add(unstored.answer))
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
