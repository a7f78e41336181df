"""What a client of the Centrifuge protocol asks for, command by command."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final, TypeAlias

import msgspec

from chatserver import __version__, context
from chatserver.bucket import Limit
from chatserver.channels import Channel
from chatserver.client import Client
from chatserver.door import Door
from chatserver.errors import (
    BadRequest,
    ChatError,
    ConnectionExpired,
    Expired,
    InsufficientState,
    InternalError,
    InvalidToken,
    Malformed,
    MethodNotFound,
    NotPermitted,
    PermissionDenied,
    StorageUnavailable,
    TokenExpired,
    TooManyMessages,
    TooManyRequests,
)
from chatserver.history import page
from chatserver.message import Info, Position, Publish
from chatserver.protocol import check_body, wire
from chatserver.protocol.centrifuge import Json, Protobuf, client_info, publication
from chatserver.query import NAME_RULE, called, is_name
from chatserver.records import messages_of, said
from chatserver.room import Room
from chatserver.store import Stamp
from chatserver.subscriptions import GRACE_SECONDS, SERVER_UNSUBSCRIBE, Subscriptions, seconds_left
from chatserver.tokens import (
    BadToken,
    ConnectionClaims,
    ExpiredToken,
    KeysUnavailable,
    SubscriptionClaims,
    SubscriptionOptions,
)

logger = logging.getLogger(__name__)

Form: TypeAlias = Json | Protobuf

SEND: Final = "send"
"""The procedure that says something; others may follow while it is stored."""

_PUBLISHED: Final = wire.PublishResult()

_encode = msgspec.json.Encoder().encode

Outcome: TypeAlias = Stamp | Exception | None
"""Of a message: where it stands, why it wasn't stored, or None if a middleware took it."""


class Session:
    """One connection, from its first command on. `handle` is called with one command at a time.

    Errors of a command are answered; what ends the connection is raised as a `Disconnect`.
    """

    def __init__(
        self,
        door: Door,
        client: Client,
        codec: Form,
        *,
        limit: Limit | None,
        procedures: "Mapping[str, Procedure]",
        pings: bool,
    ) -> None:
        """`limit`: of what is no message, which the chain counts. `procedures`: by their names, for RPC. `pings`: they
        are those of the protocol, and not of WebSocket.
        """
        self.client = client
        self.subscriptions = Subscriptions(door, client, codec)
        self.connected = False
        self.refused = False
        """The connection was answered with an error: it is over, and the client's to close."""
        self.door = door
        self.codec = codec
        self._limit = limit
        self._procedures = procedures
        self._ping = math.ceil(door.config.heartbeat_seconds) if pings else 0
        self._expires = False
        self._expiry: asyncio.TimerHandle | None = None

    async def handle(self, command: wire.Command) -> None:
        """Does what `command` asks for, and answers it."""
        request = command.request
        if not self.connected:
            if not isinstance(request, wire.ConnectRequest):
                raise Malformed
            await self._connect(command.id, request)
        elif request is not None:
            await self._handle(command.id, request)
        else:
            self._hear_pong()

    def take(self, frame: str | bytes) -> bool:
        """Does what a frame asks for, if that is one message, or a pong, and nothing has to be waited for; False if it
        isn't, or something has. To be called once the client is `connected`, and only if `door.immediate`. Raises
        `Disconnect`.
        """
        if self.client.leaving:
            return False
        text = self.codec.text(frame)
        if text:
            number, channel, body = text
            return self._publish_now(number, channel, body)
        command = self.codec.command(frame)
        if command is None:
            return False
        request = command.request
        if isinstance(request, wire.PublishRequest):
            return self._publish_now(command.id, request.channel, request.data)
        if request or command.id:
            return False
        self.client.received += 1
        self._hear_pong()
        return True

    def close(self) -> None:
        """The connection is over."""
        if self._expiry:
            self._expiry.cancel()
        self.subscriptions.close()

    def channel(self, name: str) -> Channel:
        """Raises `Malformed` for none at all, `BadRequest` and `UnknownChannel`."""
        if not name:
            raise Malformed
        return self.door.rooms.channel(name)

    @property
    def user(self) -> str:
        return self.client.info.user

    async def say(self, command: Publish, id: int, result: Callable[[Stamp | None], wire.Result]) -> None:
        """Has the chain handle `command`, and answers it with its `result` when it is known where it is stored, or with
        None that a middleware took it. Raises `ChatError` if it is refused.
        """
        unstored = self.door.unstored(self.client)
        answer = partial(self._answer, id, result, self.door.rooms.get(command.room))
        unstored.begin(answer)
        reply = await self.door.handler(command, self.client)
        if not unstored.taken:
            answer(None)
        if reply:
            self.client.enqueue(reply)

    async def _handle(self, id: int, request: wire.Request) -> None:
        handler = _HANDLERS.get(type(request))
        if handler is None:
            raise Malformed
        try:
            if not _is_message(request):  # these the chain counts, and others may follow while they are stored
                await self.door.settle(self.client)
                self._count()
            result = await handler(self, id, request)
        except ChatError as error:
            self.client.push(self.codec.failure(id, _told(request, error)))
        else:
            if result is not None:
                self.client.push(self.codec.reply(id, result))

    def _hear_pong(self) -> None:
        with contextlib.suppress(TooManyMessages):
            self._count()

    def _count(self) -> None:
        """Raises `TooManyMessages`, and `TooManyRequests` for a flood."""
        if self._limit:
            self._limit.spend(self.client, TooManyRequests)

    async def _connect(self, id: int, request: wire.ConnectRequest) -> None:
        try:
            claims = await self._claims(request.token)
            if not (claims and claims.user) and not self.door.config.allows_anonymous:
                raise NotPermitted if claims else Malformed
            self._identify(claims, bytes(request.data))
            async with self.subscriptions.making:
                await self._let_in(id, request, claims)
        except ChatError as error:
            self.refused = True
            self.client.push(self.codec.failure(id, _told(request, error)))

    async def _let_in(self, id: int, request: wire.ConnectRequest, claims: ConnectionClaims | None) -> None:
        prepared = {
            wanted.channel: await self.subscriptions.prepare(wanted, claims=options, by_server=True)
            for wanted, options in _server_side(request, claims)
        }
        result = wire.ConnectResult(
            client=self.client.id,
            version=__version__,
            expires=self._expires,
            ttl=seconds_left(claims.expires_at) if claims and claims.expires_at is not None else 0,
            subs={name: result for name, (_, result) in prepared.items()},
            ping=self._ping,
            pong=bool(self._ping),
        )
        self.connected = True
        self.client.push(self.codec.reply(id, result))
        context.report(logger, logging.INFO, "connected", address=self.client.address)
        await self.door.pool.add(self.client)
        for subscription, _ in prepared.values():
            subscription.by_token = True
            await self.subscriptions.enter(subscription)

    async def _claims(self, token: str) -> ConnectionClaims | None:
        """Raises `TokenExpired`, `InternalError` if it can't be told, and `InvalidToken`, which is no `ChatError`."""
        try:
            return await self.door.verifier.connection(token) if token else None
        except BadToken:
            raise InvalidToken from None
        except ExpiredToken:
            raise TokenExpired from None
        except KeysUnavailable:
            raise InternalError from None

    def _identify(self, claims: ConnectionClaims | None, data: bytes) -> None:
        if claims:
            self.client.user = claims.user
            self.client.info = Info(claims.user, self.client.id, claims.info)
            self._expire_at(claims.expires_at)
        elif name := _name(data):
            self.client.info = Info("", self.client.id, _encode({"name": name}).decode())
        context.user.set(self.client.user)

    def _expire_at(self, moment: float | None) -> None:
        if self._expiry:
            self._expiry.cancel()
        self._expires = moment is not None
        if moment is not None:
            seconds = max(0.0, moment - time.time()) + GRACE_SECONDS
            loop = asyncio.get_running_loop()
            self._expiry = loop.call_later(seconds, self.client.disconnect, ConnectionExpired())

    async def _refresh(self, id: int, request: wire.RefreshRequest) -> wire.RefreshResult:
        if not request.token or not self._expires:
            raise Malformed
        try:
            claims = await self._claims(request.token)
        except TokenExpired:
            raise ConnectionExpired from None
        if claims is None or claims.user != self.user:
            raise InvalidToken
        if {*claims.channels, *claims.subs} != self.subscriptions.by_token:
            raise InsufficientState
        self._expire_at(claims.expires_at)
        if claims.expires_at is None:
            return wire.RefreshResult()
        return wire.RefreshResult(expires=True, ttl=seconds_left(claims.expires_at))

    async def _subscribe(self, id: int, request: wire.SubscribeRequest) -> None:
        if not request.channel or request.delta not in ("", "fossil"):
            raise Malformed
        async with self.subscriptions.making:
            subscription, result = await self.subscriptions.prepare(request)
            self.client.push(self.codec.reply(id, result))
            await self.subscriptions.enter(subscription)

    async def _unsubscribe(self, id: int, request: wire.UnsubscribeRequest) -> wire.UnsubscribeResult:
        if not request.channel:
            raise Malformed
        self.subscriptions.drop(request.channel)
        return wire.UnsubscribeResult()

    async def _sub_refresh(self, id: int, request: wire.SubRefreshRequest) -> wire.SubRefreshResult:
        name = self.channel(request.channel).name
        if not request.token:
            raise BadRequest
        if name not in self.subscriptions.by_name:
            raise PermissionDenied
        try:
            claims = await self.subscriptions.claims(request.token, name)
        except PermissionDenied:
            raise InvalidToken from None
        except TokenExpired:
            raise Expired from None
        self.subscriptions.renew(name, claims.expires_at)
        if claims.expires_at is None:
            return wire.SubRefreshResult()
        return wire.SubRefreshResult(expires=True, ttl=seconds_left(claims.expires_at))

    async def _publish(self, id: int, request: wire.PublishRequest) -> None:
        await self.say(self._said(self.channel(request.channel), request.data), id, _published)

    def _publish_now(self, id: int, name: str, data: str | msgspec.Raw) -> bool:
        door, client = self.door, self.client
        unstored = door.unstored(client)
        room = door.rooms.get(name)
        if room is None or room.audience.crowded() or unstored.full():
            return False
        client.received += 1
        answer = partial(self._answer, id, _published, room)
        try:
            door.publish(self._said(room.channel, data), client, unstored, answer)
        except ChatError as error:
            answer(error)
        return True

    def _said(self, channel: Channel, data: str | msgspec.Raw) -> Publish:
        """`data`: just a text, or a payload."""
        name, most = channel.name, self.door.config.max_body_bytes
        channel.check_publish(self.client.info.user, member=name in self.subscriptions.by_name)
        if not isinstance(data, str):
            return said(name, bytes(data), most)
        check_body(data, most)
        return Publish(data, name)

    def _answer(
        self, id: int, result: Callable[[Stamp | None], wire.Result], room: Room | None, outcome: Outcome
    ) -> None:
        if isinstance(outcome, Exception):
            piece = self.codec.failure(id, outcome if isinstance(outcome, ChatError) else InternalError())
        else:
            piece = self.codec.reply(id, result(outcome))
        if room:
            room.audience.answer(self.client, piece)
        else:
            self.client.push(piece)

    async def _presence(self, id: int, request: wire.PresenceRequest) -> wire.PresenceResult:
        members = self._members(request.channel)
        return wire.PresenceResult(presence={info.client: client_info(info) for info in members})

    async def _presence_stats(self, id: int, request: wire.PresenceStatsRequest) -> wire.PresenceStatsResult:
        members = self._members(request.channel)
        return wire.PresenceStatsResult(num_clients=len(members), num_users=len({info.user for info in members}))

    def _members(self, name: str) -> list[Info]:
        channel = self.channel(name)
        channel.check_presence(self.user, member=channel.name in self.subscriptions.by_name)
        return self.door.rooms.members(channel.name)

    async def _history(self, id: int, request: wire.HistoryRequest) -> wire.HistoryResult:
        channel, rooms, since = self.channel(request.channel), self.door.rooms, request.since
        channel.check_history(self.user, member=channel.name in self.subscriptions.by_name)
        offset = rooms.offset(Position(since.epoch, since.offset)) if since else None
        await self.client.emptied()
        records, top = await page(rooms.store, channel, limit=request.limit, since=offset, reverse=request.reverse)
        publications = [publication(message) for message in messages_of(records, channel)]
        return wire.HistoryResult(publications=publications, epoch=rooms.store.epoch, offset=top)

    async def _rpc(self, id: int, request: wire.RPCRequest) -> wire.RPCResult | None:
        procedure = self._procedures.get(request.method)
        if procedure is None:
            raise MethodNotFound
        try:
            return await procedure(self, id, bytes(request.data))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest(f"data: {error}") from None

    async def _send(self, id: int, request: wire.SendRequest) -> None:
        """Nobody listens."""

    async def drop(self, name: str) -> None:
        """The server ends a subscription, once it is made."""
        async with self.subscriptions.making:
            self.subscriptions.drop(name, SERVER_UNSUBSCRIBE)


def _published(stamp: Stamp | None) -> wire.PublishResult:
    return _PUBLISHED


def _name(data: bytes) -> str:
    """What somebody wants to be called, if `data` says so. Raises `BadRequest` for what nobody may be called."""
    name = called(data)
    if name and not is_name(name):
        raise BadRequest(f"name: {NAME_RULE}")
    return name


def _is_message(request: wire.Request) -> bool:
    return isinstance(request, wire.PublishRequest) or (isinstance(request, wire.RPCRequest) and request.method == SEND)


def _told(request: wire.Request, error: ChatError) -> ChatError:
    """Whoever only asks comes again when the storage is back, if it is told so."""
    if isinstance(error, StorageUnavailable) and not isinstance(request, wire.PublishRequest | wire.RPCRequest):
        return InternalError()
    return error


def _server_side(
    request: wire.ConnectRequest, claims: ConnectionClaims | None
) -> list[tuple[wire.SubscribeRequest, SubscriptionClaims]]:
    """The subscriptions that a connection's token brings, each with where the client says it stands there."""
    if claims is None:
        return []
    found = []
    for name in dict.fromkeys([*claims.subs, *claims.channels]):
        known, options = request.subs.get(name, wire.SubscribeRequest()), claims.subs.get(name, SubscriptionOptions())
        wanted = wire.SubscribeRequest(channel=name, recover=known.recover, offset=known.offset, epoch=known.epoch)
        found.append((wanted, SubscriptionClaims(user=claims.user, channel=name, info=options.info, data=options.data)))
    return found


Procedure: TypeAlias = Callable[[Session, int, bytes], Awaitable[wire.RPCResult | None]]
"""Gets the id of the command, and its data. Returns None if it is answered later. Raises `ChatError`, and what msgspec
raises for data of the wrong shape.
"""

Handler: TypeAlias = Callable[[Session, int, Any], Awaitable[wire.Result | None]]

_HANDLERS: Final[dict[type[wire.Request], Handler]] = {
    wire.SubscribeRequest: Session._subscribe,
    wire.UnsubscribeRequest: Session._unsubscribe,
    wire.PublishRequest: Session._publish,
    wire.PresenceRequest: Session._presence,
    wire.PresenceStatsRequest: Session._presence_stats,
    wire.HistoryRequest: Session._history,
    wire.RPCRequest: Session._rpc,
    wire.SendRequest: Session._send,
    wire.RefreshRequest: Session._refresh,
    wire.SubRefreshRequest: Session._sub_refresh,
}
