"""What one client may do: so much in a while, refusals beyond, and an end to floods."""

import pytest

from chatserver.bucket import KEPT, REFUSALS, Bucket, Limit
from chatserver.errors import PolicyViolation, TooManyMessages
from tests.fakes import make_client


def test_a_bucket_is_full_at_first_and_fills_again() -> None:
    bucket = Bucket(2, 3)
    assert [bucket.take("alice", 100) for _ in range(5)] == [0, 0, 0, 0.5, 0.5]
    assert bucket.take("alice", 100.25) == 0.25
    assert [bucket.take("alice", 100.5), bucket.take("alice", 100.5)] == [0, 0.5]
    assert [bucket.take("alice", 1000) for _ in range(4)] == [0, 0, 0, 0.5]


def test_everybody_has_a_bucket() -> None:
    bucket = Bucket(1, 1)
    assert [bucket.take(owner, 0) for owner in ("alice", "bob", "alice")] == [0, 0, 1]


def test_a_bucket_that_was_emptied_fills_again() -> None:
    bucket = Bucket(2, 3)
    bucket.empty("alice", 100)
    assert [bucket.take("alice", 100), bucket.take("alice", 100.5), bucket.take("alice", 100.5)] == [0.5, 0, 0.5]
    assert not bucket.take("bob", 100)


def test_those_that_are_full_are_forgotten_and_no_others() -> None:
    bucket = Bucket(1, 1)
    for owner in range(KEPT):
        bucket.take(str(owner), owner / KEPT / 2)
    assert len(bucket._full_at) == KEPT  # before the first of them is full
    assert bucket.take("one more", 1.25) == 0
    assert set(bucket._full_at) == {"one more", *(str(owner) for owner in range(KEPT // 2 + 1, KEPT))}
    assert bucket.take("0", 1.25) == 0
    assert bucket.take(str(KEPT - 1), 1.25) == pytest.approx(0.2495)


def test_where_most_are_not_full_it_is_rarely_looked_at_which_are() -> None:
    bucket = Bucket(1, 1)
    for owner in range(2 * KEPT):
        bucket.take(str(owner), 0)
    assert len(bucket._full_at) == 2 * KEPT
    bucket.take("one more", 0.5)
    assert bucket._most == 4 * KEPT
    assert all(bucket.take(str(owner), 0.5) for owner in range(2 * KEPT))


def test_what_is_too_much_is_refused_and_a_flood_ended() -> None:
    limit, client = Limit(5, lambda: 0.0), make_client()
    for _ in range(5):
        limit.spend(client, PolicyViolation)
    for _ in range(int(REFUSALS)):
        with pytest.raises(TooManyMessages, match=r"retry in 0\.2 s"):
            limit.spend(client, PolicyViolation)
    with pytest.raises(PolicyViolation):
        limit.spend(client, PolicyViolation)


def test_less_than_one_a_second_is_one_at_a_time() -> None:
    now = 0.0
    limit, client = Limit(0.5, lambda: now), make_client()
    limit.spend(client, PolicyViolation)
    with pytest.raises(TooManyMessages, match=r"retry in 2\.0 s"):
        limit.spend(client, PolicyViolation)
    now = 2.0
    limit.spend(client, PolicyViolation)
