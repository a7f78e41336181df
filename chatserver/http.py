"""Health, for whoever watches over the process."""

from aiohttp import web

from chatserver.keys import POOL


async def healthz(request: web.Request) -> web.Response:
    """200 as long as the process answers."""
    return web.json_response({"status": "alive"})


async def readyz(request: web.Request) -> web.Response:
    """200 when new clients are welcome, 503 from the first moment of a drain."""
    if request.app[POOL].draining:
        return web.json_response({"status": "draining"}, status=503)
    return web.json_response({"status": "ready"})


def setup(app: web.Application) -> None:
    """Serves `/healthz` and `/readyz`."""
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
