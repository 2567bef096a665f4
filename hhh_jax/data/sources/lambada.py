"""LAMBADA: the last word of a passage, which its context gives away.

Passages are a line each: in the original version (`lambada_{development,test}_plain_text.txt`) in lower case with
spaced punctuation, in the nicely formatted one (`lambada_test.jsonl`, `{text}`) as printed. The target is what follows
the last space, for both. The control set (`lambada_control_*`) is no part of LAMBADA and passed over in folders.

The training text of LAMBADA is whole novels (`train-novels/GENRE/*.txt`), also in the original's form; any other
book as text or Markdown does. `cut` makes items of them as the passages were made, short of the human filter:

- the context is the fewest whole sentences before the target's that have 50 words, of one chapter (up to a heading);
- the target's sentence has at least 8 words (as 99% of the test passages have) and ends in a word of letters only that
  is none of FUNCTION_WORDS (1.5% of the test targets are one); the passage stops at it, without its punctuation;
- with ``--option=seen=true``, the default, the target occurs in the passage before (as 83% of the test targets do);
- passages do not overlap. Every sentence with a context is tried and counts as a row.

``--option=per_novel=N`` keeps N passages of each novel at most, drawn by seed. ``--option=held_out_novels=SHARE`` makes
such a share of the novels validation, for use without the development file. Novels are groups.

Kind `prompts`: the text without its last word (and without the space before it), `meta.target`, and `meta.format`,
original or nice. Kind `documents`: whole passages, and whole novels as they are.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from hhh_jax.data.records import SPLITS, Document, Prompt
from hhh_jax.data.rows import Skip, bare, digest, each, is_json_lines, json_lines, paths, split_of, stem, text
from hhh_jax.data.shards import fraction
from hhh_jax.data.source import Block, Drop, Options, Row, Source, as_row, one_by_one
from hhh_jax.data.streams import STDIN, file_blocks, line_blocks, lines
from hhh_jax.errors import UserError

CONTEXT_WORDS, TARGET_WORDS, LONGEST = 50, 8, 203  # the longest test passage has 203 words
FUNCTION_WORDS = frozenset(
    re.findall(
        "[a-z]+",
        """a about above after again all along also always am an and another any anyone anything anyway are around as
        at away back be been before behind being below better both but by can could did do does doing done down each
        either else enough even ever everyone everything few for from further get go going gone had has have he her
        here hers herself him himself his how i if in into is it its itself just know later less like little long
        longer look made make many me mean mine more most much must my myself never next no nobody none nor not
        nothing now of off on once one ones only or other others our ours out outside over own quite same say see
        she should so some somebody someone something soon still such than that the their theirs them themselves
        then there these they thing things this those though through to together told tomorrow too under until up
        upon us very want was way we well were what whatever when where which while who whole whom why will with
        within without would yes yet you your yours yourself""",
    )
)
# Where sentences end. In the original version marks are words of their own; in print a capital follows, and no title
# or initial comes before.
_ORIGINAL_END = re.compile(r"(?<= )[.!?]+(?: ''| '| \))*(?= |$)")
_PRINTED_END = re.compile(
    r"(?<=[.!?…])(?<!\bMr\.)(?<!\bMrs\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bSt\.)(?<!\b[A-Z]\.)"
    r"[\"'”’)\]_*]*(?=\s+[\"'“‘(\[_*]*[A-Z]|$)"
)
_END_MARKS = " .!?…\"'”’)]"
_EMPHASIS = re.compile(r"[_*]+")  # of Markdown


def blocks(inputs: Sequence[str], options: Options) -> Iterator[Block]:
    what = "a file of passages or a novel (.jsonl, .txt, .md)"
    for name in paths(inputs, _known, what):
        if name != STDIN and not _known(name):
            raise UserError(f"{name}: not {what}; unpack archives first")
        yield from file_blocks([name]) if _is_novel(name) else line_blocks([name])


def _known(name: str) -> bool:
    return bare(name).endswith((".jsonl", ".txt", ".md")) and not stem(name).startswith(("lambada_control", "readme"))


def _is_novel(name: str) -> bool:
    return name != STDIN and not is_json_lines(name) and not stem(name).startswith("lambada")


def read(block: Block, options: Options) -> Iterator[Row | Drop]:
    if _is_novel(block.name):
        yield from _novel(block, options)
        return
    in_json = is_json_lines(block.name) or block.data.startswith(b"{")
    items = json_lines(block) if in_json else ((place, _decoded(line)) for place, line in lines(block) if line.strip())
    yield from each(items, functools.partial(_passage, written=_format(block.data), options=options))


def _decoded(line: bytes) -> dict[str, Any] | Skip:
    try:
        return {"text": line.decode()}
    except UnicodeDecodeError as error:
        return Skip("not UTF-8", f"byte {error.start + 1} of the line")


def _passage(row: dict[str, Any], place: str, written: str, options: Options) -> Row:
    passage, (name, _, line) = text(row, "text").strip(), place.rpartition(":")
    identity, split = f"{stem(name)}:{line}", split_of(name)
    if options["kind"] == "documents":
        return as_row(Document(identity, passage, identity), split, place)
    *context, target = passage.rsplit(None, 1)
    if not context:
        raise Skip("less than two words", passage[:60])
    if len(passage.split()) > 2 * LONGEST:
        raise Skip("too long for a passage; a novel is a file of its own", passage[:60])
    return as_row(Prompt(identity, context[0], identity, {"target": target, "format": written}), split, place)


def _novel(block: Block, options: Options) -> Iterator[Row | Drop]:
    try:
        whole = block.data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        yield Drop("not UTF-8", f"{block.name}: byte {error.start + 1}", bad=True)
        return
    group = f"{stem(block.name)}:{digest(whole)[:8]}"
    split = "validation" if fraction(f"novel {group}") < options["held_out_novels"] else "train"
    if options["kind"] == "documents":
        yield as_row(Document(group, whole, group), split, block.place)
        return
    written = _format(block.data)
    rows: list[Row | Drop] = []
    for number, (item, unfit) in enumerate(cut(whole, written, options["seen"]), 1):
        place = f"{block.name}:{item.line}"
        if unfit:
            rows.append(Drop(unfit, place, f"...{item.text[-60:]} {item.target}"))
        else:
            prompt = Prompt(f"{group}:{number}", item.text, group, {"target": item.target, "format": written})
            rows.append(as_row(prompt, split, place))
    yield from _sampled(rows, options["per_novel"], f"{group} {options['seed']}")


def _sampled(rows: list[Row | Drop], most: int, seed: str) -> Iterator[Row | Drop]:
    """The rows; of those to use only `most`, if that isn't 0."""
    usable = [number for number, row in enumerate(rows) if isinstance(row, Row)]
    drawn = set(random.Random(seed).sample(usable, min(most or len(usable), len(usable))))
    for number, row in enumerate(rows):
        yield row if isinstance(row, Drop) or number in drawn else Drop("more than per_novel", row.place)


class Item(NamedTuple):
    """A passage: `text` up to its last word `target`; line and number of words of the target's sentence."""

    line: int
    text: str
    target: str
    words: int


def cut(whole: str, written: str, seen: bool) -> Iterator[tuple[Item, str]]:
    """(item, why it is unfit or nothing) of every sentence that has a context; those that fit do not overlap."""
    context: list[tuple[int, str, str]] = []  # words of a sentence, what joins it to the one before, the sentence
    size = 0
    for line, joint, sentence in _sentences(whole, written):
        if joint == "heading":
            context, size = [], 0
            continue
        if size >= CONTEXT_WORDS:
            while size - context[0][0] >= CONTEXT_WORDS:
                size -= context.pop(0)[0]
            words = sentence.rstrip(_END_MARKS).split(" ")
            before = "".join(between + earlier for _, between, earlier in context).strip()
            item = Item(line, joint.join([before, " ".join(words[:-1])]), words[-1], len(words))
            unfit = _unfit(item, seen)
            yield item, unfit
            if not unfit:
                context, size = [], 0
                continue
        context.append((len(sentence.split()), joint, sentence))
        size += context[-1][0]


def _sentences(whole: str, written: str) -> Iterator[tuple[int, str, str]]:
    """(line, joint, sentence): the joint is a space, the blank line between printed paragraphs, or "heading"."""
    line, end = 1, _ORIGINAL_END if written == "original" else _PRINTED_END
    for number, part in enumerate(re.split(r"(\n\s*\n)", whole)):  # paragraphs and what is between
        if number % 2 == 0 and written == "nice" and (part.lstrip().startswith("#") or part.upper() == part):
            yield line, "heading", part.strip()
        elif number % 2 == 0:
            start, joint = 0, " " if written == "original" else "\n\n"
            for stop in [match.end() for match in end.finditer(part)] + [len(part)]:
                if sentence := " ".join(_EMPHASIS.sub("", part[start:stop]).split()):
                    yield line + part.count("\n", 0, start), joint, sentence
                    joint = " "
                start = stop
        line += part.count("\n")


def _unfit(item: Item, seen: bool) -> str:
    """Why a passage is no item, or nothing."""
    if item.words < TARGET_WORDS:
        return f"the target's sentence has less than {TARGET_WORDS} words"
    if len(item.text.split()) >= LONGEST:
        return f"longer than {LONGEST} words"
    if not item.target.isalpha() or item.target.lower() in FUNCTION_WORDS:
        return "the last word is no content word"
    if seen and item.target.lower() not in re.findall(r"[^\W\d_]+", item.text.lower()):
        return "the last word is new to the passage"
    return ""


def _format(data: bytes) -> str:
    """original if next to nothing is in upper case, else nice."""
    sample = data[: 2**20].decode(errors="ignore")
    return "original" if sum(map(str.isupper, sample)) < 0.002 * len(sample) else "nice"


SOURCE = Source(
    name="lambada",
    about=(
        "LAMBADA: passages whose last word their context gives away, in the original or the nicely formatted version, "
        "and items cut from novels in the same way (whole sentences of 50 words, then one to its last word)"
    ),
    licence=(
        "CC BY 4.0 (Paperno et al. 2016) for the passages; novels have their own. From zenodo.org/records/2630551 or "
        "cimec/lambada; formatted: EleutherAI/lambada_openai"
    ),
    kinds=("prompts", "documents"),
    blocks=blocks,
    read=read,
    join=one_by_one,
    options=MappingProxyType({"seen": True, "per_novel": 0, "held_out_novels": 0.0}),
    published=SPLITS,
)
