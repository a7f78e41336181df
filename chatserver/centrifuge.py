"""`/connection/websocket`: the Centrifuge client protocol, which existing client SDKs speak."""

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
from chatserver.transport import HANDED_OVER, WebSocketTransport

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
        door = self._door
        address = door.admit(request)
        transport = WebSocketTransport(door.config.max_message_bytes, door.ends, binary=True)
        try:
            asked = request.query.get("cf_protocol") or request.query.get("format")
            pings = request.query.get("cf_ws_frame_ping_pong") != "true"
            transport.accept(request, (PROTOBUF, JSON))
            codec = self._codecs[PROTOBUF in (transport.subprotocol, f"centrifuge-{asked}"), pings]
            client = door.client(transport, codec, address)
            session = Session(door, client, codec, limit=self._limit, procedures=PROCEDURES, pings=pings)
            self._sessions.add(session)
            try:
                await door.converse(client, transport, _talk(session, transport))
            finally:
                self._sessions.remove(session)
        finally:
            transport.abort()
            door.dismiss(address)
        return HANDED_OVER


async def _talk(session: Session, transport: WebSocketTransport) -> None:
    """The reader loop."""
    stranger = session.door.expect(session.client)
    try:
        while not session.client.ending:
            frame = await transport.receive()
            for command in session.codec.commands(frame):
                if session.refused or session.client.leaving:
                    break
                session.client.received += 1
                await session.handle(command)
                if session.connected:
                    stranger.cancel()
                    transport.take = session.take if session.door.immediate else None
    finally:
        stranger.cancel()


def setup(app: web.Application) -> None:
    """Serves `/connection/websocket`."""
    config = app[CONFIG]
    limit = Limit(config.rate_limit) if config.rate_limit and "limits" in config.features else None
    app.router.add_get(PATH, Endpoint(app[DOOR], app[SESSIONS], limit).connect)
