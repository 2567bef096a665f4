"""Counting, to tell conditioning from finetuning (the paper's figure 26).

A document is numbers in words of digits, "17 18 19 93 94 ...": each is its predecessor's successor with a probability
that the document has drawn uniformly from 0 to 1, and else any number from 1 to 128. Whoever has seen ``n`` numbers in
order should then expect the next one to follow with probability ``(n + 1) / (n + 2)`` (Laplace), a loss of about
``1 / n``, which is what a language model has to learn to do in context.
"""

from __future__ import annotations

import random
import re

from hhh_jax.data.records import Document
from hhh_jax.errors import UserError

LARGEST = 128
LENGTHS = (16, 100)
SIZES = {"train": 6000, "validation": 100, "test": 1000}
NAME = "counting"


def documents(name: str, split: str) -> list[Document]:
    """The documents of a split of ``counting``; or the one of ``counting:FIRST-LAST``, in every split.

    Raises UserError for another name.
    """
    if name != NAME:
        found = re.fullmatch(rf"{NAME}:(\d+)-(\d+)", name)
        if not found or not 1 <= int(found[1]) < int(found[2]) <= LARGEST:
            raise UserError(f"{name}: give {NAME}, or {NAME}:FIRST-LAST with numbers from 1 to {LARGEST}")
        return [Document(name, counted(int(found[1]), int(found[2])), name)]
    rng = random.Random(f"{NAME} {split}")
    return [Document(f"{split}:{i}", _document(rng), f"{split}:{i}") for i in range(SIZES[split])]


def counted(first: int, last: int) -> str:
    """``first`` to ``last``, counted without a mistake."""
    return " ".join(map(str, range(first, last + 1)))


def _document(rng: random.Random) -> str:
    follows = rng.random()
    numbers = [rng.randint(1, LARGEST)]
    for _ in range(rng.randint(*LENGTHS) - 1):
        successor = numbers[-1] + 1
        numbers.append(successor if successor <= LARGEST and rng.random() < follows else rng.randint(1, LARGEST))
    return " ".join(map(str, numbers))
