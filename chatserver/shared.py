"""Work that many wait for and that is done once."""

import asyncio
from collections.abc import Awaitable, Callable


class Shared:
    """Runs `work` once at a time: who asks while it runs waits for that run. Its exceptions go to all who wait."""

    __slots__ = ("_task", "_work")

    def __init__(self, work: Callable[[], Awaitable[None]]) -> None:
        self._work = work
        self._task: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        """The run that is going on, or a new one."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())
            self._task.add_done_callback(_retrieve)
        return self._task

    async def done(self) -> None:
        """Returns when the run is over; whoever is cancelled doesn't cancel it for the others."""
        await asyncio.shield(self.start())

    @property
    def running(self) -> bool:
        return self._task is not None

    async def stop(self) -> None:
        """Cancels the run that is going on."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        try:
            await self._work()
        finally:
            self._task = None


def _retrieve(task: asyncio.Task[None]) -> None:
    """Nobody may have waited."""
    if not task.cancelled():
        task.exception()
