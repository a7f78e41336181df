"""What others say and are called, made fit for a terminal, which takes some characters for orders."""

import re
import zlib
from typing import Final

_UNFIT: Final = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Control characters but the line feed; what can't be seen, or turns around what stands beside it; halves of
characters. The joiners that emoji and some scripts need aren't among them."""

_LONG: Final = 60

_COLOURS: Final = ("ansired", "ansigreen", "ansiyellow", "ansiblue", "ansimagenta", "ansicyan")


def harmless(text: str) -> str:
    """`text` with a sign in place of each character that could drive a terminal or deceive its reader."""
    return _UNFIT.sub(_sign, text.replace("\r\n", "\n").replace("\t", "    "))


def one_line(text: str) -> str:
    """The same, line feeds included."""
    return harmless(text).replace("\n", "\N{SYMBOL FOR NEWLINE}")


def shortened(text: str) -> str:
    """The same, and not longer than a line should be."""
    return one_line(text if len(text) <= _LONG else text[:_LONG] + "\N{HORIZONTAL ELLIPSIS}")


def colour(name: str) -> str:
    """The same for the same name, everywhere and always."""
    return _COLOURS[zlib.crc32(name.encode(errors="replace")) % len(_COLOURS)]


def listed(names: list[str], most: int) -> str:
    """`ann, bob and carol`; of more than `most` so many, and how many others there are."""
    counts = dict.fromkeys(names, 0)
    for name in names:
        counts[name] += 1
    told = [f"{one_line(name)} ({count})" if count > 1 else one_line(name) for name, count in counts.items()]
    if len(told) > most:
        told = [*told[:most], f"{len(told) - most} others"]
    return " and ".join(filter(None, [", ".join(told[:-1]), told[-1]])) if told else "nobody"


def _sign(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\N{SYMBOL FOR DELETE}" if code == 0x7F else "\N{REPLACEMENT CHARACTER}"
