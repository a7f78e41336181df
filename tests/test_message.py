"""The vocabulary is made of values."""

import dataclasses
from typing import get_args

import pytest

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
    assert dataclasses.replace(word) == word
    assert len({word, dataclasses.replace(word)}) == 1


@pytest.mark.parametrize("word", WORDS)
def test_words_cannot_be_changed(word: Command | Event) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(word, dataclasses.fields(word)[0].name, "x")


def test_who_came_is_not_who_left() -> None:
    assert len(set(WORDS)) == len(WORDS)


def test_events_are_all_events() -> None:
    assert set(get_args(Event)) == set(EVENTS)
    assert not isinstance(Publish("hi"), EVENTS)
