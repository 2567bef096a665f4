"""Whether what a preparation finds is what it was: the folder that it goes on with or leaves alone, and its input."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hhh_jax import atomic
from hhh_jax.data import streams
from hhh_jax.data.source import Source
from hhh_jax.data.workers import Job
from hhh_jax.errors import UserError


def refuse_difference(folder: Path, path: Path, job: Job, verb: str, remedy: str) -> None:
    """Raises UserError if a folder was not made by the settings of `job`, as its settings.json, `path`, says."""
    theirs, ours = json.loads(path.read_text(encoding="utf-8")), dataclasses.asdict(job.settings)
    for name in ours:
        if theirs.get(name) != ours[name]:
            raise UserError(f"{folder}: {verb} {name}={theirs.get(name)!r}, not {ours[name]!r}; {remedy}")


def check_finished(output: Path, found: Source, job: Job, tokenizer: str | None) -> dict[str, Any]:
    """The card of a folder that is there already. Raises UserError if it isn't what is asked for."""
    remedy = f"choose another --output, or remove {output}"
    path = output / "settings.json"
    if not path.exists():
        raise UserError(f"{output}: is there already, and not a prepared folder; {remedy}")
    refuse_difference(output, path, job, "is there already, made with", remedy)
    facts = json.loads((output / "card.json").read_text(encoding="utf-8"))
    _refuse_tokenizer(output, facts, tokenizer, remedy)
    if job.bad_rows == "error" and facts["damage"]:
        raise UserError(f"{output}: is there already, made with --bad_rows=drop; {facts['damage']}; {remedy}")
    if not untouched(job.settings.inputs, facts["inputs"], path):
        with streams.journal(job.bad_rows) as journal:
            for _ in found.blocks(job.settings.inputs, job.options):
                pass
        if _content(journal.inputs.values()) != _content(facts["inputs"]):
            raise UserError(f"{output}: is there already, made from an input that has changed since; {remedy}")
    atomic.remove(job.folder)  # of a run that was killed at its last step
    print(f"{output}: is there already, made by the same settings from the same input", file=sys.stderr)
    return facts


def _refuse_tokenizer(output: Path, facts: Mapping[str, Any], tokenizer: str | None, remedy: str) -> None:
    """Raises UserError if the card's tokens are not of this tokenizer, wherever its file is."""
    from hhh_jax.data.card import sha256

    theirs = facts["settings"].get("tokenizer")
    if tokenizer and theirs and sha256(Path(tokenizer)) == facts["tokenizer"]["sha256"]:
        return
    if tokenizer or theirs:
        differ = " (or its content has changed)" * (tokenizer == theirs)
        made = f"is there already, made with tokenizer={theirs!r}, not {tokenizer!r}{differ}"
        raise UserError(f"{output}: {made}; {remedy}")


def _content(inputs: Iterable[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """What tells inputs apart; how much of damaged ones was read depends on how a pipe delivers them."""
    return [(entry["name"], entry["bytes"], entry["sha256"]) for entry in inputs]


def untouched(names: Sequence[str], read: Iterable[Mapping[str, Any]], path: Path) -> bool:
    """Whether all inputs are those files and folders that they were when that settings.json was written, and nobody has
    written to them since."""
    state, latest = input_state(names)
    known = all(entry["name"] != streams.STDIN and os.path.exists(entry["name"]) for entry in read)
    theirs = json.loads(path.read_text(encoding="utf-8")).get("input_state")
    return known and state != "" and state == theirs and latest < path.stat().st_mtime_ns


def input_state(names: Iterable[str]) -> tuple[str, int]:
    """A hash of which files and folders the inputs are, through links, and of when they were written, empty if one is
    neither; and the latest time (ns) that one was written or put in its place."""
    state, latest = hashlib.sha256(), 0
    for name in names:
        if name == streams.STDIN or not os.path.exists(name):
            return "", 0
        for path in (Path(name), *(sorted(Path(name).rglob("*")) if os.path.isdir(name) else ())):
            if not (path.is_file() or path.is_dir()):
                return "", 0
            stat = path.stat()
            latest = max(latest, stat.st_mtime_ns, stat.st_ctime_ns)
            real = os.path.realpath(path)
            state.update(repr((real, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)).encode())
    return state.hexdigest(), latest
