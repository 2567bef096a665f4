"""What a source is: how published files become records, in pieces that workers do apart.

    blocks  ->  read (in workers)  ->  rows by key  ->  join (in workers)  ->  records by split

`blocks` cuts the input, in order, into pieces of bounded size. `read` turns a block into rows, each with a key; all
rows of a key, from any block, meet in `join`, which makes records of them. Both are pure functions of their arguments,
so that the outcome depends neither on the number of workers nor on where a killed run went on.

Every row of the input is counted once: `read` yields a `Row` or a `Drop` for it, and `join` yields a `Drop` for each
row of its key that no record uses. What is left was kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from hhh_jax.data.records import KINDS, Record

Options = dict[str, Any]
_TYPES: dict[str, Callable[..., Record]] = {kind.__name__: kind for kind in KINDS.values()}


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of the input, cut where rows end.

    Attributes:
      place: of its first byte, for people: the input's name, and the line or page where the block begins.
      name: the input's, which tells several inputs apart: a path as the user gave it, or ``-``.
      data: its decompressed bytes.
      first: number of its first row in that input, from 1.
      context: what `read` needs from before the block; its rows are not counted again.
    """

    place: str
    name: str
    data: bytes
    first: int = 1
    context: bytes = b""


@dataclass(frozen=True, slots=True)
class Row:
    """A usable row: `key` is what rows are joined by, `fields` plain JSON, `place` names file and line."""

    key: str
    fields: dict[str, Any]
    place: str = ""


@dataclass(frozen=True, slots=True)
class Drop:
    """A row that no record uses. Reasons are counted and few; `detail` is shown for the first ones of each reason.

    `bad` tells damage (broken XML, a missing field), which ``--bad_rows=error`` refuses, from what is just not wanted.
    """

    reason: str
    place: str = ""
    detail: str = ""
    bad: bool = False


@dataclass(frozen=True, slots=True)
class Made:
    """A record and the split that its publisher gave it; None leaves the split to a hash of the record's group."""

    record: Record
    split: str | None = None


def as_row(record: Record, split: str | None, place: str) -> Row:
    """A row that is a record already; for `read` of sources whose join is `one_by_one`."""
    fields = {name: getattr(record, name) for name in record.__slots__}
    return Row(record.group, {"type": type(record).__name__, "split": split, "record": fields}, place)


def one_by_one(key: str, rows: Sequence[Row], options: Options) -> Iterator[Made]:
    """The `join` that makes a record of each row of `as_row`."""
    for row in rows:
        record = row.fields["record"]
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in record.items()}
        yield Made(_TYPES[row.fields["type"]](**fields), row.fields["split"])


class Source(NamedTuple):
    """A published dataset.

    Attributes:
      name: as in ``--source``.
      about: what it is, in a line.
      licence: of the published text, as its publisher states it, and where the files come from.
      kinds: of record that it can make (keys of `hhh_jax.data.records.KINDS`); the first is the default.
      options: its settings with their defaults (str, int, float or bool), given as ``--option=NAME=VALUE``. The three
        functions get them with `kind` and `seed`, which ``--kind`` and ``--seed`` set.
      published: splits that the publisher gives. Where train is among them and validation isn't, a share of the groups
        of train becomes validation; where none is, validation and test are cut by group.
      held_out: share of the groups for each split that is cut.
      blocks: ``(inputs, options) -> blocks`` in the order of the input.
      read: ``(block, options) -> rows and drops``.
      join: ``(key, rows, options) -> records and drops``; rows come in the order of the input.
    """

    name: str
    about: str
    licence: str
    kinds: tuple[str, ...]
    blocks: Callable[[Sequence[str], Options], Iterable[Block]]
    read: Callable[[Block, Options], Iterable[Row | Drop]]
    join: Callable[[str, Sequence[Row], Options], Iterable[Made | Drop]]
    options: Mapping[str, Any] = MappingProxyType({})
    published: tuple[str, ...] = ()
    held_out: float = 0.01
