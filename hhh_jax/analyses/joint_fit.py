"""How the loss of preference models falls with their size and with their pairs, fitted together.

L(N, D) = E + A (N / N_0)^-a + B (D / D_0)^-b, the form that Hoffmann et al. (2022, arXiv 2203.15556) give language
models: what is left with endless size and pairs, what size costs, what scarce pairs cost. A and B are in nats at the
smallest size N_0 and number of pairs D_0. Given the exponents, E, A and B >= 0 follow by least squares of the relative
error; the exponents are searched. The paper has no such fit; its figures 27 and 28 are lines of one of the two.

Intervals are a bootstrap over test items and seeds, which all runs share. A fit is easily broken: with few points, or
where more of one thing makes no difference, many curves are as good. So each part of it says if it is *identified*: its
cost is above 0, and its exponent inside the range that was searched, within the 95% intervals. Nothing is where the
curve misses a point by more than `MISFIT`: the losses are not of this form then.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hhh_jax import results, stats
from hhh_jax.errors import UserError
from hhh_jax.stats import Estimate, Sample
from hhh_jax.version import code_version

PARAMETERS = ("E", "A", "a", "B", "b")
RANGE = (0.02, 3.0)
"""Exponents that are searched."""

N_BOOT = 200

MISFIT = 0.05
"""The largest relative distance of a point from a curve that describes it."""


class JointFit(NamedTuple):
    """The fit of P points.

    Attributes:
      parameters: E, A, a, B, b with their intervals.
      identified: whether E, the part of size and the part of pairs are.
      misfit: the largest relative distance of a point from the curve.
    """

    parameters: dict[str, Estimate]
    identified: dict[str, bool]
    misfit: float


def curve(parameters_5: np.ndarray, size_P: np.ndarray, pairs_P: np.ndarray) -> np.ndarray:
    """The fitted loss ``[P]`` at sizes and numbers of pairs that are multiples of the smallest ones."""
    e, cost_n, power_n, cost_d, power_d = parameters_5
    return e + cost_n * size_P**-power_n + cost_d * pairs_P**-power_d


def fit_once(loss_P: np.ndarray, size_P: np.ndarray, pairs_P: np.ndarray) -> np.ndarray:
    """E, A, a, B, b by least squares of the relative error; sizes and pairs as for `curve`."""
    from scipy.optimize import minimize, nnls

    lo, hi = np.log(RANGE)

    def solve(logs_2: np.ndarray) -> tuple[np.ndarray, float]:
        powers_2 = np.exp(np.clip(logs_2, lo, hi))
        terms_Px3 = np.stack([np.ones_like(loss_P), size_P ** -powers_2[0], pairs_P ** -powers_2[1]], axis=1)
        (e, cost_n, cost_d), distance = nnls(terms_Px3 / loss_P[:, None], np.ones_like(loss_P))
        return np.array([e, cost_n, powers_2[0], cost_d, powers_2[1]]), distance

    grid = np.linspace(lo, hi, 7)[1:-1]
    start = min(((a, b) for a in grid for b in grid), key=lambda logs: solve(np.array(logs))[1])
    precision = {"xatol": 1e-3, "fatol": 1e-9}
    return solve(minimize(lambda logs: solve(logs)[1], start, method="Nelder-Mead", options=precision).x)[0]


def joint_fit(samples: Sequence[Sample], sizes: Sequence[int], pairs: Sequence[int], n_boot: int = N_BOOT) -> JointFit:
    """Fits P points, each the losses of one run as a sample (`stats.sample`) of the same items and seeds.

    Raises ValueError for fewer than two sizes, two numbers of pairs or six points.
    """
    if len(samples) < 6 or len(set(sizes)) < 2 or len(set(pairs)) < 2:
        raise ValueError("a joint fit needs six points or more, with two sizes and two numbers of pairs")
    size_P, pairs_P = (np.asarray(x, np.float64) / min(x) for x in (sizes, pairs))
    loss_P = np.array([s.values.mean() for s in samples])
    pooled = Sample(np.mean([s.values for s in samples], axis=0), samples[0].n_items)
    widen = stats.deviations([pooled], None, n_boot)[2]
    draws_BxP = loss_P + widen * np.stack([stats.deviations([s], None, n_boot)[1] for s in samples], axis=1)
    best_5 = fit_once(loss_P, size_P, pairs_P)
    drawn_Bx5 = np.stack([fit_once(np.maximum(draw_P, 1e-3), size_P, pairs_P) for draw_P in draws_BxP])
    lo_5, hi_5 = np.quantile(drawn_Bx5, [0.025, 0.975], axis=0)
    shape = samples[0].values.shape
    found = {
        name: Estimate(float(best), float(lo), float(hi), samples[0].n_items, *shape)
        for name, best, lo, hi in zip(PARAMETERS, best_5, lo_5, hi_5, strict=True)
    }

    def searched(power: str) -> bool:
        return bool(RANGE[0] * 1.05 < found[power].lo and found[power].hi < RANGE[1] / 1.05)

    few = 1e-4  # nats: a cost below is none
    misfit = float(np.abs(curve(best_5, size_P, pairs_P) / loss_P - 1).max())
    fixed = {
        "E": found["E"].lo > few,
        "N": found["A"].lo > few and searched("a"),
        "D": found["B"].lo > few and searched("b"),
    }
    identified = {part: is_fixed and misfit <= MISFIT for part, is_fixed in fixed.items()}
    return JointFit(found, identified, misfit)


def job(directory: Path, *, after: Path | None, study: str, **runs: Path) -> None:
    """As a run of a study: rows of stage ``joint_fit`` from the preference runs named.

    Metric ``pm_loss`` is a point with its interval over items and seeds; ``joint:E`` to ``joint:b`` are the parameters,
    ``joint:identified:E``, ``:N`` and ``:D`` are 1 or 0, and ``joint:misfit`` is the largest relative distance.
    ``saved:pairs`` and ``saved:size`` are differences of measured points, without any fit.
    """
    from hhh_jax.run import write_lines

    points = {name: _read(folder) for name, folder in runs.items()}
    if len({(about["task"], items) for about, _, items in points.values()}) != 1:
        raise UserError("a joint fit takes runs of one task and the same test items and seeds")
    abouts, samples = [about for about, _, _ in points.values()], [losses for _, losses, _ in points.values()]
    fit = joint_fit(samples, [about["N"] for about in abouts], [about["pairs_total"] for about in abouts])
    shared = {
        "study": study, "run": directory.name, "stage": "joint_fit", "ladder": abouts[0]["ladder"],
        "objective": "preference", "init": abouts[0]["init"], "task": abouts[0]["task"], "split": "test",
        "curve": "separate", "code_version": code_version(),
    }  # fmt: skip
    rows = []
    for about, losses in zip(abouts, samples, strict=True):
        where = {name: about[name] for name in ("N", "n_layer", "pairs_total")}
        rows.append(shared | where | _values("pm_loss", stats.estimate([losses])))
    rows += [shared | row for row in _gains(abouts, samples)]
    rows += [shared | _values(f"joint:{name}", estimate) for name, estimate in fit.parameters.items()]
    flags = {f"identified:{name}": float(value) for name, value in fit.identified.items()} | {"misfit": fit.misfit}
    rows += [shared | {"metric": f"joint:{name}", "value": value} for name, value in flags.items()]
    write_lines(directory / "rows.jsonl", rows)
    write_lines(directory / "items.jsonl", [])


def _gains(abouts: Sequence[Mapping[str, Any]], samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """What the most pairs save over the fewest at the largest size, and the largest size over the smallest there."""
    at = {(about["N"], about["pairs_total"]): losses.values for about, losses in zip(abouts, samples, strict=True)}
    (small, large), (few, many) = ((min(x), max(x)) for x in zip(*at, strict=True))
    corners = {"pairs": ((large, few), (large, many)), "size": ((small, many), (large, many))}
    n_items = samples[0].n_items
    return [
        {"N": large, "pairs_total": many} | _values(f"saved:{what}", stats.estimate([Sample(at[a] - at[b], n_items)]))
        for what, (a, b) in corners.items() if a in at and b in at
    ]  # fmt: skip


def _values(metric: str, estimate: Estimate) -> dict[str, Any]:
    return {"metric": metric} | {name: getattr(estimate, name) for name in ("value", "lo", "hi", "n_items")}


def _read(run: Path) -> tuple[Mapping[str, Any], Sample, tuple]:
    """A result row of a run, its PM losses on the test items, and which these are."""
    from hhh_jax.evaluate import pm_loss

    lines = (run / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    about = next(row for row in map(json.loads, lines) if row["metric"] == "pm_loss")
    items = results.read_items(run, about["task"], "test", "best", "reward", margins=True)
    return about, stats.sample(pm_loss(items.correct), items.groups), (items.seeds, items.item_ids)
