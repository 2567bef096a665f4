"""Counting documents: the share of successors that a document has is what Laplace's rule assumes."""

import itertools

import numpy as np
import pytest

from hhh_jax.data import counting
from hhh_jax.errors import UserError


def test_after_n_successors_the_next_follows_as_laplace_says():
    tries, follows = np.zeros(6), np.zeros(6)
    for document in counting.documents("counting", "train"):
        numbers = [int(word) for word in document.text.split()]
        steps = [b == a + 1 for a, b in itertools.pairwise(numbers) if a < counting.LARGEST]
        run = 0
        while run < 5 and run < len(steps) and steps[run]:
            tries[run] += 1
            follows[run] += 1
            run += 1
        if run < 5 and run < len(steps):
            tries[run] += 1
    n = np.arange(5)
    expected = (n + 1) / (n + 2)  # a random number is a successor once in 128 times, which is well inside the margin
    error = np.sqrt(expected * (1 - expected) / tries[:5])
    np.testing.assert_array_less(np.abs(follows[:5] / tries[:5] - expected), 4 * error + 1 / 128)


def test_a_range_is_one_document_and_splits_differ():
    (document,) = counting.documents("counting:5-8", "test")
    assert document.text == "5 6 7 8"
    texts = [{d.text for d in counting.documents("counting", split)} for split in ("train", "validation", "test")]
    assert not texts[0] & (texts[1] | texts[2]) and not texts[1] & texts[2]


@pytest.mark.parametrize("name", ["counting:8-5", "counting:1-1000", "counting:x"])
def test_other_names_are_refused(name):
    with pytest.raises(UserError, match="counting:FIRST-LAST"):
        counting.documents(name, "train")
