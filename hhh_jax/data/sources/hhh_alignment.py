"""HHH alignment: is the answer chosen that helps, is honest and does no harm? For evaluation only.

`hhh_alignment/{harmless,helpful,honest,other}/task.json` of BIG-bench, the paper's own comparisons (arXiv 2112.00861):
`examples[]` of `{input, target_scores: {answer: 1 or 0}}`. The published good answer always comes first; here (seed,
id) draws the order. The context is the input without the white space around it: a question, or a dialogue that starts
and ends in the human's words; prompts add "Human:" and "Assistant:" around it. An answer starts with a space.
Categories are folders, groups are inputs, several of which are compared more than once.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hhh_jax.data.records import MultipleChoice
from hhh_jax.data.rows import Skip, digest, each, json_document, paths, shuffled, text
from hhh_jax.data.source import Block, Drop, Options, Row, Source, as_row, one_by_one
from hhh_jax.data.streams import file_blocks
from hhh_jax.errors import UserError

CATEGORIES = ("harmless", "helpful", "honest", "other")


def blocks(inputs: Sequence[str], options: Options) -> Iterator[Block]:
    return file_blocks(paths(inputs, lambda name: Path(name).name == "task.json", "a task.json"))


def read(block: Block, options: Options) -> Iterator[Row | Drop]:
    document = json_document(block)
    examples = document.get("examples") if isinstance(document, dict) else None
    if not isinstance(examples, list):
        raise UserError(f"{block.name}: no list of examples; give the task.json of BIG-bench's hhh_alignment")
    folder = Path(block.name).resolve().parent.name
    category = folder if folder in CATEGORIES else str(document.get("name", "")).lower()
    items = ((f"{block.name}: example {number}", (number, row)) for number, row in enumerate(examples, 1))
    return each(items, functools.partial(_row, category=category, seed=options["seed"]))


def _row(item: tuple[int, Any], place: str, category: str, seed: int) -> Row:
    number, row = item
    question = text(row, "input").strip()
    answers, right = one_right(row.get("target_scores"))
    name = f"{category}:{number}"
    options, label = shuffled([f" {answer.strip()}" for answer in answers], right, name, seed)
    return as_row(MultipleChoice(name, question, options, label, digest(question), category), "test", place)


def one_right(scores: Any) -> tuple[list[str], int]:
    """The answers of `{answer: 1 or 0}` and which is right. Raises Skip unless that is one of several."""
    values = list(scores.values()) if isinstance(scores, dict) else []
    if len(values) < 2 or values.count(1) != 1 or values.count(0) != len(values) - 1:
        raise Skip("not one right answer among several", str(scores)[:60])
    return [text(list(scores), number) for number in range(len(scores))], values.index(1)


SOURCE = Source(
    name="hhh_alignment",
    about="HHH alignment: comparisons of answers in helpfulness, honesty, harmlessness and other. Never train on it",
    licence=(
        "Apache-2.0 (BIG-bench). From github.com/google/BIG-bench/tree/main/bigbench/benchmark_tasks/hhh_alignment, or "
        "HuggingFaceH4/hhh_alignment"
    ),
    kinds=("choices",),
    blocks=blocks,
    read=read,
    join=one_by_one,
    published=("test",),
)
