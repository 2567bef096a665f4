"""What `prepare` makes of published files: MB of input a second and a core, against a bare pass of the same parser.

One process reads blocks, makes rows of them and joins these to records, as a worker does, on generated input in the
published format (`hhh_jax.bench.harness.dumps`). Bytes are those after decompression, seconds those of the processor.
The baseline decompresses and parses the same file and does nothing with it: the ratio says how far from that floor a
source is. The last row is the whole command with all cores, on the clock, where the data card is a share that hardly
grows with the input.
"""

import bz2
import contextlib
import csv
import functools
import gzip
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.parsers import expat

from hhh_jax.bench.harness import dumps
from hhh_jax.bench.harness.timing import Row, compare, interleave
from hhh_jax.data import shards, sources, streams, workers

ROUNDS = 3
UNIT = "MB/s a core"
_FEED = 2**20


def rows(quick: bool) -> Iterator[Row]:
    """A row a source, and one of the whole command."""
    words = dumps.Words()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, dump in dumps.DUMPS.items():
            size = 100_000 if quick else dump.megabytes * 10**6
            _rows_and_records(name, dumps.write(name, folder / "warm-up", 20_000, words)[0])  # imports what it needs
            path, n_bytes = dumps.write(name, folder / name, size, words)
            floor, parser = _floor(path)
            measures = {
                "ours": functools.partial(_speed, n_bytes, functools.partial(_rows_and_records, name, path)),
                "floor": functools.partial(_speed, n_bytes, functools.partial(floor, path)),
            }
            speeds = interleave(measures, 1 if quick else ROUNDS)
            note = f"{n_bytes / 1e6:.1f} MB in {path.name}"
            yield compare(name, UNIT, speeds["ours"], parser, speeds["floor"], note)
            if name == "stackexchange":
                yield _whole(name, path, n_bytes)


def _speed(n_bytes: int, work: Callable[[], object]) -> float:
    """MB a second of the processor, counting all threads, so that other programs' share of the machine doesn't."""
    start = time.process_time()
    work()
    return n_bytes / 1e6 / (time.process_time() - start)


def _rows_and_records(name: str, path: Path) -> None:
    """All that `prepare` does but the data card, in this process."""
    source = sources.load(name)
    options = dict(source.options) | dict(dumps.DUMPS[name].options)
    with tempfile.TemporaryDirectory() as scratch:
        settings = workers.Settings(name, source.kinds[0], options, [str(path)])
        job = workers.Job(settings, "drop", Path(scratch))
        for sub in ("rows", "units"):
            (job.folder / sub).mkdir()
        n_batches, sizes = 0, [0] * settings.partitions
        with streams.journal("drop"):
            for batch in workers.batches(source.blocks(settings.inputs, job.options)):
                workers.read_blocks(job, n_batches, batch)
                added = shards.RowsFile(job.rows_path(n_batches)).sizes
                sizes = [a + b for a, b in zip(sizes, added, strict=True)]
                n_batches += 1
        for index, (first, last) in enumerate(shards.plan_units(sizes)):
            workers.make_unit(job, index, first, last, n_batches)
        shards.write_folder(job.folder / "final", name, source.about, settings.kind, job.folder / "units")


def _whole(name: str, path: Path, n_bytes: int) -> Row:
    """The whole command on all cores, on the clock."""
    from hhh_jax.data.prepare import prepare

    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stderr(io.StringIO()):
        start = time.monotonic()
        prepare(name, [str(path)], Path(scratch, "out"))
        seconds = time.monotonic() - start
    note = f"{seconds:.1f} s for {n_bytes / 1e6:.1f} MB on {len(os.sched_getaffinity(0))} cores, the data card included"
    return Row(f"{name}, whole command", "MB/s", n_bytes / 1e6 / seconds, note=note)


def _floor(path: Path) -> tuple[Callable[[Path], None], str]:
    """A bare pass over a file, and what it is called."""
    if path.suffix == ".xml":
        return _pass_expat, "expat"
    if path.suffix == ".bz2":
        return _pass_bytes, "bz2"
    if path.suffix == ".csv":
        return _pass_csv, "csv"
    if path.suffix == ".txt":
        return _pass_bytes, "read"
    return _pass_json, "json.loads" if path.suffix in (".json", ".jsonl") else f"{path.suffix[1:]} and json.loads"


def _opened(path: Path) -> Any:
    if path.suffix == ".zst":
        import zstandard

        return zstandard.open(path, "rb", dctx=zstandard.ZstdDecompressor(max_window_size=2**31))
    openers: dict[str, Any] = {".bz2": bz2.open, ".gz": gzip.open}
    return openers.get(path.suffix, open)(path, "rb")


def _pass_bytes(path: Path) -> None:
    with _opened(path) as file:
        while file.read(_FEED):
            pass


def _pass_expat(path: Path) -> None:
    parser = expat.ParserCreate()
    parser.StartElementHandler = lambda _name, attributes: attributes.get("Body")
    with _opened(path) as file:
        parser.ParseFile(file)


def _pass_json(path: Path) -> None:
    with _opened(path) as file, io.BufferedReader(file, _FEED) as lines:
        for line in lines:
            json.loads(line)


def _pass_csv(path: Path) -> None:
    with path.open(encoding="utf-8", newline="") as file:
        for _ in csv.reader(file):
            pass
