"""The house: which module may know which."""

import ast
import subprocess
import sys

import pytest

from tests.server import ROOT

PACKAGE = ROOT / "chatserver"
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
    if path.stem != "__main__"
}
MODULES = sorted(FILES)


def imports(module: str) -> set[str]:
    """Names of the top-level packages, and of the modules of ours, that `module` imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= (
                {f"{node.module}.{name.name}" for name in node.names} if node.module == "chatserver" else {node.module}
            )
    return {name if name.startswith("chatserver") else name.split(".")[0] for name in found}


IMPORT_EACH_ALONE = """
import aiohttp.web, asyncpg, centrifuge, environs, gc, importlib, jwt, logging.config, msgspec, os, sqlite3, sys
import prompt_toolkit.patch_stdout, unittest.mock

gc.freeze()
assert not [name for name in sys.modules if name.startswith("chatserver")]
for name in sys.argv[1:]:
    if not os.fork():
        importlib.import_module(name)
        os._exit(0)
    assert os.wait()[1] == 0, name
"""
"""A process for each, which has others' packages already: those take the time."""


def test_each_module_can_be_imported_alone() -> None:
    """Also with warnings as errors; a cycle or an import-time side effect would show here."""
    names = ["chatserver" if module == "__init__" else f"chatserver.{module}" for module in MODULES]
    command = [sys.executable, "-W", "error", "-c", IMPORT_EACH_ALONE, *names]
    subprocess.run(command, check=True, cwd=ROOT, timeout=100)


ENGINE = (
    "errors",
    "message",
    "frames",
    "context",
    "protocol",
    "protocol.codec",
    "protocol.simple",
    "protocol.wire",
    "protocol.schema",
    "protocol.protobuf",
    "protocol.nulls",
    "protocol.payload",
    "protocol.centrifuge",
    "guard",
    "watchdog",
    "keyset",
    "tokens",
    "client",
    "fanout",
    "pages",
    "uring",
    "feed",
    "pulse",
    "signals",
    "audience",
    "pool",
    "shared",
    "journal",
    "recent",
    "room",
    "rooms",
    "chain",
)


@pytest.mark.parametrize("module", ENGINE)
def test_the_engine_knows_neither_aiohttp_nor_the_configuration(module: str) -> None:
    assert not imports(module) & {"aiohttp", "environs", "chatserver.config"}


@pytest.mark.parametrize("module", ["errors", "message", "frames", "context"])
def test_values_know_the_standard_library_only_and_what_they_are_made_with(module: str) -> None:
    foreign = imports(module) - set(sys.stdlib_module_names)
    assert foreign <= ({"msgspec"} if module == "message" else {"chatserver.errors"})


def test_nothing_but_the_runner_imports_the_application() -> None:
    assert {module for module in MODULES if "chatserver.app" in imports(module)} == {"serve"}


@pytest.mark.parametrize("module", MODULES)
def test_what_the_client_needs_is_needed_by_nobody_else(module: str) -> None:
    """Its libraries are an extra; and they stay where they are used."""
    found = imports(module)
    assert "centrifuge" not in found or module == "terminal.link"
    assert "prompt_toolkit" not in found or module in ("terminal.screen", "terminal.keyboard")
    assert module.startswith("terminal") or not any(name.startswith("chatserver.terminal") for name in found)


@pytest.mark.parametrize("module", [module for module in MODULES if module.split(".")[0] == "protocol"])
def test_the_codecs_do_not_know_the_client(module: str) -> None:
    assert "chatserver.client" not in imports(module)


def test_functions_are_small() -> None:
    """Half of them under ten lines, nine in ten under fifty."""
    lengths = sorted(
        node.end_lineno - node.lineno + 1
        for module in MODULES
        for node in ast.walk(ast.parse(FILES[module].read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    )
    assert lengths[len(lengths) // 2] < 10
    assert lengths[len(lengths) * 9 // 10] < 50
