"""`/api`: history and publishing over HTTP, and who may."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from unittest import mock

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from chatserver import answers
from chatserver.app import build
from chatserver.config import Config
from chatserver.errors import ChatError, StorageFull, StorageUnavailable, StorageUnsure
from chatserver.keys import ROOMS
from chatserver.message import Position
from chatserver.records import data_of
from chatserver.store import Entry, Stamp, Store
from tests.raw import RawClient

Client = TestClient[web.Request, web.Application]
Answer = tuple[int, Any]

HERE = "/api/rooms/here/messages"
TOKEN = "correct-horse"
POST_HEAD = f"POST {HERE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
CANARY = "CANARY-7d1f"


def serving(**settings: Any) -> Client:
    """A server in this process that keeps nothing, and a client of it."""
    return TestClient(TestServer(build(Config(**{"store_url": "memory://", "features": ("api",)} | settings))))


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with serving() as client:
        yield client


@pytest.fixture
async def durable() -> AsyncIterator[Client]:
    """Of a server that keeps its messages where servers do by default."""
    async with TestClient(TestServer(build(Config()))) as client:
        yield client


def store_of(client: Client) -> Store:
    return client.app[ROOMS].store


def at(client: Client, offset: int) -> str:
    """A position as answers have it."""
    return str(Position(store_of(client).epoch, offset))


async def ask(client: Client, method: str, path: str, **request: Any) -> Answer:
    """Status and JSON. Whatever is an error has a number and a text, and nothing else."""
    async with client.request(method, URL(path, encoded=True), **request) as response:
        assert response.content_type == "application/json"
        answer = json.loads(await response.text())
        if response.status >= 400:
            assert answer.keys() == {"error"}
            assert {name: type(value) for name, value in answer["error"].items()} == {"code": int, "message": str}
        return response.status, answer


async def get(client: Client, path: str = HERE, /, **query: object) -> Any:
    """A page."""
    text = "&".join(f"{name}={value}" for name, value in query.items())
    status, answer = await ask(client, "GET", f"{path}?{text}")
    assert status == 200, answer
    return answer


async def say(client: Client, body: str, *, room: str = "here", key: str | None = None, user: str = "server") -> Any:
    """Publishes; what is answered."""
    headers = {"Idempotency-Key": key} if key else {}
    path = f"/api/rooms/{room}/messages"
    status, answer = await ask(client, "POST", path, json={"body": body, "user": user}, headers=headers)
    assert status == 201, answer
    return answer


async def post(client: Client, data: bytes, **headers: str) -> tuple[int, int]:
    """Sends these bytes as they are; status and number of the error."""
    given = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    status, answer = await ask(client, "POST", HERE, data=data, headers=given)
    return status, answer["error"]["code"] if status >= 400 else 0


async def refused(client: Client, path: str, method: str = "GET", **request: Any) -> tuple[int, int]:
    """Status and number of the error."""
    status, answer = await ask(client, method, path, **request)
    assert status >= 400, answer
    return status, answer["error"]["code"]


async def raw(client: Client, text: bytes) -> tuple[int, Any]:
    """Sends what no library would; status and JSON."""
    peer = RawClient(*await asyncio.open_connection("127.0.0.1", client.port))
    peer.writer.write(text)
    await peer.read_head()
    assert peer.headers["content-type"].startswith("application/json"), peer.headers
    answer = json.loads(await peer.reader.readexactly(int(peer.headers["content-length"])))
    peer.abort()
    return peer.status, answer


async def fill(client: Client, count: int, room: str = "here") -> None:
    entries = [Entry(room, "alice", data_of(f"{number}")) for number in range(1, count + 1)]
    await store_of(client).append(entries)


def offsets(page: Any) -> list[int]:
    return [message["offset"] for message in page["messages"]]


def bodies(page: Any) -> list[str]:
    return [message["data"]["body"] for message in page["messages"]]


# --- paging ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [200, 137])
async def test_paging_forwards_meets_every_event_once(durable: Client, limit: int) -> None:
    await fill(durable, 3000)
    met: list[int] = []
    page = await get(durable, after=0, limit=limit)
    while page["messages"]:
        assert bodies(page) == [str(offset) for offset in offsets(page)]
        met += offsets(page)
        page = await get(durable, after=page["position"], limit=limit)
    assert met == list(range(1, 3001))


@pytest.mark.parametrize("limit", [200, 137])
async def test_paging_backwards_meets_every_event_once(durable: Client, limit: int) -> None:
    await fill(durable, 3000)
    met: list[int] = []
    page = await get(durable, limit=limit)
    while page["messages"]:
        met[:0] = offsets(page)
        page = await get(durable, before=met[0], limit=limit)
    assert met == list(range(1, 3001))


async def test_paging_while_others_publish_meets_every_event_once(durable: Client) -> None:
    await fill(durable, 50)
    done = asyncio.Event()

    async def publish() -> None:
        for number in range(100):
            await say(durable, str(number))
        done.set()

    publisher = asyncio.create_task(publish())
    met: list[int] = []
    page = await get(durable, after=0, limit=7)
    while page["messages"] or not done.is_set():
        met += offsets(page)
        page = await get(durable, after=page["position"], limit=7)
    await publisher
    assert met == list(range(1, 151))


async def test_a_page_is_the_last_fifty_unless_something_else_is_asked_for(client: Client) -> None:
    await fill(client, 120)
    page = await get(client)
    assert offsets(page) == list(range(71, 121))
    assert page["position"] == at(client, 120)
    assert page["epoch"] == store_of(client).epoch


async def test_an_event_is_told_with_all_that_is_known_of_it(client: Client) -> None:
    published = await say(client, "é 🙂 \u2028", user="bob", key="k-1")
    assert published["offset"] == 1
    page = await get(client)
    assert page["messages"] == [
        {
            "offset": 1,
            "time": published["time"],
            "user": "bob",
            "kind": "message",
            "data": {"body": "é 🙂 \u2028"},
            "key": "k-1",
            "info": None,
        }
    ]
    assert published["epoch"] == page["epoch"]


async def test_where_nothing_was_said_there_is_an_empty_page(client: Client) -> None:
    for query in (dict[str, int](), {"after": 0}, {"before": 1}, {"before": 10**14}):
        page = await get(client, **query)
        assert (page["messages"], page["position"]) == ([], at(client, 0))
    assert len(client.app[ROOMS]) == 0


async def test_the_end_of_the_log_is_a_position_to_go_on_from(client: Client) -> None:
    await fill(client, 3)
    end = await get(client, after=3)
    assert (end["messages"], end["position"]) == ([], at(client, 3))
    await say(client, "more")
    assert bodies(await get(client, after=end["position"])) == ["more"]


@pytest.mark.parametrize("before", [0, 1])
async def test_before_all_events_is_a_position_that_skips_none(client: Client, before: int) -> None:
    await fill(client, 3)
    page = await get(client, before=before)
    assert (page["messages"], page["position"]) == ([], at(client, 0))
    assert offsets(await get(client, after=page["position"])) == [1, 2, 3]


@pytest.mark.parametrize("query", [{}, {"before": 3}])
async def test_what_is_appended_meanwhile_is_in_the_page_or_after_its_position(
    client: Client, query: dict[str, int]
) -> None:
    store = store_of(client)

    def with_an_append(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def after_it(*args: Any, **kwargs: Any) -> Any:
            found = await method(*args, **kwargs)
            await store.append([Entry("here", "alice", data_of("meanwhile"))])
            return found

        return after_it

    with mock.patch.multiple(store, read=with_an_append(store.read), top=with_an_append(store.top)):
        page = await get(client, **query)
    rest = await get(client, after=page["position"])
    everything = await get(client, after=0)
    assert offsets(page) + offsets(rest) == offsets(everything)


# --- what can't be asked for -----------------------------------------------------------------------------------------


LIMITS = {"0": 1, "-1": 1, "1": 1, "007": 7, "200": 200, "201": 200, "1000000000": 200}
LIMITS |= {"9" * 400: 200, "-" + "9" * 400: 1, "0" * 400: 1}
NO_LIMITS = "NaN Infinity 1e2 1.0 ten %201 +1 1%0A --1 %D9%A3 0x10"
NO_POSITIONS = """-1 +1 %201 1%0A 1.0 1e3 NaN null %D9%A3 : :1 abc: abc:-1 abc:abc:1 ABC:1 xyz:1 abc%00:1 abc%0A:1
    1;drop '-- %FF %ED%A0%80"""


@pytest.mark.parametrize("query", [{}, {"after": 0}, {"before": 240}])
async def test_a_limit_is_clamped(client: Client, query: dict[str, int]) -> None:
    await fill(client, 250)
    assert {limit: len((await get(client, **query, limit=limit))["messages"]) for limit in LIMITS} == LIMITS


async def test_a_limit_is_a_number(client: Client) -> None:
    for limit in ("", *NO_LIMITS.split()):
        assert await refused(client, f"{HERE}?limit={limit}") == (400, 107), limit


@pytest.mark.parametrize("name", ["after", "before"])
async def test_a_position_has_a_grammar(client: Client, name: str) -> None:
    for position in ("", "9" * 16, "9" * 400, "a" * 65 + ":1", *NO_POSITIONS.split()):
        assert await refused(client, f"{HERE}?{name}={position}") == (400, 107), position


@pytest.mark.parametrize("name", ["after", "before"])
async def test_a_position_of_another_log_is_refused(client: Client, name: str) -> None:
    await fill(client, 3)
    for epoch in ("0", "0123456789abcdef", "f" * 64, store_of(client).epoch + "0", store_of(client).epoch[:-1]):
        assert await refused(client, f"{HERE}?{name}={epoch}:1") == (410, 112)


async def test_nothing_follows_a_position_beyond_the_end(client: Client) -> None:
    await fill(client, 3)
    for position in ("4", at(client, 4), "9" * 15):
        assert await refused(client, f"{HERE}?after={position}") == (410, 112)
    assert offsets(await get(client, before="9" * 15)) == [1, 2, 3]


async def test_what_is_no_longer_kept_is_never_a_silent_hole(durable: Client) -> None:
    await fill(durable, 100)
    while await store_of(durable).trim(before=0, keep=10):
        pass
    for position in (0, 1, 89):
        assert await refused(durable, f"{HERE}?after={position}") == (410, 112)
    assert offsets(await get(durable, after=90)) == list(range(91, 101))
    assert offsets(await get(durable, limit=200)) == list(range(91, 101))
    page = await get(durable, before=91)
    assert (page["messages"], page["position"]) == ([], at(durable, 90))
    page = await get(durable, before=40)
    assert page["messages"] == []
    assert await refused(durable, f"{HERE}?after={page['position']}") == (410, 112)


async def test_after_and_before_exclude_each_other(client: Client) -> None:
    assert await refused(client, f"{HERE}?after=0&before=0") == (400, 107)


GOOD_ROOMS = {"a": "a", "A.b_c-9": "A.b_c-9", "room%231": "room#1", "%24a": "$a", "%23a,b": "#a,b", "a@b": "a@b"}
GOOD_ROOMS |= {"7" * 128: "7" * 128, "%62": "b"}
BAD_ROOMS = """. .. -a _a $ $$a :a @a .a %20 a%20b a+b a%2Fb ..%2F.. a%252Fb a%00 a%0A %0Aa a%0D%0Ab a* a'b a%7Cb a%5Cb
    a%7F %C3%A9 a%D9%A3 a%EF%BC%A1 a%E2%80%8B a%F0%9F%99%82 %D0%B0 %FF a%ED%A0%80 a%1B a%3Cscript%3E"""


async def test_a_room_is_called_by_its_name(client: Client) -> None:
    for number, (quoted, name) in enumerate(GOOD_ROOMS.items()):
        await say(client, f"{number}", room=quoted)
        (record,) = await store_of(client).read(name, limit=1)
        assert record.data == data_of(f"{number}")
        assert bodies(await get(client, f"/api/rooms/{quoted}/messages"))[-1] == f"{number}"


async def test_a_room_that_cant_be_one_is_refused(client: Client) -> None:
    for room in ("8" * 129, *BAD_ROOMS.split()):
        for method in ("GET", "POST"):
            line = f"{method} /api/rooms/{room}/messages HTTP/1.1\r\n"
            head = "Host: localhost\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n"
            status, answer = await raw(client, f'{line}{head}{{"body":"hi"}}'.encode())
            assert (status, answer["error"]["code"]) == (400, 107), room
    assert len(client.app[ROOMS]) == 0


async def test_what_is_no_room_at_all_is_not_found(client: Client) -> None:
    for path in ("a/b/messages", "/messages", "a/", "a", "", "a/messages/", "{a}/messages"):
        status, answer = await raw(client, f"GET /api/rooms/{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert (status, answer["error"]["code"]) == (404, 107), path


async def test_what_isnt_there_is_not_found_in_json(client: Client) -> None:
    for path in ("/api", "/api/", "/api/nothing", "/api/rooms", "/api//rooms/here/messages", "/api/healthz"):
        for method in ("GET", "POST", "DELETE"):
            assert await refused(client, path, method) == (404, 107), path


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
async def test_other_methods_are_refused_in_json_with_those_that_are_allowed(client: Client, method: str) -> None:
    for path, allowed in ((HERE, {"GET", "HEAD", "POST"}), ("/api/openapi.json", {"GET", "HEAD"})):
        async with client.request(method, path) as response:
            assert response.status == 405
            assert set(response.headers["Allow"].split(",")) == allowed
            assert (await response.json())["error"]["code"] == 107
            assert not [name for name in response.headers if name.lower().startswith("access-control")]


async def test_head_is_get_without_the_body(client: Client) -> None:
    await fill(client, 3)
    async with client.get(HERE) as response:
        length = response.headers["Content-Length"]
    async with client.head(HERE) as response:
        assert (response.status, response.headers["Content-Length"], await response.read()) == (200, length, b"")
    async with client.head(f"{HERE}?limit=x") as response:
        assert (response.status, await response.read()) == (400, b"")


async def test_without_the_feature_there_is_nothing() -> None:
    async with serving(features=("presence", "limits", "http")) as client:
        for path in (HERE, "/api/openapi.json", "/api"):
            async with client.get(path) as response:
                assert response.status == 404


# --- publishing ------------------------------------------------------------------------------------------------------


async def test_a_key_is_stored_once_and_answered_alike(durable: Client) -> None:
    first = await say(durable, "hi", key="k-1")
    assert await say(durable, "hi", key="k-1") == first
    assert await say(durable, "something else", key="k-1") == first
    assert bodies(await get(durable)) == ["hi"]


async def test_a_key_is_stored_once_when_it_comes_many_times_at_once(durable: Client) -> None:
    answers = await asyncio.gather(*(say(durable, f"hi {number}", key="k-1") for number in range(50)))
    assert answers == [answers[0]] * 50
    assert len((await get(durable))["messages"]) == 1


async def test_a_key_is_its_users_own_and_its_rooms(durable: Client) -> None:
    await say(durable, "one", key="k-1", user="alice")
    await say(durable, "two", key="k-1", user="bob")
    await say(durable, "three", key="k-1", user="alice", room="there")
    await say(durable, "four", key="K-1", user="alice")
    assert bodies(await get(durable)) == ["one", "two", "four"]
    assert bodies(await get(durable, "/api/rooms/there/messages")) == ["three"]


async def test_without_a_key_each_is_another(durable: Client) -> None:
    await say(durable, "hi")
    await say(durable, "hi")
    assert bodies(await get(durable)) == ["hi", "hi"]


async def test_a_key_outlasts_the_process(durable: Client) -> None:
    first = await say(durable, "hi", key="k-1")
    await durable.close()
    async with TestClient(TestServer(build(Config()))) as again:
        assert await say(again, "hi", key="k-1") == first


async def test_a_key_may_be_any_visible_ascii(client: Client) -> None:
    for key in ("k", "!", "~", "k" * 128, '"quoted"', "a,b", "';drop--"):
        first = await say(client, "hi", key=key)
        assert await say(client, "hi", key=key) == first
        assert (await get(client, limit=1))["messages"][0]["key"] == key


async def test_a_key_that_cant_be_one_is_refused(client: Client) -> None:
    for key in ("", " ", "a b", "a\tb", "é", "k" * 129, "k" * 7000):
        assert await post(client, b'{"body":"hi"}', Idempotency_Key=key) == (400, 107), key
    assert (await get(client))["messages"] == []


async def test_two_keys_are_none(client: Client) -> None:
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "a")]
    assert await refused(client, HERE, "POST", json={"body": "hi"}, headers=headers) == (400, 107)


MALFORMED = {
    "nothing": b"",
    "no JSON": b"hi",
    "half of it": b'{"body":"hi"',
    "two of it": b'{"body":"hi"}{"body":"hi"}',
    "a byte order mark": b'\xef\xbb\xbf{"body":"hi"}',
    "UTF-16": '{"body":"hi"}'.encode("utf-16"),
    "a form": b"body=hi",
    "null": b"null",
    "an array": b'[{"body":"hi"}]',
    "a string": b'"hi"',
    "a number": b"1",
    "no body": b"{}",
    "a user only": b'{"user":"bob"}',
    "an unknown field": b'{"body":"hi","room":"there"}',
    "the field in capitals": b'{"Body":"hi"}',
    "body is a number": b'{"body":1}',
    "body is null": b'{"body":null}',
    "body is true": b'{"body":true}',
    "body is an array": b'{"body":["hi"]}',
    "body is an object": b'{"body":{"body":"hi"}}',
    "body is NaN": b'{"body":NaN}',
    "body is Infinity": b'{"body":-Infinity}',
    "user is null": b'{"body":"hi","user":null}',
    "user is a number": b'{"body":"hi","user":1}',
    "user is empty": b'{"body":"hi","user":""}',
    "user has a space": b'{"body":"hi","user":"b b"}',
    "user is too long": b'{"body":"hi","user":"%s"}' % (b"b" * 33),
    "user ends with a line feed": b'{"body":"hi","user":"bob\\n"}',
    "user isn't ASCII": '{"body":"hi","user":"bób"}'.encode(),
    "user has U+0000": b'{"body":"hi","user":"b\\u0000"}',
    "deep arrays": b"[" * 60_000,
    "deep arrays in body": b'{"body":' + b"[" * 60_000,
    "deep objects in an unknown field": b'{"x":' * 10_000,
    "a lone surrogate": b'{"body":"\\ud800"}',
    "a lone low surrogate": b'{"body":"\\udc00 "}',
    "a surrogate in UTF-8": b'{"body":"\xed\xa0\x80"}',
    "no UTF-8": b'{"body":"\xff\xfe"}',
    "no UTF-8 in a field's name": b'{"bo\xffdy":"hi"}',
    "overlong UTF-8": b'{"body":"\xc0\xaf"}',
    "a control character": b'{"body":"a\nb"}',
    "a comma too many": b'{"body":"hi",}',
    "single quotes": b"{'body':'hi'}",
    "the first of two is wrong": b'{"body":1,"body":"hi"}',
    "the last of two is wrong": b'{"body":"hi","body":1}',
}


async def test_what_cant_be_said_is_refused(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = {name: await post(client, data) for name, data in MALFORMED.items()}
    assert outcomes == dict.fromkeys(MALFORMED, (400, 107))
    assert (await get(client))["messages"] == []
    assert "Traceback" not in capsys.readouterr().err


async def test_u0000_has_its_number(client: Client) -> None:
    assert await post(client, b'{"body":"a\\u0000b"}') == (400, 415)


async def test_of_a_field_that_stands_twice_the_last_one_counts(client: Client) -> None:
    assert await post(client, b'{"body":"first","body":"last"}') == (201, 0)
    assert bodies(await get(client)) == ["last"]


async def test_an_empty_body_is_a_message(client: Client) -> None:
    await say(client, "")
    assert bodies(await get(client)) == [""]


async def test_a_body_is_measured_in_bytes() -> None:
    async with serving(max_body_bytes=10) as client:
        await say(client, "é" * 5)
        for body in ("é" * 5 + "x", "x" * 11):
            assert await refused(client, HERE, "POST", json={"body": body}) == (413, 414)
        assert bodies(await get(client)) == ["é" * 5]


async def test_a_request_too_big_is_refused_with_and_without_its_length() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 100

    async with serving(max_message_bytes=1000) as client:
        headers = {"Content-Type": "application/json"}
        assert await refused(client, HERE, "POST", data=b" " * 1001, headers=headers) == (413, 414)
        assert await refused(client, HERE, "POST", data=chunks(), headers=headers) == (413, 414)
        assert (await get(client))["messages"] == []


async def test_a_body_may_come_in_chunks(client: Client) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"body":'
        yield '"é"}'.encode()[:2]
        yield '"é"}'.encode()[2:]

    assert (await ask(client, "POST", HERE, data=chunks(), headers={"Content-Type": "application/json"}))[0] == 201
    assert bodies(await get(client)) == ["é"]


async def test_a_body_that_isnt_what_it_says_is_refused(client: Client) -> None:
    head = b"Content-Encoding: gzip\r\nContent-Length: 13\r\n\r\n"
    status, answer = await raw(client, POST_HEAD + head + b'{"body":"hi"}')
    assert (status, answer["error"]["code"]) == (400, 107)
    assert (await get(client))["messages"] == []


async def test_a_bomb_is_refused(client: Client) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    assert await post(client, bomb, Content_Encoding="gzip") == (413, 414)


async def test_broken_chunks_are_nothing_said(client: Client) -> None:
    """What is no HTTP is answered by the parser, as text."""
    peer = RawClient(*await asyncio.open_connection("127.0.0.1", client.port))
    peer.writer.write(POST_HEAD + b'Transfer-Encoding: chunked\r\n\r\nd\r\n{"body":"hi"}\r\nnonsense\r\n')
    await peer.read_head()
    assert peer.status == 400
    assert (await get(client))["messages"] == []


async def test_a_body_that_doesnt_come_is_waited_for_only_so_long(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "BODY_SECONDS", 0.05)
    status, answer = await raw(client, POST_HEAD + b"Content-Length: 100\r\n\r\n{")
    assert (status, answer["error"]["code"]) == (408, 107)


async def test_who_leaves_in_the_middle_says_nothing(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    peer = RawClient(*await asyncio.open_connection("127.0.0.1", client.port))
    peer.writer.write(POST_HEAD + b'Content-Length: 100\r\n\r\n{"body":"hi"}')
    await asyncio.sleep(0.05)
    peer.abort()
    await asyncio.sleep(0.05)
    assert (await get(client))["messages"] == []
    assert "Traceback" not in capsys.readouterr().err


OTHER_KINDS = ["", "nonsense", "text/plain", "text/plain; application/json", "text/json", "application/octet-stream"]
OTHER_KINDS += ["application/x-www-form-urlencoded", "multipart/form-data", "application/jsonx", "application/a+json"]


async def test_only_json_is_taken_which_no_foreign_page_can_send_unasked(client: Client) -> None:
    for kind in OTHER_KINDS:
        assert await post(client, b'{"body":"hi"}', Content_Type=kind) == (400, 107), kind
    assert (await get(client))["messages"] == []
    for kind in ("application/json", "application/json; charset=utf-8", "Application/JSON"):
        assert await post(client, b'{"body":"hi"}', Content_Type=kind) == (201, 0), kind


async def listen(client: Client, room: str, more: str = "") -> RawClient:
    """A member of the room, without presence notices."""
    member = await RawClient.connect(client.port or 0, f"/ws?room={room}{more}")
    assert member.status == 101
    return member


async def test_members_of_the_room_hear_what_is_published_and_nobody_else_does(durable: Client) -> None:
    async with serving() as client:
        here, there = await listen(client, "here"), await listen(client, "there")
        await say(client, "hi")
        assert await here.text() == '{"type":2,"body":"hi"}'
        assert await there.silent()
        late = await listen(client, "here", "&history=5")
        assert await late.text() == '{"type":2,"body":"hi"}'
        for member in (here, late, there):
            assert await member.silent()


async def test_what_members_say_is_in_the_history(client: Client) -> None:
    member = await RawClient.connect(client.port or 0, "/ws?room=here&name=bob")
    member.say('{"type":2,"body":"hi"}')
    assert await member.text() == '{"type":2,"body":"hi"}'
    (message,) = (await get(client))["messages"]
    assert (message["user"], message["data"], message["key"]) == ("bob", {"body": "hi"}, None)
    assert message["info"] == {"user": "", "client": message["info"]["client"], "conn_info": {"name": "bob"}}


async def test_a_key_again_is_told_once(client: Client) -> None:
    member = await listen(client, "here")
    for _ in range(3):
        await say(client, "hi", key="k-1")
    assert await member.text() == '{"type":2,"body":"hi"}'
    assert await member.silent()


async def test_a_position_is_one_for_ws_too(client: Client) -> None:
    await fill(client, 3)
    page = await get(client, after=0, limit=2)
    member = await listen(client, "here", f"&after={page['position']}")
    assert await member.text() == '{"type":2,"body":"3"}'
    assert await member.silent()


# --- who may ---------------------------------------------------------------------------------------------------------


async def test_the_token_opens_from_anywhere() -> None:
    headers = {"Origin": "https://chat.example", "X-Forwarded-For": "192.0.2.1", "Host": "chat.example"}
    with mock.patch("aiohttp.web.Request.remote", "192.0.2.1"):
        async with serving(api_token=TOKEN) as client:
            for value in (f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER  {TOKEN}"):
                headers["Authorization"] = value
                assert (await ask(client, "GET", HERE, headers=headers))[0] == 200, value
                assert (await ask(client, "POST", HERE, headers=headers, json={"body": "hi"}))[0] == 201, value


WRONG = ["", " ", "Bearer", "Bearer ", "Bearer wrong", TOKEN, f"Bearer{TOKEN}", f"Basic {TOKEN}", f"Token {TOKEN}"]
WRONG += [f"Bearer {token}" for token in (TOKEN + "x", TOKEN[:-1], TOKEN.upper(), f"x {TOKEN}", f"{TOKEN} x")]
WRONG += [f"Bearer {TOKEN},", f"Bearer\t{TOKEN}", f'Bearer "{TOKEN}"', "Bearer é", "é", f"Bearer {TOKEN}é"]


async def test_anything_else_than_the_token_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(api_token=TOKEN) as client:
        for value in WRONG:
            async with client.get(HERE, headers={"Authorization": value}) as response:
                assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer"), value
                assert (await response.json())["error"]["code"] == 101
            posted = {"json": {"body": "hi"}, "headers": {"Authorization": value}}
            assert await refused(client, HERE, "POST", **posted) == (401, 101), value
        assert await store_of(client).top(["here"]) == {"here": 0}
    assert "Traceback" not in capsys.readouterr().err


async def test_no_token_is_refused_wherever_else_it_stands() -> None:
    async with serving(api_token=TOKEN) as client:
        other = {"Proxy-Authorization": f"Bearer {TOKEN}", "X-Authorization": TOKEN, "Cookie": f"token={TOKEN}"}
        for query in ("", f"?token={TOKEN}", f"?access_token={TOKEN}", f"?Authorization=Bearer%20{TOKEN}"):
            assert await refused(client, HERE + query) == (401, 101)
            assert await refused(client, HERE + query, headers=other) == (401, 101)


async def test_two_tokens_are_none() -> None:
    async with serving(api_token=TOKEN) as client:
        for pair in ((TOKEN, TOKEN), (TOKEN, "wrong"), ("wrong", TOKEN)):
            lines = "".join(f"Authorization: Bearer {token}\r\n" for token in pair)
            status, answer = await raw(client, f"GET {HERE} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode())
            assert (status, answer["error"]["code"]) == (401, 101), pair


async def test_a_token_of_bytes_that_are_no_text_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(api_token=TOKEN) as client:
        head = f"GET {HERE} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ".encode()
        status, answer = await raw(client, head + b"\xff\xfe" + TOKEN.encode() + b"\r\n\r\n")
    assert (status, answer["error"]["code"]) == (401, 101)
    assert "Traceback" not in capsys.readouterr().err


async def test_a_token_need_not_be_ascii() -> None:
    async with serving(api_token="clé-\udcff") as client:  # as the environment gives what isn't UTF-8
        head = f"GET {HERE} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ".encode()
        assert (await raw(client, head + "clé-".encode() + b"\xff\r\n\r\n"))[0] == 200
        assert (await raw(client, head + "clé-".encode() + b"\xfe\r\n\r\n"))[0] == 401


async def test_who_may_not_hears_nothing_of_what_else_is_wrong() -> None:
    async with serving(api_token=TOKEN) as client:
        assert await refused(client, "/api/rooms/-/messages?limit=x") == (401, 101)
        assert await refused(client, HERE, "POST", data=b"\xff", headers={"Content-Type": "x/y"}) == (401, 101)
        assert (await store_of(client).top(["here"])) == {"here": 0}


async def test_the_description_is_for_everybody() -> None:
    with mock.patch("aiohttp.web.Request.remote", "192.0.2.1"):
        async with serving(api_token=TOKEN) as client:
            assert (await ask(client, "GET", "/api/openapi.json"))[0] == 200


ELSEWHERE = "192.0.2.1 10.0.0.1 0.0.0.0 128.0.0.1 :: ::2 ::ffff:192.0.2.1 fe80::1%eth0"
PROXIES = "X-Forwarded-For X-Forwarded-Host X-Forwarded-Proto Forwarded Via X-Real-IP x-forwarded-for"
OWN_NAMES = "localhost LOCALHOST:1 127.0.0.1:8080 127.0.0.1 [::1] [::1]:8080"
FOREIGN = """evil.example evil.example:80 localhost.evil.example evil.localhost 127.0.0.1.nip.io 192.0.2.1 localhost.
    localhost@evil.example localhost:x localhost:1:1 :80 ::1 [::1 [::2]:80 127.1 0.0.0.0 2130706433"""


async def test_without_a_token_this_machine_is_answered_and_nobody_else(client: Client) -> None:
    for address in ("127.0.0.1", "127.8.9.10", "::1"):
        with mock.patch("aiohttp.web.Request.remote", address):
            assert (await ask(client, "GET", HERE))[0] == 200, address
    for elsewhere in ("", None, *ELSEWHERE.split()):
        with mock.patch("aiohttp.web.Request.remote", elsewhere):
            assert await refused(client, HERE) == (403, 103), elsewhere
            assert await refused(client, HERE, "POST", json={"body": "hi"}) == (403, 103), elsewhere
    assert (await get(client))["messages"] == []


async def test_without_a_token_nobody_comes_through_a_proxy(client: Client) -> None:
    for name in PROXIES.split():
        for value in ("127.0.0.1", "localhost", "for=127.0.0.1", ""):
            assert await refused(client, HERE, headers={name: value}) == (403, 103), (name, value)


async def test_without_a_token_no_web_page_is_answered(client: Client) -> None:
    for origin in ("https://evil.example", "null", "", "http://localhost", f"http://127.0.0.1:{client.port}"):
        headers = {"Origin": origin}
        assert await refused(client, HERE, headers=headers) == (403, 103), origin
        assert await refused(client, HERE, "POST", json={"body": "hi"}, headers=headers) == (403, 103), origin


async def test_without_a_token_no_foreign_name_leads_here(client: Client) -> None:
    """A page elsewhere can have its name resolve to this machine, and is no foreign page to the browser then."""
    for own in OWN_NAMES.split():
        assert (await ask(client, "GET", HERE, headers={"Host": own}))[0] == 200, own
    for host in ("", "localhost evil.example", "localhost:\N{ARABIC-INDIC DIGIT ONE}", *FOREIGN.split()):
        assert await refused(client, HERE, headers={"Host": host}) == (403, 103), host


async def test_without_a_token_a_request_without_a_host_is_refused(client: Client) -> None:
    with mock.patch("socket.getfqdn", return_value="localhost") as lookup:
        status, answer = await raw(client, f"GET {HERE} HTTP/1.0\r\n\r\n".encode())
    assert (status, answer["error"]["code"]) == (403, 103)
    assert not lookup.called, "the loop waits for the name service"


async def test_without_a_token_nobody_is_answered_over_a_unix_socket(tmp_path: Path) -> None:
    """Who is behind it can't be told: it may be a proxy."""
    runner = web.AppRunner(build(Config(store_url="memory://")))
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "s")).start()
    connector = aiohttp.UnixConnector(str(tmp_path / "s"))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get(f"http://localhost{HERE}") as response,
    ):
        assert (response.status, (await response.json())["error"]["code"]) == (403, 103)
    await runner.cleanup()


# --- logs ------------------------------------------------------------------------------------------------------------


async def test_neither_tokens_nor_what_is_said_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(log_level="debug", api_token=CANARY) as client:
        right, wrong = {"Authorization": f"Bearer {CANARY}"}, {"Authorization": f"Bearer {CANARY}x"}
        await ask(client, "POST", HERE, headers=right, json={"body": CANARY})
        await ask(client, "GET", f"{HERE}?token={CANARY}&limit={CANARY}&after={CANARY}", headers=right)
        await ask(client, "GET", HERE, headers=wrong)
        await ask(client, "POST", HERE, headers=right | {"Idempotency-Key": f"{CANARY} "}, json={"body": 1})
        for data in (b'{"%s":1}', b'{"body":"hi","%s":1}', b'{"body":"hi","user":"%s "}', b"%s", b'{"body":"\xff%s"}'):
            headers = right | {"Content-Type": "application/json"}
            assert (await refused(client, HERE, "POST", data=data % CANARY.encode(), headers=headers))[0] == 400
    log = capsys.readouterr().err
    assert log.count("chatserver.access") == 9
    assert CANARY not in log
    assert "Traceback" not in log


async def test_an_error_quotes_no_more_than_a_line(client: Client) -> None:
    _, answer = await ask(client, "POST", HERE, json={"x" * 50_000: 1})
    assert len(answer["error"]["message"]) < 100


# --- when storage fails ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [StorageUnavailable(), StorageFull(), StorageUnsure()], ids=lambda error: error.code)
async def test_what_cant_be_stored_is_said_with_when_to_try_again(
    client: Client, error: ChatError, capsys: pytest.CaptureFixture[str]
) -> None:
    with mock.patch.object(store_of(client), "append", side_effect=error):
        async with client.post(HERE, json={"body": "hi"}) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "1")
            assert (await response.json())["error"] == {"code": error.code, "message": str(error)}
        assert (await get(client))["messages"] == []
    assert (await say(client, "healed"))["offset"] == 1
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("method", ["read", "top"])
async def test_what_cant_be_read_is_said_with_when_to_try_again(
    client: Client, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with mock.patch.object(store_of(client), method, side_effect=StorageUnavailable()):
        async with client.get(HERE) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "1")
            assert (await response.json())["error"]["code"] == 420
    assert (await get(client))["messages"] == []
    assert "Traceback" not in capsys.readouterr().err


async def test_a_bug_in_a_store_is_an_internal_error(client: Client) -> None:
    with mock.patch.object(store_of(client), "append", side_effect=RuntimeError("a bug")):
        assert await refused(client, HERE, "POST", json={"body": "hi"}) == (500, 100)
    await say(client, "healed")


async def test_the_answer_comes_when_it_is_stored(client: Client) -> None:
    store, stored = store_of(client), asyncio.Event()
    append = store.append

    async def slow(entries: list[Entry]) -> list[Stamp]:
        await stored.wait()
        return await append(entries)

    with mock.patch.object(store, "append", slow):
        answer = asyncio.create_task(say(client, "hi"))
        assert (await get(client))["messages"] == []
        await asyncio.sleep(0.05)
        assert not answer.done()
        stored.set()
        assert (await answer)["offset"] == 1


async def test_what_is_of_an_unknown_kind_is_told_as_it_is(client: Client) -> None:
    await store_of(client).append([Entry("here", "alice", '{"of":[1,{"x":null}]}', kind="reaction")])
    (message,) = (await get(client))["messages"]
    assert (message["kind"], message["data"]) == ("reaction", {"of": [1, {"x": None}]})


async def test_a_page_of_the_longest_messages_is_told(client: Client) -> None:
    body = "\x01" * 32768
    await store_of(client).append([Entry("here", "alice", data_of(body)) for _ in range(200)])
    assert bodies(await get(client, limit=200)) == [body] * 200
