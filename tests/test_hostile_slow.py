"""Clients that don't read, at a size for every day."""

from tests.hostile import slow_readers
from tests.server import Server


async def test_slow_readers_are_dropped_and_cost_nobody_else_anything(server: Server) -> None:
    await slow_readers.run(server, slow=12, readers=4, megabytes=5.0, write_seconds=2.0)
