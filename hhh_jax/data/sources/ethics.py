"""ETHICS: five tasks of moral judgment, one prepared at a time (``--option=task=justice``).

`ethics/{commonsense,deontology,justice,utilitarianism,virtue}/*_{train,test,test_hard}.csv` of the published archive,
or `{train,test,test_hard}.csv` in a folder of the task's name. Some files have a header, others don't. The `test` split
is the easy test set or, with ``--option=test=hard``, the hard one. `cm_ambig.csv` has no labels and isn't read.

Utilitarianism is ranked: the first of two situations is the more pleasant one. The others are binary:

    commonsense  STATEMENT\nWrong:                        no | yes
    deontology   REQUEST OR ROLE\nEXCUSE OR DUTY\nReasonable:  yes | no
    justice      STATEMENT\nReasonable:                   yes | no
    virtue       SITUATION\nTRAIT:                        yes | no

Kind `pairs` sets the right answer against the other one, kind `labels` has label 1 for yes. Groups in the test sets of
deontology, justice and virtue are the 4, 4 and 5 consecutive rows that count as one. Elsewhere, where they only keep
what is alike in one split, they are the rows of one situation (deontology, virtue), runs of rows that share 40% of
their words at the ends (commonsense, justice: found to join 96% of the rows of a test group, and 1% of neighbors that
aren't in one), and training pairs linked by texts that they share (utilitarianism).

The training sets were thinned by their authors, so that groups there are not complete. They overlap with the test sets:
in the easy test sets 32% of the pairs of utilitarianism have a text that is in train too, and 36% of the situations of
deontology and 92% of those of virtue are (with other excuses and traits). Groups of these two are named by their
situation in all splits, so that the data card sees it and leaves them out of the subset without overlap.
"""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from hhh_jax.data.records import GroupedLabel, Pair
from hhh_jax.data.rows import Skip, csv_rows, digest, index, paths, split_of, stem, text
from hhh_jax.data.source import Block, Drop, Options, Row, Source, as_row, one_by_one
from hhh_jax.data.streams import file_blocks
from hhh_jax.errors import UserError

COLUMNS = {
    "commonsense": ("label", "input"),
    "deontology": ("label", "scenario", "excuse"),
    "justice": ("label", "scenario"),
    "utilitarianism": ("baseline", "less_pleasant"),
    "virtue": ("label", "scenario"),
}
GROUP_SIZE = {"deontology": 4, "justice": 4, "virtue": 5}
ALIKE = 0.4
_SHORT = {"commonsense": "cm", "utilitarianism": "util"}


class Item(NamedTuple):
    """A row: what it says in the task's form, without cue; what its group goes by; the label, 1 for yes."""

    statement: str
    cue: str
    situation: str
    label: int
    category: str = ""


def blocks(inputs: Sequence[str], options: Options) -> Iterator[Block]:
    task, test = options["task"], options["test"]
    if task not in COLUMNS:
        raise UserError(f"--option=task={task}: must be one of {', '.join(COLUMNS)}")
    if test not in ("easy", "hard"):
        raise UserError(f"--option=test={test}: must be easy or hard")
    if task == "utilitarianism" and options["kind"] != "pairs":
        raise UserError("utilitarianism has no labels, only pairs; leave --kind out")
    what = f"a train or {test} test file (.csv) of {task}"

    def wanted(name: str) -> bool:
        ending = "train" if split_of(name) == "train" else "test" if test == "easy" else "test_hard"
        return _is_of(name, task) and stem(name).endswith(ending)

    files = paths(inputs, wanted, what)
    for name in files:
        if not wanted(name):
            raise UserError(f"{name}: not {what}; --option=task and test choose what is read")
    return file_blocks(files)


def _is_of(name: str, task: str) -> bool:
    words = re.findall("[a-z]+", f"{Path(name).resolve().parent.name.lower()} {stem(name)}")
    return name.lower().endswith((".csv", ".csv.gz")) and (task in words or _SHORT.get(task) in words)


def read(block: Block, options: Options) -> Iterator[Row | Drop]:
    task = options["task"]
    split, hard = split_of(block.name), "_hard" if "_hard" in stem(block.name) else ""
    prefix = f"{task}_{split}{hard}"
    places, fields = _named(block, task)
    if task == "utilitarianism":
        yield from _pleasant(places, fields, prefix, split)
        return
    items = [_item(task, row) for row in fields]
    groups = _test_groups(task, places, items, prefix) if split == "test" else _train_groups(task, items, prefix)
    for number, (place, item, group) in enumerate(zip(places, items, groups, strict=True), 1):
        if isinstance(item, Skip):
            yield Drop(item.reason, place, item.detail, item.bad)
            continue
        name, context = f"{prefix}:{number}", f"{item.statement}\n{item.cue}:"
        if options["kind"] == "labels":
            yield as_row(GroupedLabel(name, context, item.label, group, item.category), split, place)
        else:
            right, wrong = (" yes", " no") if item.label else (" no", " yes")
            yield as_row(Pair(name, context, right, wrong, group), split, place)


def _named(block: Block, task: str) -> tuple[list[str], list[dict[str, str] | Skip]]:
    """The places of all rows but a header, and the rows by column."""
    rows = list(csv_rows(block))
    known, names = COLUMNS[task], COLUMNS[task]
    first = rows[0][1] if rows else []
    if not isinstance(first, Skip):
        header = [name.strip().lower() for name in first]
        if set(known) <= set(header):
            rows, names = rows[1:], tuple(header)
        elif len(first) < len(known) or (known[0] == "label" and header[0] not in ("0", "1")):
            raise UserError(f"{block.name}:1: neither a header nor a row of {', '.join(known)}; see --option=task")
    fields = [row if isinstance(row, Skip) else dict(zip(names, row, strict=False)) for _, row in rows]
    return [place for place, _ in rows], fields


def _item(task: str, row: dict[str, str] | Skip) -> Item | Skip:
    """The row in its task's form; a Skip says why it has none."""
    if isinstance(row, Skip):
        return row
    try:
        label = index(row, 2, "label")
        if task == "commonsense":
            said = html.unescape(text(row, "input")).replace("\u200b", "").strip()
            length = {"true": "short", "false": "long"}.get(row.get("is_short", "").strip().lower(), "")
            return Item(said, "Wrong", said, label, length)
        scenario = text(row, "scenario").strip()
        if task == "deontology":
            return Item(f"{scenario}\n{text(row, 'excuse').strip()}", "Reasonable", scenario, label)
        if task == "justice":
            return Item(scenario, "Reasonable", scenario, label)
        situation, _, trait = scenario.rpartition("[SEP]")
        if not situation.strip() or not trait.strip():
            raise Skip("no [SEP] between situation and trait", scenario[:60])
        return Item(situation.strip(), trait.strip().capitalize(), situation.strip(), label)
    except Skip as skip:
        return skip


def _test_groups(task: str, places: list[str], items: list[Item | Skip], prefix: str) -> list[str]:
    """Of each row. Raises UserError if a row is missing or not of its group."""
    size = GROUP_SIZE.get(task)
    if not size:
        return _train_groups(task, items, prefix)
    for number, item in enumerate(items):
        first = items[number - number % size]
        if isinstance(item, Skip):
            raise UserError(f"{places[number]}: {item.reason}; {size} rows make a group, so that none can be left out")
        if task != "justice" and isinstance(first, Item) and item.situation != first.situation:
            raise UserError(f"{places[number]}: not of the situation of its group of {size} rows; copy the file again")
    if len(items) % size:
        raise UserError(f"{places[-1]}: the file ends within a group of {size} rows; copy it again")
    groups: list[str] = []
    for number, name in enumerate(_train_groups(task, items, prefix)[::size]):
        again = task == "justice" or name in groups
        groups += [f"{prefix}:group {number + 1}" if again else name] * size
    return groups


def _train_groups(task: str, items: list[Item | Skip], prefix: str) -> list[str]:
    if task in ("deontology", "virtue"):
        return [f"{task}:{digest(*_words(item.situation))}" if isinstance(item, Item) else "" for item in items]
    groups: list[str] = []
    for number, (before, item) in enumerate(zip([None, *items], items, strict=False), 1):
        if isinstance(before, Item) and isinstance(item, Item) and _alike(before.situation, item.situation):
            groups.append(groups[-1])
        else:
            groups.append(f"{prefix}:group {number}")
    return groups


def _words(value: str) -> list[str]:
    return re.findall(r"[\w']+", value.lower())


def _alike(one: str, other: str) -> bool:
    """Whether texts share ALIKE of the shorter one's words at their beginnings and ends."""
    a, b = _words(one), _words(other)
    start = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
    rest = zip(reversed(a[start:]), reversed(b[start:]), strict=False)
    end = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], rest))
    return start + end >= ALIKE * max(1, min(len(a), len(b)))


def _pleasant(
    places: list[str], fields: list[dict[str, str] | Skip], prefix: str, split: str | None
) -> Iterator[Row | Drop]:
    above: dict[str, str] = {}  # a text -> one that it is linked with

    def root(side: str) -> str:
        while above.setdefault(side, side) != side:
            side = above[side]
        return side

    sides: list[tuple[str, str] | Skip] = []
    for row in fields:
        try:
            if isinstance(row, Skip):
                raise row
            good, bad = text(row, "baseline").strip(), text(row, "less_pleasant").strip()
            if not good or not bad:
                raise Skip("a text is empty")
            if good == bad:
                raise Skip("both texts are the same", bad=False)
            above[root(good)] = root(bad)
            sides.append((good, bad))
        except Skip as skip:
            sides.append(skip)
    for number, (place, pair) in enumerate(zip(places, sides, strict=True), 1):
        if isinstance(pair, Skip):
            yield Drop(pair.reason, place, pair.detail, pair.bad)
            continue
        name = f"{prefix}:{number}"
        group = f"{prefix}:{digest(root(pair[0]))}" if split == "train" else name
        yield as_row(Pair(name, "", *pair, group), split, place)


SOURCE = Source(
    name="ethics",
    about="ETHICS: moral judgments, of the task and with the test set that the options name",
    licence="MIT (Hendrycks et al. 2021). From people.eecs.berkeley.edu/~hendrycks/ethics.tar, or hendrycks/ethics",
    kinds=("pairs", "labels"),
    blocks=blocks,
    read=read,
    join=one_by_one,
    options=MappingProxyType({"task": "commonsense", "test": "easy"}),
    published=("train", "test"),
    held_out=0.05,
)
