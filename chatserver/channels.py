"""Channels: which namespace a room's name puts it in, and who may do what there. Pure values."""

import re
from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

import msgspec

from chatserver.errors import BadRequest, NotAvailable, PermissionDenied, UnknownChannel

ROOM_RULE: Final = (
    "1 to 128 of A-Z a-z 0-9 _ . : # @ , $ - are allowed, the first of them a letter, digit or #, or $ and one of these"
)
ROOM_PATTERN: Final = "([$][A-Za-z0-9#]|[A-Za-z0-9#][A-Za-z0-9_.:#@,$-]?)[A-Za-z0-9_.:#@,$-]{0,126}"

Who: TypeAlias = Literal["client", "subscriber", "nobody"]
"""Anybody who is connected; members of the room only; nobody."""

JoinLeave: TypeAlias = Literal["off", "asked", "always"]
Recovery: TypeAlias = Literal["off", "stream", "cache"]

_ROOM: Final = re.compile(ROOM_PATTERN)
_NAMESPACE: Final = re.compile("[A-Za-z0-9_.@-]{1,64}")


class Namespace(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What goes for all channels of a namespace."""

    subscribe: Literal["client", "nobody"] = "client"
    """Who becomes a member by asking. With a subscription token, or by the server's doing, anybody does."""
    publish: Who = "subscriber"
    history: Who = "subscriber"
    """Who may read it. With nobody, positions aren't told either."""
    history_size: int = 0
    """The last so many messages can be read; 0: all that are kept."""
    history_seconds: float = 0
    """Those not older can be read; 0: all that are kept."""
    recovery: Recovery = "stream"
    """What who comes back is told: all it missed, or (cache) the last message."""
    presence: Who = "subscriber"
    """Who may ask who is there."""
    join_leave: JoinLeave = "asked"
    """Who is told who comes and goes, by the Centrifuge protocol: nobody, who asks for it, or all."""
    delta: Literal["off", "fossil"] = "off"
    """Whether those who ask for it are told how a message differs from the one before."""
    anonymous: bool = True
    """Also those may come who have shown no token."""

    def __post_init__(self) -> None:
        if self.history_size < 0 or self.history_seconds < 0:
            raise ValueError("history_size and history_seconds are 0 or more")


class Channel(msgspec.Struct, frozen=True):
    """A room's name, understood."""

    name: str
    namespace: Namespace
    private: bool
    """`$…`: a subscription token is needed."""
    users: tuple[str, ...] | None
    """`…#a,b`: only these users; None: no such limit."""

    @property
    def positioned(self) -> bool:
        """Members are told positions."""
        return self.namespace.history != "nobody"

    @property
    def recoverable(self) -> bool:
        """Who comes back is told what it missed."""
        return self.positioned and self.namespace.recovery != "off"

    def oldest(self, top: int) -> int:
        """What came up to this offset isn't told any more, when `top` is the last one."""
        return max(0, top - self.namespace.history_size) if self.namespace.history_size else 0

    def since(self, now: float) -> float:
        """What came before this moment isn't told any more, in milliseconds since 1970; `now` is in seconds."""
        return 1000 * (now - self.namespace.history_seconds) if self.namespace.history_seconds else 0

    def check_subscribe(self, user: str, *, token: bool = False) -> None:
        """Raises `PermissionDenied` if `user`, empty for an anonymous one, may not become a member.

        `token`: a subscription token says that it may.
        """
        if token:
            return
        self._check_anonymous(user)
        if self.private or self.namespace.subscribe == "nobody" or not self._lists(user):
            raise PermissionDenied

    def check_publish(self, user: str, *, member: bool) -> None:
        """Raises `PermissionDenied` if `user` may not publish."""
        self._check(self.namespace.publish, user, member)

    def check_history(self, user: str, *, member: bool) -> None:
        """Raises `NotAvailable` if nobody reads history here, `PermissionDenied` if `user` doesn't."""
        if self.namespace.history == "nobody":
            raise NotAvailable
        self._check(self.namespace.history, user, member)

    def check_presence(self, user: str, *, member: bool) -> None:
        """Raises `NotAvailable` if nobody is told who is there, `PermissionDenied` if `user` isn't."""
        if self.namespace.presence == "nobody":
            raise NotAvailable
        self._check(self.namespace.presence, user, member)

    def _check(self, who: Who, user: str, member: bool) -> None:
        """What not everybody may join is for members only, whatever the namespace says."""
        if member and who != "nobody":
            return
        self._check_anonymous(user)
        if who != "client" or self.private or not self._lists(user):
            raise PermissionDenied

    def _check_anonymous(self, user: str) -> None:
        if not user and not self.namespace.anonymous:
            raise PermissionDenied

    def _lists(self, user: str) -> bool:
        return self.users is None or (user != "" and user in self.users)


class Channels:
    """All namespaces."""

    def __init__(self, namespaces: Mapping[str, Namespace] | None = None) -> None:
        """`namespaces` by name; that of channels without one has the empty name."""
        self._namespaces = {"": Namespace()} | dict(namespaces or {})

    def find(self, name: str) -> Channel:
        """The channel `name`. Raises `BadRequest` for what can't be a name, `UnknownChannel` for no known namespace."""
        if not is_room(name):
            raise BadRequest(f"room: {ROOM_RULE}")
        private = name.startswith("$")
        place, limited, users = name.removeprefix("$").partition("#")
        space, colon, _ = place.partition(":")
        namespace = self._namespaces.get(space if colon else "")
        if namespace is None:
            raise UnknownChannel
        return Channel(name, namespace, private, tuple(users.split(",")) if limited else None)


def is_room(text: str) -> bool:
    """`text` may be a room's name."""
    return _ROOM.fullmatch(text) is not None


_decode = msgspec.json.Decoder(dict[str, Namespace]).decode


def parse(text: str) -> Channels:
    """The namespaces in a JSON object, or none in an empty text. Raises `ValueError` with what is wrong."""
    if not text:
        return Channels()
    try:
        namespaces = _decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"{error}; allowed: a JSON object of namespaces, each an object of options") from None
    for name in namespaces:
        if name and not _NAMESPACE.fullmatch(name):
            raise ValueError(f"{name!r} can't be a namespace; allowed: 1 to 64 of A-Z a-z 0-9 _ . @ -")
    return Channels(namespaces)
