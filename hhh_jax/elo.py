"""One Elo score for each model from A/B comparisons, by eq. 3.1's loss (paper figure 9, table 2).

    python -m hhh_jax.elo comparisons.csv [--json] [--results=DIR]

The CSV has the columns model_a, model_b and either wins_a, wins_b (how many comparisons each won; a tie is half a win
for both) or rate (the share that model_a won, where the counts are unknown: all rows then weigh the same). Scores are
differences from the first model of the file, and 100 points are 64% of wins:

    P(a beats b) = 1 / (1 + 10 ** ((elo_b - elo_a) / 400))

They minimize the mean over comparisons of log(1 + exp(r_lost - r_won)) with r = elo * ln(10) / 400, which is the
maximum likelihood of Bradley and Terry. With counts, `se` is the standard error of the difference from the first model,
from the inverse of the observed information, and the interval is elo +- 1.96 se; rates give neither.

Fitted with equal weights, the paper's table 2 gives 0, 108.3, 171.9, 288.1 and 301.4 from 200M to 52B, and 260.2 for
12B distilled. Its figure 9 has 0, 103, 177, 277 and 297, so the fit is higher by 5, lower by 5, higher by 11 and by 4.
The numbers of comparisons behind the table's rates are unpublished and could be all of the difference: there are
weights, from 4% to 38% of all comparisons for a pair, with which the same rates give figure 9.

``--results=DIR`` writes the scores as a results table, for ``python -m hhh_jax.figures --figure=9``. Models are named
``SIZE`` or ``SIZE ARM`` then, as "52B", "52B prompt", "12B short prompt" or "12B distilled".
"""

import csv
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from hhh_jax import cli
from hhh_jax.errors import UserError

ELO_PER_NAT = 400 / math.log(10)
_Z = 1.959964  # 97.5% of the normal distribution
_NAME = re.compile(r"([0-9.]+)\s*([kMB])\s*(.*)", re.IGNORECASE)
_UNITS = {"k": 1e3, "m": 1e6, "b": 1e9}
_ARMS = {"": "", "prompt": "prompt", "short prompt": "short", "distilled": "distilled+template"}


class Comparison(NamedTuple):
    """How often `a` won against `b`, and `b` against `a`; fractions are fine."""

    a: str
    b: str
    wins_a: float
    wins_b: float


class Rating(NamedTuple):
    """A model's Elo, with the standard error and the 95% interval of its difference from the first model's."""

    model: str
    elo: float
    se: float | None
    lo: float | None
    hi: float | None


def fit(comparisons: Sequence[Comparison], counts: bool = True) -> list[Rating]:
    """Maximum-likelihood ratings of all models, in the order in which they are first named; the first has 0.

    `counts` tells whether wins are numbers of comparisons; if not, there are no standard errors. Raises UserError for
    comparisons that do not join all models, and for models that never lost to the rest, whose Elo is infinite.
    """
    from scipy.optimize import minimize

    models = list(dict.fromkeys(name for c in comparisons for name in (c.a, c.b)))
    index = {name: number for number, name in enumerate(models)}
    wins_MxM = np.zeros((len(models), len(models)))
    for a, b, wins_a, wins_b in comparisons:
        wins_MxM[index[a], index[b]] += wins_a
        wins_MxM[index[b], index[a]] += wins_b
    _check_finite(models, wins_MxM)
    share_MxM = wins_MxM / wins_MxM.sum()

    def loss(r_N: np.ndarray) -> float:
        r_M = np.append(0.0, r_N)
        return float((share_MxM * np.logaddexp(0.0, r_M - r_M[:, None])).sum())

    def gradient(r_N: np.ndarray) -> np.ndarray:
        excess_MxM = share_MxM * (1 - _p_win(r_N))
        return (excess_MxM.sum(0) - excess_MxM.sum(1))[1:]

    def hessian(r_N: np.ndarray) -> np.ndarray:
        p_MxM = _p_win(r_N)
        curvature_MxM = (share_MxM + share_MxM.T) * p_MxM * (1 - p_MxM)
        return (np.diag(curvature_MxM.sum(1)) - curvature_MxM)[1:, 1:]

    r_N = minimize(
        loss, np.zeros(len(models) - 1), jac=gradient, hess=hessian, method="trust-exact", options={"gtol": 1e-12}
    ).x
    elo_M = ELO_PER_NAT * np.append(0.0, r_N)
    if not counts:
        return [Rating(model, float(elo), None, None, None) for model, elo in zip(models, elo_M, strict=True)]
    covariance_NxN = np.linalg.inv(wins_MxM.sum() * hessian(r_N))
    se_M = ELO_PER_NAT * np.sqrt(np.append(0.0, np.diag(covariance_NxN)))
    return [
        Rating(model, float(elo), float(se), float(elo - _Z * se), float(elo + _Z * se))
        for model, elo, se in zip(models, elo_M, se_M, strict=True)
    ]


def _p_win(r_N: np.ndarray) -> np.ndarray:
    """Probability [M, M] that the model of the row beats that of the column; `r_N` lacks the first model's 0."""
    r_M = np.append(0.0, r_N)
    return np.exp(-np.logaddexp(0.0, r_M - r_M[:, None]))


def _check_finite(models: Sequence[str], wins_MxM: np.ndarray) -> None:
    """Raises UserError unless there is a chain of wins from every model to every other (Ford 1957)."""
    from scipy.sparse.csgraph import connected_components

    def named(chosen_M: np.ndarray) -> str:
        return ", ".join(name for name, chosen in zip(models, chosen_M, strict=True) if chosen)

    n, part_M = connected_components(wins_MxM > 0, connection="weak")
    if n != 1:
        raise UserError(
            f"no comparison joins {named(part_M == part_M[0])} with {named(part_M != part_M[0])}: one scale needs some"
        )
    n, part_M = connected_components(wins_MxM > 0, connection="strong")
    for part in range(n if n > 1 else 0):
        inside_M = part_M == part
        if not wins_MxM[~inside_M][:, inside_M].any():
            raise UserError(
                f"{named(inside_M)} never lost to {named(~inside_M)}: the difference in Elo is infinite; "
                "add comparisons or leave models out"
            )


def read(path: str) -> tuple[list[Comparison], bool]:
    """The comparisons of a CSV file, and whether it has counts; a rate is a comparison of weight 1.

    Raises UserError, by file and line, for what is missing or can't be used.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = set(reader.fieldnames or ())
            rows = [(f"{path}:{reader.line_num}", row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    counts = {"wins_a", "wins_b"} <= columns
    if not {"model_a", "model_b"} <= columns or counts == ("rate" in columns):
        raise UserError(f"{path}:1: needs the columns model_a, model_b and either wins_a, wins_b or rate")
    if not rows:
        raise UserError(f"{path}: has no comparisons")
    return [_comparison(row, place, counts) for place, row in rows], counts


def _comparison(row: dict[str, str | None], place: str, counts: bool) -> Comparison:
    a, b = ((row[column] or "").strip() for column in ("model_a", "model_b"))
    if not a or not b or a == b:
        raise UserError(f"{place}: needs two different models, not {a!r} and {b!r}")
    if counts:
        return Comparison(a, b, *(_number(row, column, place, math.inf) for column in ("wins_a", "wins_b")))
    rate = _number(row, "rate", place, 1.0)
    return Comparison(a, b, rate, 1 - rate)


def _number(row: dict[str, str | None], column: str, place: str, most: float) -> float:
    try:
        value = float(row[column] or "")
    except ValueError:
        value = math.nan
    if not (0 <= value <= most and math.isfinite(value)):
        wanted = "a share from 0 to 1" if most == 1 else "a number that is not negative"
        raise UserError(f"{place}: {column} must be {wanted}, not {row[column]!r}")
    return value


def rows(ratings: Sequence[Rating], total: float, study: str) -> list[dict[str, Any]]:
    """The ratings as rows of the results table: metric ``elo``, with the 95% interval where there is one.

    Args:
      total: number of comparisons; with rates, of rates.

    Raises UserError for a name that says no size.
    """
    found = []
    for model, value, _, lo, hi in ratings:
        n, intervention = _size_and_arm(model)
        interval: dict[str, Any] = {} if lo is None else {"lo": lo, "hi": hi}
        about: dict[str, Any] = {
            "study": study, "run": study, "stage": "evaluate", "split": "test", "curve": "separate", "metric": "elo",
            "task": "comparisons", "N": n, "intervention": intervention,
        }  # fmt: skip
        found.append(about | {"value": value, "n_items": round(total)} | interval)
    return found


def _size_and_arm(model: str) -> tuple[int, str]:
    match = _NAME.fullmatch(model)
    arm = match[3].strip().lower() if match else ""
    try:
        assert match
        return round(float(match[1]) * _UNITS[match[2].lower()]), _ARMS.get(arm, arm.replace(" ", "_"))
    except (AssertionError, ValueError):
        raise UserError(f"the model {model!r} has no size: name it as 52B, 52B prompt or 12B distilled") from None


def write_results(ratings: Sequence[Rating], total: float, folder: Path) -> None:
    """Writes results.csv and an empty summary.csv, for `hhh_jax.figures`."""
    from hhh_jax import results

    table = rows(ratings, total, folder.name)
    folder.mkdir(parents=True, exist_ok=True)
    results.write_table(table, folder / "results.csv")
    results.write_table([], folder / "summary.csv")


def main(argv: Sequence[str]) -> None:
    if len(argv) != 2:
        raise UserError("give one file of comparisons: python -m hhh_jax.elo comparisons.csv")
    comparisons, counts = read(argv[1])
    ratings = fit(comparisons, counts)
    total = sum(c.wins_a + c.wins_b for c in comparisons)
    if _RESULTS.value:
        write_results(ratings, total, Path(_RESULTS.value))
    if _JSON.value:
        for rating in ratings:
            print(json.dumps(rating._asdict()))
        return
    width = max(len(rating.model) for rating in ratings)
    for model, elo, _, lo, hi in ratings:
        print(f"{model:{width}} {elo:8.1f}" + (f"  [{lo:.1f}, {hi:.1f}]" if counts else ""))
    print(
        f"Elo above {ratings[0].model}, "
        + (f"95% intervals from the observed information of {total:g} comparisons" if counts else
           f"{total:g} rates of equal weight; intervals need counts")
    )  # fmt: skip


if __name__ == "__main__":
    _JSON = flags.DEFINE_bool("json", False, "Print a JSON object a model.")
    _RESULTS = flags.DEFINE_string("results", None, "Folder to write a results table into.")
    cli.start(main)
