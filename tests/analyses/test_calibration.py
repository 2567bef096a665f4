"""Calibration rows by hand, and those of a finished run from its items."""

import json

import numpy as np
import pytest

from hhh_jax.analyses import calibration
from hhh_jax.errors import UserError


def margin(probability: float) -> float:
    """The reward difference that means this probability."""
    return float(np.log(probability / (1 - probability)))


def test_rows_by_hand():
    """Confidences .52 (right), .53 (wrong), .98 (right, right, wrong); a tie is in the first bin, half right."""
    margins = np.array([margin(0.52), margin(0.47), margin(0.98), margin(0.98), margin(0.02), 0.0])
    rows = calibration.calibration_rows(margins)
    values = {(row["metric"], row.get("k")): (row["value"], row["n_items"]) for row in rows}
    assert values == {
        ("confidence", 0): (pytest.approx((0.52 + 0.53 + 0.5) / 3), 3),
        ("reliability", 0): (pytest.approx(0.5), 3),
        ("confidence", 9): (pytest.approx(0.98), 3),
        ("reliability", 9): (pytest.approx(2 / 3), 3),
        ("ece", None): (pytest.approx((abs(1.5 - 1.55) + abs(2 - 2.94)) / 6), 6),
    }
    (low,) = (row for row in rows if (row["metric"], row.get("k")) == ("reliability", 0))
    assert low["lo"] < 0.5 < low["hi"]


def test_both_ways_round_is_the_same_error():
    """The paper's diagram over [0, 1], with every pair in both orientations and 20 bins, has this error."""
    margins = np.random.default_rng(0).normal(0.3, 1.5, 400)
    p = 1 / (1 + np.exp(-np.concatenate([margins, -margins])))
    y = np.repeat([1.0, 0.0], 400)
    bin_of = np.minimum((p * 20).astype(int), 19)
    parts = [(bin_of == k) for k in range(20) if (bin_of == k).any()]
    expected = sum(abs(y[part].mean() - p[part].mean()) * part.sum() for part in parts) / 800
    (row,) = (row for row in calibration.calibration_rows(margins) if row["metric"] == "ece")
    assert row["value"] == pytest.approx(expected, abs=1e-9)


def test_job_reads_a_finished_run(ranked, tmp_path):
    calibration.job(tmp_path, after=ranked, study="s")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    items = [json.loads(line) for line in (ranked / "items.jsonl").read_text().splitlines()]
    for seed in (0, 1):
        reward = {
            (item["item_id"], item["option"]): item["reward"]
            for item in items
            if (item["seed"], item["selection"]) == (seed, "best")
        }
        names = {name for name, _ in reward}
        expected = calibration.calibration_rows(np.array([reward[n, "good"] - reward[n, "bad"] for n in names]))
        mine = [row for row in rows if row["seed"] == seed]
        assert len(mine) == len(expected)
        assert {(row["metric"], row.get("k"), round(row["value"], 9), row["n_items"]) for row in expected} == {
            (row["metric"], row.get("k"), round(row["value"], 9), row["n_items"]) for row in mine
        }
        assert {(row["stage"], row["objective"], row["study"], row["run"]) for row in mine} == {
            ("finetune", "preference", "s", tmp_path.name)
        }


def test_a_language_model_has_no_rewards(pretrained, tmp_path):
    with pytest.raises(UserError, match="no accuracy by reward"):
        calibration.job(tmp_path, after=pretrained, study="s")
