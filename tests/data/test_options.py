"""Every option once, whatever the rows hold, and placed as a pair's sides are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import PAD, random_pairs

from hhh_jax.data.options import option_batches
from hhh_jax.data.packing import pack_pairs


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), n=st.integers(1, 20), rows=st.integers(1, 4), length=st.integers(12, 40),
    most=st.integers(1, 9),
)  # fmt: skip
def test_every_option_is_read_back_from_its_branch(seed, n, rows, length, most):
    """Its tokens, those of its context, and which of them are predicted: also of items that a row doesn't hold."""
    rng = np.random.default_rng(seed)
    items = [
        (rng.integers(2, 99, rng.integers(0, 7)), [rng.integers(2, 99, size) for size in rng.integers(1, 6, count)])
        for count in rng.integers(0, most + 1, n)
    ]
    found = {}
    for batch, placement in option_batches(items, length, PAD, rows):
        assert batch.tokens.shape == (rows, length)
        for row, end in np.argwhere(placement.end_RxT >= 0):
            option = int(placement.end_RxT[row, end])
            segment, branch = batch.segment_ids[row, end], batch.branch_ids[row, end]
            own = (batch.segment_ids[row] == segment) & np.isin(batch.branch_ids[row], (0, branch))
            assert batch.positions[row, own].tolist() == list(range(own.sum()))
            predicting = np.flatnonzero(placement.option_RxT[row] == option)
            assert option not in found
            found[option] = batch.tokens[row, own].tolist(), batch.targets[row, predicting].tolist()
            assert own[predicting].all()
    expected = [(context.tolist(), option.tolist()) for context, options in items for option in options]
    assert sorted(found) == list(range(len(expected)))
    for i, (context, option) in enumerate(expected):
        assert found[i] == (context + option, option if context else option[1:])


def test_two_options_are_placed_as_a_pair():
    pairs = random_pairs(np.random.default_rng(0), 20)
    ((batch, placement),) = option_batches([(pair.context, (pair.good, pair.bad)) for pair in pairs], 40, PAD, 20)
    expected, where = pack_pairs(pairs, 40, 40, PAD, sizes=[20])
    for name in ("tokens", "segment_ids", "branch_ids", "positions"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(expected, name))
    np.testing.assert_array_equal(placement.option_RxT, where.option_RxT)


def test_batches_are_well_filled_and_long_items_refused():
    rng = np.random.default_rng(0)
    items = [(rng.integers(2, 99, 8), [rng.integers(2, 99, n) for n in rng.integers(1, 6, 4)]) for _ in range(500)]
    batches = [batch for batch, _ in option_batches(items, 128, PAD, 8)]
    used = sum(int((batch.segment_ids > 0).sum()) for batch in batches)
    assert used / (len(batches) * 8 * 128) > 0.9
    with pytest.raises(ValueError, match="has 13 tokens and a row 12"):
        list(option_batches([(np.arange(8), [np.arange(5)])], 12, PAD, 1))
