"""The vocabulary is made of values."""

from typing import get_args

import pytest
from msgspec.structs import replace

from chatserver.message import EVENTS, Changes, Command, Event, Joined, Left, Message, Notice, Publish, Refused

WORDS: list[Command | Event] = [
    Publish("hi"),
    Message("alice", "hi"),
    Joined("alice"),
    Left("alice"),
    Changes((Joined("alice"), Left("alice"))),
    Notice("hi"),
    Refused(400, "refused"),
]


@pytest.mark.parametrize("word", WORDS)
def test_words_are_equal_by_value_and_hashable(word: Command | Event) -> None:
    assert replace(word) == word
    assert len({word, replace(word)}) == 1


@pytest.mark.parametrize("word", WORDS)
def test_words_cannot_be_changed(word: Command | Event) -> None:
    with pytest.raises(AttributeError):
        setattr(word, word.__struct_fields__[0], "x")


def test_who_came_is_not_who_left() -> None:
    assert len(set(WORDS)) == len(WORDS)


def test_events_are_all_events() -> None:
    assert set(get_args(Event)) == set(EVENTS)
    assert not isinstance(Publish("hi"), EVENTS)
