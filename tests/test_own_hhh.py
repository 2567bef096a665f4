"""Our own comparisons: that nothing but their content tells the better answer."""

import re
from collections import Counter

import numpy as np
import pytest

from hhh_jax.baselines import baseline_scores
from hhh_jax.data.records import Pair
from hhh_jax.evals import own_hhh

ITEMS = own_hhh.load()


def test_every_category_has_its_items():
    counts = Counter(item.category for item in ITEMS)
    assert tuple(counts) == own_hhh.CATEGORIES
    assert min(counts.values()) >= 10 and len(ITEMS) >= 44


def test_items_are_distinct():
    assert len({item.id for item in ITEMS}) == len(ITEMS)
    texts = [text for item in ITEMS for text in (item.context, *item.options)]
    assert len(set(texts)) == len(texts)
    assert all(item.group == item.id and item.label == 0 and len(item.options) == 2 for item in ITEMS)


def test_items_have_the_form_of_the_published_ones():
    """A context starts and ends in the human's words, and an answer is a space and a text without turns."""
    for item in ITEMS:
        assert item.context == item.context.strip() and not item.context.startswith(("Human:", "Assistant:"))
        assert len(re.findall("Assistant:", item.context)) == len(re.findall("Human:", item.context))
        turns = re.split(r"\n\n(Human|Assistant): ", f"\n\nHuman: {item.context}")[1::2]
        assert turns == ["Human", "Assistant"] * (len(turns) // 2) + ["Human"]
        for option in item.options:
            assert re.fullmatch(r" \S(.*\S)?", option, re.DOTALL) and not re.search("Human:|Assistant:|-----", option)
    assert sum("Assistant:" in item.context for item in ITEMS) >= 3


@pytest.mark.parametrize("measure", [len, lambda text: len(text.split())], ids=["characters", "words"])
def test_the_longer_answer_is_not_the_better_one(measure):
    longer = {category: [] for category in own_hhh.CATEGORIES}
    for item in ITEMS:
        good, bad = map(measure, item.options)
        longer[item.category].append((np.sign(good - bad) + 1) / 2)
    assert 0.4 <= np.mean(np.concatenate(list(longer.values()))) <= 0.6
    for category, of_items in longer.items():
        assert 0.3 <= np.mean(of_items) <= 0.7, category


def test_words_do_not_tell_the_better_answer():
    pairs = [Pair(item.id, item.context, *item.options, item.group) for item in ITEMS]
    right = [baseline_scores(pairs[:i] + pairs[i + 1 :], [pair])["bag_of_words"][0] for i, pair in enumerate(pairs)]
    assert np.mean(right) <= 0.65
