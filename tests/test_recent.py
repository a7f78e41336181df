"""The end of a log in memory, against a list that is the whole log."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatserver import recent
from chatserver.recent import KEEP_CHARACTERS, KEEP_EVENTS, Recent
from chatserver.store import Record
from tests.fakes import PATIENT


def record(offset: int, size: int = 1) -> Record:
    return Record(offset, 0, "message", "alice", "x" * size)


def records(first: int, last: int, size: int = 1) -> list[Record]:
    return [record(offset, size) for offset in range(first, last + 1)]


def filled(first: int, last: int, size: int = 1) -> Recent:
    """Holds what was appended to it since it began before `first`."""
    found = Recent(first - 1)
    for one in records(first, last, size):
        found.extend([one])
    return found


def test_an_empty_log_is_complete_and_nothing_came_after_its_start() -> None:
    empty = Recent(0)
    assert (empty.top, empty.start, empty.complete) == (0, 0, True)
    assert empty.after(0) == []


def test_of_a_log_with_a_past_nothing_is_known_at_first() -> None:
    fresh = Recent(7)
    assert (fresh.top, fresh.start, fresh.complete) == (7, 7, False)
    assert fresh.after(7) == []
    assert fresh.after(6) is None


def test_what_was_appended_is_found_by_where_one_stopped() -> None:
    found = filled(8, 10)
    assert [found.after(offset) for offset in (6, 7, 9, 10)] == [None, records(8, 10), records(10, 10), []]
    assert (found.top, found.start, found.complete) == (10, 7, False)


def test_what_is_handed_out_stays_as_it_was() -> None:
    found = filled(1, 3)
    before = found.after(0)
    found.extend([record(4)])
    assert before == records(1, 3)


def test_no_more_events_are_kept_than_allowed_and_the_last_ones_are() -> None:
    found = filled(1, KEEP_EVENTS)
    assert found.after(0) == records(1, KEEP_EVENTS)
    found.extend([record(KEEP_EVENTS + 1)])
    assert found.after(0) is None
    assert found.after(1) == records(2, KEEP_EVENTS + 1)


def test_once_there_is_no_space_nothing_more_of_the_past_is_looked_for() -> None:
    assert not filled(8, 7 + KEEP_EVENTS).complete
    assert filled(8, 8 + KEEP_EVENTS).complete


def test_no_more_characters_are_kept_than_allowed() -> None:
    half = KEEP_CHARACTERS // 2
    found = filled(1, 2, half)
    assert found.after(0) == records(1, 2, half)
    found.extend([record(3)])
    assert found.after(0) is None
    assert found.after(1) == [record(2, half), record(3)]


def test_an_event_that_is_too_big_isnt_kept_and_leaves_no_hole() -> None:
    found = filled(1, 3)
    found.extend([record(4, KEEP_CHARACTERS + 1)])
    assert (found.start, found.top, found.after(3), found.after(4)) == (4, 4, None, [])
    found.extend([record(5)])
    assert found.after(4) == [record(5)]


def test_the_past_is_put_before_what_is_here() -> None:
    found = filled(8, 9)
    found.prepend(records(3, 7))
    assert found.after(2) == records(3, 9)
    assert found.after(1) is None
    assert found.complete


def test_what_came_twice_is_kept_once() -> None:
    found = filled(8, 9)
    found.prepend(records(5, 9))
    assert found.after(4) == records(5, 9)


def test_a_past_that_does_not_reach_to_what_is_here_is_not_kept() -> None:
    found = filled(8, 9)
    found.prepend(records(3, 6))
    assert found.start == 7
    assert found.complete


def test_no_more_of_the_past_is_kept_than_there_is_space_for() -> None:
    found = filled(KEEP_EVENTS + 1, KEEP_EVENTS + 2)
    found.prepend(records(1, KEEP_EVENTS))
    assert found.start == 2
    big = filled(5, 5, KEEP_CHARACTERS - 1)
    big.prepend(records(1, 4))
    assert big.start == 3, "the last one may be over"
    big.extend([record(6)])
    assert big.start == 4


def test_what_is_forgotten_is_not_found_and_what_came_after_it_is() -> None:
    found = filled(1, 9)
    found.forget(6)
    assert [found.after(offset) for offset in (0, 5, 6, 9)] == [None, None, records(7, 9), []]
    found.forget(9)
    found.extend([record(10)])
    assert (found.after(8), found.after(9)) == (None, [record(10)])


def test_what_was_read_before_it_was_forgotten_is_not_kept() -> None:
    found = filled(8, 9)
    found.forget(5)
    assert not found.complete
    found.prepend(records(3, 7))
    assert (found.start, found.complete) == (5, True)


def test_when_all_that_is_missing_is_forgotten_nothing_more_is_looked_for() -> None:
    found = filled(8, 9)
    found.forget(7)
    assert found.complete


def test_what_is_forgotten_leaves_its_space_to_others() -> None:
    half = KEEP_CHARACTERS // 2
    found = filled(1, 2, half)
    found.forget(1)
    found.extend([record(3, half)])
    assert found.after(1) == [record(2, half), record(3, half)]


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "KEEP_EVENTS", 5)
    monkeypatch.setattr(recent, "KEEP_CHARACTERS", 20)


STEPS = st.lists(
    st.tuples(st.just("append"), st.integers(0, 25))
    | st.tuples(st.just("prepend"), st.integers(0, 12))
    | st.tuples(st.just("forget"), st.integers(0, 3)),
    max_size=30,
)


@pytest.mark.usefixtures("_small")
@PATIENT
@given(past=st.lists(st.integers(0, 25), max_size=10), steps=STEPS)
def test_whatever_is_known_is_the_end_of_the_log_and_bounded(past: list[int], steps: list[tuple[str, int]]) -> None:
    log = [record(offset, size) for offset, size in enumerate(past, 1)]
    found = Recent(len(log))
    forgotten = 0
    for step, number in steps:
        if step == "append":
            log.append(record(len(log) + 1, number))
            found.extend([log[-1]])
        elif step == "forget":
            forgotten = max(forgotten, len(log) - number)
            found.forget(len(log) - number)
        else:
            end = found.start
            found.prepend(log[max(0, end - number) : end])
        assert found.top == len(log)
        assert found.start >= forgotten
        assert found.after(found.start) == log[found.start :]
        assert len(log) - found.start <= 5
        assert sum(len(one.data) for one in log[found.start + 1 :]) <= 20, "all but the oldest"
        assert all(found.after(offset) is None for offset in range(found.start))
