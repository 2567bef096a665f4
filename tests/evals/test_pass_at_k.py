"""The estimators equal means over all subsets, written out; intervals are those of a bootstrap over problems."""

import itertools
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hhh_jax import stats
from hhh_jax.evals.pass_at_k import acc_at_k, mean_over_problems, pass_at_k, reranking

SAMPLES = st.integers(1, 8).flatmap(
    lambda n: st.tuples(
        st.lists(st.sampled_from([0.0, 0.5, 1.0, -np.inf]), min_size=n, max_size=n),
        st.lists(st.sampled_from([0.0, 1.0]), min_size=n, max_size=n),
        st.integers(1, n),
    )
)


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_mean_over_all_subsets(n):
    for n_right, k in itertools.product(range(n + 1), range(1, n + 1)):
        right = [True] * n_right + [False] * (n - n_right)
        assert pass_at_k(n, n_right, k) == pytest.approx(np.mean([any(s) for s in itertools.combinations(right, k)]))


def test_pass_at_k_of_many_samples():
    assert pass_at_k(10**6, 1, 1) == pytest.approx(1e-6, rel=1e-9)
    assert pass_at_k(10**6, 10**6 - 5, 10) == 1.0 and pass_at_k(200, 0, 100) == 0.0
    for arguments in ((2, 1, 3), (2, 3, 1), (2, 1, 0), (2, -1, 1)):
        with pytest.raises(ValueError, match="samples"):
            pass_at_k(*arguments)


@settings(max_examples=200, deadline=None)
@given(SAMPLES)
def test_acc_at_k_is_the_mean_over_all_subsets_with_ties_drawn_evenly(samples):
    scores, correct, k = samples
    accuracies = []
    for subset in itertools.combinations(range(len(scores)), k):
        best = max(scores[i] for i in subset)
        accuracies.append(np.mean([correct[i] for i in subset if scores[i] == best]))
    assert acc_at_k(np.array(scores), np.array(correct), k) == pytest.approx(np.mean(accuracies), abs=1e-12)


def test_acc_at_k_is_the_formula_of_the_paper():
    rng = np.random.default_rng(0)
    scores, correct = rng.normal(size=100), rng.integers(0, 2, 100)
    ranked = correct[np.argsort(-scores)]
    for k in (1, 2, 8, 32, 96, 100):
        expected = sum(right * comb(100 - i, k - 1) / comb(100, k) for i, right in enumerate(ranked.tolist(), 1))
        assert acc_at_k(scores, correct, k) == pytest.approx(expected, rel=1e-12)


def test_acc_at_k_refuses_what_has_no_order():
    for scores, correct, k in (([1.0, np.nan], [0, 1], 1), ([1.0], [1], 2), ([1.0, 2.0], [1], 1)):
        with pytest.raises(ValueError, match="score"):
            acc_at_k(np.array(scores), np.array(correct), k)


def test_reranking_stands_between_its_bounds():
    rng = np.random.default_rng(1)
    correct = [rng.integers(0, 2, 20).astype(float) for _ in range(30)]
    scores = [right + rng.normal(size=20) for right in correct]
    means = reranking(scores, correct, 5)
    assert means["unranked"].value < means["ranked"].value < means["oracle"].value
    assert means["unranked"].value == pytest.approx(np.mean(correct))
    assert means["oracle"].value == pytest.approx(np.mean([pass_at_k(20, int(right.sum()), 5) for right in correct]))
    assert reranking([-right for right in correct], correct, 20)["ranked"].value == 0
    assert all(mean.n_items == 30 and mean.lo < mean.value < mean.hi for mean in means.values())


def test_intervals_resample_groups_of_problems():
    values = np.tile([0.0, 0.5, 1.0, 0.2], 25)
    alone = mean_over_problems(values)
    assert (alone.value, alone.n_items) == (pytest.approx(0.425), 100)
    assert alone.hi - alone.lo == pytest.approx(2 * 1.98 * values.std(ddof=1) / 10, rel=0.1)
    grouped = mean_over_problems(np.sort(values), np.repeat(np.arange(4), 25))
    assert grouped.value == pytest.approx(0.425) and (grouped.lo, grouped.hi) == (0, 1)  # four groups say little
    in_pairs = mean_over_problems(np.sort(values), np.repeat(np.arange(50), 2))
    assert in_pairs.hi - in_pairs.lo == pytest.approx(2**0.5 * (alone.hi - alone.lo), rel=0.15)


def test_problems_that_agree_have_wilsons_interval():
    none = mean_over_problems([0.0] * 164)
    assert (none.value, none.lo, none.hi) == (0.0, *stats.wilson(0, 164)) and 0.02 < none.hi < 0.03
    assert mean_over_problems([1.0] * 6, np.repeat([0, 1], 3))[:3] == (1.0, *stats.wilson(2, 2))
    assert mean_over_problems([0.3])[:3] == (0.3, *stats.wilson(0.3, 1))
    with pytest.raises(ValueError, match="no problems"):
        mean_over_problems([])
