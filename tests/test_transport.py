"""The transport on aiohttp's WebSocket: what only it decides. Conversations over it are in test_ws and test_wire."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import uvloop
from aiohttp import web
from aiohttp.test_utils import TestServer

from chatserver import frames, transport
from chatserver.errors import (
    ConnectionLost,
    Disconnect,
    InvalidText,
    MessageTooBig,
    PeerClosed,
    PolicyViolation,
    ProtocolError,
    UnsupportedData,
)
from chatserver.fanout import CHANGES
from chatserver.transport import FRAMES_PER_TURN, HANDED_OVER, READ_BYTES, WebSocketTransport
from chatserver.turnstile import Turnstile
from tests import raw
from tests.fakes import turns
from tests.raw import RawClient

Pair = tuple[RawClient, WebSocketTransport]
Connect = Callable[..., Awaitable[Pair]]


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[Connect]:
    """A function that makes a connection and returns both of its ends."""
    ends: asyncio.Queue[WebSocketTransport] = asyncio.Queue()
    finished = asyncio.Event()
    settings: dict[str, Any] = {"max_message_bytes": 1000, "ends": Turnstile(2)}

    async def handler(request: web.Request) -> web.StreamResponse:
        end = WebSocketTransport(**settings)
        end.accept(request)
        ends.put_nowait(end)
        await finished.wait()
        end.abort()
        return HANDED_OVER

    app = web.Application()
    app.router.add_get("/ws", handler)
    async with TestServer(app) as server:

        async def connect(**given: int) -> Pair:
            settings.update(given)
            client = await RawClient.connect(server.port or 0)
            return client, await ends.get()

        yield connect
        finished.set()
        await RawClient.clean_up()


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """See `served`."""
    async with served() as connect:
        yield connect


async def ends_with(end: WebSocketTransport) -> Disconnect:
    """What `receive` raises, at last."""
    while True:
        try:
            await asyncio.wait_for(end.receive(), 30)
        except Disconnect as reason:
            return reason


async def test_messages_come_in_order(connect: Connect) -> None:
    client, end = await connect()
    for number in range(3 * FRAMES_PER_TURN):
        client.say(str(number))
    assert [await end.receive() for _ in range(3 * FRAMES_PER_TURN)] == [str(n) for n in range(3 * FRAMES_PER_TURN)]


async def test_a_client_that_sends_a_lot_lets_others_have_their_turn(connect: Connect) -> None:
    client, end = await connect()
    for _ in range(10 * FRAMES_PER_TURN):
        client.say("x")
    await end.receive()
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    for _ in range(9 * FRAMES_PER_TURN):
        await end.receive()
    task.cancel()
    assert turns >= 8


@pytest.mark.parametrize(
    ("opcode", "payload", "kind"),
    [
        (raw.BINARY, b"\0", UnsupportedData),
        (raw.TEXT, b"\xff\xfe", InvalidText),
        (raw.TEXT, b"x" * 1001, MessageTooBig),
        (3, b"", ProtocolError),
        (raw.CONTINUATION, b"", ProtocolError),
        (raw.PING, b"x" * 126, ProtocolError),
        (raw.CLOSE, b"\3", ProtocolError),
        (raw.CLOSE, (1005).to_bytes(2, "big"), ProtocolError),
        (raw.CLOSE, (1006).to_bytes(2, "big"), ProtocolError),
        (raw.CLOSE, (65535).to_bytes(2, "big"), ProtocolError),
        (raw.CLOSE, (4000).to_bytes(2, "big") + b"why", PeerClosed),
    ],
)
async def test_what_ends_it(connect: Connect, opcode: int, payload: bytes, kind: type[Disconnect]) -> None:
    client, end = await connect()
    client.send(opcode, payload)
    assert type(await ends_with(end)) is kind


async def test_binary_messages_where_they_are_welcome(connect: Connect) -> None:
    client, end = await connect(binary=True)
    client.send(raw.BINARY, b"\0\1")
    client.say("text")
    assert [await end.receive(), await end.receive()] == [b"\0\1", "text"]


async def test_a_lost_connection(connect: Connect) -> None:
    client, end = await connect()
    client.abort()
    assert isinstance(await ends_with(end), ConnectionLost)
    assert end.lost
    assert end.buffered == 0
    end.write(b"nobody is told")
    end.close()
    end.abort()
    await end.drained()


async def test_of_many_that_are_lost_at_once_a_few_are_heard_of_in_a_turn(connect: Connect) -> None:
    pairs = [await connect() for _ in range(6)]
    over = [asyncio.ensure_future(ends_with(end)) for _, end in pairs]
    await turns()
    for _, end in pairs:
        end.connection_lost(None)
    assert all(end.lost for _, end in pairs)
    counts = {0}
    while not all(task.done() for task in over):
        await asyncio.sleep(0)
        counts.add(sum(task.done() for task in over))
    assert counts == {0, 2, 4, 6}


class Taker:
    """Takes messages, but for those that are said to be refused."""

    def __init__(self, end: WebSocketTransport) -> None:
        self.taken: list[str | bytes] = []
        end.take = self.take

    def take(self, frame: str | bytes) -> bool:
        if frame == "boom":
            raise PolicyViolation("boom")
        if frame == "wait":
            return False
        self.taken.append(frame)
        return True


async def reading(end: WebSocketTransport) -> asyncio.Task[str | bytes]:
    """Somebody who waits for the next message."""
    task = asyncio.create_task(end.receive())
    await asyncio.sleep(0)
    return task


async def test_what_comes_while_somebody_waits_for_it_is_taken_in_its_turn(connect: Connect) -> None:
    client, end = await connect()
    reader = await reading(end)
    taker = Taker(end)
    texts = [str(number) for number in range(2 * FRAMES_PER_TURN)]
    for text in texts[:FRAMES_PER_TURN]:
        client.say(text)
        while len(taker.taken) <= int(text):
            await asyncio.sleep(0)
    for text in [*texts[FRAMES_PER_TURN:], "wait", "not taken"]:
        client.say(text)
    received = []
    while "not taken" not in received:
        received.append(await reader)
        reader = asyncio.create_task(end.receive())
    assert taker.taken[:FRAMES_PER_TURN] == texts[:FRAMES_PER_TURN]
    assert [*taker.taken, *received] == [*texts, "wait", "not taken"]
    reader.cancel()


async def test_what_is_not_taken_is_received_before_what_comes_after_it(connect: Connect) -> None:
    _, end = await connect()
    taker = Taker(end)
    end.data_received(raw.frame(raw.TEXT, b"nobody waits yet"))
    assert await end.receive() == "nobody waits yet"
    reader = await reading(end)
    end.data_received(b"".join(raw.frame(raw.TEXT, text) for text in (b"1", b"wait", b"2")))
    end.data_received(raw.frame(raw.TEXT, b"3"))
    assert [await reader, await end.receive(), await end.receive()] == ["wait", "2", "3"]
    assert taker.taken == ["1"]


async def test_what_brings_no_message_is_nothing_to_wake_the_reader_for(connect: Connect) -> None:
    _, end = await connect()
    taker = Taker(end)
    answers: list[bytes] = []
    end.answer = answers.append
    reader = await reading(end)
    waiter = end._waiter
    assert waiter
    end.data_received(raw.frame(raw.PING, b"hi"))
    end.data_received(raw.frame(raw.PONG) + raw.frame(raw.TEXT, b"1", fin=False))
    end.data_received(raw.frame(raw.CONTINUATION, b"2"))
    assert answers == [frames.pong(b"hi")]
    assert taker.taken == ["12"]
    assert not waiter.done()
    for _ in range(4):  # more than a second allows
        end.data_received(raw.frame(raw.PONG) * FRAMES_PER_TURN)
    with pytest.raises(PolicyViolation, match="too many control frames"):
        await reader


async def test_what_taking_raises_is_raised_to_whoever_receives(connect: Connect) -> None:
    _, end = await connect()
    taker = Taker(end)
    reader = await reading(end)
    end.data_received(raw.frame(raw.TEXT, b"1") + raw.frame(raw.TEXT, b"boom") + raw.frame(raw.TEXT, b"2"))
    with pytest.raises(PolicyViolation, match="boom"):
        await reader
    assert taker.taken == ["1"]


@pytest.mark.parametrize(("opcode", "payload"), [(raw.CLOSE, b""), (raw.TEXT, b"\xff"), (raw.BINARY, b"")])
async def test_what_ends_it_ends_it_whoever_takes(connect: Connect, opcode: int, payload: bytes) -> None:
    _, end = await connect()
    taker = Taker(end)
    reader = await reading(end)
    end.data_received(raw.frame(raw.TEXT, b"1") + raw.frame(opcode, payload))
    with pytest.raises(Disconnect):
        await reader
    assert taker.taken == ["1"]


async def test_who_sends_a_lot_is_not_taken_all_at_once(connect: Connect) -> None:
    _, end = await connect()
    taker = Taker(end)
    reader = await reading(end)
    end.data_received(raw.frame(raw.TEXT, b"x") * (2 * FRAMES_PER_TURN))
    assert len(taker.taken) == FRAMES_PER_TURN
    assert await reader == "x"


async def test_a_message_that_is_long_in_coming_is_waited_for(connect: Connect) -> None:
    client, end = await connect(max_message_bytes=0)
    taker = Taker(end)
    reader = await reading(end)
    client.say("x" * 20 * READ_BYTES)
    async with asyncio.timeout(20):
        while not taker.taken:
            await asyncio.sleep(0)
    assert taker.taken == ["x" * 20 * READ_BYTES]
    reader.cancel()


async def test_a_ping_is_answered_where_it_was_said(connect: Connect) -> None:
    client, end = await connect()
    answers: list[bytes] = []
    end.answer = answers.append
    client.send(raw.PING, b"hi")
    client.say("x")
    await end.receive()
    assert answers == [frames.pong(b"hi")]


@pytest.mark.parametrize("opcode", [raw.PING, raw.PONG])
async def test_too_many_control_frames(connect: Connect, opcode: int) -> None:
    client, end = await connect()
    for _ in range(101):
        client.send(opcode)
    assert isinstance(await ends_with(end), PolicyViolation)


async def test_control_frames_in_moderation(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    client, end = await connect()
    loop = asyncio.get_running_loop()
    now = loop.time()
    for batch in range(3):
        for _ in range(100):
            client.send(raw.PONG)
        client.say("x")
        monkeypatch.setattr(loop, "time", lambda batch=batch: now + 2 * batch)
        assert await end.receive() == "x"
        monkeypatch.undo()


@pytest.mark.parametrize("payload", [b"", b"x"])
async def test_fragments_without_end(connect: Connect, payload: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a message that never comes together nobody would hear otherwise."""
    monkeypatch.setattr(transport, "FRAGMENTS_PER_SECOND", 10**9)  # somebody slow and patient
    client, end = await connect()
    client.send(raw.TEXT, fin=False)
    reading = asyncio.create_task(ends_with(end))
    for _ in range(100):
        for _ in range(100):
            client.send(raw.CONTINUATION, payload, fin=False)
        await asyncio.sleep(0.01)
        if reading.done():
            break
    reason = await reading
    assert isinstance(reason, PolicyViolation)
    assert str(reason) == "fragments without end"


async def test_messages_cut_to_pieces(connect: Connect) -> None:
    """Each is a good one, but a flooder's frames cost as much as messages, and no limit of messages sees them."""
    client, end = await connect(max_message_bytes=0)
    for _ in range(transport.FRAGMENTS_PER_SECOND // 100 + 1):
        client.send(raw.TEXT, fin=False)
        for _ in range(100):
            client.send(raw.CONTINUATION, b"x" * (transport.FRAGMENT_BYTES - 1), fin=False)
        client.send(raw.CONTINUATION)
    reason = await ends_with(end)
    assert isinstance(reason, PolicyViolation)
    assert str(reason) == "too many small fragments"


async def test_a_long_message_in_pieces_of_some_size(connect: Connect) -> None:
    client, end = await connect(max_message_bytes=0)
    count = 2 * transport.FRAGMENTS_PER_SECOND
    client.send(raw.TEXT, fin=False)
    for _ in range(count):
        client.send(raw.CONTINUATION, b"x" * transport.FRAGMENT_BYTES, fin=False)
    client.send(raw.CONTINUATION)
    assert len(await asyncio.wait_for(end.receive(), 30)) == count * transport.FRAGMENT_BYTES


async def test_a_message_in_many_fragments_that_ends(connect: Connect) -> None:
    client, end = await connect()
    client.send(raw.TEXT, fin=False)
    for _ in range(800):
        client.send(raw.CONTINUATION, b"x", fin=False)
    client.send(raw.CONTINUATION)
    assert await end.receive() == "x" * 800


async def test_bytes_are_signs_of_life_if_somebody_was_there_to_take_them(connect: Connect) -> None:
    client, end = await connect()
    reading = asyncio.create_task(end.receive())
    await asyncio.sleep(0)
    end.heard()
    assert not end.heard()
    client.writer.write(b"\x81")  # half a header
    for _ in range(2000):
        await asyncio.sleep(0.01)
        if end.heard():
            break
    else:
        raise AssertionError("not heard")
    assert not end.heard()
    reading.cancel()
    await asyncio.wait([reading])
    client.writer.write(bytes(READ_BYTES))
    while not end._reading_paused:
        await asyncio.sleep(0.01)
    assert end.heard()
    assert end.heard(), "nothing is read, so silence proves nothing"


async def test_the_kernel_keeps_little_of_what_a_peer_does_not_read(connect: Connect) -> None:
    client, end = await connect()
    sock = end._socket_transport.get_extra_info("socket")
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * transport.SEND_BUFFER_BYTES  # Linux doubles it
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    written = 0
    while not end.paused:
        end.write(bytes(10_000))
        written += 10_000
        await asyncio.sleep(0)
    assert end.buffered
    end.abort()
    assert end.lost


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_the_kernel_does_not_take_at_once_comes_in_order(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def conversation() -> None:
        async with served() as connect:
            client, end = await connect()
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            said: list[bytes] = []
            while len(said) < 3 or not end.paused:
                said.append(b"%d" % len(said) * 300_000)
                end.write(frames.text(said[-1]))
            waiting = end.buffered
            assert waiting
            said.append(b"behind what waits")
            end.write(frames.text(said[-1]))
            assert end.buffered == waiting + 2 + len(said[-1])
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            heard = [await client.receive() for _ in said[1:]]
            await end.drained()
            said.append(b"at once again")
            end.write(frames.text(said[-1]))
            assert not end.buffered
            heard += [await client.receive() for _ in range(2)]
            assert heard == [raw.Frame(raw.TEXT, body) for body in said]

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(conversation())


async def test_what_comes_after_the_end_is_thrown_away_until_the_peer_closes(connect: Connect) -> None:
    client, end = await connect()
    for _ in range(transport.FRAMES_AFTER_END // 2):
        client.say("x")
        client.send(raw.PING)  # soon too many: an error each
    client.send(raw.CLOSE)
    await asyncio.wait_for(end.discard(), 30)
    assert not end.lost


async def test_of_a_peer_that_floods_after_the_end_no_more_is_read(connect: Connect) -> None:
    client, end = await connect()
    discarding = asyncio.create_task(end.discard())
    for _ in range(transport.FRAMES_AFTER_END):
        client.say("x")
    while not end._reading_paused:
        await asyncio.sleep(0.01)
    client.send(raw.CLOSE)
    for _ in range(20):
        await asyncio.sleep(0.01)
    assert not discarding.done()
    end.abort()
    await asyncio.wait_for(discarding, 30)


async def test_the_descriptor_is_there_only_while_nothing_waits(connect: Connect) -> None:
    """Whoever writes to it would otherwise overtake what waits, or reach whoever has the number next; so would whoever
    isn't told of the change.
    """
    before = CHANGES.count
    client, end = await connect()
    descriptor = end.descriptor
    changes = [before, CHANGES.count]
    assert descriptor == end._socket_transport.get_extra_info("socket").fileno()
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    end.write(frames.text(bytes(20_000_000)))
    assert (end.paused, end.descriptor) == (True, -1)
    changes.append(CHANGES.count)
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    while end.paused:
        await client.receive()
    assert end.descriptor == descriptor
    changes.append(CHANGES.count)
    end.abort()
    assert end.descriptor == -1
    changes.append(CHANGES.count)
    assert changes == sorted(set(changes))


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_a_lost_connection_has_no_descriptor(connect: Connect, how: str) -> None:
    client, end = await connect()
    getattr(client.writer.transport, how)()
    while not end.lost:
        await asyncio.sleep(0.01)
    assert end.descriptor == -1


async def test_finish_waits_until_all_is_sent(connect: Connect) -> None:
    client, end = await connect()
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    end.write(frames.text(bytes(20_000_000)))  # more than any kernel buffers
    finishing = asyncio.create_task(end.finish(lambda: True))
    await asyncio.sleep(0.05)
    assert not finishing.done()
    client.writer.transport.resume_reading()  # type: ignore[attr-defined]
    while await client.receive():
        continue
    await finishing
    assert end.lost


async def test_a_peer_that_left_during_the_handshake() -> None:
    class Gone(web.Request):
        transport = None

    app = web.Application()
    caught: list[BaseException] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        end = WebSocketTransport(1000, Turnstile(1))
        request.__class__ = Gone
        try:
            end.accept(request)
        except ConnectionError as error:
            caught.append(error)
        return web.Response()

    app.router.add_get("/ws", handler)
    async with TestServer(app) as server:
        await RawClient.connect(server.port or 0)
        while not caught:
            await asyncio.sleep(0.01)
