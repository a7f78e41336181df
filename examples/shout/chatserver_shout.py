from aiohttp import web
from msgspec.structs import replace

from chatserver import Client, Command, Event, Handler


async def shout(command: Command, client: Client, handler: Handler) -> Event | None:
    return await handler(replace(command, body=command.body.upper()), client)


def setup(app: web.Application) -> None:
    app["chain"].append(shout)
