"""Hostile, slow, dead and failing peers against a real server process.

Each module is one kind of trouble: `async def run(server, …)` starts the server, makes the trouble at the size it is
given, asserts what `docs/robustness.md` promises, and returns its figures. The test suite runs small sizes, and
`python -m tests.hostile.NAME` the full ones.
"""
