"""One client on a transport that tests pause and resume; its drain is run by hand."""

import asyncio
from collections.abc import AsyncIterator, Callable
from unittest import mock

import pytest

from chatserver import frames
from chatserver.client import CLOSE_SECONDS, WRITE_BYTES, Client
from chatserver.errors import ConnectionLost, Disconnect, GoingAway, PolicyViolation, Slow
from chatserver.feed import Feed
from chatserver.message import Notice, Refused
from chatserver.protocol import Simple
from tests.fakes import Clock, FakeTransport, make_client, split, stopped_clock, told, turns

CODEC = Simple()


@pytest.fixture(autouse=True)
async def clock() -> AsyncIterator[Clock]:
    with stopped_clock() as clock:
        yield clock


@pytest.fixture
def transport() -> FakeTransport:
    return FakeTransport()


@pytest.fixture
def client(transport: FakeTransport) -> Client:
    return make_client(transport, CODEC)


def tell(client: Client, *bodies: str) -> None:
    for body in bodies:
        client.enqueue(Notice(body))


def publish(feed: Feed, *bodies: str) -> None:
    for body in bodies:
        feed.extend([CODEC.encode(Notice(body))])


def answer(feed: Feed, client: Client, body: str) -> bool:
    return feed.answer(client, CODEC.encode(Notice(body)))


def serve(client: Client) -> int:
    """As the pool does: until nothing is left. Returns how many turns that took."""
    for count in range(1, 100):
        if client.serve():
            return count
    raise AssertionError("never done")


async def park(client: Client, transport: FakeTransport) -> asyncio.Task[None]:
    """The peer stops reading; the client's own drain takes over."""
    transport.paused = True
    client.park()
    drain = asyncio.create_task(client.drain())
    await turns()
    return drain


# What is told to a client


async def test_enqueue_writes_nothing_but_wakes_the_drain(transport: FakeTransport) -> None:
    woken: list[Client] = []
    client = make_client(transport, wake=woken.append)
    tell(client, "hi")
    assert woken == [client]
    assert not transport.written


async def test_events_are_written_in_order_and_together(client: Client, transport: FakeTransport) -> None:
    tell(client, "a", "b", "c")
    serve(client)
    assert told(transport) == ["a", "b", "c"]
    assert len(transport.written) == 1


async def test_an_idle_client_is_written_nothing(client: Client, transport: FakeTransport) -> None:
    assert client.serve()
    assert not transport.written


async def test_nothing_is_written_twice(client: Client, transport: FakeTransport) -> None:
    tell(client, "a")
    serve(client)
    tell(client, "b")
    serve(client)
    serve(client)
    assert told(transport) == ["a", "b"]


async def test_much_is_cut_into_several_writes(client: Client, transport: FakeTransport) -> None:
    bodies = [f"{number:02}" + "x" * 30_000 for number in range(20)]
    tell(client, *bodies)
    serve(client)
    assert told(transport) == bodies
    assert len(transport.written) == 4
    assert max(map(len, transport.written)) < WRITE_BYTES + 31_000


async def test_an_event_longer_than_a_write_goes_in_one_piece(client: Client, transport: FakeTransport) -> None:
    bodies = ["a" * 2 * WRITE_BYTES, "b"]
    tell(client, *bodies)
    serve(client)
    assert told(transport) == bodies
    assert len(split(transport.written[0])) == 1


async def test_delivered_counts_events(client: Client) -> None:
    tell(client, "a", "b")
    client.control(frames.ping())
    assert client.delivered == 2


def test_a_client_is_shown_with_id_and_user(client: Client) -> None:
    assert repr(client) == "<Client id-alice alice>"


# The bound of the queue


async def test_a_queue_of_as_many_bytes_as_allowed_stays(transport: FakeTransport) -> None:
    client = make_client(transport, queue_bytes=3 * len(CODEC.encode(Notice("a"))))
    await park(client, transport)
    tell(client, "a", "b", "c")
    assert client.ending is None
    transport.resume()
    await turns()
    assert told(transport) == ["a", "b", "c"]


async def test_a_byte_over_the_bound_disconnects_and_drops_the_queue(transport: FakeTransport) -> None:
    client = make_client(transport, queue_bytes=3 * len(CODEC.encode(Notice("a"))) - 1)
    await park(client, transport)
    tell(client, "a", "b")
    assert not client.ending
    tell(client, "c")
    assert isinstance(client.ending, Slow)
    assert told(transport) == ["<close 3008 slow>"]


async def test_a_client_whose_transport_takes_data_is_not_slow(transport: FakeTransport) -> None:
    client = make_client(transport, queue_bytes=1)
    tell(client, "a", "b", "c")
    serve(client)
    assert told(transport) == ["a", "b", "c"]


async def test_a_client_that_is_paused_with_more_than_the_bound_queued_is_slow(transport: FakeTransport) -> None:
    client = make_client(transport, queue_bytes=1000)
    tell(client, "a" * WRITE_BYTES, "b" * WRITE_BYTES)
    transport.pause_after = 1
    client.serve()
    await park(client, transport)
    assert isinstance(client.ending, Slow)
    assert told(transport) == ["a" * WRITE_BYTES, "<close 3008 slow>"]


async def test_what_is_written_is_no_longer_in_the_queue(transport: FakeTransport) -> None:
    client = make_client(transport, queue_bytes=len(CODEC.encode(Notice("a"))))
    for _ in range(10):
        await park(client, transport)
        tell(client, "a")
        transport.resume()
        await turns()
        tell(client, "b")
        serve(client)
    assert client.ending is None
    assert told(transport) == ["a", "b"] * 10


async def test_a_paused_client_over_the_bound_is_told_right_behind_what_its_transport_holds(
    transport: FakeTransport,
) -> None:
    client = make_client(transport, queue_bytes=1000)
    tell(client, "held")
    serve(client)
    await park(client, transport)
    for _ in range(20):
        tell(client, "x" * 100)
    assert told(transport) == ["held", "<close 3008 slow>"]
    transport.resume()
    await turns()
    serve(client)
    assert told(transport) == ["held", "<close 3008 slow>"]


# Pings and pongs


async def test_a_control_frame_goes_behind_what_is_queued(client: Client, transport: FakeTransport) -> None:
    tell(client, "a")
    client.control(frames.pong(b"hi"))
    serve(client)
    assert told(transport) == ["a", "<pong hi>"]


async def test_a_control_frame_wakes_the_drain(transport: FakeTransport) -> None:
    woken: list[Client] = []
    client = make_client(transport, wake=woken.append)
    client.control(frames.ping())
    assert woken == [client]
    client.serve()
    client.serve()
    assert told(transport) == ["<ping >"]


async def test_a_paused_client_is_ponged_when_it_reads_again(client: Client, transport: FakeTransport) -> None:
    await park(client, transport)
    client.control(frames.pong(b"a"))
    client.control(frames.pong(b"b"))
    assert not transport.written
    transport.resume()
    await turns()
    assert told(transport) == ["<pong a>", "<pong b>"]


async def test_of_many_control_frames_that_wait_few_are_kept_and_the_last_one_is(
    client: Client, transport: FakeTransport
) -> None:
    await park(client, transport)
    for number in range(1000):
        client.control(frames.pong(b"%0125d" % number))
    transport.resume()
    await turns()
    assert len(transport.wire) < 1024
    heard = told(transport)
    assert heard == [f"<pong {number:0125}>" for number in range(1000 - len(heard), 1000)]


# Pausing and resuming


async def test_a_paused_client_is_written_nothing_until_it_reads_again(
    client: Client, transport: FakeTransport
) -> None:
    await park(client, transport)
    tell(client, "a", "b")
    await turns()
    assert not transport.written
    transport.resume()
    await turns()
    assert told(transport) == ["a", "b"]


async def test_a_client_that_reads_again_is_handed_back_to_the_pool(transport: FakeTransport) -> None:
    woken: list[Client] = []
    client = make_client(transport, wake=woken.append)
    await park(client, transport)
    assert client.parked
    assert not woken
    transport.resume()
    await turns()
    assert woken == [client]
    assert not client.parked


async def test_a_client_that_is_paused_again_is_parked_on(client: Client, transport: FakeTransport) -> None:
    bodies = [letter * WRITE_BYTES for letter in "abc"]
    await park(client, transport)
    tell(client, *bodies)
    for count in (1, 2):
        transport.resume()
        transport.pause_after = count
        await turns()
        assert told(transport) == bodies[:count]
        assert client.parked
    transport.resume()
    await turns()
    assert told(transport) == bodies
    assert not client.parked


async def test_a_transport_that_is_full_is_not_served_on(client: Client, transport: FakeTransport) -> None:
    tell(client, "a" * WRITE_BYTES, "b")
    transport.pause_after = 1
    assert not client.serve()
    assert told(transport) == ["a" * WRITE_BYTES]


async def test_the_drain_of_a_lost_client_ends(client: Client, transport: FakeTransport) -> None:
    drain = await park(client, transport)
    tell(client, "a")
    transport.lose()
    await turns()
    assert drain.done()
    assert not client.parked
    assert not transport.written


# The end


async def test_disconnect_sends_what_is_queued_and_then_the_close_frame(
    client: Client, transport: FakeTransport
) -> None:
    tell(client, "a", "b")
    client.disconnect(GoingAway())
    serve(client)
    assert told(transport) == ["a", "b", "<close 1001 server shutdown>"]
    assert client.close_sent


async def test_disconnect_sends_waiting_control_frames_before_the_close_frame(
    client: Client, transport: FakeTransport
) -> None:
    client.control(frames.pong(b"hi"))
    client.disconnect(GoingAway())
    serve(client)
    assert told(transport) == ["<pong hi>", "<close 1001 server shutdown>"]


async def test_disconnect_wakes_the_drain(transport: FakeTransport) -> None:
    woken: list[Client] = []
    client = make_client(transport, wake=woken.append)
    client.disconnect(GoingAway())
    assert woken == [client]
    assert not client.close_sent


async def test_much_is_sent_before_the_close_frame(client: Client, transport: FakeTransport) -> None:
    bodies = [letter * WRITE_BYTES for letter in "abc"]
    tell(client, *bodies)
    transport.pause_after = 2
    client.disconnect(GoingAway())
    assert not client.serve()
    assert not client.close_sent
    transport.resume()
    serve(client)
    assert told(transport) == [*bodies, "<close 1001 server shutdown>"]


async def test_of_several_disconnects_the_first_counts(client: Client, transport: FakeTransport) -> None:
    first = GoingAway()
    client.disconnect(first)
    client.disconnect(PolicyViolation())
    serve(client)
    client.disconnect(Slow())
    serve(client)
    assert client.ending is first
    assert told(transport) == ["<close 1001 server shutdown>"]


async def test_a_reason_of_a_plugins_own_is_on_the_wire(client: Client, transport: FakeTransport) -> None:
    client.disconnect(Disconnect("go away"))
    serve(client)
    assert told(transport) == ["<close 1008 go away>"]


async def test_what_is_told_to_a_client_after_its_end_is_ignored(transport: FakeTransport) -> None:
    woken: list[Client] = []
    client = make_client(transport, wake=woken.append)
    client.disconnect(GoingAway())
    woken.clear()
    tell(client, "a")
    client.control(frames.ping())
    assert not woken
    assert client.delivered == 0
    serve(client)
    tell(client, "b")
    client.control(frames.ping())
    serve(client)
    assert told(transport) == ["<close 1001 server shutdown>"]


async def test_a_paused_client_with_nothing_queued_is_told_its_end_at_once(
    client: Client, transport: FakeTransport
) -> None:
    await park(client, transport)
    client.disconnect(GoingAway())
    assert told(transport) == ["<close 1001 server shutdown>"]
    transport.resume()
    await turns()
    serve(client)
    assert told(transport) == ["<close 1001 server shutdown>"]


async def test_a_paused_client_gets_its_queue_and_its_end_when_it_reads_again(
    client: Client, transport: FakeTransport
) -> None:
    await park(client, transport)
    tell(client, "a")
    client.disconnect(GoingAway())
    assert not transport.written
    transport.resume()
    await turns()
    assert told(transport) == ["a", "<close 1001 server shutdown>"]


@pytest.mark.parametrize("end", [GoingAway(), Slow()])
async def test_no_pong_is_written_after_the_close_frame_of_a_paused_client(
    end: Disconnect, client: Client, transport: FakeTransport
) -> None:
    await park(client, transport)
    client.control(frames.pong(b"hi"))
    client.disconnect(end)
    transport.resume()
    await turns()
    serve(client)
    assert told(transport)[-1] == f"<close {end.code} {end}>"


async def test_a_lost_connection_is_not_told_so() -> None:
    """RFC 6455 section 7.4.1: 1006 must not be set as a status code in a close frame."""
    transport = FakeTransport()
    client = make_client(transport)
    client.disconnect(ConnectionLost())
    serve(client)
    assert not transport.written


async def test_a_peer_that_does_not_go_is_aborted(client: Client, transport: FakeTransport, clock: Clock) -> None:
    client.disconnect(GoingAway())
    serve(client)
    await clock.push(CLOSE_SECONDS - 0.02)
    assert not transport.aborted
    await clock.push(0.04)
    assert transport.aborted


async def test_it_is_known_who_had_to_be_aborted(client: Client, clock: Clock) -> None:
    client.disconnect(GoingAway())
    aborted = [client.aborted]
    await clock.push(CLOSE_SECONDS + 0.02)
    assert [*aborted, client.aborted] == [False, True]


async def test_a_connection_that_is_lost_already_is_not_aborted(
    client: Client, transport: FakeTransport, clock: Clock
) -> None:
    client.disconnect(GoingAway())
    transport.lose()
    await clock.push(CLOSE_SECONDS + 0.02)
    assert not transport.aborted
    assert not client.aborted


async def test_a_lost_client_has_nothing_to_do(client: Client, transport: FakeTransport) -> None:
    tell(client, "a")
    transport.paused = True
    transport.lose()
    assert client.serve()
    assert not client.parked


async def test_a_paused_peer_that_does_not_go_is_aborted_too(
    client: Client, transport: FakeTransport, clock: Clock
) -> None:
    await park(client, transport)
    tell(client, "a")
    client.disconnect(GoingAway())
    await clock.push(CLOSE_SECONDS + 0.02)
    assert transport.aborted
    assert not client.parked


async def test_a_peer_is_given_as_long_as_the_caller_says(
    client: Client, transport: FakeTransport, clock: Clock
) -> None:
    client.disconnect(GoingAway(), 8)
    client.disconnect(GoingAway(), 1)
    await clock.push(7.9, step=0.1)
    assert not transport.aborted
    await clock.push(0.2)
    assert transport.aborted


async def test_a_peer_that_has_gone_is_not_aborted(client: Client, transport: FakeTransport, clock: Clock) -> None:
    client.disconnect(GoingAway())
    client.gone()
    await clock.push(2)
    assert not transport.aborted


def test_a_peer_may_be_gone_without_an_end(client: Client) -> None:
    client.gone()
    assert client.ending is None


# What a client follows


@pytest.fixture
def feed() -> Feed:
    return Feed(CODEC, 1 << 20)


async def test_a_follower_is_told_what_comes_after_it(client: Client, transport: FakeTransport, feed: Feed) -> None:
    publish(feed, "before")
    client.follow(feed)
    publish(feed, "after")
    feed.flush()
    serve(client)
    assert told(transport) == ["after"]


async def test_who_has_nothing_to_be_told_needs_no_drain_to_follow(feed: Feed, transport: FakeTransport) -> None:
    woken: list[Client] = []
    client = make_client(transport, wake=woken.append)
    client.follow(feed)
    assert woken == []
    publish(feed, "a")
    feed.flush()
    assert told(transport) == ["a"]


def behind_the_flush(client: Client, transport: FakeTransport, feed: Feed) -> None:
    publish(feed, "before")


def with_something_queued(client: Client, transport: FakeTransport, feed: Feed) -> None:
    tell(client, "own")


def with_a_ping_to_be_sent(client: Client, transport: FakeTransport, feed: Feed) -> None:
    client.control(frames.ping())


def while_the_peer_reads_too_slowly(client: Client, transport: FakeTransport, feed: Feed) -> None:
    transport.paused = True


def while_its_own_task_serves_it(client: Client, transport: FakeTransport, feed: Feed) -> None:
    client.park()


@pytest.mark.parametrize(
    "prepare",
    [
        behind_the_flush,
        with_something_queued,
        with_a_ping_to_be_sent,
        while_the_peer_reads_too_slowly,
        while_its_own_task_serves_it,
    ],
)
async def test_others_wake_the_drain(
    feed: Feed, transport: FakeTransport, prepare: Callable[[Client, FakeTransport, Feed], None]
) -> None:
    woken: list[Client] = []
    client = make_client(transport, CODEC, wake=woken.append)
    prepare(client, transport, feed)
    woken.clear()
    client.follow(feed)
    assert woken == [client]
    publish(feed, "a")
    feed.flush()
    assert "a" not in told(transport)


async def test_a_level_follower_is_written_to_by_the_feed(client: Client, transport: FakeTransport, feed: Feed) -> None:
    client.follow(feed)
    serve(client)
    publish(feed, "a")
    feed.flush()
    assert told(transport) == ["a"]


async def test_an_event_for_a_client_alone_keeps_its_place_among_the_feeds(
    client: Client, transport: FakeTransport, feed: Feed
) -> None:
    client.follow(feed)
    serve(client)
    publish(feed, "1")
    tell(client, "2")
    publish(feed, "3")
    tell(client, "4")
    publish(feed, "5")
    feed.flush()
    serve(client)
    publish(feed, "6")
    feed.flush()
    assert told(transport) == list("123456")


async def test_a_pong_leaves_a_client_level(client: Client, transport: FakeTransport, feed: Feed) -> None:
    client.follow(feed)
    serve(client)
    publish(feed, "a")
    client.control(frames.pong(b""))
    serve(client)
    feed.flush()
    assert told(transport) == ["<pong >", "a"]


async def test_a_client_ahead_of_the_flush_waits_for_it_before_it_is_level(
    client: Client, transport: FakeTransport, feed: Feed
) -> None:
    client.follow(feed)
    publish(feed, "a")
    tell(client, "b")
    assert not client.serve()
    feed.flush()
    assert client.serve()
    publish(feed, "c")
    feed.flush()
    assert told(transport) == ["a", "b", "c"]


async def test_who_follows_several_of_which_one_is_always_busy_is_level_again(
    client: Client, transport: FakeTransport
) -> None:
    feeds = [Feed(CODEC, 1 << 20) for _ in range(2)]
    for feed in feeds:
        client.follow(feed)
    publish(feeds[0], "a")
    publish(feeds[1], "b")
    tell(client, "c")
    assert not client.serve()
    for number in range(4):
        feeds[number % 2].flush()
        publish(feeds[number % 2], str(number))
        client.serve()
    assert client.serve()
    for feed in feeds:
        feed.flush()
    assert sorted(told(transport)) == ["0", "1", "2", "3", "a", "b", "c"]


async def test_a_paused_follower_catches_up(client: Client, transport: FakeTransport, feed: Feed) -> None:
    client.follow(feed)
    serve(client)
    await park(client, transport)
    for body in "abc":
        publish(feed, body)
        feed.flush()
    assert not transport.written
    transport.resume()
    await turns()
    serve(client)
    publish(feed, "d")
    feed.flush()
    assert told(transport) == list("abcd")


async def test_a_client_may_follow_several_feeds(client: Client, transport: FakeTransport) -> None:
    feeds = [Feed(CODEC, 1 << 20), Feed(CODEC, 1 << 20)]
    publish(feeds[1], "before")
    client.follow(feeds[0])
    serve(client)
    publish(feeds[0], "a1")
    client.follow(feeds[1])
    publish(feeds[1], "b1")
    tell(client, "private")
    publish(feeds[0], "a2")
    for feed in feeds:
        feed.flush()
    serve(client)
    publish(feeds[1], "b2")
    publish(feeds[0], "a3")
    for feed in feeds:
        feed.flush()
    heard = told(transport)
    assert [body for body in heard if body[0] == "a"] == ["a1", "a2", "a3"]
    assert [body for body in heard if body[0] == "b"] == ["b1", "b2"]
    assert heard.index("a1") < heard.index("private") > heard.index("b1")
    assert heard.index("private") < heard.index("a2")


async def test_a_client_that_ends_gets_what_its_feed_was_told_before(
    client: Client, transport: FakeTransport, feed: Feed
) -> None:
    client.follow(feed)
    serve(client)
    publish(feed, "before")
    client.disconnect(GoingAway())
    publish(feed, "after")
    feed.flush()
    serve(client)
    assert told(transport) == ["before", "<close 1001 server shutdown>"]
    assert feed.followers == 0


async def test_a_slow_client_leaves_its_feed_without_the_rest(
    client: Client, transport: FakeTransport, feed: Feed
) -> None:
    client.follow(feed)
    serve(client)
    publish(feed, "dropped")
    client.disconnect(Slow())
    feed.flush()
    serve(client)
    assert told(transport) == ["<close 3008 slow>"]
    assert feed.followers == 0


async def test_a_client_that_has_ended_follows_nothing_any_more(
    client: Client, transport: FakeTransport, feed: Feed
) -> None:
    client.disconnect(GoingAway())
    serve(client)
    client.follow(feed)
    publish(feed, "a")
    feed.flush()
    serve(client)
    assert told(transport) == ["<close 1001 server shutdown>"]
    assert feed.followers == 0


async def test_delivered_counts_what_the_feed_delivered(client: Client, feed: Feed) -> None:
    publish(feed, "before")
    client.follow(feed)
    publish(feed, "a", "b")
    feed.flush()
    tell(client, "c")
    publish(feed, "d")
    feed.flush()
    serve(client)
    publish(feed, "e")
    feed.flush()
    client.enqueue(Refused(400, "f"))
    client.disconnect(GoingAway())
    assert client.delivered == 6


async def test_of_several_sources_one_can_be_left(client: Client, transport: FakeTransport) -> None:
    left, kept = Feed(CODEC, 1 << 20), Feed(CODEC, 1 << 20)
    for feed in (left, kept):
        client.follow(feed)
    serve(client)
    for body in ("a", "b"):
        publish(left, f"left {body}")
        publish(kept, f"kept {body}")
        if body == "a":
            client.unfollow(left)
            client.unfollow(left)
    kept.flush()
    serve(client)
    assert told(transport) == ["left a", "kept a", "kept b"]
    assert left.followers == 0


async def test_what_is_encoded_already_is_told_in_its_turn(client: Client, transport: FakeTransport) -> None:
    tell(client, "a")
    client.push(CODEC.encode(Notice("b")))
    client.push(b"")
    tell(client, "c")
    serve(client)
    assert told(transport) == ["a", "b", "c"]
    assert client.delivered == 3


async def test_an_answer_leaves_a_client_level_and_goes_out_behind_what_was_told(
    client: Client, transport: FakeTransport, feed: Feed
) -> None:
    client.follow(feed)
    publish(feed, "a")
    assert answer(feed, client, "answer")
    publish(feed, "b")
    feed.flush()
    assert len(transport.written) == 1
    publish(feed, "c")
    feed.flush()
    assert told(transport) == ["a", "b", "answer", "c"]
    client.disconnect(GoingAway())
    assert client.delivered == 4


async def test_a_pong_goes_out_behind_an_answer_with_what_all_are_told(
    client: Client, transport: FakeTransport, feed: Feed
) -> None:
    client.follow(feed)
    publish(feed, "a")
    assert answer(feed, client, "answer")
    client.control(frames.pong(b""))
    feed.flush()
    serve(client)
    assert told(transport) == ["a", "answer", "<pong >"]


async def test_an_answer_keeps_its_place_when_its_client_is_told_something_alone(
    client: Client, transport: FakeTransport
) -> None:
    first, second = Feed(CODEC, 1 << 20), Feed(CODEC, 1 << 20)
    for feed in (first, second):
        client.follow(feed)
    for feed in (first, second):
        publish(feed, "told")
    assert answer(first, client, "answer")
    assert answer(second, client, "another")
    second.flush()
    tell(client, "alone")
    first.flush()
    serve(client)
    assert told(transport) == ["told", "another", "told", "answer", "alone"]


@pytest.mark.parametrize("leave", [Client.unfollow, lambda client, feed: client.disconnect(GoingAway())])
async def test_who_leaves_is_answered_before(
    client: Client, transport: FakeTransport, feed: Feed, leave: Callable[[Client, Feed], None]
) -> None:
    client.follow(feed)
    publish(feed, "a")
    assert answer(feed, client, "answer")
    leave(client, feed)
    feed.flush()
    serve(client)
    assert told(transport)[:2] == ["a", "answer"]


async def test_an_answer_behind_more_than_one_write_goes_out_with_the_last_of_them(
    client: Client, transport: FakeTransport, feed: Feed
) -> None:
    client.follow(feed)
    long = ["x" * WRITE_BYTES, "y" * WRITE_BYTES]
    publish(feed, *long)
    assert answer(feed, client, "one")
    feed.flush()
    assert told(transport) == long[:1]
    assert answer(feed, client, "two")
    feed.flush()
    assert told(transport) == [*long, "one", "two"]


async def test_an_answer_waits_for_a_flush_that_brings_what_was_told_since_the_last_one(
    client: Client, transport: FakeTransport, feed: Feed
) -> None:
    other = make_client(codec=CODEC)
    for each in (other, client):
        each.follow(feed)
    with mock.patch.multiple("chatserver.feed", FIRST_CLIENTS=1, MOST_FIRST_CLIENTS=1, FLUSH_CLIENTS=1):
        publish(feed, "a")
        assert answer(feed, client, "one")
        feed.flush()
        publish(feed, "b")
        assert answer(feed, client, "two")
        feed.flush()
        assert told(transport) == ["a"]
        feed.flush()
        feed.flush()
    assert told(transport) == ["a", "b", "one", "two"]


async def test_many_may_wait_until_not_much_is_left_to_tell(client: Client, transport: FakeTransport) -> None:
    tell(client, *["x" * 30_000] * 9)
    waiting = [asyncio.create_task(client.emptied()) for _ in range(3)]
    await turns()
    assert not any(task.done() for task in waiting)
    serve(client)
    await asyncio.gather(*waiting)
