"""What a run reads at a step: epochs, exact numbers of pairs, each held-out item once, and reading ahead."""

import threading
import time

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import PAD, make_pair

from hhh_jax.data.loader import (
    DocumentLoader,
    PairLoader,
    document_batches,
    pair_order,
    prefetch,
    stack,
)
from hhh_jax.data.packing import Batch, DocumentStream


def assert_same(a: Batch, b: Batch) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


# The order


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 20), seed=st.integers(0, 5), first=st.integers(0, 70), count=st.integers(1, 50))
def test_order_is_a_permutation_an_epoch_and_found_at_once(n, seed, first, count):
    whole = pair_order(n, seed, 0, 6 * 20)
    assert all(sorted(whole[e * n : (e + 1) * n]) == list(range(n)) for e in range(6 * 20 // n))
    assert (pair_order(n, seed, first, count) == whole[first : first + count]).all()


def test_seeds_and_epochs_have_orders_of_their_own():
    orders = {tuple(pair_order(30, seed, 30 * epoch, 30)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


# Training batches


def pairs_of(batch: Batch, seed: int) -> list[int]:
    """The number of each pair of a batch, which is the first token of its good side's response."""
    firsts = []
    for row, slot in np.argwhere(batch.pair_mask[seed]):
        good = (batch.segment_ids[seed, row] == slot + 1) & (batch.branch_ids[seed, row] == 1)
        firsts.append(int(batch.tokens[seed, row, good][0]) - 1000)
    return firsts


def numbered(n: int) -> list:
    """Pairs without context that say which they are; each third one is long."""
    return [make_pair(str(i), [], [1000 + i] + [5] * (9 if i % 3 == 0 else 1), [2]) for i in range(n)]


def test_a_step_holds_exactly_batch_pairs():
    pairs, seeds = numbered(20), (3, 4)
    loader = PairLoader(pairs, batch_pairs=8, length=16, slots=4, pad_id=PAD, multiple=2)
    seen: dict[int, list[int]] = {seed: [] for seed in seeds}
    for step in range(5):  # two epochs
        batch = loader.batch(step, seeds)
        assert batch.pair_mask.sum((1, 2)).tolist() == [8, 8]
        assert batch.tokens.shape[0] == 2 and batch.tokens.shape[1] in loader.sizes
        for g, seed in enumerate(seeds):
            expected = pair_order(20, seed, step * 8, 8).tolist()
            assert sorted(pairs_of(batch, g)) == sorted(expected)
            seen[seed] += expected
    assert loader.sizes == [2, 4, 6, 8]
    for order in seen.values():
        assert sorted(order[:20]) == sorted(order[20:]) == list(range(20))
    assert seen[3] != seen[4]
    assert_same(loader.batch(3, seeds), PairLoader(pairs, 8, 16, 4, PAD, 2).batch(3, seeds))


def test_seeds_that_need_fewer_rows_get_spare_ones():
    pairs = numbered(3) + [make_pair("wide", [], [1003, *[5] * 12], [2])] * 3
    loader = PairLoader(pairs, batch_pairs=3, length=16, slots=3, pad_id=PAD, multiple=1)
    needs = {}
    for seed in range(30):
        needs.setdefault(loader.batch(0, (seed,)).tokens.shape[1], seed)
    small, large = needs[min(needs)], needs[max(needs)]
    both = loader.batch(0, (small, large))
    assert both.tokens.shape[1] == max(needs) > min(needs)
    assert both.pair_mask.sum((1, 2)).tolist() == [3, 3]
    assert sorted(pairs_of(both, 0)) == sorted(pairs_of(loader.batch(0, (small,)), 0))


def test_document_batches_are_rows_of_the_stream():
    documents = [100 * d + np.arange(size, dtype=np.int32) for d, size in enumerate((7, 30, 4, 12))]
    loader, seeds = DocumentLoader(documents, rows=3, length=8, pad_id=PAD), (5, 6)
    for step in (0, 4, 1):
        batch = loader.batch(step, seeds)
        assert batch.tokens.shape == (2, 3, 8)
        expected = [DocumentStream(documents, 8, seed).batch(3 * step, 3, PAD)[0] for seed in seeds]
        assert_same(batch, stack(expected))


# Evaluation batches


@pytest.mark.parametrize("rows", [1, 3, 50])
def test_every_document_token_is_evaluated_once(rows):
    documents = [100 * d + np.arange(size, dtype=np.int32) for d, size in enumerate((7, 30, 1, 4, 12))]
    tokens, predicted = [], np.zeros(5, int)
    for batch, placement in document_batches(documents, 8, PAD, rows):
        assert batch.tokens.shape == (rows, 8)
        tokens += batch.tokens[batch.segment_ids > 0].tolist()
        predicted += np.bincount(placement.option_RxT[placement.option_RxT >= 0], minlength=5)
    assert tokens == np.concatenate(documents).tolist()
    assert predicted.tolist() == [6, 29, 0, 3, 11]


# Reading ahead


def readers() -> set[threading.Thread]:
    return set(threading.enumerate())


def until(condition) -> bool:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_prefetch_gives_everything_in_order():
    before = readers()
    assert list(prefetch(lambda i: i * i, 3, 9)) == [9, 16, 25, 36, 49, 64]
    assert list(prefetch(lambda i: i, 4, 4)) == []
    assert until(lambda: readers() <= before)


def test_prefetch_stays_a_little_ahead():
    made: list[int] = []
    items = prefetch(lambda i: made.append(i) or i, 0, 100, depth=2)
    assert next(items) == 0
    assert until(lambda: len(made) == 4)  # one is read, two wait, and one is in the thread's hands
    time.sleep(0.3)
    assert made == [0, 1, 2, 3]
    items.close()


def test_prefetch_raises_what_the_thread_raised_after_what_came_before():
    before = readers()

    def make(i: int) -> int:
        if i == 2:
            raise OSError("the disk is gone")
        return i

    items = prefetch(make, 0, 10)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(items)
    assert until(lambda: readers() <= before)


def test_prefetch_stops_its_thread_when_abandoned():
    before = readers()
    items = prefetch(lambda i: i, 0, 10**9)
    next(items)
    assert len(readers() - before) == 1
    items.close()
    assert until(lambda: readers() <= before)
