"""A run's record: metrics.jsonl, log.txt, TensorBoard event files, and what a person sees on the terminal.

metrics.jsonl is the record, which figures and a resumed run read; the rest mirrors it. One JSON object a
line, with `step` first. A float is written with as many digits as it takes to read the same bits back. JSON
has no number for what is not finite: such a value is the string "nan", "inf" or "-inf", which `read_metrics`
turns back into a float.

In an object store nothing can be appended: there the files are written in a local folder and copied at each `sync`.
"""

from __future__ import annotations

import json
import math
import os
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, Self

import numpy as np

from hhh_jax.atomic import new_path, write_error, write_errors
from hhh_jax.errors import UserError
from hhh_jax.storage import is_remote, open_path

SECONDS_BETWEEN_LINES = 10.0  # on a standard error that is no terminal
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class Record:
    """Writes one run's record into `workdir`; a context manager.

    Entering cuts metrics.jsonl back to `resume_step`, so that a resumed run's file holds each step once and
    differs from an uninterrupted run's in nothing but time fields. For that, log a step and `sync` before you save
    its checkpoint: what is logged (in an object store, and synced) outlives kill -9. A full disk is a UserError.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        resume_step: int | None,
        total_steps: int,
        *,
        enabled: bool = True,
        quiet: bool = False,
    ) -> None:
        """Nothing is written before the record is entered.

        Args:
          workdir: folder of the run; made if need be.
          resume_step: step of the restored checkpoint; None for a run that starts afresh, in which nothing of
            an earlier attempt stays.
          total_steps: the last step that the run is to reach.
          enabled: False in all processes but one (`jax.process_index() == 0`): no method does anything.
          quiet: print nothing; log.txt is written all the same.
        """
        self.workdir = workdir
        self._local: tempfile.TemporaryDirectory | None = None
        self._resume_step = -1 if resume_step is None else resume_step
        self._total_steps = total_steps
        self._enabled = enabled
        self._quiet = quiet
        self._bar: Any = None
        self._files: dict[str, FileIO] = {}
        self._printed_at = -math.inf
        self._first: tuple[float, int] | None = None  # when this process logged its first step, and which

    def __enter__(self) -> Self:
        if not self._enabled:
            return self
        start = time.time()
        names = {
            "metrics": "metrics.jsonl",
            "log": "log.txt",
            "events": f"events.out.tfevents.{int(start)}.{socket.gethostname()}.{os.getpid()}",
        }
        try:
            folder = self._folder(names.values())
            folder.mkdir(parents=True, exist_ok=True)
            cut_metrics(folder / names["metrics"], self._resume_step)
            for key, name in names.items():
                self._files[key] = FileIO(folder / name, "a")
        except OSError as error:
            self.close()
            raise write_error(error.filename or self.workdir, error) from error
        self._write_event(file_version="brain.Event:2")
        self._write_event(step=self._resume_step + 1, session_log=_restart())
        if not self._quiet and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=self._total_steps, initial=max(self._resume_step, 0), unit="step", dynamic_ncols=True
            )
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; leave the progress bar as it stands."""
        if self._bar is not None:
            self._bar.close()
        for file in self._files.values():
            file.close()
        self.sync()
        if self._local is not None:
            self._local.cleanup()
            self._local = None

    def sync(self) -> None:
        """Copy the files to where they belong, if they are written elsewhere."""
        for path in Path(self._local.name).iterdir() if self._local is not None else ():
            try:
                (open_path(self.workdir) / path.name).write_bytes(path.read_bytes())
            except OSError as error:
                raise write_error(os.path.join(self.workdir, path.name), error) from error

    def _folder(self, names: Iterable[str]) -> Path:
        """The local folder to write in, with what an earlier process left of these files."""
        if not is_remote(self.workdir):
            return Path(self.workdir)
        self._local = tempfile.TemporaryDirectory(prefix="hhh_jax_record_")
        for name in names:
            earlier = open_path(self.workdir) / name
            if earlier.exists():
                Path(self._local.name, name).write_bytes(earlier.read_bytes())
        return Path(self._local.name)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append `{"step": step, "time": seconds since 1970, **metrics}` to metrics.jsonl, and mirror it.

        A value is a number, a string, or an array or list of numbers with one axis, which is the seeds:
        TensorBoard gets NAME/seed0, NAME/seed1, ...
        """
        if not self._enabled:
            return
        fields = {"step": int(step), "time": time.time(), **jsonable(metrics)}
        self._append("metrics", json.dumps(fields, allow_nan=False).encode() + b"\n")
        self._write_event(step=int(step), summary=_summary(fields))
        metrics = {name: value for name, value in fields.items() if name not in ("step", "time")}
        line = " ".join([f"step {step}/{self._total_steps}", *map(_show, metrics, metrics.values())])
        self._append_log(line)
        if self._bar is not None:
            names = [name for name in ("loss", "tokens_per_second") if name in metrics]
            self._bar.set_postfix_str(" ".join(_show(name, metrics[name]) for name in names), refresh=False)
            self._bar.update(step - self._bar.n)
        elif not self._quiet:
            now = time.monotonic()
            if now - self._printed_at >= SECONDS_BETWEEN_LINES or step == self._total_steps:
                self._printed_at = now
                print(line + self._time_left(step, now), file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line for people: to log.txt and, unless the record is quiet, to standard error."""
        if not self._enabled:
            return
        self._append_log(text)
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def _append_log(self, text: str) -> None:
        self._append("log", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n".encode())

    def _append(self, key: str, data: bytes) -> None:
        file = self._files[key]
        try:
            while data:  # a disk that is almost full takes a part first
                data = data[file.write(data) :]
        except OSError as error:
            raise write_error(os.fsdecode(file.name), error) from error

    def _write_event(self, **fields: Any) -> None:
        # Not tensorboardX's SummaryWriter: its thread dies of a full disk, and the run would wait for it.
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        event = Event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(event))
        sums = [struct.pack("<I", masked_crc32c(data)) for data in (length, event)]
        self._append("events", length + sums[0] + event + sums[1])

    def _time_left(self, step: int, now: float) -> str:
        if self._first is None:
            self._first = now, step  # the first step compiles: it says nothing about those to come
            return ""
        seconds = (now - self._first[0]) / max(step - self._first[1], 1) * (self._total_steps - step)
        minutes, seconds = divmod(round(seconds), 60)
        return f" {minutes // 60}:{minutes % 60:02}:{seconds:02} left"


def is_time_field(name: str) -> bool:
    """Whether a field of metrics.jsonl says when or how fast; all others are the same in a resumed run."""
    return name == "time" or name.endswith(("_per_second", "_seconds"))


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, with "nan", "inf" and "-inf" as floats again.

    A last line without its end, which a killed run left, is no part of the record. Raises UserError, with
    file and line, for any other line that is not a JSON object with a `step`.
    """
    try:
        content = open_path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return [
        {name: _as_number(value) for name, value in _parse(line, path, number).items()}
        for number, line in enumerate(_whole_lines(content), start=1)
    ]


def cut_metrics(path: str | os.PathLike[str], last_step: int) -> None:
    """Drop from a metrics.jsonl, atomically, what is after `last_step` or torn; the file need not exist."""
    path = Path(path)
    if not path.exists():
        return
    content = path.read_bytes()
    lines = enumerate(_whole_lines(content), start=1)
    kept = b"".join(line for number, line in lines if _parse(line, path, number)["step"] <= last_step)
    if kept != content:
        write_text_atomic(path, kept.decode())


def write_json_atomic(path: str | os.PathLike[str], obj: Any) -> None:
    """`write_text_atomic` of `obj` as indented JSON; what JSON cannot hold is written as in metrics.jsonl."""
    write_text_atomic(path, json.dumps(jsonable(obj), indent=2, allow_nan=False) + "\n")


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` (UTF-8) so that `path` holds all of the old or all of the new content, whatever happens.

    Raises UserError if it cannot be written, for example to a full disk; the old file is then as it was.
    """
    if is_remote(path):
        with write_errors(path):
            open_path(path).write_text(text)  # an object appears when it is whole
        return
    with new_path(Path(path)) as partial:
        partial.write_bytes(text.encode())


def jsonable(value: Any) -> Any:
    """`value` in terms of JSON: arrays as lists, numpy and jax scalars as numbers, NaN and inf as strings.

    Raises TypeError for what is neither of these nor made of them.
    """
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if hasattr(value, "__array__"):
        return jsonable(np.asarray(value).tolist())
    raise TypeError(f"cannot write {type(value).__name__} {value!r} as JSON")


def _whole_lines(content: bytes) -> list[bytes]:
    return [line + b"\n" for line in content.split(b"\n")[:-1]]  # behind the last newline: a torn line


def _parse(line: bytes, path: str | os.PathLike[str], number: int) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}:{number}: {error}") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("step"), int):
        raise UserError(f"{path}:{number}: not a JSON object with an integer `step`")
    return fields


def _as_number(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_number(item) for item in value]
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


def _show(name: str, value: Any) -> str:
    """A metric for people: "loss=3.142", "loss=[3.142 3.139]", "51.2k tokens/s"."""
    if name == "tokens_per_second" and isinstance(value, int | float):
        return f"{value / 1000:.1f}k tokens/s"
    if isinstance(value, list):
        return f"{name}=[{' '.join(_show('', item)[1:] for item in value)}]"
    return f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"


def _restart() -> Any:
    """What makes TensorBoard drop the events of an earlier process from this one's step on."""
    from tensorboardX.proto.event_pb2 import SessionLog

    return SessionLog(status=SessionLog.START)


def _summary(fields: Mapping[str, Any]) -> Any:
    """The numbers among `fields`, as one TensorBoard summary."""
    from tensorboardX.proto.summary_pb2 import Summary

    scalars: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, list):
            scalars |= {f"{name}/seed{seed}": item for seed, item in enumerate(value)}
        elif name not in ("step", "time"):
            scalars[name] = value
    numbers = {name: _as_number(value) for name, value in scalars.items()}
    return Summary(
        value=[
            Summary.Value(tag=name, simple_value=number)
            for name, number in numbers.items()
            if isinstance(number, int | float)
        ]
    )
