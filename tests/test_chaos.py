"""A server that is killed and restarted under load keeps its promises: short runs."""

from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.history import History
from tests.chaos.run import Outcome, Run, demands
from tests.postgres import Postgres


@pytest.mark.timeout(120)
async def test_promises_are_kept_over_crashes_with_sqlite(tmp_path: Path) -> None:
    outcome = await Run(tmp_path, seconds=6, seed=1).run()
    assert outcome.problems() == []


@pytest.mark.timeout(120)
async def test_promises_are_kept_over_crashes_with_postgresql(tmp_path: Path, postgres: Postgres) -> None:
    outcome = await Run(tmp_path, seconds=6, seed=1, postgres=postgres).run()
    assert outcome.problems() == []


def outcome(wrong: list[str], **counts: int) -> Outcome:
    return Outcome(1800, Counter(demands(1800)) | Counter(receipts=1) | Counter(counts), History(), wrong)


def test_a_run_with_enough_of_everything_counts() -> None:
    assert outcome([]).problems() == []
    assert demands(1800)["kills"] == 100
    assert demands(1800)["acks"] == 300_000


@pytest.mark.parametrize("name", ["kills", "cuts", "resumes", "acks", "receipts"])
def test_a_run_with_too_little_fails(name: str) -> None:
    few = outcome([])
    few.counts[name] -= 1
    assert few.problems() == [f"too few {name}: {few.counts[name]}"]


def test_a_run_with_a_broken_promise_fails() -> None:
    assert outcome(["a broken promise"]).problems() == ["a broken promise"]
