"""Who came and who went within a while, in a few words."""

from typing import Final

from chatserver.terminal.events import Moved
from chatserver.terminal.text import listed

_MOST: Final = 5
"""Names at most; a crowd is a number."""


class Comings:
    """Those since the last time that it was told. Who came and went, or went and came back, isn't among them."""

    def __init__(self) -> None:
        self._balance: dict[str, int] = {}

    def add(self, moved: Moved) -> None:
        """Counts it."""
        name = moved.member.name
        self._balance[name] = self._balance.get(name, 0) + (1 if moved.came else -1)

    def told(self) -> str:
        """In words; empty if all are as before."""
        came = [name for name, count in self._balance.items() for _ in range(count)]
        left = [name for name, count in self._balance.items() for _ in range(-count)]
        self._balance.clear()
        words = [f"{listed(names, _MOST)} {verb}" for names, verb in ((came, "came"), (left, "left")) if names]
        return "; ".join(words)
