"""The application factory."""

import argparse
import sys
from collections.abc import Sequence

from aiohttp import web

from chatserver import config as configuration
from chatserver import launchers, log, plugins, shutdown, ws
from chatserver.config import Config, ConfigError


def create_app(argv: Sequence[str] | None = None) -> web.Application:
    """The application that the environment, and `--config FILE` in `argv`, ask for.

    Made to be the factory of `python -m aiohttp.web` (which passes on the arguments it doesn't know), `adev runserver`
    and gunicorn. Wrong settings end the process with status 2, after a line for each on standard error.
    """
    parser = argparse.ArgumentParser(prog="chatserver.app:create_app", add_help=False, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE")
    arguments = parser.parse_args(argv or [])
    try:
        config = configuration.load(arguments.config)
        app = build(config)
    except ConfigError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    launchers.adopt(app, config)
    return app


def build(config: Config) -> web.Application:
    """The application for `config`. Raises `ConfigError` if it names features or plugins that aren't there."""
    setups = plugins.load(config)
    app = web.Application(client_max_size=config.max_message_bytes)
    log.setup(app, config)
    configuration.setup(app, config)
    ws.setup(app, config)
    shutdown.setup(app)
    for setup in setups:
        setup(app)
    return app
