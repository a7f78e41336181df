"""No descriptors left, and a storm of resets: small sizes."""

from tests.hostile import exhaustion
from tests.server import Server


async def test_who_is_in_stays_in_when_descriptors_run_out(server: Server) -> None:
    await exhaustion.starve(server, 400, seconds=1.2)


async def test_resets_at_every_stage_leave_nothing_behind(server: Server) -> None:
    await exhaustion.storm(server, 2000)
