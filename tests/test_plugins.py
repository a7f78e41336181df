"""What the configuration names is loaded, in its order, and nothing else."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from chatserver import plugins
from chatserver.app import build, create_app
from chatserver.config import Config, ConfigError
from chatserver.keys import CHAIN, POOL, ROOMS

SETUP = "def setup(app):\n    app['pool'].on_connect.append({name!r})\n"

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a plugin: its name, the code of its module, and what in the module its entry point leads to."""
    installed: list[EntryPoint] = []
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "entry_points", lambda group: EntryPoints(installed).select(group=group))

    def install(name: str, code: str = "", attribute: str = "", group: str = "chatserver.plugins") -> None:
        (tmp_path / f"plugin_{name}.py").write_text(code or SETUP.format(name=name))
        value = f"plugin_{name}:{attribute}" if attribute else f"plugin_{name}"
        installed.append(EntryPoint(name, value, group))

    yield install
    for entry in installed:
        sys.modules.pop(entry.module, None)


def loaded(config: Config) -> list[str]:
    """The modules whose `setup` would be called, in order."""
    return [setup.__module__ for setup in plugins.load(config)]


def problems(**settings: Any) -> list[str]:
    """What is wrong, one line each."""
    with pytest.raises(ConfigError) as caught:
        plugins.load(Config(**settings))
    assert str(caught.value).splitlines() == caught.value.problems
    return caught.value.problems


@pytest.mark.parametrize("features", [("presence", "limits", "http"), ("http", "presence"), ("limits",), ()])
def test_features_are_loaded_in_the_order_of_the_configuration(features: tuple[str, ...]) -> None:
    assert loaded(Config(features=features)) == [f"chatserver.{name}" for name in features]


def test_every_feature_is_known_and_on_by_default() -> None:
    assert Config().features == plugins.FEATURES
    assert len(loaded(Config())) == len(plugins.FEATURES)


def test_plugins_come_after_the_features_in_the_order_of_the_configuration(install: Install) -> None:
    for name in ("a", "b", "c"):
        install(name)
    expected = ["chatserver.http", "plugin_c", "plugin_a", "plugin_b"]
    assert loaded(Config(features=("http",), plugins=("c", "a", "b"))) == expected


def test_the_setups_are_called_with_the_application_in_order(install: Install) -> None:
    for name in ("a", "b"):
        install(name)
    app = build(Config(features=(), plugins=("b", "a")))
    assert app["pool"].on_connect == ["b", "a"]


def test_plugins_find_pool_chain_and_settings(install: Install) -> None:
    install(
        "curious",
        "from chatserver.config import CONFIG\n"
        "def setup(app):\n"
        "    app['chain'].append((app['pool'], len(app['chain']), app[CONFIG].port))\n",
    )
    app = build(Config(plugins=("curious",), port=1234))
    assert app["chain"][1:] == [(app[POOL], 1, 1234)]  # behind the rate limit


@pytest.mark.parametrize("attribute", ["", "setup", "another"])
def test_an_entry_point_leads_to_a_module_or_to_a_function(attribute: str, install: Install) -> None:
    install("a", "seen = []\ndef setup(app): seen.append('setup')\ndef another(app): seen.append('another')", attribute)
    [setup] = plugins.load(Config(features=(), plugins=("a",)))
    setup(web.Application())
    assert sys.modules["plugin_a"].seen == [attribute or "setup"]


def test_an_unknown_feature_is_told_with_what_there_is() -> None:
    assert problems(features=("presence", "chat", "Http")) == [
        "FEATURES: there is no 'chat'; allowed: presence, limits, http, api, centrifuge, web",
        "FEATURES: there is no 'Http'; allowed: presence, limits, http, api, centrifuge, web",
    ]


@pytest.mark.parametrize("name", ["ws", "app", "__main__", "..config", "presence.setup"])
def test_a_module_that_is_no_feature_cannot_be_named(name: str) -> None:
    assert problems(features=(name,)) == [
        f"FEATURES: there is no {name!r}; allowed: presence, limits, http, api, centrifuge, web"
    ]


def test_an_unknown_plugin_is_told_with_what_is_installed(install: Install) -> None:
    for name in "dbeafc":
        install(name)
    install("elsewhere", group="other.plugins")
    assert problems(plugins=("elsewhere",)) == ["PLUGINS: no 'elsewhere' is installed; installed: a, b, c, d, e, f"]


def test_an_unknown_plugin_is_told_also_when_none_is_installed(install: Install) -> None:
    assert problems(plugins=("a",)) == ["PLUGINS: no 'a' is installed; installed: none"]


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("raise RuntimeError('no database')", "RuntimeError: no database"),
        ("import nowhere_to_be_found", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("def setup(app:", "SyntaxError: '(' was never closed (plugin_a.py, line 1)"),
        ("x = 1", "TypeError: no setup(app) in it"),
        ("setup = 7", "TypeError: no setup(app) in it"),
        ("raise ValueError('one\\ntwo')", "ValueError: one two"),
    ],
    ids=["raises", "imports what is missing", "no Python", "no setup", "setup is no function", "two lines"],
)
def test_a_plugin_that_cannot_be_loaded_is_a_line(code: str, told: str, install: Install) -> None:
    install("a", code)
    assert [" ".join(line.split()) for line in problems(plugins=("a",))] == [f"PLUGINS: 'a' can't be loaded: {told}"]


def test_an_entry_point_that_leads_nowhere_is_a_line(install: Install) -> None:
    install("a", "x = 1", "setup")
    [line] = problems(plugins=("a",))
    assert line.startswith("PLUGINS: 'a' can't be loaded: AttributeError: ")


def test_all_that_is_wrong_is_told_at_once(install: Install) -> None:
    install("a", "raise RuntimeError('no database')")
    install("b")
    assert problems(features=("chat", "http"), plugins=("a", "b", "c")) == [
        "FEATURES: there is no 'chat'; allowed: presence, limits, http, api, centrifuge, web",
        "PLUGINS: 'a' can't be loaded: RuntimeError: no database",
        "PLUGINS: no 'c' is installed; installed: a, b",
    ]


def test_the_factory_ends_with_status_2_and_without_traceback(
    install: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install("a", "raise RuntimeError('no database')")
    monkeypatch.setenv("PLUGINS", "a")
    with pytest.raises(SystemExit) as ended:
        create_app()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "PLUGINS: 'a' can't be loaded: RuntimeError: no database\n"


def test_a_feature_that_is_named_twice_is_not_set_up_twice() -> None:
    """Either it is refused, or it counts once: two announcements of each newcomer are nobody's wish."""
    try:
        assert loaded(Config(features=("presence", "http", "presence", "http"))) == [
            "chatserver.presence",
            "chatserver.http",
        ]
    except ConfigError as error:
        assert "FEATURES" in str(error)


def test_a_plugin_that_is_installed_but_not_named_is_not_even_imported(install: Install) -> None:
    install("a")
    install("b")
    assert loaded(Config(features=(), plugins=("b",))) == ["plugin_b"]
    assert "plugin_a" not in sys.modules


def test_a_feature_that_is_not_named_is_not_even_imported() -> None:
    code = (
        "import sys; from chatserver.app import build; from chatserver.config import Config;"
        "app = build(Config(features=('http',)));"
        "print(*sorted({'chatserver.presence', 'chatserver.limits', 'chatserver.http'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "chatserver.http\n"


def test_without_features_the_chat_is_bare() -> None:
    app = build(Config(features=()))
    assert app[CHAIN] == []
    assert not app[POOL].on_connect
    assert not app[ROOMS].on_join
    assert not app[ROOMS].on_leave
    assert {resource.canonical for resource in app.router.resources()} == {"/ws"}
