"""The plain keys that plugins and users are promised, and the typed ones."""

import subprocess
import sys
import warnings

import pytest
from aiohttp import web

from chatserver.app import build
from chatserver.config import CONFIG, Config
from chatserver.keys import CHAIN, POOL, SESSIONS
from chatserver.pool import Pool
from tests.server import ROOT


def test_the_plain_keys_hold_the_same_as_the_typed_ones() -> None:
    app = build(Config())
    assert isinstance(app["pool"], Pool)
    assert app["pool"] is app[POOL]
    assert isinstance(app["chain"], list)
    assert app["chain"] is app[CHAIN]


def test_each_application_has_its_own() -> None:
    one, other = build(Config()), build(Config())
    assert one[POOL] is not other[POOL]
    assert one[CHAIN] is not other[CHAIN]
    assert one[SESSIONS] is not other[SESSIONS]


def test_the_configuration_is_kept() -> None:
    config = Config(port=1234)
    assert build(config)[CONFIG] is config


def test_building_warns_of_nothing() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build(Config())
    assert [str(warning.message) for warning in caught if warning.category is not ResourceWarning] == []


def test_the_silence_covers_our_two_keys_only() -> None:
    app = build(Config())
    with pytest.raises(web.NotAppKeyWarning):  # warnings are errors in our tests
        app["another"] = 1


def test_building_survives_warnings_that_are_errors() -> None:
    code = "from chatserver.app import create_app; app = create_app(); assert app['pool'] is not None; print('built')"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "built\n", "")
