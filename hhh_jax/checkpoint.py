"""Checkpoints: a run's state and, beside it, what else it takes to go on (data position, tokenizer, config).

    DIRECTORY/STEP/state/          arrays, whole ones, so that they restore onto any mesh (orbax)
    DIRECTORY/STEP/extra/metadata  a JSON object
    DIRECTORY/STEP/checksums.json  {file: [bytes, sha256]} of all of the above

A checkpoint is written into a temporary folder that is renamed when it is whole (in an object store, which renames
nothing: marked), and the oldest one is deleted only after that: whatever happens during a save, the checkpoint
before it stays. Every reader checks the checksums; an object store has its own, there only sizes are compared.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

from etils import epath

from hhh_jax import distributed
from hhh_jax.atomic import free_space
from hhh_jax.errors import UserError
from hhh_jax.storage import is_remote, open_path

PyTree = Any
CHECKSUMS = "checksums.json"
COMMITTED = "commit_success.txt"  # orbax's mark of what is whole


class Checkpoints:
    """The checkpoints of one run; a context manager. Of several processes each makes the same calls."""

    def __init__(self, directory: str | os.PathLike[str], *, keep: int = 2, keep_every: int = 0) -> None:
        """Open or create `directory`; UserError if that fails.

        The newest `keep` checkpoints stay there and, unless it is 0, those of steps that `keep_every` divides.
        """
        import orbax.checkpoint as ocp

        _quiet_orbax()
        self.directory = open_path(directory)
        self._saving: int | None = None  # the step last given to `save`
        try:
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep,
                    keep_period=keep_every or None,
                    cleanup_tmp_directories=True,
                    # Despite its name it runs before the folder is renamed: checksums are part of the whole.
                    async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
                ),
                item_handlers={
                    # Weights shrink by 8%, which is not worth the time of a processor that could train.
                    "state": ocp.PyTreeCheckpointHandler(use_compression=False),
                    "extra": ocp.JsonCheckpointHandler(),
                },
            )
        except OSError as error:
            raise UserError(f"cannot keep checkpoints in {self.directory}: {error.strerror or error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, exception: BaseException | None, trace: object) -> None:
        if exception is not None and not isinstance(exception, UserError | SystemExit) and distributed.several():
            return  # a process may be lost, and with it the end of the save in progress
        try:
            self.close()
        except UserError as error:
            if exception is None:
                raise
            warnings.warn(str(error), stacklevel=2)  # what ended the run comes first

    def latest_step(self) -> int | None:
        """The newest step whose save is finished; None if there is none."""
        return max(steps(self.directory), default=None)

    def save(self, step: int, state: PyTree, extra: dict[str, Any], *, wait: bool = False) -> None:
        """Save `state` (a pytree of jax arrays) and `extra` (a JSON object) as the checkpoint of `step`.

        Returns when the arrays are copied, so that they may be donated, while a thread goes on writing; with
        `wait`, when they are on disk. Raises UserError if this save, or the one before it, could not be
        written (the run is to stop then: no further save is promised to work), and ValueError if `step` has a
        checkpoint.
        """
        import orbax.checkpoint as ocp

        json.dumps(extra)  # so that what is no JSON is a TypeError here rather than in the thread
        self.wait()
        self._saving = step
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(state), extra=ocp.args.JsonSave(extra))
        try:
            self._manager.save(step, args=args, force=True)  # else one before the newest is skipped
        except OSError as error:
            raise self._save_error(error) from error
        if wait:
            self.wait()

    def wait(self) -> None:
        """Block until the save in progress is on disk. Raises UserError if it could not be written."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:  # of a full disk, tensorstore makes a ValueError
            raise self._save_error(error) from error

    def close(self) -> None:
        """`wait`, then stop the threads."""
        try:
            self.wait()
        finally:
            try:
                self._manager.close()
            except (OSError, ValueError) as error:
                raise self._save_error(error) from error

    def restore_latest(self, abstract_state: PyTree) -> tuple[int, PyTree, dict[str, Any]] | None:
        """(step, state, extra) of the newest whole checkpoint; None if the run has none yet.

        `abstract_state` has jax.ShapeDtypeStruct leaves, with the shardings to restore onto (none: the first
        device). A damaged checkpoint is passed over for the one before, with a warning that names it, and
        renamed to STEP.damaged, so that the run can get to that step again. Raises UserError if all are
        damaged, or if the checkpoint is not of this model.
        """
        self.wait()
        whole, damaged = _newest_whole(self.directory, steps(self.directory))
        if whole is None:
            return None
        restored = int(whole.name), _restore(whole, abstract_state), _read_extra(whole)
        if distributed.is_first():
            for path in damaged:
                aside = path.parent / f"{path.name}.damaged"
                aside.rmtree(missing_ok=True)
                path.rename(aside)
        distributed.agree("damaged checkpoints are moved")
        self._manager.reload()
        return restored

    def _write_checksums(self) -> None:
        folders = self.directory.glob(f"{self._saving}.orbax-checkpoint-tmp*")
        for folder in [self.directory / str(self._saving)] if is_remote(self.directory) else folders:
            (folder / CHECKSUMS).write_text(json.dumps(_checksums(folder, _files(folder)), indent=1))

    def _save_error(self, error: Exception) -> UserError:
        import jax

        if isinstance(error, TimeoutError) or (jax.process_count() > 1 and distributed.is_loss(error)):
            raise error  # of a barrier, or of what else processes do together: this disk is not to blame
        for folder in self.directory.glob(f"{self._saving}.orbax-checkpoint-tmp*"):
            with contextlib.suppress(OSError):
                folder.rmtree()  # it may hold the space that the user now lacks
        code = re.search(r"os_error_code='(\d+)'", str(error))  # in tensorstore's messages
        reason = os.strerror(int(code[1])) if code else getattr(error, "strerror", None) or str(error)
        before = max((step for step in steps(self.directory) if step != self._saving), default=None)
        intact = "it was the first" if before is None else f"the previous one, of step {before}, is intact"
        return UserError(
            f"cannot save the checkpoint of step {self._saving} in {self.directory}: "
            f"{reason.splitlines()[0]}{free_space(self.directory)}; {intact}"
        )


def steps(directory: str | os.PathLike[str]) -> list[int]:
    """The steps whose save is finished, in ascending order; none if there is no such folder."""
    folder = open_path(directory)
    found = [path for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
    return sorted(int(path.name) for path in found if not is_remote(path) or (path / COMMITTED).exists())


def read_extra(directory: str | os.PathLike[str], step: int | None = None) -> dict[str, Any]:
    """The `extra` of the checkpoint of `step`, or of the newest whole one; UserError if there is none."""
    return _read_extra(_choose(directory, step))


def restore_params(
    directory: str | os.PathLike[str],
    abstract_params: PyTree,
    *,
    subtree: str = "params",
    step: int | None = None,
) -> PyTree:
    """state[subtree] of the checkpoint of `step`, or of the newest whole one: what another stage starts from.

    Nothing else of the state is restored. `abstract_params` has jax.ShapeDtypeStruct leaves, with the
    shardings to restore onto (none: the first device). Raises UserError if there is no such checkpoint, or if
    a parameter is missing, left over, or of another shape or dtype.
    """
    return _restore(_choose(directory, step), {subtree: abstract_params}, partial=True)[subtree]


def _choose(directory: str | os.PathLike[str], step: int | None) -> epath.Path:
    folder = open_path(directory)
    found = steps(folder)
    if not found:
        raise UserError(f"{folder} holds no checkpoint")
    if step is not None and step not in found:
        raise UserError(f"{folder} holds no checkpoint of step {step}, but of {', '.join(map(str, found))}")
    whole, _ = _newest_whole(folder, found if step is None else [step])
    assert whole is not None
    return whole


def _newest_whole(folder: epath.Path, candidates: list[int]) -> tuple[epath.Path | None, list[epath.Path]]:
    """The newest checkpoint whose checksums agree (None of no candidates), and the damaged ones after it.

    Several processes share the reading, go by process 0's candidates, and come to the same result.
    """
    damaged: list[epath.Path] = []
    waiting = sorted(candidates)
    while (step := distributed.agree(waiting.pop() if waiting else None)) is not None:
        path = folder / str(step)
        problem = _damage(path)
        if not distributed.anywhere(problem is not None):
            return path, damaged
        reason = problem or "another process found that"
        warnings.warn(f"checkpoint {path} is damaged and not used: {reason}", stacklevel=3)
        damaged.append(path)
    if damaged:
        names = ", ".join(path.name for path in damaged)
        raise UserError(f"every checkpoint in {folder} is damaged ({names}); move it away to start again")
    return None, []


def _read_extra(path: epath.Path) -> dict[str, Any]:
    return json.loads((path / "extra" / "metadata").read_text())


def _restore(path: epath.Path, abstract: PyTree, *, partial: bool = False) -> PyTree:
    """A checkpoint's state in the structure and shardings of `abstract`; `partial`: only the keys it has."""
    import jax
    import orbax.checkpoint as ocp

    _quiet_orbax()
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or device), abstract
    )
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        saved = handler.metadata(path / "state").tree
        _assert_same_arrays(path, abstract, {key: saved.get(key) for key in abstract} if partial else saved)
        args = ocp.args.PyTreeRestore(abstract, restore_args=restore_args, partial_restore=partial)
        return handler.restore(path / "state", args=args)


def _assert_same_arrays(path: epath.Path, abstract: PyTree, saved: PyTree) -> None:
    here, there = _describe(abstract), _describe(saved)
    problems = []
    for name in sorted(here.keys() | there.keys()):
        if name not in there:
            problems.append(f"{name} is missing there and {here[name]} here")
        elif name not in here:
            problems.append(f"{name} is {there[name]} there and unknown here")
        elif here[name] != there[name]:
            problems.append(f"{name} is {there[name]} there and {here[name]} here")
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"checkpoint {path} is of another model or optimizer: {problems[0]}{more}")


def _describe(tree: PyTree) -> dict[str, str]:
    """{"params/blocks/w": "float32[2,3]"} for every array of a tree, however its nodes are written down."""
    import jax

    def name(key: Any) -> str:
        return str(next(getattr(key, field) for field in ("key", "name", "idx") if hasattr(key, field)))

    return {
        "/".join(map(name, keys)): f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _files(folder: epath.Path) -> list[str]:
    """Names of all files of a checkpoint but orbax's notes at the top, which change as the folder is renamed."""
    names, waiting = [], [folder / "state", folder / "extra"]
    while waiting:
        for path in waiting.pop().iterdir():
            if path.is_dir():
                waiting.append(path)
            else:
                names.append(os.fspath(path).removeprefix(f"{os.fspath(folder)}/"))
    return sorted(names)


def _checksums(folder: epath.Path, names: Iterable[str]) -> dict[str, list[Any] | None]:
    """{file: [bytes, sha256]} of the files of these names; None for one that is not there."""
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(names, pool.map(lambda name: _checksum(folder / name), names), strict=True))


def _checksum(path: epath.Path) -> list[Any] | None:
    try:
        if is_remote(path):
            return [path.stat().length, None]
        with open(path, "rb") as file:
            return [os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()]
    except FileNotFoundError:
        return None


def _damage(folder: epath.Path) -> str | None:
    """What is wrong with a checkpoint's files; None if they are as they were written. Each process looks at a part."""
    try:
        expected = json.loads((folder / CHECKSUMS).read_text())
        found = _checksums(folder, sorted(expected)[distributed.share()])
    except (OSError, ValueError) as error:
        return f"{CHECKSUMS}: {error}" if isinstance(error, ValueError) else str(error)
    for name, now in found.items():
        if now is None:
            return f"{name} is missing"
        if now != expected[name]:
            return f"{name} holds {now[0]} bytes that are not the {expected[name][0]} written"
    return None


def _quiet_orbax() -> None:
    """Keep orbax's messages (absl's logger) off the terminal: what goes wrong, it raises and we report."""
    logger = logging.getLogger("absl")
    if _is_not_orbax not in logger.filters:
        logger.addFilter(_is_not_orbax)


def _is_not_orbax(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname
