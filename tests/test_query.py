"""The grammars of what requests name: what is accepted is what is documented, and nothing else."""

import string
from collections.abc import Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import example, given
from hypothesis import strategies as st
from yarl import URL

from chatserver import query
from chatserver.channels import ROOM_RULE, is_room
from chatserver.message import Position
from tests.fakes import PATIENT

LETTERS = string.ascii_letters + string.digits
NASTY = "\n\r\t\0\x0b\x1b\x7f\x85\xa0 \u2028\u200b\u202e\xdf\u0430\uff21/\\%?&+,;'\"<*$"
NASTY += "\N{ARABIC-INDIC DIGIT THREE}\N{SUPERSCRIPT TWO}"
USER, ROOM, OFFSET = LETTERS + "_.-", LETTERS + "_.:#@,$-", string.digits


def texts(alphabet: str, most: int) -> st.SearchStrategy[str]:
    """What may be accepted, what is nearly so, and anything."""
    good = st.text(alphabet, min_size=1, max_size=most)
    spoiled = st.builds(lambda a, b, c: a + b + c, st.just("") | good, st.sampled_from(NASTY), st.just("") | good)
    long = st.text(alphabet, min_size=most - 1, max_size=most + 2)
    return good | spoiled | long | st.text()


def follows(text: str, alphabet: str, most: int, first: str = LETTERS) -> bool:
    """The documented rule: so many at most, of these, and the first one of those."""
    return 1 <= len(text) <= most and set(text) <= set(alphabet) and text[0] in first


def is_position(text: str) -> bool:
    """`OFFSET` or `EPOCH:OFFSET`."""
    epoch, colon, offset = text.rpartition(":")
    hexadecimal = string.digits + "abcdef"
    return follows(offset, OFFSET, 15) and (not colon or follows(epoch, hexadecimal, 64))


def request(name: str, value: str) -> web.Request:
    return make_mocked_request("GET", str(URL.build(path="/ws", query={name: value})))


def accepts(read: Callable[[web.Request], object], name: str, value: str) -> bool:
    try:
        read(request(name, value))
    except web.HTTPBadRequest as answer:
        assert answer.text
        assert answer.text.startswith(f"{name}: ")
        return False
    return True


@PATIENT
@given(texts(USER, 32))
@example("bob\n")
@example("b" * 32)
@example("b" * 33)
@example("")
def test_users_are_those_of_the_grammar(text: str) -> None:
    assert query.is_user(text) == follows(text, USER, 32)


@pytest.mark.parametrize("text", ["a", "Zoë", "J. R. R.", "क्\u200dष", "👩\u200d🚀", "<b>", "🫨", "x" * 32])
def test_names_of_those_without_a_token(text: str) -> None:
    assert query.is_name(text)


NAMELESS = [
    "",
    " ",
    " a",
    "a ",
    "x" * 33,
    "a\nb",
    "a\tb",
    "\0",
    "\u200d",
    "a\u202eb",
    "a\u00a0b",
    "a\u2028b",
    "\ufeffa",
    "\ud800",
]


@pytest.mark.parametrize("text", NAMELESS, ids=ascii)
def test_what_nobody_may_be_called(text: str) -> None:
    assert not query.is_name(text)


ABOUT = [
    ('{"name":"Zoë"}', "Zoë"),
    (b'{"name":"a","more":1}', "a"),
    ("", ""),
    ("{}", ""),
    ('{"name":7}', ""),
    ("[", ""),
    (b'"\xff"', ""),
    ("[" * 9999, ""),
]


@pytest.mark.parametrize(("about", "name"), ABOUT)
def test_a_name_in_what_is_known_of_somebody(about: str | bytes, name: str) -> None:
    assert query.called(about) == name


@PATIENT
@given(texts(ROOM, 128))
@example("room\n")
@example("$")
@example("$a")
@example("$$a")
@example("#a")
@example("$" + "r" * 127)
@example("$" + "r" * 128)
@example("r" * 128)
@example("r" * 129)
@example("")
def test_rooms_are_those_of_the_grammar(text: str) -> None:
    whole = follows(text, ROOM, 128, LETTERS + "#$")
    assert is_room(text) == (whole and follows(text.removeprefix("$"), ROOM, 128, LETTERS + "#"))


@PATIENT
@given(st.text(min_size=1, max_size=40))
def test_no_name_has_what_cant_be_seen_or_can_be_mistaken(text: str) -> None:
    if is_room(text) or query.is_user(text):
        assert text.isascii()
        assert text.isprintable()
        assert not set(text) & set(string.whitespace + "/\\%\"'<>&")


POSITIONS = texts(OFFSET, 15) | st.builds(lambda a, b: f"{a}:{b}", texts("0123456789abcdef", 64), texts(OFFSET, 15))


@PATIENT
@given(POSITIONS)
@example("1\n")
@example("abc:1\n")
@example("1\N{ARABIC-INDIC DIGIT THREE}")
@example("abc\n:1")
@example(":1")
@example("abc:")
@example("9" * 15)
@example("9" * 16)
def test_positions_are_those_of_the_grammar(text: str) -> None:
    if is_position(text):
        epoch, _, offset = text.rpartition(":")
        assert query.position(text) == Position(epoch, int(offset))
    else:
        with pytest.raises(ValueError, match="offset"):
            query.position(text)


@PATIENT
@given(st.text("0123456789abcdef", min_size=1, max_size=64), st.integers(0, 10**15 - 1))
def test_a_position_is_read_as_it_is_written(epoch: str, offset: int) -> None:
    assert query.position(str(Position(epoch, offset))) == Position(epoch, offset)


@PATIENT
@given(texts(ROOM, 128))
def test_requests_name_what_the_grammars_have(text: str) -> None:
    assert accepts(query.user, "name", text) == (not text or query.is_user(text))
    assert accepts(query.room, "room", text) == (not text or is_room(text))
    assert accepts(query.after, "after", text) == (not text or is_position(text))


@PATIENT
@given(texts(OFFSET, 15) | st.integers(0, 10**15 - 1).map(str))
@example("1000")
@example("1001")
@example("-1")
@example("1\N{ARABIC-INDIC DIGIT THREE}")
@example("1\n")
def test_a_history_is_a_number_and_clamped(text: str) -> None:
    allowed = not text or follows(text, OFFSET, 15)
    assert accepts(query.history, "history", text) == allowed
    if text and allowed:
        assert query.history(request("history", text)) == min(int(text), query.HISTORY)


def test_who_names_nothing_is_a_guest_in_the_lobby_who_asks_for_no_history() -> None:
    nothing = make_mocked_request("GET", "/ws")
    assert query.is_user(query.user(nothing))
    assert query.user(nothing) != query.user(nothing)
    assert (query.room(nothing), query.after(nothing), query.history(nothing)) == ("lobby", None, 0)


def test_the_rules_say_what_the_grammars_have() -> None:
    """`A-Z a-z 0-9 _ . -`, and how many of them."""
    for rule, alphabet, most in ((query.USER_RULE, USER, 32), (ROOM_RULE, ROOM, 128)):
        count, _, rest = rule.partition(" of A-Z a-z 0-9 ")
        assert count == f"1 to {most}"
        assert sorted(LETTERS + "".join(rest.partition(" are")[0].split())) == sorted(alphabet)
