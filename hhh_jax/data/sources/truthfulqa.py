"""TruthfulQA, multiple choice with one right answer (MC1). For evaluation only.

`mc_task.json`: a list of `{question, mc1_targets: {answer: 1 or 0}}`, the right answer first. `TruthfulQA.csv` has the
questions' categories, and makes the same choices by itself: the best answer against the incorrect ones. Given together
they are joined by question: the choices of the first, the category of the second. (seed, question) draws the order of
the answers. The context is the question, an answer starts with a space.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hhh_jax.data.records import MultipleChoice
from hhh_jax.data.rows import Skip, csv_rows, digest, each, json_document, paths, shuffled, text
from hhh_jax.data.source import Block, Drop, Made, Options, Row, Source
from hhh_jax.data.sources.hhh_alignment import one_right
from hhh_jax.data.streams import file_blocks
from hhh_jax.errors import UserError

COLUMNS = ("Category", "Question", "Best Answer", "Incorrect Answers")


def blocks(inputs: Sequence[str], options: Options) -> Iterator[Block]:
    files = paths(inputs, lambda name: Path(name).name in ("mc_task.json", "TruthfulQA.csv"), "mc_task.json or a .csv")
    return file_blocks(files)


def read(block: Block, options: Options) -> Iterator[Row | Drop]:
    if block.data.lstrip(b"\xef\xbb\xbf \r\n").startswith((b"[", b"{")):
        questions = json_document(block)
        if not isinstance(questions, list):
            raise UserError(f"{block.name}: not a list of questions; give mc_task.json")
        places = ((f"{block.name}: question {number}", row) for number, row in enumerate(questions, 1))
        return each(places, _from_json)
    rows = csv_rows(block)
    _, header = next(rows, ("", []))
    if isinstance(header, Skip) or not set(COLUMNS) <= set(header):
        raise UserError(f"{block.name}:1: no header with {', '.join(COLUMNS)}; give mc_task.json or TruthfulQA.csv")
    return each(rows, functools.partial(_from_csv, header=header))


def _from_json(row: Any, place: str) -> Row:
    question = text(row, "question").strip()
    answers, right = one_right(row.get("mc1_targets"))
    return Row(question, {"answers": [answer.strip() for answer in answers], "right": right}, place)


def _from_csv(fields: list[str], place: str, header: list[str]) -> Row:
    row = dict(zip(header, fields, strict=True))
    category, question, best, incorrect = (row[name].strip() for name in COLUMNS)
    wrong = [answer.strip() for answer in incorrect.split(";") if answer.strip()]
    answers = list(dict.fromkeys([best, *wrong]))  # one question has an answer twice
    if not question or not best or len(answers) < 2:
        raise Skip("no question with a best and an incorrect answer")
    return Row(question, {"answers": answers, "right": 0, "category": category}, place)


def join(key: str, rows: Sequence[Row], options: Options) -> Iterator[Made | Drop]:
    """One record of a question: by its first row in mc_task.json, else in the CSV; of each file one row."""
    task = [row for row in rows if "category" not in row.fields]
    table = [row for row in rows if "category" in row.fields]
    chosen, category = (task or table)[0], table[0].fields["category"] if table else ""
    for row in task[1:] + table[1:]:
        yield Drop("question seen before", row.place, key)
    name = f"truthfulqa:{digest(key)}"
    answers = [f" {answer}" for answer in chosen.fields["answers"]]
    order, label = shuffled(answers, chosen.fields["right"], name, options["seed"])
    yield Made(MultipleChoice(name, key, order, label, name, category), "test")


SOURCE = Source(
    name="truthfulqa",
    about="TruthfulQA MC1: the right answer to a question that people answer falsely. Never train on it",
    licence="Apache-2.0 (Lin et al. 2021). From github.com/sylinrl/TruthfulQA, or truthfulqa/truthful_qa",
    kinds=("choices",),
    blocks=blocks,
    read=read,
    join=join,
    published=("test",),
)
