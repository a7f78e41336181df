"""Storage that fails under a running server."""

import os

import pytest

from tests.hostile import storage
from tests.postgres import Postgres
from tests.server import Server


@pytest.mark.skipif(os.geteuid() != 0 and not os.environ.get("CI"), reason="only root may mount a small file system")
async def test_a_full_disk_refuses_sends_until_there_is_space(server: Server) -> None:
    assert (await storage.run_full(server))["codes"] == "421"


async def test_a_locked_file_refuses_sends_until_it_is_free(server: Server) -> None:
    assert (await storage.run_locked(server, tells=1))["codes"] == "420"


async def test_a_database_that_stands_still_costs_nobody_the_connection(server: Server, postgres: Postgres) -> None:
    await storage.suffer(server, storage.suspended(postgres), postgres.url(), tells=1)


async def test_a_database_that_is_gone_costs_nobody_the_connection(server: Server, postgres: Postgres) -> None:
    await storage.suffer(server, storage.gone(postgres), postgres.url())
