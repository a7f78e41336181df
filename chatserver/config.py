"""Configuration: defaults < file < environment, read once into a frozen `Config`.

What each setting means stands in `config/default.env`; this module knows how they are read.
"""

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.typedefs import Handler
from dotenv.parser import Binding, parse_stream
from environs import Env, EnvValidationError, FileAwareEnv, ValidationError

from chatserver import channels
from chatserver.keyset import check_url, public_key
from chatserver.store import open_store, shown
from chatserver.tokens import check_secret

DEFAULT_STORE: Final = "sqlite:///chat.db"
LEVELS: Final = ("debug", "info", "warn", "error")
MASK: Final = "***"
ORIGIN: Final = re.compile(r"(https?)://([a-z0-9._-]+|\[[0-9a-f:]+\])(?::(\d{1,5}))?", re.IGNORECASE)
"""Scheme, host and port (RFC 6454 section 4)."""

_COUNT: Final = 1_000_000
_BYTES: Final = 1 << 30
_DAY: Final = 24 * 3600


class ConfigError(Exception):
    """Wrong settings; `problems` has one line for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def _mask(value: str) -> str:
    return MASK if value else ""


def _setting(
    default: str, parse: Callable[[str], object], *, secret: bool = False, show: Callable[[str], str] = _mask
) -> Any:
    """A field of `Config`: `default` as it would stand in a file, `parse` raises `ValidationError`, `show` hides what
    is secret.
    """
    metadata = {"default": default, "parse": parse, "secret": secret, "show": show}
    return dataclasses.field(default=parse(default), metadata=metadata, repr=not secret)


def _text(default: str = "", *, secret: bool = False) -> Any:
    return _setting(default, lambda raw: raw or default, secret=secret)


def _store() -> Any:
    def parse(raw: str) -> str:
        try:
            open_store(raw or DEFAULT_STORE)
        except ValueError as error:
            raise ValidationError(str(error)) from None
        return raw or DEFAULT_STORE

    return _setting(DEFAULT_STORE, parse, secret=True, show=shown)


def _checked(check: Callable[[str], object], *, secret: bool) -> Any:
    """A text that `check` raises `ValueError` for if it is wrong."""

    def parse(raw: str) -> str:
        try:
            if raw:
                check(raw)
        except ValueError as error:
            raise ValidationError(str(error)) from None
        return raw

    return _setting("", parse, secret=secret)


def _names(default: str = "") -> Any:
    return _setting(default, _split)


def _origins() -> Any:
    def parse(raw: str) -> tuple[str, ...]:
        origins = _split(raw)
        for origin in origins:
            if origin != "*" and not ORIGIN.fullmatch(origin):
                raise ValidationError(f"{origin!r} is no origin; allowed: *, or such as https://chat.example:8443")
        return origins

    return _setting("", parse)


def _networks() -> Any:
    def parse(raw: str) -> tuple[str, ...]:
        for network in _split(raw):
            try:
                ip_network(network, strict=False)
            except ValueError:
                raise ValidationError(f"{network!r} is no address; allowed: such as 10.0.0.1 or 10.0.0.0/8") from None
        return _split(raw)

    return _setting("", parse)


def _split(raw: str) -> tuple[str, ...]:
    return tuple(name for part in raw.split(",") if (name := part.strip()))


def _choice(default: str, allowed: tuple[str, ...]) -> Any:
    def parse(raw: str) -> str:
        value = (raw or default).lower()
        if value not in allowed:
            raise ValidationError(f"{raw!r} is not allowed; allowed: {', '.join(allowed)}")
        return value

    return _setting(default, parse)


def _number(kind: type[int] | type[float], default: str, most: int, *, empty: str = "0") -> Any:
    what = "a whole number" if kind is int else "a number"

    def parse(raw: str) -> float:
        try:
            value = kind(raw or empty)
        except ValueError:
            raise ValidationError(f"{raw!r} is not {what}; allowed: 0 to {most}") from None
        if math.isnan(value) or not 0 <= value <= most:
            raise ValidationError(f"{raw.strip()} is out of range; allowed: 0 to {most}")
        return value

    return _setting(default, parse)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings in force; a field is called like its variable, in lower case."""

    host: str = _text("localhost")
    port: int = _number(int, "8080", 65535, empty="8080")
    socket: str = _text()
    tls_cert: str = _text()
    tls_key: str = _text()
    tls_key_password: str = _text(secret=True)
    log_level: str = _choice("info", LEVELS)
    features: tuple[str, ...] = _names("presence,limits,http,api,centrifuge,web")
    plugins: tuple[str, ...] = _names()
    plugin_seconds: float = _number(float, "0.5", _DAY)
    presence_room_limit: int = _number(int, "1000", _COUNT)
    store_url: str = _store()
    namespaces: str = _checked(channels.parse, secret=False)
    retention_seconds: float = _number(float, "0", 100 * 365 * _DAY)
    retention_count: int = _number(int, "0", 1_000_000_000)
    token_hmac_secret: str = _checked(check_secret, secret=True)
    token_public_key: str = _checked(public_key, secret=True)
    token_jwks_url: str = _checked(check_url, secret=False)
    token_audience: str = _text()
    token_issuer: str = _text()
    token_require: tuple[str, ...] = _names("exp")
    anonymous: str = _choice("", ("", "on", "off"))
    api_token: str = _text(secret=True)
    rate_limit: float = _number(float, "1000", _COUNT)
    max_message_bytes: int = _number(int, "65536", _BYTES)
    max_body_bytes: int = _number(int, "32768", _BYTES)
    max_queue_bytes: int = _number(int, "262144", _BYTES)
    max_connections: int = _number(int, "0", _COUNT)
    max_connections_per_address: int = _number(int, "0", _COUNT)
    trusted_proxies: tuple[str, ...] = _networks()
    allowed_origins: tuple[str, ...] = _origins()
    frame_ancestors: tuple[str, ...] = _origins()
    heartbeat_seconds: float = _number(float, "25", _DAY)
    write_seconds: float = _number(float, "10", _DAY)
    drain_seconds: float = _number(float, "8", _DAY)

    @property
    def has_token_key(self) -> bool:
        """Tokens can be verified."""
        return bool(self.token_hmac_secret or self.token_public_key or self.token_jwks_url)

    @property
    def allows_anonymous(self) -> bool:
        """Clients without a token are let in."""
        return self.anonymous == "on" or (not self.anonymous and not self.has_token_key)


CONFIG: Final = web.AppKey("CONFIG", Config)
REQUEST_CONFIG: Final = web.RequestKey("REQUEST_CONFIG", Config)

FIELDS: Final = {field.name.upper(): field for field in dataclasses.fields(Config)}
_KNOWN: Final = (*FIELDS, *(f"{name}_FILE" for name, field in FIELDS.items() if field.metadata["secret"]))


def load(path: str | None = None) -> Config:
    """The configuration from the file at `path`, or else the one that `CHAT_CONFIG` names, and the environment.

    Raises `ConfigError` with all that is wrong at once.
    """
    path = path or os.environ.get("CHAT_CONFIG")
    environments = Env(eager=False), FileAwareEnv(eager=False, strip_whitespace=True)
    problems = _read_file(path, environments) if path else []
    for env in environments:
        env.add_parser("setting", lambda raw, parse: parse(raw))
    values = {}
    for name, field in FIELDS.items():
        env = environments[_is_in_a_file(name)]
        try:
            values[field.name] = env.setting(name, field.metadata["default"], parse=field.metadata["parse"])
        except (ValueError, OSError) as error:  # the file that NAME_FILE names can't be read
            problems.append(f"{name}: {error}")
    problems += [problem for env in environments for problem in _told(env)]
    problems += _contradictions(values)
    if problems:
        raise ConfigError(problems)
    return Config(**values)


def show(config: Config) -> list[str]:
    """What is in force, one `NAME=value` a line, secrets masked."""
    return [f"{name}={_shown(field, getattr(config, field.name))}" for name, field in FIELDS.items()]


def _shown(field: "dataclasses.Field[object]", value: object) -> object:
    if field.metadata["secret"]:
        show: Callable[[object], str] = field.metadata["show"]
        return show(value)
    return ",".join(value) if isinstance(value, tuple) else value


def _is_in_a_file(name: str) -> bool:
    """A secret may be, unless the environment has the secret itself."""
    return FIELDS[name].metadata["secret"] and (name not in os.environ or f"{name}_FILE" in os.environ)


def _told(env: Env) -> list[str]:
    try:
        env.seal()
    except EnvValidationError as error:
        messages = dict(cast("Mapping[str, list[str]]", error.error_messages))
        return [f"{name}: {' '.join(texts)}" for name, texts in messages.items()]
    return []


def _read_file(path: str, environments: Sequence[Env]) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = list(parse_stream(file))
        malformed = [f"line {line.original.line}: not NAME=value" for line in lines if _is_malformed(line)]
        for env in environments if not malformed else ():  # of those, dotenv would print something of its own
            env.read_env(path, recurse=False)
    except ValueError as error:
        return [f"{path}: {error}"]
    except OSError as error:
        return [f"{path}: {error.strerror}"]
    unknown = [line.key for line in lines if line.key and line.key not in _KNOWN and not _is_malformed(line)]
    return malformed + [f"{' '.join(name.split())}: no such setting{_hint(name)}" for name in unknown]


def _is_malformed(line: Binding) -> bool:
    return line.error or (line.key is not None and line.value is None)


def _hint(name: str) -> str:
    close = difflib.get_close_matches(name.upper(), _KNOWN, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _contradictions(values: dict[str, Any]) -> list[str]:
    if bool(values.get("tls_cert")) != bool(values.get("tls_key")):
        return ["TLS_CERT: TLS_CERT and TLS_KEY go together; set both or none"]
    return []


def setup(app: web.Application, config: Config) -> None:
    """Keeps `config` as `app[CONFIG]` and installs the config middleware."""

    @web.middleware
    async def config_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Gives every handler the settings in force: `request[REQUEST_CONFIG]`, also in nested applications."""
        request[REQUEST_CONFIG] = config
        return await handler(request)

    app[CONFIG] = config
    app.middlewares.append(config_middleware)
