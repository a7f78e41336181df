"""What a process and its children have used, from /proc."""

import os
from pathlib import Path

_TICK = 1 / os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    """User and system time of the processes that are there now."""
    return sum(sum(map(int, _stat(each)[11:13])) for each in _tree(pid)) * _TICK


def rss_bytes(pid: int) -> int:
    """Memory that is resident. What the kernel keeps for sockets is not in it."""
    return sum(int(_stat(each)[21]) for each in _tree(pid)) * _PAGE


def _tree(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in _tree(int(child)))]


def _stat(pid: int) -> list[str]:
    """The fields from the third on: the name before them may have spaces."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
