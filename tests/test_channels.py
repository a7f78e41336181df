"""Which namespace a name is in, and who may do what there."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from chatserver.channels import Channel, Channels, Namespace, parse
from chatserver.errors import BadRequest, ChatError, NotAvailable, PermissionDenied, UnknownChannel

NOBODY = Namespace(subscribe="nobody", publish="nobody", history="nobody", presence="nobody")
OPEN = Namespace(publish="client", history="client", presence="client")
NAMESPACES = Channels({"closed": NOBODY, "open": OPEN, "known": Namespace(anonymous=False)})


def allowed(ask: Callable[..., None], *args: Any, **options: Any) -> bool | type[ChatError]:
    try:
        ask(*args, **options)
    except PermissionDenied:
        return False
    except ChatError as error:
        return type(error)
    return True


@pytest.mark.parametrize(
    ("name", "namespace", "private", "users"),
    [
        ("lobby", Namespace(), False, None),
        ("open:a:b", OPEN, False, None),
        ("$open:a", OPEN, True, None),
        ("$lobby", Namespace(), True, None),
        ("dm#ann,bob", Namespace(), False, ("ann", "bob")),
        ("open:dm#ann", OPEN, False, ("ann",)),
        ("dm#open:ann", Namespace(), False, ("open:ann",)),
        ("#ann", Namespace(), False, ("ann",)),
        ("$#ann#bob", Namespace(), True, ("ann#bob",)),
        ("dm#", Namespace(), False, ("",)),
    ],
)
def test_a_name_is_understood(name: str, namespace: Namespace, private: bool, users: tuple[str, ...] | None) -> None:
    assert NAMESPACES.find(name) == Channel(name, namespace, private, users)


@pytest.mark.parametrize("name", ["nowhere:x", "$nowhere:x", ":x", "Open:x", "open.:x"])
def test_a_namespace_has_to_be_known(name: str) -> None:
    with pytest.raises(BadRequest if name == ":x" else UnknownChannel):
        NAMESPACES.find(name)


@pytest.mark.parametrize("name", ["", " ", "a b", "a/b", "\u00e9", "$", "a" * 129, "a\n", "*"])
def test_what_cant_be_a_name_is_refused(name: str) -> None:
    with pytest.raises(BadRequest):
        NAMESPACES.find(name)


@pytest.mark.parametrize(
    ("name", "users"),
    [
        ("lobby", ["", "ann", "bob"]),
        ("closed:x", []),
        ("known:x", ["ann", "bob"]),
        ("$lobby", []),
        ("dm#ann", ["ann"]),
        ("dm#ann,bob", ["ann", "bob"]),
        ("dm#", []),
        ("known:x#bob", ["bob"]),
    ],
)
def test_who_may_become_a_member(name: str, users: list[str]) -> None:
    channel = NAMESPACES.find(name)
    assert [user for user in ("", "ann", "bob") if allowed(channel.check_subscribe, user)] == users
    assert all(allowed(channel.check_subscribe, user, token=True) for user in ("", "ann", "bob"))


@pytest.mark.parametrize("action", ["check_publish", "check_history", "check_presence"])
def test_who_may_do_something(action: str) -> None:
    def may(name: str, user: str, *, member: bool) -> bool | type[ChatError]:
        return allowed(getattr(NAMESPACES.find(name), action), user, member=member)

    never = False if action == "check_publish" else NotAvailable
    for user in ("", "ann"):
        assert [may("lobby", user, member=member) for member in (False, True)] == [False, True]
        assert [may("open:x", user, member=member) for member in (False, True)] == [True, True]
        assert [may("closed:x", user, member=member) for member in (False, True)] == [never, never]
        assert [may("$open:x", user, member=member) for member in (False, True)] == [False, True]
    assert [may("open:x#ann", user, member=False) for user in ("", "ann", "bob")] == [False, True, False]
    assert [may("known:x", user, member=True) for user in ("", "ann")] == [True, True]


def test_positions_are_told_where_history_is_read() -> None:
    assert [NAMESPACES.find(name).positioned for name in ("lobby", "closed:x")] == [True, False]
    assert [NAMESPACES.find(name).recoverable for name in ("lobby", "closed:x")] == [True, False]
    assert not Channels({"": Namespace(recovery="off")}).find("lobby").recoverable


def test_a_window_is_what_can_be_told() -> None:
    channel = Channels({"": Namespace(history_size=10, history_seconds=60)}).find("lobby")
    assert [channel.oldest(top) for top in (0, 9, 10, 11)] == [0, 0, 0, 1]
    assert channel.since(100) == 40_000
    assert (NAMESPACES.find("lobby").oldest(10), NAMESPACES.find("lobby").since(100)) == (0, 0)


def test_namespaces_are_read_from_json() -> None:
    channels = parse('{"": {"presence": "nobody"}, "news": {"publish": "nobody", "history_size": 100}}')
    assert channels.find("lobby").namespace == Namespace(presence="nobody")
    assert channels.find("news:today").namespace == Namespace(publish="nobody", history_size=100)
    assert parse("").find("lobby").namespace == Namespace()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "truncated"),
        ("[]", "Expected `object`"),
        ('{"a": {"publsih": "nobody"}}', "unknown field `publsih`"),
        ('{"a": {"publish": "everybody"}}', "Invalid enum value 'everybody'"),
        ('{"a": {"history_size": -1}}', "0 or more"),
        ('{"a": {"history_size": 1.5}}', "Expected `int`"),
        ('{"a b": {}}', "'a b' can't be a namespace"),
        ("[" * 5000, "allowed: a JSON object"),
    ],
)
def test_what_is_wrong_with_namespaces_is_told(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse(text)


def test_the_manual_has_every_option_with_its_default() -> None:
    manual = (Path(__file__).parents[1] / "docs" / "channels.md").read_text()
    documented = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", manual, re.MULTILINE))
    assert documented == {name: json.dumps(value) for name, value in msgspec.to_builtins(Namespace()).items()}
    example = re.search(r"```json\n(.*?)```", manual, re.DOTALL)
    assert example
    assert parse(example[1]).find("news:today").namespace.publish == "nobody"
