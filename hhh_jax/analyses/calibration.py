"""Is a preference model as sure as it is right? (Figure 30.)

A pair's confidence is the probability that eq. 3.1 gives to the side that the model prefers, sigma of the difference of
rewards without its sign. Posed as "is the first side better?", with each pair both ways round, the diagram of the paper
is this one and its mirror image: nothing has to be drawn to orient pairs, and the error is the same.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from hhh_jax import results, stats
from hhh_jax.errors import UserError

BINS = 10
"""Of one width, from 0.5 to 1: 20 of the paper's axis, which goes from 0 to 1."""


def job(directory: Path, *, after: Path | None, study: str) -> None:
    """Rows of the calibration of the finished preference model `after`, as `calibration_rows`; rows.jsonl of a run."""
    from hhh_jax.run import write_lines

    assert after is not None
    measured = best_rows(after)
    items = results.read_items(after, measured[0]["task"], measured[0]["split"], "best", "reward", margins=True)
    rows = [
        {**row, "study": study, "run": directory.name, "lo": None, "hi": None} | values
        for row in measured
        for values in calibration_rows(items.correct[items.seeds.index(row["seed"])])
    ]
    write_lines(directory / "rows.jsonl", rows)
    write_lines(directory / "items.jsonl", [])


def best_rows(run_dir: Path) -> list[dict[str, Any]]:
    """A finished run's rows of test accuracy by reward, one a seed. Raises UserError if it has none."""
    lines = (run_dir / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if (row["metric"], row.get("ranker")) == ("accuracy", "reward")]
    if not rows:
        raise UserError(f"{run_dir}: no accuracy by reward; only a preference model has some")
    return rows


def calibration_rows(margin_P: np.ndarray) -> list[dict[str, Any]]:
    """Cells of result rows: metric ``ece``, the expected calibration error, and of each bin ``k`` that has pairs
    ``confidence``, their mean, and ``reliability``, the share that is right, with Wilson's interval.

    Args:
      margin_P: reward differences, good less bad side; ties are half right.
    """
    confidence_P, right_P = 1 / (1 + np.exp(-np.abs(margin_P))), (np.sign(margin_P) + 1) / 2
    error = stats.calibration_error(confidence_P, right_P, BINS)
    rows: list[dict[str, Any]] = [{"metric": "ece", "value": error, "n_items": len(margin_P)}]
    for mean, share, n in zip(*stats.reliability(confidence_P, right_P, BINS), strict=True):
        where = {"k": min(int((mean - 0.5) * 2 * BINS), BINS - 1), "n_items": int(n)}
        lo, hi = stats.wilson(share * n, int(n))
        rows.append(where | {"metric": "confidence", "value": float(mean)})
        rows.append(where | {"metric": "reliability", "value": float(share), "lo": lo, "hi": hi})
    return rows
