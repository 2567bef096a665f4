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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from hhh_jax.data.records import SPLITS, Counts, Document, Pair
from hhh_jax.data.shards import fraction
from hhh_jax.errors import UserError

MAX_BYTES = 4 * 2**20  # of a line, and of a document of a .txt file
BAD_ROWS = ("error", "drop")
HELD_OUT_SHARE = 0.1
_TOO_LONG = f"longer than {MAX_BYTES} bytes"
JSON_LINES, TEXT = (".jsonl", ".jsonl.gz"), (".txt", ".txt.gz")

Record = TypeVar("Record", Pair, Document)
Row = dict[str, Any]


class BadRow(Exception):
    """A row that can't be used: the reason it is counted under, and more words for the error message."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason + detail)
        self.reason = reason


def read_pairs(
    path: str, bad_rows: str = "error", split: str | None = None
) -> tuple[list[Pair], list[str | None], Counts]:
    """The pairs of a .jsonl(.gz) file or TFDS folder in order, the split that each row names, and the counts.

    With a `split`, a folder that has all three is read in that one only; of all else `cut_split` needs everything.

    Raises UserError if the source can't be read, if no row can be used, and with `bad_rows="error"` (the
    other choice is "drop") at the first row that can't.
    """
    return _read(path, _pair, JSON_LINES, bad_rows, split)


def read_documents(
    path: str, bad_rows: str = "error", split: str | None = None
) -> tuple[list[Document], list[str | None], Counts]:
    """The documents of a .txt(.gz) or .jsonl(.gz) file or TFDS folder; otherwise as `read_pairs`."""
    return _read(path, _document, (*TEXT, *JSON_LINES), bad_rows, split)


def is_path(name: str) -> bool:
    """Whether `name` is meant as a file or folder."""
    return "/" in name or name.endswith((*JSON_LINES, *TEXT)) or Path(name).exists()


def cut_split(records: list[Record], named: list[str | None], split: str, path: str) -> list[Record]:
    """The records of one split: those that name it, and its share of those that name none.

    A group's place on [0, 1) is a hash of its name: up to 0.1 goes to validation and from 0.9 on to test
    (where no row names these), at least one group each. Raises UserError if there are too few groups or the
    split is empty.
    """
    free = {record.group for record, name in zip(records, named, strict=True) if name is None}
    places = sorted((fraction(group), group) for group in free)
    most = (len(places) - 1) // 2
    held_out: dict[str, str] = {}
    if "validation" not in named:
        size = min(max(1, sum(place < HELD_OUT_SHARE for place, _ in places)), most)
        held_out |= {group: "validation" for _, group in places[:size]}
    if "test" not in named:
        size = min(max(1, sum(place >= 1 - HELD_OUT_SHARE for place, _ in places)), most)
        held_out |= {group: "test" for _, group in places[len(places) - size :]}
    chosen = [
        record
        for record, name in zip(records, named, strict=True)
        if (name or held_out.get(record.group, "train")) == split
    ]
    if not chosen:
        raise UserError(
            f"{path}: nothing for the {split} split ({len(records)} rows, {len(free)} groups without "
            f"a split); give at least 3 groups, or the rows a field 'split' of {', '.join(SPLITS)}"
        )
    return chosen


def _read(
    path: str, convert: Callable[[Row, str], Record], suffixes: tuple[str, ...], bad_rows: str, split: str | None
) -> tuple[list[Record], list[str | None], Counts]:
    if bad_rows not in BAD_ROWS:
        raise UserError(f"bad_rows is {bad_rows!r}; it must be one of {', '.join(BAD_ROWS)}")
    records, splits, counts, ids = [], [], Counts(), set()
    for place, row in _rows(path, suffixes, split):
        try:
            if isinstance(row, BadRow):
                raise row
            record, named = convert(row, place), _split(row)
            if record.id in ids:
                raise BadRow("id seen before", f": {record.id!r}")
        except BadRow as bad:
            if bad_rows == "error":
                raise UserError(f"{place}: {bad}; mend it, or leave such rows out by bad_rows=drop") from None
            counts.drop(bad.reason)
        else:
            counts.keep()
            ids.add(record.id)
            records.append(record)
            splits.append(named)
    if not records:
        reasons = ", ".join(f"{n} x {reason}" for reason, n in counts.dropped.most_common())
        raise UserError(f"{path}: no usable rows ({reasons or 'the file is empty'})")
    return records, splits, counts


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
    """The examples of `split` if the folder has train, validation and test. Else those of all that it has, where train
    names no split, so that a held-out split which the folder lacks is cut from it."""
    if not (folder / "dataset_info.json").exists():
        inside = sorted(path.parent for path in folder.glob("**/dataset_info.json"))
        hint = f"; did you mean {inside[0]}?" if inside else ""
        raise UserError(f"{folder}: not a TFDS folder, which has a dataset_info.json{hint}")
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(folder)
        file_format = builder.info.file_format
        if file_format is not tfds.core.FileFormat.ARRAY_RECORD:
            raise UserError(
                f"{folder}: has {file_format.value} files; prepare it with file_format='array_record'"
            )
        names = [split for split in SPLITS if split in builder.info.splits]
        if not names:
            raise UserError(f"{folder}: has none of the splits {', '.join(SPLITS)}")
        whole = split is not None and len(names) == len(SPLITS)
        for name in [split] if whole else names:
            source = builder.as_data_source(name)
            for number in range(len(source)):
                row = {**source[number], "split": None if name == "train" and not whole else name}
                yield f"{folder.name}/{name}[{number}]", row
    except UserError:
        raise
    except Exception as error:  # protobuf, array_record and others raise what they like
        raise UserError(f"{folder}: TFDS can't read it: {error}") from None
