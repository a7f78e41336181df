"""Peers that are gone without a word, and stalls of the server, at sizes for every day."""

import os

import pytest

from tests.hostile import dead_peers
from tests.server import Server


async def test_half_open_and_silent_peers_are_gone_after_two_heartbeats(server: Server) -> None:
    problem = dead_peers.possible()
    if problem:
        assert not os.environ.get("CI"), problem
        pytest.skip(problem)
    await dead_peers.half_open(server, peers=10, heartbeat=1.0, write_seconds=2.0)


async def test_a_stall_of_the_server_drops_nobody(server: Server) -> None:
    await dead_peers.stalls(server, healthy=50, window=1.0, stalls=1)
