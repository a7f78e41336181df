"""`chatserver chat` for tests: as a screen, in a pseudo-terminal, and as a tool."""

import asyncio
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pyte

COMMAND = (sys.executable, "-m", "chatserver", "chat")
IN_SHELL = ("setsid", "--wait", "--ctty", "sh", "-mc", '"$@"; stty -a; fg', "sh", *COMMAND)
"""As a job of a shell that, when it is stopped, shows how the terminal is set and has it go on."""

PATIENCE = 60.0
"""Seconds: whatever takes longer never happens."""

COLUMNS, LINES = 100, 60


def environment(**more: str) -> dict[str, str]:
    """Of a user with nothing special."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    return inherited | {"TERM": "xterm-256color", "LANG": "C.UTF-8", "LOGNAME": "ann"} | more


class _Screen(pyte.Screen):
    """What is shown; it answers what a program asks its terminal."""

    answer: Callable[[bytes], object]

    def write_process_input(self, data: str) -> None:
        self.answer(data.encode())


class Terminal:
    """A program in a terminal: what it shows, and what is typed."""

    def __init__(self, process: asyncio.subprocess.Process, master: int) -> None:
        self.process = process
        self.raw = b""
        self._master = master
        self._screen = _Screen(COLUMNS, LINES)
        self._screen.answer = lambda data: os.write(master, data)
        self._stream = pyte.ByteStream(self._screen)
        self._news = asyncio.Event()
        asyncio.get_running_loop().add_reader(master, self._read)

    @property
    def lines(self) -> list[str]:
        """Of what is shown, those that aren't empty."""
        return [line.rstrip() for line in self._screen.display if line.strip()]

    def type(self, *lines: str) -> None:
        """Each line, with the Enter key behind it."""
        for line in lines:
            self.press(f"{line}\r")

    def press(self, keys: str) -> None:
        """Just these keys."""
        os.write(self._master, keys.encode())

    async def until(self, true: Callable[[list[str]], object]) -> None:
        """Waits until that is true of the lines."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not true(self.lines):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError("\n".join(["not on the screen:", *self.lines])) from None

    async def shows(self, text: str) -> None:
        """Waits until there is a line with `text` in it."""
        await self.until(lambda lines: any(text in line for line in lines))

    async def ends(self) -> int:
        """The exit status."""
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()

    def takes_whole_lines(self, enough: threading.Event) -> bool:
        """Looks without a pause whether the program ever lets go of single keys; for a thread."""
        while not enough.is_set():
            if termios.tcgetattr(self._master)[3] & termios.ICANON:
                return True
        return False

    def close(self) -> None:
        """The terminal is closed."""
        asyncio.get_running_loop().remove_reader(self._master)
        os.close(self._master)

    def _read(self) -> None:
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the program has ended
            asyncio.get_running_loop().remove_reader(self._master)
            return
        self.raw += data
        self._stream.feed(data)
        self._news.set()


@asynccontextmanager
async def terminal(
    *arguments: str, command: tuple[str, ...] = COMMAND, stdout: int | None = None, env: Mapping[str, str] | None = None
) -> AsyncIterator[Terminal]:
    """`chatserver chat` in a terminal, but for `stdout`, if that is given."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    process = await asyncio.create_subprocess_exec(
        *command, *arguments, stdin=slave, stdout=slave if stdout is None else stdout, stderr=slave,
        env=environment(**(env or {})), start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    shown = Terminal(process, master)
    try:
        yield shown
    finally:
        shown.close()
        await _end(process)


@dataclass(frozen=True)
class Done:
    """What a tool did."""

    status: int
    out: list[str]
    err: list[str]


async def tool(*arguments: str, given: bytes = b"", env: Mapping[str, str] | None = None, **options: Any) -> Done:
    """Runs `chatserver chat` with `given` on standard input, to its end."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, env=environment(**(env or {})),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip
    try:
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate(given)
    finally:
        await _end(process)
    assert process.returncode is not None
    return Done(process.returncode, out.decode().splitlines(), err.decode().splitlines())


@asynccontextmanager
async def running_tool(*arguments: str, **options: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """The same, while it runs."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    process = await asyncio.create_subprocess_exec(*COMMAND, *arguments, env=environment(), **pipes)
    try:
        yield process
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()
    process._transport.close()  # type: ignore[attr-defined]
