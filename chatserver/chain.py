"""Message middlewares: what stands between a client's command and its handler."""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from chatserver.client import Client
from chatserver.guard import Call, Guard
from chatserver.message import EVENTS, Command, Event

Handler: TypeAlias = Callable[[Command, Client], Awaitable[Event | None]]
"""Does what a command asks for. What it returns is told to the client that asked."""

Middleware: TypeAlias = Callable[[Command, Client, Handler], Awaitable[Event | None]]
"""Changes the command, refuses it (`raise ChatError`), answers without calling on, or acts on the reply:

    async def shout(command, client, handler):
        return await handler(replace(command, body=command.body.upper()), client)
"""


def compose(middlewares: list[Middleware], handler: Handler, seconds: float) -> Handler:
    """`handler` behind `middlewares`, the first outermost, each guarded with a deadline of `seconds` of its own."""
    for middleware in reversed(middlewares):
        handler = _guarded(middleware, handler, Guard(middleware, seconds))
    return handler


def _guarded(middleware: Middleware, handler: Handler, guard: Guard) -> Handler:
    async def guarded(command: Command, client: Client) -> Event | None:
        if not guard.on:
            return await handler(command, client)
        async with Call(guard) as call:

            async def onward(command: Command, client: Client) -> Event | None:
                return await call.onward(handler(command, client))

            return _checked(await middleware(command, client, onward))

    return guarded


def _checked(reply: object) -> Event | None:
    if reply is None or isinstance(reply, EVENTS):
        return reply
    raise TypeError(f"returned {type(reply).__name__}, not an event or None")
