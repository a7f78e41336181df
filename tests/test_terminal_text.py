"""Texts of others in a terminal; events in words and as JSON; what is typed in."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatserver.terminal.comings import Comings
from chatserver.terminal.events import Event, Member, Missed, Moved, Problem, Said, State
from chatserver.terminal.orders import Order, parse
from chatserver.terminal.payloads import named, said
from chatserver.terminal.text import colour, harmless, listed, one_line, shortened
from chatserver.terminal.wording import as_json, as_text, trouble
from tests.fakes import PATIENT

ANYTHING = st.text(st.characters())  # surrogates included


@PATIENT
@given(ANYTHING)
def test_whatever_is_said_nothing_in_it_drives_a_terminal(text: str) -> None:
    for made in (harmless(text), one_line(text), shortened(text)):
        assert {unicodedata.category(sign) for sign in made.replace("\n", "")}.isdisjoint({"Cc", "Cs", "Zl", "Zp"})
        made.encode()
    assert "\n" not in one_line(text)


@PATIENT
@given(ANYTHING, ANYTHING)
def test_json_is_one_line_of_ascii(name: str, body: str) -> None:
    line = as_json(Said("r", "e", 1, 0, name, body))
    assert line.isascii()
    assert line.isprintable()
    assert (json.loads(line)["name"], json.loads(line)["body"]) == (name, body)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2J", "a\u241b[2J"),
        ("a\r\nb\tc", "a\nb    c"),
        ("a\rb", "a\u240db"),
        ("\x7f\x9b", "\u2421\ufffd"),
        ("abc\u202edef\u2066", "abc\ufffddef\ufffd"),
        ("\ud800", "\ufffd"),
        ("\U0001f469\u200d\U0001f4bb \u05d0\u0628", "\U0001f469\u200d\U0001f4bb \u05d0\u0628"),
    ],
)
def test_what_is_made_harmless_and_what_is_left_alone(text: str, shown: str) -> None:
    assert harmless(text) == shown


def test_a_name_keeps_its_colour() -> None:
    assert colour("ann") == colour("ann")
    assert len({colour(str(number)) for number in range(50)}) > 3


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], "nobody"),
        (["ann"], "ann"),
        (["ann", "bob", "ann"], "ann (2) and bob"),
        (["a", "b", "c"], "a, b and c"),
        (["a", "b", "c", "d", "e"], "a, b, c and 2 others"),
        (["a\nb"], "a\u2424b"),
    ],
)
def test_names_are_listed(names: list[str], text: str) -> None:
    assert listed(names, 3) == text


@pytest.mark.parametrize(
    ("moves", "text"),
    [
        ("+ann", "ann came"),
        ("+ann -bob +eve", "ann and eve came; bob left"),
        ("+ann -ann", ""),
        ("-ann +ann -ann", "ann left"),
        ("+ann +ann", "ann (2) came"),
    ],
)
def test_who_came_and_went_is_told_in_one_line(moves: str, text: str) -> None:
    comings = Comings()
    for move in moves.split():
        comings.add(Moved("r", 0, Member("c", move[1:]), came=move[0] == "+"))
    assert comings.told() == text
    assert comings.told() == ""


@pytest.mark.parametrize(
    ("user", "info", "client", "name"),
    [
        ("ann", {"name": "bob"}, "c0ffee123456", "ann"),
        ("", {"name": "bob"}, "c0ffee123456", "bob"),
        ("", {"name": 7}, "c0ffee123456", "guest-c0ffee"),
        ("", None, "c0ffee123456", "guest-c0ffee"),
        ("", [], "", "guest"),
    ],
)
def test_what_somebody_is_called(user: str, info: object, client: str, name: str) -> None:
    assert named(user, info, client) == name


@pytest.mark.parametrize(
    ("data", "body", "more", "text"),
    [
        ({"body": "hi"}, "hi", None, "hi"),
        ({"body": "hi", "to": 7}, "hi", {"body": "hi", "to": 7}, "hi"),
        ({"body": 7}, None, {"body": 7}, '{"body": 7}'),
        ([1, "\x1b"], None, [1, "\x1b"], '[1, "\\u001b"]'),
        (None, None, None, "null"),
    ],
)
def test_what_is_no_text_is_shown_as_json(data: object, body: str | None, more: object, text: str) -> None:
    message = said("r", "e", 1, 0, "ann", data)
    assert (message.body, message.data) == (body, more)
    assert as_text(message) == f"{as_text(said('r', 'e', 1, 0, 'ann', {'body': ''}))}{text}"


@pytest.mark.parametrize(
    ("event", "fields", "words"),
    [
        (
            Said("r", "e", 1, 2, "ann", "hi"),
            {"event": "message", "room": "r", "epoch": "e", "offset": 1, "time": 2, "name": "ann", "body": "hi"},
            None,
        ),
        (
            Said("r", "", 0, 2, "ann", None, [1]),
            {
                "event": "message",
                "room": "r",
                "epoch": None,
                "offset": None,
                "time": 2,
                "name": "ann",
                "body": None,
                "data": [1],
            },
            None,
        ),
        (
            Moved("r", 2, Member("c", "ann"), came=True),
            {"event": "join", "room": "r", "time": 2, "name": "ann", "client": "c"},
            None,
        ),
        (
            Moved("r", 2, Member("c", "ann"), came=False),
            {"event": "leave", "room": "r", "time": 2, "name": "ann", "client": "c"},
            None,
        ),
        (State("connected"), {"event": "state", "state": "connected", "reason": ""}, None),
        (
            State("connecting", "no\x1b"),
            {"event": "state", "state": "connecting", "reason": "no\x1b"},
            "not connected, trying: no\u241b",
        ),
        (
            Missed("r", 3, 5, "why"),
            {"event": "missed", "room": "r", "first": 3, "last": 5, "reason": "why"},
            "r: messages 3 to 5 can't be shown: why",
        ),
        (
            Missed("r", 3, 3, "why"),
            {"event": "missed", "room": "r", "first": 3, "last": 3, "reason": "why"},
            "r: message 3 can't be shown: why",
        ),
        (
            Missed("r", 0, 0, "why"),
            {"event": "missed", "room": "r", "first": None, "last": None, "reason": "why"},
            "r: what was said meanwhile can't be shown: why",
        ),
        (
            Problem(103, "no", "r"),
            {"event": "error", "room": "r", "code": 103, "reason": "no", "body": None},
            "r: no (103)",
        ),
        (
            Problem(414, "no", "r", "\x1b"),
            {"event": "error", "room": "r", "code": 414, "reason": "no", "body": "\x1b"},
            "not sent: \u241b: no (414)",
        ),
    ],
)
def test_events_as_json_and_trouble_in_words(event: Event, fields: dict[str, object], words: str | None) -> None:
    assert json.loads(as_json(event)) == fields
    assert trouble(event) == words


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("hi", Order("say", "hi")),
        ("  hi", Order("say", "  hi")),
        ("//who", Order("say", "/who")),
        ("/who", Order("who")),
        ("/who ", Order("who")),
        ("/join  a:b", Order("join", "a:b")),
        ("/history", Order("history")),
        ("/history 7", Order("history", "7")),
        ("/quit", Order("quit")),
        ("/help", Order("help")),
    ],
)
def test_what_is_typed_in(text: str, order: Order) -> None:
    assert parse(text) == order


@pytest.mark.parametrize(
    "text", ["/", "/ who", "/say", "/wrong", "/join", "/join a b", "/history x", "/history \u0661", "/quit now"]
)
def test_what_is_no_order(text: str) -> None:
    assert parse(text).name == "wrong"
