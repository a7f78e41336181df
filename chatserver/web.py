"""The web client: a page at `/`, and at `/static/` what it is made of, for pages of others, too."""

import asyncio
import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Final

from aiohttp import hdrs, web

from chatserver.config import CONFIG

PAGE: Final = "index.html"

_TYPES: Final = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; require-trusted-types-for 'script'; frame-ancestors {ancestors}"
)


@dataclass(frozen=True, slots=True)
class File:
    """What one path is answered with."""

    body: bytes
    content_type: str
    etag: str


class Files:
    """The files of the package, read once, when the application starts."""

    def __init__(self, ancestors: tuple[str, ...]) -> None:
        """`ancestors`: the origins of other pages that may show the page in a frame."""
        self._policy = _POLICY.format(ancestors=" ".join(("'self'", *ancestors)))
        self._files: dict[str, File] = {}

    async def start(self, app: web.Application) -> None:
        """Reads them."""
        self._files = await asyncio.to_thread(_read)

    async def page(self, request: web.Request) -> web.Response:
        """The page itself."""
        response = _answer(request, self._files[PAGE])
        response.headers["Content-Security-Policy"] = self._policy
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    async def static(self, request: web.Request) -> web.Response:
        """One of the others, also for pages of other origins: modules are only loaded from there if this is allowed."""
        file = self._files.get(request.match_info["name"])
        if file is None or request.match_info["name"] == PAGE:
            raise web.HTTPNotFound
        response = _answer(request, file)
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = "*"
        return response


def _read() -> dict[str, File]:
    found = {}
    for path in resources.files("chatserver").joinpath("static").iterdir():
        body = path.read_bytes()
        kind = _TYPES["." + path.name.rpartition(".")[2]]
        found[path.name] = File(body, kind, hashlib.sha256(body).hexdigest()[:32])
    return found


def _answer(request: web.Request, file: File) -> web.Response:
    """`file`, or that it is still what the browser has: it asks each time, so an upgrade is seen at once."""
    if _has(request, file):
        response = web.Response(status=304)
    else:
        response = web.Response(body=file.body, content_type=file.content_type, charset="utf-8")
    response.etag = file.etag
    response.headers[hdrs.CACHE_CONTROL] = "no-cache"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _has(request: web.Request, file: File) -> bool:
    return any(tag.value in (file.etag, "*") for tag in request.if_none_match or ())


def setup(app: web.Application) -> None:
    """Serves `/` and `/static/`."""
    files = Files(app[CONFIG].frame_ancestors)
    app.on_startup.append(files.start)
    app.router.add_get("/", files.page)
    app.router.add_get("/static/{name}", files.static)
