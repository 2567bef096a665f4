"""One place that turns a name into records.

Pairs: `word_order`, `line_order`, `order_label`, `docstring_match`, `word_order_label` (`tasks`), `edits`,
`symbols:T0` .. `symbols:T4` and `symbols:Tb` (`symbols`), or a path to the user's own (`files`). Documents:
`stdlib`, `symbols`, `counting`, `counting:FIRST-LAST`, `functions`, `passages`, `prompt:NAME` (of `hhh_jax.prompts`,
one document), or a path.
"""

from __future__ import annotations

import array
import dataclasses
import difflib
import random
from collections import Counter
from typing import Any

import numpy as np

from hhh_jax import prompts
from hhh_jax.data import counting, edits, files, functions, passages, stdlib, symbols, tasks
from hhh_jax.data.records import SPLITS, Counts, Dataset, Document, Pair, content_sha
from hhh_jax.errors import UserError

PAIR_NAMES = (*tasks.TASKS, "edits", *(f"symbols:{variant}" for variant in symbols.VARIANTS))
MIX = "+"
"""Between the names of sources of pairs that are put together, as in ``edits+word_order``."""

DOCUMENT_NAMES = ("stdlib", "symbols", counting.NAME, functions.NAME, passages.NAME, "prompt")


BINARY_FOLDERS = ("ethics_commonsense", "ethics_deontology", "ethics_justice", "ethics_virtue")
"""Folders of binary tasks, by their own names wherever they are."""


def kind(name: str) -> str:
    """`"ranked"` or `"binary"`; pairs in a file count as ranked, and in a folder unless it is one of BINARY_FOLDERS.

    Raises UserError for an unknown name.
    """
    _check_name(name, PAIR_NAMES)
    if name == "symbols:Tb" or ("/" in name and name.rpartition("/")[2] in BINARY_FOLDERS):
        return "binary"
    return tasks.KINDS.get(name, "ranked")


def load_pairs(
    name: str, split: str, *, bad_rows: str = "error", seed: int = 0, limit: int | None = None
) -> Dataset:
    """The pairs of a split, shuffled by `seed`, at most `limit` of them.

    Splits are train, validation and test, and of a folder what else it has (test_no_overlap).

    `seed` also makes the ranking of symbols and the permutations of tasks. `bad_rows` says whether a row of a
    file that can't be used is an "error" or is dropped and counted ("drop"); as it has no split, every split
    counts it. Raises UserError for an unknown name or split and for data that can't be used.
    """
    if MIX in name and not files.is_path(name):
        return _mix(name, split, seed, limit)
    _check_name(name, PAIR_NAMES)
    _check_split(name, split)
    if name in tasks.TASKS:
        return _dataset(name, list(tasks.pairs(name, split, seed)[:limit]))
    if name == "edits":
        return _dataset(name, list(edits.pairs(split, seed)[:limit]))
    if name in PAIR_NAMES:
        return _dataset(name, symbols.pairs(name.removeprefix("symbols:"), split, seed, limit))
    own = split if files.has_split(name, split) else None
    rows, named, counts = files.read_pairs(name, bad_rows, own)
    records = rows if own else _cut(rows, named, split, name)
    return _dataset(name, [records[i] for i in order(len(records), split, seed)[:limit]], counts)


def _mix(name: str, split: str, seed: int, limit: int | None) -> Dataset:
    """All pairs of the parts together, in a random order; ids and groups begin with the part."""
    records = [
        dataclasses.replace(pair, id=f"{part}/{pair.id}", group=f"{part}/{pair.group}")
        for part in name.split(MIX)
        for pair in load_pairs(part, split, seed=seed).records
    ]
    return _dataset(name, [records[i] for i in order(len(records), split, seed)[:limit]])


def order(n: int, split: str, seed: int) -> np.ndarray:
    """The order in which the `n` pairs of a split of a file or folder come, int64 [n]."""
    numbers = array.array("q", range(n))
    random.Random(f"order {split} {seed}").shuffle(numbers)
    return np.asarray(numbers, np.int64)


def _cut(records: list[Any], named: list[str | None], split: str, path: str) -> list[Any]:
    return [records[i] for i in files.cut_split(*files.places(records, named), split, path)]


def load_documents(name: str, split: str, *, bad_rows: str = "error", limit: int | None = None) -> Dataset:
    """The documents of a split in the order of their source, at most `limit` of them; otherwise as `load_pairs`.

    What is dropped of `stdlib` is counted in files.
    """
    kind, _, rest = name.partition(":")
    _check_name(kind if kind in (counting.NAME, "prompt") else name, DOCUMENT_NAMES)
    _check_split(name, split)
    if kind == "prompt":
        return _dataset(name, [Document(name, prompts.load(rest).text, name)])
    if kind == counting.NAME:
        return _dataset(name, counting.documents(name, split)[:limit])
    if name == "stdlib":
        return _dataset(name, stdlib.documents(split)[:limit], stdlib.read_library().counts)
    if name == "symbols":  # all of them in every split: what is held out is pairs, never symbols
        return _dataset(name, symbols.documents()[:limit])
    if name in (functions.NAME, passages.NAME):
        made = functions if name == functions.NAME else passages
        return _dataset(name, made.documents(split)[:limit])
    own = split if files.has_split(name, split) else None
    rows, named, counts = files.read_documents(name, bad_rows, own)
    return _dataset(name, (rows if own else _cut(rows, named, split, name))[:limit], counts)


def _dataset(name: str, records: list[Pair] | list[Document], source: Counts | None = None) -> Dataset:
    dropped = Counter(source.dropped if source else {})
    counts = Counts(len(records) + dropped.total(), len(records), dropped)
    return Dataset(name, list(records), counts, content_sha(records))


def _check_split(name: str, split: str) -> None:
    if split not in SPLITS and not files.is_path(name):
        raise UserError(f"no split {split!r}; the splits are {', '.join(SPLITS)}")


def _check_name(name: str, names: tuple[str, ...]) -> None:
    if name not in names and not files.is_path(name):
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
        raise UserError(
            f"no data named {name!r}; did you mean {near!r}? There are {', '.join(names)}, or a path"
        )
