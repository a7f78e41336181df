"""The Autobahn cases against our transport, behind an echo handler that exists here only."""

import kosoku
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from chatserver import frames
from chatserver.errors import Disconnect
from chatserver.transport import WebSocketTransport

NON_STRICT = {"6.4.1", "6.4.2", "6.4.3", "6.4.4"}
"""Invalid UTF-8 is noticed at a message's end, not at the fragment in which it stands; the RFC allows either."""


async def echo(request: web.Request) -> web.StreamResponse:
    """Sends each message back, and closes as the server does."""
    transport = WebSocketTransport(0, binary=True)
    await transport.prepare(request)
    try:
        while True:
            message = await transport.receive()
            encode = frames.text if isinstance(message, str) else frames.binary
            transport.write(encode(message.encode() if isinstance(message, str) else message))
            await transport.drained()
    except Disconnect as end:
        transport.write(frames.close(end))
    await transport.finish(lambda: True)
    return transport.response


CASES = [f"{group}.*" for group in (1, 2, 3, 4, 5, 6, 7, 9, 10)]


@pytest.mark.timeout(240)
async def test_autobahn_cases() -> None:
    app = web.Application()
    app.router.add_get("/", echo)
    async with TestServer(app) as server:
        results = await kosoku.run_fuzzingclient(f"ws://127.0.0.1:{server.port}/", CASES, concurrency=4)
    behaviors = {result.case_id: result.behavior.value for result in results}
    assert len(behaviors) == 301
    assert set(behaviors.values()) <= {"OK", "NON-STRICT", "INFORMATIONAL"}
    assert {case for case, behavior in behaviors.items() if behavior == "NON-STRICT"} <= NON_STRICT
    assert {result.behavior_close.value for result in results} <= {"OK", "INFORMATIONAL"}
