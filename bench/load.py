"""Many clients, some of them sending, one that never reads: is a message lost, doubled or reordered?

python -m bench.load ws://localhost:8080/ws --clients 1000 --senders 10 --messages 100
"""

import argparse
import asyncio
import json
import socket
import sys
import time
from collections import defaultdict
from contextlib import AsyncExitStack

from aiohttp import ClientSession, ClientWebSocketResponse, TCPConnector
from yarl import URL


async def run(url: str, *, clients: int, senders: int, messages: int) -> list[str]:
    """Sends `messages` from each of `senders`; returns what went wrong, a line each."""
    stalled = await _connect_and_never_read(url)
    heard: list[list[str]] = [[] for _ in range(clients)]
    async with ClientSession(connector=TCPConnector(limit=0)) as session, AsyncExitStack() as stack:
        connect = (stack.enter_async_context(session.ws_connect(f"{url}?name=c{number}")) for number in range(clients))
        sockets = await asyncio.gather(*connect)
        listeners = (_listen(ws, heard[number], senders * messages) for number, ws in enumerate(sockets))
        talkers = (_talk(ws, number, messages) for number, ws in enumerate(sockets[:senders]))
        results = await asyncio.gather(*listeners, *talkers, return_exceptions=True)
    stalled.close()
    return [repr(result) for result in results if result] + check(heard, senders, messages)


async def _listen(ws: ClientWebSocketResponse, heard: list[str], count: int) -> None:
    while len(heard) < count:
        frame = json.loads(await ws.receive_str(timeout=60))
        if frame["type"] == 2:
            heard.append(frame["body"])


async def _talk(ws: ClientWebSocketResponse, number: int, messages: int) -> None:
    for count in range(messages):
        await ws.send_str(json.dumps({"type": 2, "body": f"{number}:{count}"}))
        await asyncio.sleep(0)


def check(heard: list[list[str]], senders: int, messages: int) -> list[str]:
    """What is wrong with what was heard: loss, doubles, disorder of one sender, and more than one order."""
    problems = []
    expected = [str(count) for count in range(messages)]
    for number, bodies in enumerate(heard):
        per_sender = defaultdict(list)
        for body in bodies:
            sender, _, count = body.partition(":")
            per_sender[sender].append(count)
        if any(per_sender[str(sender)] != expected for sender in range(senders)):
            problems.append(f"client {number} heard something else than was said")
        if bodies != heard[0]:
            problems.append(f"client {number} heard another order than client 0")
    return problems


async def _connect_and_never_read(url: str) -> socket.socket:
    parts = URL(url)
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await loop.sock_connect(sock, (parts.host, parts.port))
    await loop.sock_sendall(
        sock,
        f"GET {parts.path}?name=stalled HTTP/1.1\r\nHost: {parts.host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode(),
    )
    return sock


def main() -> int:
    """Exit status 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--senders", type=int, default=10)
    parser.add_argument("--messages", type=int, default=100, help="of each sender")
    given = parser.parse_args()
    started = time.monotonic()
    problems = asyncio.run(run(given.url, clients=given.clients, senders=given.senders, messages=given.messages))
    print(*problems, sep="\n")
    total = given.clients * given.senders * given.messages
    print(f"{total} deliveries in {time.monotonic() - started:.1f} s, {len(problems)} problems")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
