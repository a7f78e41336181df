"""Tokens (JWT, RFC 7519): who a client is, and what it may join.

The claims are those of the Centrifuge protocol. Whatever is wrong with a token, the client is told the same.
PyJWT, with cryptography, is slow to import: that is done for who has a key.
"""

import base64
import binascii
import contextlib
import logging
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from chatserver.context import report
from chatserver.errors import BadRequest
from chatserver.keyset import KeySet, KeysUnavailable, VerifyingKey, public_key
from chatserver.protocol.payload import payload

__all__ = [
    "BadToken",
    "ConnectionClaims",
    "ExpiredToken",
    "KeysUnavailable",
    "SubscriptionClaims",
    "SubscriptionOptions",
    "Verifier",
    "make_token",
]

logger = logging.getLogger(__name__)

HMAC: Final = {"HS256": 32, "HS384": 48, "HS512": 64}
"""The bytes that a secret has at least: as many as the hash (RFC 7518 section 3.2)."""

TOKEN_CHARACTERS: Final = 16 * 1024
USER_BYTES: Final = 255

LEEWAY_SECONDS: Final = 5.0
"""Clocks differ: a token isn't too early if it is so little too early."""

_UNFIT: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Control characters, and those that turn what stands beside them around."""


class BadToken(Exception):
    """It doesn't count. `reason` is for who looks for a fault, and has nothing of the token."""

    def __init__(self, reason: str) -> None:
        super().__init__("invalid token")
        self.reason = reason


class ExpiredToken(Exception):
    """It counted once, or will."""

    def __init__(self) -> None:
        super().__init__("token expired")


@dataclass(frozen=True, slots=True)
class SubscriptionOptions:
    """Of a subscription that a connection's token brings; JSON, empty if there is none."""

    info: str = ""
    data: str = ""


@dataclass(frozen=True, slots=True)
class ConnectionClaims:
    """What a connection's token says."""

    user: str
    """Empty: anonymous."""
    expires_at: float | None = None
    """When the connection has to have a newer token: seconds since 1970."""
    info: str = ""
    """JSON, empty if there is none."""
    channels: tuple[str, ...] = ()
    subs: Mapping[str, SubscriptionOptions] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SubscriptionClaims:
    """What a subscription's token says."""

    user: str
    channel: str
    client: str = ""
    """The one connection that it is for; empty: any of the user."""
    expires_at: float | None = None
    info: str = ""
    data: str = ""


class _Options(msgspec.Struct):
    info: Raw = Raw()
    b64info: str = ""
    data: Raw = Raw()
    b64data: str = ""


class _Claims(_Options):
    sub: str = ""
    exp: float = math.inf
    expire_at: float | UnsetType = UNSET
    nbf: float = 0.0
    iat: float = 0.0
    aud: str | list[str] = []
    iss: str = ""
    channels: list[str] = []
    subs: dict[str, _Options] = {}
    channel: str | UnsetType = UNSET
    client: str = ""

    @property
    def until(self) -> float:
        """When what it lets somebody do ends; infinity: never."""
        return self.exp if self.expire_at is UNSET else self.expire_at or math.inf


_decode = msgspec.json.Decoder(_Claims).decode
_names = msgspec.json.Decoder(dict[str, Raw]).decode


class Verifier:
    """Knows the keys, and verifies tokens with them. Each key is for one family of algorithms."""

    def __init__(
        self,
        *,
        hmac_secret: str = "",
        public_key_pem: str = "",
        jwks_url: str = "",
        audience: str = "",
        issuer: str = "",
        require: Sequence[str] = (),
    ) -> None:
        """Empty: none, or any. `require`: claims that a token has to have.

        Raises `ValueError` for a key that is none, or too weak.
        """
        self._keys: list[VerifyingKey] = []
        if hmac_secret:
            check_secret(hmac_secret)
            secret = hmac_secret.encode()
            self._keys.append(VerifyingKey(tuple(name for name in HMAC if len(secret) >= HMAC[name]), secret))
        if public_key_pem:
            self._keys.append(public_key(public_key_pem))
        self._key_set = KeySet(jwks_url) if jwks_url else None
        self._audience = audience
        self._issuer = issuer
        self._require = set(require)
        if self._keys or self._key_set:
            from jwt.api_jws import PyJWS

            self._jws = PyJWS()

    async def connection(self, token: str) -> ConnectionClaims:
        """What `token` says of a connection. Raises `BadToken`, `ExpiredToken`, `KeysUnavailable`."""
        with _logged():
            claims = await self._verified(token)
            if claims.channel is not UNSET:
                raise BadToken("it is a subscription's token")
            subs = {name: SubscriptionOptions(_info(options), _data(options)) for name, options in claims.subs.items()}
            return ConnectionClaims(claims.sub, _expiry(claims), _info(claims), tuple(claims.channels), subs)

    async def subscription(self, token: str) -> SubscriptionClaims:
        """What `token` says of a subscription. Raises `BadToken`, `ExpiredToken`, `KeysUnavailable`."""
        with _logged():
            claims = await self._verified(token)
            if not claims.channel:
                raise BadToken("it is a connection's token")
            return SubscriptionClaims(
                claims.sub, claims.channel, claims.client, _expiry(claims), _info(claims), _data(claims)
            )

    async def _verified(self, token: str) -> _Claims:
        if len(token) > TOKEN_CHARACTERS:
            raise BadToken("it is too long")
        if not self._keys and not self._key_set:
            raise BadToken("there is no key for it")
        from jwt import PyJWTError

        try:
            header = self._jws.get_unverified_header(token)
            key = await self._key(header)
            text = self._jws.decode_complete(token, key.key, algorithms=[header["alg"]])["payload"]
            claims = _decode(text)
            names = _names(text).keys()
        except (PyJWTError, msgspec.DecodeError, ValueError, TypeError, RecursionError) as error:
            raise BadToken(type(error).__name__) from None
        missing = self._require - names
        if missing:
            raise BadToken(f"it has no {', '.join(sorted(missing))}")
        self._check(claims)
        return claims

    async def _key(self, header: Mapping[str, Any]) -> VerifyingKey:
        """For the token with `header`, whose own ideas about keys don't count."""
        algorithm, name = header.get("alg"), header.get("kid")
        if header.get("typ", "JWT") != "JWT":
            raise BadToken("it is no JWT")
        if "crit" in header:
            raise BadToken("it needs something that we don't have")
        for key in self._keys:
            if algorithm in key.algorithms:
                return key
        found = await self._key_set.find(name) if self._key_set and isinstance(name, str) else None
        if found is None or algorithm not in found.algorithms:
            raise BadToken("there is no key for it")
        return found

    def _check(self, claims: _Claims) -> None:
        if self._audience and self._audience not in ([claims.aud] if isinstance(claims.aud, str) else claims.aud):
            raise BadToken("it is for another audience")
        if self._issuer and claims.iss != self._issuer:
            raise BadToken("it is of another issuer")
        try:
            check_user(claims.sub)
        except ValueError:
            raise BadToken("its user can't be one") from None
        if any(abs(moment) >= 1 << 53 for moment in (claims.exp, claims.until, claims.nbf) if moment != math.inf):
            raise BadToken("its times can't be any")
        now = time.time()
        if min(claims.exp, claims.until) <= now or claims.nbf > now + LEEWAY_SECONDS:
            raise ExpiredToken


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    """The client isn't told what is wrong; whoever runs the server is."""
    try:
        yield
    except BadToken as error:
        report(logger, logging.INFO, "token refused", problem=error.reason)
        raise
    except ExpiredToken as error:
        report(logger, logging.INFO, "token refused", problem=str(error))
        raise


def make_token(
    secret: str,
    user: str,
    *,
    seconds: float = 0,
    channel: str = "",
    info: str = "",
    audience: str = "",
    issuer: str = "",
    now: float | None = None,
) -> str:
    """A token that says who somebody is, for `seconds` (0: without end); with a `channel`, that they may join it.

    `info`: JSON, which others see.
    """
    import jwt

    made = int(time.time() if now is None else now)
    claims: dict[str, object] = {"sub": user, "iat": made}
    if seconds:
        claims["exp"] = made + math.ceil(seconds)
    if info:
        claims["info"] = msgspec.json.decode(info)
    texts = {"channel": channel, "aud": audience, "iss": issuer}
    return jwt.encode(claims | {name: text for name, text in texts.items() if text}, secret, algorithm="HS256")


def check_secret(secret: str) -> None:
    """Raises `ValueError` for one that can be guessed, or that others know."""
    from jwt import InvalidKeyError
    from jwt.algorithms import HMACAlgorithm

    least = min(HMAC.values())
    try:
        if len(secret.encode()) < least:
            raise ValueError(f"it is too short; allowed: at least {least} bytes")
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
    except UnicodeEncodeError:  # which would quote it
        raise ValueError("it is no text in UTF-8") from None
    except InvalidKeyError:
        raise ValueError("it is the text of a key of another kind, which may be public") from None


def check_user(name: str) -> None:
    """Raises `ValueError` for what is no name of a user in a token."""
    if _UNFIT.search(name) or len(name.encode()) > USER_BYTES:
        raise ValueError(f"allowed: at most {USER_BYTES} bytes, and no control characters")


def _expiry(claims: _Claims) -> float | None:
    return None if claims.until == math.inf else claims.until


def _info(options: _Options) -> str:
    return _json(options.info, options.b64info)


def _data(options: _Options) -> str:
    return _json(options.data, options.b64data)


def _json(raw: Raw, encoded: str) -> str:
    """The JSON itself or, in base64, JSON as well; `null` is none."""
    try:
        text = bytes(raw) or base64.b64decode(encoded, validate=True)
        return payload(text) if text and text != b"null" else ""
    except (binascii.Error, ValueError, BadRequest):
        raise BadToken("its info or data is no JSON") from None
