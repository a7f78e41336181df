"""Floods of tiny frames and messages, at sizes for every day."""

import pytest

from tests.hostile import floods
from tests.server import Server

SLACK = 10.0
"""Times the targets: who was forgotten waits for longer still, and a busy machine's tests fail for no other reason."""


@pytest.mark.parametrize("kind", floods.FLOODS)
async def test_a_flooder_is_closed_and_a_bystander_hardly_notices(server: Server, kind: str) -> None:
    figures = await floods.run(server, seconds=0.5, kinds=kind, counts="1", slack=SLACK)
    connections = figures[f"{kind} 1 connections"]
    assert isinstance(connections, int)
    assert connections >= 1


# Whole messages only flood a server that is fast enough to take more of them than RATE_LIMIT allows.
@pytest.mark.parametrize("kind", ["pings", "byte_fragments", "bad_json"])
async def test_of_ten_flooders_each_is_closed(server: Server, kind: str) -> None:
    await floods.run(server, seconds=0.5, kinds=kind, counts="10", slack=SLACK)
