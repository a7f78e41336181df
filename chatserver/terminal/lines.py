"""Lines of a file, a pipe or a terminal, while other things go on."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from concurrent.futures import CancelledError
from typing import Final

_CHUNK: Final = 65536


async def lines(descriptor: int | None) -> AsyncIterator[str]:
    """Each line, without its end; the last one may have none. What is no UTF-8 is replaced by signs. Without a
    `descriptor` there are no lines.

    A thread reads, as no loop can wait for a file; nobody waits for the thread, as a pipe may never end. It has read at
    most a chunk more than what was asked for.
    """
    if descriptor is None:
        return
    chunks: asyncio.Queue[bytes] = asyncio.Queue(1)
    arguments = (descriptor, chunks, asyncio.get_running_loop())
    threading.Thread(target=_read, args=arguments, daemon=True).start()
    rest = b""
    while chunk := await chunks.get():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield _text(line)
    if rest:
        yield _text(rest)


def _read(descriptor: int, chunks: asyncio.Queue[bytes], loop: asyncio.AbstractEventLoop) -> None:
    chunk = b"-"
    while chunk:
        try:
            chunk = os.read(descriptor, _CHUNK)
        except OSError:  # closed, or a terminal that is gone: there is no more
            chunk = b""
        put = chunks.put(chunk)
        try:
            asyncio.run_coroutine_threadsafe(put, loop).result()
        except (RuntimeError, CancelledError):  # the loop is closed, or will be at once
            put.close()
            return


def _text(line: bytes) -> str:
    return line.removesuffix(b"\r").decode(errors="replace")
