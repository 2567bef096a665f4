"""The paper's synthetic ranking of symbols (appendix C.6, figure 33).

The 676 symbols are the ordered pairs of capital letters, in a random ranking. A sample is a symbol repeated,
`(AC)(AC)(AC)(AC)`, and of two samples the one of the higher symbol is good. `T0` is the control; `T1` .. `T4` scramble
the ranking by 10, 40, 160 and 640 random transpositions; `Tb` labels the first half GOOD and the second BAD, in the
binarized form of PMP. Pretrain on one of them, finetune on T0, test on T0's held-out pairs (never held-out symbols).
"""

from __future__ import annotations

import itertools
import random
import string

from hhh_jax.data.records import Pair

SYMBOLS = tuple(a + b for a, b in itertools.product(string.ascii_uppercase, repeat=2))
TRANSPOSITIONS = {"T0": 0, "T1": 10, "T2": 40, "T3": 160, "T4": 640}
VARIANTS = (*TRANSPOSITIONS, "Tb")
GOOD, BAD = "GOOD:", "BAD:"
DEFAULT_SIZE = {"train": 20_000, "validation": 1000, "test": 2000}


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


def pairs(variant: str, split: str, seed: int = 0, limit: int | None = None) -> list[Pair]:
    """Pairs of different symbols, no unordered pair twice, good and bad by the variant's ranking.

    The splits of all variants cut the same random order of the 227,850 unordered pairs into test, validation and train,
    so that no pair of a test is in any variant's training. `limit` takes that many (default `DEFAULT_SIZE`). A pair of
    `Tb` is one symbol with both labels: `GOOD:(AC).. > BAD:(AC)..` for one of the first half, else the other way round;
    its splits are drawn from all symbols with replacement.
    """
    size = DEFAULT_SIZE[split] if limit is None else limit
    if variant == "Tb":
        return list(itertools.islice(_labeled(split, seed), size))
    place = {symbol: i for i, symbol in enumerate(ranking(variant, seed))}
    chosen = []
    for x, y in _split_of_pairs(split, seed)[:size]:
        good, bad = (x, y) if place[x] < place[y] else (y, x)
        chosen.append(Pair(f"{variant}:{good}>{bad}", "", sample(good), sample(bad), f"{min(x, y)}{max(x, y)}"))
    return chosen


def _split_of_pairs(split: str, seed: int) -> list[tuple[str, str]]:
    order = list(itertools.combinations(SYMBOLS, 2))
    random.Random(f"pairs {seed}").shuffle(order)
    test, validation = 10_000, 10_000
    cut = {"test": (0, test), "validation": (test, test + validation), "train": (test + validation, len(order))}
    return order[slice(*cut[split])]


def _labeled(split: str, seed: int):
    symbols = ranking("Tb", seed)
    good_half = set(symbols[: len(symbols) // 2])
    rng = random.Random(f"labeled {split} {seed}")
    for number in itertools.count():
        symbol = rng.choice(symbols)
        right, wrong = (GOOD, BAD) if symbol in good_half else (BAD, GOOD)
        yield Pair(f"Tb:{symbol}:{number}", "", right + sample(symbol), wrong + sample(symbol), symbol)
