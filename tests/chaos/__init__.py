"""A server that is killed again and again, and whether it kept its promises: see `tests.chaos.run`."""
