"""Where it was measured."""

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import chatserver
from bench.process import CORES, LOAD_CORES, SERVER_CORES
from bench.servers import Server
from chatserver.fanout import prepare


def versions(servers: Sequence[Server]) -> dict[str, str]:
    """Of the machine, and of everything that takes part."""
    found = {
        "processor": f"{_processor()}, {len(CORES)} to use",
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "chatserver": chatserver.__version__,
        "uvloop": _uvloop(),
        "io_uring": "may be used" if prepare() else "may not be used, so ours is slower",
    }
    for server in servers:
        found |= server.versions()
    return found


def cores() -> str:
    """Who runs where."""
    if SERVER_CORES == LOAD_CORES:
        return "One core only: server and generator share it, so rates and latencies say little."
    return f"The server runs on core {min(SERVER_CORES)}, the generator on core {min(LOAD_CORES)}."


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _uvloop() -> str:
    try:
        return version("uvloop")
    except PackageNotFoundError:
        return "not installed"
