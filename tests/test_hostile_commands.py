"""Mutated commands of the Centrifuge protocol, as many as there is time for every day."""

from tests.hostile import commands
from tests.server import Server


async def test_every_mutant_gets_an_answer_that_the_protocol_has(server: Server) -> None:
    figures = await commands.run(server, count=800)
    for many in ("connections", "survived", "replies"):
        found = figures[many]
        assert isinstance(found, int)
        assert found > 50
