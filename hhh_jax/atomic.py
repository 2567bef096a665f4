"""Files and folders that are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from hhh_jax.errors import UserError


@contextlib.contextmanager
def new_path(path: Path, *, alone: bool = False) -> Iterator[Path]:
    """A path to write a file or folder to that takes its place at `path` when the context is left without error.

    `alone` says that no other process writes there: what one left that was killed is removed.

    Raises UserError if it can't be written, as to a full disk; nothing is left then, and what was there is as it was.
    """
    for stray in path.parent.glob(f"{glob.escape(path.name)}.*.tmp") if alone else ():
        remove(stray)
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
def write_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """What can go wrong with writing, as a UserError."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # array_record raises the second
        raise write_error(path, error) from error


def write_error(path: str | os.PathLike[str], error: OSError | RuntimeError) -> UserError:
    """The error for people, with what to do."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    advice = f"{free_space(path)}; make room" if full else "; mend that"
    what = getattr(error, "strerror", None) or error
    return UserError(f"cannot write {path}: {what}{advice} and give the same command again")


def free_space(path: str | os.PathLike[str]) -> str:
    """The space left on the disk of `path` (which need not exist yet), for people: " (1.2 GiB free)"; of an object
    store nothing."""
    if "://" in os.fspath(path):
        return ""
    folder = Path(path).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if free >= 1024**power:
            return f" ({free / 1024**power:.1f} {unit} free)"
    return f" ({free} bytes free)"


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
