"""Who wakes in which turn."""

import asyncio

import pytest

from chatserver.turnstile import Turnstile


def some(count: int) -> list["asyncio.Future[None]"]:
    loop = asyncio.get_running_loop()
    return [loop.create_future() for _ in range(count)]


def awake(waiters: list["asyncio.Future[None]"]) -> list[bool]:
    return [waiter.done() for waiter in waiters]


async def test_so_many_wake_in_a_turn_in_their_order() -> None:
    turnstile, waiters = Turnstile(2), some(5)
    for waiter in waiters:
        turnstile.wake(waiter)
    for expected in (2, 4, 5):
        assert awake(waiters) == [True] * expected + [False] * (5 - expected)
        await asyncio.sleep(0)


async def test_who_comes_in_the_next_turn_is_behind_those_who_wait() -> None:
    turnstile, waiters = Turnstile(1), some(4)
    for waiter in waiters[:3]:
        turnstile.wake(waiter)
    await asyncio.sleep(0)
    turnstile.wake(waiters[3])
    for expected in (2, 3, 4):
        assert awake(waiters) == [True] * expected + [False] * (4 - expected)
        await asyncio.sleep(0)


async def test_who_comes_later_wakes_at_once() -> None:
    turnstile = Turnstile(2)
    for _ in range(3):
        waiters = some(2)
        for waiter in waiters:
            turnstile.wake(waiter)
        assert awake(waiters) == [True, True]
        await asyncio.sleep(0)


@pytest.mark.parametrize("end", ["cancel", "wake"])
async def test_who_does_not_wait_any_more_takes_nobodys_turn(end: str) -> None:
    turnstile, waiters = Turnstile(1), some(4)
    over = [waiters[0], waiters[2]]  # one before its turn was asked for, one while it waits
    for waiter in waiters:
        if waiter is over[0]:
            waiter.cancel() if end == "cancel" else waiter.set_result(None)
        turnstile.wake(waiter)
    if end == "cancel":
        over[1].cancel()
    else:
        over[1].set_result(None)
    assert awake(waiters) == [True, True, True, False]
    await asyncio.sleep(0)
    assert awake(waiters) == [True] * 4


async def test_the_same_waiter_twice() -> None:
    turnstile, waiters = Turnstile(1), some(3)
    for waiter in (waiters[0], waiters[0], waiters[1], waiters[1], waiters[2]):
        turnstile.wake(waiter)
    for expected in (1, 2, 3):
        assert awake(waiters) == [True] * expected + [False] * (3 - expected)
        await asyncio.sleep(0)
