"""Which code made a result."""

import functools
import subprocess
from pathlib import Path

import hhh_jax


@functools.cache
def code_version() -> str:
    """The package's version and, in a git checkout, its commit: ``0.1.0+3ce9c57``."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return hhh_jax.__version__
    return f"{hhh_jax.__version__}+{commit}"
