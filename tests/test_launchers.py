"""Each launcher as users start it: PORT, the same logs, the clients' close code, exit status and time."""

import asyncio
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.raw import RawClient
from tests.server import ROOT, Server

BIN = Path(sys.executable).parent

AIOHTTP = (sys.executable, "-m", "aiohttp.web", "chatserver.app:create_app")
CHATSERVER = (sys.executable, "-m", "chatserver")
GUNICORN = (str(BIN / "gunicorn"), "chatserver.app:create_app()", "-k", "aiohttp.GunicornUVLoopWebWorker")
ADEV = (str(BIN / "adev"), "runserver")
LAUNCHERS = {
    "aiohttp.web": AIOHTTP,
    "chatserver": CHATSERVER,
    "script": (str(BIN / "chatserver"), "serve"),
    "gunicorn": GUNICORN,
    "adev": ADEV,
    "adev chatserver": (*ADEV, "chatserver"),
}


@pytest.mark.parametrize("command", LAUNCHERS.values(), ids=LAUNCHERS.keys())
async def test_clients_chat_and_are_told_of_the_end(server: Server, command: tuple[str, ...]) -> None:
    server.start(*command)
    alice = await RawClient.connect(server.port, "/ws?name=alice&from=CANARY")
    assert await alice.text() == '{"type":1,"body":"alice connected"}'
    bob = await RawClient.connect(server.port, "/ws?name=bob")
    await alice.text()
    alice.say('{"type":2,"body":"SECRET"}')
    assert await alice.text() == '{"type":2,"body":"SECRET"}'
    server.signal(signal.SIGTERM)
    assert {await alice.until_closed(), await bob.until_closed()} == {1001}
    assert await asyncio.to_thread(server.wait) == 0
    events = {line["message"] for line in server.log if line["logger"] != "chatserver.access"}
    assert events - {"listening", "starting"} == {"connected", "disconnected", "drained"}
    assert not any("Traceback" in line for line in server.foreign)
    assert "CANARY" not in server.stderr + server.stdout
    assert "SECRET" not in server.stderr + server.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", [AIOHTTP, CHATSERVER], ids=["aiohttp.web", "chatserver"])
async def test_a_second_signal_ends_at_once_and_cleans_up(
    server: Server, command: tuple[str, ...], number: int
) -> None:
    server.start(*command, DRAIN_SECONDS="60")
    stalled = await RawClient.connect(server.port, "/ws?name=stalled")
    stalled.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await fill(server.port)
    server.signal(number)
    await asyncio.sleep(0.5)
    assert server.process
    assert server.process.poll() is None
    server.signal(number)
    assert await asyncio.to_thread(server.wait) == 0
    assert server.events("drained")[0]["aborted"] == 1


async def fill(port: int) -> None:
    """Says so much that who doesn't read has its buffers full, and not so much that it counts as slow."""
    talker = await RawClient.connect(port, "/ws?name=talker")
    await talker.text()
    for _ in range(18):
        talker.say('{"type":2,"body":"%s"}' % ("x" * 20_000))
        await talker.text()
    await talker.close()


async def test_a_stop_aborts_who_does_not_read(server: Server) -> None:
    server.start(DRAIN_SECONDS="2")
    stalled = await RawClient.connect(server.port, "/ws?name=stalled")
    stalled.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await fill(server.port)
    polite = await RawClient.connect(server.port, "/ws?name=polite")
    server.signal(signal.SIGTERM)
    assert await polite.until_closed() == 1001
    assert await asyncio.to_thread(server.wait) == 0
    (drained,) = server.events("drained")
    assert (drained["closed"], drained["aborted"]) == (1, 1)


@pytest.mark.parametrize(
    ("options", "variable"),
    [(("-P", "{port}"), "PORT_IS_NOT_SET"), (("--por={port}",), "PORT_IS_NOT_SET")],
)
async def test_an_explicit_port_wins_under_aiohttp_web(server: Server, options: tuple[str, ...], variable: str) -> None:
    server.start(*AIOHTTP, *(option.format(port=server.port) for option in options), port_variable=variable, PORT="1")
    assert (await RawClient.connect(server.port)).status == 101


async def test_a_path_under_aiohttp_web_opens_no_port(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "sock"
    server.start(*AIOHTTP, "-U", str(path), wait=False)
    for _ in range(500):
        if path.exists():
            break
        await asyncio.sleep(0.02)
    reader, writer = await asyncio.open_unix_connection(str(path))
    client = RawClient(reader, writer)
    await client.upgrade()
    assert client.status == 101
    with pytest.raises(OSError, match="Connect"):
        await RawClient.connect(server.port)


async def test_the_file_given_to_a_launcher_counts(server: Server, tmp_path: Path) -> None:
    (tmp_path / "chat.env").write_text(f"PORT={server.port}\nFEATURES=http\n")
    server.start(*AIOHTTP, "--config", str(tmp_path / "chat.env"), port_variable="PORT_IS_NOT_SET")
    client = await RawClient.connect(server.port)
    assert await client.silent()


@pytest.mark.parametrize("command", [AIOHTTP, CHATSERVER, ADEV], ids=["aiohttp.web", "chatserver", "adev"])
def test_wrong_settings_end_the_start(server: Server, command: tuple[str, ...]) -> None:
    server.start(*command, wait=False, LOG_LEVEL="loud", RATE_LIMIT="-1")
    if command is ADEV:  # stays, and waits for an edit
        deadline = time.monotonic() + 20
        while "RATE_LIMIT" not in server.stderr and time.monotonic() < deadline:
            time.sleep(0.05)
    else:
        assert server.wait() == 2
    lines = [line for line in server.stderr.splitlines() if not line.startswith("[")]
    assert lines == [
        "LOG_LEVEL: 'loud' is not allowed; allowed: debug, info, warn, error",
        "RATE_LIMIT: -1 is out of range; allowed: 0 to 1000000",
    ]


async def test_adev_reloads_on_an_edit(server: Server, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    shutil.copytree(ROOT / "chatserver", project / "chatserver")
    shutil.copy(ROOT / "app.py", project)
    server.start(*ADEV, cwd=project, PYTHONPATH=str(project))
    client = await RawClient.connect(server.port, "/ws?name=alice")
    assert await client.text() == '{"type":1,"body":"alice connected"}'
    protocol = project / "chatserver" / "protocol" / "simple.py"
    protocol.write_text(protocol.read_text().replace('"connected"', '"came in"'))
    assert await client.until_closed(30) == 1001
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            client = await RawClient.connect(server.port, "/ws?name=alice")
            break
        except OSError:
            await asyncio.sleep(0.05)
    assert await client.text() == '{"type":1,"body":"alice came in"}'


def test_gunicorn_and_adev_are_there() -> None:
    """A launcher that isn't installed would fail above; this says why."""
    assert os.access(GUNICORN[0], os.X_OK)
    assert os.access(ADEV[0], os.X_OK)
