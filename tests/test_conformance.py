"""The Autobahn cases against our transport, behind an echo handler that exists here only."""

import asyncio
import json
import sys
from pathlib import Path

from aiohttp import web
from aiohttp.test_utils import TestServer

from chatserver import frames
from chatserver.errors import Disconnect
from chatserver.transport import HANDED_OVER, WebSocketTransport
from chatserver.turnstile import Turnstile

NON_STRICT = {"6.4.1", "6.4.2", "6.4.3", "6.4.4"}
"""Invalid UTF-8 is noticed at a message's end, not at the fragment in which it stands; the RFC allows either."""


async def echo(request: web.Request) -> web.StreamResponse:
    """Sends each message back, and closes as the server does."""
    transport = WebSocketTransport(0, Turnstile(1), binary=True)
    transport.accept(request)
    try:
        while True:
            message = await transport.receive()
            encode = frames.text if isinstance(message, str) else frames.binary
            transport.write(encode(message.encode() if isinstance(message, str) else message))
            await transport.drained()
    except Disconnect as end:
        transport.write(frames.close(end))
    await transport.finish(lambda: True)
    return HANDED_OVER


CASES = [f"{group}.*" for group in (1, 2, 3, 4, 5, 6, 7, 9, 10)]


async def test_autobahn_cases(tmp_path: Path) -> None:
    """In a process of its own: kosoku replaces modules of others in the one that imports it."""
    app = web.Application()
    app.router.add_get("/", echo)
    async with TestServer(app) as server:
        options = [option for case in CASES for option in ("--include", case)]
        options += ["--mode", "fuzzingclient", "--parallelism", "4", "--outdir", str(tmp_path)]
        kosoku = str(Path(sys.executable).with_name("kosoku"))
        quiet = asyncio.subprocess.DEVNULL
        run = await asyncio.create_subprocess_exec(kosoku, f"127.0.0.1:{server.port}", *options, stdout=quiet)
        await run.wait()
    (cases,) = json.loads((tmp_path / "index.json").read_text()).values()
    behaviors = {name: case["behavior"] for name, case in cases.items()}
    assert len(behaviors) == 301
    assert set(behaviors.values()) <= {"OK", "NON-STRICT", "INFORMATIONAL"}
    assert {name for name, behavior in behaviors.items() if behavior == "NON-STRICT"} <= NON_STRICT
    assert {case["behaviorClose"] for case in cases.values()} <= {"OK", "INFORMATIONAL"}
