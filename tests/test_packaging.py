"""What is built works where nothing but it is installed."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.raw import RawClient
from tests.server import ROOT, Server

BUILD = "from setuptools import build_meta; import sys; build_meta.build_{}(sys.argv[1])"


def build(source: Path, kind: str, target: Path) -> Path:
    """The wheel or sdist of the project in `source`; leaves nothing behind there."""
    copy = target / f"{source.name}-{kind}"
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "__pycache__", "tests")
    shutil.copytree(source, copy, ignore=ignored)
    subprocess.run([sys.executable, "-c", BUILD.format(kind), target], cwd=copy, check=True, capture_output=True)
    (built,) = target.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our wheel."""
    return build(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


def unpack(wheel: Path, target: Path) -> Path:
    """Installs a wheel of pure Python: that is to unpack it."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def environment(*folders: Path) -> str:
    """A PYTHONPATH with `folders` first, then what else is installed here, but not the source tree."""
    return os.pathsep.join([*map(str, folders), sysconfig.get_paths()["purelib"]])


def test_the_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "chatserver/py.typed" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"chatserver"}
    assert {name for name in names if name.startswith("chatserver/")} == {
        str(path.relative_to(ROOT))
        for path in (ROOT / "chatserver").rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    }


def test_the_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        metadata = archive.read(name).decode()
    for line in (
        "License-Expression: MIT",
        "Requires-Python: >=3.11",
        "Provides-Extra: speed",
        "License-File: LICENSE",
    ):
        assert line in metadata


def test_the_source_distribution_has_the_manual_of_settings(tmp_path: Path) -> None:
    with tarfile.open(build(ROOT, "sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "config/default.env",
        "LICENSE",
        "README.md",
        "chatserver/py.typed",
        "chatserver/static/chat-room.js",
    } <= names


async def test_the_wheel_runs_in_an_empty_folder(wheel: Path, server: Server, tmp_path: Path) -> None:
    installed = unpack(wheel, tmp_path / "installed")
    (tmp_path / "empty").mkdir()
    server.start(cwd=tmp_path / "empty", PYTHONPATH=environment(installed))
    client = await RawClient.connect(server.port, "/ws?name=alice")
    assert await client.text() == '{"type":1,"body":"alice connected"}'
    client.abort()
    assert server.stop() == 0
    assert not list((tmp_path / "empty").iterdir())


async def test_a_plugin_of_another_distribution_works_when_it_is_named(
    wheel: Path, server: Server, tmp_path: Path
) -> None:
    plugin = unpack(build(ROOT / "examples" / "shout", "wheel", tmp_path), tmp_path / "plugin")
    path = environment(unpack(wheel, tmp_path / "installed"), plugin)
    for plugins, heard in (("", "hi"), ("shout", "HI")):
        server.start(cwd=tmp_path, PYTHONPATH=path, PLUGINS=plugins)
        client = await RawClient.connect(server.port, "/ws?name=alice")
        await client.text()
        client.say('{"type":2,"body":"hi"}')
        assert json.loads(await client.text()) == {"type": 2, "body": heard}
        await client.close()
        assert server.stop() == 0
