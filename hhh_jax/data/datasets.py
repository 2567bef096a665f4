"""One place that turns a name into records.

Pairs: `word_order`, `line_order`, `order_label`, `docstring_match`, `word_order_label` (`tasks`), `edits`,
`symbols:T0` .. `symbols:T4` and `symbols:Tb` (`symbols`), or a path to the user's own (`files`). Documents:
`stdlib`, `symbols`, `counting`, `counting:FIRST-LAST`, or a path.
"""

from __future__ import annotations

import difflib
import random
from collections import Counter

from hhh_jax.data import counting, edits, files, stdlib, symbols, tasks
from hhh_jax.data.records import SPLITS, Counts, Dataset, Document, Pair, content_sha
from hhh_jax.errors import UserError

PAIR_NAMES = (*tasks.TASKS, "edits", *(f"symbols:{variant}" for variant in symbols.VARIANTS))
DOCUMENT_NAMES = ("stdlib", "symbols", counting.NAME)


def kind(name: str) -> str:
    """`"ranked"` or `"binary"`; pairs in a file count as ranked. Raises UserError for an unknown name."""
    _check_name(name, PAIR_NAMES)
    return "binary" if name == "symbols:Tb" else tasks.KINDS.get(name, "ranked")


def load_pairs(
    name: str, split: str, *, bad_rows: str = "error", seed: int = 0, limit: int | None = None
) -> Dataset:
    """The pairs of a split (train, validation or test), shuffled by `seed`, at most `limit` of them.

    `seed` also makes the ranking of symbols and the permutations of tasks. `bad_rows` says whether a row of a
    file that can't be used is an "error" or is dropped and counted ("drop"); as it has no split, every split
    counts it. Raises UserError for an unknown name or split and for data that can't be used.
    """
    _check_name(name, PAIR_NAMES)
    _check_split(split)
    if name in tasks.TASKS:
        return _dataset(name, list(tasks.pairs(name, split, seed)[:limit]))
    if name == "edits":
        return _dataset(name, list(edits.pairs(split, seed)[:limit]))
    if name in PAIR_NAMES:
        return _dataset(name, symbols.pairs(name.removeprefix("symbols:"), split, seed, limit))
    rows, named, counts = files.read_pairs(name, bad_rows, split)
    records = files.cut_split(rows, named, split, name)
    random.Random(f"order {split} {seed}").shuffle(records)
    return _dataset(name, records[:limit], counts)


def load_documents(name: str, split: str, *, bad_rows: str = "error") -> Dataset:
    """The documents of a split in the order of their source; otherwise as `load_pairs`.

    What is dropped of `stdlib` is counted in files.
    """
    _check_name(name.partition(":")[0] if name.startswith(f"{counting.NAME}:") else name, DOCUMENT_NAMES)
    _check_split(split)
    if name.startswith(counting.NAME) and not files.is_path(name):
        return _dataset(name, counting.documents(name, split))
    if name == "stdlib":
        return _dataset(name, stdlib.documents(split), stdlib.read_library().counts)
    if name == "symbols":  # all of them in every split: what is held out is pairs, never symbols
        return _dataset(name, symbols.documents())
    rows, named, counts = files.read_documents(name, bad_rows, split)
    return _dataset(name, files.cut_split(rows, named, split, name), counts)


def _dataset(name: str, records: list[Pair] | list[Document], source: Counts | None = None) -> Dataset:
    dropped = Counter(source.dropped if source else {})
    counts = Counts(len(records) + dropped.total(), len(records), dropped)
    return Dataset(name, list(records), counts, content_sha(records))


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise UserError(f"no split {split!r}; the splits are {', '.join(SPLITS)}")


def _check_name(name: str, names: tuple[str, ...]) -> None:
    if name not in names and not files.is_path(name):
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
        raise UserError(
            f"no data named {name!r}; did you mean {near!r}? There are {', '.join(names)}, or a path"
        )
