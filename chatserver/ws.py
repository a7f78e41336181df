"""`/ws`: the simple protocol."""

import asyncio
import logging
import sys
import time
from typing import Final, NamedTuple

import msgspec
from aiohttp import web

from chatserver import admission, context, query
from chatserver.channels import Channel, parse
from chatserver.client import Client
from chatserver.config import Config
from chatserver.door import Door
from chatserver.errors import (
    ChatError,
    ConnectionExpired,
    InsufficientState,
    InternalError,
    InvalidToken,
    NotAvailable,
    NotPermitted,
    PermissionDenied,
    PolicyViolation,
    ServerFault,
    StorageUnavailable,
    Unauthorized,
    UnknownChannel,
    Unrecoverable,
)
from chatserver.keys import share
from chatserver.message import Command, Info, Position, Refused
from chatserver.pool import Pool
from chatserver.protocol import Simple
from chatserver.room import Room
from chatserver.rooms import Retention, Rooms
from chatserver.store import Stamp, open_store
from chatserver.tokens import BadToken, ConnectionClaims, ExpiredToken, KeysUnavailable
from chatserver.transport import HANDED_OVER, WebSocketTransport
from chatserver.unstored import Unstored

logger = logging.getLogger(__name__)

BAD_FRAMES: Final = 10
"""So many frames in a row that aren't commands end a connection."""

SUBPROTOCOL: Final = "chat"
"""Offered by those who show a token beside it."""

_STATUS: Final = (
    (Unauthorized, web.HTTPUnauthorized),
    (PermissionDenied, web.HTTPForbidden),
    (NotAvailable, web.HTTPForbidden),
    (UnknownChannel, web.HTTPNotFound),
    (ChatError, web.HTTPBadRequest),
)


class Visit(NamedTuple):
    """What a request for a connection asks for."""

    name: str
    """Empty if it names nobody."""
    channel: Channel
    after: Position | None
    """Tell what came after it first."""
    history: int
    """Or else so many messages."""
    claims: ConnectionClaims | None
    """Of the token that came with the request."""
    token_follows: bool
    """As the first message."""


class _Token(msgspec.Struct, forbid_unknown_fields=True):
    token: str


_decode_token = msgspec.json.Decoder(_Token).decode
_encode = msgspec.json.Encoder().encode


class Endpoint:
    """Speaks the simple protocol with those whom the door lets in."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._rooms = door.rooms
        self._codec = Simple(door.config.max_body_bytes)

    async def connect(self, request: web.Request) -> web.StreamResponse:
        """The handler of `/ws`: lives as long as the connection."""
        door, room = self._door, None
        address = door.admit(request)
        transport = WebSocketTransport(door.config.max_message_bytes, door.ends)
        try:
            room, visit = await self._open(request)
            transport.accept(request, (SUBPROTOCOL,))
            client = door.client(transport, self._codec, address)
            talk = self._talk(client, transport, room, visit)
            del visit  # what is kept here is kept for each idle client
            await door.converse(client, transport, talk)
        finally:
            transport.abort()
            if room:
                self._rooms.release(room)
            door.dismiss(address)
        return HANDED_OVER

    async def _open(self, request: web.Request) -> tuple[Room, Visit]:
        """The room that `request` asks for, to be released at the end. Raises `web.HTTPException`."""
        try:
            visit = await self._visit(request)
            if visit.after:
                await self._rooms.check(visit.channel.name, visit.after)
            return await self._rooms.take(visit.channel.name), visit
        except Unrecoverable as error:
            raise web.HTTPGone(text=f"after: cannot resume from there: {error}") from None
        except (StorageUnavailable, InternalError) as error:
            text = "storage unavailable" if isinstance(error, StorageUnavailable) else str(error)
            raise web.HTTPServiceUnavailable(text=text, headers=admission.retry()) from None
        except ChatError as error:
            raise next(answer for kind, answer in _STATUS if isinstance(error, kind))(text=str(error)) from None

    async def _visit(self, request: web.Request) -> Visit:
        """Raises `ChatError`, and `web.HTTPBadRequest`."""
        name, after, history = query.user(request), query.after(request), query.history(request)
        channel = self._rooms.channel(query.room(request))
        token = query.token(request)
        claims = await self._claims(token) if token else None
        follows = claims is None and (query.token_follows(request) or not self._door.config.allows_anonymous)
        if not follows:
            channel.check_subscribe(claims.user if claims else "")
        if after or history:
            channel.check_history("", member=True)
        return Visit(name, channel, after, history, claims, follows)

    async def _claims(self, token: str) -> ConnectionClaims:
        try:
            claims = await self._door.verifier.connection(token)
        except (BadToken, ExpiredToken):
            raise Unauthorized from None
        except KeysUnavailable:
            raise InternalError from None
        if not claims.user and not self._door.config.allows_anonymous:
            raise PermissionDenied
        return claims

    async def _talk(self, client: Client, transport: WebSocketTransport, room: Room, visit: Visit) -> None:
        """The reader loop."""
        claims = visit.claims
        if visit.token_follows:
            timer = self._door.expect(client)
            try:
                claims = await self._first_message(transport, visit.channel)
            finally:
                timer.cancel()
        expiry = _identify(client, visit.name, claims)
        try:
            context.report(logger, logging.INFO, "connected", address=client.address, room=room.name)
            await self._enter(client, room, visit)
            del visit, claims  # as above
            member = _Member(self._door, self._codec, client, room)
            transport.take = member.take if self._door.immediate else None
            while not client.ending:
                text = await transport.receive()
                assert isinstance(text, str)
                if not client.leaving:
                    await member.answer(text)
        finally:
            if expiry:
                expiry.cancel()

    async def _first_message(self, transport: WebSocketTransport, channel: Channel) -> ConnectionClaims:
        try:
            text = await transport.receive()
            claims = await self._claims(_decode_token(text).token)
            channel.check_subscribe(claims.user)
        except (msgspec.DecodeError, RecursionError, PermissionDenied):
            raise NotPermitted from None
        except Unauthorized:
            raise InvalidToken from None
        except InternalError:  # no fault of the token's
            raise ServerFault from None
        return claims

    async def _enter(self, client: Client, room: Room, visit: Visit) -> None:
        await self._door.pool.add(client)
        try:
            await self._rooms.join(client, room, after=visit.after, last=visit.history)
        except ChatError as error:  # only just before it could be told the whole of it
            client.enqueue(Refused(error.code, str(error)))
            raise InsufficientState from None


class _Member:
    """A client in the room that it came for: what it says there. What it asks for wrongly is answered."""

    __slots__ = ("_bad", "_client", "_codec", "_door", "_room")

    def __init__(self, door: Door, codec: Simple, client: Client, room: Room) -> None:
        self._door = door
        self._codec = codec
        self._client = client
        self._room = room
        self._bad = 0

    def take(self, frame: str | bytes) -> bool:
        """Handles one frame, if nothing has to be waited for; False if something has. Only if `door.immediate`.

        Raises `Disconnect`.
        """
        client, door = self._client, self._door
        unstored = door.unstored(client)
        if client.leaving or unstored.full() or self._room.audience.crowded():
            return False
        assert isinstance(frame, str)
        command = self._understand(frame, unstored)
        if command:
            try:
                door.publish(command, client, unstored, self._tell)
            except ChatError as error:
                unstored.tell(self._refusal(error))
        return True

    async def answer(self, text: str) -> None:
        """Handles one frame. Raises `Disconnect`."""
        unstored = self._door.unstored(self._client)
        command = self._understand(text, unstored)
        if not command:
            return
        unstored.begin(self._tell)
        try:
            reply = await self._door.handler(command, self._client)
        except ChatError as error:
            unstored.tell(self._refusal(error))
        else:
            if reply:
                unstored.tell(self._codec.encode(reply))

    def _understand(self, text: str, unstored: Unstored) -> Command | None:
        """What is to be done; None if it was refused."""
        client, room = self._client, self._room
        client.received += 1
        try:
            command = self._codec.decode(text, room.name)
        except ChatError as error:
            unstored.tell(self._refusal(error))
            self._bad += 1
            if self._bad == BAD_FRAMES:
                raise PolicyViolation("too many bad frames") from None
            return None
        self._bad = 0
        try:
            room.channel.check_publish(client.info.user, member=True)
        except ChatError as error:
            unstored.tell(self._refusal(error))
            return None
        return command

    def _tell(self, outcome: Stamp | Exception) -> None:
        """The sender's own copy says that a message is stored."""
        if isinstance(outcome, ChatError):
            self._client.push(self._refusal(outcome))

    def _refusal(self, error: ChatError) -> bytes:
        return self._codec.encode(Refused(error.code, str(error)))


def _identify(client: Client, name: str, claims: ConnectionClaims | None) -> asyncio.TimerHandle | None:
    """Says who `client` is. Returns the timer that ends the connection when its token does."""
    verified = claims.user if claims else ""
    client.user = verified or name or client.guest
    info = claims.info if claims else ""
    client.info = Info(verified, client.id, info or ("" if verified else _encode({"name": client.user}).decode()))
    context.user.set(client.user)
    if claims is None or claims.expires_at is None:
        return None
    seconds = max(0.0, claims.expires_at - time.time())
    return asyncio.get_running_loop().call_later(seconds, client.disconnect, ConnectionExpired())


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
        channels=parse(config.namespaces),
    )
    door = share(app, config, pool, rooms)
    app.router.add_get("/ws", Endpoint(door).connect)
    app.cleanup_ctx.append(door.run)
