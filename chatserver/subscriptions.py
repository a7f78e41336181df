"""The rooms that one connection of the Centrifuge protocol is in."""

import asyncio
import math
import time
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from chatserver.channels import Channel
from chatserver.client import Client
from chatserver.door import Door
from chatserver.errors import (
    AlreadySubscribed,
    BadRequest,
    ChatError,
    InsufficientState,
    InternalError,
    InvalidToken,
    LimitExceeded,
    NotAvailable,
    PermissionDenied,
    SubscriptionExpired,
    TokenExpired,
    Unrecoverable,
)
from chatserver.message import Info, Message, Position
from chatserver.protocol.centrifuge import Json, Protobuf, publication
from chatserver.protocol.deltas import Deltas
from chatserver.protocol.wire import Subscribe, SubscribeRequest, SubscribeResult, Unsubscribe, raw
from chatserver.records import messages_of
from chatserver.room import Room
from chatserver.tokens import BadToken, ExpiredToken, KeysUnavailable, SubscriptionClaims

MOST: Final = 128
"""Subscriptions of one connection."""

GRACE_SECONDS: Final = 25.0
"""Clients ask for a newer token only when theirs has run out."""

LARGEST_OFFSET: Final = (1 << 53) - 1
"""Above it JavaScript's numbers aren't exact; no log comes so far."""

REFUSE: Final = 2
"""The bit of `flag` that asks for error 112 rather than to be told that nothing was recovered."""

SERVER_UNSUBSCRIBE: Final = Unsubscribe(code=2000, reason="server unsubscribe")
INSUFFICIENT_STATE: Final = Unsubscribe(code=2500, reason="insufficient state")
SUBSCRIPTION_EXPIRED: Final = Unsubscribe(code=2501, reason="subscription expired")


@dataclass(slots=True)
class Subscription:
    """One of them."""

    room: Room
    info: Info
    by_server: bool
    """The server made it: its end is the connection's."""
    notices: bool
    after: Position
    """What came after it is still to be told."""
    deltas: Deltas | None
    """Agreed on."""
    by_token: bool = False
    """The server made it because the connection's token says so."""
    expiry: asyncio.TimerHandle | None = None


class Subscriptions:
    """Becoming a member, being one, and leaving.

    A subscription is made in two steps with the answer between them: `prepare` finds out what it will be, `enter` tells
    what the answer has no space for, and makes the client a member. One is made at a time.
    """

    def __init__(self, door: Door, client: Client, codec: Json | Protobuf) -> None:
        self.making = asyncio.Lock()
        """Held from `prepare` to `enter`."""
        self._rooms = door.rooms
        self._verifier = door.verifier
        self._client = client
        self._codec = codec
        self.by_name: dict[str, Subscription] = {}
        """All of them."""

    @property
    def by_token(self) -> set[str]:
        """The names of those that the connection's token brought."""
        return {name for name, subscription in self.by_name.items() if subscription.by_token}

    async def prepare(
        self, request: SubscribeRequest, *, claims: SubscriptionClaims | None = None, by_server: bool = False
    ) -> tuple[Subscription, SubscribeResult]:
        """What `request` will be answered, and the subscription, which is counted from now on.

        `claims`: of a token, or what stands in for one `by_server`. Raises `ChatError`, also for storage.
        """
        channel = self._check(request)
        if not by_server:
            claims = await self.claims(request.token, channel.name) if request.token else None
            channel.check_subscribe(self._client.info.user, token=claims is not None)
        room = await self._rooms.take(channel.name)
        try:
            deltas = self._deltas(room) if request.delta and channel.namespace.delta == request.delta else None
            result, after = await self._position(room, request, deltas)
            if self._client.ending:
                raise NotAvailable
        except BaseException:
            self._rooms.release(room)
            raise
        notices = _is_told_of_others(channel, request)
        info = Info(self._client.info.user, self._client.id, self._client.info.conn, claims.info if claims else "")
        subscription = self.by_name[channel.name] = Subscription(room, info, by_server, notices, after, deltas)
        if claims:
            self._expire_at(subscription, claims.expires_at)
            result = _with_claims(result, claims, by_server=by_server)
        return subscription, result

    async def enter(self, subscription: Subscription) -> None:
        """Tells the rest of what was missed, and makes the client a member."""
        room = subscription.room
        try:
            await self._rooms.join(
                self._client,
                room,
                after=subscription.after,
                info=subscription.info,
                notices=subscription.notices,
                chained=subscription.deltas,
            )
        except ChatError:  # only just before it could have been told
            if subscription.by_server:
                self._client.disconnect(InsufficientState())
            self.drop(room.name, INSUFFICIENT_STATE)
        if self.by_name.get(room.name) is not subscription:  # it ended meanwhile
            self._rooms.leave(self._client, room)

    async def make(self, request: SubscribeRequest, *, claims: SubscriptionClaims) -> None:
        """A subscription that the server makes while the client is connected. Raises `ChatError`."""
        async with self.making:
            subscription, result = await self.prepare(request, claims=claims, by_server=True)
            told = Subscribe(
                recoverable=result.recoverable,
                epoch=result.epoch,
                offset=result.offset,
                positioned=result.positioned,
                data=result.data,
            )
            self._client.push(self._codec.push(request.channel, told))
            for missed in result.publications:  # for which this push has no space, as an answer would have
                self._client.push(self._codec.push(request.channel, missed))
            await self.enter(subscription)

    def drop(self, name: str, reason: Unsubscribe | None = None) -> None:
        """Ends a subscription, if there is one; with a `reason` the client is told."""
        subscription = self.by_name.pop(name, None)
        if subscription:
            self._rooms.leave(self._client, subscription.room)
            self._let_go(subscription)
            if reason:
                self._client.push(self._codec.push(name, reason))

    def close(self) -> None:
        """Ends all; the client is gone, which the rooms are told by the pool."""
        for subscription in self.by_name.values():
            self._let_go(subscription)
        self.by_name.clear()

    async def claims(self, token: str, name: str) -> SubscriptionClaims:
        """What a subscription token says. Raises `PermissionDenied`, `TokenExpired`, `InternalError`, and for one that
        is somebody else's `InvalidToken`.
        """
        try:
            claims = await self._verifier.subscription(token)
        except BadToken:
            raise PermissionDenied from None
        except ExpiredToken:
            raise TokenExpired from None
        except KeysUnavailable:
            raise InternalError from None
        user, client = self._client.info.user, self._client.id
        if claims.channel != name or claims.user != user or claims.client not in ("", client):
            raise InvalidToken
        return claims

    def renew(self, name: str, expires_at: float | None) -> None:
        """The subscription has a newer token."""
        self._expire_at(self.by_name[name], expires_at)

    def _check(self, request: SubscribeRequest) -> Channel:
        if request.channel in self.by_name:
            raise AlreadySubscribed
        if len(self.by_name) >= MOST:
            raise LimitExceeded
        channel = self._rooms.channels.find(request.channel)
        if request.type:
            raise NotAvailable
        if request.tf:
            raise BadRequest
        return channel

    def _deltas(self, room: Room) -> Deltas:
        found = room.chained.get(self._codec)
        if not isinstance(found, Deltas):
            found = room.chained[self._codec] = Deltas(self._codec)
        return found

    async def _position(
        self, room: Room, request: SubscribeRequest, deltas: Deltas | None
    ) -> tuple[SubscribeResult, Position]:
        """The answer as far as it is about positions, and what the client has been told up to with it."""
        if not room.channel.recoverable:
            return SubscribeResult(delta=deltas is not None), Position("", room.offset)
        if request.recover:
            try:
                missed, last = await self._missed(room, request)
            except Unrecoverable:
                if request.flag & REFUSE:
                    raise
            else:
                told = deltas.alone.publication if deltas else publication
                result = replace(
                    self._positioned(request.offset, deltas),
                    was_recovering=True,
                    recovered=True,
                    publications=[told(message) for message in missed],
                )
                return result, Position("", last)
        result = replace(self._positioned(room.offset, deltas), was_recovering=request.recover)
        return result, Position("", room.offset)

    def _positioned(self, offset: int, deltas: Deltas | None) -> SubscribeResult:
        epoch = self._rooms.store.epoch
        return SubscribeResult(recoverable=True, positioned=True, epoch=epoch, offset=offset, delta=deltas is not None)

    async def _missed(self, room: Room, request: SubscribeRequest) -> tuple[list[Message], int]:
        """What the answer tells, and the offset that the client has been told up to with it. Raises `Unrecoverable`."""
        if request.offset > LARGEST_OFFSET:
            raise Unrecoverable
        if room.channel.namespace.recovery == "cache":
            return await self._latest(room, request)
        offset = self._rooms.offset(Position(request.epoch, request.offset))
        await self._client.emptied()
        missed = await room.since(offset)
        return messages_of(missed, room.channel), missed[-1].offset if missed else offset

    async def _latest(self, room: Room, request: SubscribeRequest) -> tuple[list[Message], int]:
        top = room.offset
        if 0 < request.offset == top and request.epoch == self._rooms.store.epoch:
            return [], top
        if not top:
            raise Unrecoverable
        latest = (await room.since(top - 1))[-1:]
        return messages_of(latest, room.channel), latest[-1].offset

    def _expire_at(self, subscription: Subscription, moment: float | None) -> None:
        if subscription.expiry:
            subscription.expiry.cancel()
        subscription.expiry = None
        if moment is not None:
            seconds = max(0.0, moment - time.time()) + GRACE_SECONDS
            subscription.expiry = asyncio.get_running_loop().call_later(seconds, self._expire, subscription)

    def _expire(self, subscription: Subscription) -> None:
        if subscription.by_server:
            self._client.disconnect(SubscriptionExpired())
        else:
            self.drop(subscription.room.name, SUBSCRIPTION_EXPIRED)

    def _let_go(self, subscription: Subscription) -> None:
        if subscription.expiry:
            subscription.expiry.cancel()
        self._rooms.release(subscription.room)


def seconds_left(expires_at: float) -> int:
    """What a client is told: whole seconds, at least one."""
    return max(1, math.ceil(expires_at - time.time()))


def _is_told_of_others(channel: Channel, request: SubscribeRequest) -> bool:
    if channel.namespace.join_leave == "asked":
        return request.join_leave and channel.namespace.presence != "nobody"
    return channel.namespace.join_leave == "always"


def _with_claims(result: SubscribeResult, claims: SubscriptionClaims, *, by_server: bool) -> SubscribeResult:
    result = replace(result, data=raw(claims.data))
    if claims.expires_at is None or by_server:
        return result
    return replace(result, expires=True, ttl=seconds_left(claims.expires_at))
