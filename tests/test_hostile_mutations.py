"""Mutated frames and texts: a small number of them."""

from tests.hostile import mutations
from tests.server import Server


async def test_every_mutant_gets_an_answer_that_is_described(server: Server) -> None:
    await mutations.run(server, count=1000, seed=2)
