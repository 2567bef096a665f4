"""Accuracy and calibration of runs whose noise is planted, and that what differs in more is refused."""

import json

import numpy as np
import pytest

from hhh_jax import results
from hhh_jax.analyses import label_noise
from hhh_jax.errors import UserError

SEEDS, ITEMS = 3, 400


def write_run(folder, flip, scale, shift=0.0, n=98304):
    """A run whose rewards are `scale` times the log-odds that its items have of being right."""
    rng = np.random.default_rng(0)
    odds_I = np.abs(rng.normal(0, 2, ITEMS))
    right_SxI = rng.random((SEEDS, ITEMS)) < 1 / (1 + np.exp(-odds_I + shift))
    margin_SxI = scale * odds_I * np.where(right_SxI, 1, -1)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"data.flip": flip}))
    row = {
        "ladder": "cpu",
        "n_layer": 2,
        "N": n,
        "objective": "preference",
        "init": "lm",
        "task": "t",
        "pairs_total": 9,
    }
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    items = [
        {"task": "t", "split": "test", "selection": "best", "seed": s, "item_id": f"{i:03}", "group_id": f"{i}",
         "option": option, "reward": sign * margin_SxI[s, i] / 2}
        for s in range(SEEDS) for i in range(ITEMS) for option, sign in (("good", 1), ("bad", -1))
    ]  # fmt: skip
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return folder, right_SxI


def test_planted_noise_is_measured(tmp_path):
    clean, right_clean = write_run(tmp_path / "clean", 0.0, 1.0)
    noisy, right_noisy = write_run(tmp_path / "noisy", 0.4, 3.0, shift=0.7)  # worse, and three times as sure
    output = tmp_path / "out"
    output.mkdir()
    label_noise.job(output, after=None, study="s", noisy=noisy, clean=clean)
    rows = [json.loads(line) for line in (output / "rows.jsonl").read_text().splitlines()]
    assert all(set(row) <= set(results.COLUMNS) for row in rows)
    found = {(row["metric"], row["k"]): row for row in rows}
    assert found["accuracy", 0]["value"] == pytest.approx(right_clean.mean())
    gain = right_noisy.mean() - right_clean.mean()
    assert found["accuracy_gain", 40]["value"] == pytest.approx(gain) and gain < -0.05
    assert found["accuracy_gain", 40]["hi"] < 0
    assert found["calibration_error", 0]["value"] < 0.06 < 0.1 < found["calibration_error", 40]["value"]
    assert found["calibration_error_gain", 40]["lo"] > 0.05
    assert found["confidence", 40]["value"] > found["confidence", 0]["value"] > 0.7
    assert ("accuracy_gain", 0) not in found


def test_runs_that_differ_in_more_are_refused(tmp_path):
    clean, _ = write_run(tmp_path / "clean", 0.0, 1.0)
    noisy, _ = write_run(tmp_path / "noisy", 0.2, 1.0)
    large, _ = write_run(tmp_path / "large", 0.2, 1.0, n=1)
    for runs in ({"a": noisy}, {"a": clean, "b": large}, {"a": clean, "b": noisy, "c": noisy}):
        with pytest.raises(UserError, match="one with none"):
            label_noise.job(tmp_path, after=None, study="s", **runs)
