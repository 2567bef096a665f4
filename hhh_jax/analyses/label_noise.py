"""What wrong labels do to a preference model: accuracy and calibration against the share of pairs that are flipped.

The test pairs have their true labels. A pair's confidence is the larger of P(a > b) and P(b > a) by the rewards; the
expected calibration error is `hhh_jax.stats.calibration_error`. A model that learns flipped labels perfectly says 1 - p
where it is right, and is not confident enough; one that learns single pairs by heart is too confident.

Rows of stage ``label_noise``, pooled over seeds and test pairs, with the percentage that is flipped as ``k``:

    accuracy, calibration_error, confidence   of the runs with that share
    accuracy_gain, calibration_error_gain     the same less that of the runs without noise, paired
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from hhh_jax import results, stats
from hhh_jax.errors import UserError
from hhh_jax.stats import Estimate
from hhh_jax.version import code_version


def job(directory: Path, *, after: Path | None, study: str, **runs: Path) -> None:
    """As a run of a study: rows.jsonl of preference runs that differ in ``data.flip``; one of them has none."""
    from hhh_jax.run import write_lines

    measured: dict[int, dict[str, np.ndarray]] = {}
    first: tuple[dict[str, Any], np.ndarray] | None = None
    same = set()
    for run in runs.values():
        flip = round(100 * json.loads((run / "config.json").read_text(encoding="utf-8"))["data.flip"])
        row = json.loads((run / "rows.jsonl").read_text(encoding="utf-8").splitlines()[0])
        items = results.read_items(run, row["task"], "test", "best", "reward", margins=True)
        same.add((items.seeds, items.item_ids, row["N"]))
        measured[flip] = measures(items.correct)
        first = first or (row, items.groups)
    if first is None or 0 not in measured or len(same) != 1 or len(measured) != len(runs):
        raise UserError("label noise takes runs of one size, task and seeds that differ in data.flip, one with none")
    row, groups = first
    about = {name: row[name] for name in ("ladder", "n_layer", "N", "objective", "init", "task", "pairs_total")} | {
        "study": study, "run": directory.name, "stage": "label_noise", "split": "test", "curve": "separate",
        "code_version": code_version(),
    }  # fmt: skip
    rows = []
    for flip, values in sorted(measured.items()):
        for metric, values_SxI in values.items():
            rows.append(_row(metric, flip, stats.estimate([stats.sample(values_SxI, groups)])))
            if flip and metric != "confidence":
                gain = stats.paired_difference(values_SxI, measured[0][metric], groups)
                rows.append(_row(f"{metric}_gain", flip, gain))
    write_lines(directory / "rows.jsonl", [about | row for row in rows])
    write_lines(directory / "items.jsonl", [])


def measures(margin_SxI: np.ndarray) -> dict[str, np.ndarray]:
    """What each pair adds to accuracy, calibration error and confidence under each seed, from its margin ``[S, I]``."""
    confidence_SxI = 1 / (1 + np.exp(-np.abs(margin_SxI)))
    right_SxI = (np.sign(margin_SxI) + 1) / 2
    terms = [stats.calibration_terms(*both) for both in zip(confidence_SxI, right_SxI, strict=True)]
    return {"accuracy": right_SxI, "calibration_error": np.stack(terms), "confidence": confidence_SxI}


def _row(metric: str, flip: int, estimate: Estimate) -> dict[str, Any]:
    found = {name: getattr(estimate, name) for name in ("value", "lo", "hi", "n_items")}
    if not metric.endswith("_gain"):  # shares, which few seeds widen beyond
        found |= {"lo": max(0.0, estimate.lo), "hi": min(1.0, estimate.hi)}
    return {"metric": metric, "k": flip, **found}
