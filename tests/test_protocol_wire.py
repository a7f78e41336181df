"""The messages of the Centrifuge protocol, and their schema."""

from types import GenericAlias
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatserver.protocol import protobuf, wire
from chatserver.protocol.schema import FIELDS
from chatserver.protocol.wire import Command, Wire, raw
from tests.centrifuge import KINDS, TEXT
from tests.fakes import PATIENT

# All fields that the protocol has, as its description has them: u is any unsigned number, i any signed one, M any
# message, [] a list, <> a map.
DESCRIPTION = """
Command: id 1u, connect 4M, subscribe 5M, unsubscribe 6M, publish 7M, presence 8M, presence_stats 9M, history 10M, \
ping 11M, send 12M, rpc 13M, refresh 14M, sub_refresh 15M
Reply: id 1u, error 2M, push 4M, connect 5M, subscribe 6M, unsubscribe 7M, publish 8M, presence 9M, \
presence_stats 10M, history 11M, ping 12M, rpc 13M, refresh 14M, sub_refresh 15M
Push: id 1i, channel 2s, pub 4M, join 5M, leave 6M, unsubscribe 7M, message 8M, subscribe 9M, connect 10M, \
disconnect 11M, refresh 12M
Error: code 1u, message 2s, temporary 3b
ClientInfo: user 1s, client 2s, conn_info 3y, chan_info 4y
Publication: data 4y, info 5M, offset 6u, tags 7<s>, delta 8b, time 9i, channel 10s, key 11s, removed 12b, score 13z, \
epoch 14s, prev_data 15y, version 16u
Join: info 1M
Leave: info 1M
Unsubscribe: code 2u, reason 3s
Subscribe: recoverable 1b, epoch 4s, offset 5u, positioned 6b, data 7y
PushMessage: data 1y
ConnectRequest: token 1s, data 2y, subs 3<SubscribeRequest>, name 4s, version 5s, headers 6<s>, flag 7i, dict 8s, \
profile 9s
ConnectResult: client 1s, version 2s, expires 3b, ttl 4u, data 5y, subs 6<SubscribeResult>, ping 7u, pong 8b, \
session 9s, node 10s, time 11i, flag 12i, dict 13M
SubscribeRequest: channel 1s, token 2s, recover 3b, epoch 6s, offset 7u, data 8y, positioned 9b, recoverable 10b, \
join_leave 11b, delta 12s, tf 13M, flag 14i, type 15i, phase 16i, cursor 17s, limit 18i, asc 19b
SubscribeResult: expires 1b, ttl 2u, recoverable 3b, epoch 6s, publications 7[M], recovered 8b, offset 9u, \
positioned 10b, data 11y, was_recovering 12b, delta 13b, id 14i, type 15i, phase 16i, cursor 17s, state 18[M], \
publish_debounce 19u
UnsubscribeRequest: channel 1s
PresenceRequest: channel 1s
PresenceStatsRequest: channel 1s
PublishRequest: channel 1s, data 2y, type 3i, key 4s, removed 5b
PresenceResult: presence 1<ClientInfo>
PresenceStatsResult: num_clients 1u, num_users 2u
HistoryRequest: channel 1s, limit 7i, since 8M, reverse 9b
StreamPosition: offset 1u, epoch 2s
HistoryResult: publications 1[M], epoch 2s, offset 3u
RPCRequest: data 1y, method 2s
RPCResult: data 1y
SendRequest: data 1y
RefreshRequest: token 1s
RefreshResult: client 1s, version 2s, expires 3b, ttl 4u
SubRefreshRequest: channel 1s, token 2s, type 3i, track 4[M], untrack 5[s]
SubRefreshResult: expires 1b, ttl 2u, items 3[M]
UnsubscribeResult: empty
PublishResult: empty
PingRequest: empty
FilterNode: op 1s, key 2s, cmp 3s, val 4s, vals 5[s], nodes 6[M]
"""
DESCRIBED = dict(line.split(": ") for line in DESCRIPTION.strip().splitlines())

TYPES: dict[str, Any] = {
    "u": wire.Uint32,
    "U": wire.Uint64,
    "i": wire.Int32,
    "I": wire.Int64,
    "b": bool,
    "s": str,
    "y": msgspec.Raw,
}


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)
def test_the_schema_is_the_protocols(kind: type[Wire]) -> None:
    described = set(DESCRIBED[kind.__name__].split(", "))
    for field in FIELDS[kind]:
        letter = field.kind.lower() if field.kind in "UI" else field.kind
        inside = field.message.__name__ if field.message and field.repeat == "<" else letter
        wrapped = {"": inside, "[": f"[{inside}]", "<": f"<{inside}>"}[field.repeat]
        assert f"{field.name} {field.number}{wrapped}" in described


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)
def test_the_schema_has_all_fields_of_a_message_with_their_types(kind: type[Wire]) -> None:
    natives = {field.name: field for field in msgspec.structs.fields(kind)}
    assert natives.keys() == {field.name for field in FIELDS[kind]}
    for field in FIELDS[kind]:
        one: Any = field.message or TYPES[field.kind]
        optional = one | None if field.message and not natives[field.name].required else one
        assert (
            natives[field.name].type
            == {"": optional, "[": GenericAlias(list, one), "<": GenericAlias(dict, (str, one))}[field.repeat]
        )


def test_every_message_is_in_the_schema() -> None:
    messages = {kind for kind in vars(wire).values() if isinstance(kind, type) and issubclass(kind, Wire)}
    assert messages - {Wire} == FIELDS.keys()


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)
def test_every_message_survives_either_form(kind: type[Wire]) -> None:
    @PATIENT
    @given(KINDS[kind.__name__])
    def survives(message: Wire) -> None:
        line = msgspec.json.encode(message)
        assert b"\n" not in line
        assert msgspec.json.decode(line, type=kind) == message
        assert protobuf.decode(kind, protobuf.encode(message)) == message

    survives()


ALWAYS = {
    "ClientInfo": {"user": "", "client": ""},
    "PresenceResult": {"presence": {}},
    "PresenceStatsResult": {"num_clients": 0, "num_users": 0},
    "HistoryResult": {"publications": [], "epoch": "", "offset": 0},
    "ConnectResult": {"client": "", "version": ""},
    "Error": {"code": 0, "message": ""},
    "Unsubscribe": {"code": 0, "reason": ""},
    "Join": {"info": {"user": "", "client": ""}},
    "Leave": {"info": {"user": "", "client": ""}},
}


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)
def test_what_is_zero_is_left_out_in_json_unless_clients_count_on_it(kind: type[Wire]) -> None:
    assert msgspec.json.decode(msgspec.json.encode(protobuf.decode(kind, b""))) == ALWAYS.get(kind.__name__, {})


@given(st.builds(str.encode, TEXT))
def test_an_empty_payload_is_left_out_however_it_was_made(data: bytes) -> None:
    for empty in (raw(""), raw(b""), raw(data[:0]), protobuf.decode(wire.RPCResult, b"\x0a\x00").data):
        assert msgspec.json.encode(wire.RPCResult(empty)) == b"{}"
        assert not empty


@pytest.mark.parametrize("number", [2**64, 2**70])
def test_an_offset_has_64_bits(number: int) -> None:
    for kind in (wire.StreamPosition, wire.SubscribeRequest):
        assert msgspec.json.decode(b'{"offset":%d}' % (2**64 - 1), type=kind) == kind(offset=2**64 - 1)
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(b'{"offset":%d}' % number, type=kind)


ORDER = "connect ping subscribe unsubscribe publish presence presence_stats history rpc send refresh sub_refresh"


def test_of_several_requests_the_first_counts() -> None:
    requests: dict[str, Any] = {
        name: kind()
        for name, kind in {
            "connect": wire.ConnectRequest,
            "ping": wire.PingRequest,
            "subscribe": wire.SubscribeRequest,
            "unsubscribe": wire.UnsubscribeRequest,
            "publish": wire.PublishRequest,
            "presence": wire.PresenceRequest,
            "presence_stats": wire.PresenceStatsRequest,
            "history": wire.HistoryRequest,
            "rpc": wire.RPCRequest,
            "send": wire.SendRequest,
            "refresh": wire.RefreshRequest,
            "sub_refresh": wire.SubRefreshRequest,
        }.items()
    }
    for name in ORDER.split():
        assert Command(1, **requests).request is requests[name]
        del requests[name]
    assert Command(1).request is None


def test_without_an_id_a_command_is_a_pong_unless_it_is_a_send() -> None:
    assert Command().request is None
    assert Command(connect=wire.ConnectRequest()).request is None
    assert Command(send=wire.SendRequest()).request == wire.SendRequest()
