"""Unfinished handshakes and limits at the door, at sizes for every day."""

import pytest

from tests.hostile import handshakes
from tests.hostile.handshakes import Table
from tests.server import Server


async def test_who_asks_for_nothing_whole_is_closed_in_time(server: Server) -> None:
    handshakes.quick(server, 2)
    figures = await handshakes.hang(server, slow=100, mute=50, bodies=2, patience=2)
    assert figures["mute: sockets"] == 50


@pytest.mark.parametrize("table", handshakes.TABLES, ids=lambda table: table.__name__)
async def test_at_the_door(server: Server, table: Table) -> None:
    assert await table(server) > 0
