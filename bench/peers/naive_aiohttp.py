"""aiohttp, in a loop over all members."""

import asyncio
import json
import os

from aiohttp import WSMsgType, web

try:
    from uvloop import new_event_loop as new_loop
except ImportError:
    new_loop = asyncio.new_event_loop  # type: ignore[assignment]

members: set[web.WebSocketResponse] = set()


async def handle(request: web.Request) -> web.WebSocketResponse:
    """One member."""
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    members.add(ws)
    try:
        async for frame in ws:
            if frame.type == WSMsgType.TEXT:
                await broadcast(json.dumps({"type": 2, "body": json.loads(frame.data)["body"]}))
    finally:
        members.discard(ws)
    return ws


async def broadcast(text: str) -> None:
    """Sends to each, one after the other."""
    for ws in list(members):
        try:
            await ws.send_str(text)
        except ConnectionError:
            members.discard(ws)


if __name__ == "__main__":
    app = web.Application()
    app.router.add_get("/ws", handle)
    web.run_app(app, host="127.0.0.1", port=int(os.environ["PORT"]), access_log=None, print=None, loop=new_loop())
