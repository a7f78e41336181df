"""Who may open a WebSocket: checked before the upgrade, answered in HTTP."""

import re
import resource
from collections import Counter
from ipaddress import ip_address, ip_network
from typing import Final

from aiohttp import HttpVersion11, hdrs, web

from chatserver.config import ORIGIN, Config

RETRY_SECONDS: Final = 5

UNIX: Final = "unix"
"""Stands in for the address of a peer on a Unix socket."""

_KEY: Final = re.compile(r"[A-Za-z0-9+/]{22}==")
_UPGRADE: Final = re.compile(r"(?:^|,)\s*upgrade\s*(?:,|$)", re.IGNORECASE)
_DEFAULT_PORT: Final = {"http": "80", "https": "443"}

_SPARE_DESCRIPTORS: Final = 64
"""Kept for files, plugins and plain HTTP when `MAX_CONNECTIONS` sets no limit."""


class Admission:
    """Knows how many are in, and says no, with a reason, to those who may not be."""

    def __init__(self, config: Config) -> None:
        self._origins = {_origin(text) for text in config.allowed_origins}
        self._any_origin = "*" in config.allowed_origins
        self._most = config.max_connections or resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE_DESCRIPTORS
        self._most_per_address = config.max_connections_per_address
        self._proxies = [ip_network(text, strict=False) for text in config.trusted_proxies]
        self._count = 0
        self._addresses: Counter[str] = Counter()

    def check(self, request: web.Request) -> None:
        """Raises the `web.HTTPException` that refuses `request`, if it is to be refused."""
        _check_handshake(request)
        if not self._any_origin:
            self._check_origin(request)
        if self._count >= self._most:
            raise web.HTTPServiceUnavailable(text="too many connections", headers=retry())
        if self._most_per_address and self._addresses[self.address(request)] >= self._most_per_address:
            raise web.HTTPTooManyRequests(text="too many connections from this address", headers=retry())

    def address(self, request: web.Request) -> str:
        """Where `request` comes from: the peer or, if that is a trusted proxy, the last address it forwarded for.

        Addresses further left in `X-Forwarded-For` are anybody's claim, unless the one behind them is trusted too.
        """
        address = request.remote or UNIX
        if not self._proxies:
            return address
        forwarded = ",".join(request.headers.getall("X-Forwarded-For", [])).split(",")
        while forwarded and self._is_proxy(address):
            claim = forwarded.pop().strip()
            if not _is_address(claim):
                break
            address = claim
        return address

    def _is_proxy(self, address: str) -> bool:
        return address == UNIX or any(ip_address(address) in network for network in self._proxies)

    def enter(self, address: str) -> None:
        """Counts one more in."""
        self._count += 1
        self._addresses[address] += 1

    def leave(self, address: str) -> None:
        """Counts one out."""
        self._count -= 1
        self._addresses[address] -= 1
        if not self._addresses[address]:
            del self._addresses[address]

    def _check_origin(self, request: web.Request) -> None:
        """Browsers always say where a page comes from; who says nothing is no browser that a foreign page misuses."""
        origins = request.headers.getall(hdrs.ORIGIN, [])
        if not origins:
            return
        origin = _origin(origins[0]) if len(origins) == 1 else None
        allowed = self._origins or {_origin(f"{scheme}://{request.host}") for scheme in _DEFAULT_PORT}
        if origin is None or origin not in allowed:
            raise web.HTTPForbidden(text="this origin is not allowed")


def retry() -> dict[str, str]:
    """The header that says when to try again."""
    return {hdrs.RETRY_AFTER: str(RETRY_SECONDS)}


def _check_handshake(request: web.Request) -> None:
    """RFC 6455 section 4.2.1, where aiohttp is more lenient than it, or than is safe."""
    headers = request.headers
    if headers.get(hdrs.UPGRADE, "").strip().lower() != "websocket":
        raise web.HTTPUpgradeRequired(text="this is a WebSocket endpoint", headers={hdrs.UPGRADE: "websocket"})
    if not _UPGRADE.search(headers.get(hdrs.CONNECTION, "")):
        raise web.HTTPBadRequest(text="Connection: upgrade is needed")
    if headers.getall(hdrs.SEC_WEBSOCKET_VERSION, []) != ["13"]:
        raise web.HTTPUpgradeRequired(text="WebSocket version 13 only", headers={hdrs.SEC_WEBSOCKET_VERSION: "13"})
    if request.version != HttpVersion11:
        raise web.HTTPBadRequest(text="WebSocket takes HTTP/1.1")
    if hdrs.TRANSFER_ENCODING in headers or headers.get(hdrs.CONTENT_LENGTH, "0") != "0":
        raise web.HTTPBadRequest(text="an upgrade has no body")
    keys = headers.getall(hdrs.SEC_WEBSOCKET_KEY, [])
    if len(keys) != 1 or not _KEY.fullmatch(keys[0]):
        raise web.HTTPBadRequest(text="Sec-WebSocket-Key: one key of 16 bytes in base64 is needed")


def _origin(text: str) -> tuple[str, str, str] | None:
    """Scheme, host and port (RFC 6454 section 4); None if `text` is no web origin."""
    match = ORIGIN.fullmatch(text)
    if not match:
        return None
    scheme, host, port = match.groups()
    return scheme.lower(), host.lower(), port or _DEFAULT_PORT[scheme.lower()]


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
