"""Loads what the configuration names: features of ours, and plugins of others, in its order."""

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Final, TypeAlias

from aiohttp import web

from chatserver.config import Config, ConfigError

GROUP: Final = "chatserver.plugins"
FEATURES: Final = ("presence", "limits", "http", "api", "centrifuge", "web")

Setup: TypeAlias = Callable[[web.Application], None]


def load(config: Config) -> list[Setup]:
    """The `setup` functions of `FEATURES`, then of `PLUGINS`. Raises `ConfigError` for a name that leads nowhere.

    An installed plugin does nothing until it is named. Its entry point is a module with `setup(app)`, or the function.
    """
    problems: list[str] = []
    found = [_feature(name, problems) for name in dict.fromkeys(config.features)] + [
        _plugin(name, problems) for name in dict.fromkeys(config.plugins)
    ]
    if problems:
        raise ConfigError(problems)
    return [setup for setup in found if setup]


def _feature(name: str, problems: list[str]) -> Setup | None:
    if name not in FEATURES:
        problems.append(f"FEATURES: there is no {name!r}; allowed: {', '.join(FEATURES)}")
        return None
    return _setup(import_module(f"chatserver.{name}"))


def _plugin(name: str, problems: list[str]) -> Setup | None:
    installed = entry_points(group=GROUP)
    if name not in installed.names:
        problems.append(f"PLUGINS: no {name!r} is installed; installed: {', '.join(sorted(installed.names)) or 'none'}")
        return None
    try:
        return _setup(installed[name].load())
    except (Exception, SystemExit) as error:
        problems.append(f"PLUGINS: {name!r} can't be loaded: {' '.join(f'{type(error).__name__}: {error}'.split())}")
        return None


def _setup(loaded: Any) -> Setup:
    setup: Setup = getattr(loaded, "setup", loaded)
    if not callable(setup):
        raise TypeError("no setup(app) in it")
    return setup
