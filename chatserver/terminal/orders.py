"""What is typed into the screen: a message, or an order that begins with a slash."""

import re
from dataclasses import dataclass
from typing import Final

HELP: Final = """what begins with a slash isn't said:
  /who          who is here
  /join ROOM    leave this room for another one
  /history [N]  the N messages before those shown so far
  /quit         leave; Ctrl-D does it, too, and Ctrl-C
  //...         say something that begins with a slash"""

_ARGUMENTS: Final = {"who": "", "join": r"\S+", "history": r"|\d{1,3}", "quit": "", "help": ""}


@dataclass(frozen=True, slots=True)
class Order:
    """`name` is that of the order; `say`, or `wrong` with the reason as its argument."""

    name: str
    argument: str = ""


def parse(text: str) -> Order:
    """What `text` asks for."""
    if not text.startswith("/") or text.startswith("//"):
        return Order("say", text.removeprefix("/"))
    name, _, argument = text[1:].rstrip().partition(" ")
    argument = argument.strip()
    if name not in _ARGUMENTS:
        return Order("wrong", "there is no such order; /help names those there are, // says it")
    if not re.fullmatch(_ARGUMENTS[name], argument, re.ASCII):
        return Order("wrong", f"/{name} is used in another way; see /help")
    return Order(name, argument)
