"""The power goes while a store writes: what was acknowledged must be there afterwards.

`fsynced.c` writes down what a process does to its files, `disk` says what a power cut leaves of them, `writer` is the
process that is killed, and `run` cuts, looks, and goes on from what is left: `python -m tests.powercut.run`.
"""
