"""`/ws`: upgrade, reader loop, and whatever ends them."""

import asyncio
import logging
import secrets
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Final
from weakref import WeakKeyDictionary

from aiohttp import web

from chatserver import admission, context, query
from chatserver.admission import Admission
from chatserver.chain import Handler, Middleware, compose
from chatserver.client import Client
from chatserver.config import Config
from chatserver.errors import (
    ChatError,
    Disconnect,
    GoingAway,
    InsufficientState,
    NoPong,
    PeerClosed,
    PolicyViolation,
    ServerFault,
    Slow,
    StorageUnavailable,
    Unrecoverable,
)
from chatserver.journal import Answered
from chatserver.keys import share
from chatserver.message import Command, Event, Position, Publish, Refused
from chatserver.pool import Pool
from chatserver.protocol import Simple
from chatserver.room import Room
from chatserver.rooms import Retention, Rooms
from chatserver.store import StoreError, open_store
from chatserver.transport import WebSocketTransport
from chatserver.watchdog import Watchdog

logger = logging.getLogger(__name__)

BAD_FRAMES: Final = 10
"""So many frames in a row that aren't commands end a connection."""

UNSTORED: Final = 64
"""So many messages of one connection may be on their way into the store."""


@dataclass(frozen=True, slots=True)
class Start:
    """What a newcomer is told first: what came `after` a position, or else so many messages of the `history`."""

    after: Position | None
    history: int


class Door:
    """Lets WebSocket clients in, and speaks the simple protocol with them."""

    def __init__(self, config: Config, pool: Pool, rooms: Rooms, chain: list[Middleware]) -> None:
        self._config = config
        self._pool = pool
        self._rooms = rooms
        self._chain = chain
        self._admission = Admission(config)
        self._codec = Simple(config.max_body_bytes)
        self._handler: Handler = self._publish
        self._unstored: WeakKeyDictionary[Client, Unstored] = WeakKeyDictionary()

    async def run(self, app: web.Application) -> AsyncIterator[None]:
        """For `cleanup_ctx`: composes the chain, to which all features have added by now, and runs pool and rooms."""
        self._handler = compose(self._chain, self._publish, self._config.plugin_seconds)
        await self._open_store()
        await self._pool.start()
        watchdog = asyncio.create_task(Watchdog().run())
        yield
        watchdog.cancel()
        await self._pool.stop()
        await self._rooms.stop()

    async def connect(self, request: web.Request) -> web.StreamResponse:
        """The handler of `/ws`: lives as long as the connection."""
        if self._pool.draining:
            raise web.HTTPServiceUnavailable(text="the server stops", headers=admission.retry())
        self._admission.check(request)
        user, address = query.user(request), self._admission.address(request)
        name, start = query.room(request), Start(query.after(request), query.history(request))
        self._admission.enter(address)
        try:
            async with self._rooms.hold(name) as room:
                if start.after:
                    await self._rooms.check(name, start.after)
                transport = WebSocketTransport(self._config.max_message_bytes)
                await transport.prepare(request)
                await self._converse(transport, user, address, room, start)
        except Unrecoverable as error:
            raise web.HTTPGone(text=f"after: cannot resume from there: {error}") from None
        except StorageUnavailable:
            raise web.HTTPServiceUnavailable(text="storage unavailable", headers=admission.retry()) from None
        finally:
            self._admission.leave(address)
        return transport.response

    async def _open_store(self) -> None:
        """Launchers that aren't ours would show a traceback for what is only a wrong address."""
        try:
            await self._rooms.start()
        except StoreError as error:
            context.report(logger, logging.ERROR, "cannot open storage", problem=str(error))
            await self._rooms.stop()
            raise SystemExit(1) from None

    async def _converse(self, transport: WebSocketTransport, user: str, address: str, room: Room, start: Start) -> None:
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
        self._unstored[client] = Unstored()
        context.report(logger, logging.INFO, "connected", address=address, room=room.name)
        try:
            end = await self._read(client, transport, room, start)
        except BaseException:  # our task is cancelled: the process goes, and waits for nobody
            end = GoingAway()
            transport.abort()
            raise
        finally:
            client.disconnect(end)
            self._pool.remove(client)
            _log_end(client)
        await self._close(client, transport)

    async def _read(self, client: Client, transport: WebSocketTransport, room: Room, start: Start) -> Disconnect:
        """The reader loop. Returns how the connection ends."""
        try:
            await self._enter(client, room, start)
            bad = 0
            while not client.ending:
                text = await transport.receive()
                assert isinstance(text, str)
                client.received += 1
                bad = 0 if await self._answer(client, text, room.name) else bad + 1
                if bad == BAD_FRAMES:
                    raise PolicyViolation("too many bad frames")
        except Disconnect as end:
            if not client.ending:
                await self._unstored[client].settle()
            return end
        except Exception as error:
            context.report(logger, logging.ERROR, "connection failed", exc_info=error)
            return ServerFault()
        return client.ending

    async def _enter(self, client: Client, room: Room, start: Start) -> None:
        await self._pool.add(client)
        try:
            await self._rooms.join(client, room, after=start.after, last=start.history)
        except ChatError as error:  # only just before it could be told the whole of it
            client.enqueue(Refused(error.code, str(error)))
            raise InsufficientState from None

    async def _answer(self, client: Client, text: str, room: str) -> bool:
        """Handles one frame; what it asks for wrongly is answered. False: it was no command at all."""
        try:
            command = self._codec.decode(text)
        except ChatError as error:
            self._unstored[client].tell(client, Refused(error.code, str(error)))
            return False
        if command.room != room:
            command = Publish(command.body, room)
        try:
            reply = await self._handler(command, client)
        except ChatError as error:
            reply = Refused(error.code, str(error))
        if reply:
            self._unstored[client].tell(client, reply)
        return True

    async def _publish(self, command: Command, client: Client) -> Event | None:
        """Returns when the message's place in the order is fixed. Its sender hears of it when it is stored, or not."""
        await self._rooms.ready(command.room)
        unstored = self._unstored[client]
        await unstored.ready()
        self._rooms.publish(command.room, client.user, command.body, answered=unstored.add(client))
        return None

    @staticmethod
    async def _close(client: Client, transport: WebSocketTransport) -> None:
        """The rest of the closing handshake (RFC 6455 section 7.1.1), which the client's timer bounds."""
        if not isinstance(client.ending, PeerClosed):
            await transport.discard()
        await transport.finish(lambda: client.close_sent)
        client.gone()


class Unstored:
    """The messages of one connection that are on their way into the store.

    A connection needn't wait for one message to be stored before it sends the next; only so many are on their way.
    """

    __slots__ = ("_answered", "_waiting")

    def __init__(self) -> None:
        self._waiting: deque[list[Event]] = deque()
        """For each of them, what is to be told after it."""
        self._answered = asyncio.Event()

    async def ready(self) -> None:
        """Waits while too many are on their way."""
        await self._fewer_than(UNSTORED)

    async def settle(self) -> None:
        """Waits until none is."""
        await self._fewer_than(1)

    def add(self, client: Client) -> Answered:
        """One more of `client`, which is told if it isn't stored. To be called when that is known."""
        self._waiting.append([])
        return partial(self._answer, client)

    def tell(self, client: Client, reply: Event) -> None:
        """Answers come in the order of what they answer: this one after those to messages that are on their way."""
        if self._waiting:
            self._waiting[-1].append(reply)
        else:
            client.enqueue(reply)

    async def _fewer_than(self, count: int) -> None:
        while len(self._waiting) >= count:
            self._answered.clear()
            await self._answered.wait()

    def _answer(self, client: Client, error: Exception | None) -> None:
        replies = self._waiting.popleft()
        self._answered.set()
        if isinstance(error, ChatError):
            replies.insert(0, Refused(error.code, str(error)))
        for reply in replies:
            client.enqueue(reply)


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
    """Makes `app["pool"]`, `app["rooms"]` and `app["chain"]`, serves `/ws`, and runs them with the application."""
    pool = Pool(
        queue_bytes=config.max_queue_bytes or sys.maxsize,
        heartbeat_seconds=config.heartbeat_seconds,
        write_seconds=config.write_seconds,
        plugin_seconds=config.plugin_seconds,
    )
    rooms = Rooms(
        pool,
        open_store(config.store_url),
        plugin_seconds=config.plugin_seconds,
        retention=Retention(config.retention_seconds, config.retention_count),
    )
    chain: list[Middleware] = []
    share(app, pool, rooms, chain)
    door = Door(config, pool, rooms, chain)
    app.router.add_get("/ws", door.connect)
    app.cleanup_ctx.append(door.run)
