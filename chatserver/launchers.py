"""Makes foreign launchers do what their options can't say: HOST and PORT, and an end within seconds.

Each is a patch of one process's launcher module, looked up by name. Where the launcher isn't what we know,
nothing happens and its own options rule.
"""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Callable
from typing import Any, Final

from aiohttp import web

from chatserver.config import CONFIG, Config
from chatserver.context import report
from chatserver.keys import POOL

logger = logging.getLogger(__name__)

SHUTDOWN_SECONDS: Final = 1.0
"""For handlers that still run when all clients are closed; aiohttp waits for them twice."""

HANDSHAKE_SECONDS: Final = 10.0
"""For a request to arrive, counted from the connect (aiohttp's keep-alive timeout does that, too)."""

_ADEV: Final = "aiohttp_devtools.runserver.serve"
_ADEV_PORT: Final = 8000


def adopt(app: web.Application, config: Config) -> None:
    """Adapts the launcher that called the factory, if it is one of those."""
    app.on_startup.append(_tell)
    main: Any = sys.modules["__main__"]
    if getattr(getattr(main, "__spec__", None), "name", "") == "aiohttp.web" and hasattr(main, "run_app"):
        main.run_app = _run_app(main.run_app, config)
    elif hasattr(sys.modules.get(_ADEV), "start_main_app"):
        _adopt_adev(sys.modules[_ADEV], config)
    else:
        return
    app.on_shutdown.insert(0, _second_signal_aborts)


async def _tell(app: web.Application) -> None:
    """As our own launcher does when it listens."""
    report(logger, logging.INFO, "starting", anonymous=app[CONFIG].allows_anonymous)


def _run_app(run_app: Callable[..., None], config: Config) -> Callable[..., None]:
    """`python -m aiohttp.web` parses its options before it calls the factory, and calls this after."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("entry")
    options.add_argument("-H", "--hostname")
    options.add_argument("-P", "--port", type=int)
    options.add_argument("-U", "--path")
    given, _ = options.parse_known_args(sys.argv[1:])

    def run(app: web.Application, **settings: Any) -> None:
        if settings.get("port") is not None and given.port is None:
            settings["port"] = config.port
        if settings.get("host") is not None and given.hostname is None:
            settings["host"] = config.host
        run_app(
            app, shutdown_timeout=SHUTDOWN_SECONDS, keepalive_timeout=HANDSHAKE_SECONDS, access_log=None, **settings
        )

    return run


async def _second_signal_aborts(app: web.Application) -> None:
    """They would answer a second signal by leaving without clean-up."""
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, app[POOL].abort)


def _adopt_adev(serve: Any, config: Config) -> None:
    """adev has `--port` and `AIO_PORT`, and 8000 without them. It ends its server process with SIGINT, which by default
    is an exception that hits any task just then: the loop is stopped instead."""
    start_main_app = serve.start_main_app

    async def start(runner: web.AppRunner, port: int) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, loop.stop)
        await start_main_app(runner, config.port if port == _ADEV_PORT else port)

    serve.start_main_app = start
