"""Accuracies of k samples drawn without replacement from the N of a problem: the best one's, if any is right, and the
one that a ranker puts first. Unbiased: each equals the mean over all subsets of k.

Means over problems come with 95% intervals, by a bootstrap over the problems' groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hhh_jax import stats


def pass_at_k(n: int, n_right: int, k: int) -> float:
    """The chance that k of n samples, of which `n_right` are right, have a right one: 1 - C(n - c, k) / C(n, k).

    As a product (Chen et al. 2021, arXiv 2107.03374). Raises ValueError unless 0 <= n_right <= n and 1 <= k <= n.
    """
    if not (0 <= n_right <= n and 1 <= k <= n):
        raise ValueError(f"no {k} of {n} samples, {n_right} right")
    if n - n_right < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(n - n_right + 1, n + 1)))


def acc_at_k(scores_N: np.ndarray, correct_N: np.ndarray, k: int) -> float:
    """The expected accuracy of the best-scored of k samples out of N; of equal scores, any may be first.

    sum_i acc(s_i) C(N - i, k - 1) / C(N, k), ranked best first (appendix B.6); samples with equal scores share their
    weights. Scores and correctness (0 to 1) are float [N]. Raises ValueError unless 1 <= k <= N, and for a score that
    is no number.
    """
    scores_N, correct_N = np.asarray(scores_N, np.float64), np.asarray(correct_N, np.float64)
    n = len(scores_N)
    if not 1 <= k <= n or len(correct_N) != n or np.isnan(scores_N).any():
        raise ValueError(f"no {k} of {n} scores and {len(correct_N)} samples, or a score that is no number")
    # C(N - i, k - 1) / C(N, k) from i to i + 1 changes by (N - i - k + 1) / (N - i), to 0 where fewer than k are left.
    rank_N = np.arange(1, n)
    weight_N = np.cumprod(np.concatenate([[k / n], np.maximum(0, n - rank_N - k + 1) / (n - rank_N)]))
    order_N = np.argsort(-scores_N, kind="stable")
    _, tie_N, size = np.unique(-scores_N[order_N], return_inverse=True, return_counts=True)
    right = np.bincount(tie_N, correct_N[order_N]) / size
    return float(np.bincount(tie_N, weight_N) @ right)


def best_of_n_kl(n: np.ndarray) -> np.ndarray:
    """How far the best of n is from any one, in nats: log n - (n - 1) / n, where scores have no ties."""
    return np.log(n) - (n - 1) / n


def reranking(
    scores: Sequence[np.ndarray], correct: Sequence[np.ndarray], k: int, groups_P: np.ndarray | None = None
) -> dict[str, stats.Estimate]:
    """Means over problems of `acc_at_k` ("ranked"), of the best possible ranker ("oracle") and of none ("unranked").

    Each problem has its own scores and correctness, as `acc_at_k` takes them. Raises ValueError as that does.
    """
    values = {
        "ranked": [acc_at_k(score_N, right_N, k) for score_N, right_N in zip(scores, correct, strict=True)],
        "oracle": [acc_at_k(right_N, right_N, k) for right_N in correct],
        "unranked": [float(np.mean(right_N)) for right_N in correct],
    }
    return {name: mean_over_problems(values_P, groups_P) for name, values_P in values.items()}


def mean_over_problems(values_P: Sequence[float] | np.ndarray, groups_P: np.ndarray | None = None) -> stats.Estimate:
    """The mean of the problems' values, from 0 to 1, with its interval.

    Where all problems agree, which leaves a bootstrap nothing to draw, it is Wilson's for that many groups. Raises
    ValueError without problems.
    """
    if len(values_P) == 0:
        raise ValueError("no problems")
    groups_P = np.arange(len(values_P)) if groups_P is None else np.asarray(groups_P)
    value, n_groups = float(np.mean(values_P)), len(np.unique(groups_P))
    if n_groups < 2 or np.ptp(values_P) == 0:
        return stats.Estimate(value, *stats.wilson(value * n_groups, n_groups), len(values_P), 1, n_groups)
    mean = stats.estimate([stats.sample(np.asarray(values_P)[None], groups_P)])
    return mean._replace(lo=max(0.0, mean.lo), hi=min(1.0, mean.hi))  # few groups widen it beyond
