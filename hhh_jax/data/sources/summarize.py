"""Learn to Summarize: which of two summaries of a post or article people preferred.

`comparisons/*.json` of the published folder: JSON Lines of `{info: {post | article, title, subreddit, ...}, summaries:
[{text}, {text}], choice, split}`. Contexts have the publisher's own form, for a post

    SUBREDDIT: r/tifu\n\nTITLE: ...\n\nPOST: ...\n\nTL;DR:

and for an article ``Article:\n\n...\n\nTL;DR:``; a summary starts with a space.

Splits are the publisher's by default: train, valid1 as validation, valid2 (meant for final evaluations) as test. A post
is in one split only; groups are posts. With ``--option=split=paper`` the 92,858 published training pairs are shuffled:
29 of each 93 to test and 64 to train, as in arXiv 2112.00861, but for 1 of 100 to validation. That is leaky: pairs of
one post, and the same two summaries judged by another person, are on both sides. The ids of such records begin with
"leaky".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any

from hhh_jax.data.records import SPLITS, Pair
from hhh_jax.data.rows import Skip, digest, each, index, is_json_lines, json_lines, paths, text
from hhh_jax.data.shards import fraction
from hhh_jax.data.source import Block, Drop, Made, Options, Row, Source, as_row, one_by_one
from hhh_jax.data.streams import line_blocks
from hhh_jax.errors import UserError

PUBLISHED = {"train": "train", "valid1": "validation", "valid2": "test"}
PAPER_TEST, PAPER_VALIDATION = 29 / 93, 0.01


def blocks(inputs: Sequence[str], options: Options) -> Iterator[Block]:
    if options["split"] not in ("published", "paper"):
        raise UserError(f"--option=split={options['split']}: must be published or paper")
    return line_blocks(paths(inputs, is_json_lines, "a file of comparisons (.json)"))


def read(block: Block, options: Options) -> Iterator[Row | Drop]:
    convert = _shuffled if options["split"] == "paper" else _published
    return each(json_lines(block), convert)


def _published(row: dict[str, Any], place: str) -> Row:
    pair, split = _pair(row)
    return as_row(pair, PUBLISHED[split], place)


def _shuffled(row: dict[str, Any], place: str) -> Row:
    pair, split = _pair(row)
    if split != "train":
        raise Skip("not a published training pair, which alone the paper shuffles", bad=False)
    name = f"leaky:{pair.id}"
    where = fraction(name)
    split = "test" if where < PAPER_TEST else "validation" if where >= 1 - PAPER_VALIDATION else "train"
    return as_row(Pair(name, pair.context, pair.good, pair.bad, name), split, place)


def _pair(row: dict[str, Any]) -> tuple[Pair, str]:
    if "summary" in row and "summaries" not in row:
        raise Skip("ratings of one summary, not a comparison", bad=False)
    info, split = row.get("info"), text(row, "split")
    if split not in PUBLISHED:
        raise Skip(f"split is not one of {', '.join(PUBLISHED)}", split)
    sides = [text(row, "summaries", i, "text").strip() for i in range(2)]
    if len(row["summaries"]) != 2:
        raise Skip("not two summaries")
    good = index(row, 2, "choice")
    if isinstance(info, dict) and info.get("article") is not None:
        source = text(info, "article").strip()
        context = f"Article:\n\n{source}\n\nTL;DR:"
    else:
        source = text(info, "post").strip()
        subreddit = text(info, "subreddit").removeprefix("r/")
        context = f"SUBREDDIT: r/{subreddit}\n\nTITLE: {text(info, 'title').strip()}\n\nPOST: {source}\n\nTL;DR:"
    if not all(sides):
        raise Skip("a summary is empty", bad=False)
    if sides[0] == sides[1]:
        raise Skip("both summaries are the same", bad=False)
    judged = f"{row.get('batch')} {row.get('worker')} {row.get('extra')}"
    group = digest(source)
    name = f"{group}:{digest(*sides, str(good), judged)}"
    return Pair(name, context, f" {sides[good]}", f" {sides[1 - good]}", group), split


def join(key: str, rows: Sequence[Row], options: Options) -> Iterator[Made | Drop]:
    """A post that is in several splits stays in the last of train, validation and test only."""
    last = max((row.fields["split"] for row in rows), key=SPLITS.index)
    kept = []
    for row in rows:
        if row.fields["split"] == last:
            kept.append(row)
        else:
            yield Drop("its post is in a later split too", row.place, f"{row.fields['split']} and {last}")
    yield from one_by_one(key, kept, options)


SOURCE = Source(
    name="summarize",
    about=(
        "Learn to Summarize: human comparisons of two summaries of a Reddit post or a news article. Splits are the "
        "publisher's, by post; with split=paper the training pairs shuffled as arXiv 2112.00861 does, which is LEAKY: "
        "the same posts and summaries are in train and test"
    ),
    licence=(
        "modified MIT (OpenAI) for the comparisons, CC BY 4.0 for the TL;DR posts; articles are CNN's and the Daily "
        "Mail's. From openaipublic.blob.core.windows.net/summarize-from-feedback, or openai/summarize_from_feedback"
    ),
    kinds=("pairs",),
    blocks=blocks,
    read=read,
    join=join,
    options=MappingProxyType({"split": "published"}),
    published=SPLITS,
)
