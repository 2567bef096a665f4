"""The work of `hhh_jax.data.prepare` that processes share: blocks of input to rows, rows to units of records."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import multiprocessing
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import orjson

import hhh_jax
from hhh_jax.data import shards, sources
from hhh_jax.data.records import KINDS
from hhh_jax.data.source import Block, Drop, Made, Row, Source
from hhh_jax.errors import UserError

BUCKETS = 1024
EXAMPLES = 5  # of dropped rows, a reason
_UNSTORABLE = {"surrogates": "half a surrogate pair", "64-bit": "number of more than 64 bits"}
BATCH_BYTES, BATCH_BLOCKS = 2**20, 64  # of a batch of small blocks, as of folders of small files


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the records depend on.

    Attributes:
      source: name, as `hhh_jax.data.sources.load` takes it.
      kind: of record.
      options: of the source, all of them.
      inputs: paths, ``-``, or what else the source takes.
      seed: of the order of records, and for the source.
      held_out: share of the groups for each split that is cut.
      partitions: number of buckets that rows are sorted into; more of them bound memory for larger inputs.
      version: of this package.
    """

    source: str
    kind: str
    options: dict[str, Any]
    inputs: list[str]
    seed: int = 0
    held_out: float = 0.01
    partitions: int = BUCKETS
    version: str = hhh_jax.__version__


class Job(NamedTuple):
    """What a worker needs to know."""

    settings: Settings
    bad_rows: str
    folder: Path  # OUTPUT.partial

    @property
    def options(self) -> dict[str, Any]:
        return {**self.settings.options, "kind": self.settings.kind, "seed": self.settings.seed}

    def rows_path(self, index: int) -> Path:
        return self.folder / "rows" / f"{index:06}"

    def unit_path(self, index: int) -> Path:
        return self.folder / "units" / f"{index:05}"


@dataclasses.dataclass
class Tally:
    """Counts of rows, with the first places of each reason for a drop."""

    read: int = 0
    dropped: Counter[str] = dataclasses.field(default_factory=Counter)
    examples: dict[str, list[dict[str, str]]] = dataclasses.field(default_factory=dict)
    bad: str = ""

    def drop(self, drop: Drop, rows: int = 1) -> None:
        """Counts `rows` rows as dropped, not as read."""
        reason = shards.storable(drop.reason)
        self.dropped[reason] += rows
        examples = self.examples.setdefault(reason, [])
        first = drop.bad and not self.bad
        if len(examples) >= EXAMPLES and not first:
            return
        place, detail = map(shards.storable, (drop.place, drop.detail))
        if len(examples) < EXAMPLES:
            examples.append({"place": place, "detail": detail[:300]})
        if first:
            self.bad = f"{place}: {reason}{': ' if detail else ''}{detail}"

    def refuse_bad(self, bad_rows: str) -> None:
        """Raises UserError if a damaged row was dropped and that is not allowed."""
        if self.bad and bad_rows == "error":
            raise UserError(f"{self.bad}; --bad_rows=drop leaves such rows out")

    def as_dict(self) -> dict[str, Any]:
        """The tally as plain JSON."""
        return {"read": self.read, "dropped": dict(self.dropped), "examples": self.examples, "bad": self.bad}

    def add(self, other: Mapping[str, Any]) -> None:
        """Adds what another tally's `as_dict` says."""
        self.read += other["read"]
        self.dropped.update(other["dropped"])
        for reason, examples in other["examples"].items():
            mine = self.examples.setdefault(reason, [])
            mine += examples[: EXAMPLES - len(mine)]
        self.bad = self.bad or other["bad"]


Call = tuple[Any, ...]  # a function and its arguments
RunAll = Callable[[Iterable[Call]], None]


@contextlib.contextmanager
def pool(workers: int, advice: str = "") -> Iterator[RunAll]:
    """A function that has workers make calls, of which a few at a time are taken from their iterable.

    `advice` is for people where a worker was killed.
    """
    context = multiprocessing.get_context("spawn")
    processes = concurrent.futures.ProcessPoolExecutor(workers, context, initializer=_start_worker)

    def run_all(calls: Iterable[Call]) -> None:
        running: set[concurrent.futures.Future[None]] = set()
        for call in calls:
            running.add(processes.submit(*call))
            if len(running) > workers + 1:
                done, running = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    future.result()
        for future in concurrent.futures.as_completed(running):
            future.result()

    try:
        yield run_all
    except BrokenProcessPool:
        raise UserError(f"a worker was killed: was there enough memory? The same command goes on{advice}") from None
    finally:
        processes.shutdown(cancel_futures=True)


def _start_worker() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # every core has a process
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends the workers
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def batches(blocks: Iterable[Block]) -> Iterator[list[Block]]:
    """The blocks in order, small ones put together."""
    batch: list[Block] = []
    size = 0
    for block in blocks:
        if batch and (size + len(block.data) > BATCH_BYTES or len(batch) == BATCH_BLOCKS):
            yield batch
            batch, size = [], 0
        batch.append(block)
        size += len(block.data)
    if batch:
        yield batch


def digest(batch: Iterable[Block]) -> str:
    """SHA-256 (hex) of all that reading the blocks may depend on."""
    sha = hashlib.sha256()
    for block in batch:
        for part in (os.fsencode(block.name), str(block.first).encode(), block.context, block.data):
            sha.update(len(part).to_bytes(8))
            sha.update(part)
    return sha.hexdigest()


@functools.cache
def _source(name: str) -> Source:
    return sources.load(name)


@contextlib.contextmanager
def place_of(place: str, source: str) -> Iterator[None]:
    """Names the place where a source raises what it should not."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise RuntimeError(f"{place}: the source {source} failed: {error!r}") from error


def _pack(item: Row | Drop) -> tuple[bytes, bytes] | Drop:
    if isinstance(item, Drop):
        return item
    try:
        return shards.pack_row(item)
    except orjson.JSONEncodeError as error:
        for words, reason in _UNSTORABLE.items():
            if words in str(error):
                return Drop(reason, item.place, bad=True)
        raise


def read_blocks(job: Job, index: int, batch: list[Block]) -> None:
    """Writes the rows of a batch of blocks. Runs in a worker."""
    source, tally = _source(job.settings.source), Tally()
    meta: dict[str, Any] = {"digest": digest(batch)}

    def rows() -> Iterator[tuple[bytes, bytes]]:
        for block in batch:
            with place_of(block.place, job.settings.source):
                for item in source.read(block, job.options):
                    tally.read += 1
                    packed = _pack(item)
                    if isinstance(packed, Drop):
                        tally.drop(packed)
                        tally.refuse_bad(job.bad_rows)
                    else:
                        yield packed
        meta["tally"] = tally.as_dict()

    shards.write_rows(job.rows_path(index), rows(), job.settings.partitions, meta)


def make_unit(job: Job, index: int, first: int, last: int, n_batches: int) -> None:
    """Writes the records of the buckets from `first` up to but not including `last`. Runs in a worker."""
    groups: dict[bytes, list[bytes]] = {}
    for batch in range(n_batches):
        for key, rest in shards.RowsFile(job.rows_path(batch)).rows(first, last):
            groups.setdefault(key, []).append(rest)
    source, tally = _source(job.settings.source), Tally()
    records: dict[str, tuple[bytes, str, bytes]] = {}
    for key in list(groups):
        rows = [shards.unpack_row(key, rest) for rest in groups.pop(key)]
        with place_of(rows[0].place, job.settings.source):
            made, used = _join(source, rows, job, tally)
            repeated = []
            for item in made:
                name = item.record.id
                if name in records:
                    repeated.append(name)
                else:
                    order = hashlib.sha256(f"{job.settings.seed} {name}".encode()).digest()[:16]
                    split = choose_split(item, source.published, job.settings.held_out)
                    records[name] = order, split, shards.serialize(item.record)
        if repeated:
            tally.drop(Drop("id seen before", rows[0].place, repeated[0]), used * len(repeated) // len(made))
    ordered = [(split, data) for _, split, data in sorted(records.values())]
    shards.write_unit(job.unit_path(index), ordered, {"tally": tally.as_dict()})


def _join(source: Source, rows: list[Row], job: Job, tally: Tally) -> tuple[list[Made], int]:
    """The records of one key's rows, and how many of these they use."""
    made, used = [], len(rows)
    for item in source.join(rows[0].key, rows, job.options):
        if isinstance(item, Drop):
            used -= 1
            tally.drop(item)
            tally.refuse_bad(job.bad_rows)
        elif type(item.record) is KINDS[job.settings.kind]:
            made.append(item)
        else:
            raise TypeError(f"a {type(item.record).__name__} is not of kind {job.settings.kind}")
    if used < 0 or bool(used) != bool(made):
        raise ValueError(f"{len(rows)} rows gave {len(made)} records and {len(rows) - used} drops")
    return made, used


def choose_split(made: Made, published: tuple[str, ...], held_out: float) -> str:
    """The split that the publisher gave a record, or else, or of train where no validation is published, that of its
    group: up to `held_out` of a hash's range is validation, from 1 - `held_out` on test."""
    split, place = made.split, shards.fraction(f"split {made.record.group}")
    if split is None:
        return "validation" if place < held_out else "test" if place >= 1 - held_out else "train"
    if split == "train" and "train" in published and "validation" not in published and place < held_out:
        return "validation"
    if not re.fullmatch("[a-z][a-z0-9_]*", split):
        raise ValueError(f"{split!r} is no name for a split")
    return split
