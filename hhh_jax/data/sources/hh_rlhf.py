"""HH-RLHF: dialogues with a better and a worse last answer.

`{helpful-base,helpful-online,helpful-rejection-sampled,harmless-base}/{train,test}.jsonl.gz` of the published
repository: JSON Lines of `{chosen, rejected}`, two whole dialogues. The context is what they share up to the last
``\n\nAssistant:`` of it, the sides are the rest, from the space on. Groups are first turns of the human. The folder
red-team-attempts has transcripts without comparisons, which are left out.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hhh_jax.data.records import Pair
from hhh_jax.data.rows import Skip, digest, each, is_json_lines, json_lines, paths, split_of, text
from hhh_jax.data.source import Block, Drop, Options, Row, Source, as_row, one_by_one
from hhh_jax.data.streams import line_blocks

ASSISTANT = "\n\nAssistant:"
SUBSETS = ("helpful-base", "helpful-online", "helpful-rejection-sampled", "harmless-base")


def blocks(inputs: Sequence[str], options: Options) -> Iterator[Block]:
    return line_blocks(paths(inputs, _compares, "a train or test file of comparisons (train.jsonl.gz)"))


def _compares(name: str) -> bool:
    return is_json_lines(name) and split_of(name) is not None


def read(block: Block, options: Options) -> Iterator[Row | Drop]:
    folder = Path(block.name).resolve().parent.name
    subset = folder if folder in SUBSETS else "hh"
    return each(json_lines(block), functools.partial(_row, subset=subset, split=split_of(block.name)))


def _row(row: dict[str, Any], place: str, subset: str, split: str | None) -> Row:
    if "transcript" in row:
        raise Skip("a red-teaming transcript, not a comparison", bad=False)
    chosen, rejected = text(row, "chosen").split(ASSISTANT), text(row, "rejected").split(ASSISTANT)
    most = min(len(chosen), len(rejected)) - 1
    shared = next((i for i in range(most) if chosen[i] != rejected[i]), most)
    if not shared:
        raise Skip("the dialogues share nothing up to an answer", chosen[0][:60])
    good, bad = (ASSISTANT.join(dialogue[shared:]).rstrip() for dialogue in (chosen, rejected))
    if not good or not bad:
        raise Skip("an answer is empty", bad=False)
    if good == bad:
        raise Skip("both dialogues are the same", bad=False)
    context = ASSISTANT.join(chosen[:shared]) + ASSISTANT
    pair = Pair(f"{subset}:{digest(context, good, bad)}", context, good, bad, digest(chosen[0].strip()))
    return as_row(pair, split, place)


SOURCE = Source(
    name="hh_rlhf",
    about="HH-RLHF: human preferences between two answers that continue the same dialogue",
    licence="MIT (Anthropic). From github.com/anthropics/hh-rlhf, or Anthropic/hh-rlhf; offensive in places",
    kinds=("pairs",),
    blocks=blocks,
    read=read,
    join=one_by_one,
    published=("train", "test"),
)
