"""Public keys of others: in a PEM text, or in a JSON Web Key Set (RFC 7517) that is fetched from a URL."""

import asyncio
import logging
import math
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from importlib.util import find_spec
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from chatserver.context import report
from chatserver.shared import Shared

logger = logging.getLogger(__name__)

RSA: Final = ("RS256", "RS384", "RS512")
CURVES: Final = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}

FETCH_SECONDS: Final = 3.0
FETCH_BYTES: Final = 256 * 1024

FRESH_SECONDS: Final = 3600.0
"""So long a key set is used before it is fetched again: what was taken out of it doesn't count for ever."""

PAUSE_SECONDS: Final = 10.0
"""Between two fetches: tokens with keys that nobody knows are anybody's to make."""


class KeysUnavailable(Exception):
    """The key set can't be fetched: a token that may count can't be verified."""


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """A key, and what it is for."""

    algorithms: tuple[str, ...]
    key: Any


class _Set(msgspec.Struct):
    keys: list[dict[str, Any]]


_decode = msgspec.json.Decoder(_Set).decode


def public_key(pem: str) -> VerifyingKey:
    """The key in `pem`. Raises `ValueError` with what is wrong with it."""
    _check_cryptography()
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(pem.encode())
    except Exception:  # of many kinds, and they may quote the key
        raise ValueError("it is no public key in PEM form") from None
    return VerifyingKey(_algorithms(key), key)


def check_url(url: str) -> None:
    """Raises `ValueError` for one that keys can't be fetched from; doesn't quote it, for it may have a password."""
    _check_cryptography()
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.netloc
    except ValueError:  # a port that is none
        good = False
    if not good or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("it is no URL of keys; allowed: http://… and https://…, without a password")


def _check_cryptography() -> None:
    if find_spec("cryptography") is None:
        raise ValueError("the package cryptography is needed; pip install 'chatserver[jwt]'")


def _algorithms(key: object) -> tuple[str, ...]:
    """What `key` is for. Raises `ValueError` for one that is too weak, or private, or of another kind."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    if isinstance(key, RSAPublicKey) and key.key_size >= 2048:
        return RSA
    if isinstance(key, EllipticCurvePublicKey) and key.curve.name in _EC:
        return (_EC[key.curve.name],)
    raise ValueError("allowed: an RSA key of at least 2048 bits, or an elliptic curve key of P-256, P-384 or P-521")


_EC: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


class KeySet:
    """The keys at a URL, by name. Fetched when somebody asks for one, and again when it is time to."""

    def __init__(self, url: str) -> None:
        """Raises `ValueError` for a `url` that is none."""
        check_url(url)
        self._url = url
        self._keys: Mapping[str, VerifyingKey] = {}
        self._fetched = self._tried = -math.inf
        self._fetching = Shared(self._fetch)

    async def find(self, name: str) -> VerifyingKey | None:
        """The key called `name`, if there is one. Raises `KeysUnavailable` if that can't be told.

        What is known is used until there is something newer.
        """
        if self._is_due(name):
            await self._fetching.done()
        if name not in self._keys and self._fetched < self._tried:
            raise KeysUnavailable
        return self._keys.get(name)

    def _is_due(self, name: str) -> bool:
        now = asyncio.get_running_loop().time()
        if name in self._keys and now < self._fetched + FRESH_SECONDS:
            return False
        return self._fetching.running or now >= self._tried + PAUSE_SECONDS

    async def _fetch(self) -> None:
        loop = asyncio.get_running_loop()
        self._tried = loop.time()
        try:
            async with asyncio.timeout(2 * FETCH_SECONDS):
                text = await asyncio.to_thread(_read, self._url)
            self._keys = {name: key for jwk in _decode(text).keys if (key := _key(jwk)) and (name := _name(jwk))}
            self._fetched = loop.time()
        except (OSError, ValueError, HTTPException, msgspec.DecodeError, RecursionError) as error:
            report(logger, logging.WARNING, "keys not fetched", problem=f"{type(error).__name__}: {error}")


def _read(url: str) -> bytes:
    """What is at `url` itself: a redirection might lead to where nobody may speak for it."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    until, text = time.monotonic() + FETCH_SECONDS, b""
    with opener.open(url, timeout=FETCH_SECONDS) as response:
        while part := response.read1(FETCH_BYTES + 1 - len(text)):
            text += part
            if len(text) > FETCH_BYTES or time.monotonic() > until:
                raise ValueError("the answer is too long, or too slow")
    return text


def _name(jwk: Mapping[str, Any]) -> str | None:
    name = jwk.get("kid")
    return name if isinstance(name, str) else None


def _key(jwk: dict[str, Any]) -> VerifyingKey | None:
    """What `jwk` is good for; None: nothing that we do."""
    from jwt import PyJWK, PyJWTError

    kind = RSA[0] if jwk.get("kty") == "RSA" else CURVES.get(str(jwk.get("crv")))
    if jwk.get("kty") not in ("RSA", "EC") or not kind or jwk.get("use", "sig") != "sig":
        return None
    try:
        key = PyJWK(jwk, kind).key
        algorithms = tuple(name for name in _algorithms(key) if jwk.get("alg", name) == name)
        return VerifyingKey(algorithms, key) if algorithms and "verify" in jwk.get("key_ops", ("verify",)) else None
    except (PyJWTError, ValueError, TypeError):
        return None
