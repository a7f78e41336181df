"""Plugins that misbehave, at a size for every day."""

import pytest

from tests.hostile import plugins
from tests.server import Server


@pytest.mark.parametrize("kind", plugins.FAULTS)
async def test_a_plugin_that_misbehaves_costs_its_messages_only(server: Server, kind: str) -> None:
    path = plugins.install(server.folder)
    deadline = 0.1 if kind in ("hang", "block") else 10.0
    messages = 40  # a busy machine notices some failures late, and they don't count
    figures = await plugins.suffer(server, kind, path, messages, 0.3, *plugins.QUICK, deadline=deadline)
    refused = int(figures["answered with an error"])
    assert refused == 0 if kind in ("leak", "block") else refused >= 10
