"""Documents to model: text files, JSON Lines and parquet, as The Pile, C4, FineWeb, WikiText and books come.

- Rows (``.jsonl``, ``.ndjson``, ``.json`` with an object a line, also compressed, and ``.parquet``) have their text in
  ``--option=field=text``. Their group is their `url`, else their `id` (also those in `meta` or `metadata`), or what
  ``--option=group=FIELD`` names, with dots between levels.
- Text (``.txt``, ``.md``, ``.tokens``) is a document a file; ``--option=document=line`` makes one of each line,
  ``paragraph`` of what stands between blank lines, and a regular expression begins one at each line that it matches:
  ``'^ = [^=].* = $'`` cuts WikiText into articles, ``'^## '`` books into chapters. ``--option=group=file`` keeps what
  is cut from a file in one split.
- In a folder, text is only read if there are no rows. Files and folders named train, validation, test (c4-train.00000,
  val.jsonl, train/00.jsonl) tell splits, except of books (``.md``); ``--option=names=false`` ignores that.
- ``--option=dedup=0.8`` leaves out documents that nearly repeat an earlier one; see `hhh_jax.data.near_duplicates`. It
  reads the input once more, beforehand. Files that tell a held-out split go first and stay whole, so that what nearly
  repeats them is left out of train.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from hhh_jax.data import rows, shards, streams
from hhh_jax.data.near_duplicates import Finder, Lines
from hhh_jax.data.records import Document
from hhh_jax.data.source import Block, Drop, Options, Row, Source, as_row, one_by_one
from hhh_jax.errors import UserError

_ROWS, _TEXT, _PARQUET = "jsonl", "text", "parquet"
_TEXT_ENDINGS = (".txt", ".md", ".tokens")
_SPLIT = re.compile(r"(?:.*[-_.])?(train|validation|valid|val|dev|test)(?:[-_.]?\d+(?:-of-\d+)?)?")
_BATCH, _BUFFER = 16, 2**20  # rows of parquet, and bytes of a column, read at a time
_PARAGRAPH = r"(?<=\n)[ \t\r]*\n"  # a blank line
_META = ("meta", "metadata")
_IDS = ("url", "id")  # that a row's group is named by, or else one of its _META
_HELD_OUT = ("test", "validation")


def blocks(inputs: Sequence[str], options: Options) -> Iterator[Block]:
    """Whole documents; `context` is JSON: the format, the file's short name, the split that it tells and, with dedup,
    which of the block's documents repeat what."""
    files = _files(inputs, options)
    if not options["dedup"]:
        yield from _blocks(files, options)
        return
    if streams.STDIN in inputs:
        raise UserError("dedup reads the input twice, which standard input can't be; give files")
    if options["names"]:
        files.sort(key=lambda file: [split_of(file.path) != split for split in _HELD_OUT])
    repeats = _repeats(files, options)
    for block in _blocks(files, options):
        context = json.loads(block.context) | {"repeats": next(repeats)}
        yield dataclasses.replace(block, context=json.dumps(context).encode())


class _File(NamedTuple):
    path: str
    form: str
    name: str  # within the inputs: the same wherever they lie


def _files(inputs: Sequence[str], options: Options) -> list[_File]:
    """Raises UserError for wrong options, and where a name doesn't tell the format."""
    if options["format"] not in ("", _ROWS, _TEXT, _PARQUET):
        raise UserError(f"--option=format={options['format']}: must be {_ROWS}, {_TEXT} or {_PARQUET}")
    if options["document"] not in ("file", "line"):
        _starts(options["document"])
    found, names = [], []
    for name in inputs:
        try:
            paths = rows.paths([name], _has_rows, "")
        except UserError:
            paths = rows.paths([name], _is_text, "text, JSON Lines or parquet")
        found += paths
        names += [Path(path).relative_to(name).as_posix() if path != name else Path(path).name for path in paths]
    names = distinct(names, found)
    files = [_File(p, options["format"] or _format(p), name) for p, name in zip(found, names, strict=True)]
    if options["group"] not in ("", "file") and any(file.form == _TEXT for file in files):
        raise UserError(f"--option=group={options['group']}: text has no fields; it can be file, or empty")
    return files


def distinct(short: Sequence[str], full: Sequence[str]) -> list[str]:
    """The short names; the full ones for those that several have."""
    counts = Counter(short)
    return [name if counts[name] == 1 else whole for name, whole in zip(short, full, strict=True)]


def _is_text(name: str) -> bool:
    return rows.bare(name).endswith(_TEXT_ENDINGS)


def _has_rows(name: str) -> bool:  # a .json that isn't compressed is some program's settings
    return name.endswith(".parquet") or (rows.is_json_lines(name) and not name.endswith(".json"))


def _format(path: str) -> str:
    if path.endswith(".parquet"):
        return _PARQUET
    if rows.is_json_lines(path):
        return _ROWS
    if _is_text(path):
        return _TEXT
    raise UserError(f"{path}: the name doesn't tell what it is; add --option=format={_ROWS} (or {_TEXT}, {_PARQUET})")


def split_of(path: str) -> str | None:
    """The split that a file's name tells, or the name of the folder that it is in."""
    if rows.bare(path).endswith(".md"):
        return None
    for name in (rows.stem(path), Path(path).parent.name):
        if match := _SPLIT.fullmatch(name):
            return rows.split_of(match[1])
    return None


def plan_splits(named: Sequence[str | None]) -> list[str | None]:
    """What `split_of_group` needs of files whose names tell these splits: where there is no validation split, one is
    cut from train, and a test split as well where there is none."""
    if "validation" in named:
        return list(named)
    cut = "train, to cut" if "test" in named else None
    return [cut if split == "train" else split for split in named]


def split_of_group(planned: str | None, group: str) -> str | None:
    """The split of a record; None leaves it to a hash of the group, as `prepare` cuts splits.

    That hash has validation on one side and test on the other: only the first is cut from train where there is a test.
    """
    if planned != "train, to cut":
        return planned
    return None if shards.fraction(f"split {group}") < 0.5 else "train"


def _blocks(files: Sequence[_File], options: Options) -> Iterator[Block]:
    splits = plan_splits([split_of(file.path) if options["names"] else None for file in files])
    fields = [options["field"], *([options["group"]] if options["group"] else (*_IDS, *_META))]
    columns = [field.split(".")[0] for field in fields]
    for file, split in zip(files, splits, strict=True):
        context = {"format": _TEXT if file.form == _TEXT else _ROWS, "name": file.name, "split": split}
        for block in _file_blocks(file.path, file.form, options["document"], columns):
            yield dataclasses.replace(block, context=json.dumps(context).encode())


def _file_blocks(path: str, form: str, document: str, columns: Sequence[str]) -> Iterator[Block]:
    if form == _PARQUET:
        return parquet_blocks(path, columns)
    if form == _ROWS or document == "line":
        return streams.line_blocks([path])
    if document == "file":
        return streams.file_blocks([path])
    return document_blocks(path, _starts(document))


def _starts(document: str) -> re.Pattern[bytes]:
    """What a document of a text begins with."""
    if document == "paragraph":
        document = _PARAGRAPH
    elif not document.startswith("^"):
        raise UserError(
            f"--option=document={document}: must be file, line, paragraph, or a regular expression that begins with ^"
        )
    try:
        return re.compile(document.encode(), re.MULTILINE)
    except re.error as error:
        raise UserError(f"--option=document={document}: not a regular expression: {error}") from None


def document_blocks(name: str, starts: re.Pattern[bytes], size: int = streams.BLOCK_BYTES) -> Iterator[Block]:
    """A text in blocks that are cut where documents start; `first` counts lines from 1.

    A document of more than MAX_LINE bytes is left out and counted.
    """
    with streams.open_input(name) as stream:
        data, line, overlong = stream.read_full(size).removeprefix(b"\xef\xbb\xbf"), 1, False
        while data:
            more = stream.read_full(size)
            whole = data.rfind(b"\n") + 1 if more else len(data)
            cuts = [match.start() for match in starts.finditer(data, 0, whole) if match.start()]
            if overlong and cuts:  # the rest of what is left out ends at the first
                line, overlong = line + data.count(b"\n", 0, cuts[0]), False
                data, cuts = data[cuts[0] :], [cut - cuts[0] for cut in cuts[1:]]
            end = cuts[-1] if cuts else 0
            if not (more or stream.broken or overlong):
                end = len(data)
            if end:
                yield Block(f"{name}:{line}", name, data[:end], line)
            elif more and (overlong or len(data) > streams.MAX_LINE):
                if not overlong:
                    reason = f"document longer than {streams.MAX_LINE // 2**20} MiB"
                    streams.current_journal().drop(reason, f"{name}:{line}")
                overlong, end = True, whole - 1 if whole else len(data)
            line, data = line + data.count(b"\n", 0, end), data[end:] + more
            if not more:
                return


def parquet_blocks(path: str, columns: Sequence[str]) -> Iterator[Block]:
    """The rows as JSON Lines with those of the columns that are there; `first` counts them from 1.

    Values that JSON lacks come as text.
    """
    return rows.blocks_of(path, _parquet_lines(path, columns))


def _parquet_lines(path: str, columns: Sequence[str]) -> Iterator[bytes]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise UserError(f"{path}: parquet needs pyarrow: pip install pyarrow, or the extra data") from None
    streams.note_file(path)
    done, total = 0, None
    try:
        with parquet.ParquetFile(path, buffer_size=_BUFFER) as file:
            total = file.metadata.num_rows
            for batch in file.iter_batches(_BATCH, columns=columns):
                yield from map(_json_line, _python_rows(batch))
                done += len(batch)
    except (pyarrow.ArrowException, OSError) as error:
        lost = "none of its rows were read" if total is None else f"{total - done:,} of {total:,} rows were not read"
        place, detail = f"{path}:{done + 1} or one of the next", f"{str(error)[:200]}; {lost}"
        streams.current_journal().end_early(path, "broken parquet", place, detail)


def _python_rows(batch: Any) -> Iterator[dict[str, Any] | None]:
    """The rows; None for one whose text isn't UTF-8."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for number in range(len(batch)):
            try:
                yield batch.slice(number, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield None


def _json_line(row: dict[str, Any] | None) -> bytes:
    return b"\xff\n" if row is None else json.dumps(row, default=str).encode() + b"\n"


Found = tuple[str, Document | rows.Skip]


def _documents(block: Block, options: Options) -> Iterator[Found]:
    """(place, document) of every row of a block, or why it is none."""
    context = json.loads(block.context)
    file, skip = context["name"], len(block.name)
    if context["format"] == _ROWS:
        items = rows.json_lines(block)
        return ((place, _of_row(item, file + place[skip:], options)) for place, item in items)
    texts = _texts(block, options["document"])
    return ((place, _of_text(text, file + place[skip:], file, options)) for place, text in texts)


def _of_row(row: dict[str, Any] | rows.Skip, name: str, options: Options) -> Document | rows.Skip:
    if isinstance(row, rows.Skip):
        return row
    try:
        text = rows.text(row, *options["field"].split("."))
        group = _group(row, options["group"])
    except rows.Skip as skip:
        return skip
    return Document(name, text, name if group is None else group) if text.strip() else _EMPTY


def _group(row: dict[str, Any], field: str) -> str | None:
    if field:
        return label(row, field)
    for name, part in itertools.product(_IDS, (row, *(row.get(meta) for meta in _META))):
        if isinstance(part, dict) and part.get(name) is not None:
            return label(part, name)
    return None


def label(row: dict[str, Any], field: str) -> str:
    """The text, or whole number as text, at a field; dots stand between levels. Raises Skip if there is none."""
    parent, _, name = field.rpartition(".")
    value: Any = row
    for level in parent.split(".") if parent else ():
        value = value.get(level) if isinstance(value, dict) else None
    if isinstance(value, dict) and isinstance(value.get(name), int):
        return str(value[name])
    return rows.text(row, *field.split("."))


def _texts(block: Block, document: str) -> Iterator[tuple[str, bytes]]:
    """(place, text) of every document of a text, without the white space around it."""
    if document == "line":
        yield from ((place, line.strip()) for place, line in streams.lines(block) if line.strip())
        return
    if document == "file":
        yield block.place, block.data.removeprefix(b"\xef\xbb\xbf").strip()
        return
    cuts = [match.start() for match in _starts(document).finditer(block.data) if match.start()]
    line = block.first
    for start, end in itertools.pairwise([0, *cuts, len(block.data)]):
        text = block.data[start:end]
        if text.strip():
            blank = text.count(b"\n", 0, len(text) - len(text.lstrip()))
            yield f"{block.name}:{line + blank}", text.strip()
        line += text.count(b"\n")


def _of_text(raw: bytes, name: str, file: str, options: Options) -> Document | rows.Skip:
    try:
        text = raw.decode().replace("\r\n", "\n")
        return Document(name, text, file if options["group"] else name) if text else _EMPTY
    except UnicodeDecodeError as error:
        return rows.Skip("not UTF-8", f"byte {error.start + 1} of the document")


_EMPTY = rows.Skip("empty text", bad=False)


def read(block: Block, options: Options) -> Iterator[Row | Drop]:
    """Rows that are documents."""
    context = json.loads(block.context)
    repeats = dict(context.get("repeats", ()))
    for number, (place, found) in enumerate(_documents(block, options)):
        if isinstance(found, rows.Skip):
            yield Drop(found.reason, place, found.detail, found.bad)
        elif number in repeats:
            yield Drop("nearly repeats an earlier document", place, repeats[number])
        else:
            # Rows of a group need not meet, and it can be large.
            yield dataclasses.replace(as_row(found, split_of_group(context["split"], found.group), place), key=found.id)


def _repeats(files: Sequence[_File], options: Options) -> Iterator[list[tuple[int, str]]]:
    """For every block (number of a document in it, place of what it repeats); reads all of them first."""
    with Finder(options["dedup"]) as finder, contextlib.closing(Lines()) as places:
        held_out = 0
        numbers: list[array.array[int]] = []  # of a block's documents that aren't skipped
        with streams.journal(streams.current_journal().bad_rows):
            for block in _blocks(files, options):
                numbered = [(n, p, d) for n, (p, d) in enumerate(_documents(block, options)) if isinstance(d, Document)]
                numbers.append(array.array("I", [number for number, _, _ in numbered]))
                finder.add([document.text for _, _, document in numbered])
                if json.loads(block.context)["split"] in _HELD_OUT:  # their files come first
                    held_out += len(numbered)
                for _, place, _ in numbered:
                    places.add(place)
        earlier = finder.earlier()
        earlier[:held_out] = -1
        print(f"near duplicates: {(earlier >= 0).sum():,} of {len(earlier):,} documents", file=sys.stderr)
        done = 0
        for block_numbers in numbers:
            mine = earlier[done : done + len(block_numbers)]
            done += len(block_numbers)
            yield [(n, places[int(e)]) for n, e in zip(block_numbers, mine, strict=True) if e >= 0]


SOURCE = Source(
    name="text",
    about="documents for language modeling",
    licence="that of the text, which the files don't state; see where they come from",
    kinds=("documents",),
    blocks=blocks,
    read=read,
    join=one_by_one,
    options=MappingProxyType(
        {"field": "text", "group": "", "document": "file", "format": "", "names": True, "dedup": 0.0}
    ),
    published=("train", "validation", "test"),
)
