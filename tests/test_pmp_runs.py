"""Runs that PMP needs: curves within one run, other test sets, one loss alone, sources together, jobs, plans."""

import json

import numpy as np
import pytest
from tiny_runs import tiny

from hhh_jax import config, human_model, run, scoring, study
from hhh_jax.data import datasets, files
from hhh_jax.errors import UserError
from hhh_jax.record import jsonable


def rows_of(folder):
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def values(rows, **where):
    chosen = [row for row in rows if all(row.get(column) == value for column, value in where.items())]
    return {(row["metric"], row["seed"]): row["value"] for row in chosen}


def test_a_curve_within_one_run_ends_at_its_final_row(pairs, pretrained, tmp_path):
    """And passes through the final row of a run that stops there, the learning rate being constant."""
    settings = {"init__checkpoint": pretrained, "data__limit": 48, "optim__warmup_steps": 0}
    long = tiny("ranked", pairs, epochs=1.0, **settings)
    long.eval.curve = (16, 48)
    run.run(long, tmp_path / "long", quiet=True)
    run.run(tiny("ranked", pairs, steps=2, **settings), tmp_path / "short", quiet=True)
    rows, short = rows_of(tmp_path / "long"), rows_of(tmp_path / "short")
    curve = [row for row in rows if row["curve"] == "within_run"]
    assert {row["pairs_seen"] for row in curve} == {16, 48}
    metrics = ("accuracy_final", "pm_loss_final")
    for pairs_seen, separate in ((48, rows), (16, short)):
        point = values(curve, pairs_seen=pairs_seen)
        expected = values(separate, curve="separate")
        assert {key: expected[key] for key in expected if key[0] in metrics} == pytest.approx(point, abs=1e-6)
        assert len(point) == 4


def test_pmp_is_tested_on_other_sources_by_reward(pairs, pretrained, tmp_path):
    other = tmp_path / "other.jsonl"
    records = [json.loads(line) | {"id": f"x{i}"} for i, line in enumerate(pairs.read_text().splitlines()[:90])]
    other.write_text("".join(json.dumps(record) + "\n" for record in records))
    c = tiny("pmp", pairs, init__checkpoint=pretrained, steps=2, data__max_tokens=30)
    c.eval.tasks = (str(other),)
    run.run(c, tmp_path / "run", quiet=True)
    rows = rows_of(tmp_path / "run")
    found = values(rows, task=str(other), init="pmp:pairs:binary", objective="preference", ranker="reward")
    again = run.recompute_rows(str(tmp_path / "run"), str(other), "", "best")
    assert found == pytest.approx(values(again)) and len(found) >= 4
    items = [json.loads(line) for line in (tmp_path / "run" / "items.jsonl").read_text().splitlines()]
    names = {item["item_id"] for item in items if item["task"] == str(other)}
    assert names and {name.rpartition("/")[2] for name in names} == {"good", "bad"}


@pytest.mark.slow
def test_with_the_language_modeling_loss_alone_the_score_head_stays(pairs, pretrained, tmp_path):
    heads, kernels = [], []
    for steps in (1, 3):
        c = tiny("pmp", pairs, init__checkpoint=pretrained, steps=steps, objective__lam=0.0, data__max_tokens=30)
        run.run(c, tmp_path / str(steps), quiet=True)
        scorer, _, _ = scoring.load_scorer(str(tmp_path / str(steps)), (), "final")
        heads.append(np.asarray(scorer.params["score_head"]["kernel"]))
        kernels.append(np.asarray(scorer.params["lm_head"]["kernel"]))
    np.testing.assert_array_equal(*heads)
    assert np.abs(heads[0]).max() > 0 and np.abs(kernels[0] - kernels[1]).max() > 0
    with pytest.raises(UserError, match="both must be at least 0, and one above it"):
        config.check(tiny("pmp", pairs, objective__lam=0.0, objective__mu=0.0))


def test_sources_are_put_together_by_name():
    parts = {name: datasets.load_pairs(name, "test").records for name in ("edits", "word_order")}
    both = datasets.load_pairs("edits+word_order", "test")
    expected = {f"{name}/{pair.id}": pair for name, pairs in parts.items() for pair in pairs}
    assert {pair.id for pair in both.records} == expected.keys() and len(both.records) == len(expected)
    for pair in both.records[:50]:
        there = expected[pair.id]
        assert (pair.context, pair.good, pair.bad) == (there.context, there.good, there.bad)
        assert pair.group.partition("/")[::2] == (pair.id.partition("/")[0], there.group)
    first = datasets.load_pairs("edits+word_order", "test", limit=200).records
    assert first == both.records[:200]
    share = sum(pair.id.startswith("edits/") for pair in first) / 200
    assert share == pytest.approx(len(parts["edits"]) / len(expected), abs=0.12)
    with pytest.raises(UserError, match="no data named 'word'"):
        datasets.load_pairs("edits+word", "test")


@pytest.mark.slow
def test_the_job_of_human_model_pairs_writes_what_pmp_reads(pretrained, corpus, tmp_path):
    asked = {"source": str(corpus), "kind": "documents", "limit": 12, "held_out": 4, "least": 4, "most": 12}
    human_model.job(tmp_path, after=pretrained, study="s", name="mine", **asked)
    found, splits, _ = files.read_pairs(str(tmp_path / "mine.jsonl"))
    assert 8 <= len(found) <= 16  # what the model writes as it was written is left out
    assert 0 < splits.count("train") <= 12 and 0 < splits.count("test") <= 4
    assert (tmp_path / "rows.jsonl").read_text() == (tmp_path / "items.jsonl").read_text() == ""
    about = json.loads((tmp_path / "about.json").read_text())
    assert (about["kept"], about["held_out"]) == (len(found), 4)


@pytest.mark.parametrize("arg", ["", "data=some/folder"])
@pytest.mark.parametrize("name", ["pmp", "pmp_needs"])
def test_plans_are_whole_and_their_arms_apart(name, arg):
    """No two finetunings of a study have the same columns, and every run can be started."""
    module = study.load_study(f"configs/studies/{name}.py")
    c = module.get_config(arg)
    planned = module.runs(c)
    study.check_plan(planned)
    arms = []
    for each in planned:
        if each.config is None:
            continue
        config.check(each.config)
        flat = jsonable(config.fields(each.config))
        labels = [flat[key] for key in ("stage", "rung", "data.source", "labels.init", "labels.intervention")]
        tuned = tuple(flat["eval.selections"]) if each.config.stage != "pretrain" else ()
        arms.append((*labels, flat["data.limit"], flat["data.binarize"], tuned, flat["optim.lr_multiple"]))
        if arg:
            assert flat["data.source"].startswith(("some/folder/", "run:"))
    assert len(set(arms)) == len(arms)
    with pytest.raises(UserError, match="give data=DIR"):
        module.get_config("dta=x")
