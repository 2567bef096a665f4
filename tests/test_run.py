"""One run from end to end on a user's own files: results, resuming after kill -9, refusals."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import ml_collections
import numpy as np
import pytest
from tiny_runs import arguments, tiny

from hhh_jax import checkpoint, distributed, record, results, run
from hhh_jax.errors import UserError

ROOT = Path(__file__).parents[1]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pretraining_record_holds_the_loss_of_every_document(pretrained):
    rows, items = lines(pretrained / "rows.jsonl"), lines(pretrained / "items.jsonl")
    losses = {row["seed"]: row["value"] for row in rows if row["metric"] == "loss"}
    assert set(losses) == {0, 1}
    for seed, loss in losses.items():
        mine = [item for item in items if item["seed"] == seed]
        total = -sum(item["logp_sum"] for item in mine) / sum(item["n_tokens"] for item in mine)
        np.testing.assert_allclose(total, loss, rtol=1e-9)
        assert loss < np.log(300)
    metrics = record.read_metrics(pretrained / "metrics.jsonl")
    assert [line["step"] for line in metrics] == list(range(1, 13))
    assert np.mean(metrics[-1]["loss"]) < np.mean(metrics[0]["loss"]) - 0.3


def test_items_agree_with_rows(ranked):
    items = lines(ranked / "items.jsonl")
    for row in lines(ranked / "rows.jsonl"):
        selection = "final" if row["metric"].endswith("_final") else "best"
        rewards: dict[str, dict[str, float]] = {}
        for item in items:
            if item["selection"] == selection and item["seed"] == row["seed"]:
                rewards.setdefault(item["item_id"], {})[item["option"]] = item["reward"]
        margins = np.array([sides["good"] - sides["bad"] for sides in rewards.values()])
        assert row["n_items"] == len(margins) > 10
        expected = np.mean(margins > 0) if row["metric"].startswith("accuracy") else np.mean(np.log1p(np.exp(-margins)))
        np.testing.assert_allclose(row["value"], expected, rtol=1e-9)


@pytest.mark.parametrize("selection", ["best", "final"])
def test_rows_are_recomputed_from_the_checkpoint(ranked, selection):
    suffix = "_final" if selection == "final" else ""
    rows = [row for row in lines(ranked / "rows.jsonl") if row["metric"].endswith(suffix)]
    stored = {(row["seed"], row["metric"]): row["value"] for row in rows}
    again = run.recompute_rows(str(ranked), "", "test", selection)
    expected = {(seed, metric + suffix) for seed in (0, 1) for metric in ("accuracy", "pm_loss")}
    assert {(row["seed"], row["metric"]) for row in again} == expected
    for row in again:
        np.testing.assert_allclose(row["value"], stored[row["seed"], row["metric"]], rtol=1e-6)


@pytest.fixture(scope="module")
def dpo(pairs, pretrained, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("dpo")
    run.run(tiny("dpo", pairs, init__checkpoint=pretrained, epochs=2.0), workdir, quiet=True)
    return workdir


def test_dpo_begins_where_its_reference_is_and_ranks_by_implicit_rewards(dpo):
    metrics = record.read_metrics(dpo / "metrics.jsonl")
    np.testing.assert_allclose(metrics[0]["loss"], np.log(2), rtol=1e-6)
    assert np.mean(metrics[-1]["loss"]) < np.log(2) - 0.01
    rows = lines(dpo / "rows.jsonl")
    assert {(row["stage"], row["objective"], row["ranker"]) for row in rows} == {("finetune", "dpo", "implicit_reward")}
    for row in rows:
        if row["metric"] == "accuracy":
            found = results.read_items(dpo, row["task"], "test", "best", "implicit_reward")
            assert found.correct[found.seeds.index(row["seed"])].mean() == pytest.approx(row["value"])
    again = {(row["seed"], row["metric"]): row["value"] for row in run.recompute_rows(str(dpo), "", "test", "best")}
    stored = {(row["seed"], row["metric"]): row["value"] for row in rows if not row["metric"].endswith("_final")}
    assert again == pytest.approx(stored, rel=1e-6)


class StopBefore(distributed.StopSignal):
    """As if SIGTERM came before that step."""

    def __init__(self, step: int):
        super().__init__()
        self.step = step

    def before(self, step: int) -> bool:
        return step == self.step


def test_dpo_goes_on_with_its_reference_bit_for_bit(dpo, pairs, pretrained, tmp_path):
    c = tiny("dpo", pairs, init__checkpoint=pretrained, epochs=2.0)
    with pytest.raises(distributed.Stopped):
        run.run(c, tmp_path, quiet=True, stop=StopBefore(7))
    run.run(c, tmp_path, quiet=True)
    timeless = [
        [{k: v for k, v in line.items() if not record.is_time_field(k)} for line in record.read_metrics(path)]
        for path in (tmp_path / "metrics.jsonl", dpo / "metrics.jsonl")
    ]
    assert timeless[0] == timeless[1] and len(timeless[0]) > 20
    assert lines(tmp_path / "items.jsonl") == lines(dpo / "items.jsonl")


def test_a_curve_within_one_run_has_what_shorter_runs_end_with(pairs, pretrained, tmp_path):
    """At a constant rate; the shorter run sees the same pairs in the same order."""
    for name, steps in (("whole", 9), ("short", 3)):
        c = tiny("ranked", pairs, steps=steps, init__checkpoint=pretrained, optim__warmup_steps=0)
        c.eval.selections = ("final",)
        c.eval.curve = (24, 72) if name == "whole" else ()
        run.run(c, tmp_path / name, quiet=True)

    def values(name: str, **where) -> dict:
        rows = [row for row in lines(tmp_path / name / "rows.jsonl") if where.items() <= row.items()]
        return {(row["seed"], row["metric"]): row["value"] for row in rows}

    short = values("short", curve="separate")
    assert len(short) == 4 and values("whole", curve="within_run", pairs_seen=24) == pytest.approx(short, rel=1e-6)
    assert values("whole", curve="within_run", pairs_seen=72) == values("whole", curve="separate")


def test_terms_are_recorded_apart_with_their_gradient_norms(ranked):
    first = record.read_metrics(ranked / "metrics.jsonl")[0]
    np.testing.assert_allclose(
        np.array(first["pm_loss"]) + np.array(first["lm_loss"]), first["loss"], rtol=1e-5
    )  # lambda = mu = 1
    assert min(first["pm_grad_norm"]) > 0 and min(first["lm_grad_norm"]) > 0


@pytest.mark.slow
def test_the_programs_of_an_update_compute_the_same(ranked, pairs, pretrained, tmp_path):
    """Those of batches of more and of fewer rows, and of updates that record the norms of terms and that do not."""
    c = tiny("ranked", pairs, init__checkpoint=pretrained, data__row_sizes=2, data__slots=2, term_norms_every=5)
    run.run(c, tmp_path, quiet=True)
    ours, theirs = (record.read_metrics(folder / "metrics.jsonl") for folder in (tmp_path, ranked))
    assert len(ours) == len(theirs) > 10
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-4)
        assert ("pm_grad_norm" in a) == (i % 5 == 0 or i == len(ours) - 1) and "pm_grad_norm" in b


def test_a_finished_run_is_left_alone(ranked, pairs, pretrained):
    before = {path: path.stat().st_mtime_ns for path in ranked.rglob("*")}
    run.run(tiny("ranked", pairs, init__checkpoint=pretrained), ranked, quiet=True)
    assert {path: path.stat().st_mtime_ns for path in ranked.rglob("*")} == before


def test_another_config_is_refused_by_its_first_different_key(ranked, pairs, pretrained):
    with pytest.raises(UserError, match=r"objective\.mu = 1\.0, not 0\.0"):
        run.run(tiny("ranked", pairs, init__checkpoint=pretrained, objective__mu=0.0), ranked, quiet=True)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(corpus, tmp_path):
    c = tiny("pretrain", corpus, optim__lr=1e30, optim__clip=0.0, checkpoint__every_steps=1)
    with pytest.raises(UserError, match=r"(loss|grad_norm) is \[.*\] at step \d+ \(batch \d+, seeds \[0, 1\]\)"):
        run.run(c, tmp_path, quiet=True)
    assert not (tmp_path / "DONE.json").exists()


def test_score_head_cannot_be_kept_from_a_language_model(pairs, pretrained, tmp_path):
    c = tiny("ranked", pairs, init__checkpoint=pretrained, init__score_head="keep")
    with pytest.raises(UserError, match=r"init\.score_head is 'keep'"):
        run.run(c, tmp_path, quiet=True)


def test_pmp_head_is_kept(pairs, pretrained, tmp_path):
    """With no update in between, a kept head gives the rewards that it gave."""
    c = tiny("pmp", pairs, init__checkpoint=pretrained, data__binarize="false")
    run.run(c, tmp_path / "pmp", quiet=True)
    kept = tiny("ranked", pairs, init__checkpoint=tmp_path / "pmp", init__score_head="keep", optim__lr=1e-30)
    run.run(kept, tmp_path / "kept", quiet=True)

    def rewards(name: str) -> list[float]:
        return [item["reward"] for item in lines(tmp_path / name / "items.jsonl") if item["selection"] == "final"]

    np.testing.assert_allclose(rewards("kept"), rewards("pmp"), rtol=1e-6)


def start(c: ml_collections.ConfigDict, workdir: Path) -> subprocess.Popen:
    program = [sys.executable, "-m", "hhh_jax.main", f"--workdir={workdir}", *arguments(c)]
    return subprocess.Popen(program, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def assert_same_record(one: Path, other: Path) -> None:
    """Bit for bit, but for time, the runs' names and, should somebody commit meanwhile, the code's."""

    def content(workdir: Path) -> list:
        metrics = record.read_metrics(workdir / "metrics.jsonl")
        timeless = [{k: v for k, v in line.items() if not record.is_time_field(k)} for line in metrics]
        rows = lines(workdir / "rows.jsonl")
        rows = [{k: v for k, v in row.items() if k not in ("run", "code_version")} for row in rows]
        return [timeless, rows, lines(workdir / "items.jsonl")]

    assert content(one) == content(other)


@pytest.mark.slow
def test_kill_9_at_random_moments_changes_nothing(pairs, pretrained, tmp_path):
    """Of a run whose first process dies early on, and the second one, which went on with it, later."""
    c = tiny("ranked", pairs, init__checkpoint=pretrained, checkpoint__every_steps=5, epochs=2.0)
    metrics = tmp_path / "killed" / "metrics.jsonl"
    for at_least in (1, 12):
        process = start(c, tmp_path / "killed")
        while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) >= at_least):
            time.sleep(0.01)
        time.sleep(random.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    for name in ("killed", "whole"):
        run.run(c, tmp_path / name, quiet=True)
    assert_same_record(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_sigterm_and_ctrl_c_save_and_the_run_goes_on_bit_for_bit(corpus, tmp_path):
    c = tiny("pretrain", corpus, tokens=4 * 64 * 400, checkpoint__every_steps=1000, log_every=1)
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    for number, code, at_least in ((signal.SIGTERM, 0, 5), (signal.SIGINT, 130, 30)):
        process = start(c, tmp_path / "stopped")
        before = metrics.stat().st_mtime_ns if metrics.exists() else 0
        while process.poll() is None:
            if metrics.exists() and metrics.stat().st_mtime_ns > before and len(lines(metrics)) > at_least:
                break
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=300)
        step = checkpoint.steps(tmp_path / "stopped" / "checkpoints")[-1]
        assert process.returncode == code, errors
        assert f"stopped after step {step} of 400: saved but not finished; the same command goes on" in errors
        assert len(metrics.read_text().splitlines()) == step < 400
        assert not (tmp_path / "stopped" / "DONE.json").exists()
    ending = start(c, tmp_path / "stopped")
    run.run(c, tmp_path / "whole", quiet=True)
    assert ending.wait(300) == 0
    assert_same_record(tmp_path / "stopped", tmp_path / "whole")


def test_a_run_goes_on_with_another_mesh_and_other_checkpoints(ranked, pairs, pretrained):
    """Where it is computed and when it is saved is not what it computes."""
    c = tiny("ranked", pairs, init__checkpoint=pretrained, mesh__fsdp=-1, mesh__data=1, checkpoint__keep=7)
    run.run(c, ranked, quiet=True)  # finished: the config alone is looked at
