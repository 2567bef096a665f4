"""Datasets of Hugging Face and TFDS, by name or as folders, with the columns that are named.

    --source=hub --input=Anthropic/hh-rlhf --option=good=chosen --option=bad=rejected
    --source=hub --input=allenai/c4 --option=config=en --kind=documents
    --source=hub --input=tfds:lm1b --kind=documents
    --source=hub --input=FOLDER         that `datasets` saved (save_to_disk), or that TFDS prepared

A name is read by `datasets`, from its cache or online; ``--option=revision=`` fixes its version. ``tfds:NAME`` (or
NAME/CONFIG, NAME:VERSION) is prepared by TFDS in its own folder as array_record, where it can without TensorFlow.

Columns are named with dots between levels and numbers for places in a list (``chosen.1.content``). An empty `context`
is none: both sides are then whole texts. Rows of one `group` stay in one split. Splits are those whose names say train,
validation or test (train_prefs); ``--option=splits=train,test`` reads only these, by their full names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hhh_jax.data import rows, streams
from hhh_jax.data.records import Document, Pair
from hhh_jax.data.source import Block, Drop, Options, Row, Source, as_row, one_by_one
from hhh_jax.data.sources.text import distinct, label, plan_splits, split_of_group
from hhh_jax.errors import UserError

_BATCH = 1000  # rows
_COLUMNS = {"pairs": ("context", "good", "bad"), "documents": ("text",)}
_TFDS = "tfds:"


def blocks(inputs: Sequence[str], options: Options) -> Iterator[Block]:
    """Rows as JSON Lines, with the columns that are needed; `context` is JSON: what ids begin with, and the split;
    `first` counts rows."""
    short = distinct([Path(name).name if Path(name).exists() else name for name in inputs], inputs)
    for name, short_name in zip(inputs, short, strict=True):
        splits = _load(name, options)
        wanted = options["splits"].split(",") if options["splits"] else list(splits)
        for split in wanted:
            if split not in splits:
                raise UserError(f"{name}: no split {split!r}; it has {', '.join(splits)}")
        named = [rows.split_of(split) for split in wanted]
        if None in named and len(named) > 1 and not options["splits"]:
            unknown = ", ".join(split for split, known in zip(wanted, named, strict=True) if known is None)
            raise UserError(
                f"{name}: is {unknown} train, validation or test? Name the splits to read, of which such a one is cut "
                f"into all three: --option=splits={','.join(wanted)}"
            )
        digest, size = hashlib.sha256(), 0
        for split, planned in zip(wanted, plan_splits(named), strict=True):
            for block in _split_blocks(name, split, splits[split], options):
                digest.update(block.data)
                size += len(block.data)
                context = {"name": f"{short_name}/{split}", "split": planned}
                yield dataclasses.replace(block, context=json.dumps(context).encode())
        streams.note_input(name, size, digest.hexdigest())


def _split_blocks(name: str, split: str, source: Any, options: Options) -> Iterator[Block]:
    names = [options[column] for column in (*_COLUMNS[options["kind"]], "group") if options[column]]
    columns = {column.split(".")[0] for column in names}
    place = f"{name}/{split}"
    lines = (json.dumps(row, default=_plain).encode() + b"\n" for row in _rows(source, columns, place))
    return rows.blocks_of(place, lines)


def _rows(source: Any, columns: Iterable[str], place: str) -> Iterator[dict[str, Any]]:
    """The rows of a split of `datasets` or TFDS, with these columns. Raises UserError if it lacks one."""
    if hasattr(source, "column_names"):
        _check_columns(columns, source.column_names, place)
        for batch in source.select_columns(sorted(columns)).iter(_BATCH):
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(batch, values, strict=True))
    else:
        for number in range(len(source)):
            row = source[number]
            _check_columns(columns, row, place)
            yield {column: row[column] for column in columns}


def _check_columns(columns: Iterable[str], there: Iterable[str], place: str) -> None:
    for column in columns:
        if column not in there:
            names = ", ".join(there)
            raise UserError(f"{place}: no column {column!r}; it has {names}: --option=good=COLUMN and so on name them")


def _plain(value: Any) -> Any:
    """What JSON lacks: bytes, and arrays and numbers of numpy, as TFDS has them; the rest as text."""
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")  # half a surrogate pair where it isn't UTF-8
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _load(name: str, options: Options) -> Mapping[str, Any]:
    """Splits by name, each a `datasets.Dataset` or a TFDS data source. Raises UserError if there is none."""
    folder = Path(name)
    if name.startswith(_TFDS):
        return _of_tfds(name)
    if (folder / "features.json").is_file():
        return _of_tfds(name)
    try:
        import datasets
    except ModuleNotFoundError:
        raise UserError(f"{name}: needs the library datasets: pip install datasets, or the extra data") from None
    config, revision = options["config"] or None, options["revision"] or None
    try:
        if any((folder / file).is_file() for file in ("dataset_dict.json", "state.json")):
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name, config, revision=revision)
    except Exception as error:  # it and what it calls raise what they like
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{name}: datasets can't load it: {first}; check the name, --option=config= and the network, or give a "
            "folder that save_to_disk made where there is one"
        ) from None
    return loaded if isinstance(loaded, dict) else {"all": loaded}


def _of_tfds(name: str) -> dict[str, Any]:
    import tensorflow_datasets as tfds

    try:
        if name.startswith(_TFDS):
            _import_legacy(name.removeprefix(_TFDS))
            builder = tfds.builder(name.removeprefix(_TFDS), file_format=tfds.core.FileFormat.ARRAY_RECORD)
            builder.download_and_prepare()
        else:
            builder = tfds.builder_from_directory(name)
        return {split: builder.as_data_source(split) for split in builder.info.splits}
    except ModuleNotFoundError as error:
        raise UserError(
            f"{name}: TFDS needs {error.name} for it; install that, or prepare it where it is "
            "(file_format='array_record') and give the folder"
        ) from None
    except Exception as error:  # it and what it calls raise what they like
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = "check the name and the network, or give a folder"
        raise UserError(f"{name}: TFDS can't read it: {first}; {hint}") from None


def _import_legacy(name: str) -> None:
    """Imports the module of an older dataset of the catalogue, which TFDS only then knows by name."""
    import tensorflow_datasets as tfds

    name = re.split(r"\W", name)[0]
    for root in map(Path, tfds.__path__):
        for path in sorted([*root.glob(f"*/{name}.py"), *root.glob(f"*/{name}/{name}.py")]):
            module = ".".join(path.relative_to(root).with_suffix("").parts)
            with contextlib.suppress(ImportError):
                importlib.import_module(f"tensorflow_datasets.{module}")


def read(block: Block, options: Options) -> Iterator[Row | Drop]:
    """Rows that are pairs or documents."""
    context = json.loads(block.context)

    def convert(row: dict[str, Any], place: str) -> Row:
        name, texts = context["name"] + place[len(block.name) :], {}
        for field in _COLUMNS[options["kind"]]:
            path = [int(part) if part.isdecimal() else part for part in options[field].split(".")]
            texts[field] = rows.text(row, *path) if options[field] else ""
            if field != "context" and not texts[field].strip():
                raise rows.Skip(f"{options[field]} is empty", bad=False)
        record: Pair | Document
        if options["kind"] == "pairs":
            if texts["good"] == texts["bad"]:
                raise rows.Skip("both sides are equal", bad=False)
            shared = f"context {rows.digest(texts['context'])}" if texts["context"].strip() else name
            record = Pair(name, **texts, group=label(row, options["group"]) if options["group"] else shared)
        else:
            record = Document(name, **texts, group=label(row, options["group"]) if options["group"] else name)
        # Rows of a group need not meet, and it can be large.
        return dataclasses.replace(as_row(record, split_of_group(context["split"], record.group), place), key=name)

    return rows.each(rows.json_lines(block), convert)


SOURCE = Source(
    name="hub",
    about="a dataset of Hugging Face or TFDS",
    licence="that of the dataset; see its page",
    kinds=("pairs", "documents"),
    blocks=blocks,
    read=read,
    join=one_by_one,
    options=MappingProxyType(
        {"context": "", "good": "chosen", "bad": "rejected", "text": "text", "group": ""}
        | {"splits": "", "config": "", "revision": ""}
    ),
    published=("train", "validation", "test"),
)
