"""The messages of the Centrifuge protocol, as far as we speak it.

What stands at its zero value is left out on the wire; a field without a default is written always in the JSON form.
A payload is JSON as it came, whatever the form; see `raw`.
"""

from typing import Annotated, Final, TypeAlias

from msgspec import Meta, Raw, Struct

Uint32: TypeAlias = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
Uint64: TypeAlias = Annotated[int, Meta(ge=0)]
Int32: TypeAlias = Annotated[int, Meta(ge=-0x8000_0000, le=0x7FFF_FFFF)]
Int64: TypeAlias = Annotated[int, Meta(ge=-0x8000_0000_0000_0000, le=0x7FFF_FFFF_FFFF_FFFF)]

ABSENT: Final = Raw()
"""No payload; it is false."""


class Wire(Struct, frozen=True, omit_defaults=True, gc=False):
    """Any message."""


# What several messages have in them


class StreamPosition(Wire, frozen=True):
    """A place in a channel's log."""

    offset: Uint64 = 0
    epoch: str = ""

    def __post_init__(self) -> None:
        _check_uint64(self.offset)


class ClientInfo(Wire, frozen=True):
    """Who somebody is."""

    user: str
    client: str
    conn_info: Raw = ABSENT
    chan_info: Raw = ABSENT


class Publication(Wire, frozen=True):
    """What was said."""

    data: Raw = ABSENT
    info: ClientInfo | None = None
    offset: Uint64 = 0
    tags: dict[str, str] = {}
    delta: bool = False


class Error(Wire, frozen=True):
    """Why a command was refused."""

    code: Uint32
    message: str
    temporary: bool = False


class FilterNode(Wire, frozen=True):
    """A filter of publications. We have none: it matters only that somebody wants one."""


# What a client asks for


class SubscribeRequest(Wire, frozen=True):
    """Become a member, or, in a `ConnectRequest`, where the client stands in a channel that the server chose."""

    channel: str = ""
    token: str = ""
    recover: bool = False
    epoch: str = ""
    offset: Uint64 = 0
    data: Raw = ABSENT
    positioned: bool = False
    recoverable: bool = False
    join_leave: bool = False
    delta: str = ""
    tf: FilterNode | None = None
    flag: Int64 = 0
    type: Int32 = 0

    def __post_init__(self) -> None:
        _check_uint64(self.offset)


class ConnectRequest(Wire, frozen=True):
    """Who the client is; the first command of a connection."""

    token: str = ""
    data: Raw = ABSENT
    subs: dict[str, SubscribeRequest] = {}
    name: str = ""
    version: str = ""
    headers: dict[str, str] = {}


class UnsubscribeRequest(Wire, frozen=True):
    """Be a member no more."""

    channel: str = ""


class PublishRequest(Wire, frozen=True):
    """Say something."""

    channel: str = ""
    data: Raw = ABSENT


class PresenceRequest(Wire, frozen=True):
    """Who is there."""

    channel: str = ""


class PresenceStatsRequest(Wire, frozen=True):
    """How many are there."""

    channel: str = ""


class HistoryRequest(Wire, frozen=True):
    """What was said."""

    channel: str = ""
    limit: Int32 = 0
    since: StreamPosition | None = None
    reverse: bool = False


class PingRequest(Wire, frozen=True):
    """Reserved; no client sends it."""


class SendRequest(Wire, frozen=True):
    """Something that nobody answers."""

    data: Raw = ABSENT


class RPCRequest(Wire, frozen=True):
    """Call a procedure."""

    data: Raw = ABSENT
    method: str = ""


class RefreshRequest(Wire, frozen=True):
    """A newer token for the connection."""

    token: str = ""


class SubRefreshRequest(Wire, frozen=True):
    """A newer token for a subscription."""

    channel: str = ""
    token: str = ""


Request: TypeAlias = (
    ConnectRequest
    | SubscribeRequest
    | UnsubscribeRequest
    | PublishRequest
    | PresenceRequest
    | PresenceStatsRequest
    | HistoryRequest
    | PingRequest
    | SendRequest
    | RPCRequest
    | RefreshRequest
    | SubRefreshRequest
)


class Command(Wire, frozen=True):
    """What a client sends."""

    id: Uint32 = 0
    connect: ConnectRequest | None = None
    subscribe: SubscribeRequest | None = None
    unsubscribe: UnsubscribeRequest | None = None
    publish: PublishRequest | None = None
    presence: PresenceRequest | None = None
    presence_stats: PresenceStatsRequest | None = None
    history: HistoryRequest | None = None
    ping: PingRequest | None = None
    send: SendRequest | None = None
    rpc: RPCRequest | None = None
    refresh: RefreshRequest | None = None
    sub_refresh: SubRefreshRequest | None = None

    @property
    def request(self) -> Request | None:
        """What is asked for; of several the first, in the order of the reference server.

        None: a pong. A request that forgot its id counts as one, unless it is a `send`.
        """
        if not self.id and self.send is None:
            return None
        return (
            self.connect
            or self.ping
            or self.subscribe
            or self.unsubscribe
            or self.publish
            or self.presence
            or self.presence_stats
            or self.history
            or self.rpc
            or self.send
            or self.refresh
            or self.sub_refresh
        )


# What a client is answered


class SubscribeResult(Wire, frozen=True):
    """The client is a member."""

    expires: bool = False
    ttl: Uint32 = 0
    recoverable: bool = False
    epoch: str = ""
    publications: list[Publication] = []
    recovered: bool = False
    offset: Uint64 = 0
    positioned: bool = False
    data: Raw = ABSENT
    was_recovering: bool = False
    delta: bool = False


class ConnectResult(Wire, frozen=True):
    """The client is let in."""

    client: str
    version: str
    expires: bool = False
    ttl: Uint32 = 0
    data: Raw = ABSENT
    subs: dict[str, SubscribeResult] = {}
    ping: Uint32 = 0
    pong: bool = False


class UnsubscribeResult(Wire, frozen=True):
    """The client is no member."""


class PublishResult(Wire, frozen=True):
    """It is said."""


class PresenceResult(Wire, frozen=True):
    """Who is there, by the connections' ids."""

    presence: dict[str, ClientInfo]


class PresenceStatsResult(Wire, frozen=True):
    """How many are there."""

    num_clients: Uint32
    num_users: Uint32


class HistoryResult(Wire, frozen=True):
    """What was said, and the top of the log."""

    publications: list[Publication]
    epoch: str
    offset: Uint64


class RPCResult(Wire, frozen=True):
    """What the procedure returned."""

    data: Raw = ABSENT


class RefreshResult(Wire, frozen=True):
    """The token counts, and for how long."""

    expires: bool = False
    ttl: Uint32 = 0


class SubRefreshResult(Wire, frozen=True):
    """The token counts, and for how long."""

    expires: bool = False
    ttl: Uint32 = 0


Result: TypeAlias = (
    ConnectResult
    | SubscribeResult
    | UnsubscribeResult
    | PublishResult
    | PresenceResult
    | PresenceStatsResult
    | HistoryResult
    | RPCResult
    | RefreshResult
    | SubRefreshResult
)


# What a client is told unasked


class Join(Wire, frozen=True):
    """A new member."""

    info: ClientInfo


class Leave(Wire, frozen=True):
    """A member is gone."""

    info: ClientInfo


class Unsubscribe(Wire, frozen=True):
    """The server ends a subscription."""

    code: Uint32
    reason: str


class Subscribe(Wire, frozen=True):
    """The server makes a subscription."""

    recoverable: bool = False
    epoch: str = ""
    offset: Uint64 = 0
    positioned: bool = False
    data: Raw = ABSENT


class PushMessage(Wire, frozen=True):
    """Something that belongs to no channel."""

    data: Raw = ABSENT


PushBody: TypeAlias = Publication | Join | Leave | Unsubscribe | Subscribe | PushMessage


class Push(Wire, frozen=True):
    """One of them, and the channel it belongs to."""

    channel: str = ""
    pub: Publication | None = None
    join: Join | None = None
    leave: Leave | None = None
    unsubscribe: Unsubscribe | None = None
    message: PushMessage | None = None
    subscribe: Subscribe | None = None


class Reply(Wire, frozen=True):
    """What the server sends; an empty one is a ping."""

    id: Uint32 = 0
    error: Error | None = None
    push: Push | None = None
    connect: ConnectResult | None = None
    subscribe: SubscribeResult | None = None
    unsubscribe: UnsubscribeResult | None = None
    publish: PublishResult | None = None
    presence: PresenceResult | None = None
    presence_stats: PresenceStatsResult | None = None
    history: HistoryResult | None = None
    rpc: RPCResult | None = None
    refresh: RefreshResult | None = None
    sub_refresh: SubRefreshResult | None = None


def raw(payload: str | bytes) -> Raw:
    """A field's value: `payload` is JSON on one line, or empty for none."""
    return Raw(payload) if payload else ABSENT  # nothing but `ABSENT` itself is left out in JSON


def _check_uint64(value: int) -> None:
    if value >> 64:  # more than a `Meta` can bound
        raise ValueError("Expected `int` < 2**64")
