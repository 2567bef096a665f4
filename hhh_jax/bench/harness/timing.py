"""Contenders take turns within one run, and only ratios of the same round count.

A shared machine's speed changes by the minute, so absolute numbers of two runs can't be compared. Here a round measures
every contender once, every other round in the opposite order; the ratio of two contenders is the median over rounds of
the ratio within a round, with a bootstrap interval over rounds.
"""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

N_BOOT = 10_000

Measures = Mapping[str, Callable[[], float]]


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a benchmark.

    Attributes:
      name: what was measured.
      unit: of `value` and `baseline`.
      value: median over rounds; None where it can't be measured here, as the note says.
      against: the baseline's name; empty if there is none.
      baseline: its median over rounds, in the same unit.
      ratio: value / baseline, median of the ratios of each round, with its 95% interval `ratio_lo` to `ratio_hi`.
      note: settings, and what a reader must know.
    """

    name: str
    unit: str
    value: float | None
    against: str = ""
    baseline: float | None = None
    ratio: float | None = None
    ratio_lo: float | None = None
    ratio_hi: float | None = None
    note: str = ""


class Ratio(NamedTuple):
    """A ratio with its 95% interval."""

    value: float
    lo: float
    hi: float


def interleave(measures: Measures, rounds: int) -> dict[str, list[float]]:
    """What each measure gave, by round. Measures take turns: A B, B A, A B, ..."""
    results: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(rounds):
        names = list(measures)
        for name in reversed(names) if number % 2 else names:
            results[name].append(measures[name]())
    return results


def ratio(values: Sequence[float], baselines: Sequence[float]) -> Ratio:
    """The median over rounds of value / baseline, and the 2.5% and 97.5% quantiles of it over resampled rounds."""
    ratios_N = np.array([value / baseline for value, baseline in zip(values, baselines, strict=True)])
    drawn_BxN = np.random.default_rng(0).choice(ratios_N, (N_BOOT, len(ratios_N)))
    lo, hi = np.quantile(np.median(drawn_BxN, axis=1), (0.025, 0.975))
    return Ratio(float(np.median(ratios_N)), float(lo), float(hi))


def compare(
    name: str, unit: str, values: Sequence[float], against: str, baselines: Sequence[float], note: str = ""
) -> Row:
    """The row of a contender against a baseline that was measured in the same rounds."""
    middle, lo, hi = ratio(values, baselines)
    return Row(name, unit, statistics.median(values), against, statistics.median(baselines), middle, lo, hi, note)
