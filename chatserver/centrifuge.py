"""`/connection/websocket`: the Centrifuge client protocol, which existing client SDKs speak."""

import contextlib
from typing import Final

from aiohttp import web

from chatserver import frames
from chatserver.bucket import Limit
from chatserver.config import CONFIG
from chatserver.door import Door
from chatserver.keys import DOOR, SESSIONS
from chatserver.procedures import PROCEDURES
from chatserver.protocol.centrifuge import Json, Protobuf
from chatserver.session import Form, Session
from chatserver.sessions import Sessions
from chatserver.transport import WebSocketTransport

PATH: Final = "/connection/websocket"

JSON: Final = "centrifuge-json"
PROTOBUF: Final = "centrifuge-protobuf"


class Endpoint:
    """Speaks the Centrifuge protocol with those whom the door lets in."""

    def __init__(self, door: Door, sessions: Sessions, limit: Limit | None) -> None:
        self._door = door
        self._sessions = sessions
        self._limit = limit
        self._codecs: dict[tuple[bool, bool], Form] = {  # by whether it is Protobuf, and has pings of its own
            (False, True): Json(),
            (False, False): Json(frames.ping()),
            (True, True): Protobuf(),
            (True, False): Protobuf(frames.ping()),
        }

    async def connect(self, request: web.Request) -> web.StreamResponse:
        """The handler: lives as long as the connection."""
        with self._door.admitted(request) as address:
            transport = WebSocketTransport(self._door.config.max_message_bytes, binary=True, protocols=(PROTOBUF, JSON))
            await transport.prepare(request)
            pings = request.query.get("cf_ws_frame_ping_pong") != "true"
            codec = self._codecs[_is_protobuf(request, transport), pings]
            client = self._door.client(transport, codec, address)
            session = Session(self._door, client, codec, limit=self._limit, procedures=PROCEDURES, pings=pings)
            with self._sessions.open(session):
                await self._door.converse(client, transport, lambda: _talk(session, transport))
            return transport.response


def _is_protobuf(request: web.Request, transport: WebSocketTransport) -> bool:
    asked = request.query.get("cf_protocol") or request.query.get("format")
    return transport.response.ws_protocol == PROTOBUF or asked == "protobuf"


async def _talk(session: Session, transport: WebSocketTransport) -> None:
    """The reader loop."""
    with contextlib.ExitStack() as stranger:
        stranger.enter_context(session.door.identifying(session.client))
        while not session.client.ending:
            frame = await transport.receive()
            for command in session.codec.commands(frame):
                if session.refused or session.client.ending:
                    break
                session.client.received += 1
                await session.handle(command)
                if session.connected:
                    stranger.close()


def setup(app: web.Application) -> None:
    """Serves `/connection/websocket`."""
    config = app[CONFIG]
    limit = Limit(config.rate_limit) if config.rate_limit and "limits" in config.features else None
    app.router.add_get(PATH, Endpoint(app[DOOR], app[SESSIONS], limit).connect)
