"""HellaSwag: which of four endings continues a description.

Two published forms, told apart by row:

- original (`hellaswag_{train,val,test}.jsonl`): `{ind, activity_label, ctx_a, ctx_b, ctx, endings, label, source_id,
  split, split_type}`;
- prepared, as evaluation harnesses store it: `{query, choices, gold}`, the query having the activity in front, the
  brackets of wikiHow ([header], [title], [step]) taken out and the last, unfinished sentence capitalized.

``--option=text=prepared`` (the default) brings original rows to the second form, so that files of both make one set;
``text=official`` takes the context as published (`ctx`), brackets and all, and can't use prepared rows.

Kind `pairs` sets the right ending against one wrong ending, which (seed, id) draws; kind `choices` has all four. Test
labels are not published: as everywhere, the validation file is the test split, and validation is cut from train.
Groups are the video or article (`source_id`). Prepared rows don't name it: there it is the article's title, or the run
of rows that follow each other with the same activity, which are videos (98% of such runs, where the source is known).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hhh_jax.data.records import MultipleChoice, Pair
from hhh_jax.data.rows import Skip, digest, each, index, is_json_lines, json_lines, paths, split_of, text
from hhh_jax.data.source import Block, Drop, Options, Row, Source, as_row, one_by_one
from hhh_jax.data.streams import line_blocks
from hhh_jax.errors import UserError

SPLIT = {"train": "train", "validation": "test"}
_BRACKETS = re.compile(r"\[.*?\]")
_TITLE = re.compile(r"\.? \[title\]")
_HOW_TO = re.compile(r"([^:]+: How to .*?)\. ")


def blocks(inputs: Sequence[str], options: Options) -> Iterator[Block]:
    if options["text"] not in ("prepared", "official"):
        raise UserError(f"--option=text={options['text']}: must be prepared or official")
    return line_blocks(paths(inputs, is_json_lines, "a file of questions (.jsonl)"))


def read(block: Block, options: Options) -> Iterator[Row | Drop]:
    named = split_of(block.name)
    activity, run = "", ""

    def convert(row: dict[str, Any], place: str) -> Row:
        nonlocal activity, run
        if "query" not in row:
            return _original(row, place, options)
        before, activity = activity, text(row, "query").split(": ")[0]
        run = run if activity == before else f"{activity}, {Path(place).name}"
        return _prepared(row, place, run, named, options)

    return each(json_lines(block), convert)


def _original(row: dict[str, Any], place: str, options: Options) -> Row:
    split = split_of(text(row, "split"))
    if row.get("label") in (None, ""):
        raise Skip("no label (the labels of test are not published)", bad=False)
    endings = _endings(row, "endings")
    label, source = index(row, len(endings), "label"), text(row, "source_id")
    if options["text"] == "official":
        context = text(row, "ctx").strip()
        endings = [ending.strip() for ending in endings]
    else:
        unfinished = f"{text(row, 'ctx_a')} {text(row, 'ctx_b').capitalize()}"
        context = _plain(f"{text(row, 'activity_label')}: {unfinished}")
        endings = [_plain(ending) for ending in endings]
    category = f"{source.partition('~')[0]} {row.get('split_type') or ''}".strip()
    return _row(context, endings, label, source, category, split, place, options)


def _prepared(row: dict[str, Any], place: str, run: str, named: str | None, options: Options) -> Row:
    if options["text"] == "official":
        raise Skip("not the official text: leave --option=text=official out", bad=True)
    context, endings = _plain(text(row, "query")), [_plain(ending) for ending in _endings(row, "choices")]
    label = index(row, len(endings), "gold")
    title = _HOW_TO.match(f"{context} ")
    category, group = ("wikihow", title[1]) if title else ("activitynet", run)
    return _row(context, endings, label, group, category, named, place, options)


def _row(
    context: str, endings: list[str], label: int, group: str, category: str, split: str | None, place: str,
    options: Options,
) -> Row:  # fmt: skip
    if split == "test":
        raise Skip("of the test file, whose labels are not published")
    split = SPLIT[split] if split else None
    if not context or not all(endings):
        raise Skip("a text is empty")
    endings = [_joined(ending, options) for ending in endings]
    name = f"hellaswag:{digest(context, *endings)}"
    if options["kind"] == "choices":
        return as_row(MultipleChoice(name, context, tuple(endings), label, group, category), split, place)
    wrong = [ending for ending in endings if ending != endings[label]]
    if not wrong:
        raise Skip("no wrong ending")
    bad = random.Random(f"wrong ending {name} {options['seed']}").choice(wrong)
    return as_row(Pair(name, context, endings[label], bad, group), split, place)


def _joined(ending: str, options: Options) -> str:
    """An ending with what joins it to its context: a space, but before punctuation in prepared text."""
    return ending if options["text"] == "prepared" and ending[0] in ",.;:!?)'" else f" {ending}"


def _endings(row: dict[str, Any], field: str) -> list[str]:
    value = row.get(field)
    if not isinstance(value, list) or len(value) < 2:
        raise Skip(f"no list of {field}")
    return [text(row, field, i) for i in range(len(value))]


def _plain(value: str) -> str:
    """Text as evaluation harnesses prepare it: titles become sentences, brackets go."""
    value = _BRACKETS.sub("", _TITLE.sub(". ", value.strip()))
    return re.sub("  +", " ", re.sub(r"(?<=[!?:])\. ", " ", value)).strip()


SOURCE = Source(
    name="hellaswag",
    about=(
        "HellaSwag: the right ending of a description among four, three of them written by a model. The published "
        "validation file is the test split"
    ),
    licence="MIT (Zellers et al. 2019); from ActivityNet captions and wikiHow. From github.com/rowanz/hellaswag/data",
    kinds=("pairs", "choices"),
    blocks=blocks,
    read=read,
    join=one_by_one,
    options=MappingProxyType({"text": "prepared"}),
    published=("train", "test"),
    held_out=0.02,
)
