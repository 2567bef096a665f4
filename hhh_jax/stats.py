"""Intervals for scaling studies: every value comes with one, over seeds and items, never over rungs.

A study measures right or wrong (or a loss) for S seeds x I items. Both are samples: another seed or another
test item would have given another value. Items come in groups (a source file, a question) and groups are what
is resampled. The estimator is a bootstrap with two corrections that three seeds call for, checked by
simulation in tests/test_stats.py:

  * a seed's mean differs from another's also by item noise, which resampling the items counts already: the
    seeds' deviations are shrunk so that each component of the variance counts once (two-way analysis of
    variance);
  * a variance known from S - 1 degrees of freedom needs Student's t: deviations are widened by t / z at the
    degrees of freedom of the whole (Satterthwaite), which is close to 1 where items dominate.

Everything is deterministic by `seed`. Letters: S seeds, I items, G groups, R rungs, B bootstrap draws, T
tasks.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

N_BOOT = 4000


class Estimate(NamedTuple):
    """A value with its 95% interval; how many items and seeds it rests on."""

    value: float
    lo: float
    hi: float
    n_items: int
    n_seeds: int


class Sample(NamedTuple):
    """What a statistic is the mean of: `values` float64 [S, G], one number a seed and group, from `n_items`
    items."""

    values: np.ndarray
    n_items: int


def wilson(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion; `successes` may be fractional (ties count half). n = 0 gives
    (0, 1)."""
    from scipy.stats import norm

    if n == 0:
        return 0.0, 1.0
    z = float(norm.ppf(0.5 + confidence / 2))
    p = successes / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, float(center - half)), min(1.0, float(center + half))


def sample(
    values_SxI: np.ndarray, groups_I: np.ndarray | None = None, weights_I: np.ndarray | None = None
) -> Sample:
    """The mean over items, or the ratio sum(values) / sum(weights), as a mean over groups.

    A seed's row of the result averages exactly to its mean (ratio); around it, each group has its influence
    on it. So linear combinations of rows with the same groups are paired statistics. Without groups each item
    is one.
    """
    values_SxI = np.atleast_2d(np.asarray(values_SxI, dtype=np.float64))
    n_items = values_SxI.shape[1]
    weights_I = np.ones(n_items) if weights_I is None else np.asarray(weights_I, dtype=np.float64)
    group_I = np.arange(n_items) if groups_I is None else np.unique(groups_I, return_inverse=True)[1]
    n_groups = int(group_I.max()) + 1
    if n_groups < 2:
        raise ValueError("an interval needs two groups of items or more")
    mean_Sx1 = values_SxI.sum(1, keepdims=True) / weights_I.sum()
    excess_SxG = np.stack([np.bincount(group_I, row, n_groups) for row in values_SxI - mean_Sx1 * weights_I])
    return Sample(mean_Sx1 + excess_SxG * n_groups / weights_I.sum(), n_items)


def draws(
    samples: Sequence[Sample],
    coefficients: Sequence[float] | None = None,
    n_boot: int = N_BOOT,
    seed: int = 0,
) -> tuple[float, np.ndarray]:
    """The statistic sum_t coefficient_t * mean(sample_t) and its bootstrap draws [B].

    The samples (tasks) have the same seeds, which are resampled jointly, and different items, which are
    resampled task by task. The k-th sample always meets the same resampled groups, so draws of several
    statistics go together. Raises ValueError when the samples differ in their number of seeds.
    """
    from scipy.stats import norm, t

    coefficient_T = (
        np.ones(len(samples)) if coefficients is None else np.asarray(coefficients, dtype=np.float64)
    )
    n_seeds = samples[0].values.shape[0]
    if any(s.values.shape[0] != n_seeds for s in samples):
        raise ValueError("samples with different numbers of seeds cannot be combined")
    seed_mean_S = np.zeros(n_seeds)
    item_dev_B = np.zeros(n_boot)
    item_variance_T = np.zeros(len(samples))
    interaction_variance = 0.0
    for index, (c, (values_SxG, _)) in enumerate(zip(coefficient_T, samples, strict=True)):
        n_groups = values_SxG.shape[1]
        row_S, column_G = c * values_SxG.mean(1), c * values_SxG.mean(0)
        seed_mean_S += row_S
        residual_SxG = c * values_SxG - row_S[:, None] - column_G + row_S.mean()
        if n_seeds > 1:
            interaction_variance += float(np.square(residual_SxG).sum()) / (
                (n_seeds - 1) * (n_groups - 1) * n_seeds * n_groups
            )
        item_variance_T[index] = column_G.var(ddof=1) / n_groups
        scale = np.sqrt(n_groups / (n_groups - 1)) / n_groups
        item_dev_B += scale * (_counts(n_groups, n_boot, seed, index + 1) @ (column_G - column_G.mean()))
    value = float(seed_mean_S.mean())

    seed_variance, seed_dev_B = 0.0, np.zeros(n_boot)
    degrees = sum(v * v / (s.values.shape[1] - 1) for v, s in zip(item_variance_T, samples, strict=True))
    total = float(seed_mean_S.var(ddof=1)) / n_seeds if n_seeds > 1 else 0.0
    if total > interaction_variance:
        seed_variance = total - interaction_variance
        degrees += seed_variance * total / (n_seeds - 1)
        scale = np.sqrt(n_seeds / (n_seeds - 1) * seed_variance / total) / n_seeds
        seed_dev_B = scale * (_counts(n_seeds, n_boot, seed, 0) @ (seed_mean_S - value))
    variance = seed_variance + item_variance_T.sum()
    widen = t.ppf(0.975, variance * variance / degrees) / norm.ppf(0.975) if degrees > 0 else 1.0
    return value, value + widen * (seed_dev_B + item_dev_B)


def estimate(
    samples: Sequence[Sample],
    coefficients: Sequence[float] | None = None,
    n_boot: int = N_BOOT,
    seed: int = 0,
) -> Estimate:
    """The statistic of `draws` with its 95% percentile interval: means over tasks, differences of such
    means."""
    value, draws_B = draws(samples, coefficients, n_boot, seed)
    return _interval(value, draws_B, samples)


def paired_difference(
    a_SxI: np.ndarray,
    b_SxI: np.ndarray,
    groups_I: np.ndarray | None = None,
    n_boot: int = N_BOOT,
    seed: int = 0,
) -> Estimate:
    """mean(a) - mean(b), paired by seed and item, with its 95% interval. A b of one row is shared by all
    seeds."""
    return estimate([sample(np.atleast_2d(a_SxI) - np.atleast_2d(b_SxI), groups_I)], None, n_boot, seed)


def slope_weights(n_params_R: Sequence[float]) -> np.ndarray:
    """k_R such that sum_r k_r y_r is the least-squares slope of y against log10 N. Raises ValueError for one
    rung."""
    x_R = np.log10(np.asarray(n_params_R, dtype=np.float64))
    x_R = x_R - x_R.mean()
    if not x_R.any():
        raise ValueError("a slope needs two model sizes or more")
    return x_R / np.square(x_R).sum()


class PowerLaw(NamedTuple):
    """L = coefficient * N ** -exponent, fitted to log L by least squares.

    `curvature` is the second-degree coefficient of log10 L in log10 N: a power law has none. `misfit` is the
    largest relative distance of a rung from the line. `offset` is (c, a, exponent) of L = c + a N **
    -exponent; it is `identified` if four rungs or more fix it: c above 0 and the exponent inside the grid,
    within the 95% intervals.
    """

    exponent: Estimate
    coefficient: Estimate
    curvature: Estimate
    misfit: float
    offset: tuple[Estimate, Estimate, Estimate]
    identified: bool


EXPONENTS = np.geomspace(0.005, 3.0, 400)


def power_law(
    samples: Sequence[Sample], n_params_R: Sequence[float], n_boot: int = N_BOOT, seed: int = 0
) -> PowerLaw:
    """Fit loss against size; `samples` are the rungs' losses on the same documents, one sample (`sample`) a
    rung.

    Intervals are over documents and seeds. Raises ValueError for fewer than three rungs.
    """
    if len(samples) < 3:
        raise ValueError("a power law needs three model sizes or more")
    x_R = np.log10(np.asarray(n_params_R, dtype=np.float64))
    log_R = []  # samples of log10 L: the same influence, divided by the loss
    for s in samples:
        loss_Sx1 = s.values.mean(1, keepdims=True)
        log_R.append(np.log10(loss_Sx1) + (s.values / loss_Sx1 - 1) / np.log(10))
    n_items = samples[0].n_items

    def combine(weights_R: np.ndarray) -> Sample:
        return Sample(np.tensordot(weights_R, np.stack(log_R), 1), n_items)

    line_2xR, parabola_3xR = (np.linalg.pinv(np.vander(x_R, degree)) for degree in (2, 3))
    exponent = estimate([combine(-line_2xR[0])], None, n_boot, seed)
    level = estimate([combine(line_2xR[1])], None, n_boot, seed)
    coefficient = level._replace(value=10**level.value, lo=10**level.lo, hi=10**level.hi)
    curvature = estimate([combine(parabola_3xR[0])], None, n_boot, seed)

    loss_R = np.array([10 ** values.mean() for values in log_R])
    misfit = float(np.abs(coefficient.value * np.power(10.0, -exponent.value * x_R) / loss_R - 1).max())
    draws_BxR = np.stack([10 ** draws([Sample(v, n_items)], None, n_boot, seed)[1] for v in log_R], axis=1)
    value_3 = fit_offset(loss_R[None], n_params_R)[:, 0]
    draws_3xB = fit_offset(draws_BxR, n_params_R)
    offset = tuple(_interval(float(v), d, samples[:1]) for v, d in zip(value_3, draws_3xB, strict=True))
    inside = EXPONENTS[0] < offset[2].lo and offset[2].hi < EXPONENTS[-1]
    return PowerLaw(
        exponent, coefficient, curvature, misfit, offset, len(samples) >= 4 and offset[0].lo > 0 and inside
    )


def fit_offset(loss_BxR: np.ndarray, n_params_R: Sequence[float]) -> np.ndarray:
    """(c, a, exponent) [3, B] of L = c + a N ** -exponent by least squares of the relative error, c >= 0.

    For each exponent of the grid EXPONENTS, c and a follow in closed form; the best exponent wins. Vectorized
    over rows of `loss_BxR`.
    """
    n_R = np.asarray(n_params_R, dtype=np.float64)
    power_KxR = (n_R / n_R.min()) ** -EXPONENTS[:, None]
    best = np.full((4, len(loss_BxR)), np.inf)  # error, c, a, exponent
    u_BxR = 1 / loss_BxR
    for exponent, power_R in zip(EXPONENTS, power_KxR, strict=True):
        v_BxR = power_R / loss_BxR
        uu, uv, vv = (u_BxR**2).sum(1), (u_BxR * v_BxR).sum(1), (v_BxR**2).sum(1)
        u, v = u_BxR.sum(1), v_BxR.sum(1)
        c = np.maximum(0.0, (u * vv - v * uv) / (uu * vv - uv * uv))
        a = (v - c * uv) / vv
        error = np.square(c[:, None] * u_BxR + a[:, None] * v_BxR - 1).sum(1)
        better = error < best[0]
        best[:, better] = np.stack([error, c, a * n_R.min() ** exponent, np.full_like(c, exponent)])[
            :, better
        ]
    return best[1:]


def _interval(value: float, draws_B: np.ndarray, samples: Sequence[Sample]) -> Estimate:
    lo, hi = (float(q) for q in np.quantile(draws_B, [0.025, 0.975]))
    return Estimate(value, lo, hi, sum(s.n_items for s in samples), samples[0].values.shape[0])


@lru_cache(maxsize=16)
def _counts(n: int, n_boot: int, seed: int, index: int) -> np.ndarray:
    """How often each of n units is drawn, float32 [B, n]; a stream of its own for every index."""
    rng = np.random.default_rng([seed, index])
    return rng.multinomial(n, np.full(n, 1 / n), size=n_boot).astype(np.float32)
