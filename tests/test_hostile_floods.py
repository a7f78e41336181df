"""Floods of tiny frames and messages, at sizes for every day."""

from collections.abc import Iterator

import pytest

from tests.hostile import floods
from tests.raw import RawClient
from tests.server import Server


@pytest.fixture(scope="module")
def flooded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One process for all floods. However slow it is, whole messages can be more than it allows."""
    server = Server(tmp_path_factory.mktemp("flooded"))
    try:
        yield server.start(RATE_LIMIT="100")
    finally:
        server.kill()


@pytest.mark.parametrize("kind", floods.FLOODS)
async def test_each_flooder_is_closed_and_a_bystander_loses_nothing(flooded: Server, kind: str) -> None:
    client = await RawClient.connect(flooded.port)
    figures = await floods.flooded(flooded, client, kind, count=10, seconds=0.3)
    assert int(figures[f"{kind} 10 connections"]) >= 10
    assert not flooded.foreign
