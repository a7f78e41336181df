"""The commands of the command line that are about the server: serve, check, token."""

import argparse
import re
import sys
from dataclasses import replace

from environs import ValidationError

from chatserver import config, plugins, serve
from chatserver.errors import BadRequest
from chatserver.protocol.payload import payload
from chatserver.tokens import check_user, make_token


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status: 0, 1 if the address can't be had, 2 for wrong settings."""
    try:
        settings = _settings(arguments)
        plugins.load(settings)
        if arguments.command == "check":
            _check_tls(settings)
    except config.ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.command == "serve":
        return serve.run(settings, lambda: _settings(arguments))
    if arguments.command == "token":
        return _make_token(settings, arguments)
    print(*config.show(settings), sep="\n")
    return 0


def options(parser: argparse.ArgumentParser, command: str) -> None:
    """Adds those of `command`."""
    parser.add_argument("--config", metavar="FILE", help="settings, in the form of config/default.env")
    if command == "token":
        _token_options(parser)
    else:
        parser.add_argument("--host", help="stands in for HOST")
        parser.add_argument("--port", type=_port, help="stands in for PORT")


def _token_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--user", type=_user, required=True, help="who it is for")
    parser.add_argument("--ttl", type=_seconds, default="1h", help="for how long: 30s, 15m, 1h, 7d; 0 is without end")
    parser.add_argument("--channel", default="", help="makes it a subscription token, for this channel")
    parser.add_argument("--info", type=_json, help="JSON that others see")


def _make_token(settings: config.Config, arguments: argparse.Namespace) -> int:
    if not settings.token_hmac_secret:
        print("TOKEN_HMAC_SECRET: tokens are made with it; set it", file=sys.stderr)
        return 2
    made = make_token(
        settings.token_hmac_secret,
        arguments.user,
        seconds=arguments.ttl,
        channel=arguments.channel,
        info=arguments.info or "",
        audience=settings.token_audience,
        issuer=settings.token_issuer,
    )
    print(made)
    return 0


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d{1,9})([smhd]?)", text, re.ASCII)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; allowed: such as 30s, 15m, 1h, 7d, or 0 for no end")
    return int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def _user(text: str) -> str:
    try:
        check_user(text)
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("it is no text in UTF-8") from None
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _json(text: str) -> str:
    try:
        return payload(text.encode())
    except (BadRequest, UnicodeEncodeError):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON") from None


def _check_tls(settings: config.Config) -> None:
    try:
        serve.tls_context(settings)
    except OSError as error:
        raise config.ConfigError([f"TLS_CERT, TLS_KEY: {error}"]) from None


def _port(text: str) -> int:
    try:
        port: int = config.FIELDS["PORT"].metadata["parse"](text)
    except ValidationError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return port


def _settings(arguments: argparse.Namespace) -> config.Config:
    given = {name: value for name in ("host", "port") if (value := getattr(arguments, name, None)) is not None}
    return replace(config.load(arguments.config), **given)
