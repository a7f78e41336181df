"""Message middlewares: what stands between a client's command and its handler."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
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


class Check(ABC):
    """A middleware of ours that does nothing but refuse: it waits for nothing, and is trusted."""

    @abstractmethod
    def check(self, command: Command, client: Client) -> None:
        """Raises `ChatError` or `Disconnect` if `client` may not have that done."""

    async def __call__(self, command: Command, client: Client, handler: Handler) -> Event | None:
        self.check(command, client)
        return await handler(command, client)


def checks(middlewares: list[Middleware]) -> Sequence[Check] | None:
    """All of `middlewares`, if they only check; None if one may do something else."""
    found = [middleware for middleware in middlewares if isinstance(middleware, Check)]
    return found if len(found) == len(middlewares) else None


def compose(middlewares: list[Middleware], handler: Handler, seconds: float) -> Handler:
    """`handler` behind `middlewares`, the first outermost, each guarded with a deadline of `seconds` of its own;
    but a `Check` isn't.
    """
    for middleware in reversed(middlewares):
        if isinstance(middleware, Check):
            handler = partial(middleware, handler=handler)
        else:
            handler = _guarded(middleware, handler, Guard(middleware, seconds, _check))
    return handler


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
