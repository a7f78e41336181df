"""How the messages are numbered in the Protobuf form, and what their fields are made of."""

import re
from typing import Final, NamedTuple

from chatserver.protocol import wire
from chatserver.protocol.wire import Wire

# NAME=NUMBER and the kind: u uint32, U uint64, i int32, I int64, b bool, s string, y bytes (a payload), or a message
# in (); [] is a list, <> a map whose keys are strings.
_TABLE: Final[dict[type[Wire], str]] = {
    wire.Command: "id=1u connect=4(ConnectRequest) subscribe=5(SubscribeRequest) unsubscribe=6(UnsubscribeRequest)"
    " publish=7(PublishRequest) presence=8(PresenceRequest) presence_stats=9(PresenceStatsRequest)"
    " history=10(HistoryRequest) ping=11(PingRequest) send=12(SendRequest) rpc=13(RPCRequest)"
    " refresh=14(RefreshRequest) sub_refresh=15(SubRefreshRequest)",
    wire.Reply: "id=1u error=2(Error) push=4(Push) connect=5(ConnectResult) subscribe=6(SubscribeResult)"
    " unsubscribe=7(UnsubscribeResult) publish=8(PublishResult) presence=9(PresenceResult)"
    " presence_stats=10(PresenceStatsResult) history=11(HistoryResult) rpc=13(RPCResult) refresh=14(RefreshResult)"
    " sub_refresh=15(SubRefreshResult)",
    wire.Push: "channel=2s pub=4(Publication) join=5(Join) leave=6(Leave) unsubscribe=7(Unsubscribe)"
    " message=8(PushMessage) subscribe=9(Subscribe)",
    wire.Error: "code=1u message=2s temporary=3b",
    wire.ClientInfo: "user=1s client=2s conn_info=3y chan_info=4y",
    wire.Publication: "data=4y info=5(ClientInfo) offset=6U tags=7<s> delta=8b",
    wire.Join: "info=1(ClientInfo)",
    wire.Leave: "info=1(ClientInfo)",
    wire.Unsubscribe: "code=2u reason=3s",
    wire.Subscribe: "recoverable=1b epoch=4s offset=5U positioned=6b data=7y",
    wire.PushMessage: "data=1y",
    wire.ConnectRequest: "token=1s data=2y subs=3<SubscribeRequest> name=4s version=5s headers=6<s>",
    wire.ConnectResult: "client=1s version=2s expires=3b ttl=4u data=5y subs=6<SubscribeResult> ping=7u pong=8b",
    wire.SubscribeRequest: "channel=1s token=2s recover=3b epoch=6s offset=7U data=8y positioned=9b recoverable=10b"
    " join_leave=11b delta=12s tf=13(FilterNode) flag=14I type=15i",
    wire.SubscribeResult: "expires=1b ttl=2u recoverable=3b epoch=6s publications=7[Publication] recovered=8b"
    " offset=9U positioned=10b data=11y was_recovering=12b delta=13b",
    wire.UnsubscribeRequest: "channel=1s",
    wire.PresenceRequest: "channel=1s",
    wire.PresenceStatsRequest: "channel=1s",
    wire.PublishRequest: "channel=1s data=2y",
    wire.PresenceResult: "presence=1<ClientInfo>",
    wire.PresenceStatsResult: "num_clients=1u num_users=2u",
    wire.HistoryRequest: "channel=1s limit=7i since=8(StreamPosition) reverse=9b",
    wire.StreamPosition: "offset=1U epoch=2s",
    wire.HistoryResult: "publications=1[Publication] epoch=2s offset=3U",
    wire.RPCRequest: "data=1y method=2s",
    wire.RPCResult: "data=1y",
    wire.SendRequest: "data=1y",
    wire.RefreshRequest: "token=1s",
    wire.RefreshResult: "expires=3b ttl=4u",
    wire.SubRefreshRequest: "channel=1s token=2s",
    wire.SubRefreshResult: "expires=1b ttl=2u",
    wire.UnsubscribeResult: "",
    wire.PublishResult: "",
    wire.PingRequest: "",
    wire.FilterNode: "",
}


class Field(NamedTuple):
    """A field of a message."""

    name: str
    number: int
    repeat: str
    """`[` for a list, `<` for a map whose keys are strings."""
    kind: str
    """A letter, or `M` for a message."""
    message: type[Wire] | None


def _field(word: str) -> Field:
    match = re.fullmatch(r"(\w+)=(\d+)([\[<(]?)(\w+)[\]>)]?", word)
    assert match, word
    name, number, repeat, kind = match.groups()
    message: type[Wire] | None = vars(wire).get(kind)
    return Field(name, int(number), repeat.strip("("), "M" if message else kind, message)


FIELDS: Final = {kind: tuple(map(_field, row.split())) for kind, row in _TABLE.items()}
