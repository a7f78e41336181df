"""What was acknowledged survives the loss of power: a few cuts. `python -m tests.powercut.run` makes many."""

import os
from pathlib import Path

import pytest

from tests.powercut.disk import Disk, Record, check_log
from tests.powercut.run import Cuts, first_start, impossible, run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """For power cuts. Where there can't be any the test is skipped, but in CI it fails."""
    problem = impossible()
    if problem:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(problem)
    return tmp_path


@pytest.mark.parametrize("torn", [False, True])
async def test_what_was_acknowledged_survives_power_cuts(folder: Path, torn: bool) -> None:
    figures = await run(folder, 6, 1, torn=torn)
    assert not figures.problems(lossy=False), figures


async def test_a_store_that_is_less_synchronous_is_seen_to_lose_events(folder: Path) -> None:
    figures = await run(folder, 4, 1, "NORMAL")
    assert not figures.problems(lossy=True), figures


@pytest.mark.parametrize("torn", [False, True])
async def test_a_power_cut_at_any_moment_of_a_first_start_leaves_what_can_be_opened(folder: Path, torn: bool) -> None:
    assert await first_start(Cuts(folder, 1, torn=torn)) > 20


def test_only_what_was_synchronised_is_left() -> None:
    disk = Disk({"old": b"old"})
    disk.replay(
        [
            Record(b"O", 3, 0, b""),
            Record(b"O", 4, 0, b"a"),
            Record(b"W", 4, 0, b"safe"),
            Record(b"S", 4, 0, b""),
            Record(b"W", 4, 2, b"lost"),
        ]
    )
    assert disk.left(lambda: False) == {"old": b"old"}
    disk.replay([Record(b"S", 3, 0, b""), Record(b"U", -1, 0, b"old"), Record(b"T", 4, 1, b"")])
    assert disk.left(lambda: False) == {"old": b"old", "a": b"safe"}
    assert disk.left(lambda: True) == {"a": b"s"}


def test_sectors_survive_one_by_one() -> None:
    disk = Disk({"a": b"-" * 1536})
    disk.replay([Record(b"O", 3, 0, b"a"), Record(b"W", 3, 256, b"x" * 1024)])
    survives = iter([True, False, True])
    assert disk.left(lambda: next(survives)) == {"a": b"-" * 256 + b"x" * 256 + b"-" * 512 + b"x" * 256 + b"-" * 256}


def test_a_log_that_misses_a_write_is_noticed() -> None:
    records = [Record(b"O", 3, 0, b"a"), Record(b"W", 3, 0, b"xyz"), Record(b"W", 3, 3, b"!")]
    disk = Disk({})
    disk.replay(records)
    check_log(disk, records, {"a": b"xyz"})  # killed before it did what it wrote down last
    for files in ({"a": b"xYz!"}, {"a": b"xyz!", "b": b"b"}, {}):
        with pytest.raises(AssertionError, match="the log"):
            check_log(disk, records, files)
