"""What sources of small published files share: which files, which split, rows of JSON and CSV, checked fields."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hhh_jax.data import streams
from hhh_jax.data.source import Block, Drop, Row
from hhh_jax.errors import UserError

_JSON_LINES = (".jsonl", ".json", ".ndjson")
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_SPLITS = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
    "development": "validation", "test": "test",
}  # fmt: skip

T = TypeVar("T")


class Skip(Exception):
    """A row that can't be used: its `Drop` but for the place. `bad` as there."""

    def __init__(self, reason: str, detail: str = "", bad: bool = True) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail, self.bad = reason, detail, bad


def each(items: Iterable[tuple[str, T | Skip]], convert: Callable[[T, str], Row]) -> Iterator[Row | Drop]:
    """`convert(item, place)` of every (place, item); a Skip, as an item or raised, is a Drop."""
    for place, item in items:
        try:
            if isinstance(item, Skip):
                raise item
            yield convert(item, place)
        except Skip as skip:
            yield Drop(skip.reason, place, skip.detail, skip.bad)


def paths(inputs: Sequence[str], wanted: Callable[[str], bool], what: str) -> list[str]:
    """The inputs; in place of a folder those of its files, sorted and not hidden, whose path is `wanted`.

    Raises UserError, which says `what` was looked for, if a folder has none.
    """
    found = []
    for name in inputs:
        folder = Path(name)
        if name == streams.STDIN or not folder.is_dir():
            found.append(name)
            continue
        below = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        files = [str(folder / path) for path in below if not any(part.startswith(".") for part in path.parts)]
        chosen = [path for path in files if wanted(path)]
        if not chosen:
            raise UserError(f"{name}: none of its {len(files)} files is {what}")
        found += chosen
    return found


def bare(name: str) -> str:
    """A file's name without the endings of compression."""
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    return name


def stem(name: str) -> str:
    """A file's name in lower case without folders and the endings of compression and format."""
    name = bare(Path(name).name.lower())
    return name.rpartition(".")[0] or name


def is_json_lines(name: str) -> bool:
    """Whether a file's name is one that JSON Lines have, compressed or not."""
    return bare(name).endswith(_JSON_LINES)


def split_of(name: str) -> str | None:
    """The split that a word of a file's name tells (train, dev, valid1, ...), if any."""
    words = re.findall("[a-z]+", stem(name))
    return next((_SPLITS[word] for word in words if word in _SPLITS), None)


def json_lines(block: Block) -> Iterator[tuple[str, dict[str, Any] | Skip]]:
    """(place, object) of every line that isn't blank."""
    for place, line in streams.lines(block):
        if line.strip():
            yield place, json_object(line)


def blocks_of(name: str, lines: Iterable[bytes]) -> Iterator[Block]:
    """Lines, each with its end, in blocks of about BLOCK_BYTES; `first` counts them from 1."""
    first, parts, size = 1, [], 0
    for line in lines:
        parts.append(line)
        size += len(line)
        if size > streams.BLOCK_BYTES:
            yield Block(f"{name}:{first}", name, b"".join(parts), first)
            first, parts, size = first + len(parts), [], 0
    if parts:
        yield Block(f"{name}:{first}", name, b"".join(parts), first)


def json_object(line: bytes) -> dict[str, Any] | Skip:
    """The JSON object that a line is, or why it is none."""
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return Skip("not UTF-8", f"byte {error.start + 1} of the line")
    except (ValueError, RecursionError) as error:
        return Skip("broken JSON", str(error))
    return row if isinstance(row, dict) else Skip("not a JSON object", str(row)[:40])


def json_document(block: Block) -> Any:
    """The one JSON value that a file is. Raises UserError with the line if it isn't."""
    try:
        return json.loads(block.data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = block.data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{block.name}:{line}: not UTF-8; copy the file again") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{block.name}:{error.lineno}: broken JSON: {error.msg}; copy the file again") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{block.name}: broken JSON: {error}; copy the file again") from None


def csv_rows(block: Block) -> Iterator[tuple[str, list[str] | Skip]]:
    """(place, fields) of every row; it may go over several lines and has as many fields as the first.

    After a row that is none, as one whose quotes don't close, reading goes on at the next line.
    """
    columns = 0
    text = block.data.decode("utf-8-sig", "surrogateescape")
    physical = list(io.StringIO(text, newline=""))
    at = 0
    while at < len(physical):
        reader = csv.reader((physical[i] for i in range(at, len(physical))), strict=True)
        done = at
        try:
            for fields in reader:
                start, done = done, at + reader.line_num
                place = f"{block.name}:{start + 1}"
                if not fields:
                    continue
                columns = columns or len(fields)
                if len(fields) != columns:
                    done = start + 1
                    yield place, Skip(f"not {columns} columns", f"{len(fields)}: {','.join(fields)[:60]}")
                    break
                yield place, fields if _is_text("".join(fields)) else Skip("not UTF-8")
            at = done
        except csv.Error as error:
            yield f"{block.name}:{done + 1}", Skip("broken CSV", str(error))
            at = done + 1


def text(row: Any, *path: str | int) -> str:
    """The text at `path` (keys and indices) in a row. Raises Skip if there is none."""
    value = _at(row, path)
    if not isinstance(value, str):
        raise Skip(f"{_dotted(path)} is not text")
    if not _is_text(value):
        raise Skip(f"{_dotted(path)} has half a surrogate pair")
    return value


def number(row: Any, *path: str | int) -> float:
    """The number at `path` in a row. Raises Skip if there is none; NaN and Infinity are none."""
    value = _at(row, path)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or (isinstance(value, float) and not math.isfinite(value)):
        raise Skip(f"{_dotted(path)} is not a number")
    return value


def index(row: Any, size: int, *path: str | int) -> int:
    """The whole number below `size` at `path`, as a number or as its digits. Raises Skip if there is none."""
    value = _at(row, path)
    if isinstance(value, str) and value.strip().isdecimal() and len(value) <= 18:  # int refuses thousands
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < size:
        raise Skip(f"{_dotted(path)} is not in 0..{size - 1}", str(value)[:40])
    return value


def _at(row: Any, path: Sequence[str | int]) -> Any:
    for depth, key in enumerate(path, 1):
        try:
            row = row[key]
        except (KeyError, IndexError, TypeError):
            raise Skip(f"no field {_dotted(path[:depth])}") from None
    return row


def _dotted(path: Sequence[str | int]) -> str:
    return ".".join(map(str, path))


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def digest(*texts: str) -> str:
    """16 hex digits that tell the texts apart; for ids and keys."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def shuffled(options: Sequence[str], right: int, name: str, seed: int) -> tuple[tuple[str, ...], int]:
    """The options in an order that (seed, name) draws, and where the right one is then."""
    order = list(range(len(options)))
    random.Random(f"options {name} {seed}").shuffle(order)
    return tuple(options[i] for i in order), order.index(right)
