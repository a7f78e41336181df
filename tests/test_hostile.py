"""The scenarios of tests/hostile at sizes for every day."""
