"""The user's own data: JSON Lines, plain text, and TFDS folders in array_record format (no TensorFlow).

Pairs: rows of `{"context", "good", "bad"}`. Documents: rows of `{"text"}`, or a .txt file in which every
block between blank lines is a document. A row may also give its `id`, its `group` and its `split`; other
fields are ignored. Files may be gzipped (`.gz`).

A row that can't be used is an error that names its line, or is dropped and counted (`bad_rows`). No line,
however long, is held in memory whole. Rows without a split are divided by a hash of their group: about 10%
for each of validation and test, unless the source has them already. Pairs without a group stay together by
their context.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import numbers
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np

from hhh_jax.data.records import SPLITS, Counts, Document, Pair
from hhh_jax.data.shards import example, fraction, read_records
from hhh_jax.errors import UserError

MAX_BYTES = 4 * 2**20  # of a line, and of a document of a .txt file
BAD_ROWS = ("error", "drop")
HELD_OUT_SHARE = 0.1
_TOO_LONG = f"longer than {MAX_BYTES} bytes"
JSON_LINES, TEXT = (".jsonl", ".jsonl.gz"), (".txt", ".txt.gz")

Row = dict[str, Any]


class Source(NamedTuple):
    """What is read.

    Attributes:
      path: of a file or TFDS folder.
      kind: ``pairs`` or ``documents``.
      bad_rows: ``error`` or ``drop``.
      split: of a folder that has it as its own (`has_split`); None reads all splits.
    """

    path: str
    kind: str
    bad_rows: str = "error"
    split: str | None = None


class BadRow(Exception):
    """A row that can't be used: the reason it is counted under, and more words for the error message."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason + detail)
        self.reason = reason


def read_pairs(
    path: str, bad_rows: str = "error", split: str | None = None
) -> tuple[list[Pair], list[str | None], Counts]:
    """The pairs of a .jsonl(.gz) file or TFDS folder in order, the split that each row names, and the counts.

    Of a folder, `split` reads that one only; see `has_split`.

    Raises UserError if the source can't be read, if no row can be used, and with `bad_rows="error"` (the
    other choice is "drop") at the first row that can't.
    """
    return _all(Source(path, "pairs", bad_rows, split))


def read_documents(
    path: str, bad_rows: str = "error", split: str | None = None
) -> tuple[list[Document], list[str | None], Counts]:
    """The documents of a .txt(.gz) or .jsonl(.gz) file or TFDS folder; otherwise as `read_pairs`."""
    return _all(Source(path, "documents", bad_rows, split))


def _all(source: Source) -> tuple[list[Any], list[str | None], Counts]:
    records, named, counts = [], [], Counts()
    for record, name in iterate(source, counts):
        records.append(record)
        named.append(name)
    return records, named, counts


def is_path(name: str) -> bool:
    """Whether `name` is meant as a file or folder."""
    return "/" in name or name.endswith((*JSON_LINES, *TEXT)) or Path(name).exists()


def size(path: str) -> int:
    """Bytes of a file or of all files of a folder."""
    folder = Path(path)
    found = folder.rglob("*") if folder.is_dir() else [folder]
    return sum(file.stat().st_size for file in found if file.is_file())


def has_split(path: str, split: str) -> bool:
    """Whether a path is a folder with a split of its own of this name, so that nothing has to be cut by `cut_split`.

    Train, validation and test are a folder's own if it has all three. Raises UserError if no path can have that split.
    """
    there = list(_tfds_files(Path(path))) if Path(path).is_dir() else []
    if split in SPLITS:
        return set(SPLITS) <= set(there)
    if split not in there:
        raise UserError(f"{path}: has no split {split!r}; it has {', '.join(there or SPLITS)}")
    return True


def places(records: Sequence[Pair | Document], named: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
    """What `cut_split` needs of records: the place of each one's group on [0, 1), a hash of its name, float64 [N]; and
    the split that the row names, uint8 [N], 0 for none and else from 1 on as in SPLITS."""
    codes: dict[str | None, int] = {None: 0, **{split: i for i, split in enumerate(SPLITS, 1)}}
    return (
        np.array([fraction(record.group) for record in records], np.float64),
        np.array([codes[name] for name in named], np.uint8),
    )


def cut_split(places_N: np.ndarray, named_N: np.ndarray, split: str, path: str) -> np.ndarray:
    """The numbers of one split's records, ascending: of those that name it, and of its share of those that name none.

    Groups up to the place 0.1 are validation and from 0.9 on test (where no row names these), at least one group each.
    Raises UserError if there are too few groups or the split is empty.
    """
    free_N = named_N == 0
    groups = np.unique(places_N[free_N])
    most = max((len(groups) - 1) // 2, 0)
    codes = {name: code for code, name in enumerate(SPLITS, 1)}
    splits_N = np.where(free_N, codes["train"], named_N)
    if codes["validation"] not in named_N and most:
        size = min(max(1, int((groups < HELD_OUT_SHARE).sum())), most)
        splits_N[free_N & (places_N <= groups[size - 1])] = codes["validation"]
    if codes["test"] not in named_N and most:
        size = min(max(1, int((groups >= 1 - HELD_OUT_SHARE).sum())), most)
        splits_N[free_N & (places_N >= groups[-size])] = codes["test"]
    chosen = np.flatnonzero(splits_N == codes[split])
    if not len(chosen):
        raise UserError(
            f"{path}: nothing for the {split} split ({len(places_N)} rows, {len(groups)} groups without "
            f"a split); give at least 3 groups, or the rows a field 'split' of {', '.join(SPLITS)}"
        )
    return chosen


def iterate(source: Source, counts: Counts) -> Iterator[tuple[Any, str | None]]:
    """The records of a file or folder one by one, with the split that each row names; `counts` counts them. Otherwise
    as `read_pairs`.

    Memory grows with the number of rows (about 60 bytes each), but for folders with a data card: in these no id is
    there twice.
    """
    path, kind, bad_rows, split = source
    if bad_rows not in BAD_ROWS:
        raise UserError(f"bad_rows is {bad_rows!r}; it must be one of {', '.join(BAD_ROWS)}")
    convert: Callable[[Row, str], Pair | Document] = _pair if kind == "pairs" else _document
    ids: set[int] | None = None if (Path(path) / "card.json").exists() else set()
    for place, row in _rows(path, JSON_LINES if kind == "pairs" else (*TEXT, *JSON_LINES), split):
        try:
            if isinstance(row, BadRow):
                raise row
            record, named = convert(row, place), _split(row)
            if ids is not None:
                size = len(ids)
                ids.add(int.from_bytes(hashlib.sha256(record.id.encode()).digest()[:8]))
                if len(ids) == size:
                    raise BadRow("id seen before", f": {record.id!r}")
        except BadRow as bad:
            if bad_rows == "error":
                raise UserError(f"{place}: {bad}; mend it, or leave such rows out by bad_rows=drop") from None
            counts.drop(bad.reason)
        else:
            counts.keep()
            yield record, named
    if not counts.kept:
        reasons = ", ".join(f"{n} x {reason}" for reason, n in counts.dropped.most_common())
        raise UserError(f"{path}: no usable rows ({reasons or 'the file is empty'})")


def _pair(row: Row, place: str) -> Pair:
    context, good, bad = (_text(row, field) for field in ("context", "good", "bad"))
    for field, side in (("good", good), ("bad", bad)):
        if not side.strip():
            raise BadRow(f"{field!r} is empty")
    if good == bad:
        raise BadRow("both sides are equal")
    name = _name(row, "id") or place
    same_context = f"context {hashlib.sha256(context.encode()).hexdigest()[:12]}" if context.strip() else name
    return Pair(name, context, good, bad, _name(row, "group") or same_context)


def _document(row: Row, place: str) -> Document:
    text = _text(row, "text")
    if not text.strip():
        raise BadRow("'text' is empty")
    name = _name(row, "id") or place
    return Document(name, text, _name(row, "group") or name)


def _text(row: Row, field: str) -> str:
    if field not in row:
        raise BadRow(f"no field {field!r}")
    value = row[field]
    if isinstance(value, bytes):
        value = _decode(value)
    if not isinstance(value, str):
        raise BadRow(f"{field!r} is not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow(f"{field!r} has half a surrogate pair") from None
    return value


def _name(row: Row, field: str) -> str | None:
    if row.get(field) is None:
        return None
    return str(int(row[field])) if isinstance(row[field], numbers.Integral) else _text(row, field)


def _split(row: Row) -> str | None:
    split = _name(row, "split")
    if split not in (None, *SPLITS):
        raise BadRow("'split' is not one of " + ", ".join(SPLITS))
    return split


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow("not UTF-8", f" (byte {error.start + 1})") from None


def _rows(path: str, suffixes: tuple[str, ...], split: str | None) -> Iterator[tuple[str, Row | BadRow]]:
    """(place, row) of every row; the place names file and line. Raises UserError if it can't be read."""
    if Path(path).is_dir():
        yield from _tfds_rows(Path(path), split)
        return
    if not path.endswith(suffixes):
        raise UserError(f"{path}: the name must end in {' or '.join(suffixes)}, or be that of a TFDS folder")
    parse = _text_rows if path.endswith(TEXT) else _json_rows
    try:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as stream:
            yield from parse(_lines(cast(BinaryIO, stream), Path(path).name))
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror or error}") from None


def _lines(stream: BinaryIO, name: str) -> Iterator[tuple[str, bytes | BadRow]]:
    """(place, line without its end); a line over MAX_BYTES or the end of a broken gzip comes as a BadRow."""
    number = 0
    while True:
        number += 1
        place = f"{name}:{number}"
        try:
            line = stream.readline(MAX_BYTES + 2)
            if not line:
                return
            complete = line.endswith(b"\n")
            too_long = len(line.rstrip(b"\r\n")) > MAX_BYTES
            while too_long and not complete:
                more = stream.readline(MAX_BYTES)
                complete = not more or more.endswith(b"\n")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            yield place, BadRow("broken gzip", f" ({error}): the file ends here or isn't gzip; copy it again")
            return
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        yield place, BadRow(_TOO_LONG) if too_long else line.rstrip(b"\r\n")


def _json_rows(lines: Iterable[tuple[str, bytes | BadRow]]) -> Iterator[tuple[str, Row | BadRow]]:
    for place, line in lines:
        if isinstance(line, BadRow):
            yield place, line
        elif line.strip():
            try:
                row = json.loads(_decode(line))
                yield place, row if isinstance(row, dict) else BadRow("not a JSON object")
            except BadRow as bad:
                yield place, bad
            except (ValueError, RecursionError) as error:
                yield place, BadRow("broken JSON", f" ({error})")


def _text_rows(lines: Iterable[tuple[str, bytes | BadRow]]) -> Iterator[tuple[str, Row | BadRow]]:
    """A row for every block between blank lines, at the place of its first line."""
    start, size = "", 0
    block: list[bytes] = []
    bad: BadRow | None = None
    for place, line in itertools.chain(lines, [("", b"")]):
        if isinstance(line, BadRow):
            start, bad = start or place, bad or line
        elif line.strip():
            start, size = start or place, size + len(line) + 1
            if size <= MAX_BYTES:
                block.append(line)
            else:
                block, bad = [], bad or BadRow(_TOO_LONG, ": put a blank line between documents")
        elif start:
            yield start, bad or {"text": b"\n".join(block)}
            start, size, block, bad = "", 0, [], None


def _tfds_rows(folder: Path, split: str | None) -> Iterator[tuple[str, Row | BadRow]]:
    """The examples of one split. Or those of train, validation and test, as far as they are there, where train names no
    split, so that a held-out split which the folder lacks is cut from it."""
    from google.protobuf.message import DecodeError

    splits = _tfds_files(folder)
    wanted = [split] if split else [name for name in SPLITS if name in splits]
    if not wanted:
        raise UserError(f"{folder}: has none of the splits {', '.join(SPLITS)}")
    for name in wanted:
        number = 0
        for path in splits[name]:
            try:
                for raw in read_records(path):
                    row = example(raw) | {"split": None if split or name == "train" else name}
                    yield f"{folder.name}/{name}[{number}]", row
                    number += 1
            except (RuntimeError, ValueError, DecodeError) as error:  # array_record and protobuf
                raise UserError(f"{path}: can't be read: {error}; copy it again") from None


def _tfds_files(folder: Path) -> dict[str, list[Path]]:
    """The array_record files of each split of a TFDS folder."""
    if not (folder / "dataset_info.json").exists():
        inside = sorted(path.parent for path in folder.glob("**/dataset_info.json"))
        hint = f"; did you mean {inside[0]}?" if inside else ""
        raise UserError(f"{folder}: not a TFDS folder, which has a dataset_info.json{hint}")
    return {name: [Path(path) for path in split.filepaths] for name, split in tfds_info(folder).splits.items()}


def tfds_info(folder: Path) -> Any:
    """What TFDS says of a folder. Raises UserError if it can't read it, or the files are not array_record."""
    import tensorflow_datasets as tfds

    try:
        info = tfds.builder_from_directory(folder).info
    except Exception as error:  # protobuf and others raise what they like
        raise UserError(f"{folder}: TFDS can't read it: {error}") from None
    if info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(f"{folder}: has {info.file_format.value} files; prepare it with file_format='array_record'")
    return info
