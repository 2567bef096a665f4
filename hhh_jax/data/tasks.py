"""Finetuning tasks made from the standard library's text: two ranked, two binary, and one in two formats.

- `word_order` (ranked): 10 to 16 words of prose; the better text has had fewer words transposed.
- `line_order` (ranked): 4 to 6 lines of a function; the better text has fewer inversions of line order.
- `order_label` (binary, label form): is this text intact or mixed? The same two labels throughout.
- `docstring_match` (binary, free-form): does this docstring belong to this function's signature?
- `word_order_label`: the comparisons of `word_order` posed as "which is better, 1 or 2?".

A ranked item is a chain of three levels a < b < c of one hidden quality, which gives the pairs (a, b) and (b, c): the
same text is bad in one and good in the other, so that seeing whether a text is corrupted doesn't rank it. The pieces
of a text (words or lines) are the same at every level. Splits are by source file; a pair's group is its file.
"""

from __future__ import annotations

import ast
import itertools
import random
import re
from collections.abc import Callable, Iterator

from hhh_jax.data import stdlib
from hhh_jax.data.records import Pair

WORD_LEVELS = (0, 1, 2, 4, 8)  # Cayley distance: the least number of transpositions that restores the order
LINE_LEVELS = (0, 1, 2, 4, 6)  # Kendall distance: how many pairs of lines stand in the wrong order
INTACT, MIXED = " intact", " mixed"
FIRST, SECOND = " 1", " 2"
# A text's length in characters, so that a side stays within 64 tokens of a vocabulary of 1024.
_WINDOW_CHARACTERS, _LINES_CHARACTERS = 90, 105


def pairs(task: str, split: str, seed: int = 0) -> list[Pair]:
    """All pairs of `task` in `split`, in an order shuffled by `seed`; the same on every machine with the same library.

    `seed` also draws the levels, the permutations, the labels and the foils.
    """
    items = list(TASKS[task](split, seed))
    random.Random(f"order {split} {seed}").shuffle(items)
    return items


def word_order(split: str, seed: int) -> Iterator[Pair]:
    """Ranked pairs; the first word stays in place, so that the tokens are the same at every level."""
    for key, group, words in _windows(split):
        if stdlib.point(f"use {key}", 2) == 0:
            rng = random.Random(f"word_order {key} {seed}")
            yield from _chain(key, group, WORD_LEVELS, rng, lambda level, w=words, r=rng: scramble_words(w, level, r))


def word_order_label(split: str, seed: int) -> Iterator[Pair]:
    """The pairs of `word_order`, under the same ids: both texts in the context, the answer " 1" or " 2"."""
    for number, pair in enumerate(word_order(split, seed)):
        texts, labels = [pair.good, pair.bad], [FIRST, SECOND]
        # Pairs 2i and 2i + 1 come from one chain; which of them has the better text first alternates between chains.
        if (number + number // 2) % 2:
            texts.reverse()
            labels.reverse()
        yield Pair(pair.id, f"1: {texts[0]}\n2: {texts[1]}\nBetter:", *labels, pair.group)


def line_order(split: str, seed: int) -> Iterator[Pair]:
    """Ranked pairs; every line starts with its newline, so that the tokens are the same at every level."""
    for key, group, lines in _line_windows(split):
        rng = random.Random(f"line_order {key} {seed}")
        yield from _chain(key, group, LINE_LEVELS, rng, lambda level, w=lines, r=rng: scramble_lines(w, level, r))


def order_label(split: str, seed: int) -> Iterator[Pair]:
    """Every other window is intact, the others have all words but the first shuffled; windows of `word_order` aren't used."""
    mixed = False
    for key, group, words in _windows(split):
        if stdlib.point(f"use {key}", 2) == 1:
            rng = random.Random(f"order_label {key} {seed}")
            text = " ".join(words)
            if mixed:
                text = scramble_words(words, len(words) - 2, rng)
            labels = (MIXED, INTACT) if mixed else (INTACT, MIXED)
            yield Pair(key, f"{text}\nOrder:", *labels, group)
            mixed = not mixed


def docstring_match(split: str, seed: int) -> Iterator[Pair]:
    """A signature, its own first sentence, and that of another function of the split.

    Every sentence is good once and bad once, so it says nothing by itself.
    """
    items = list(_signatures(split))
    order = list(range(len(items)))
    random.Random(f"docstring_match {split} {seed}").shuffle(order)
    for here, there in zip(order, [*order[1:], *order[:1]], strict=True):
        key, group, signature, sentence = items[here]
        yield Pair(key, signature, sentence, items[there][3], group)


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


def _chain(
    key: str, group: str, levels: tuple[int, ...], rng: random.Random, text_at: Callable[[int], str]
) -> Iterator[Pair]:
    """The pairs (a, b) and (b, c) of three levels a < b < c, drawn from all triples alike."""
    a, b, c = rng.choice(list(itertools.combinations(levels, 3)))
    texts = {level: text_at(level) for level in (a, b, c)}
    for better, worse in ((a, b), (b, c)):
        yield Pair(f"{key}:{better}<{worse}", "", texts[better], texts[worse], group)


def scramble_words(words: list[str], level: int, rng: random.Random) -> str:
    """`words` joined, after `level` random transpositions none of which undoes another; the first word stays.

    Every transposition joins two cycles of the permutation, so its Cayley distance is `level`; at most len(words) - 2.
    """
    order = list(range(len(words)))
    cycle = list(range(len(words)))  # the cycle that each place is in
    for _ in range(level):
        i, j = rng.choice(
            [(i, j) for i, j in itertools.combinations(range(1, len(words)), 2) if cycle[i] != cycle[j]]
        )
        order[i], order[j] = order[j], order[i]
        cycle = [cycle[i] if c == cycle[j] else c for c in cycle]
    return " ".join(words[k] for k in order)


def scramble_lines(lines: list[str], level: int, rng: random.Random) -> str:
    """`lines`, each after a newline, in a random order among those with exactly `level` inversions."""
    orders = _orders_by_inversions(len(lines))[level]
    return "".join("\n" + lines[k] for k in rng.choice(orders))


def inversions(order: tuple[int, ...]) -> int:
    """The Kendall distance of `order` from sorted: pairs that stand the wrong way round."""
    return sum(a > b for a, b in itertools.combinations(order, 2))


_ORDERS: dict[int, dict[int, list[tuple[int, ...]]]] = {}


def _orders_by_inversions(n: int) -> dict[int, list[tuple[int, ...]]]:
    if n not in _ORDERS:
        _ORDERS[n] = {}
        for order in itertools.permutations(range(n)):
            _ORDERS[n].setdefault(inversions(order), []).append(order)
    return _ORDERS[n]


def _windows(split: str) -> Iterator[tuple[str, str, list[str]]]:
    """(key, file, words): the first 10 to 16 words of sentences, without a final full stop; no sentence twice."""
    seen = set()
    for module in stdlib.modules("tasks", split):
        for line, text in sorted([*stdlib.docstrings(module), *stdlib.comments(module)]):
            sentences = [s for paragraph in stdlib.paragraphs(text) for s in _sentences(paragraph)]
            for number, sentence in enumerate(sentences):
                words = _fit(sentence.split(), 16, _WINDOW_CHARACTERS)
                if len(words) >= 10 and len(set(words[1:])) >= 8 and tuple(words) not in seen:
                    seen.add(tuple(words))
                    yield f"{module.path}:{line}:{number}", module.path, words


def _sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph of plain prose (nothing of a list, a table or an example)."""
    if "\n" in paragraph:
        return []
    sentences = re.split(r"(?<=[.!?:;])\s+", paragraph)
    return [s.rstrip(".!?:; ") for s in sentences if re.fullmatch(r"[A-Z][ -~]*", s) and _mostly_words(s)]


def _mostly_words(sentence: str) -> bool:
    words = sentence.split()
    return sum(bool(re.fullmatch(r"[(\"']?[A-Za-z][A-Za-z'-]*[)\"',.;:!?]*", w)) for w in words) >= 0.8 * len(words)


def _fit(words: list[str], count: int, characters: int) -> list[str]:
    while len(words) > count or len(" ".join(words)) > characters:
        words = words[:-1]
    return words


def _line_windows(split: str) -> Iterator[tuple[str, str, list[str]]]:
    """(key, file, lines): consecutive lines of function bodies, different from one another, in disjoint windows."""
    seen = set()
    for module in stdlib.modules("tasks", split):
        for node in stdlib.functions(module):
            start = node.lineno
            for block in _code_blocks(module, node):
                for lines in _cut_lines(block):
                    if tuple(lines) not in seen:
                        seen.add(tuple(lines))
                        yield f"{module.path}:{start}:{len(seen)}", module.path, lines


def _code_blocks(module: stdlib.Module, node: stdlib.FunctionNode) -> Iterator[list[str]]:
    """Runs of the body's lines that aren't blank, comments, or inside a string of several lines."""
    body = node.body[1:] if ast.get_docstring(node) else node.body
    if not body:
        return
    in_string = {
        line
        for child in ast.walk(node)
        if isinstance(child, ast.Constant | ast.JoinedStr) and child.end_lineno != child.lineno
        for line in range(child.lineno, (child.end_lineno or 0) + 1)
    }
    block: list[str] = []
    for number in range(body[0].lineno, (node.end_lineno or 0) + 1):
        line = module.lines[number - 1]
        if line.strip() and not line.lstrip().startswith("#") and number not in in_string:
            block.append(line.rstrip().expandtabs())
        elif block:
            yield block
            block = []
    if block:
        yield block


def _cut_lines(block: list[str]) -> Iterator[list[str]]:
    """Windows of 6, 5 or 4 lines from the start of `block` on, dedented, that are short enough."""
    while len(block) >= 4:
        for size in (6, 5, 4):
            window = block[:size]
            margin = min(len(line) - len(line.lstrip()) for line in window)
            lines = [line[margin:] for line in window]
            if len(window) == size and len(set(lines)) == size and sum(map(len, lines)) <= _LINES_CHARACTERS:
                yield lines
                block = block[size:]
                break
        else:
            block = block[1:]


def _signatures(split: str) -> Iterator[tuple[str, str, str, str]]:
    """(key, file, signature line, first sentence of the docstring); no sentence twice."""
    seen = set()
    for module in stdlib.modules("tasks", split):
        for node in stdlib.functions(module):
            text = ast.get_docstring(node)
            if not text:
                continue
            sentence = _first_sentence(text)
            signature = f"{'async ' * isinstance(node, ast.AsyncFunctionDef)}def {node.name}({ast.unparse(node.args)}):"
            if 15 <= len(sentence) <= 110 and len(signature) <= 60 and sentence not in seen:
                seen.add(sentence)
                yield f"{module.path}:{node.lineno}", module.path, signature, f"\n{sentence}"


def _first_sentence(text: str) -> str:
    paragraph = " ".join(re.split(r"\n[ \t]*\n", text)[0].split())
    return re.split(r"(?<=[.!?])\s", paragraph)[0]
