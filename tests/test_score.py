"""`score` and `main` as a user calls them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hhh_jax import score
from hhh_jax.errors import UserError

ROOT = Path(__file__).parents[1]


def test_scores_agree_with_the_run_and_with_each_other(ranked, pairs, tmp_path):
    records, summary = score.score_file(str(ranked), str(pairs), 1, "best", "error")
    assert summary["pairs"] == len(records) == 200
    accuracy = sum((r["good"] > r["bad"]) + 0.5 * (r["good"] == r["bad"]) for r in records) / 200
    assert summary["accuracy"] == pytest.approx(accuracy)
    assert summary["lo"] < accuracy < summary["hi"]
    by_id = {r["id"]: r for r in records}
    items = [json.loads(line) for line in (ranked / "items.jsonl").read_text().splitlines()]
    mine = [item for item in items if item["seed"] == 1 and item["selection"] == "best"]
    assert mine
    for item in mine:
        assert by_id[item["item_id"]][item["option"]] == pytest.approx(item["reward"], abs=1e-5)


def test_a_language_model_scores_by_mean_log_probability(pretrained, pairs):
    records, summary = score.score_file(str(pretrained), str(pairs), None, "best", "error")
    assert summary["score"] == "mean_logp" and all(r["good"] < 0 for r in records)


def test_refusals(ranked, pairs, tmp_path):
    with pytest.raises(UserError, match="--seed=7"):
        score.score_file(str(ranked), str(pairs), 7, "best", "error")
    with pytest.raises(UserError, match="holds no checkpoint"):
        score.score_file(str(tmp_path), str(pairs), None, "best", "error")


def test_command_line(ranked, pairs, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(Path(pairs).read_text() + '{"context": "", "good": "same", "bad": "same"}\n')
    command = [sys.executable, "-m", "hhh_jax.score", f"--checkpoint={ranked}", str(bad)]
    refused = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert refused.returncode == 2 and "bad.jsonl:201" in refused.stderr and "Traceback" not in refused.stderr
    out = tmp_path / "scores.jsonl"
    done = subprocess.run([*command, "--bad_rows=drop", f"--output={out}"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "on 200 pairs" in done.stdout and "dropped 1" in done.stderr
    assert len(out.read_text().splitlines()) == 200
