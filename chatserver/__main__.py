"""`python -m chatserver`: the launcher with everything."""

import argparse
import re
import sys
from dataclasses import replace

from environs import ValidationError

from chatserver import __version__, config, plugins, serve
from chatserver.errors import BadRequest
from chatserver.protocol.payload import payload
from chatserver.tokens import check_user, make_token


def main() -> int:
    """Returns the exit status: 0, 1 if the address can't be had, 2 for wrong settings."""
    arguments = _parser().parse_args()
    try:
        settings = _settings(arguments)
        plugins.load(settings)
        if arguments.check:
            _check_tls(settings)
    except config.ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.command == "token":
        return _make_token(settings, arguments)
    if arguments.show_config:
        print(*config.show(settings), sep="\n")
    elif not arguments.check:
        return serve.run(settings, lambda: _settings(arguments))
    return 0


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
    given = {name: getattr(arguments, name) for name in ("host", "port") if getattr(arguments, name) is not None}
    return replace(config.load(arguments.config), **given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m chatserver", description="A chat server.")
    parser.add_argument("--config", metavar="FILE", help="settings, in the form of config/default.env")
    parser.add_argument("--host", help="stands in for HOST")
    parser.add_argument("--port", type=_port, help="stands in for PORT")
    parser.add_argument("--check", action="store_true", help="say what is wrong with the settings, and exit")
    parser.add_argument("--show-config", action="store_true", help="print the settings in force, and exit")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="token", help="print a token, for development")
    token = commands.add_parser("token", description="Prints a token, made with TOKEN_HMAC_SECRET.")
    token.add_argument("--user", type=_user, required=True, help="who it is for")
    token.add_argument("--ttl", type=_seconds, default="1h", help="for how long: 30s, 15m, 1h, 7d; 0 is without end")
    token.add_argument("--channel", default="", help="makes it a subscription token, for this channel")
    token.add_argument("--info", type=_json, help="JSON that others see")
    return parser


if __name__ == "__main__":
    sys.exit(main())
