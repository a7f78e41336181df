"""What the server tells, as events."""

import json
from collections.abc import Mapping
from typing import Any

from chatserver.terminal.events import Said


def named(user: str, info: Any, client: str) -> str:
    """What to call somebody: as a token says, or as they say themselves."""
    own = info.get("name") if isinstance(info, Mapping) else None
    return user or (own if isinstance(own, str) and own else f"guest-{client[:6]}" if client else "guest")


def said(room: str, epoch: str, offset: int, time: int, name: str, data: Any) -> Said:
    """A message whose payload is `data`."""
    body = data.get("body") if isinstance(data, Mapping) else None
    text = body if isinstance(body, str) else None
    more = None if text is not None and len(data) == 1 else data
    return Said(room, epoch, offset, time, name, text, more)


def stored(room: str, epoch: str, message: Mapping[str, Any]) -> Said:
    """A message as the procedure `history` has it."""
    info = message["info"]
    name = named(info["user"], info.get("conn_info"), info["client"]) if info else message["user"] or "server"
    return said(room, epoch, message["offset"], message["time"], name, message["data"])


def text_of(message: Said) -> str:
    """What there is to read: its text or, if it has none, all that was said."""
    return message.body if message.body is not None else json.dumps(message.data, ensure_ascii=False)
