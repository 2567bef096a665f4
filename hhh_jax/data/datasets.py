"""One place that turns a name into records."""

from __future__ import annotations

import difflib

from hhh_jax.data import stdlib, symbols, tasks
from hhh_jax.data.records import Counts, Dataset, content_sha
from hhh_jax.errors import UserError

SYMBOL_NAMES = tuple(f"symbols:{variant}" for variant in symbols.VARIANTS)
PAIR_NAMES = (*tasks.TASKS, *SYMBOL_NAMES)
DOCUMENT_NAMES = ("stdlib",)


def kind(name: str) -> str:
    """`"ranked"` or `"binary"`; a user's own pairs count as ranked."""
    if name in tasks.KINDS:
        return tasks.KINDS[name]
    return "binary" if name == "symbols:Tb" else "ranked"


def load_pairs(
    name: str, split: str, *, bad_rows: str = "error", seed: int = 0, limit: int | None = None
) -> Dataset:
    """The pairs of a task, of `symbols:T0` .. or of a file."""
    _check_split(split)
    if name in tasks.TASKS:
        records = tasks.pairs(name, split, seed)[:limit]
    elif name in SYMBOL_NAMES:
        records = symbols.pairs(name.removeprefix("symbols:"), split, seed, limit)
    else:
        raise UserError(_unknown(name, PAIR_NAMES))
    return Dataset(name, records, Counts(len(records), len(records)), content_sha(records))


def load_documents(name: str, split: str, *, bad_rows: str = "error") -> Dataset:
    """The documents of the standard library or of a file."""
    _check_split(split)
    if name != "stdlib":
        raise UserError(_unknown(name, DOCUMENT_NAMES))
    records = stdlib.documents(split)
    return Dataset(name, records, Counts(len(records), len(records)), content_sha(records))


def _check_split(split: str) -> None:
    if split not in stdlib.SPLITS:
        raise UserError(f"no split {split!r}; the splits are {', '.join(stdlib.SPLITS)}")


def _unknown(name: str, names: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    return f"no data named {name!r} (did you mean {near[0]!r}?); there are {', '.join(names)}, or give a path to a file"
