"""SIGTERM in the middle of a busy room: a small size."""

from tests.hostile import drain
from tests.server import Server


async def test_a_shutdown_loses_nothing_that_was_published(server: Server) -> None:
    await drain.run(server, rounds=2, clients=60, stalled=5, drain_seconds=2)
