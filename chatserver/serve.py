"""Runs the application: sockets, signals, the drain, restarts."""

import asyncio
import gc
import logging
import os
import resource
import signal
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias

from aiohttp import web

from chatserver import plugins, shutdown
from chatserver.aiohttp_private import Runner
from chatserver.app import build
from chatserver.config import Config, ConfigError
from chatserver.context import report
from chatserver.errors import Disconnect, GoingAway, ServiceRestart
from chatserver.keys import POOL
from chatserver.launchers import HANDSHAKE_SECONDS, SHUTDOWN_SECONDS
from chatserver.transport import SEND_BUFFER_BYTES

logger = logging.getLogger(__name__)

COLLECT_AT: Final = (50_000, 50, 100)
"""Clients are many objects that stay. By default a few connects would have the collector look at all of them, and
everybody would wait for it."""

BACKLOG: Final = 1024

ACCEPTS_PER_TURN: Final = 8
"""More would hardly be faster, and each that finds nobody costs a system call."""

Reload: TypeAlias = Callable[[], Config]


def run(config: Config, reload: Reload) -> int:
    """Serves until a signal ends it; returns the exit status, or doesn't return but starts the program anew.

    SIGTERM and SIGINT stop, SIGHUP restarts with the settings that `reload` returns, if they are right.
    """
    _raise_descriptor_limit()
    app = build(config)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AT)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            end = runner.run(_serve(app, config, reload))
    except OSError as error:
        report(logger, logging.ERROR, "cannot listen", problem=str(error))
        return 1
    if isinstance(end, ServiceRestart):
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - ourselves, as we were started
    return 0


async def _serve(app: web.Application, config: Config, reload: Reload) -> Disconnect:
    runner = Runner(
        app,
        access_log=None,
        handle_signals=False,
        tcp_keepalive=False,  # the heartbeat finds who is gone
        keepalive_timeout=HANDSHAKE_SECONDS,
        shutdown_timeout=SHUTDOWN_SECONDS,
    )
    await runner.setup()
    try:
        await _listen(runner, config)
        end = await _signalled(app, reload)
        await _stop_listening(runner, config)
        await shutdown.drain(app, end, answers=True)
    finally:
        app[POOL].draining = True  # nobody is left for the application's own shutdown to say goodbye to
        await runner.cleanup()
    return end


async def _listen(runner: Runner, config: Config) -> None:
    tls = tls_context(config)
    site: web.BaseSite
    if config.socket:
        site = web.UnixSite(runner, config.socket, ssl_context=tls)
    else:
        site = web.TCPSite(runner, config.host, config.port, ssl_context=tls, backlog=BACKLOG)
    await site.start()
    runner.set_send_buffer(SEND_BUFFER_BYTES)
    addresses = [_shown(address) for address in runner.addresses]
    await runner.accept_together(ACCEPTS_PER_TURN, ssl_context=tls, backlog=BACKLOG)
    report(logger, logging.INFO, "listening", addresses=addresses, tls=bool(tls), anonymous=config.allows_anonymous)


async def _stop_listening(runner: web.AppRunner, config: Config) -> None:
    for site in list(runner.sites):
        await site.stop()
    if config.socket:
        Path(config.socket).unlink(missing_ok=True)  # noqa: ASYNC240 - asyncio itself does it from 3.13 on


def _shown(address: object) -> str:
    return "{}:{}".format(*address) if isinstance(address, tuple) else str(address)


def tls_context(config: Config) -> ssl.SSLContext | None:
    """For `TLS_CERT` and `TLS_KEY`, or None. Raises `OSError`, which `ssl.SSLError` is, if they can't be used."""
    if not config.tls_cert:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(config.tls_cert, config.tls_key, config.tls_key_password or None)
    return context


async def _signalled(app: web.Application, reload: Reload) -> Disconnect:
    """Waits for the first signal that ends the server. From then on another one makes it end at once."""
    loop = asyncio.get_running_loop()
    end: asyncio.Future[Disconnect] = loop.create_future()

    def stop(reason: Disconnect) -> None:
        if end.done():
            app[POOL].abort()
        else:
            end.set_result(reason)

    def restart() -> None:
        try:
            plugins.load(reload())
        except ConfigError as error:
            report(logger, logging.ERROR, "not restarted", problem=str(error))
        else:
            stop(ServiceRestart())

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, GoingAway())
    loop.add_signal_handler(signal.SIGHUP, restart)
    return await end


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
