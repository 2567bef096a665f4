"""The paper's synthetic ranking of symbols (appendix C.6, figure 33).

The 676 symbols are the ordered pairs of capital letters, in a random ranking. A sample is a symbol repeated,
`(AC)(AC)(AC)(AC)`, and of two samples that of the higher symbol is good. `T0` is the control; `T1` .. `T4`
scramble the ranking by 10, 40, 160 and 640 random transpositions; `Tb` labels the first half GOOD and the
second BAD, in the binarized form of PMP. Pretrain on one of them, finetune on T0, test on T0's held-out pairs
(never held-out symbols).
"""

from __future__ import annotations

import functools
import itertools
import random
import string
from collections.abc import Iterator

from hhh_jax.data.records import Document, Pair
from hhh_jax.errors import UserError

SYMBOLS = tuple(a + b for a, b in itertools.product(string.ascii_uppercase, repeat=2))
TRANSPOSITIONS = {"T0": 0, "T1": 10, "T2": 40, "T3": 160, "T4": 640}
VARIANTS = (*TRANSPOSITIONS, "Tb")
GOOD, BAD = "GOOD:", "BAD:"
DEFAULT_SIZE = {"train": 20_000, "validation": 1000, "test": 2000}
_HELD_OUT = 10_000  # unordered pairs each for test and validation, of 228,150


def ranking(variant: str = "T0", seed: int = 0) -> list[str]:
    """The symbols from best to worst; `Tb` has the ranking of T0.

    A transposition swaps the symbols at two different places, drawn alike among all pairs of places.
    """
    symbols = list(SYMBOLS)
    random.Random(f"ranking {seed}").shuffle(symbols)
    rng = random.Random(f"scramble {variant} {seed}")
    for _ in range(TRANSPOSITIONS.get(variant, 0)):
        i, j = rng.sample(range(len(symbols)), 2)
        symbols[i], symbols[j] = symbols[j], symbols[i]
    return symbols


def sample(symbol: str) -> str:
    """The text of a symbol."""
    return f"({symbol})" * 4


def documents() -> list[Document]:
    """Every symbol's sample as a document, for language models that know symbols and nothing of their ranking."""
    return [Document(symbol, sample(symbol), symbol) for symbol in SYMBOLS]


def pairs(variant: str, split: str, seed: int = 0, limit: int | None = None) -> list[Pair]:
    """The first `limit` pairs (default `DEFAULT_SIZE`) of a split, good and bad by the variant's ranking.

    T0 .. T4: two different symbols, no unordered pair twice. All variants cut one random order of the
    unordered pairs into test, validation and train, so that no test pair is in any variant's training; raises
    UserError if the split has fewer than `limit`.

    Tb: one symbol with both labels, `GOOD:(AC).. > BAD:(AC)..` in the first half of the ranking and the other
    way round in the second. There are just 676 of them: every split passes through all in a new order each
    time.
    """
    size = DEFAULT_SIZE[split] if limit is None else limit
    if variant == "Tb":
        return list(itertools.islice(_labeled(split, seed), size))
    place = {symbol: i for i, symbol in enumerate(ranking(variant, seed))}
    available = _unordered_pairs(split, seed)
    if size > len(available):
        raise UserError(f"symbols:{variant} has {len(available)} {split} pairs; {size} were asked for")
    chosen = []
    for x, y in available[:size]:
        good, bad = sorted((x, y), key=place.__getitem__)
        chosen.append(Pair(f"{variant}:{good}>{bad}", "", sample(good), sample(bad), x + y))
    return chosen


@functools.lru_cache(maxsize=4)
def _order_of_pairs(seed: int) -> list[tuple[str, str]]:
    order = list(itertools.combinations(SYMBOLS, 2))
    random.Random(f"pairs {seed}").shuffle(order)
    return order


def _unordered_pairs(split: str, seed: int) -> list[tuple[str, str]]:
    start, stop = {
        "test": (0, _HELD_OUT),
        "validation": (_HELD_OUT, 2 * _HELD_OUT),
        "train": (2 * _HELD_OUT, None),
    }[split]
    return _order_of_pairs(seed)[start:stop]


def _labeled(split: str, seed: int) -> Iterator[Pair]:
    symbols = ranking("Tb", seed)
    good_half = set(symbols[: len(symbols) // 2])
    rng = random.Random(f"labeled {split} {seed}")
    for epoch in itertools.count():
        rng.shuffle(symbols)
        for symbol in symbols:
            right, wrong = (GOOD, BAD) if symbol in good_half else (BAD, GOOD)
            yield Pair(f"Tb:{symbol}:{epoch}", "", right + sample(symbol), wrong + sample(symbol), symbol)
