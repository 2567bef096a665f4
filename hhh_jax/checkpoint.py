"""Checkpoints: a run's state and, beside it, all else that it takes to go on (data position, tokenizer, config).

    DIRECTORY/STEP/state/          arrays (orbax; whole arrays, so they restore onto any mesh)
    DIRECTORY/STEP/extra/metadata  a JSON object
    DIRECTORY/STEP/checksums.json  {file: [bytes, sha256]} of all of the above

A checkpoint is written into a temporary folder and renamed when it is whole, and the oldest one goes only after that:
whatever happens during a save, the checkpoint before it stays. The newest one counts only if its checksums agree.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any, Self

from hhh_jax.errors import UserError
from hhh_jax.record import free_space, write_json_atomic

PyTree = Any
CHECKSUMS = "checksums.json"


class Checkpoints:
    """The checkpoints of one run. Saves are asynchronous: the state is copied, then written by a thread."""

    def __init__(self, directory: str | os.PathLike[str], *, keep: int = 2) -> None:
        """Open (or create) `directory` for writing, and keep the newest `keep` checkpoints there."""
        _quiet_orbax()
        import orbax.checkpoint as ocp

        self.directory = Path(directory).absolute()
        self._step: int | None = None  # of the save in progress
        try:
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep,
                    cleanup_tmp_directories=True,
                    async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
                ),
            )
        except OSError as error:
            raise UserError(f"cannot open {self.directory} for checkpoints: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def latest_step(self) -> int | None:
        """The newest step on disk, whole or not; None if there is none."""
        return max(steps(self.directory), default=None)

    def save(self, step: int, state: PyTree, extra: dict[str, Any], *, wait: bool = False) -> None:
        """Save `state` (a pytree of arrays) and `extra` (a JSON object) as checkpoint `step`.

        Returns when the state is copied, so that its buffers can be donated; `wait` until it is on disk.
        Raises UserError if this save, or the one before it, could not be written.
        """
        import orbax.checkpoint as ocp

        json.dumps(extra)  # a TypeError here and now rather than in the thread
        self.wait()
        self._step = step
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state), extra=ocp.args.JsonSave(extra)),
            )
        except OSError as error:
            raise self._cannot_save(error) from error
        if wait:
            self.wait()

    def restore_latest(self, abstract_state: PyTree) -> tuple[int, PyTree, dict[str, Any]] | None:
        """(step, state, extra) of the newest whole checkpoint, or None if there is no checkpoint at all.

        `abstract_state`: jax.ShapeDtypeStruct leaves, with the shardings to restore onto. A checkpoint that is
        damaged is passed over, with a warning that names it, for the one before. Raises UserError if all are
        damaged, or if the checkpoint is not of this model.
        """
        self.wait()
        for step in sorted(steps(self.directory), reverse=True):
            try:
                _verify(self.directory / str(step))
            except ValueError as error:
                warnings.warn(f"checkpoint {self.directory / str(step)} is damaged: {error}", stacklevel=2)
                continue
            state = _restore(self.directory / str(step) / "state", abstract_state)
            return step, state, _extra(self.directory / str(step))
        if steps(self.directory):
            raise UserError(f"no checkpoint in {self.directory} is whole; move the folder away to start afresh")
        return None

    def wait(self) -> None:
        """Block until the save in progress is on disk; raise UserError if it could not be written."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise self._cannot_save(error) from error

    def close(self) -> None:
        """Wait for the save in progress, then stop the threads."""
        self.wait()
        self._manager.close()

    def _cannot_save(self, error: Exception) -> UserError:
        before = max((s for s in steps(self.directory) if s != self._step), default=None)
        intact = "there is none before it" if before is None else f"the checkpoint at step {before} is intact"
        return UserError(
            f"cannot save checkpoint {self.directory}/{self._step}: {str(error).splitlines()[0]} "
            f"({free_space(self.directory)} free); {intact}"
        )

    def _write_checksums(self) -> None:
        for folder in self.directory.glob(f"{self._step}.orbax-checkpoint-tmp*"):
            write_json_atomic(folder / CHECKSUMS, _checksums(folder))


def steps(directory: str | os.PathLike[str]) -> list[int]:
    """The steps that have a checkpoint in `directory`, in ascending order (finished saves only)."""
    folder = Path(directory)
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())


def read_extra(directory: str | os.PathLike[str], step: int | None = None) -> dict[str, Any]:
    """The `extra` of a checkpoint: of `step`, or of the newest whole one. Raises UserError if there is none."""
    return _extra(_choose(directory, step))


def restore_params(
    directory: str | os.PathLike[str], abstract_params: PyTree, *, subtree: str = "params", step: int | None = None
) -> PyTree:
    """Only the parameters of a checkpoint (of `step`, or of the newest whole one), to start another stage from.

    `abstract_params`: jax.ShapeDtypeStruct leaves, with the shardings to restore onto. Raises UserError if there
    is no such checkpoint, or if a parameter is missing, left over, or of another shape or dtype.
    """
    _quiet_orbax()
    return _restore(_choose(directory, step) / "state", {subtree: abstract_params}, partial=True)[subtree]


def _choose(directory: str | os.PathLike[str], step: int | None) -> Path:
    folder = Path(directory).absolute()
    found = steps(folder)
    if not found:
        raise UserError(f"no checkpoint in {folder}")
    if step is not None and step not in found:
        raise UserError(f"no checkpoint of step {step} in {folder}; there are {', '.join(map(str, found))}")
    for candidate in [step] if step is not None else sorted(found, reverse=True):
        try:
            _verify(folder / str(candidate))
        except ValueError as error:
            warnings.warn(f"checkpoint {folder / str(candidate)} is damaged: {error}", stacklevel=3)
        else:
            return folder / str(candidate)
    raise UserError(f"no checkpoint in {folder} is whole")


def _extra(path: Path) -> dict[str, Any]:
    return json.loads((path / "extra" / "metadata").read_text(encoding="utf-8"))


def _restore(path: Path, abstract: PyTree, *, partial: bool = False) -> PyTree:
    """The arrays below `path` in the structure and shardings of `abstract`; with `partial`, only those named there."""
    import jax
    import orbax.checkpoint as ocp

    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or here), abstract)
    handler = ocp.PyTreeCheckpointHandler()
    with ocp.Checkpointer(handler) as checkpointer:
        _compare(path, abstract, checkpointer.metadata(path).item_metadata.tree, partial)
        args = ocp.args.PyTreeRestore(
            abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract), partial_restore=partial
        )
        return checkpointer.restore(path, args=args)


def _compare(path: Path, abstract: PyTree, saved: PyTree, partial: bool) -> None:
    """Raise UserError, naming the first of them, if any array is missing, left over or of another shape or dtype."""
    want, have = _flatten(abstract), _flatten({key: saved[key] for key in abstract if key in saved} if partial else saved)
    problems = []
    for name in sorted(want.keys() | have.keys()):
        if name not in have:
            problems.append(f"{name} is missing in the checkpoint; here it has shape {want[name]}")
        elif name not in want:
            problems.append(f"{name} is left over in the checkpoint, with shape {have[name]}")
        elif want[name] != have[name]:
            problems.append(f"{name} is {have[name]} in the checkpoint and {want[name]} here")
    if problems:
        raise UserError(
            f"{path.parent} is a checkpoint of another model or config: {problems[0]} "
            f"({len(problems)} of {len(want)} arrays differ)"
        )


def _flatten(tree: PyTree) -> dict[str, str]:
    """{"params/blocks/w": "float32[2,3]"} of every array in a tree."""
    import jax
    import numpy as np

    return {
        "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path): (
            f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"
        )
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def _checksums(folder: Path) -> dict[str, list[Any]]:
    sums = {}
    for path in sorted([*folder.glob("state/**/*"), *folder.glob("extra/**/*")]):  # orbax changes its own files later
        if path.is_file():
            with path.open("rb") as file:
                sums[path.relative_to(folder).as_posix()] = [
                    path.stat().st_size,
                    hashlib.file_digest(file, "sha256").hexdigest(),
                ]
    return sums


def _verify(folder: Path) -> None:
    """Raise ValueError, naming the file, unless every file is there as it was written."""
    try:
        expected = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{CHECKSUMS}: {error}") from error
    for name, (size, digest) in expected.items():
        try:
            with (folder / name).open("rb") as file:
                if os.fstat(file.fileno()).st_size != size:
                    raise ValueError(f"{name} has {os.fstat(file.fileno()).st_size} of {size} bytes")
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise ValueError(f"{name} does not hold what was written")
        except OSError as error:
            raise ValueError(f"{name}: {error.strerror}") from error


def _quiet_orbax() -> None:
    """Keep orbax's progress reports (absl, level INFO) out of the terminal; other users of absl are not touched."""
    logger = logging.getLogger("absl")
    if _worth_reading not in logger.filters:
        logger.addFilter(_worth_reading)


def _worth_reading(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or "orbax" not in record.pathname
