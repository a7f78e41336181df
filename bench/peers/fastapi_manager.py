"""FastAPI with uvicorn, and the connection manager that its documentation teaches."""

import json
import os

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

app = FastAPI()


class ConnectionManager:
    """All members."""

    def __init__(self) -> None:
        self.active: list[WebSocket] = []

    async def broadcast(self, text: str) -> None:
        """Sends to each, one after the other."""
        for member in list(self.active):
            await member.send_text(text)


manager = ConnectionManager()


@app.websocket("/ws")
async def handle(member: WebSocket) -> None:
    """One member."""
    await member.accept()
    manager.active.append(member)
    try:
        while True:
            body = json.loads(await member.receive_text())["body"]
            await manager.broadcast(json.dumps({"type": 2, "body": body}))
    except WebSocketDisconnect:
        manager.active.remove(member)


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="error")
