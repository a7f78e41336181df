"""The house: which module may know which."""

import ast
import subprocess
import sys

import pytest

from tests.server import ROOT

MODULES = sorted(path.stem for path in (ROOT / "chatserver").glob("*.py") if path.stem != "__main__")


def imports(module: str) -> set[str]:
    """Names of the top-level packages, and of the modules of ours, that `module` imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / "chatserver" / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= (
                {f"{node.module}.{name.name}" for name in node.names} if node.module == "chatserver" else {node.module}
            )
    return {name if name.startswith("chatserver") else name.split(".")[0] for name in found}


@pytest.mark.parametrize("module", MODULES)
def test_each_module_can_be_imported_alone(module: str) -> None:
    """Also with warnings as errors; a cycle or an import-time side effect would show here."""
    name = "chatserver" if module == "__init__" else f"chatserver.{module}"
    subprocess.run([sys.executable, "-W", "error", "-c", f"import {name}"], check=True, cwd=ROOT, timeout=30)


ENGINE = (
    "errors",
    "message",
    "frames",
    "context",
    "protocol",
    "guard",
    "watchdog",
    "client",
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
def test_values_know_the_standard_library_only(module: str) -> None:
    foreign = imports(module) - set(sys.stdlib_module_names)
    assert foreign <= {"chatserver.errors"}


def test_nothing_but_the_runner_imports_the_application() -> None:
    assert {module for module in MODULES if "chatserver.app" in imports(module)} == {"serve"}


def test_the_codec_does_not_know_the_client() -> None:
    assert "chatserver.client" not in imports("protocol")


def test_functions_are_small() -> None:
    """Half of them under ten lines, nine in ten under fifty."""
    lengths = sorted(
        node.end_lineno - node.lineno + 1
        for module in MODULES
        for node in ast.walk(ast.parse((ROOT / "chatserver" / f"{module}.py").read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    )
    assert lengths[len(lengths) // 2] < 10
    assert lengths[len(lengths) * 9 // 10] < 50
