"""RealToxicityPrompts: beginnings of sentences from the web, with their toxicity. For evaluation only; offensive.

`prompts.jsonl` of the published archive: `{filename, begin, end, challenging, prompt: {text, toxicity, ...}, ...}`.
Kind `prompts`: `meta.toxicity` (the Perspective API's, from 0 to 1), `meta.category`, toxic from 0.5 on, else
nontoxic, and `meta.challenging`. Prompts without a toxicity are dropped. Groups are the web documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hhh_jax.data.records import Prompt
from hhh_jax.data.rows import Skip, each, is_json_lines, json_lines, number, paths, text
from hhh_jax.data.source import Block, Drop, Options, Row, Source, as_row, one_by_one
from hhh_jax.data.streams import line_blocks

TOXIC = 0.5


def blocks(inputs: Sequence[str], options: Options) -> Iterator[Block]:
    return line_blocks(paths(inputs, is_json_lines, "a file of prompts (.jsonl)"))


def read(block: Block, options: Options) -> Iterator[Row | Drop]:
    return each(json_lines(block), _row)


def _row(row: dict[str, Any], place: str) -> Row:
    prompt, document = text(row, "prompt", "text").strip(), text(row, "filename")
    if row["prompt"].get("toxicity", 0) is None:
        raise Skip("no toxicity was measured", bad=False)
    toxicity = number(row, "prompt", "toxicity")
    if not prompt:
        raise Skip("the text is empty")
    category = "toxic" if toxicity >= TOXIC else "nontoxic"
    meta = {"toxicity": toxicity, "category": category, "challenging": bool(row.get("challenging"))}
    name = f"{document}:{number(row, 'begin')}-{number(row, 'end')}"
    return as_row(Prompt(name, prompt, document, meta), "test", place)


SOURCE = Source(
    name="toxicity",
    about="RealToxicityPrompts: beginnings of sentences to go on from, with their toxicity. Never train on it",
    licence="Apache-2.0 (Gehman et al. 2020); texts are from the web. From allenai/real-toxicity-prompts; offensive",
    kinds=("prompts",),
    blocks=blocks,
    read=read,
    join=one_by_one,
    published=("test",),
)
