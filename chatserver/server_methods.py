"""The methods of the server API: what programs do with channels, users and connections."""

import asyncio
import base64
import binascii
import fnmatch
import json
import re
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeVar

import msgspec
from msgspec import Raw

from chatserver import __version__
from chatserver import server_api_types as types
from chatserver.channels import Channel
from chatserver.errors import (
    REASON_BYTES,
    AlreadySubscribed,
    BadRequest,
    ChatError,
    ForceDisconnect,
    InternalError,
    NotAvailable,
    StorageUnavailable,
)
from chatserver.history import page
from chatserver.message import Info, Message, Position
from chatserver.pool import Pool
from chatserver.protocol import wire
from chatserver.protocol.payload import payload
from chatserver.records import entry_for, messages_of, said
from chatserver.rooms import Rooms
from chatserver.session import Session
from chatserver.sessions import Sessions
from chatserver.tokens import SubscriptionClaims

USER: Final = "server"
"""In whose name the server API publishes."""

TOGETHER: Final = 100
"""So many of a request's parts are worked on at a time."""

Part = TypeVar("Part")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Node:
    """This process."""

    pool: Pool
    rooms: Rooms
    sessions: Sessions
    max_body_bytes: int
    uid: str = field(default_factory=lambda: secrets.token_hex(8))
    started: float = field(default_factory=time.monotonic)


async def publish(node: Node, request: types.PublishRequest) -> types.PublishResult:
    """See `PublishRequest`."""
    return await _publish(node, _message(node, request), request.channel, request)


async def broadcast(node: Node, request: types.BroadcastRequest) -> types.BroadcastResult:
    """See `BroadcastRequest`."""
    message = _message(node, request)

    async def respond(channel: str) -> types.Response:
        try:
            return types.Response(result=await _publish(node, message, channel, request))
        except ChatError as error:
            return types.Response(error=failure(error))

    return types.BroadcastResult(await _together(respond, request.channels))


async def subscribe(node: Node, request: types.SubscribeRequest) -> types.Done:
    """See `SubscribeRequest`."""
    channel, since = _find(node, request.channel), _position(request.recover_since)
    wanted = wire.SubscribeRequest(channel=channel.name)
    if since:
        wanted = msgspec.structs.replace(wanted, recover=True, offset=since.offset, epoch=since.epoch)
    claims = SubscriptionClaims(
        request.user,
        channel.name,
        expires_at=request.expire_at or None,
        info=_optional(request.info, request.b64info),
        data=_optional(request.data, request.b64data),
    )
    await _together(lambda session: _subscribe(session, wanted, claims), _sessions(node, request))
    return types.Done()


async def unsubscribe(node: Node, request: types.UnsubscribeRequest) -> types.Done:
    """See `UnsubscribeRequest`."""

    async def drop(session: Session) -> None:
        for name in [request.channel] if request.channel else list(session.subscriptions.by_name):
            await session.drop(name)

    await _together(drop, _sessions(node, request))
    return types.Done()


async def disconnect(node: Node, request: types.DisconnectRequest) -> types.Done:
    """See `DisconnectRequest`. Also for the connections of other protocols than Centrifuge."""
    end, staying = _end(request.disconnect), set(request.whitelist or ())
    for client in [] if request.session else list(node.pool.clients):
        chosen = client.info.user == request.user and request.client in (None, "", client.id)
        if chosen and client.id not in staying:
            client.disconnect(end)
    return types.Done()


async def presence(node: Node, request: types.PresenceRequest) -> types.PresenceResult:
    """See `PresenceRequest`."""
    members = _members(node, request.channel)
    return types.PresenceResult({info.client: types.client_info(info) for info in members})


async def presence_stats(node: Node, request: types.PresenceStatsRequest) -> wire.PresenceStatsResult:
    """See `PresenceStatsRequest`."""
    members = _members(node, request.channel)
    return wire.PresenceStatsResult(num_clients=len(members), num_users=len({info.user for info in members}))


async def history(node: Node, request: types.HistoryRequest) -> types.HistoryResult:
    """See `HistoryRequest`."""
    channel, store = _find(node, request.channel), node.rooms.store
    if channel.namespace.history == "nobody":
        raise NotAvailable
    since = _position(request.since)
    offset = node.rooms.offset(since) if since else None
    records, top = await page(store, channel, limit=request.limit or 0, since=offset, reverse=bool(request.reverse))
    publications = [_publication(message) for message in messages_of(records, channel)]
    return types.HistoryResult(publications, store.epoch, top)


async def history_remove(node: Node, request: types.HistoryRemoveRequest) -> types.Done:
    """See `HistoryRemoveRequest`."""
    await node.rooms.forget(_find(node, request.channel).name)
    return types.Done()


async def channels(node: Node, request: types.ChannelsRequest) -> types.ChannelsResult:
    """See `ChannelsRequest`."""
    fits = re.compile(fnmatch.translate(request.pattern or "*")).match
    counts = {room.name: len(room.members) for room in node.rooms.open if room.members and fits(room.name)}
    return types.ChannelsResult({name: types.ChannelInfo(count) for name, count in counts.items()})


async def info(node: Node, request: types.InfoRequest) -> types.InfoResult:
    """See `InfoRequest`."""
    members = [len(room.members) for room in node.rooms.open if room.members]
    this = types.NodeInfo(
        uid=node.uid,
        name=socket.gethostname(),
        version=__version__,
        num_clients=len(node.pool.clients),
        num_users=len({client.info.user for client in node.pool.clients}),
        num_subs=sum(members),
        num_channels=len(members),
        uptime=int(time.monotonic() - node.started),
    )
    return types.InfoResult([this])


async def batch(node: Node, request: types.BatchRequest) -> types.Replies:
    """See `BatchRequest`."""
    count = TOGETHER if request.parallel else 1
    return types.Replies(await _together(lambda command: _reply(node, command), request.commands, count))


def failure(error: ChatError) -> types.Failure:
    """What is told of `error`."""
    told = InternalError() if isinstance(error, StorageUnavailable) else error
    return types.Failure(told.code, str(told))


async def _reply(node: Node, command: types.Command) -> types.Reply:
    wanted = {name: asked for name in METHODS if (asked := getattr(command, name)) is not None}
    try:
        if len(wanted) != 1:
            raise BadRequest("a command has exactly one method")
        ((name, asked),) = wanted.items()
        field: dict[str, Any] = {name: await METHODS[name](node, asked)}
        return types.Reply(**field)
    except ChatError as error:
        return types.Reply(error=failure(error))


async def _together(work: Callable[[Part], Awaitable[T]], parts: Sequence[Part], count: int = TOGETHER) -> list[T]:
    """What `work` makes of each of `parts`, `count` at a time. Raises the first exception, when all are done."""
    outcomes: list[T | BaseException] = []
    for start in range(0, len(parts), count):
        outcomes += await asyncio.gather(*map(work, parts[start : start + count]), return_exceptions=True)
    return [_raised(outcome) for outcome in outcomes]


def _raised(outcome: T | BaseException) -> T:
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def _find(node: Node, name: str) -> Channel:
    return node.rooms.channels.find(name)


def _position(given: types.Position | None) -> Position | None:
    return Position(given.epoch or "", given.offset or 0) if given else None


def _message(node: Node, request: types.Payload) -> Message:
    """What is to be said, wherever. Raises `BadRequest`, and `ChatError` for a text that nobody may say."""
    if not request.data and not request.b64data:
        raise BadRequest("data or b64data is needed")
    command = said("", _decoded(request.data, request.b64data), node.max_body_bytes)
    if request.idempotency_key and "\0" in request.idempotency_key:
        raise BadRequest("idempotency_key must not contain U+0000")
    return Message(USER, command.body, data=command.data, tags=request.tags)


async def _publish(node: Node, message: Message, name: str, request: types.Payload) -> types.PublishResult:
    channel, message = _find(node, name), msgspec.structs.replace(message, room=name)
    await node.rooms.ready(name)
    if request.skip_history:
        room = node.rooms.get(name)
        if room:
            room.broadcast(message)
        return types.PublishResult()
    stamp = await asyncio.shield(node.rooms.append(entry_for(message, request.idempotency_key or None)))
    return types.PublishResult(stamp.offset, node.rooms.store.epoch) if channel.positioned else types.PublishResult()


async def _subscribe(session: Session, wanted: wire.SubscribeRequest, claims: SubscriptionClaims) -> None:
    try:
        await session.subscriptions.make(wanted, claims=claims)
    except AlreadySubscribed:
        pass
    except ChatError:
        if not session.client.ending:  # or else it is as if it had gone before
            raise


def _sessions(node: Node, request: types.SubscribeRequest | types.UnsubscribeRequest) -> list[Session]:
    return [] if request.session else node.sessions.of(request.user, request.client or "")


def _members(node: Node, name: str) -> list[Info]:
    channel = _find(node, name)
    if channel.namespace.presence == "nobody":
        raise NotAvailable
    return node.rooms.members(channel.name)


def _publication(message: Message) -> types.Publication:
    info = types.client_info(message.info) if message.info else None
    tags = dict(message.tags) if message.tags else None
    return types.Publication(Raw(message.data), info, message.offset, tags)


def _end(ending: types.Ending | None) -> ForceDisconnect:
    if ending is None:
        return ForceDisconnect()
    if not 3000 <= ending.code <= 4999:
        raise BadRequest("code: 3000 to 4999 is allowed")
    if not ending.reason or len(ending.reason.encode()) > REASON_BYTES or _is_json(ending.reason):
        raise BadRequest(f"reason: 1 to {REASON_BYTES} bytes that aren't JSON are allowed")
    return ForceDisconnect(ending.reason, ending.code)


def _is_json(text: str) -> bool:
    """Also what only lenient parsers take for it."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _optional(raw: Raw, encoded: str | None) -> str:
    """As JSON on one line; empty if there is none."""
    return payload(_decoded(raw, encoded)) if encoded or bytes(raw) not in (b"", b"null") else ""


def _decoded(raw: Raw, encoded: str | None) -> bytes:
    """The payload; of two the one in base64."""
    try:
        return base64.b64decode(encoded, validate=True) if encoded else bytes(raw)
    except (binascii.Error, ValueError):
        raise BadRequest("that is no base64") from None


Method: TypeAlias = Callable[[Node, Any], Awaitable[msgspec.Struct]]

METHODS: Final[dict[str, Method]] = {
    "publish": publish,
    "broadcast": broadcast,
    "subscribe": subscribe,
    "unsubscribe": unsubscribe,
    "disconnect": disconnect,
    "presence": presence,
    "presence_stats": presence_stats,
    "history": history,
    "history_remove": history_remove,
    "info": info,
    "channels": channels,
}
"""All that a batch can call."""
