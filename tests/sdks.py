"""The published client SDKs of the Centrifuge protocol, each in a process of its own."""

import asyncio
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent / "sdk"
CACHE = Path(__file__).parents[1] / ".cache"
PATIENCE = 30.0
"""Seconds: whatever takes longer never happens."""


@dataclass(frozen=True)
class Sdk:
    """One version of one SDK in one form."""

    language: str
    version: str
    form: str

    def __str__(self) -> str:
        return f"{self.language}-{self.version}-{self.form}"

    def packages(self) -> Path:
        """A folder with the SDK, installed there if it isn't yet."""
        return npm_packages() if self.language == "js" else _pip_packages(self.version)

    def command(self) -> tuple[list[str], dict[str, str]]:
        """What runs its driver, with its environment."""
        packages = self.packages()
        if self.language == "python":
            return [sys.executable, str(FOLDER / "driver.py"), self.form], {"PYTHONPATH": str(packages)}
        wanted = json.loads((FOLDER / "package.json").read_text())["dependencies"]
        name = next(name for name, version in wanted.items() if version.rpartition("@")[2] == self.version)
        return [_node(), str(FOLDER / "driver.mjs"), str(packages), name, self.form], {}

    def running(self, program: Path) -> tuple[list[str], dict[str, str]]:
        """What runs a program that uses the SDK, with its environment."""
        packages = self.packages()
        if self.language == "python":
            return [sys.executable, str(program)], {"PYTHONPATH": str(packages)}
        (program.parent / "node_modules").symlink_to(packages / "node_modules")
        return [_node(), str(program)], {}


NEW_JS, OLD_JS, NEW_PY, OLD_PY = "5.8.0", "5.4.0", "0.7.0", "0.6.0"
ALL = [Sdk(language, version, form) for language, version, form in (
    ("js", NEW_JS, "json"), ("js", NEW_JS, "protobuf"), ("js", OLD_JS, "json"),
    ("python", NEW_PY, "json"), ("python", NEW_PY, "protobuf"), ("python", OLD_PY, "json"),
)]  # fmt: skip


class Driver:
    """A process with clients of one SDK, and what they told so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []
        self._news = asyncio.Event()
        self._ids = itertools.count(1)
        self._reading = asyncio.create_task(self._read())

    def do(self, command: str, **what: Any) -> None:
        """Has the driver do something."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"command": command, **what}).encode() + b"\n")

    async def call(self, client: str, method: str, *args: Any) -> dict[str, Any]:
        """Calls a method of a client; `result` or `error`."""
        number = next(self._ids)
        self.do("call", client=client, id=number, method=method, args=args)
        return await self.told(lambda event: event.get("id") == number)

    async def told(self, wanted: Callable[[dict[str, Any]], bool], after: int = 0) -> dict[str, Any]:
        """The first event, after so many, that is wanted."""
        async with asyncio.timeout(PATIENCE):
            while True:
                for event in self.events[after:]:
                    if wanted(event):
                        return event
                self._news.clear()
                await self._news.wait()

    async def event(self, name: str, after: int = 0, **fields: Any) -> dict[str, Any]:
        """The first event with that name and those fields."""
        expected = {"event": name, **fields}
        try:
            return await self.told(lambda event: event | expected == event, after)
        except TimeoutError:
            raise AssertionError(f"no {expected} among {self.events[after:]}") from None

    def all(self, name: str, **fields: Any) -> list[dict[str, Any]]:
        """The events with that name and those fields."""
        return [event for event in self.events if event | {"event": name, **fields} == event]

    def signal(self, number: int) -> None:
        """Sends a signal to the process."""
        self.process.send_signal(number)

    def stop(self) -> None:
        """Listens no more."""
        self._reading.cancel()

    async def _read(self) -> None:
        assert self.process.stdout
        while line := await self.process.stdout.readline():
            self.events.append(json.loads(line))
            self._news.set()


@asynccontextmanager
async def driver(sdk: Sdk) -> AsyncIterator[Driver]:
    """A driver for `sdk`."""
    async with _process(*await asyncio.to_thread(sdk.command)) as process:
        driver = Driver(process)
        try:
            yield driver
        finally:
            driver.stop()


@asynccontextmanager
async def program(sdk: Sdk, path: Path, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A program that uses `sdk`, while it runs."""
    command, own = await asyncio.to_thread(sdk.running, path)
    async with _process(command, own | environment) as process:
        yield process


@asynccontextmanager
async def _process(command: list[str], environment: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=inherited | environment, limit=1 << 24
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]


def _node() -> str:
    found = shutil.which("node")
    if not found or not shutil.which("npm"):
        (pytest.fail if os.environ.get("CI") else pytest.skip)("node and npm are needed")
    return found


def npm_packages() -> Path:
    """A folder with the packages of package-lock.json."""
    _node()
    name = f"npm-{hashlib.sha256((FOLDER / 'package-lock.json').read_bytes()).hexdigest()[:12]}"
    with _once(name) as folder:
        if folder:
            for file in ("package.json", "package-lock.json"):
                shutil.copy(FOLDER / file, folder)
            _run("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", cwd=folder)
    return CACHE / name


def _pip_packages(version: str) -> Path:
    name = f"pip-{version}-{sys.version_info[0]}.{sys.version_info[1]}"
    with _once(name) as folder:
        if folder:
            _run(_python_with_pip(), "-m", "pip", "install", "-q", "-t", str(folder), f"centrifuge-python=={version}")
    return CACHE / name


def _python_with_pip() -> str:
    """Of the same version as this one, whose environment may have none."""
    base: str = getattr(sys, "_base_executable", sys.executable)
    return sys.executable if find_spec("pip") else base


@contextmanager
def _once(name: str) -> Iterator[Path | None]:
    """A folder to be filled, or None if that was done before; one that was left half filled is filled anew.

    Who comes while another process fills it waits.
    """
    done = CACHE / name / ".done"
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done.exists():
            yield None
            return
        shutil.rmtree(CACHE / name, ignore_errors=True)
        (CACHE / name).mkdir()
        yield CACHE / name
        done.touch()


def _run(*command: str, cwd: Path | None = None) -> None:
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
