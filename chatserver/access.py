"""Who may use the HTTP API."""

import hmac
import re
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import ip_address
from typing import Final

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from chatserver.config import CONFIG, Config
from chatserver.errors import PermissionDenied, Unauthorized

KEY_HEADER: Final = "X-API-Key"

_SCHEMES: Final = ("bearer", "apikey")
_LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "[::1]")
_FORWARDED: Final = (
    hdrs.FORWARDED,
    hdrs.VIA,
    hdrs.X_FORWARDED_FOR,
    hdrs.X_FORWARDED_HOST,
    hdrs.X_FORWARDED_PROTO,
    "X-Real-IP",
)


def guarded(handler: Callable[[web.Request], Awaitable[web.Response]]) -> Handler:
    """`handler` for those who may: with `API_TOKEN`, or from this machine if there is none."""

    async def checked(request: web.Request) -> web.StreamResponse:
        _check(request, request.config_dict[CONFIG])
        return await handler(request)

    return checked


def _check(request: web.Request, config: Config) -> None:
    if config.api_token:
        if not any(hmac.compare_digest(_bytes(token), _bytes(config.api_token)) for token in _tokens(request)):
            raise Unauthorized
    elif not _is_local(request):
        raise PermissionDenied("set API_TOKEN to use the API from elsewhere than this machine")


def _tokens(request: web.Request) -> Iterator[str]:
    """All that `request` brings; two in one kind of header are none."""
    scheme, _, token = ",".join(request.headers.getall(hdrs.AUTHORIZATION, [])).partition(" ")
    if scheme.lower() in _SCHEMES:
        yield token.strip()
    yield ",".join(request.headers.getall(KEY_HEADER, []))


def _bytes(token: str) -> bytes:
    """As it came: neither headers nor environment variables need be UTF-8."""
    return token.encode(errors="surrogateescape")


def _is_local(request: web.Request) -> bool:
    """Neither a proxy on this machine nor a web page in a browser on it speaks for somebody else."""
    host = request.headers.get(hdrs.HOST, "")
    name = host.rpartition(":")[0] if re.search(r":[0-9]+$", host) else host
    return (
        _is_loopback(request.remote or "")
        and name.lower() in _LOCAL_NAMES
        and hdrs.ORIGIN not in request.headers
        and not any(header in request.headers for header in _FORWARDED)
    )


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False
