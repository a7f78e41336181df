"""A real server process for tests, and the log lines that it wrote."""

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = itertools.cycle(range(10_000 + 500 * (_WORKER % 40), 10_500 + 500 * (_WORKER % 40)))
"""Of this process of the test run alone, and below those from which the kernel takes any for a client."""


def free_port() -> int:
    """A TCP port that nobody uses, nor will while a server that was killed is away."""
    for port in _PORTS:
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise AssertionError("a cycle has no end")


def patched(*statements: str) -> tuple[str, str, str]:
    """`python -m chatserver`, in a process that runs these statements first: for what it has no setting for."""
    main = ("import runpy", 'runpy.run_module("chatserver", run_name="__main__", alter_sys=True)')
    return sys.executable, "-c", "\n".join([*statements, *main])


class Server:
    """One process. `start` returns when it listens on `port`; `stop` returns its exit status."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Of its WebSocket endpoint."""
        return f"ws://127.0.0.1:{self.port}/ws"

    def start(
        self, *argv: str, cwd: Path = ROOT, port_variable: str = "PORT", wait: bool = True, **env: str
    ) -> "Server":
        """Starts `argv` (default: `python -m chatserver`) with `PORT` and `env` in its environment."""
        command = argv or (sys.executable, "-m", "chatserver")
        inherited = {
            name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "PYTHONPATH")
        }
        # A process started many times over shouldn't compile the world each time, whatever the machine's own setting.
        own = {
            "PYTHONWARNINGS": "default",
            "STORE_URL": f"sqlite:///{self.folder}/chat.db",
            "SSL_CERT_FILE": os.devnull,  # nobody needs those of the machine, which take aiohttp a while to read
            "AIO_AUX_PORT": str(free_port()),  # of adev, which has a second one
        }
        environ = inherited | own | {port_variable: str(self.port)} | env
        with (self.folder / "stderr").open("ab") as stderr, (self.folder / "stdout").open("ab") as stdout:
            self.process = subprocess.Popen(
                command, cwd=cwd, env=environ, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
                start_new_session=True,
            )  # fmt: skip
        if wait:
            self.wait_port()
        return self

    def wait_port(self, seconds: float = 60) -> None:
        """Returns when something listens."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process
            assert self.process.poll() is None, self.stderr
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        raise TimeoutError(f"nothing listens on {self.port}: {self.stderr}")

    def stop(self, number: int = signal.SIGTERM, seconds: float = 60) -> int:
        """Sends a signal, and waits for the end."""
        self.signal(number)
        return self.wait(seconds)

    def signal(self, number: int) -> None:
        """Sends a signal."""
        assert self.process
        self.process.send_signal(number)

    def wait(self, seconds: float = 60) -> int:
        """The exit status."""
        assert self.process
        return self.process.wait(seconds)

    def kill(self) -> None:
        """Ends whatever is left of it."""
        if self.process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    @property
    def stderr(self) -> str:
        """All it has written to standard error."""
        return (self.folder / "stderr").read_text()

    @property
    def stdout(self) -> str:
        """All it has written to standard output."""
        return (self.folder / "stdout").read_text()

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines of its log."""
        return [json.loads(line) for line in self.stderr.splitlines() if line.startswith("{")]

    @property
    def foreign(self) -> list[str]:
        """Lines on standard error that are none of the log: those of launchers that aren't ours."""
        return [line for line in self.stderr.splitlines() if not line.startswith("{")]

    @property
    def problems(self) -> list[dict[str, Any]]:
        """Errors and tracebacks in the log; that the loop was blocked may be the fault of other tests."""
        bad = (line for line in self.log if line["level"] == "ERROR" or "traceback" in line)
        return [line for line in bad if line["message"] != "loop blocked"]

    def events(self, message: str) -> list[dict[str, Any]]:
        """The lines of its log with this message."""
        return [line for line in self.log if line["message"] == message]
