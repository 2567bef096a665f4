"""Fixtures of the tests that run programs in a sandbox."""

import os
from pathlib import Path

import pytest
from sandboxed import none_left

from hhh_jax.evals import sandbox


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """What the command line of this test's sandboxes has; at the end of the test all of them are gone."""
    (tmp_path / "root").symlink_to(Path(__file__).parents[2])
    monkeypatch.setattr(sandbox, "_ROOT", str(tmp_path / "root"))
    mark = os.fsencode(tmp_path / "root")
    yield mark
    assert none_left(mark)
