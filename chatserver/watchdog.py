"""Names whoever blocks the event loop, while it does so."""

import asyncio
import logging
import sys
import threading
import time
from types import FrameType
from typing import Final

from chatserver.context import report

logger = logging.getLogger(__name__)

BEAT_SECONDS: Final = 0.1
BLOCKED_SECONDS: Final = 0.5
"""A loop that hasn't turned for so long is blocked."""


class Watchdog:
    """A thread that watches the loop's clock. What blocks can't be stopped from outside, but it can be named."""

    def __init__(self) -> None:
        self._beat = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._loop_thread = threading.get_ident()

    async def run(self) -> None:
        """Watches the running loop until it is cancelled."""
        self._loop_thread = threading.get_ident()
        self._beat = time.monotonic()
        self._thread.start()
        try:
            while True:
                await asyncio.sleep(BEAT_SECONDS)
                self._beat = time.monotonic()
        finally:
            self._stop.set()

    def _watch(self) -> None:
        named = 0.0
        while not self._stop.wait(BEAT_SECONDS):
            beat = self._beat
            blocked = time.monotonic() - beat
            if blocked > BLOCKED_SECONDS and beat != named:
                named = beat
                frame = sys._current_frames().get(self._loop_thread)
                report(logger, logging.ERROR, "loop blocked", plugin=_culprit(frame), where=_place(frame))


def _culprit(frame: FrameType | None) -> str | None:
    """The function that our code, or the loop, called last and that hasn't come back; None if it is neither's fault."""
    called = None
    while frame:
        module = str(frame.f_globals.get("__name__"))
        if module.startswith(("chatserver.", "asyncio.")):
            return called
        called = f"{module}.{frame.f_code.co_qualname}"
        frame = frame.f_back
    return called


def _place(frame: FrameType | None) -> str | None:
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else None
