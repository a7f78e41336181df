"""What the methods of the server API take and give; a field that is `null` is one that isn't there."""

from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType, field

from chatserver.channels import ROOM_PATTERN
from chatserver.message import Info
from chatserver.protocol.wire import Int32, PresenceStatsResult

_WHOLE: Final = (1 << 53) - 1
"""Up to it all programs read numbers alike."""

Channel: TypeAlias = Annotated[
    str,
    Meta(
        description="a room's name, in a namespace that there is",
        examples=["lobby"],
        extra_json_schema={"pattern": f"^{ROOM_PATTERN}$"},  # not checked here: it has an error of its own
    ),
]
User: TypeAlias = Annotated[str, Meta(description="whose connections; empty: those without a token", examples=["ann"])]
Client: TypeAlias = Annotated[str, Meta(description="only the connection with this id")]
Session: TypeAlias = Annotated[str, Meta(description="of other transports than WebSocket: there is none")]
Base64: TypeAlias = Annotated[str, Meta(description="the same in base64", examples=["eyJib2R5IjoiaGkifQ=="])]


class Position(msgspec.Struct):
    """A place in a channel's log."""

    offset: Annotated[int, Meta(ge=0, le=_WHOLE)] | None = None
    epoch: str | None = None


class Payload(msgspec.Struct, kw_only=True):
    """What is to be said."""

    data: Annotated[Raw, Meta(description="any JSON; it or `b64data` is needed", examples=[{"body": "hi"}])] = field(
        default_factory=Raw
    )
    b64data: Base64 | None = None
    skip_history: Annotated[bool, Meta(description="tell it to who is here now, and keep it nowhere")] | None = None
    tags: dict[str, str] | None = None
    idempotency_key: (
        Annotated[
            str,
            Meta(
                description="the same again is stored once, for as long as it is kept",
                max_length=128,
                extra_json_schema={"pattern": "^[^\\u0000]*$"},
            ),
        ]
        | None
    ) = None


class PublishRequest(Payload, kw_only=True):
    """Says something in a channel; the answer comes when it is stored."""

    channel: Channel


class BroadcastRequest(Payload, kw_only=True):
    """Says the same in several channels."""

    channels: list[Channel]


class SubscribeRequest(msgspec.Struct, kw_only=True):
    """Makes a user's connections members of a channel."""

    user: User
    channel: Channel
    client: Client | None = None
    session: Session | None = None
    info: Annotated[Raw, Meta(description="any JSON that other members are told")] = field(default_factory=Raw)
    b64info: Base64 | None = None
    data: Annotated[Raw, Meta(description="any JSON that the connection is told")] = field(default_factory=Raw)
    b64data: Base64 | None = None
    expire_at: (
        Annotated[int, Meta(ge=0, le=_WHOLE, description="when it ends: seconds since 1970; 0: never")] | None
    ) = None
    recover_since: Annotated[Position, Meta(description="what came after it is told, too")] | None = None


class UnsubscribeRequest(msgspec.Struct, kw_only=True):
    """Ends subscriptions of a user."""

    user: User
    channel: Annotated[str, Meta(description="left out: all that there are")] | None = None
    client: Client | None = None
    session: Session | None = None


class Ending(msgspec.Struct):
    """How a connection is closed."""

    code: Annotated[int, Meta(examples=[4001], extra_json_schema={"minimum": 3000, "maximum": 4999})]
    reason: Annotated[
        str,
        Meta(
            description="1 to 123 bytes that aren't JSON, which clients would take for something else",
            examples=["kicked"],
            extra_json_schema={"minLength": 1, "maxLength": 123},
        ),
    ]


class DisconnectRequest(msgspec.Struct, kw_only=True):
    """Ends connections of a user."""

    user: User
    client: Client | None = None
    session: Session | None = None
    whitelist: Annotated[list[str], Meta(description="ids of connections that stay")] | None = None
    disconnect: Annotated[Ending, Meta(description="left out: 3503 force disconnect")] | None = None


class PresenceRequest(msgspec.Struct):
    """Who is in a channel."""

    channel: Channel


class PresenceStatsRequest(msgspec.Struct):
    """How many are in a channel."""

    channel: Channel


class HistoryRequest(msgspec.Struct, kw_only=True):
    """What was said in a channel."""

    channel: Channel
    limit: (
        Annotated[Int32, Meta(description="0: only the position; negative: as many as go into one answer")] | None
    ) = None
    since: Annotated[Position, Meta(description="what came after it, or before it with `reverse`")] | None = None
    reverse: Annotated[bool, Meta(description="newest first")] | None = None


class HistoryRemoveRequest(msgspec.Struct):
    """Lets go of what was said in a channel; its positions go on from where they are."""

    channel: Channel


class ChannelsRequest(msgspec.Struct):
    """The channels that somebody is in."""

    pattern: (
        Annotated[str, Meta(description="`*`, `?` and `[a-z]` stand for others", examples=["news:*"], max_length=256)]
        | None
    ) = None


class InfoRequest(msgspec.Struct):
    """What the server is busy with."""


class PublishResult(msgspec.Struct, omit_defaults=True):
    """Where it stands in the log; empty where nobody is told."""

    offset: int = 0
    epoch: str = ""


class Failure(msgspec.Struct):
    """What went wrong."""

    code: Annotated[int, Meta(description="as in docs/protocol.md")]
    message: str


class Response(msgspec.Struct, omit_defaults=True):
    """Of one channel."""

    result: PublishResult | None = None
    error: Failure | None = None


class BroadcastResult(msgspec.Struct):
    """What became of it in each channel, in the order of the request."""

    responses: list[Response]


class ClientInfo(msgspec.Struct, omit_defaults=True):
    """Who somebody is."""

    user: str
    client: str
    conn_info: Annotated[Raw, Meta(description="any JSON")] | UnsetType = UNSET
    chan_info: Annotated[Raw, Meta(description="any JSON")] | UnsetType = UNSET


def client_info(info: Info) -> ClientInfo:
    """Who somebody is, as programs are told."""
    return ClientInfo(info.user, info.client, *(Raw(each) if each else UNSET for each in (info.conn, info.chan)))


class PresenceResult(msgspec.Struct):
    """Who is there, by the connections' ids."""

    presence: dict[str, ClientInfo]


class Publication(msgspec.Struct, omit_defaults=True):
    """What was said."""

    data: Annotated[Raw, Meta(description="any JSON")]
    info: Annotated[ClientInfo, Meta(description="who said it, unless it was a program")] | None = None
    offset: int = 0
    tags: dict[str, str] | None = None


class HistoryResult(msgspec.Struct):
    """What was said, and the top of the log."""

    publications: list[Publication]
    epoch: str
    offset: int


class Done(msgspec.Struct):
    """It is done."""


class ChannelInfo(msgspec.Struct):
    """What is known of a channel."""

    num_clients: int


class ChannelsResult(msgspec.Struct):
    """The channels, by name."""

    channels: dict[str, ChannelInfo]


class NodeInfo(msgspec.Struct):
    """One process."""

    uid: str
    name: str
    version: str
    num_clients: int
    num_users: int
    num_subs: int
    num_channels: int
    uptime: Annotated[int, Meta(description="seconds")]


class InfoResult(msgspec.Struct):
    """All of them that this one knows: itself."""

    nodes: list[NodeInfo]


class Command(msgspec.Struct):
    """A call of a method: exactly one field is needed."""

    publish: PublishRequest | None = None
    broadcast: BroadcastRequest | None = None
    subscribe: SubscribeRequest | None = None
    unsubscribe: UnsubscribeRequest | None = None
    disconnect: DisconnectRequest | None = None
    presence: PresenceRequest | None = None
    presence_stats: PresenceStatsRequest | None = None
    history: HistoryRequest | None = None
    history_remove: HistoryRemoveRequest | None = None
    info: InfoRequest | None = None
    channels: ChannelsRequest | None = None


class BatchRequest(msgspec.Struct):
    """Calls several methods."""

    commands: list[Command]
    parallel: Annotated[bool, Meta(description="don't wait for one before the next")] | None = None


class Reply(msgspec.Struct, omit_defaults=True):
    """What a call gave, called like its method, or why it was refused."""

    error: Failure | None = None
    publish: PublishResult | None = None
    broadcast: BroadcastResult | None = None
    subscribe: Done | None = None
    unsubscribe: Done | None = None
    disconnect: Done | None = None
    presence: PresenceResult | None = None
    presence_stats: PresenceStatsResult | None = None
    history: HistoryResult | None = None
    history_remove: Done | None = None
    info: InfoResult | None = None
    channels: ChannelsResult | None = None


class Replies(msgspec.Struct):
    """The replies to a batch, in its order."""

    replies: list[Reply]


SIGNATURES: Final[dict[str, tuple[type[msgspec.Struct], type[msgspec.Struct]]]] = {
    "publish": (PublishRequest, PublishResult),
    "broadcast": (BroadcastRequest, BroadcastResult),
    "subscribe": (SubscribeRequest, Done),
    "unsubscribe": (UnsubscribeRequest, Done),
    "disconnect": (DisconnectRequest, Done),
    "presence": (PresenceRequest, PresenceResult),
    "presence_stats": (PresenceStatsRequest, PresenceStatsResult),
    "history": (HistoryRequest, HistoryResult),
    "history_remove": (HistoryRemoveRequest, Done),
    "channels": (ChannelsRequest, ChannelsResult),
    "info": (InfoRequest, InfoResult),
    "batch": (BatchRequest, Replies),
}
"""What each method takes and gives."""
