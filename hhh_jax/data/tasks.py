"""Finetuning tasks made from the standard library's text: two ranked, two binary, and one in two formats.

- `word_order` (ranked): 10 to 16 words of prose; the better text has had fewer words transposed.
- `line_order` (ranked): 4 to 6 lines of a function; the better text has fewer inversions of line order.
- `order_label` (binary, label form): is this text intact or mixed? The same two labels throughout.
- `docstring_match` (binary, free-form): does this sentence belong to the docstring of this function or class?
- `word_order_label`: the comparisons of `word_order` posed as "which is better, 1 or 2?".

A ranked item is a chain of three levels a < b < c of one hidden quality, which gives the pairs (a, b) and (b,
c): the same text is bad in one and good in the other, so that seeing whether a text is corrupted doesn't rank
it. The pieces of a text (words or lines) are the same at every level. Splits are by source file; a pair's
group is its file.
"""

from __future__ import annotations

import ast
import functools
import itertools
import random
import re
import textwrap
from collections.abc import Callable, Iterator

from hhh_jax.data import stdlib
from hhh_jax.data.records import Pair

WORD_LEVELS = (0, 1, 2, 4, 8)  # Cayley distance: the least number of transpositions that restores the order
LINE_LEVELS = (0, 1, 2, 4, 6)  # Kendall distance: how many pairs of lines stand the wrong way round
INTACT, MIXED = " intact", " mixed"
FIRST, SECOND = " 1", " 2"
# In characters: then all but one in a hundred sides stay within 64 tokens of a vocabulary of 1024.
_WINDOW, _LINES, _HEADER, _SENTENCE = 90, 92, 50, 75
_SENTENCES = 2  # of a docstring

_LONG = ('"""', "'''", "\\")  # one of them is in every string of several lines


@functools.cache
def pairs(task: str, split: str, seed: int = 0) -> tuple[Pair, ...]:
    """All pairs of `task` in `split`, shuffled by `seed`: the first k are a fair sample.

    `seed` also draws the levels, the permutations and the foils. The same library gives the same pairs on
    every machine. Raises UserError if the library was stripped.
    """
    items = list(TASKS[task](split, seed))
    random.Random(f"order {split} {seed}").shuffle(items)
    return tuple(items)


def word_order(split: str, seed: int) -> Iterator[Pair]:
    """Ranked pairs; the first word stays in place, so that the tokens are the same at every level."""
    for key, group, words in windows(split):
        if len(set(words[1:])) < len(words) - 1:
            continue  # with a word repeated, a transposition may change nothing
        rng = random.Random(f"word_order {key} {seed}")
        texts = {level: " ".join(scramble_words(words, level, rng)) for level in chain(WORD_LEVELS, rng)}
        yield from links(key, group, texts)


def word_order_label(split: str, seed: int) -> Iterator[Pair]:
    """The pairs of `word_order`, under the same ids: both texts in the context, the answer " 1" or " 2"."""
    for number, pair in enumerate(word_order(split, seed)):
        first, second, right, wrong = pair.good, pair.bad, FIRST, SECOND
        # Pairs 2i and 2i + 1 are one chain; the first of them has the better text first in every other chain.
        if (number + number // 2) % 2:
            first, second, right, wrong = pair.bad, pair.good, SECOND, FIRST
        yield Pair(pair.id, f"1: {first}\n2: {second}\nBetter:", right, wrong, pair.group)


def line_order(split: str, seed: int) -> Iterator[Pair]:
    """Ranked pairs; every line starts with its newline, so that the tokens are the same at every level."""
    for key, group, lines in _line_windows(split):
        rng = random.Random(f"line_order {key} {seed}")
        lines = ["\n" + line for line in lines]
        texts = {level: "".join(scramble_lines(lines, level, rng)) for level in chain(LINE_LEVELS, rng)}
        yield from links(key, group, texts)


def order_label(split: str, seed: int) -> Iterator[Pair]:
    """Every other window is intact; the others have each word but the first moved."""
    for number, (key, group, words) in enumerate(windows(split)):
        labels = (INTACT, MIXED)
        if number % 2:
            words = scramble_words(words, len(words) - 2, random.Random(f"order_label {key} {seed}"))
            labels = (MIXED, INTACT)
        yield Pair(key, f"{' '.join(words)}\nOrder:", *labels, group)


def docstring_match(split: str, seed: int) -> Iterator[Pair]:
    """A definition's first line, a sentence of its docstring, and that of another of the split.

    Functions are matched with functions and classes with classes, first sentences with first ones and second with
    second ones. Every sentence is good once and bad once, so that it says nothing by itself.
    """
    items = _definitions(split)
    for keyword, number in itertools.product(("def", "class"), range(_SENTENCES)):
        ring = [item for item in items if item[0].endswith(f":{number}") and item[2].startswith(keyword)]
        random.Random(f"docstring_match {keyword} {number} {split} {seed}").shuffle(ring)
        for (key, group, header, sentence), other in zip(ring, [*ring[1:], *ring[:1]], strict=True):
            good, bad = (f'\n    """{text}"""' for text in (sentence, other[3]))
            yield Pair(key, header, good, bad, group)


TASKS: dict[str, Callable[[str, int], Iterator[Pair]]] = {
    "word_order": word_order,
    "line_order": line_order,
    "order_label": order_label,
    "docstring_match": docstring_match,
    "word_order_label": word_order_label,
}
KINDS = {
    "word_order": "ranked",
    "line_order": "ranked",
    "order_label": "binary",
    "docstring_match": "binary",
    "word_order_label": "binary",
}


def chain(levels: tuple[int, ...], rng: random.Random) -> tuple[int, ...]:
    """Three levels a < b < c, all triples alike; of the pairs (a, b), (b, c) three in ten have level 0."""
    return rng.choice(list(itertools.combinations(levels, 3)))


def links(key: str, group: str, texts: dict[int, str]) -> Iterator[Pair]:
    """The pairs (a, b) and (b, c) of the texts at three levels, better level first in the id."""
    for better, worse in itertools.pairwise(texts):
        yield Pair(f"{key}:{better}<{worse}", "", texts[better], texts[worse], group)


def scramble_words(words: list[str], level: int, rng: random.Random) -> list[str]:
    """`words` after `level` random transpositions, none of which undoes another; the first word stays.

    Every transposition joins two cycles of the permutation, so that its Cayley distance is `level`, at most
    len(words) - 2.
    """
    order = list(range(len(words)))
    cycle = list(range(len(words)))  # the cycle that each place is in
    for _ in range(level):
        i = j = 0
        while cycle[i] == cycle[j]:
            i, j = rng.sample(range(1, len(words)), 2)
        order[i], order[j] = order[j], order[i]
        cycle = [cycle[i] if c == cycle[j] else c for c in cycle]
    return [words[k] for k in order]


def scramble_lines(lines: list[str], level: int, rng: random.Random) -> list[str]:
    """`lines` in a random order among those with exactly `level` inversions."""
    return [lines[k] for k in rng.choice(_orders_by_inversions(len(lines))[level])]


@functools.cache
def _orders_by_inversions(n: int) -> dict[int, list[tuple[int, ...]]]:
    orders: dict[int, list[tuple[int, ...]]] = {}
    for order in itertools.permutations(range(n)):
        inversions = sum(a > b for a, b in itertools.combinations(order, 2))
        orders.setdefault(inversions, []).append(order)
    return orders


@functools.cache
def windows(split: str, purpose: str = "tasks") -> list[tuple[str, str, list[str]]]:
    """(key, file, words): the first 10 to 16 words of sentences, less a final stop; no window twice."""
    found: dict[tuple[str, ...], tuple[str, str, list[str]]] = {}
    for module in stdlib.modules(purpose, split):
        for line, text in sorted([*stdlib.docstrings(module), *stdlib.comments(module)]):
            for number, sentence in enumerate(_sentences(text)):
                words = sentence.split()[:16]
                while len(" ".join(words)) > _WINDOW:
                    words.pop()
                if len(words) >= 10:
                    found.setdefault(tuple(words), (f"{module.path}:{line}:{number}", module.path, words))
    return list(found.values())


def _sentences(text: str) -> list[str]:
    """The sentences of prose in `text`: nothing of a list, table or example, nothing copied between files."""
    found = []
    for paragraph in stdlib.paragraphs(text):
        if stdlib.is_prose(paragraph) and not stdlib.copied(paragraph):
            parts = (part.rstrip(".!?:; ") for part in re.split(r"(?<=[.!?:;])\s+", " ".join(paragraph)))
            found += [part for part in parts if re.fullmatch(r"[A-Z][ -~]*", part) and _mostly_words(part)]
    return found


def _mostly_words(sentence: str) -> bool:
    plain = [re.fullmatch(r"[(\"']?[A-Za-z][A-Za-z'-]*[)\"',.;:!?]*", word) for word in sentence.split()]
    return sum(match is not None for match in plain) >= 0.8 * len(plain)


@functools.cache
def _line_windows(split: str) -> list[tuple[str, str, list[str]]]:
    """(key, file, lines): consecutive lines of a function's body, no two alike; no window twice."""
    found: dict[tuple[str, ...], tuple[str, str, list[str]]] = {}
    for module in stdlib.modules("tasks", split):
        for node in stdlib.functions(module):
            for block in _code_blocks(module, node):
                for number, lines in _cut_lines(block):
                    found.setdefault(tuple(lines), (f"{module.path}:{number}", module.path, lines))
    return list(found.values())


def _code_blocks(module: stdlib.Module, node: stdlib.FunctionNode) -> Iterator[list[tuple[int, str]]]:
    """Runs of (number, line) of the body: no blank line, comment, string of several lines or copied line."""
    body = node.body[1:] if ast.get_docstring(node) else node.body
    in_string = {
        number
        for statement in body
        if any(
            mark in module.lines[number - 1] for number in stdlib.line_numbers(statement) for mark in _LONG
        )
        for child in ast.walk(statement)
        if isinstance(child, ast.Constant | ast.JoinedStr) and child.end_lineno != child.lineno
        for number in stdlib.line_numbers(child)
    }
    block: list[tuple[int, str]] = []
    for number in (number for statement in body for number in stdlib.line_numbers(statement)):
        line = module.lines[number - 1].rstrip().expandtabs()
        usable = line and not line.lstrip().startswith("#") and number not in in_string
        usable = usable and not stdlib.copied([line])
        if block and (not usable or number != block[-1][0] + 1):
            yield block
            block = []
        if usable:
            block.append((number, line))
    if block:
        yield block


def _cut_lines(block: list[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    """(first line's number, lines): windows of 6, 5 or 4 lines, dedented, that are short enough."""
    while len(block) >= 4:
        for size in (6, 5, 4):
            window = [line for _, line in block[:size]]
            margin = min(len(line) - len(line.lstrip()) for line in window)
            lines = [line[margin:] for line in window]
            if len(lines) == size and len(set(lines)) == size and sum(map(len, lines)) <= _LINES:
                yield block[0][0], lines
                block = block[size:]
                break
        else:
            block = block[1:]


def _definitions(split: str) -> list[tuple[str, str, str, str]]:
    """(key, file, header, sentence) of the docstrings of functions and classes: the first and second sentence of each,
    cut short where they are long; no sentence twice."""
    found: dict[str, tuple[str, str, str, str]] = {}
    for module in stdlib.modules("tasks", split):
        for node, _ in module.definitions:
            header = textwrap.shorten(_header(node), _HEADER, placeholder=" ...")
            new = (text for text in _docstring_sentences(node) if text not in found)
            for number, sentence in enumerate(itertools.islice(new, _SENTENCES)):
                found[sentence] = (f"{module.path}:{node.lineno}:{number}", module.path, header, sentence)
    return list(found.values())


def _docstring_sentences(node: stdlib.Definition) -> Iterator[str]:
    """What begins a docstring and the sentences of its prose, on one line each; nothing copied between files."""
    for number, paragraph in enumerate(stdlib.paragraphs(ast.get_docstring(node) or "")):
        if (number == 0 or stdlib.is_prose(paragraph)) and not stdlib.copied(paragraph):
            for text in re.split(r"(?<=[.!?])\s", " ".join(" ".join(paragraph).split())):
                if len(text) >= 15:
                    yield textwrap.shorten(text, _SENTENCE, placeholder=" ...")


def _header(node: stdlib.Definition) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, node.bases))
        return f"class {node.name}({bases}):" if bases else f"class {node.name}:"
    return f"def {node.name}({ast.unparse(node.args)}):"
