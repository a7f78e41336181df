"""The chat as a tool: messages come as lines of standard input, what happens goes to standard output."""

import asyncio
import contextlib
import os
import stat
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final, TextIO

from chatserver.terminal.chat import Chat, Wanted
from chatserver.terminal.events import Event, State
from chatserver.terminal.lines import lines
from chatserver.terminal.text import one_line, shortened
from chatserver.terminal.wording import as_json, as_text, state, trouble

DONE: Final = 0
REFUSED: Final = 1
NOT_CONNECTED: Final = 3
NOBODY_READS: Final = 141
"""As a shell has it for a program that SIGPIPE has ended."""


async def run(wanted: Wanted, *, json: bool, patience: float) -> int:
    """Sends the lines of standard input, unless that is a terminal: then it listens until it is interrupted. Returns
    the exit status. `patience`: so many seconds without a connection are too many; 0: none are.
    """
    listens = sys.stdin is not None and sys.stdin.isatty()
    words = None if sys.stdout is None else as_json if json else as_text if listens else None
    given = lines(sys.stdin.fileno() if sys.stdin else None)
    return await Pipe(wanted, None if listens else given, words, patience).run()


class Pipe:
    """One run of the tool."""

    def __init__(
        self,
        wanted: Wanted,
        lines: AsyncIterator[str] | None,
        words: Callable[[Event], str | None] | None,
        patience: float,
    ) -> None:
        """`lines` are sent; None: it listens. `words` of an event are printed, if there are any."""
        self._lines = lines
        self._words = words
        self._seconds = patience
        self._timer: asyncio.TimerHandle | None = None
        self._state = State("connecting")
        self._end: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._chat = Chat(wanted, self._told)

    async def run(self) -> int:
        """Returns the exit status."""
        self._watch_connection(self._state)
        with _noticed(sys.stdout, self._nobody_reads) if self._words else contextlib.nullcontext():
            async with self._chat:
                work = asyncio.create_task(self._work())
                try:
                    await asyncio.wait({work, self._end}, return_when=asyncio.FIRST_COMPLETED)
                    return self._end.result() if self._end.done() else work.result()
                finally:
                    work.cancel()
                    await asyncio.gather(work, return_exceptions=True)
                    self._tell_unsent()

    async def _work(self) -> int:
        chat = self._chat
        await chat.visit.entered.wait()
        if self._lines is None:
            await chat.visit.out.wait()
        if chat.visit.out.is_set():
            return REFUSED
        assert self._lines is not None
        async for line in self._lines:
            await chat.say(line)
        await chat.outbox.emptied()
        if self._words:
            await chat.visit.reached(chat.outbox.last)
        return REFUSED if chat.outbox.refused else DONE

    def _told(self, event: Event) -> None:
        if isinstance(event, State):
            self._watch_connection(event)
            if event == self._state:
                return
            self._state = event
        if self._words is not as_json and (words := trouble(event)):
            _complain(words)
        if self._words and (words := self._words(event)):
            self._print(words)

    def _print(self, words: str) -> None:
        try:
            sys.stdout.write(words + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            self._nobody_reads()

    def _watch_connection(self, event: State) -> None:
        if event.state == "ended":
            self._finish(NOT_CONNECTED, state(event))
        elif event.state == "connected" and self._timer:
            self._timer.cancel()
            self._timer = None
        elif event.state == "connecting" and self._seconds and not self._timer:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._seconds, self._give_up)

    def _give_up(self) -> None:
        self._finish(NOT_CONNECTED, f"not connected for {self._seconds:g} s: {one_line(self._state.reason)}")

    def _nobody_reads(self) -> None:
        self._finish(NOBODY_READS)

    def _finish(self, status: int, reason: str = "") -> None:
        if not self._end.done():
            self._end.set_result(status)
            if reason:
                _complain(reason)

    def _tell_unsent(self) -> None:
        drafts = self._chat.outbox.drafts
        if drafts:
            _complain(f"not known to be sent, nor what follows it: {shortened(drafts[0].body)}")


@contextlib.contextmanager
def _noticed(stream: TextIO, gone: Callable[[], None]) -> Iterator[None]:
    """Calls `gone` as soon as nobody reads the pipe that `stream` is, also if there is nothing to print."""
    loop = asyncio.get_running_loop()
    is_pipe = stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
    if is_pipe:
        loop.add_reader(stream.fileno(), gone)
    try:
        yield
    finally:
        if is_pipe:
            loop.remove_reader(stream.fileno())


def _complain(words: str) -> None:
    print(f"chatserver chat: {words}", file=sys.stderr)
