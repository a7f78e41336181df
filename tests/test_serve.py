"""`python -m chatserver`: addresses, TLS, sockets, health while it stops, restart, the command line."""

import asyncio
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme

from chatserver import __version__
from chatserver.config import FIELDS
from tests.commands import command
from tests.raw import RawClient
from tests.server import ROOT, Server, patched


def process(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m chatserver` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "chatserver", *arguments],
        env={"PATH": os.environ["PATH"], **env}, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def test_check_prints_the_settings_if_all_is_well() -> None:
    done = process("check")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.partition("=")[0] for line in done.stdout.splitlines()] == [*FIELDS]


def test_check_names_everything_that_is_wrong_in_one_go(tmp_path: Path) -> None:
    (tmp_path / "chat.env").write_text("PROT=80\nPORT=eighty\n")
    done = command("check", "--config", str(tmp_path / "chat.env"), LOG_LEVEL="loud")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "PROT: no such setting; did you mean PORT?",
        "PORT: 'eighty' is not a whole number; allowed: 0 to 65535",
        "LOG_LEVEL: 'loud' is not allowed; allowed: debug, info, warn, error",
    ]


def test_check_names_plugins_that_are_not_there() -> None:
    done = command("check", PLUGINS="nosuch")
    assert done.returncode == 2
    assert done.stderr.startswith("PLUGINS: no 'nosuch' is installed; installed: ")


def test_check_masks_secrets() -> None:
    done = command("check", TLS_KEY_PASSWORD="hush", PORT="81")
    assert done.returncode == 0
    assert "TLS_KEY_PASSWORD=***" in done.stdout.splitlines()
    assert "PORT=81" in done.stdout.splitlines()
    assert "hush" not in done.stdout + done.stderr


def test_options_stand_in_for_host_and_port() -> None:
    lines = command("check", "--host", "::1", "--port", "82", PORT="81").stdout.splitlines()
    assert "HOST=::1" in lines
    assert "PORT=82" in lines


@pytest.mark.parametrize("port", ["65536", "-1", "http"])
def test_an_option_is_checked_like_the_setting(port: str) -> None:
    done = command("check", "--port", port)
    assert done.returncode == 2
    assert "allowed: 0 to 65535" in done.stderr
    assert "Traceback" not in done.stderr


def test_check_tries_the_certificate() -> None:
    done = command("check", TLS_CERT="/nonexistent", TLS_KEY="/nonexistent")
    assert done.returncode == 2
    assert done.stderr.startswith("TLS_CERT, TLS_KEY: ")


def test_version() -> None:
    assert process("--version").stdout.strip() == __version__


async def test_an_address_in_use_is_one_line(server: Server, tmp_path: Path) -> None:
    server.start()
    (tmp_path / "second").mkdir()
    second = Server(tmp_path / "second")
    second.port = server.port
    second.start(wait=False)
    assert await asyncio.to_thread(second.wait) == 1
    (line,) = second.log
    assert (line["message"], "in use" in line["problem"]) == ("cannot listen", True)


async def test_a_certificate_that_cannot_be_read_is_one_line(server: Server) -> None:
    server.start(wait=False, TLS_CERT="/nonexistent", TLS_KEY="/nonexistent")
    assert await asyncio.to_thread(server.wait) == 1
    assert [line["message"] for line in server.log] == ["cannot listen"]


async def test_tls_with_an_encrypted_key(server: Server, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "plain.pem"))
    key = tmp_path / "key.pem"
    encrypt = [
        "openssl",
        "pkcs8",
        "-topk8",
        "-in",
        str(tmp_path / "plain.pem"),
        "-out",
        str(key),
        "-passout",
        "pass:hush",
    ]
    assert await (await asyncio.create_subprocess_exec(*encrypt)).wait() == 0
    (tmp_path / "password").write_text("hush\n")
    server.start(
        TLS_CERT=str(tmp_path / "cert.pem"), TLS_KEY=str(key), TLS_KEY_PASSWORD_FILE=str(tmp_path / "password")
    )
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with aiohttp.ClientSession() as session:
        url = f"wss://localhost:{server.port}/ws?name=alice"
        async with session.ws_connect(url, ssl=context) as ws:
            assert await ws.receive_json() == {"type": 1, "body": "alice connected"}
            server.signal(signal.SIGTERM)
            assert (await ws.receive()).data == 1001
    assert await asyncio.to_thread(server.wait) == 0
    assert "hush" not in server.stderr


async def test_a_unix_socket(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "sock"
    server.start(SOCKET=str(path), wait=False)
    await asyncio.to_thread(wait_for, server, "listening")
    client = RawClient(*await asyncio.open_unix_connection(str(path)))
    await client.upgrade("/ws?name=alice")
    assert await client.text() == '{"type":1,"body":"alice connected"}'
    server.signal(signal.SIGTERM)
    assert await client.until_closed() == 1001
    assert await asyncio.to_thread(server.wait) == 0
    assert not path.exists()


async def get(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> tuple[int, Any]:
    """GET on a connection that stays open."""
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = int(next(line for line in head.splitlines() if line.startswith("Content-Length")).split()[1])
    return int(head.split()[1]), json.loads(await reader.readexactly(length))


async def test_health_while_it_runs_and_while_it_stops(server: Server) -> None:
    server.start(*patched("from chatserver import pool", "pool.CLOSE_SECONDS = 30.0"))
    connection = await asyncio.open_connection("127.0.0.1", server.port)
    assert await get(*connection, "/healthz") == (200, {"status": "alive"})
    assert await get(*connection, "/readyz") == (200, {"status": "ready"})
    stubborn = await RawClient.connect(server.port)  # doesn't answer the close frame, which the drain waits for
    server.signal(signal.SIGTERM)
    while (frame := await stubborn.receive()) and frame.opcode != 8:
        continue
    assert await get(*connection, "/readyz") == (503, {"status": "draining"})
    assert await get(*connection, "/healthz") == (200, {"status": "alive"})
    with pytest.raises(OSError, match="Connect"):
        await RawClient.connect(server.port)
    connection[1].close()
    stubborn.abort()
    assert await asyncio.to_thread(server.wait) == 0


async def test_a_hangup_restarts_with_new_settings(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "chat.env"
    file.write_text("FEATURES=presence,http\n")
    server.start(CHAT_CONFIG=str(file))
    assert server.process
    client = await RawClient.connect(server.port, "/ws?name=alice")
    assert await client.text() == '{"type":1,"body":"alice connected"}'
    file.write_text("FEATURES=http\nNONSENSE=1\n")
    server.signal(signal.SIGHUP)
    await asyncio.to_thread(wait_for, server, "not restarted")
    client.say('{"type":2,"body":"still here"}')
    assert await client.text() == '{"type":2,"body":"still here"}'
    file.write_text("FEATURES=http\n")
    server.signal(signal.SIGHUP)
    assert await client.until_closed() == 1012
    await asyncio.to_thread(wait_for, server, "listening", 2)
    client = await RawClient.connect(server.port, "/ws?name=alice")
    assert await client.silent()
    client.abort()
    assert server.stop() == 0


def wait_for(server: Server, message: str, count: int = 1) -> None:
    """Returns when the log has so many lines with this message."""
    while len(server.events(message)) < count:
        assert server.process
        assert server.process.poll() is None, server.stderr
        time.sleep(0.02)


async def test_a_broken_standard_error_costs_nobody_a_connection(server: Server) -> None:
    server.start("sh", "-c", f"exec {sys.executable} -m chatserver 2>/dev/full")
    client = await RawClient.connect(server.port, "/ws?name=alice")
    assert await client.text() == '{"type":1,"body":"alice connected"}'
    server.signal(signal.SIGTERM)
    assert await client.until_closed() == 1001
    assert await asyncio.to_thread(server.wait) in (0, 120)  # 120 is Python's own word for the broken stream


async def test_the_log_tells_who_came_and_went(server: Server) -> None:
    server.start()
    alice = await RawClient.connect(server.port, "/ws?name=alice&from=CANARY")
    await alice.text()
    alice.say('{"type":2,"body":"CANARY"}')
    await alice.text()
    alice.say("CANARY")
    await alice.text()
    await alice.close()
    refused = await RawClient.connect(server.port, "/ws?token=CANARY", Origin="http://evil")
    assert refused.status == 403
    for path, offered in (("/ws?token=CANARY", ""), ("/ws", "chat, bearer.CANARY"), ("/ws", "bearer.CANARY")):
        offer = {"Sec-WebSocket-Protocol": offered} if offered else {}
        assert (await RawClient.connect(server.port, path, **offer)).status == 401
    assert server.stop() == 0
    (connected,), (disconnected,), (refusal, *unauthorized) = map(
        server.events, ("connected", "disconnected", "refused")
    )
    assert connected["user"] == "alice"
    assert connected["connection"] == disconnected["connection"]
    assert disconnected["logger"] == "chatserver.door"
    assert (disconnected["code"], disconnected["messages_in"], disconnected["messages_out"]) == (1000, 2, 3)
    assert 0 <= disconnected["seconds"] < 60
    assert (refusal["path"], refusal["status"]) == ("/ws", 403)
    assert [line["problem"] for line in unauthorized] == ["unauthorized"] * 3
    assert "CANARY" not in server.stderr
    assert not server.foreign
