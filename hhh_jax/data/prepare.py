"""Published files in, a TFDS array_record folder out, with a data card: what went in and what was left out.

    python -m hhh_jax.data.prepare --source=stackexchange --input=Posts.xml --output=DIR
    7z x -so Posts.7z | python -m hhh_jax.data.prepare --source=stackexchange --input=- --output=DIR

DIR exists if and only if it is complete; until then everything is in DIR.partial. Killed at any moment, the same
command goes on where it was: it reads the input again, passes over blocks that are finished, and refuses an input that
has changed. The same input, seed and settings give the same bytes, whatever the number of workers.

    read the input in blocks -> workers make rows of them, sorted into buckets -> workers join rows of a few buckets
    to records, in an order drawn by the seed -> shards -> card.json, card.html -> DIR

Memory is bounded by a few blocks (16 MiB) and units (64 MiB of rows) a worker, by the largest set of rows that have a
key in common, and by the window of zstd archives (Pushshift's: up to 2 GiB, in the main process).
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import difflib
import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from hhh_jax import atomic, cli
from hhh_jax.data import shards, sources, streams, unchanged
from hhh_jax.data.source import Source
from hhh_jax.data.workers import (
    BUCKETS,
    Call,
    Job,
    RunAll,
    Settings,
    Tally,
    batches,
    digest,
    make_unit,
    place_of,
    pool,
    read_blocks,
)
from hhh_jax.errors import UserError

BAD_ROWS = ("drop", "error")


def prepare(
    source: str,
    inputs: Sequence[str],
    output: str | Path,
    *,
    kind: str | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    workers: int = 0,
    held_out: float | None = None,
    bad_rows: str = "drop",
    tokenizer: str | None = None,
    partitions: int = BUCKETS,
) -> dict[str, Any]:
    """Prepares a folder, or goes on with it; if it is there already, only makes sure that it is the same.

    Args:
      source: name of a source, or of a module with a `SOURCE`.
      inputs: what the source reads.
      output: the folder.
      kind: of record; the source's first if None.
      options: of the source, by name; texts are converted.
      seed: of the order of records.
      workers: processes; 0 for as many as there are cores.
      held_out: share of the groups for each split that is cut; the source's if None.
      bad_rows: ``drop`` counts damaged rows, ``error`` refuses them.
      tokenizer: a tokenizer.json that the card counts by; None trains one.
      partitions: see `Settings`.

    Returns:
      The content of card.json.

    Raises:
      UserError: for wrong settings, input that can't be used, and a folder that can't be written.
    """
    found = sources.load(source)
    settings = _settings(found, source, kind, options or {}, inputs, seed, held_out, partitions)
    if bad_rows not in BAD_ROWS:
        raise UserError(f"--bad_rows={bad_rows}: must be one of {', '.join(BAD_ROWS)}")
    if workers < 0:
        raise UserError(f"--workers={workers}: must be positive, or 0 for as many as there are cores")
    if tokenizer and not Path(tokenizer).is_file():
        raise UserError(f"--tokenizer={tokenizer}: no such file")
    output = Path(os.path.abspath(output))
    if shards.storable(str(output)) != str(output):
        raise UserError(f"--output={output}: must be UTF-8, all folders that it is in too")
    job = Job(settings, bad_rows, output.with_name(output.name + ".partial"))
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        return unchanged.check_finished(output, found, job, tokenizer)
    with _locked(job.folder):
        _begin(job)
        advice = ", fewer --workers or more --partitions need less"
        with pool(workers or len(os.sched_getaffinity(0)), advice) as run_all:
            inputs_read, tally, n_batches = _read_input(found, job, run_all)
            tally.add(_join_rows(job, n_batches, run_all).as_dict())
        if tally.read == tally.dropped.total():
            atomic.remove(job.folder)
            raise UserError(_nothing_left(settings.inputs, tally))
        facts = _finish(found, job, inputs_read, tally, tokenizer)
        with atomic.write_errors(output):
            os.replace(job.folder / "final", output)
        atomic.remove(job.folder)
    return facts


def _settings(
    found: Source,
    source: str,
    kind: str | None,
    options: Mapping[str, Any],
    inputs: Sequence[str],
    seed: int,
    held_out: float | None,
    partitions: int,
) -> Settings:
    """Checked settings. Raises UserError for those that the source doesn't have."""
    kind = kind or found.kinds[0]
    if kind not in found.kinds:
        raise UserError(f"--kind={kind}: {source} makes {' or '.join(found.kinds)}")
    known = dict(found.options)
    for name, text in options.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            hint = f"; did you mean {near[0]!r}? It has {', '.join(known)}" if near else "; it has none"
            raise UserError(f"--option={name}={text}: {source} has no such option{hint}")
        known[name] = _convert(f"--option={name}={text}", text, type(known[name]))
    held_out = found.held_out if held_out is None else held_out
    if not 0 <= held_out < 0.5:
        raise UserError(f"--held_out={held_out}: must be a share of at least 0 and below 0.5")
    if partitions < 1:
        raise UserError(f"--partitions={partitions}: must be at least 1")
    if not inputs or not all(inputs):
        raise UserError("--input: give a path, several with commas between them, or - for standard input")
    for name, number in collections.Counter(inputs).items():
        if number > 1:
            raise UserError(f"--input: {name} is given {number} times")
    return Settings(source, kind, known, list(inputs), seed, held_out, partitions)


def _convert(where: str, text: Any, wanted: type) -> Any:
    if wanted is bool and str(text).lower() in ("true", "false"):
        return str(text).lower() == "true"
    try:
        if wanted is not bool:
            return wanted(text)
    except ValueError:
        pass
    names = {bool: "true or false", int: "a whole number", float: "a number"}
    raise UserError(f"{where}: must be {names[wanted]}")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with atomic.write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another process is preparing this folder; wait for it, or end it") from None
        yield


def _begin(job: Job) -> None:
    """Makes the folders, or finds those of an earlier run that was made with the same settings."""
    path = job.folder / "settings.json"
    if path.exists():
        unchanged.refuse_difference(job.folder, path, job, "was begun with", f"remove {job.folder} to begin again")
    else:
        state, _ = unchanged.input_state(job.settings.inputs)
        shards.write_json(path, dataclasses.asdict(job.settings) | {"input_state": state})
    for name in ("rows", "units", "final"):
        with atomic.write_errors(job.folder):
            (job.folder / name).mkdir(exist_ok=True)
        for pattern in ("*.tmp", "*.partial"):
            for stray in (job.folder / name).glob(pattern):
                atomic.remove(stray)


def _read_input(found: Source, job: Job, run_all: RunAll) -> tuple[list[dict[str, Any]], Tally, int]:
    """Has all blocks read. Returns what the journal says of the inputs, the counts of rows so far, and the number of
    batches."""
    path, settings = job.folder / "input.json", job.folder / "settings.json"
    if path.exists():
        summary = json.loads(path.read_text(encoding="utf-8"))
    if not path.exists() or not unchanged.untouched(job.settings.inputs, summary["inputs"], settings):
        with streams.journal(job.bad_rows) as journal:
            n_batches = _read_batches(found, job, run_all, journal)
        tally = Tally()
        for drop in journal.drops:
            tally.read += 1
            tally.drop(drop)
        summary = {"inputs": [*journal.inputs.values()], "batches": n_batches, "tally": tally.as_dict()}
        shards.write_json(path, summary)
    tally = Tally()
    tally.add(summary["tally"])
    for index in range(summary["batches"]):
        tally.add(shards.RowsFile(job.rows_path(index)).meta["tally"])
    tally.refuse_bad(job.bad_rows)
    return summary["inputs"], tally, summary["batches"]


def _read_batches(found: Source, job: Job, run_all: RunAll, journal: streams.Journal) -> int:
    """Has those batches of blocks read that are not finished; returns the number of all."""
    n_batches, place = 0, ", ".join(job.settings.inputs)
    changed = f"the input has changed since {job.folder} was begun; remove that to begin again"
    progress = Progress("read", _size(job.settings.inputs), _bytes)

    def calls() -> Iterator[Call]:
        nonlocal n_batches, place
        with place_of(f"after {place}", job.settings.source):
            for batch in batches(found.blocks(job.settings.inputs, job.options)):
                place = batch[0].place
                path = job.rows_path(n_batches)
                if not path.exists():
                    yield read_blocks, job, n_batches, batch
                elif shards.RowsFile(path).meta["digest"] != digest(batch):
                    raise UserError(f"{place}: {changed}")
                n_batches += 1
                progress.show(journal.raw_bytes)

    run_all(calls())
    progress.show(journal.raw_bytes, end=True)
    if job.rows_path(n_batches).exists():
        raise UserError(f"{', '.join(job.settings.inputs)}: {changed}")
    return n_batches


def _size(names: Sequence[str]) -> int:
    """Bytes of all inputs, 0 if that isn't known."""
    total = 0
    for name in names:
        files = Path(name).rglob("*") if os.path.isdir(name) else [Path(name)]
        sizes = [file.stat().st_size for file in files if os.path.isfile(file)]
        if not any(sizes):
            return 0
        total += sum(sizes)
    return total


def _join_rows(job: Job, n_batches: int, run_all: RunAll) -> Tally:
    """Has all units made. Returns what was dropped on the way."""
    sizes = [0] * job.settings.partitions
    for index in range(n_batches):
        sizes = [a + b for a, b in zip(sizes, shards.RowsFile(job.rows_path(index)).sizes, strict=True)]
    units = shards.plan_units(sizes)
    progress = Progress("joined", len(units), lambda n: f"{round(n, 1):,} units")

    def calls() -> Iterator[Call]:
        for index, (first, last) in enumerate(units):
            if not job.unit_path(index).exists():
                yield make_unit, job, index, first, last, n_batches
            progress.show(index)

    run_all(calls())
    progress.show(len(units), end=True)
    tally = Tally()
    for index in range(len(units)):
        tally.add(json.loads((job.unit_path(index) / "meta.json").read_text(encoding="utf-8"))["tally"])
    tally.refuse_bad(job.bad_rows)
    return tally


def _finish(
    found: Source, job: Job, inputs: list[dict[str, Any]], tally: Tally, tokenizer: str | None
) -> dict[str, Any]:
    """Fills the folder `final`; returns the card."""
    from hhh_jax.data.card import write_card

    settings, final = job.settings, job.folder / "final"
    made = shards.write_folder(final, found.name, found.about, settings.kind, job.folder / "units")
    records: collections.Counter[str] = collections.Counter()
    for shard in made:
        records[shard["split"]] += shard["records"]
        with (final / shard["name"]).open("rb") as file:
            shard["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    facts = {
        "source": settings.source,
        "kind": settings.kind,
        "licence": found.licence,
        "about": found.about,
        "inputs": inputs,
        "settings": dataclasses.asdict(settings) | {"bad_rows": job.bad_rows, "tokenizer": tokenizer},
        "read": tally.read,
        "kept": tally.read - tally.dropped.total(),
        "dropped": dict(tally.dropped.most_common()),
        "dropped_examples": tally.examples,
        "damage": tally.bad,
        "records": dict(records),
        "shards": made,
    }
    print("writing the data card", file=sys.stderr)
    write_card(final, facts, tokenizer=tokenizer, seed=settings.seed)
    with atomic.write_errors(final):
        shutil.copy2(job.folder / "settings.json", final)
    return json.loads((final / "card.json").read_text(encoding="utf-8"))


class Progress:
    """A line on standard error that says how far the work is: kept up to date on a terminal, else now and then."""

    def __init__(self, verb: str, total: int, amount: Callable[[float], str]) -> None:
        self._verb, self._total, self._amount = verb, total, amount
        self._terminal = sys.stderr.isatty()
        self._shown = time.monotonic()
        self._marks: collections.deque[tuple[float, int]] = collections.deque([(self._shown, 0)])

    def show(self, done: int, end: bool = False) -> None:
        """Says that `done` of the total is done, and how fast lately, unless it was said a moment ago."""
        now = time.monotonic()
        if now - self._shown < (0.2 if self._terminal else 10) and not end:
            return
        self._shown = now
        while len(self._marks) > 1 and now - self._marks[0][0] > 60 and not end:
            self._marks.popleft()
        then, before = self._marks[0]
        self._marks.append((now, done))
        speed = (done - before) / max(now - then, 0.1)
        of = f" of {self._amount(self._total)}" if self._total else ""
        line = f"{self._verb} {self._amount(done)}{of}, {self._amount(speed)}/s"
        if self._total and speed and not end:
            line += f", {time.strftime('%H:%M:%S', time.gmtime((self._total - done) / speed))} left"
        start, stop = ("\r", "\x1b[K") if self._terminal else ("", "\n")
        print(f"{start}{line}", end="\n" if end else stop, file=sys.stderr, flush=True)


def _bytes(n: float) -> str:
    return f"{n / 1e6:,.1f} MB" if n >= 1e6 else f"{n / 1e3:,.1f} kB"


def _nothing_left(inputs: Sequence[str], tally: Tally) -> str:
    reasons = ", ".join(f"{n} x {reason}" for reason, n in tally.dropped.most_common())
    first = next((f" (first at {e[0]['place']})" for e in tally.examples.values()), "")
    return f"{', '.join(inputs)}: no rows to use: {reasons}{first}" if reasons else f"{', '.join(inputs)}: empty"


def summary(output: str, card: Mapping[str, Any]) -> str:
    """Some lines for people."""
    records = ", ".join(f"{split} {n:,}" for split, n in card["records"].items())
    dropped = [f"  dropped {n:,}: {reason}" for reason, n in card["dropped"].items()]
    cut = [
        shards.storable(f"  {entry['name']} could not be read to its end: {entry['damage']}")
        for entry in card["inputs"]
        if "damage" in entry
    ]
    return "\n".join(
        [
            f"{output}: {card['kind']}: {records}",
            f"  read {card['read']:,} rows, kept {card['kept']:,}",
            *dropped,
            *cut,
            f"  more in {Path(output) / 'card.html'}",
        ]
    )


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"{argv[1]}: give the input as --input={argv[1]}")
    options = {}
    for option in _OPTION.value:
        name, equals, value = option.partition("=")
        if not equals:
            raise UserError(f"--option={option}: give it as --option=NAME=VALUE")
        options[name] = value
    # A comma may be part of a name.
    inputs = [name for text in _INPUT.value for name in ([text] if os.path.exists(text) else text.split(","))]
    try:
        card = prepare(
            _SOURCE.value,
            inputs,
            _OUTPUT.value,
            kind=_KIND.value,
            options=options,
            seed=_SEED.value,
            workers=_WORKERS.value,
            held_out=_HELD_OUT.value,
            bad_rows=_BAD_ROWS.value,
            tokenizer=_TOKENIZER.value,
            partitions=_PARTITIONS.value,
        )
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)
    print(summary(_OUTPUT.value, card))


if __name__ == "__main__":
    _SOURCE = flags.DEFINE_string(
        "source", None, f"One of {', '.join(sources.MODULES)}, or a module with a SOURCE.", required=True
    )
    _INPUT = flags.DEFINE_multi_string(
        "input", None, "Files or folders, with commas between; - is standard input.", required=True
    )
    _OUTPUT = flags.DEFINE_string("output", None, "The folder to make.", required=True)
    _KIND = flags.DEFINE_string("kind", None, "Of records, where the source makes several.")
    _OPTION = flags.DEFINE_multi_string("option", [], "NAME=VALUE, a setting of the source.")
    _SEED = flags.DEFINE_integer("seed", 0, "Of the order of records.")
    _WORKERS = flags.DEFINE_integer("workers", 0, "Processes; 0 for as many as there are cores.")
    _HELD_OUT = flags.DEFINE_float("held_out", None, "Share of the groups for each split that has to be cut.")
    _BAD_ROWS = flags.DEFINE_enum("bad_rows", "drop", BAD_ROWS, "What to do with damaged rows.")
    _TOKENIZER = flags.DEFINE_string("tokenizer", None, "A tokenizer.json for the card's token counts.")
    _PARTITIONS = flags.DEFINE_integer("partitions", BUCKETS, "More of them bound memory for larger inputs.")
    cli.start(main)
