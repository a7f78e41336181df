"""Runs clients of the Python SDK for tests/test_sdk.py: commands come as JSON lines, events go as JSON lines.

argv: the form (json or protobuf).
"""

import asyncio
import dataclasses
import json
import sys
from functools import partial
from typing import Any

import centrifuge  # type: ignore[import-not-found, unused-ignore]

PROTOBUF = sys.argv[1] == "protobuf"
NAMES = {
    "was_recovering": "wasRecovering",
    "num_clients": "numClients",
    "num_users": "numUsers",
    "conn_info": "connInfo",
    "chan_info": "chanInfo",
    "clients": "clients",
}
waiting: dict[str, "asyncio.Future[str]"] = {}


def encode(data: object) -> object:
    return json.dumps(data).encode() if PROTOBUF else data


def plain(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {NAMES.get(name, name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, bytes):
        return json.loads(value) if value else None
    if isinstance(value, Exception):
        return problem(value)
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def problem(error: Exception) -> dict[str, object]:
    return {"code": getattr(error, "code", 0), "message": str(error)}


def tell(event: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(plain(event)) + "\n")
    sys.stdout.flush()


def flat(context: object) -> dict[str, object]:
    """As the JavaScript SDK has it: the fields of a publication stand in its event."""
    found: dict[str, object] = plain(context)
    return found | plain(found.pop("pub", {}))  # type: ignore[no-any-return]


class Events:
    """Tells whatever it is called for."""

    def __init__(self, **names: object) -> None:
        self._names = names

    def __getattr__(self, name: str) -> Any:
        return partial(self._tell, name.removeprefix("on_"))

    async def _tell(self, event: str, context: object) -> None:
        tell({"event": event, **flat(context), **self._names})


async def ask(what: dict[str, object], *_: object) -> str:
    """Asks the test for a token, and waits for it."""
    name = f"ask-{len(waiting)}"
    waiting[name] = asyncio.get_running_loop().create_future()
    tell({"event": "token", "id": name, **what})
    token = await waiting[name]
    if not token:
        raise centrifuge.UnauthorizedError
    return token


class Driver:
    def __init__(self) -> None:
        self.clients: dict[str, Any] = {}

    async def connect(self, client: str, url: str, token: str = "", refresh: bool = False) -> None:
        made = self.clients[client] = centrifuge.Client(
            url,
            events=Events(who=client, server=True),  # type: ignore[arg-type, unused-ignore]
            token=token,
            get_token=partial(ask, {"who": client}) if refresh else None,
            use_protobuf=PROTOBUF,
            min_reconnect_delay=0.02,
            max_reconnect_delay=0.3,
        )
        await made.connect()

    async def subscribe(
        self, client: str, channel: str, token: str = "", refresh: bool = False, options: dict[str, bool] | None = None
    ) -> None:
        subscription = self.clients[client].new_subscription(
            channel,
            events=Events(who=client, channel=channel),
            token=token,
            get_token=partial(ask, {"who": client, "channel": channel}) if refresh else None,
            min_resubscribe_delay=0.02,
            max_resubscribe_delay=0.3,
            join_leave=bool((options or {}).get("joinLeave")),
        )
        await subscription.subscribe()

    async def unsubscribe(self, client: str, channel: str) -> None:
        await self.clients[client].get_subscription(channel).unsubscribe()

    async def resubscribe(self, client: str, channel: str) -> None:
        await self.clients[client].get_subscription(channel).subscribe()

    async def disconnect(self, client: str) -> None:
        await self.clients[client].disconnect()

    async def token(self, id: str, token: str) -> None:
        waiting[id].set_result(token)

    async def call(self, client: str, id: int, method: str, args: list[Any]) -> None:
        made = self.clients[client]
        try:
            if method in ("publish", "rpc"):
                result = await getattr(made, method)(args[0], encode(args[1]))
            elif method == "history":
                since = args[1].get("since")
                since = centrifuge.StreamPosition(**since) if since else None
                result = await made.history(args[0], args[1]["limit"], since, args[1].get("reverse", False))
            else:
                result = await (made.presence if method == "presence" else made.presence_stats)(args[0])
            tell({"id": id, "result": result})
        except Exception as error:
            tell({"id": id, "error": problem(error)})


async def main() -> None:
    driver, running = Driver(), set()
    reader = asyncio.StreamReader(limit=1 << 20)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        wanted = json.loads(line)
        task = asyncio.create_task(getattr(driver, wanted.pop("command"))(**wanted))
        running.add(task)
        task.add_done_callback(running.discard)


asyncio.run(main())
