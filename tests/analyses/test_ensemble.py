"""Ensembles by hand, and as a run of a study whose records are read like any other's."""

import json

import numpy as np
import pytest

from hhh_jax import results
from hhh_jax.analyses import ensemble
from hhh_jax.errors import UserError


def write_run(folder, margins_SxI, task="t", names=("a", "b", "c")):
    """A finished preference model with these reward differences; its rewards themselves are far from zero."""
    folder.mkdir()
    rows, items = [], []
    for seed, margin_I in enumerate(margins_SxI):
        where = {"stage": "finetune", "objective": "preference", "init": "pmp:x:binary", "N": 12, "pairs_total": 8}
        where |= {"task": task, "split": "test", "seed": seed, "ranker": "reward", "curve": "separate"}
        rows += [where | {"metric": "pm_loss", "value": 0.5}, where | {"metric": "accuracy", "value": 0.5}]
        for name, margin in zip(names, margin_I, strict=True):
            for option, reward in (("good", 100 + margin), ("bad", 100)):
                items.append({
                    "task": task, "split": "test", "selection": "best", "seed": seed, "item_id": name,
                    "group_id": name, "option": option, "reward": float(reward),
                })  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return folder


def test_means_by_hand():
    """A sure vote outweighs two unsure ones by rewards, and not by probabilities."""
    margin_MxSxI = np.array([[[6.0, 0.0]], [[-1.0, 1.0]], [[-2.0, 2.0]]])
    np.testing.assert_allclose(ensemble.combined(margin_MxSxI, "rewards"), [[1.0, 1.0]])
    p = (1 / (1 + np.exp(-margin_MxSxI))).mean(0)
    together = ensemble.combined(margin_MxSxI, "probabilities")
    np.testing.assert_allclose(1 / (1 + np.exp(-together)), p)
    assert together[0, 0] < 0 < together[0, 1]


def test_job_writes_a_run_of_its_own(tmp_path):
    first = write_run(tmp_path / "first", [[3.0, -1.0, 1.0], [1.0, 1.0, 1.0]])
    second = write_run(tmp_path / "second", [[-1.0, -1.0, -1.0], [1.0, -3.0, 0.5]])
    out = tmp_path / "out"
    out.mkdir()
    ensemble.job(out, after=None, study="s", of="rewards", init="ensemble:rewards", a=first, b=second)
    items = results.read_items(out, "t", "test", "best", "reward", margins=True)
    np.testing.assert_allclose(items.correct, [[1.0, -1.0, 0.0], [1.0, -1.0, 0.75]])
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    accuracy = {row["seed"]: row for row in rows if row["metric"] == "accuracy"}
    assert {seed: row["value"] for seed, row in accuracy.items()} == {0: pytest.approx(0.5), 1: pytest.approx(2 / 3)}
    assert {(row["init"], row["N"], row["pairs_total"], row["run"], row["study"]) for row in rows} == {
        ("ensemble:rewards", 12, 8, "out", "s")
    }


def test_members_must_judge_the_same_items(tmp_path):
    first = write_run(tmp_path / "first", [[3.0, -1.0, 1.0]])
    other = write_run(tmp_path / "other", [[3.0, -1.0, 1.0]], names=("a", "b", "d"))
    with pytest.raises(UserError, match="other: not the task, test items and seeds"):
        ensemble.job(tmp_path, after=None, study="s", of="rewards", init="e", a=first, b=other)
