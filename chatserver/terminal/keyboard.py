"""What is typed into the screen: every key reaches it, whatever it does meanwhile."""

import contextlib
import os
import signal
from typing import Final

from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.input.vt100 import Vt100Input, cooked_mode
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

BINDINGS: Final = KeyBindings()


class Keyboard(Vt100Input):
    """Stays raw: prompt_toolkit lets the terminal itself take what is typed while something is printed, which makes
    Ctrl-D nothing and Ctrl-C a signal.
    """

    def cooked_mode(self) -> contextlib.AbstractContextManager[None]:
        """Nothing changes."""
        return contextlib.nullcontext()


@BINDINGS.add("c-z")
def suspend(event: KeyPressEvent) -> None:
    """Stops us, until the shell has us go on; it gets a terminal that takes whole lines."""

    def stop() -> None:
        with cooked_mode(event.app.input.fileno()):
            os.kill(0, signal.SIGTSTP)

    run_in_terminal(stop)
