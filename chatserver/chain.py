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
    """`handler` behind `middlewares`, the first outermost, each guarded with a deadline of `seconds` of its own.

    One of ours, which waits for nothing and is trusted, says so by the attribute `trusted`, and is called as it is.
    """
    for middleware in reversed(middlewares):
        if getattr(middleware, "trusted", False):
            handler = _direct(middleware, handler)
        else:
            handler = _guarded(middleware, handler, Guard(middleware, seconds, _check))
    return handler


def _direct(middleware: Middleware, handler: Handler) -> Handler:
    def direct(command: Command, client: Client) -> Awaitable[Event | None]:
        return middleware(command, client, handler)

    return direct


def _guarded(middleware: Middleware, handler: Handler, guard: Guard) -> Handler:
    async def guarded(command: Command, client: Client) -> Event | None:
        if not guard.on:
            return await handler(command, client)
        call = Call(guard)

        def onward(command: Command, client: Client) -> Awaitable[Event | None]:
            return call.onward(handler(command, client))

        return await call.run(middleware, command, client, onward)

    return guarded


def _check(reply: object) -> None:
    if reply is not None and not isinstance(reply, EVENTS):
        raise TypeError(f"returned {type(reply).__name__}, not an event or None")
