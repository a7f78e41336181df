"""Events in words, for people, and as JSON, for programs."""

import json
import time
from typing import Any

from chatserver.terminal.events import Event, Member, Missed, Moved, Problem, Said, State
from chatserver.terminal.payloads import text_of
from chatserver.terminal.text import harmless, one_line, shortened


def as_json(event: Event) -> str:
    """One line of ASCII: nothing in it drives a terminal."""
    return json.dumps(_fields(event))


def as_text(event: Event) -> str | None:
    """What happens in the room; None for what is trouble."""
    if isinstance(event, Said):
        return f"{clock(event.time)} {one_line(event.name)}: {body_lines(event)}"
    if isinstance(event, Moved):
        return f"{clock(event.time)} {one_line(event.member.name)} {'came' if event.came else 'left'}"
    return None


def trouble(event: Event) -> str | None:
    """What goes wrong; None for what doesn't, and for the end of it all."""
    if isinstance(event, Problem):
        what = one_line(event.room) if event.body is None else f"not sent: {shortened(event.body)}"
        return f"{what}: {one_line(event.text)} ({event.code})"
    if isinstance(event, Missed):
        return f"{one_line(event.room)}: {_range(event)} can't be shown: {event.reason}"
    if isinstance(event, State) and event.state == "connecting":
        return state(event) if event.reason else None
    return None


def state(event: State) -> str:
    """Of the connection."""
    words = {"connecting": "not connected, trying", "connected": "connected", "ended": "not connected"}[event.state]
    return f"{words}: {one_line(event.reason)}" if event.reason else words


def clock(moment: int) -> str:
    """The time of day here."""
    return time.strftime("%H:%M", time.localtime(moment / 1000))


def day(moment: int) -> str:
    """The date here."""
    return time.strftime("%A, %Y-%m-%d", time.localtime(moment / 1000))


def body_lines(message: Said) -> str:
    """The text, its lines below each other."""
    return harmless(text_of(message)).replace("\n", "\n      ")


def _range(missed: Missed) -> str:
    if not missed.last:
        return "what was said meanwhile"
    return f"message {missed.first}" if missed.first == missed.last else f"messages {missed.first} to {missed.last}"


def _fields(event: Event) -> dict[str, Any]:
    match event:
        case Said():
            place = {"room": event.room, "epoch": event.epoch or None, "offset": event.offset or None}
            more = {} if event.data is None else {"data": event.data}
            return {"event": "message", **place, "time": event.time, "name": event.name, "body": event.body, **more}
        case Moved(member=Member() as member):
            who = {"name": member.name, "client": member.client}
            return {"event": "join" if event.came else "leave", "room": event.room, "time": event.time, **who}
        case State():
            return {"event": "state", "state": event.state, "reason": event.reason}
        case Missed():
            places = {"first": event.first or None, "last": event.last or None}
            return {"event": "missed", "room": event.room, **places, "reason": event.reason}
        case Problem():
            return {"event": "error", "room": event.room, "code": event.code, "reason": event.text, "body": event.body}
