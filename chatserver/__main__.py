"""The command line: `chatserver COMMAND`, and `python -m chatserver COMMAND`, which is the same."""

import argparse
import importlib
import os
import signal
import sys
from typing import Final

from chatserver import __version__

COMMANDS: Final = {
    "serve": ("chatserver.commands", "run the server; it is what happens without a command, too"),
    "chat": ("chatserver.terminal.command", "chat in this terminal, or in a pipe"),
    "check": ("chatserver.commands", "print the settings in force, or what is wrong with them"),
    "token": ("chatserver.commands", "print a token, for development; it is made with TOKEN_HMAC_SECRET"),
}
"""Each with its module, of which no other command needs what it imports, and what it is for."""

_DEFAULT: Final = "serve"


def main() -> int:
    """Returns the exit status."""
    given = sys.argv[1:]
    if not given or (given[0].startswith("-") and given[0] not in ("-h", "--help", "--version")):
        given = [_DEFAULT, *given]
    module = importlib.import_module(COMMANDS.get(given[0], COMMANDS[_DEFAULT])[0])
    parser = argparse.ArgumentParser(prog="chatserver", description="A chat server, and a client for it.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, purpose) in COMMANDS.items():
        command = commands.add_parser(name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.")
        if name == given[0]:
            module.options(command, name)
    try:
        status: int = module.run(parser.parse_args(given))
        if sys.stdout:  # whoever started us may have closed it
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read what is printed has gone, as `head` does
        with open(os.devnull, "w") as nothing:  # or else Python would complain when it flushes at the end
            os.dup2(nothing.fileno(), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return status


if __name__ == "__main__":
    sys.exit(main())
