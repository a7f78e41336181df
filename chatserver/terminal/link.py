"""The connection to the server, through the SDK: nothing else here knows it."""

import asyncio
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import centrifuge

from chatserver import __version__
from chatserver.terminal.events import Event, Member, Moved, Said, State
from chatserver.terminal.payloads import named, said

TIMEOUT: Final = 8.0
"""Seconds for an answer: the server has one within five."""

SEND: Final = "send"

_REFRESH_FAILED: Final = 6
"""The SDK's number for a newer token that it hasn't got yet, while the connection stays."""

_MESSAGE_SIZE_LIMIT: Final = "message size limit"
"""With this reason the SDK connects again after close code 1009; its number means something else there, too."""

_CLOSE_SECONDS: Final = 1.0

_DENIED: Final = 103
_TOO_BIG: Final = 1009

_BAD_REQUEST: Final = 3501
"""Also what the server says to somebody without a token, where one is needed."""


logging.getLogger("centrifuge").addHandler(logging.NullHandler())  # all it has to say it tells us, too


class Later(Exception):
    """There was no answer, or one that invites to ask again."""


class Refused(Exception):
    """The server's answer is no."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text} ({code})")
        self.code = code
        self.text = text


@dataclass(frozen=True, slots=True)
class Entered:
    """The room is entered, for the first time or again. What was said after `offset` follows."""

    epoch: str
    offset: int
    positioned: bool
    """Positions are told, and there is a history."""


@dataclass(frozen=True, slots=True)
class Out:
    """The server doesn't let us in, or puts us out."""

    code: int
    text: str


Heard: TypeAlias = Entered | Out | Said | Moved


class Link:
    """One connection, made again whenever it breaks, and the one room that is entered on it."""

    def __init__(
        self,
        url: str,
        *,
        name: str,
        tell: Callable[[Event], None],
        token: str = "",
        get_token: Callable[[], Awaitable[str]] | None = None,
    ) -> None:
        """`name` counts if no token says who we are; `tell` is told each `State`."""
        self.client_id = ""
        self._tell = tell
        self._has_token = bool(token or get_token)
        self._client = centrifuge.Client(
            url,
            events=_Connection(self),
            token=token,
            get_token=get_token,
            name="chatserver",
            version=__version__,
            data={"name": name},
            timeout=TIMEOUT,
            min_reconnect_delay=0.2,
            max_reconnect_delay=5.0,
        )
        self._subscription: Any = None
        self._out: Out | None = None
        self._connections = 0
        self._too_big = False
        self._closing = False

    async def connect(self) -> None:
        """Begins to connect."""
        await self._client.connect()

    async def close(self) -> None:
        """The end."""
        self._closing = True
        before = asyncio.all_tasks()
        await self._client.disconnect()
        if closing := asyncio.all_tasks() - before:  # the SDK leaves the closing handshake to a task of its own
            await asyncio.wait(closing, timeout=_CLOSE_SECONDS)

    async def enter(self, room: str, hear: Callable[[Heard], None]) -> None:
        """Begins to enter `room`; `hear` is called with what happens there, in its order."""
        self._out = None
        self._subscription = self._client.new_subscription(
            room, events=_Subscription(self, room, hear), join_leave=True, max_resubscribe_delay=5.0
        )
        await self._subscription.subscribe()

    async def leave(self) -> None:
        """Leaves the room that was entered."""
        subscription, self._subscription = self._subscription, None
        if subscription:
            await subscription.unsubscribe()
            self._client.remove_subscription(subscription)

    async def call(self, method: str, data: dict[str, object]) -> Any:
        """Calls a procedure once we are in the room. Raises `Later` and `Refused`."""
        if self._subscription is None:
            raise Later("between two rooms")
        connections = self._connections
        try:
            await self._subscription.ready(TIMEOUT)
            connections = self._connections
            return (await self._client.rpc(method, data)).data
        except centrifuge.ReplyError as error:
            if error.temporary or 420 <= error.code <= 422 or self._was_early(error.code, connections):
                raise Later(error.message) from None
            raise Refused(error.code, error.message) from None
        except centrifuge.CentrifugeError as error:
            raise self._unanswered(method, error) from None

    async def members(self) -> list[Member]:
        """Who is in the room. Raises `Later` and `Refused`."""
        try:
            found = (await self._subscription.presence(TIMEOUT)).clients
        except centrifuge.ReplyError as error:
            raise Refused(error.code, error.message) from None
        except centrifuge.CentrifugeError as error:
            raise Later(_told(error)) from None
        return [member(info) for info in found.values()]

    def _was_early(self, code: int, connections: int) -> bool:
        """The connection broke while we asked, and the SDK asked on the next one before it was in the room again."""
        entered = self._subscription.state is centrifuge.SubscriptionState.SUBSCRIBED
        return code == _DENIED and (connections != self._connections or not entered)

    def _unanswered(self, method: str, error: Exception) -> Later | Refused:
        if self._out:
            return Refused(self._out.code, self._out.text)
        if method == SEND and self._too_big:
            self._too_big = False
            return Refused(_TOO_BIG, "message too big")
        return Later(_told(error))

    # What the SDK tells

    def connecting(self, code: int, reason: str) -> None:
        """Not connected yet, or not any more."""
        self._too_big = reason == _MESSAGE_SIZE_LIMIT
        self._tell(State("connecting", reason if code else ""))

    def connected(self, client: str) -> None:
        """Let in."""
        self._connections += 1
        self.client_id = client
        self._tell(State("connected"))

    def failed(self, error: Exception) -> None:
        """To connect, or to enter the room, didn't work this time."""
        self._tell(State("connecting", _told(error)))

    def entered(self) -> None:
        """In the room."""
        self._tell(State("connected"))

    def ended(self, code: int, reason: str) -> None:
        """It won't work the next time either."""
        if not self._closing:
            hint = "; a token may be needed" if code == _BAD_REQUEST and not self._has_token else ""
            self._tell(State("ended", f"{reason} ({code}){hint}"))

    def out(self, code: int, reason: str, hear: Callable[[Heard], None]) -> None:
        """Not in the room any more, and not again."""
        if self._subscription and not self._closing:
            self._out = Out(code, reason)
            hear(self._out)


class _Connection(centrifuge.ClientEventHandler):
    """Passes on what happens to the connection."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def on_connecting(self, ctx: centrifuge.ConnectingContext) -> None:
        self._link.connecting(ctx.code, ctx.reason)

    async def on_connected(self, ctx: centrifuge.ConnectedContext) -> None:
        self._link.connected(ctx.client)

    async def on_disconnected(self, ctx: centrifuge.DisconnectedContext) -> None:
        self._link.ended(ctx.code, ctx.reason)

    async def on_error(self, ctx: centrifuge.ErrorContext) -> None:
        if ctx.code != _REFRESH_FAILED:
            self._link.failed(ctx.error)


class _Subscription(centrifuge.SubscriptionEventHandler):
    """Passes on what happens in the room."""

    def __init__(self, link: Link, room: str, hear: Callable[[Heard], None]) -> None:
        self._link = link
        self._room = room
        self._hear = hear
        self._epoch = ""

    async def on_subscribed(self, ctx: centrifuge.SubscribedContext) -> None:
        place = ctx.stream_position
        self._epoch = place.epoch if place else ""
        self._hear(Entered(self._epoch, place.offset if place else 0, place is not None))
        self._link.entered()

    async def on_error(self, ctx: centrifuge.SubscriptionErrorContext) -> None:
        self._link.failed(ctx.error)

    async def on_unsubscribed(self, ctx: centrifuge.UnsubscribedContext) -> None:
        self._link.out(ctx.code, ctx.reason, self._hear)

    async def on_publication(self, ctx: centrifuge.PublicationContext) -> None:
        publication, info = ctx.pub, ctx.pub.info
        name = member(info).name if info else "server"
        self._hear(said(self._room, self._epoch, publication.offset, _now(), name, publication.data))

    async def on_join(self, ctx: centrifuge.JoinContext) -> None:
        self._hear(Moved(self._room, _now(), member(ctx.info), came=True))

    async def on_leave(self, ctx: centrifuge.LeaveContext) -> None:
        self._hear(Moved(self._room, _now(), member(ctx.info), came=False))


def member(info: centrifuge.ClientInfo) -> Member:
    """Whom the SDK has told of."""
    return Member(info.client, named(info.user, info.conn_info, info.client))


def _now() -> int:
    return int(time.time() * 1000)


def _told(error: Exception) -> str:
    """In words; asyncio tells of all addresses that it tried, in a line for each."""
    if isinstance(error, centrifuge.ReplyError):
        return f"{error.message} ({error.code})"
    if number := re.search(r"\[Errno (\d+)\]", str(error)):
        return os.strerror(int(number[1])).lower()
    return str(error) or "no answer"
