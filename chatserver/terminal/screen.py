"""The chat as a screen: what is said scrolls by above the line that is typed in."""

import asyncio
import sys
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, Final

from prompt_toolkit import PromptSession, print_formatted_text
from prompt_toolkit.formatted_text import FormattedText, StyleAndTextTuples
from prompt_toolkit.patch_stdout import patch_stdout
from prompt_toolkit.styles import Style

from chatserver.terminal.chat import Chat, Wanted
from chatserver.terminal.comings import Comings
from chatserver.terminal.events import Event, Moved, Said, State
from chatserver.terminal.keyboard import BINDINGS, Keyboard
from chatserver.terminal.link import Later, Refused
from chatserver.terminal.orders import HELP, Order, parse
from chatserver.terminal.text import colour, listed, one_line, shortened
from chatserver.terminal.wording import body_lines, clock, day, state, trouble

HISTORY: Final = 20
"""Messages that are shown at first, and by /history."""

FOLD_SECONDS: Final = 1.0
"""Who comes and goes within that time is told in one line."""

NAMES: Final = 100
"""That /who shows at most."""

_WAITING: Final = 3
"""Messages that aren't sent yet are shown up to that number."""

_STYLE: Final = Style.from_dict(
    {"dim": "ansibrightblack", "trouble": "ansired", "bottom-toolbar": "noreverse ansibrightblack"}
)


async def run(wanted: Wanted) -> int:
    """Returns the exit status: 0, 1 with messages that weren't sent, 3 if the server doesn't let us in, 130."""
    return await Screen(wanted).run()


class Screen:
    """One evening at the terminal."""

    def __init__(self, wanted: Wanted) -> None:
        self._name = wanted.name
        self._state = State("connecting")
        self._comings = Comings()
        self._day = ""
        self._lines: StyleAndTextTuples = []
        self._warned = False
        self._ended = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._session: PromptSession[str] = PromptSession(
            erase_when_done=True, input=Keyboard(sys.stdin), key_bindings=BINDINGS
        )
        history = HISTORY if wanted.history is None else wanted.history
        self._chat = Chat(replace(wanted, history=history), self._told, self._session.app.invalidate)

    async def run(self) -> int:
        """Until it is left, or ended by the server."""
        with patch_stdout(raw=True):
            async with self._chat:
                reading, ended = asyncio.create_task(self._read()), asyncio.create_task(self._ended.wait())
                await asyncio.wait({reading, ended}, return_when=asyncio.FIRST_COMPLETED)
                for task in (reading, ended, *self._tasks):
                    task.cancel()
                await asyncio.gather(reading, ended, *self._tasks, return_exceptions=True)
            self._flush()
        return 3 if reading.cancelled() else reading.result()

    async def _read(self) -> int:
        # In raw mode from the first line to the last: what is typed between two of them would be taken by the
        # terminal itself otherwise, which makes Ctrl-D nothing and Ctrl-C a signal.
        with self._session.input.raw_mode():
            while (status := await self._read_line()) is None:
                pass
        return status

    async def _read_line(self) -> int | None:
        """Returns the exit status, if that was to leave."""
        try:
            text = await self._session.prompt_async(
                self._prompt, bottom_toolbar=self._toolbar, style=_STYLE, handle_sigint=False
            )
        except KeyboardInterrupt:
            return None if self._session.default_buffer.text else 130
        except EOFError:
            text = "/quit"
        if not text.strip():
            return None
        order = parse(text)
        if order.name == "quit":
            return self._leave()
        self._warned = False
        self._start(self._obey(order))
        return None

    def _leave(self) -> int | None:
        """Returns the exit status, unless there is something to say first."""
        count = len(self._chat.outbox.drafts)
        if not count or self._warned:
            return 1 if count else 0
        self._warned = True
        self._note("trouble", f"not sent yet: {count}; leave all the same by /quit again")
        return None

    async def _obey(self, order: Order) -> None:
        try:
            match order.name:
                case "say":
                    await self._chat.say(order.argument)
                case "who":
                    names = sorted(member.name for member in await self._chat.members())
                    self._note("dim", f"{len(names)} here: {listed(names, NAMES)}")
                case "join":
                    await self._chat.join(order.argument)
                    self._note("dim", f"this is {one_line(order.argument)}")
                    self._day = ""
                case "history":
                    self._show_earlier(await self._chat.earlier(int(order.argument or HISTORY)))
                case "help":
                    self._note("dim", HELP)
                case _:
                    self._note("trouble", order.argument)
        except (Later, Refused) as error:
            self._note("trouble", f"/{order.name}: {one_line(str(error))}")

    def _show_earlier(self, messages: list[Said]) -> None:
        self._note("dim", f"{len(messages)} earlier messages:" if messages else "there are no earlier messages")
        for message in messages:
            self._show(message)
        if messages:
            self._note("dim", "these were earlier messages")

    # What is shown

    def _told(self, event: Event) -> None:
        if isinstance(event, State):
            self._state = event
            self._session.app.invalidate()
            if event.state == "ended":
                self._note("trouble", state(event))
                self._ended.set()
        elif isinstance(event, Said):
            self._tell_comings()
            self._show(event)
        elif isinstance(event, Moved):
            self._comings.add(event)
            self._start(self._tell_comings_soon())
        elif words := trouble(event):
            self._note("trouble", words)

    async def _tell_comings_soon(self) -> None:
        await asyncio.sleep(FOLD_SECONDS)
        self._tell_comings()

    def _tell_comings(self) -> None:
        if words := self._comings.told():
            self._note("dim", words)

    def _show(self, message: Said) -> None:
        if (today := day(message.time)) != self._day:
            self._day = today
            self._note("dim", today)
        name = one_line(message.name)
        self._print(
            ("class:dim", f"{clock(message.time)} "),
            (f"bold {colour(message.name)}", name),
            ("", f": {body_lines(message)}\n"),
        )

    def _note(self, style: str, words: str) -> None:
        self._print((f"class:{style}", f"- {words}\n"))

    def _print(self, *fragments: tuple[str, str]) -> None:
        """What comes at once is printed at once: for each time the line that is typed in is drawn anew."""
        if not self._lines:
            asyncio.get_running_loop().call_soon(self._flush)
        self._lines += fragments

    def _flush(self) -> None:
        lines, self._lines = self._lines, []
        if lines:
            print_formatted_text(FormattedText(lines), end="", style=_STYLE)

    def _prompt(self) -> StyleAndTextTuples:
        drafts = list(self._chat.outbox.drafts)
        shown: StyleAndTextTuples = [("class:dim", f"  ... {shortened(draft.body)}\n") for draft in drafts[:_WAITING]]
        if len(drafts) > _WAITING:
            shown.append(("class:dim", f"  ... and {len(drafts) - _WAITING} more\n"))
        return [*shown, ("", f"{one_line(self._chat.room)}> ")]

    def _toolbar(self) -> str:
        return f"{one_line(self._chat.room)} | {state(self._state)} | /help"

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
