"""`python -m chatserver`: the launcher with everything."""

import argparse
import sys
from dataclasses import replace

from environs import ValidationError

from chatserver import __version__, config, plugins, serve


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
    if arguments.show_config:
        print(*config.show(settings), sep="\n")
    elif not arguments.check:
        return serve.run(settings, lambda: _settings(arguments))
    return 0


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
    return parser


if __name__ == "__main__":
    sys.exit(main())
