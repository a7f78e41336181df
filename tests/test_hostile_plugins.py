"""Plugins that misbehave, at a size for every day."""

import pytest

from tests.hostile import plugins
from tests.server import Server


@pytest.mark.parametrize("kind", plugins.FAULTS)
async def test_a_plugin_that_misbehaves_costs_its_messages_only(server: Server, kind: str) -> None:
    figures = await plugins.run(server, kinds=kind, messages=10, seconds=0.8)
    refused = figures[f"{kind}: answered with an error"]
    assert refused in ((0,) if kind in ("leak", "block") else (10, 11))
