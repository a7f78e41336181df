"""What one client may do: so much in a while, refusals beyond, and an end to floods."""

import pytest

from chatserver.bucket import REFUSALS, Bucket, Limit
from chatserver.client import Client
from chatserver.errors import PolicyViolation, TooManyMessages
from tests.fakes import make_client


def test_a_bucket_is_full_at_first_and_fills_again() -> None:
    bucket, client = Bucket[Client](2, 3), make_client()
    assert [bucket.take(client, 100) for _ in range(5)] == [0, 0, 0, 0.5, 0.5]
    assert bucket.take(client, 100.25) == 0.25
    assert [bucket.take(client, 100.5), bucket.take(client, 100.5)] == [0, 0.5]
    assert [bucket.take(client, 1000) for _ in range(4)] == [0, 0, 0, 0.5]


def test_everybody_has_a_bucket() -> None:
    bucket = Bucket[Client](1, 1)
    assert [bucket.take(make_client(), 0) for _ in range(3)] == [0, 0, 0]


def test_a_bucket_that_was_emptied_fills_again() -> None:
    bucket, client = Bucket[Client](2, 3), make_client()
    bucket.empty(client, 100)
    assert [bucket.take(client, 100), bucket.take(client, 100.5), bucket.take(client, 100.5)] == [0.5, 0, 0.5]
    assert not bucket.take(make_client(user="bob"), 100)


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
