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
from typing import Any, NamedTuple

import numpy as np

N_BOOT = 4000


class Estimate(NamedTuple):
    """A value with its 95% interval; how many items, seeds and groups of items it rests on (0: not known)."""

    value: float
    lo: float
    hi: float
    n_items: int
    n_seeds: int
    n_groups: int = 0


class Sample(NamedTuple):
    """What a statistic is the mean of: `values` float64 [S, G], one number a seed and group, from `n_items`
    items."""

    values: np.ndarray
    n_items: int


def wilson(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion; `successes` may be fractional (ties count half). n = 0 gives
    (0, 1)."""
    from scipy.special import ndtri  # the quantile of scipy.stats, which takes a second to import

    if n == 0:
        return 0.0, 1.0
    z = float(ndtri(0.5 + confidence / 2))
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


def deviations(
    samples: Sequence[Sample],
    coefficients: Sequence[float] | None = None,
    n_boot: int = N_BOOT,
    seed: int = 0,
) -> tuple[float, np.ndarray, float]:
    """The statistic sum_t coefficient_t * mean(sample_t), the deviations of its bootstrap draws from it [B],
    and the factor, t / z, by which they are to be widened.

    The samples (tasks) have the same seeds, which are resampled jointly, and different items, which are
    resampled task by task. The k-th sample always meets the same resampled groups, so draws of several
    statistics go together. Raises ValueError when the samples differ in their number of seeds.
    """
    from scipy.special import ndtri, stdtrit

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
    widen = float(stdtrit(variance * variance / degrees, 0.975) / ndtri(0.975)) if degrees > 0 else 1.0
    return value, seed_dev_B + item_dev_B, widen


def estimate(
    samples: Sequence[Sample],
    coefficients: Sequence[float] | None = None,
    n_boot: int = N_BOOT,
    seed: int = 0,
) -> Estimate:
    """The statistic of `deviations` with its 95% percentile interval: means over tasks, differences of such
    means."""
    value, deviation_B, widen = deviations(samples, coefficients, n_boot, seed)
    return _interval(value, value + widen * deviation_B, samples)


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


EXPONENTS = np.geomspace(0.005, 3.0, 100)
MISFIT = 0.02
"""The largest relative distance from the line of a loss that still follows a power law."""


class Line(NamedTuple):
    """L = coefficient * N ** -exponent, fitted to log L by least squares, and the largest relative distance from it."""

    exponent: float
    coefficient: float
    misfit: float


def power_law_line(loss_R: Sequence[float], n_params_R: Sequence[float]) -> Line:
    """The fit of `power_law` to losses of which nothing is known but their value, as a published curve's."""
    x_R, y_R = (np.log10(np.asarray(values, dtype=np.float64)) for values in (n_params_R, loss_R))
    slope, level = np.linalg.pinv(np.vander(x_R, 2)) @ y_R
    return Line(-float(slope), float(10**level), float(np.abs(10 ** (slope * x_R + level - y_R) - 1).max()))


def flaws(misfit: float, curvature: Any = None, exponent: Any = None) -> list[str]:
    """What speaks against a fit that was made; nothing if it can be used.

    Args:
      misfit: largest relative distance from the line.
      curvature, exponent: with ``lo`` and ``hi``, the ends of their 95% intervals; None if these are not known.
    """
    found = [f"misses a loss by {misfit:.1%}"] if misfit > MISFIT else []
    if curvature is not None and not curvature.lo <= 0 <= curvature.hi:
        found.append("flattens" if curvature.lo > 0 else "steepens")
    if exponent is not None and exponent.lo <= 0 <= exponent.hi:
        found.append("has no slope beyond its interval")
    return found


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
    # The same documents are drawn for every rung, and all are widened alike, so what rungs share stays
    # shared.
    widen = deviations([combine(-line_2xR[0])], None, n_boot, seed)[2]
    draws_BxR = np.stack(
        [10 ** (v.mean() + widen * deviations([Sample(v, n_items)], None, n_boot, seed)[1]) for v in log_R],
        axis=1,
    )
    value_3 = fit_offset(loss_R[None], n_params_R)[:, 0]
    draws_3xB = fit_offset(draws_BxR, n_params_R)
    c, a, power = (_interval(float(v), d, samples[:1]) for v, d in zip(value_3, draws_3xB, strict=True))
    inside = EXPONENTS[1] < power.lo and power.hi < EXPONENTS[-2]
    identified = bool(len(samples) >= 4 and c.lo > 0 and inside)
    return PowerLaw(exponent, coefficient, curvature, misfit, (c, a, power), identified)


def fit_offset(loss_BxR: np.ndarray, n_params_R: Sequence[float]) -> np.ndarray:
    """(c, a, exponent) [3, B] of L = c + a N ** -exponent by least squares of the relative error, c >= 0.

    Given an exponent, c and a follow in closed form; the exponent is the best of the grid EXPONENTS, refined
    by golden section between its neighbours. Vectorized over the rows of `loss_BxR`.
    """
    n_R = np.asarray(n_params_R, dtype=np.float64)
    n_0 = n_R.min()

    def solve(exponent_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        u_BxR = 1 / loss_BxR
        v_BxR = (n_R / n_0) ** -exponent_B[:, None] / loss_BxR
        uu, uv, vv = (u_BxR**2).sum(1), (u_BxR * v_BxR).sum(1), (v_BxR**2).sum(1)
        u, v = u_BxR.sum(1), v_BxR.sum(1)
        c_B = np.maximum(0.0, (u * vv - v * uv) / (uu * vv - uv * uv))
        a_B = (v - c_B * uv) / vv
        return np.square(c_B[:, None] * u_BxR + a_B[:, None] * v_BxR - 1).sum(1), c_B, a_B

    one_B = np.ones(len(loss_BxR))
    best_B = np.argmin([solve(exponent * one_B)[0] for exponent in EXPONENTS], axis=0)
    lo_B, hi_B = EXPONENTS[np.maximum(best_B - 1, 0)], EXPONENTS[np.minimum(best_B + 1, len(EXPONENTS) - 1)]
    golden = (np.sqrt(5) - 1) / 2
    for _ in range(30):
        left_B, right_B = hi_B - golden * (hi_B - lo_B), lo_B + golden * (hi_B - lo_B)
        keep_left_B = solve(left_B)[0] < solve(right_B)[0]
        lo_B, hi_B = np.where(keep_left_B, lo_B, left_B), np.where(keep_left_B, right_B, hi_B)
    exponent_B = (lo_B + hi_B) / 2
    _, c_B, a_B = solve(exponent_B)
    return np.stack([c_B, a_B * n_0**exponent_B, exponent_B])


def _interval(value: float, draws_B: np.ndarray, samples: Sequence[Sample]) -> Estimate:
    lo, hi = (float(q) for q in np.quantile(draws_B, [0.025, 0.975]))
    lo, hi = min(lo, value), max(hi, value)  # where nothing varies, rounding may put them on one side of it
    n_items, n_groups = sum(s.n_items for s in samples), sum(s.values.shape[1] for s in samples)
    return Estimate(value, lo, hi, n_items, samples[0].values.shape[0], n_groups)


@lru_cache(maxsize=16)
def _counts(n: int, n_boot: int, seed: int, index: int) -> np.ndarray:
    """How often each of n units is drawn, float32 [B, n]; a stream of its own for every index."""
    rng = np.random.default_rng([seed, index])
    return rng.multinomial(n, np.full(n, 1 / n), size=n_boot).astype(np.float32)


def reliability(
    confidence_I: np.ndarray, right_I: np.ndarray, n_bins: int = 10, lowest: float = 0.5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean confidence, accuracy and number of items [K] of the bins that have items, by ascending confidence.

    The bins cut [lowest, 1] into `n_bins` of one width; a pair's confidence, the larger of P(a > b) and P(b > a),
    is never below 0.5.
    """
    bin_I = _bins(confidence_I, n_bins, lowest)
    n_K = np.bincount(bin_I, minlength=n_bins)
    used = n_K > 0
    mean_K, accuracy_K = (np.bincount(bin_I, x, n_bins)[used] / n_K[used] for x in (confidence_I, right_I))
    return mean_K, accuracy_K, n_K[used]


def calibration_terms(
    confidence_I: np.ndarray, right_I: np.ndarray, n_bins: int = 10, lowest: float = 0.5
) -> np.ndarray:
    """What each item adds to the expected calibration error: accuracy less confidence, in its bin's sign [I].

    Their mean is the error, so that `sample` takes them; an interval holds the signs fixed.
    """
    bin_I = _bins(confidence_I, n_bins, lowest)
    gap_I = right_I - confidence_I
    return np.sign(np.bincount(bin_I, gap_I, n_bins))[bin_I] * gap_I


def calibration_error(
    confidence_I: np.ndarray, right_I: np.ndarray, n_bins: int = 10, lowest: float = 0.5
) -> float:
    """Expected calibration error: the mean over items of |accuracy - confidence| of their bin (`reliability`).

    Never negative, so that few items make it too large even where all is calibrated.
    """
    return float(calibration_terms(confidence_I, right_I, n_bins, lowest).mean())


def _bins(confidence_I: np.ndarray, n_bins: int, lowest: float) -> np.ndarray:
    return np.clip(((confidence_I - lowest) / (1 - lowest) * n_bins).astype(int), 0, n_bins - 1)
