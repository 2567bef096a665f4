"""A run's record: metrics.jsonl, log.txt, TensorBoard event files, and what a person sees on the terminal.

metrics.jsonl is the record (figures and resuming read it); the rest mirrors it. One JSON object a line, `step` first.
Python writes a float so that it reads back to the same bits. JSON has no number for what is not finite: such a value
is written as the string "nan", "inf" or "-inf", and `read_metrics` turns it back into a float.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import numpy as np

from hhh_jax.errors import UserError

LOG_EVERY_SECONDS = 10.0  # between two plain lines on a standard error that is no terminal
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def is_time_field(name: str) -> bool:
    """Whether a field of metrics.jsonl says when or how fast: all others are equal in a resumed run."""
    return name == "time" or name.endswith(("_per_second", "_seconds"))


def disk_error(path: Path, error: OSError) -> UserError:
    """The one line for a file that cannot be written: it names the path, the reason and the space left."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        reason = f"{reason} ({free_space(path)} free); make room"
    return UserError(f"cannot write {path}: {reason}")


def free_space(path: Path) -> str:
    """The space left on the disk that holds `path`, in words ("1.2 GiB")."""
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    size = float(shutil.disk_usage(path).free)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` (UTF-8) so that `path` holds all of the old or all of the new content, whatever happens.

    Raises UserError, with the old file left as it was, when the disk is full or the folder cannot be written to.
    """
    path = Path(path)
    temporary: str | None = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with open(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise disk_error(path, error) from error
    _sync_directory(path.parent)


def write_json_atomic(path: str | os.PathLike[str], obj: Any) -> None:
    """Write `obj` as indented JSON, atomically (see `write_text_atomic`); arrays become lists, NaN becomes "nan"."""
    write_text_atomic(path, json.dumps(jsonable(obj), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def jsonable(value: Any) -> Any:
    """`value` in terms of JSON: arrays to lists, numpy and jax scalars to numbers, what is not finite to strings."""
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if hasattr(value, "__array__"):
        return jsonable(np.asarray(value).tolist())
    raise TypeError(f"cannot write a {type(value).__name__} as JSON: {value!r}")


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl as dicts, with "nan", "inf" and "-inf" as floats again.

    A last line that a killed run left without its end is not part of the record. Raises UserError, with file and
    line, for any other line that is not a JSON object with a `step`.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    lines = content.split(b"\n")[:-1]  # what stands after the last newline is nothing, or torn
    return [_parse(line, path, number) for number, line in enumerate(lines, start=1)]


def _parse(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}:{number}: {error}") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("step"), int):
        raise UserError(f"{path}:{number}: no JSON object with an integer step")
    return {key: _finite_or_not(value) for key, value in fields.items()}


def _finite_or_not(value: Any) -> Any:
    if isinstance(value, str):
        return _NOT_FINITE.get(value, value)
    if isinstance(value, list):
        return [_finite_or_not(item) for item in value]
    return value


class Record:
    """Writes one run's record into `workdir`; a context manager.

    Entering it cuts metrics.jsonl back to the lines whose step is at most `resume_step` (0 for a fresh run), so that
    a resumed run's file holds every step once, as an uninterrupted run's does but for the time fields.

    Only the process with `enabled` writes (`jax.process_index() == 0`): in all others every method does nothing.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        resume_step: int,
        total_steps: int,
        *,
        enabled: bool = True,
        quiet: bool = False,
    ) -> None:
        """`quiet` prints nothing to standard error (log.txt is still written)."""
        self.workdir = Path(workdir)
        self._resume_step = resume_step
        self._total_steps = total_steps
        self._enabled = enabled
        self._quiet = quiet
        self._metrics: TextIO | None = None
        self._log: TextIO | None = None
        self._events: Any = None
        self._bar: Any = None
        self._printed_at = -math.inf

    def __enter__(self) -> Self:
        if not self._enabled:
            return self
        from tensorboardX import SummaryWriter

        path = self.workdir / "metrics.jsonl"
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
            cut_metrics(path, self._resume_step)
            self._metrics = open(path, "a", encoding="utf-8")
            self._log = open(self.workdir / "log.txt", "a", encoding="utf-8")
        except OSError as error:
            raise disk_error(path, error) from error
        self._events = SummaryWriter(str(self.workdir), purge_step=self._resume_step + 1)
        if not self._quiet and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self._total_steps, initial=self._resume_step, unit="step", dynamic_ncols=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Flush and close all files; leave the progress bar as it stands."""
        if self._bar is not None:
            self._bar.close()
        for file in (self._metrics, self._log, self._events):
            if file is not None:
                file.close()
        self._metrics = self._log = self._events = self._bar = None

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl and mirror it. Values: numbers, strings, arrays or lists of them.

        A list or array with one axis is a value a seed: TensorBoard gets it under NAME/seed0, NAME/seed1, ...
        """
        if not self._enabled:
            return
        assert self._metrics is not None, "log inside `with Record(...)`"
        fields = {"step": int(step), "time": time.time(), **jsonable(metrics)}
        self._append(self._metrics, json.dumps(fields, allow_nan=False))
        for name, value in fields.items():
            if name not in ("step", "time"):
                self._add_scalar(name, _finite_or_not(value), step)
        line = " ".join(f"{name}={_short(value)}" for name, value in fields.items() if name != "time")
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(line.partition(" ")[2])
        self.say(line, always=False)

    def say(self, text: str, *, always: bool = True) -> None:
        """A line for people: to log.txt, and to standard error (there, unless `always`, every 10 s at most)."""
        if not self._enabled:
            return
        assert self._log is not None, "say inside `with Record(...)`"
        self._append(self._log, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")
        if self._quiet:
            return
        if self._bar is not None:
            if always:
                self._bar.write(text, file=sys.stderr)
        elif always or time.monotonic() - self._printed_at >= LOG_EVERY_SECONDS:
            self._printed_at = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    def _append(self, file: TextIO, line: str) -> None:
        try:
            file.write(line + "\n")
            file.flush()
        except OSError as error:
            raise disk_error(Path(file.name), error) from error

    def _add_scalar(self, name: str, value: Any, step: int) -> None:
        if isinstance(value, list):
            for seed, item in enumerate(value):
                self._add_scalar(f"{name}/seed{seed}", item, step)
        elif isinstance(value, int | float):
            self._events.add_scalar(name, value, step)


def cut_metrics(path: Path, last_step: int) -> None:
    """Drop from metrics.jsonl every line after step `last_step` and a torn last line, atomically; absent is fine."""
    if not path.exists():
        return
    content = path.read_bytes()
    lines = content.split(b"\n")[:-1]
    kept = [line for number, line in enumerate(lines, start=1) if _parse(line, path, number)["step"] <= last_step]
    text = b"".join(line + b"\n" for line in kept)
    if text != content:
        write_text_atomic(path, text.decode("utf-8"))


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "[" + " ".join(_short(item) for item in value) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_directory(path: Path) -> None:
    """Make a rename in `path` last through a power failure, where the system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
