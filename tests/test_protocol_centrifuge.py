"""The Centrifuge protocol, frame by frame, in both forms."""

import contextlib
import itertools
import json
from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatserver.errors import (
    ChatError,
    InternalError,
    Malformed,
    TooManyMessages,
    Unrecoverable,
)
from chatserver.message import Changes, Event, Info, Joined, Left, Message, Notice, Publish, Refused
from chatserver.protocol import Codec, protobuf, wire
from chatserver.protocol.centrifuge import Json, Protobuf, _by, client_info, publication
from chatserver.protocol.schema import FIELDS
from chatserver.protocol.wire import Command, Wire, raw
from chatserver.records import said
from tests.centrifuge import COMMANDS, KINDS, PAYLOADS, TEXT
from tests.fakes import PATIENT, split

Form: TypeAlias = Json | Protobuf
FORMS: list[Form] = [Json(), Protobuf()]
BOTH = pytest.mark.parametrize("form", FORMS, ids=["json", "protobuf"])


def heard(form: Form, *frames: str | bytes) -> list[Command | None]:
    """The commands in `frames`, and None where the rest of one is malformed."""
    found: list[Command | None] = []
    for frame in frames:
        try:
            found.extend(form.commands(frame))
        except Malformed:
            found.append(None)
    return found


def told(form: Form, piece: bytes) -> wire.Reply:
    """What is in a piece."""
    if isinstance(form, Json):
        assert b"\n" not in piece
        return msgspec.json.decode(piece, type=wire.Reply)
    (message,) = protobuf.split(piece)
    return protobuf.decode(wire.Reply, message)


def line(command: Command) -> bytes:
    """A command in JSON."""
    return msgspec.json.encode(command)


# Frames with just a text

IDS = ["7", "0", "-1", "4294967295", "4294967296", "1.5", "null"]
CHANNELS = ['"room"', '""', "null", "1", '"a\\u0062"']
TEXTS = [
    '{"body":"é \U0001f600"}',
    '{ "body" : "a" }',
    '{"body":"a\tb"}',
    '{"body":"a\\tb"}',
    '{"body":"\\u0061"}',
    '{"body":"\x7f"}',
    '{"body":"a","body":"b"}',
    '{"\\u0062ody":"a"}',
    '{"body":"a","more":1}',
    '{"body":null}',
    "{}",
    '"a"',
]
ENDS = ["", ',"presence":{"channel":"c"}', ',"unsubscribe":{"channel":"c"}', ',"id":9', ',"unknown":1', "\n"]


def saying(number: str = "7", channel: str = '"room"', data: str = "null", end: str = "") -> str:
    """A frame that says something, perhaps wrongly."""
    return f'{{"id": {number},"publish":{{"channel":{channel},"data":{data}}}{end}}}'


def check_text(frame: str) -> None:
    """If it is understood at first sight, then as it would be at second."""
    text = Json().text(frame)
    if text is not None:
        (command,) = Json().commands(frame)
        assert isinstance(command.request, wire.PublishRequest)
        assert (command.id, command.request.channel) == text[:2]
        assert said("room", bytes(command.request.data), 0) == Publish(text[2], "room")


def test_a_frame_with_just_a_text_says_the_same_as_its_command() -> None:
    for parts in itertools.product(IDS, CHANNELS, TEXTS, ENDS):
        check_text(saying(*parts))


@PATIENT
@given(st.text(alphabet='ab é\U0001f600\t\x00\x7f"\\{}:,\n', max_size=8))
def test_whatever_the_text_is(text: str) -> None:
    for body in (json.dumps(text), json.dumps(text, ensure_ascii=False), f'"{text}"'):
        check_text(saying(data=f'{{"body":{body}}}'))


@pytest.mark.parametrize("body", ["", "hi", "é \U0001f600", '{"body":'.replace('"', "'"), "x" * 300])
def test_a_frame_with_just_a_text_is_understood_at_first_sight(body: str) -> None:
    for separators in ((",", ":"), (", ", ": ")):
        command = {"id": 5, "publish": {"channel": "room", "data": {"body": body}}}
        frame = json.dumps(command, separators=separators, ensure_ascii=False)
        assert Json().text(frame) == (5, "room", body)
        assert Json().text(frame.encode()) is None
        assert Protobuf().text(frame) is None


# Commands in JSON

JSON_COMMANDS: dict[str, tuple[str, list[Command]]] = {
    "connect": ('{"id":1,"connect":{}}', [Command(1, wire.ConnectRequest())]),
    "all of a connect": (
        '{"id":1,"connect":{"token":"t","data":{"a":1},"subs":{"c":{"recover":true,"offset":3,"epoch":"e"},"d":{}},'
        '"name":"js","version":"1","headers":{"k":"v"}}}',
        [
            Command(
                1,
                wire.ConnectRequest(
                    "t",
                    raw('{"a":1}'),
                    {
                        "c": wire.SubscribeRequest(recover=True, offset=3, epoch="e"),
                        "d": wire.SubscribeRequest(),
                    },
                    "js",
                    "1",
                    {"k": "v"},
                ),
            )
        ],
    ),
    "two in a frame": (
        '{"id":1,"connect":{"name":"js"}}\n{"id":2,"subscribe":{"channel":"room1","flag":1}}',
        [
            Command(1, wire.ConnectRequest(name="js")),
            Command(2, subscribe=wire.SubscribeRequest("room1", flag=1)),
        ],
    ),
    "a line break at the end": (
        '{"id":3,"unsubscribe":{"channel":"c"}}\n',
        [Command(3, unsubscribe=wire.UnsubscribeRequest("c"))],
    ),
    "space around": (' {"id" : 3 , "send" : { } } \r\n', [Command(3, send=wire.SendRequest())]),
    "publish": (
        '{"id":3,"publish":{"channel":"c","data":{"text":"hi\\nthere"}}}',
        [Command(3, publish=wire.PublishRequest("c", raw('{"text":"hi\\nthere"}')))],
    ),
    "a payload that is null": (
        '{"id":3,"publish":{"channel":"c","data":null}}',
        [Command(3, publish=wire.PublishRequest("c", raw("null")))],
    ),
    "a payload as it came": (
        '{"id":3,"rpc":{"method":"m","data":[1.00, "\\u00e9"]}}',
        [Command(3, rpc=wire.RPCRequest(raw('[1.00, "\\u00e9"]'), "m"))],
    ),
    "history": (
        '{"id":4,"history":{"channel":"c","limit":-1,"reverse":true,"since":{"offset":3,"epoch":"e"}}}',
        [Command(4, history=wire.HistoryRequest("c", -1, wire.StreamPosition(3, "e"), True))],
    ),
    "history with zeros": (
        '{"id":4,"history":{"channel":"c","limit":0,"reverse":false,"since":null}}',
        [Command(4, history=wire.HistoryRequest("c"))],
    ),
    "a filter": (
        '{"id":5,"subscribe":{"channel":"c","tf":{"op":"and","nodes":[{"key":"a"}]}}}',
        [Command(5, subscribe=wire.SubscribeRequest("c", tf=wire.FilterNode()))],
    ),
    "a map": (
        '{"id":5,"subscribe":{"channel":"c","type":1}}',
        [Command(5, subscribe=wire.SubscribeRequest("c", type=1))],
    ),
    "presence": ('{"id":6,"presence":{"channel":"c"}}', [Command(6, presence=wire.PresenceRequest("c"))]),
    "presence_stats": (
        '{"id":7,"presence_stats":{"channel":"c"}}',
        [Command(7, presence_stats=wire.PresenceStatsRequest("c"))],
    ),
    "refresh": ('{"id":8,"refresh":{"token":"t"}}', [Command(8, refresh=wire.RefreshRequest("t"))]),
    "sub_refresh": (
        '{"id":9,"sub_refresh":{"channel":"c","token":"t"}}',
        [Command(9, sub_refresh=wire.SubRefreshRequest("c", "t"))],
    ),
    "send without an id": ('{"send":{"data":1}}', [Command(send=wire.SendRequest(raw("1")))]),
    "pong": ("{}", [Command()]),
    "pongs": ("{}\n{}\n", [Command(), Command()]),
    "unknown fields": (
        '{"id":1,"connect":{"flag":7,"dict":"d","x":null},"method":1,"x":[null]}',
        [Command(1, wire.ConnectRequest())],
    ),
    "nulls": (
        '{"id":null,"connect":null,"send":{"data":null},"rpc":null}',
        [Command(send=wire.SendRequest(raw("null")))],
    ),
    "nulls deep inside": (
        '{"id":1,"connect":{"token":null,"data":{"a":null},"subs":{"c":{"epoch":null,"data":null,"tf":null},"d":null},'
        '"headers":{"a":null,"b":"c"},"x":null}}',
        [
            Command(
                1,
                wire.ConnectRequest(
                    data=raw('{"a":null}'),
                    subs={"c": wire.SubscribeRequest(data=raw("null"))},
                    headers={"b": "c"},
                ),
            )
        ],
    ),
    "null instead of maps": ('{"id":1,"connect":{"subs":null,"headers":null}}', [Command(1, wire.ConnectRequest())]),
    "the last of two": ('{"id":1,"id":2,"send":{}}', [Command(2, send=wire.SendRequest())]),
    "the largest numbers": (
        '{"id":4294967295,"subscribe":{"offset":18446744073709551615,"flag":9223372036854775807,"type":2147483647}}',
        [Command(2**32 - 1, subscribe=wire.SubscribeRequest(offset=2**64 - 1, flag=2**63 - 1, type=2**31 - 1))],
    ),
}


@pytest.mark.parametrize(("frame", "commands"), JSON_COMMANDS.values(), ids=JSON_COMMANDS.keys())
@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
def test_a_frame_of_json_has_these_commands(frame: str, commands: list[Command], binary: bool) -> None:
    assert list(Json().commands(frame.encode() if binary else frame)) == commands


JSON_MALFORMED = {
    "nothing": "",
    "a line break": "\n",
    "a blank line at the end": '{"id":1,"send":{}}\n\n',
    "a blank line between": '{"id":1,"send":{}}\n\n{"id":2,"send":{}}',
    "space": " ",
    "not JSON": "hello",
    "cut off": '{"id":2,"publish":{"channel":"room1"',
    "two in a line": '{"id":1,"send":{}}{"id":2,"send":{}}',
    "an array": "[]",
    "null": "null",
    "a number": "1",
    "no request": '{"id":2}',
    "unknown request": '{"id":2,"nosuch":{}}',
    "request null": '{"id":2,"subscribe":null}',
    "the first version": '{"id":1,"method":1,"params":{"channel":"c"}}',
    "id as text": '{"id":"1","send":{}}',
    "id true": '{"id":true,"send":{}}',
    "id 1.0": '{"id":1.0,"send":{}}',
    "id -1": '{"id":-1,"send":{}}',
    "id of 33 bits": '{"id":4294967296,"send":{}}',
    "request true": '{"id":1,"subscribe":true}',
    "request array": '{"id":1,"subscribe":[]}',
    "channel number": '{"id":1,"subscribe":{"channel":1}}',
    "recover 1": '{"id":1,"subscribe":{"recover":1}}',
    "offset -1": '{"id":1,"subscribe":{"offset":-1}}',
    "offset of 65 bits": '{"id":1,"subscribe":{"offset":18446744073709551616}}',
    "offset of 5000 digits": f'{{"id":1,"subscribe":{{"offset":{"9" * 5000}}}}}',
    "since of 65 bits": '{"id":1,"history":{"since":{"offset":18446744073709551616}}}',
    "limit of 33 bits": '{"id":1,"history":{"limit":2147483648}}',
    "flag of 65 bits": '{"id":1,"subscribe":{"flag":9223372036854775808}}',
    "filter text": '{"id":1,"subscribe":{"tf":"a"}}',
    "subs array": '{"id":1,"connect":{"subs":[]}}',
    "subs of texts": '{"id":1,"connect":{"subs":{"c":"d"}}}',
    "headers of numbers": '{"id":1,"connect":{"headers":{"c":1}}}',
    "wrong beside a null": '{"id":1,"connect":{"token":null,"subs":{"c":{"offset":"1"}}}}',
    "wrong instead of an object beside a null": '{"id":1,"connect":{"token":null,"subs":1}}',
    "payload cut off": '{"id":1,"send":{"data":}}',
    "payload NaN": '{"id":1,"send":{"data":NaN}}',
    "surrogate": r'{"id":1,"subscribe":{"channel":"\ud800"}}',
    "surrogate in a payload": r'{"id":1,"send":{"data":"\ud800"}}',
    "raw surrogate": '{"id":1,"subscribe":{"channel":"\ud800"}}',
    "deep": "[" * 60_000,
    "deep payload": '{"id":1,"send":{"data":' + "[" * 60_000,
    "deep unknown field": '{"id":1,"send":{},"x":' + '{"x":' * 60_000,
    "deep beside a null": '{"id":null,"send":{"data":' + "[" * 30_000 + "]" * 30_000 + "}}",
}


@pytest.mark.parametrize("frame", JSON_MALFORMED.values(), ids=JSON_MALFORMED.keys())
@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
def test_a_frame_of_json_is_malformed(frame: str, binary: bool) -> None:
    with pytest.raises(Malformed, match=r"^bad request$"):
        list(Json().commands(frame.encode(errors="surrogatepass") if binary else frame))


@pytest.mark.parametrize("frame", [b"\xff", b'{"id":1,"subscribe":{"channel":"\xff"}}', b'{"id":1,"\xff":1}'])
def test_json_is_utf8(frame: bytes) -> None:
    with pytest.raises(Malformed):
        list(Json().commands(frame))


# Commands in Protobuf

PROTOBUF_COMMANDS: dict[str, tuple[str, list[Command]]] = {
    "connect": ("04 08 01 22 00", [Command(1, wire.ConnectRequest())]),
    "subscribe": ("09 08 02 2a 05 0a 03 66 6f 6f", [Command(2, subscribe=wire.SubscribeRequest("foo"))]),
    "publish": (
        "0d 08 03 3a 09 0a 03 66 6f 6f 12 02 7b 7d",
        [Command(3, publish=wire.PublishRequest("foo", raw("{}")))],
    ),
    "pong": ("00", [Command()]),
    "pongs": ("00 00", [Command(), Command()]),
    "send without an id": ("02 62 00", [Command(send=wire.SendRequest())]),
    "a request that forgot its id": ("02 22 00", [Command(connect=wire.ConnectRequest())]),
    "two in a frame": (
        "04 08 01 22 00 04 08 02 62 00",
        [Command(1, wire.ConnectRequest()), Command(2, send=wire.SendRequest())],
    ),
    "a filter": ("08 08 01 2a 04 6a 02 0a 00", [Command(1, subscribe=wire.SubscribeRequest(tf=wire.FilterNode()))]),
    "the reserved ping": ("04 08 01 5a 00", [Command(1, ping=wire.PingRequest())]),
}


@pytest.mark.parametrize(("frame", "commands"), PROTOBUF_COMMANDS.values(), ids=PROTOBUF_COMMANDS.keys())
@pytest.mark.parametrize("text", [False, True], ids=["binary", "text"])
def test_a_frame_of_protobuf_has_these_commands(frame: str, commands: list[Command], text: bool) -> None:
    data = bytes.fromhex(frame)
    assert list(Protobuf().commands(data.decode() if text else data)) == commands


PROTOBUF_MALFORMED = {
    "nothing": "",
    "cut off": "05 08 01 22 00",
    "a length without an end": "ff",
    "the longest length": "ff ff ff ff ff ff ff ff ff 01 08",
    "no request": "02 08 01",
    "unknown request": "05 08 01 a2 06 00",
    "id as text": "03 0a 01 31",
    "JSON": b'{"id":1}'.hex(),
    "a channel that is not UTF-8": "07 08 02 2a 03 0a 01 ff",
}


@pytest.mark.parametrize("frame", PROTOBUF_MALFORMED.values(), ids=PROTOBUF_MALFORMED.keys())
def test_a_frame_of_protobuf_is_malformed(frame: str) -> None:
    with pytest.raises(Malformed, match=r"^bad request$"):
        list(Protobuf().commands(bytes.fromhex(frame)))


@pytest.mark.parametrize("frame", ["", "hello", '{"id":1}', "\ud800", "é"])
def test_a_text_frame_that_is_no_protobuf_is_malformed(frame: str) -> None:
    with pytest.raises(Malformed):
        list(Protobuf().commands(frame))


# Commands in either form


@pytest.mark.parametrize(
    ("form", "frame"),
    [
        (Json(), '{"id":1,"send":{}}\n{"id":2,"send":{}}\n{"id":3}\n{"id":4,"send":{}}'),
        (Json(), '{"id":1,"send":{}}\n{"id":2,"send":{}}\n\n{"id":4,"send":{}}'),
        (Protobuf(), bytes.fromhex("04 08 01 62 00 04 08 02 62 00 02 08 03 04 08 04 62 00")),
        (Protobuf(), bytes.fromhex("04 08 01 62 00 04 08 02 62 00 04 08 03 62")),
    ],
)
def test_what_is_before_a_malformed_command_counts(form: Form, frame: str | bytes) -> None:
    commands = form.commands(frame)
    assert next(commands).id == 1
    assert next(commands).id == 2
    with pytest.raises(Malformed):
        next(commands)
    with pytest.raises(StopIteration):
        next(commands)


@PATIENT
@given(st.lists(COMMANDS, min_size=1, max_size=4))
def test_commands_say_the_same_in_both_forms(commands: list[Command]) -> None:
    lines = b"\n".join(map(line, commands))
    assert list(Json().commands(lines.decode())) == commands
    assert list(Json().commands(lines + b"\n")) == commands
    assert list(Protobuf().commands(b"".join(map(protobuf.delimited, commands)))) == commands


@PATIENT
@given(KINDS["Command"])
def test_a_command_without_a_request_has_no_id_in_either_form(command: Command) -> None:
    expected = [command if command.request or not command.id else None]
    assert heard(Json(), line(command)) == expected
    assert heard(Protobuf(), protobuf.delimited(command)) == expected


def with_nulls(kind: type[Wire], fields: dict[str, Any]) -> dict[str, Any]:
    """`fields` of a message in JSON, with all that is left out as null, save payloads."""
    found: dict[str, Any] = {"unknown": None}
    for field in FIELDS[kind]:
        value = fields.get(field.name)
        if field.kind == "y":
            found |= {field.name: value} if field.name in fields else {}
        elif value is not None and field.message:
            found[field.name] = (
                {key: with_nulls(field.message, entry) for key, entry in value.items()}
                if field.repeat
                else with_nulls(field.message, value)
            )
        else:
            found[field.name] = value
    return found


@PATIENT
@given(COMMANDS)
def test_a_null_is_nothing(command: Command) -> None:
    nulls = json.dumps(with_nulls(Command, json.loads(line(command))))
    (other,) = Json().commands(nulls)
    assert json.loads(line(other)) == json.loads(line(command))


@PATIENT
@given(st.binary() | TEXT | st.text())
def test_no_frame_is_anything_but_commands_or_malformed(frame: str | bytes) -> None:
    for form in FORMS:
        for command in heard(form, frame):
            assert command is None or command.request is not None or not command.id


Edit: TypeAlias = Callable[[bytes], bytes]
EDITS: st.SearchStrategy[Edit] = st.builds(
    lambda place, length, new: (
        lambda data: data[: place % (len(data) + 1)] + new + data[place % (len(data) + 1) + length :]
    ),
    st.integers(0, 200),
    st.integers(0, 5),
    st.binary(max_size=5) | st.sampled_from([b"\n", b"null", b'"', b"{", b"}", b",", b"\xff", b"\x80", b"\x00"]),
)


@PATIENT
@given(COMMANDS, st.lists(EDITS, min_size=1, max_size=4))
def test_no_mutation_of_a_frame_is_anything_but_commands_or_malformed(command: Command, edits: list[Edit]) -> None:
    for form, frame in zip(FORMS, (line(command), protobuf.delimited(command)), strict=True):
        for edit in edits:
            frame = edit(frame)
        heard(form, frame)
        with contextlib.suppress(UnicodeDecodeError):
            heard(form, frame.decode())


# What the server says

INFO = Info("ann", "c-1", '{"name":"Ann"}', '{"role":"mod"}')
BARE = Info("", "c-2")

RESULTS: dict[str, tuple[wire.Result, str, str]] = {
    "connect": (
        wire.ConnectResult("c", "v", ping=25, pong=True),
        '{"id":1,"connect":{"client":"c","version":"v","ping":25,"pong":true}}',
        "0e 0801 2a0a 0a0163 120176 3819 4001",
    ),
    "connect with all": (
        wire.ConnectResult(
            "c", "v", True, 60, raw("null"), {"r": wire.SubscribeResult(data=raw("1")), "s": wire.SubscribeResult()}
        ),
        '{"id":1,"connect":{"client":"c","version":"v","expires":true,"ttl":60,"data":null,'
        '"subs":{"r":{"data":1},"s":{}}}}',
        "25 0801 2a21 0a0163 120176 1801 203c 2a046e756c6c 3208 0a0172 1203 5a0131 3205 0a0173 1200",
    ),
    "subscribe": (wire.SubscribeResult(), '{"id":1,"subscribe":{}}', "04 0801 3200"),
    "subscribe with a position": (
        wire.SubscribeResult(recoverable=True, positioned=True, epoch="e", offset=3),
        '{"id":1,"subscribe":{"recoverable":true,"epoch":"e","offset":3,"positioned":true}}',
        "0d 0801 3209 1801 320165 4803 5001",
    ),
    "subscribe, recovered": (
        wire.SubscribeResult(was_recovering=True, recovered=True, publications=[wire.Publication(raw("2"), offset=2)]),
        '{"id":1,"subscribe":{"publications":[{"data":2,"offset":2}],"recovered":true,"was_recovering":true}}',
        "0f 0801 320b 3a05 220132 3002 4001 6001",
    ),
    "unsubscribe": (wire.UnsubscribeResult(), '{"id":1,"unsubscribe":{}}', "04 0801 3a00"),
    "publish": (wire.PublishResult(), '{"id":1,"publish":{}}', "04 0801 4200"),
    "presence of nobody": (wire.PresenceResult({}), '{"id":1,"presence":{"presence":{}}}', "04 0801 4a00"),
    "presence": (
        wire.PresenceResult({"c-2": client_info(BARE)}),
        '{"id":1,"presence":{"presence":{"c-2":{"user":"","client":"c-2"}}}}',
        "12 0801 4a0e 0a0c 0a03632d32 1205 1203632d32",
    ),
    "presence_stats of nobody": (
        wire.PresenceStatsResult(0, 0),
        '{"id":1,"presence_stats":{"num_clients":0,"num_users":0}}',
        "04 0801 5200",
    ),
    "presence_stats": (
        wire.PresenceStatsResult(2, 1),
        '{"id":1,"presence_stats":{"num_clients":2,"num_users":1}}',
        "08 0801 5204 0802 1001",
    ),
    "history of nothing": (
        wire.HistoryResult([], "e", 0),
        '{"id":1,"history":{"publications":[],"epoch":"e","offset":0}}',
        "07 0801 5a03 120165",
    ),
    "history": (
        wire.HistoryResult([wire.Publication(raw("1"), offset=1)], "e", 1),
        '{"id":1,"history":{"publications":[{"data":1,"offset":1}],"epoch":"e","offset":1}}',
        "10 0801 5a0c 0a05 220131 3001 120165 1801",
    ),
    "rpc": (wire.RPCResult(raw('{"a":1}')), '{"id":1,"rpc":{"data":{"a":1}}}', "0d 0801 6a09 0a07 7b2261223a317d"),
    "rpc without data": (wire.RPCResult(), '{"id":1,"rpc":{}}', "04 0801 6a00"),
    "refresh": (wire.RefreshResult(True, 60), '{"id":1,"refresh":{"expires":true,"ttl":60}}', "08 0801 7204 1801 203c"),
    "sub_refresh": (wire.SubRefreshResult(), '{"id":1,"sub_refresh":{}}', "04 0801 7a00"),
}


@pytest.mark.parametrize(("result", "text", "data"), RESULTS.values(), ids=RESULTS.keys())
def test_a_result_has_these_bytes(result: wire.Result, text: str, data: str) -> None:
    assert Json().reply(1, result).decode() == text
    assert Json().reply(0, result).decode() == text.replace('"id":1,', "")  # of a command that forgot its id
    assert Protobuf().reply(1, result).hex() == data.replace(" ", "")


@BOTH
@pytest.mark.parametrize(
    "name", [field.name for field in FIELDS[wire.Reply] if field.name not in {"id", "error", "push"}]
)
def test_any_result_arrives_under_its_name(form: Form, name: str) -> None:
    (kind,) = (field.message for field in FIELDS[wire.Reply] if field.name == name)
    assert kind

    @PATIENT
    @given(st.integers(1, 2**32 - 1), KINDS[kind.__name__])
    def arrives(id: int, result: Any) -> None:
        assert told(form, form.reply(id, result)) == wire.Reply(id, **{name: result})

    arrives()


@pytest.mark.parametrize(
    ("error", "text", "data"),
    [
        (
            Unrecoverable(),
            '{"code":112,"message":"unrecoverable position"}',
            "1e 0807 121a 0870 1216" + b"unrecoverable position".hex(),
        ),
        (
            InternalError(),
            '{"code":100,"message":"internal error","temporary":true}',
            "18 0807 1214 0864 120e" + b"internal error".hex() + "1801",
        ),
        (
            TooManyMessages(0.2),
            '{"code":111,"message":"too many messages, retry in 0.2 s","temporary":true}',
            "2b 0807 1227 086f 1221" + b"too many messages, retry in 0.2 s".hex() + "1801",
        ),
        (
            ChatError("no links, please"),
            '{"code":400,"message":"no links, please"}',
            "19 0807 1215 089003 1210" + b"no links, please".hex(),
        ),
    ],
)
def test_a_failure_has_these_bytes(error: ChatError, text: str, data: str) -> None:
    assert Json().failure(7, error).decode() == f'{{"id":7,"error":{text}}}'
    assert Protobuf().failure(7, error).hex() == data.replace(" ", "")


PUSHES: dict[str, tuple[str, wire.PushBody, str, str]] = {
    "pub": ("r", wire.Publication(raw("1")), '{"channel":"r","pub":{"data":1}}', "0a 2208 120172 2203 220131"),
    "pub of nothing": ("r", wire.Publication(), '{"channel":"r","pub":{}}', "07 2205 120172 2200"),
    "join": (
        "r",
        wire.Join(client_info(BARE)),
        '{"channel":"r","join":{"info":{"user":"","client":"c-2"}}}',
        "0e 220c 120172 2a07 0a05 1203632d32",
    ),
    "leave": (
        "r",
        wire.Leave(client_info(BARE)),
        '{"channel":"r","leave":{"info":{"user":"","client":"c-2"}}}',
        "0e 220c 120172 3207 0a05 1203632d32",
    ),
    "unsubscribe": (
        "r",
        wire.Unsubscribe(2500, "gone"),
        '{"channel":"r","unsubscribe":{"code":2500,"reason":"gone"}}',
        "10 220e 120172 3a09 10c413 1a04676f6e65",
    ),
    "subscribe": (
        "r",
        wire.Subscribe(True, "e", 3, True, raw("{}")),
        '{"channel":"r","subscribe":{"recoverable":true,"epoch":"e","offset":3,"positioned":true,"data":{}}}',
        "14 2212 120172 4a0d 0801 220165 2803 3001 3a027b7d",
    ),
    "message": ("", wire.PushMessage(raw("1")), '{"message":{"data":1}}', "07 2205 4203 0a0131"),
}


@pytest.mark.parametrize(("channel", "body", "text", "data"), PUSHES.values(), ids=PUSHES.keys())
def test_a_push_has_these_bytes(channel: str, body: wire.PushBody, text: str, data: str) -> None:
    assert Json().push(channel, body).decode() == f'{{"push":{text}}}'
    assert Protobuf().push(channel, body).hex() == data.replace(" ", "")


EVENTS: dict[str, tuple[Event, dict[str, Any]]] = {
    "all of a message": (
        Message("ann", "hi", "room1", '{"body":"hi","n":1.00}', 7, INFO, {"k": "v"}),
        {
            "channel": "room1",
            "pub": {
                "data": {"body": "hi", "n": 1.0},
                "info": {
                    "user": "ann",
                    "client": "c-1",
                    "conn_info": {"name": "Ann"},
                    "chan_info": {"role": "mod"},
                },
                "offset": 7,
                "tags": {"k": "v"},
            },
        },
    ),
    "just a body": (Message("ann", 'é"\n', "room1"), {"channel": "room1", "pub": {"data": {"body": 'é"\n'}}}),
    "an empty body": (Message("ann", "", "room1"), {"channel": "room1", "pub": {"data": {"body": ""}}}),
    "data without a body": (Message("", None, "room1", "[1]"), {"channel": "room1", "pub": {"data": [1]}}),
    "null": (Message("", None, "room1", "null"), {"channel": "room1", "pub": {"data": None}}),
    "no tags": (Message("", "hi", "r", tags={}), {"channel": "r", "pub": {"data": {"body": "hi"}}}),
    "joined": (
        Joined("ann", "room1", INFO),
        {
            "channel": "room1",
            "join": {
                "info": {"user": "ann", "client": "c-1", "conn_info": {"name": "Ann"}, "chan_info": {"role": "mod"}}
            },
        },
    ),
    "left": (Left("", "room1", BARE), {"channel": "room1", "leave": {"info": {"user": "", "client": "c-2"}}}),
    "notice": (Notice('maintenance\nat "9"'), {"message": {"data": {"notice": 'maintenance\nat "9"'}}}),
}


@pytest.mark.parametrize(("event", "push"), EVENTS.values(), ids=EVENTS.keys())
def test_an_event_is_this_push(event: Event, push: dict[str, Any]) -> None:
    assert json.loads(Json().encode(event)) == {"push": push}
    assert told(Protobuf(), Protobuf().encode(event)) == told(Json(), Json().encode(event))


def test_a_payload_keeps_its_digits() -> None:
    event = Message("", None, "r", '{"a":1.00,"b":1e999}')
    assert Json().encode(event) == b'{"push":{"channel":"r","pub":{"data":{"a":1.00,"b":1e999}}}}'
    assert b'{"a":1.00,"b":1e999}' in Protobuf().encode(event)


@BOTH
@pytest.mark.parametrize(
    "event",
    [
        Joined("ann"),
        Left("ann"),
        Refused(400, "refused"),
        Changes((Joined("ann"),)),
        Changes((Joined("ann", "r", INFO),), crowd=2),
    ],
)
def test_of_some_events_nobody_is_told(form: Form, event: Event) -> None:
    assert form.encode(event) == b""


INFOS = st.builds(Info, user=TEXT, client=TEXT, conn=st.just("") | PAYLOADS, chan=st.just("") | PAYLOADS)
MESSAGES = st.builds(
    Message,
    user=TEXT,
    body=TEXT,
    room=TEXT,
    data=st.just("") | PAYLOADS,
    offset=st.just(0) | st.integers(1, 2**63 - 1),
    info=st.none() | INFOS,
    tags=st.none() | st.dictionaries(TEXT, TEXT, max_size=3),
)


@BOTH
@PATIENT
@given(event=MESSAGES)
def test_a_message_is_a_publication_live_and_later(form: Form, event: Message) -> None:
    assert told(form, form.encode(event)) == wire.Reply(push=wire.Push(event.room, publication(event)))
    assert form.encode(event) == form.push(event.room, publication(event))
    history = wire.HistoryResult([publication(event)], "e", event.offset)
    assert told(form, form.reply(1, history)).history == history


@BOTH
@PATIENT
@given(user=TEXT, room=TEXT, info=INFOS)
def test_who_comes_and_goes_is_told(form: Form, user: str, room: str, info: Info) -> None:
    known = client_info(info)
    assert told(form, form.encode(Joined(user, room, info))) == wire.Reply(push=wire.Push(room, join=wire.Join(known)))
    assert told(form, form.encode(Left(user, room, info))) == wire.Reply(push=wire.Push(room, leave=wire.Leave(known)))


CHANGES = st.builds(Joined, TEXT, st.just("r"), INFOS) | st.builds(Left, TEXT, st.just("r"), INFOS)


@BOTH
@PATIENT
@given(st.lists(CHANGES, min_size=1, max_size=5))
def test_those_who_come_and_go_together_are_told_one_by_one_in_order(form: Form, changes: list[Joined | Left]) -> None:
    one_by_one = form.join([form.encode(change) for change in changes])
    assert form.join([form.encode(Changes(tuple(changes), "r"))]) == one_by_one


def test_those_who_come_and_go_together_are_one_piece() -> None:
    """Which stands among others as any does."""
    ann = Info("ann", "c-1")
    event = Changes((Joined("ann", "r", ann), Joined("bob", "r"), Left("ann", "r", ann)), "r")
    lines = (
        b'{"push":{"channel":"r","join":{"info":{"user":"ann","client":"c-1"}}}}\n'
        b'{"push":{"channel":"r","leave":{"info":{"user":"ann","client":"c-1"}}}}'
    )
    assert Json().encode(event) == lines
    pong = Json().reply(1, wire.PublishResult())
    ((_, data),) = split(Json().join([pong, Json().encode(event), pong]))
    assert data == b"\n".join([pong, lines, pong])


# Frames


def test_a_ping_is_an_empty_reply() -> None:
    assert Json().ping == b"\x81\x02{}"
    assert Protobuf().ping == b"\x82\x01\x00"
    assert told(Json(), b"{}") == told(Protobuf(), b"\x00") == wire.Reply()


def test_pieces_are_joined_in_one_frame() -> None:
    pieces = [form.reply(number, wire.PublishResult()) for form in FORMS for number in (1, 2)]
    assert Json().join(pieces[:2]) == b'\x81\x2b{"id":1,"publish":{}}\n{"id":2,"publish":{}}'
    assert Protobuf().join(pieces[2:]) == bytes.fromhex("820a 04 08014200 04 08024200")


@BOTH
@pytest.mark.parametrize("pieces", [[], [b""], [b"", b""]])
def test_nothing_is_no_frame(form: Form, pieces: list[bytes]) -> None:
    assert form.join(pieces) == b""


@PATIENT
@given(st.lists(st.just(Joined("ann")) | MESSAGES, max_size=5))
def test_what_is_joined_can_be_told_apart(events: list[Event]) -> None:
    for form, opcode in zip(FORMS, (1, 2), strict=True):
        codec: Codec = form
        pieces = [codec.encode(event) for event in events]
        frames = split(codec.join(pieces))
        assert [opcode for opcode, _ in frames] == [opcode] * any(pieces)
        found = b"".join(data for _, data in frames)
        if isinstance(form, Json):
            assert found.split(b"\n") == ([piece for piece in pieces if piece] or [b""])
        else:
            assert [protobuf.varint(len(message)) + message for message in protobuf.split(found)] == [
                piece for piece in pieces if piece
            ]


def test_what_says_much_about_somebody_isnt_kept() -> None:
    made = _by.cache_info().misses
    for size in (10, 5000):
        info = Info("ann", f"c-{size}", f'"{"x" * size}"')
        message = Message("ann", "a", "r", '{"body":"a"}', 1, info)
        assert Json().encode(message) == Json().push("r", publication(message))
    assert _by.cache_info().misses == made + 1
