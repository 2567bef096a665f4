"""The study of objectives: its plan, and what figures and claims say of a planted DPO that does as well as PM."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from simulated_study import PAIRS, RANKED, SIZES, TASKS, paper_like, simulated

from hhh_jax import claims, config, figures, plan, results, study
from hhh_jax.claims.rules import SUPPORTED
from hhh_jax.errors import UserError
from hhh_jax.figures import style
from hhh_jax.summary import Study, summarize

FILE = "configs/studies/objectives.py"
BINARY = (
    "order_label", "docstring_match", "ethics_commonsense", "ethics_deontology", "ethics_justice", "ethics_virtue",
)  # fmt: skip


def planted(task: str, objective: str, n: int, init: str, pairs: int) -> float:
    """The paper's claims hold, and DPO loses 0.08 of accuracy to PM on one ranked task only."""
    value = paper_like(task, "preference" if objective == "dpo" else objective, n, init, pairs)
    return value - 0.08 * (objective == "dpo" and task == "line_order")


@pytest.fixture(scope="module")
def with_dpo() -> Study:
    folder = simulated(planted, 200, ("imitation", "preference", "dpo"))
    return Study(results.read_table(folder / "results.csv"), folder / "runs")


@pytest.fixture(scope="module")
def table(with_dpo, tmp_path_factory) -> pd.DataFrame:
    path = tmp_path_factory.mktemp("summary") / "summary.csv"
    results.write_table(summarize(with_dpo), path)
    return pd.concat([with_dpo.table, results.read_table(path)], ignore_index=True)


def test_gains_of_dpo_are_differences_of_the_tables_values(with_dpo, table):
    def mean(task: str, objective: str, n: int) -> float:
        arm = {"task": task, "objective": objective, "N": n, "init": "lm", "pairs_total": PAIRS[-1]}
        return with_dpo.rows(**arm, intervention="", metric="accuracy")["value"].mean()

    for of, over in (("dpo", "imitation"), ("preference", "dpo")):
        rows = style.select(table, stage="summary", objective=f"{of}-{over}", metric="accuracy_gain", intervention="")
        for n in SIZES:
            here = rows[rows["N"] == n].set_index("task")["value"]
            expected = {task: mean(task, of, n) - mean(task, over, n) for task in TASKS}
            assert here[list(TASKS)].to_dict() == pytest.approx(expected)
            assert here["mean:ranked"] == pytest.approx(np.mean([expected[task] for task in RANKED]))


def test_claims_tell_contrast_from_the_scalar_head(with_dpo):
    """Planted: on ranked tasks DPO gains over imitation, and on one of them PM gains over DPO."""
    outcomes = {claim.key: outcome for claim, outcome in claims.evaluate(with_dpo)}
    assert outcomes["contrast"].verdict == SUPPORTED
    assert outcomes["scalar_head"].verdict != SUPPORTED and outcomes["ranked_gain"].verdict == SUPPORTED
    pm, dpo, head = (outcomes[key].estimate.value for key in ("ranked_gain", "contrast", "scalar_head"))
    assert head == pytest.approx(pm - dpo)
    by_task = dict(outcomes["scalar_head"].details)
    assert by_task["Line order"].value > by_task["Word order"].value
    without = Study(with_dpo.table[with_dpo.table["objective"] != "dpo"], with_dpo.runs_dir)
    keys = [claim.key for claim, _ in claims.concerning(without, claims.evaluate(without))]
    assert "contrast" not in keys and "scalar_head" not in keys and "ranked_gain" in keys


def test_figures_show_dpo_where_it_was_run(table):
    with matplotlib.rc_context(style.RC):
        left, right = figures.FIGURES["figure3"].draw(table).axes
        panels = figures.FIGURES["figures14_15"].draw(table).axes
        rest = table[~table["objective"].str.contains("dpo")]
        (alone,) = figures.FIGURES["figure3"].draw(rest).axes
    assert right.get_title(loc="left") == "DPO minus imitation"
    assert left.get_title(loc="left") == alone.get_title(loc="left") == "Preference modeling minus imitation"
    rows = style.select(
        table, stage="summary", objective="dpo-imitation", metric="accuracy_gain", intervention="", task="mean:ranked"
    )
    (line,) = (c.lines[0] for c in right.containers if c.get_label() == "mean over ranked tasks")
    np.testing.assert_allclose(np.asarray(line.get_ydata(), float), rows["value"])
    for ax in panels:
        assert "DPO" in [container.get_label() for container in ax.containers]


def test_the_plan_compares_like_with_like():
    module = study.load_study(FILE)
    for arg, tasks in (("", module.EMBEDDED), ("data=some/folder", plan.PAPER_TASKS)):
        planned = module.runs(module.get_config(arg))
        study.check_plan(planned)
        configs = {run.name: run.config for run in planned if run.config}
        for c in configs.values():
            config.check(c)
        for task in tasks:
            kind = "binary" if task in BINARY else "ranked"
            arms = [configs[f"{stage}-{task}-98k"] for stage in ("imitation", kind, "dpo")]
            alike = [{k: v for k, v in config.fields(c).items() if k not in ("stage", "objective.name")} for c in arms]
            assert alike[0] == alike[1] == alike[2]
            assert [c.objective.name for c in arms] == ["imitation", "preference", "dpo"]
        for run in planned:
            chosen = [configs[name] for name in run.choose]
            assert all(c.eval.selections == () and len(c.seeds) == 1 for c in chosen)  # test is not read
    with pytest.raises(UserError, match="give data=DIR"):
        module.get_config("full")
