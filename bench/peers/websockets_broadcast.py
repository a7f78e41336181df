"""websockets, with its `broadcast`."""

import asyncio
import json
import os

from websockets.asyncio.server import ServerConnection, broadcast, serve

try:
    from uvloop import new_event_loop as new_loop
except ImportError:
    new_loop = asyncio.new_event_loop  # type: ignore[assignment]

members: set[ServerConnection] = set()


async def handle(ws: ServerConnection) -> None:
    """One member."""
    members.add(ws)
    try:
        async for message in ws:
            broadcast(members, json.dumps({"type": 2, "body": json.loads(message)["body"]}))
    finally:
        members.discard(ws)


async def main() -> None:
    """Serves for ever."""
    async with serve(handle, "127.0.0.1", int(os.environ["PORT"])) as server:
        await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
