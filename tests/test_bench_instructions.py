"""Instruction counts: what whole runs have in common cancels out."""

from pathlib import Path

import pytest

from bench.instructions import Costs, costs, drive
from bench.process import started
from bench.servers import SERVERS


def test_costs_are_those_that_differ() -> None:
    def count(members: int, messages: int) -> float:
        return 1_000_000 + members * 700 + messages * (50 + members * 3)

    assert costs(count) == pytest.approx(Costs(delivery=3, message=50, connection=700))


def test_a_server_can_be_driven(tmp_path: Path) -> None:
    with started(SERVERS[0].command, tmp_path, SERVERS[0].env) as (port, _):
        drive(port, members=3, messages=2)
