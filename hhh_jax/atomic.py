"""Files and folders that are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from hhh_jax.errors import UserError


@contextlib.contextmanager
def new_path(path: Path) -> Iterator[Path]:
    """A path to write a file or folder to that takes its place at `path` when the context is left without error.

    Raises UserError if it can't be written, as to a full disk; nothing is left then, and what was there is as it was.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")  # processes of several machines may meet here
    try:
        with write_errors(path):
            yield partial
            for part in (*(sorted(partial.iterdir()) if partial.is_dir() else ()), partial):
                _sync(part)
            os.replace(partial, path)
            _sync(path.parent)  # a renamed file outlives a power failure only when its folder is on the disk, too
    finally:
        remove(partial)


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """What can go wrong with writing, as a UserError that says how to go on."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # array_record raises the second
        what = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"cannot write {path}: {what}; mend that and give the same command to go on") from error


def remove(path: Path) -> None:
    """Removes a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
