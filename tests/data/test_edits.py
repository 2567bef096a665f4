"""Edits: fewer replaced words are better, words come from the page, pages are pretrained on."""

import re

import pytest

from hhh_jax.data import edits, stdlib
from hhh_jax.data.records import SPLITS


@pytest.mark.parametrize("split", SPLITS)
def test_levels_count_replaced_words(split):
    chains: dict[str, list] = {}
    for pair in edits.pairs(split):
        key, better, worse = re.fullmatch(r"(.*):(\d)<(\d)", pair.id).groups()
        assert int(better) < int(worse)
        good, bad = pair.good.split(), pair.bad.split()
        assert len(good) == len(bad)
        changed = sum(a != b for a, b in zip(good, bad, strict=True))
        assert changed == int(worse) - int(better)  # the worse one has the better one's replacements too
        chains.setdefault(key, []).append(pair)
    assert len(chains) > 100
    for first, second in chains.values():  # the middle text is bad in one pair and good in the other
        assert first.bad == second.good or second.bad == first.good


def test_words_come_from_the_page_and_pages_are_pretrained_on():
    pages = {module.path for module in stdlib.modules("pretraining", "test")}
    words: dict[str, set[str]] = {}
    for pair in edits.pairs("test"):
        assert pair.group in pages and pair.context == pair.group.removesuffix(".py").replace("/", ".") + ": "
        if ":0<" in pair.id:
            words.setdefault(pair.group, set()).update(pair.good.split())
    for pair in edits.pairs("test"):
        text = next(module.text for module in stdlib.modules("pretraining", "test") if module.path == pair.group)
        assert all(word.rstrip(".") in text for word in pair.bad.split())


def test_seed_draws_other_edits_of_the_same_sections():
    one, other = edits.pairs("validation", 0), edits.pairs("validation", 1)
    sections = [{pair.id.rpartition(":")[0] for pair in pairs} for pairs in (one, other)]
    assert sections[0] == sections[1] and {pair.bad for pair in one} != {pair.bad for pair in other}
