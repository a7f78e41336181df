"""The description of the HTTP API: it is valid, and true."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from chatserver import openapi
from tests.server import Server

TOKEN = "sesame"

SETTINGS = """
[[operations]]
include-operation-id = "history"
# No schema says that a position is one of the log, and that after and before exclude each other.
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 410]

[[operations]]
include-operation-id = ["server_publish", "server_subscribe", "server_disconnect"]
# Nor that one of two fields is needed, what is base64, and that a text is no JSON.
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 404]

[[operations]]
include-operation-id = ["server_broadcast", "server_batch"]
# Errors of their parts are no errors of theirs.
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 404]
checks.negative_data_rejection.expected-statuses = [200, 400]

[[operations]]
include-operation-id = "server_history"
# Nor that reverse has nothing before offset 0.
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 404, 416]
"""


def document(*, token: bool = False) -> Any:
    """As it is served."""
    return msgspec.json.decode(msgspec.json.encode(openapi.document(token=token)))


@pytest.mark.parametrize("token", [False, True])
def test_the_description_is_valid(token: bool) -> None:
    OpenAPIV31SpecValidator(document(token=token)).validate()
    assert document()["openapi"].startswith("3.1")


def test_a_token_is_asked_for_if_there_is_one() -> None:
    assert document(token=True)["security"] == [{"token": []}, {"key": []}]
    assert document(token=False)["security"] == []


def test_every_schema_is_used() -> None:
    text = str(document()["paths"]) + str(document()["components"]["schemas"])
    for name in document()["components"]["schemas"]:
        assert f"#/components/schemas/{name}" in text


def test_what_no_store_can_keep_is_described_as_refused() -> None:
    pattern = document()["components"]["schemas"]["Said"]["properties"]["body"]["pattern"]
    assert re.search(pattern, "a\nb\n")
    assert not re.search(pattern, "a\0b")


def test_the_description_is_true(server: Server, tmp_path: Path) -> None:
    """Schemathesis makes requests of it, good ones and bad ones, and compares the answers with it."""
    server.start(STORE_URL="memory://", API_TOKEN=TOKEN)
    (tmp_path / "settings.toml").write_text(SETTINGS)
    options = [
        "--generation-deterministic",
        "--max-examples=5",
        "--request-timeout=10",
        "--no-color",
        "--warnings=off",
    ]
    url, token = f"http://127.0.0.1:{server.port}/api/openapi.json", f"Authorization: Bearer {TOKEN}"
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        "--config-file=settings.toml",
        "run",
        url,
        *options,
        "-H",
        token,
        "-H",
        "X-Centrifugo-Error-Mode: transport",
    ]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "14 selected / 14 total" in run.stdout
    assert "Traceback" not in server.stderr
    assert not server.problems
