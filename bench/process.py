"""Server processes: fresh, on a free port, on a core of their own."""

import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]

START_SECONDS = 120
"""Under valgrind it takes twenty of them."""

CORES = sorted(os.sched_getaffinity(0))
SERVER_CORES = {CORES[0]}
LOAD_CORES = {CORES[1]} if len(CORES) > 1 else SERVER_CORES


def environment() -> dict[str, str]:
    """In which this checkout is what is imported."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return os.environ | {"PYTHONPATH": path}


@contextmanager
def started(command: Sequence[str], folder: Path, env: Mapping[str, str]) -> Iterator[tuple[int, int]]:
    """Runs a server that listens where PORT says, in `folder`; its port and process. Raises `RuntimeError`."""
    port = _free_port()
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            command, cwd=folder, env=environment() | dict(env) | {"PORT": str(port)}, stdin=subprocess.DEVNULL,
            stderr=stderr, start_new_session=True, preexec_fn=_prepare,
        )  # fmt: skip
    try:
        if not _listens(port, process):
            raise RuntimeError(f"{' '.join(command)} doesn't listen: {(folder / 'stderr').read_text()[-1000:]}")
        yield port, process.pid
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _prepare() -> None:
    os.sched_setaffinity(0, SERVER_CORES)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _listens(port: int, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.02)
    return False
