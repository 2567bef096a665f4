"""A ranked source for preference model pre-training, in the manner of the paper's Wikipedia edits (C.1).

A page is a module of the standard library, a section a window of its prose, and the better version has had fewer of its
words replaced by other words of the page. Pages are the files that language models are pretrained on.
"""

from __future__ import annotations

import dataclasses
import functools
import random

from hhh_jax.data.records import Pair
from hhh_jax.data.tasks import chain, links, windows

LEVELS = (0, 1, 2, 4)  # words replaced


@functools.cache
def pairs(split: str, seed: int = 0) -> tuple[Pair, ...]:
    """All pairs of `split` under the title of their page, shuffled by `seed`, which also draws levels and words.

    A chain of three levels a < b < c gives the pairs (a, b) and (b, c). Raises UserError if the library was stripped.
    """
    sections = windows(split, "pretraining")
    pages: dict[str, list[str]] = {}
    for _, page, words in sections:
        pages.setdefault(page, []).extend(words)
    items = []
    for key, page, words in sections:
        rng = random.Random(f"edits {key} {seed}")
        levels = chain(LEVELS, rng)
        places = rng.sample(range(len(words)), levels[-1])
        others = [rng.choice([word for word in pages[page] if word != words[place]]) for place in places]
        texts = {}
        for level in levels:
            edited = list(words)
            for place, other in zip(places[:level], others[:level], strict=True):
                edited[place] = other
            texts[level] = " ".join(edited)
        title = page.removesuffix(".py").replace("/", ".")
        items += [dataclasses.replace(pair, context=f"{title}: ") for pair in links(key, page, texts)]
    random.Random(f"order {split} {seed}").shuffle(items)
    return tuple(items)
