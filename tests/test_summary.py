"""Derived rows against the table's own numbers, and what keeps comparisons paired."""

import numpy as np
import pandas as pd
import pytest
from simulated_study import PAIRS, PMP_SIZE, SIZES, simulated

from hhh_jax import results
from hhh_jax.errors import UserError
from hhh_jax.summary import (
    Study,
    combine,
    common,
    difference,
    mean,
    pmp_points,
    pmp_source,
    size_name,
    summarize,
    task_name,
)


@pytest.fixture(scope="module")
def study():
    folder = simulated()
    return Study(results.read_table(folder / "results.csv"), folder / "runs")


@pytest.fixture(scope="module")
def derived(study):
    return summarize(study)


def _one(rows, **where):
    chosen = [row for row in rows if all(row.get(column) == value for column, value in where.items())]
    assert len(chosen) == 1, where
    return chosen[0]


def _accuracy(study, **where):
    return float(study.rows(metric="accuracy", intervention="", stage="finetune", **where)["value"].mean())


def test_gains_are_differences_of_the_tables_values(study, derived):
    for n in SIZES:
        gains = {}
        for task in ("word_order", "line_order", "order_label", "docstring_match", "word_order_label"):
            arm = {"task": task, "N": n, "init": "lm", "pairs_total": PAIRS[-1]}
            gains[task] = _accuracy(study, objective="preference", **arm) - _accuracy(
                study, objective="imitation", **arm
            )
            row = _one(
                derived,
                objective="preference-imitation",
                task=task,
                N=n,
                metric="accuracy_gain",
                intervention="",
            )
            assert row["value"] == pytest.approx(gains[task])
            assert row["lo"] < row["value"] < row["hi"]
        ranked = (gains["word_order"] + gains["line_order"]) / 2
        binary = (gains["order_label"] + gains["docstring_match"]) / 2
        expected = {"mean:ranked": ranked, "mean:binary": binary, "ranked-binary": ranked - binary}
        for task, value in expected.items():
            row = _one(
                derived,
                objective="preference-imitation",
                task=task,
                N=n,
                metric="accuracy_gain",
                intervention="",
            )
            assert row["value"] == pytest.approx(value)


def test_pmp_gains_are_differences_of_the_tables_values(study, derived):
    tasks = ("word_order", "line_order", "order_label", "docstring_match")
    for pairs in PAIRS:
        arm = {"N": PMP_SIZE, "objective": "preference", "pairs_total": pairs}
        value = {
            init: np.mean([_accuracy(study, task=task, init=init, **arm) for task in tasks])
            for init in ("lm", "pmp:stdlib:ranked", "pmp:stdlib:binary")
        }
        where = {"task": "mean:all", "pairs_total": pairs, "N": PMP_SIZE}
        for init, expected in value.items():
            assert _one(derived, objective="preference", init=init, **where)["value"] == pytest.approx(
                expected
            )
        row = _one(derived, objective="pmp-no_pmp", init="pmp:stdlib:binary", **where)
        assert row["value"] == pytest.approx(value["pmp:stdlib:binary"] - value["lm"])
        row = _one(derived, objective="binary_pmp-ranked_pmp", init="pmp:stdlib", **where)
        assert row["value"] == pytest.approx(value["pmp:stdlib:binary"] - value["pmp:stdlib:ranked"])


def test_pooled_rows_are_means_over_seeds(study, derived):
    where = {"task": "word_order", "objective": "untuned", "N": SIZES[1], "metric": "accuracy"}
    pooled = _one(derived, **where)
    seeds = study.rows(**where)["value"]
    assert len(seeds) == 3 and pooled["value"] == pytest.approx(seeds.mean())


def test_loss_is_fitted(study, derived):
    rows = study.rows(metric="loss", N=SIZES[0])
    assert _one(derived, metric="loss", N=SIZES[0])["value"] == pytest.approx(rows["value"].mean())
    exponent = _one(derived, metric="fit:exponent")
    assert 0.08 < exponent["lo"] < exponent["value"] < exponent["hi"] < 0.1


def test_other_learning_rates_stay_apart(derived):
    where = {
        "objective": "preference-imitation",
        "task": "mean:ranked",
        "N": SIZES[0],
        "metric": "accuracy_gain",
    }
    values = [_one(derived, intervention=intervention, **where)["value"] for intervention in ("", "paper_lr")]
    assert values[0] != values[1]


def test_summary_is_a_table(derived, tmp_path):
    results.write_table(derived, tmp_path / "summary.csv")
    table = results.read_table(tmp_path / "summary.csv")
    assert len(table) == len(derived) and set(table["stage"]) == {"summary"} and table["seed"].isna().all()


def test_a_combination_is_paired_by_item_and_seed(study):
    a = study.items("word_order", "preference", SIZES[0])
    b = study.items("word_order", "imitation", SIZES[0])
    np.testing.assert_array_equal(difference(a, b).correct, a.correct - b.correct)
    baseline = study.items("word_order", "baseline", None, ranker="longer")
    np.testing.assert_array_equal(difference(a, baseline).correct, a.correct - baseline.correct)
    assert difference(a, baseline).seeds == (0, 1, 2)
    np.testing.assert_allclose(combine([a, b, a], [1, 2, -1]).correct, 2 * b.correct)
    assert difference(a, None) is None and mean([a, None]) is None


def test_unpaired_arms_are_refused(study):
    a = study.items("word_order", "preference", SIZES[0])
    with pytest.raises(UserError, match="not the same test items"):
        difference(a, a._replace(item_ids=a.item_ids[1:], correct=a.correct[:, 1:]))
    with pytest.raises(UserError, match="the same seeds"):
        difference(a, a._replace(seeds=(0, 1, 3)))


def test_seeds_may_come_from_several_runs_but_once_each(study):
    table = study.table.copy()
    arm = (table["task"] == "word_order") & (table["objective"] == "preference") & (table["init"] == "lm")
    twice = table[arm & (table["N"] == SIZES[0]) & (table["intervention"] == "paper_lr")].copy()
    twice["intervention"] = ""
    import pandas as pd

    doubled = Study(pd.concat([table, twice]), study.runs_dir)
    with pytest.raises(UserError, match="intervention"):
        doubled.items("word_order", "preference", SIZES[0])


def test_a_study_without_finetuning_still_sums_up(study):
    only = study.table[study.table["stage"] == "pretrain"]
    metrics = {row["metric"] for row in summarize(Study(only, study.runs_dir))}
    assert {"loss", "accuracy", "fit:exponent"} <= metrics


def test_losses_of_evaluations_are_no_ladder(study, derived):
    """They have items of their own, which hold no documents, and may be of as many sizes."""
    losses = study.table[(study.table["stage"] == "pretrain") & (study.table["metric"] == "loss")]
    counted = losses.assign(stage="evaluate", task="counting:1-80", run="of-no-items")
    assert summarize(Study(pd.concat([study.table, counted]), study.runs_dir)) == derived


def test_best_trivial_is_the_most_often_right(study):
    name, items = study.best_trivial("word_order")
    values = study.rows(stage="baseline", task="word_order").set_index("ranker")["value"]
    assert items.correct.mean() == pytest.approx(values.max()) and values[name] == values.max()
    assert study.best_trivial("symbols:T0") is None


def test_names():
    assert [size_name(n) for n in (12288, 98304, 331776, 2654208, 13e6, 52e9)] == [
        "12k",
        "98k",
        "332k",
        "2.7M",
        "13M",
        "52B",
    ]
    assert pmp_source("pmp:symbols:T1:ranked") == "symbols:T1" and pmp_source("lm") is None
    assert task_name("some/dir/mine.jsonl") == "mine" and task_name("word_order") == "Word order"


def _thinned(folder, out, task, dropped):
    """The study with fewer pairs in one task's runs: `dropped` of its training pairs, and its last test
    pair."""
    table = results.read_table(folder / "results.csv")
    mine = (table["task"] == task) & (table["stage"] == "finetune")
    table.loc[mine, "pairs_total"] -= dropped
    (out / "runs").mkdir()
    for run in (folder / "runs").iterdir():
        (out / "runs" / run.name).symlink_to(run)
    for name in table[mine]["run"].unique():
        lines = (folder / "runs" / name / "items.jsonl").read_text().splitlines()
        last = max(line.split('"item_id": "')[1].split('"')[0] for line in lines)
        (out / "runs" / name).unlink()
        (out / "runs" / name).mkdir()
        kept = "\n".join(line for line in lines if f'"{last}"' not in line)
        (out / "runs" / name / "items.jsonl").write_text(kept)
    return Study(table, out / "runs")


def test_tasks_that_drop_overlong_pairs_still_compare(study, derived, tmp_path):
    thinned = _thinned(simulated(), tmp_path, "line_order", 3)
    assert pmp_points(thinned) == pmp_points(study) == [(PMP_SIZE, pairs) for pairs in PAIRS]
    where = {
        "objective": "pmp-no_pmp",
        "init": "pmp:stdlib:binary",
        "task": "mean:all",
        "pairs_total": PAIRS[-1],
    }
    mine, full = _one(summarize(thinned), **where), _one(derived, **where)
    assert mine["n_items"] == full["n_items"] - 1
    assert mine["value"] == pytest.approx(full["value"], abs=0.01)
    best = thinned.best_trivial("line_order")[1]
    model = thinned.items("line_order", "preference", SIZES[0])
    above = difference(*common(model, best))
    assert len(above.item_ids) == 159
    np.testing.assert_array_equal(above.correct, model.correct - best.correct[:, :-1])
