"""Prepared folders put together: their union, or shares of them by weight.

    --source=mix --input=DIR1,DIR2 --kind=pairs --option=weights=0.7,0.3

Records keep their splits. With weights, each split has as many records as it can while the components' shares in it are
the weights and no record is taken twice; which records are left out is drawn by the seed. Weights are of the components
that have the split. Ids and groups begin with the name of the component's folder. Splits without overlap, which
`prepare` makes itself, are not taken over.
"""

from __future__ import annotations

import dataclasses
import json
import random
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from hhh_jax.data import shards, streams
from hhh_jax.data.files import tfds_info
from hhh_jax.data.records import KINDS
from hhh_jax.data.source import Block, Drop, Options, Row, Source, as_row, one_by_one
from hhh_jax.errors import UserError

_LENGTH = struct.Struct("<i")  # before each record; negative for one that is left out
_LEFT_OUT = _LENGTH.pack(-1)


class _Component(NamedTuple):
    """A prepared folder: its name, and for each split its files and the number of its records."""

    name: str
    splits: dict[str, tuple[list[Path], int]]


def blocks(inputs: Sequence[str], options: Options) -> Iterator[Block]:
    """Serialized records with their lengths; `context` is JSON: the component's name and the split."""
    if options["splits"] not in ("keep", "cut"):
        raise UserError(f"--option=splits={options['splits']}: must be keep or cut")
    components = [_component(Path(folder), options["kind"]) for folder in inputs]
    for name, number in Counter(component.name for component in components).items():
        if number > 1:
            raise UserError(f"--input: {number} folders are named {name}, which their records' ids begin with; rename")
    weights = _weights(options["weights"], len(components))
    for index, (folder, component) in enumerate(zip(inputs, components, strict=True)):
        for path in (path for paths, _ in component.splits.values() for path in paths):
            streams.note_file(str(path))
        _check_shards(Path(folder))
        for split in component.splits:
            size, taken = component.splits[split][1], _taken(components, weights, split, index)
            rng = random.Random(f"mix {component.name} {split} {options['seed']}")
            yield from _split_blocks(folder, component, split, size, taken, rng)


def _component(folder: Path, kind: str) -> _Component:
    if not folder.is_dir():
        partial = folder.with_name(folder.name + ".partial")
        hint = f"; {partial} is not finished: give the command that began it again" if partial.is_dir() else ""
        raise UserError(f"{folder}: no such folder{hint or '; prepare it first'}")
    if not (folder / "dataset_info.json").is_file():
        raise UserError(f"{folder}: not a prepared folder, which has a dataset_info.json; prepare it first")
    from hhh_jax.data.card import NO_OVERLAP

    info = tfds_info(folder)
    fields = {name: {field.name for field in dataclasses.fields(record)} for name, record in KINDS.items()}
    found = next((name for name in fields if set(info.features) == fields[name]), None)
    if found != kind:
        hint = f"give --kind={found}, and folders of that kind only" if found else f"must be {', '.join(KINDS)}"
        raise UserError(f"{folder}: {found or 'its records'} can't be mixed as {kind}; {hint}")
    splits = {
        name: ([Path(path) for path in split.filepaths], split.num_examples)
        for name, split in info.splits.items()
        if not name.endswith(NO_OVERLAP)
    }
    if not any(size for _, size in splits.values()):
        raise UserError(f"{folder}: has no records; prepare it again")
    return _Component(folder.resolve().name, splits)


def _check_shards(folder: Path) -> None:
    """Raises UserError if a shard isn't what the folder's card says it is. They are in the journal already."""
    card = folder / "card.json"
    for shard in json.loads(card.read_text(encoding="utf-8"))["shards"] if card.is_file() else ():
        path = folder / shard["name"]
        if streams.current_journal().inputs.get(str(path), {}).get("sha256", shard["sha256"]) != shard["sha256"]:
            raise UserError(f"{path}: not what card.json says; the file is damaged: prepare {folder} again")


def _weights(text: str, number: int) -> list[float] | None:
    if not text:
        return None
    try:
        weights = [float(weight) for weight in text.split(",")]
    except ValueError:
        weights = []
    if len(weights) != number or not all(0 < weight < float("inf") for weight in weights):
        raise UserError(f"--option=weights={text}: must be {number} positive numbers, one for each input, with commas")
    return weights


def _taken(components: Sequence[_Component], weights: Sequence[float] | None, split: str, index: int) -> int:
    """How many records of a component's split to take."""
    sizes = [component.splits.get(split, ([], 0))[1] for component in components]
    if weights is None:
        return sizes[index]
    total = min(size / weight for size, weight in zip(sizes, weights, strict=True) if size)
    return min(round(total * weights[index]), sizes[index])


def _split_blocks(
    folder: str, component: _Component, split: str, size: int, taken: int, rng: random.Random
) -> Iterator[Block]:
    context = json.dumps({"component": component.name, "split": split}).encode()
    parts: list[bytes] = []
    first, left, length = 1, size, 0
    for path in component.splits[split][0]:
        try:
            for raw in shards.read_records(path):
                # Of the `left` records from here on, each has the same chance to be one of the `taken`.
                if rng.random() * left < taken:
                    parts += [_LENGTH.pack(len(raw)), raw]
                    length, taken = length + len(raw), taken - 1
                else:
                    parts.append(_LEFT_OUT)
                left -= 1
                if length > streams.BLOCK_BYTES:
                    yield Block(f"{folder}/{split}[{first - 1}]", f"{folder}/{split}", b"".join(parts), first, context)
                    first, parts, length = size - left + 1, [], 0
        except RuntimeError as error:  # of array_record
            raise UserError(f"{path}: can't be read: {error}; prepare {folder} again") from None
    if left:
        raise UserError(f"{folder}: the split {split} lacks {left} of its {size} records; prepare it again")
    if parts:
        yield Block(f"{folder}/{split}[{first - 1}]", f"{folder}/{split}", b"".join(parts), first, context)


def read(block: Block, options: Options) -> Iterator[Row | Drop]:
    """The records that were taken, and a drop for each other."""
    context = json.loads(block.context)
    at, number = 0, block.first - 1
    while at < len(block.data):
        place = f"{block.name}[{number}]"
        (length,) = _LENGTH.unpack_from(block.data, at)
        at, number = at + _LENGTH.size, number + 1
        if length < 0:
            yield Drop("left out by the weights", place)
            continue
        record = shards.deserialize(block.data[at : at + length], options["kind"])
        at += length
        name, group = (f"{context['component']}/{text}" for text in (record.id, record.group))
        record = dataclasses.replace(record, id=name, group=group)
        split = None if options["splits"] == "cut" else context["split"]
        # Rows of a group need not meet, and it can be large.
        yield dataclasses.replace(as_row(record, split, place), key=name)


SOURCE = Source(
    name="mix",
    about="prepared datasets put together",
    licence="those of the components; see their data cards",
    kinds=tuple(KINDS),
    blocks=blocks,
    read=read,
    join=one_by_one,
    options=MappingProxyType({"weights": "", "splits": "keep"}),
    published=("train", "validation", "test"),
)
