"""The fixtures of tests of the launchers."""

from fake_checkout import checkout  # noqa: F401
