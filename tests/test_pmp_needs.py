"""Planted effects of PMP's choices are found, absent ones are not, and figures draw the summary's numbers."""

import json

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer
from simulated_study import _Simulation

from hhh_jax import claims, figures, results
from hhh_jax.analyses import calibration, ensemble
from hhh_jax.claims.rules import CONTRADICTED, FLOOR, NOT_RUN, POWER, SUPPORTED
from hhh_jax.figures import style
from hhh_jax.summary import Study, summarize

TASKS, SIZES, PAIRS = ("docstring_match", "line_order"), (12288, 98304), (500, 2000)
N, ITEMS = SIZES[-1], 240
EDITS, WORDS = "pmp:edits:binary", "pmp:words:binary"
PLANTED = {  # init, intervention -> accuracy with few and with many pairs
    ("lm", ""): (0.60, 0.72),
    ("lm", "no_eoc"): (0.60, 0.72),
    (EDITS, ""): (0.74, 0.76),
    (WORDS, ""): (0.72, 0.76),
    ("pmp:edits:ranked", ""): (0.62, 0.72),
    ("pmp:edits:ranked", "equal_updates"): (0.64, 0.72),
    (EDITS, "pm_alone"): (0.64, 0.72),
    (EDITS, "lm_alone"): (0.62, 0.72),
    (EDITS, "no_eoc"): (0.64, 0.72),
    (EDITS, "shuffled"): (0.46, 0.72),
    ("pmp:edits:human_model", ""): (0.88, 0.76),
}
KEYS = (
    "pmp_every_source", "pmp_few_pairs", "pmp_labels", "pmp_both_losses", "pmp_equal_updates", "pmp_end_of_context",
    "pmp_human_model", "pmp_ensemble",
)  # fmt: skip


def build(folder, planted, sizes=(N,)):
    """A study in which PMP gives these accuracies at these sizes; ensembles and calibration are the real jobs'."""
    simulation = _Simulation(folder, lambda *_: 0.5, ITEMS, np.random.default_rng(3), 0.02)
    names = {}
    for n in sizes:
        for (init, how), levels in planted.items():
            for task in TASKS:
                for pairs, level in zip(PAIRS, levels, strict=True):
                    simulation.truth = lambda *_, level=level: level
                    there = set(simulation.rows)
                    simulation.pairs(task, "preference", n, init, pairs, how)
                    (names[n, task, init, how, pairs],) = set(simulation.rows) - there
        for source, level in (("edits", 0.65), ("words", 0.7)):
            simulation.truth = lambda *_, level=level: level + 0.1 * (n == N)  # noqa: B023
            simulation.hard[source] = np.zeros(ITEMS)
            there = set(simulation.rows)
            simulation.pairs(source, "preference", n, "lm", 800)
            (name,) = set(simulation.rows) - there
            simulation.rows[name] = [row | {"stage": "pmp"} for row in simulation.rows[name]]
    for task in TASKS:
        simulation.truth = lambda *_: 0.5
        simulation.baselines(task)
    for rows in simulation.rows.values():
        judged = [row for row in rows if (row["objective"], row["metric"]) == ("preference", "accuracy")]
        rows += [row | {"metric": "pm_loss"} for row in judged]
    for task in TASKS:
        run = names[N, task, "lm", "", PAIRS[-1]]
        simulation.rows[run] += [
            row | {"curve": "within_run", "metric": "accuracy_final", "pairs_seen": seen, "value": 0.5 + seen / 10000}
            for row in simulation.rows[run]
            if row["metric"] == "accuracy"
            for seen in (500, 1000)
        ]
    simulation.write()
    jobs = []
    for task in TASKS:
        for pairs in PAIRS:
            members = {init[4:9]: folder / "runs" / names[N, task, init, "", pairs] for init in (EDITS, WORDS)}
            for of in ensemble.WAYS:
                jobs.append(folder / "runs" / f"ensemble-{of}-{task}-{pairs}")
                jobs[-1].mkdir()
                ensemble.job(jobs[-1], after=None, study="s", of=of, init=f"ensemble:{of}", **members)
        jobs.append(folder / "runs" / f"calibration-{task}")
        jobs[-1].mkdir()
        calibration.job(jobs[-1], after=folder / "runs" / names[N, task, EDITS, "", PAIRS[-1]], study="s")
    rows = [row for rows in simulation.rows.values() for row in rows]
    rows += [json.loads(line) for job in jobs for line in (job / "rows.jsonl").read_text().splitlines()]
    results.write_table(rows, folder / "results.csv")
    return Study(results.read_table(folder / "results.csv"), folder / "runs")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return build(tmp_path_factory.mktemp("planted"), PLANTED, SIZES)


@pytest.fixture(scope="module")
def outcomes(study):
    return {claim.key: claim.judge(study) for claim in claims.CLAIMS if claim.key in KEYS}


@pytest.fixture(scope="module")
def table(study, tmp_path_factory):
    path = tmp_path_factory.mktemp("summary") / "summary.csv"
    results.write_table(summarize(study), path)
    return pd.concat([results.read_table(study.runs_dir.parent / "results.csv"), results.read_table(path)])


def test_planted_effects_are_found_with_their_size(outcomes):
    assert {key: outcome.verdict for key, outcome in outcomes.items()} == dict.fromkeys(KEYS, SUPPORTED)
    truth = {
        "pmp_every_source": 0.12, "pmp_few_pairs": 0.13 - 0.04, "pmp_labels": 0.14, "pmp_both_losses": 0.10,
        "pmp_equal_updates": 0.10, "pmp_end_of_context": 0.10, "pmp_human_model": 0.14,
    }  # fmt: skip
    for key, value in truth.items():
        assert outcomes[key].estimate.value == pytest.approx(value, abs=0.06), key
        assert outcomes[key].at == f"N = 98k, {500} pairs"


def test_an_ensemble_is_compared_with_its_mean_member(study, outcomes):
    """Averaging two models whose errors are their own helps; by how much is in the table."""
    rows = study.rows(N=N, metric="accuracy", intervention="", pairs_total=500, stage="finetune")
    value = rows.groupby("init")["value"].mean()
    expected = value["ensemble:rewards"] - (value[EDITS] + value[WORDS]) / 2
    assert outcomes["pmp_ensemble"].estimate.value == pytest.approx(expected) and expected > 0.01
    assert [label for label, _ in outcomes["pmp_ensemble"].details][:3] == [
        "mean of probabilities minus mean member",
        "mean of rewards minus PMP on edits",
        "mean of rewards minus PMP on words",
    ]


def test_effects_that_are_not_there_are_not_found(tmp_path):
    """Alike arms, and arms the other way round: shuffled labels that help, one source that hurts."""
    alike = build(tmp_path / "alike", dict.fromkeys(PLANTED, (0.66, 0.66)))
    verdicts = {claim.key: claim.judge(alike).verdict for claim in claims.CLAIMS if claim.key in KEYS}
    directional = set(KEYS) - {"pmp_labels", "pmp_human_model", "pmp_ensemble"}
    assert [verdicts[key] for key in sorted(directional)].count(POWER) >= 4  # of five; one in twenty errs
    turned = build(tmp_path / "turned", PLANTED | {(EDITS, "shuffled"): (0.75, 0.72), (WORDS, ""): (0.52, 0.7)})
    verdicts = {claim.key: claim.judge(turned).verdict for claim in claims.CLAIMS if claim.key in KEYS}
    assert verdicts["pmp_labels"] == verdicts["pmp_every_source"] == CONTRADICTED


def test_nothing_is_judged_without_its_arms_or_at_the_floor(tmp_path):
    few = {arm: levels for arm, levels in PLANTED.items() if arm in (("lm", ""), (EDITS, ""), (WORDS, ""))}
    verdicts = {c.key: c.judge(build(tmp_path / "few", few)).verdict for c in claims.CLAIMS if c.key == KEYS[0]}
    assert verdicts == {KEYS[0]: SUPPORTED}
    folder = tmp_path / "few"
    there = Study(results.read_table(folder / "results.csv"), folder / "runs")
    missing = {claim.key: claim.judge(there) for claim in claims.CLAIMS if claim.key in KEYS[2:7]}
    assert all(outcome.verdict == NOT_RUN and outcome.note for outcome in missing.values()) and len(missing) == 5
    floor = build(tmp_path / "floor", dict.fromkeys(PLANTED, (0.5, 0.5)))
    verdicts = {claim.key: claim.judge(floor).verdict for claim in claims.CLAIMS if claim.key in KEYS}
    assert verdicts == dict.fromkeys(KEYS, FLOOR)


def test_loss_of_finetuning_is_summarized(study, table):
    """Eq. 3.1 of every item, from the records themselves."""
    arm, losses = {"N": N, "init": EDITS, "intervention": "", "pairs_total": 500}, []
    for task in TASKS:
        (run,) = study.rows(task=task, metric="pm_loss", **arm)["run"].unique()
        reward = {}
        for line in (study.runs_dir / run / "items.jsonl").read_text().splitlines():
            item = json.loads(line)
            if item["selection"] == "best":
                reward[item["seed"], item["item_id"], item["option"]] = item["reward"]
        pairs = {key[:2] for key in reward}
        losses.append(np.mean([np.log1p(np.exp(reward[*p, "bad"] - reward[*p, "good"])) for p in pairs]))
    rows = style.select(table, stage="summary", objective="preference", **arm)
    loss = rows[rows["metric"] == "pm_loss"].set_index("task")["value"]
    assert [loss[task] for task in TASKS] == pytest.approx(losses)
    assert loss["mean:all"] == pytest.approx(np.mean(losses))


def lines(ax):
    """Label to y values of the lines with intervals."""
    found = [c for c in ax.containers if isinstance(c, ErrorbarContainer)]
    return {c.get_label(): np.asarray(c.lines[0].get_ydata(), float) for c in found}


def of(table, task="mean:all", metric="accuracy", objective="preference", **where):
    rows = style.select(table, stage="summary", objective=objective, task=task, metric=metric, **where)
    return rows["value"].to_numpy()


def draw(table, name):
    with matplotlib.rc_context(style.RC):
        return figures.FIGURES[name].draw(table).axes


def test_figures_over_pairs_draw_the_means_and_the_tasks(table):
    for name, labels in (
        ("figure29", {"PM + LM loss": (EDITS, ""), "PM loss alone": (EDITS, "pm_alone")}),
        ("figure31", {"no PMP, no end-of-context": ("lm", "no_eoc"), "PMP, no end-of-context": (EDITS, "no_eoc")}),
        ("figures19_36", {"PMP, human-model": ("pmp:edits:human_model", "")}),
        ("ensembles", {"mean of rewards": ("ensemble:rewards", ""), "PMP on words": (WORDS, "")}),
    ):
        axes = draw(table, name)
        for ax, task in zip(axes, ("mean:all", *TASKS), strict=True):
            for label, (init, how) in labels.items():
                expected = of(table, task, init=init, intervention=how, N=N)
                assert len(expected) == 2, (name, label)
                np.testing.assert_allclose(lines(ax)[label], expected)


def test_binary_against_ranked_at_equal_epochs_and_updates(table):
    gain = {"objective": "binary_pmp-ranked_pmp", "metric": "accuracy_gain", "init": "pmp:edits", "N": N}
    (ax,) = draw(table, "figure18")
    for how, label in (("", "equal epochs"), ("equal_updates", "equal updates")):
        expected = of(table, intervention=how, **gain)
        np.testing.assert_allclose(lines(ax)[f"mean, PMP on edits, {label}"], expected)
        ranked = of(table, init="pmp:edits:ranked", intervention=how, N=N)
        np.testing.assert_allclose(expected, of(table, init=EDITS, intervention="", N=N) - ranked)
        for panel, task in zip(draw(table, "figure37"), TASKS, strict=True):
            found = lines(panel)[f"PMP on edits, {label}"]
            np.testing.assert_allclose(found, of(table, task, intervention=how, **gain))


def test_figures_over_sizes(table):
    for name, metric in (("figure5", "accuracy"), ("figure16", "pm_loss")):
        for ax, pairs in zip(draw(table, name), PAIRS, strict=True):
            for label, init in (("no PMP", "lm"), ("PMP on edits", EDITS)):
                expected = of(table, metric=metric, init=init, intervention="", pairs_total=pairs)
                np.testing.assert_allclose(lines(ax)[label], expected)
    none, edits, words = draw(table, "figure28")
    assert [ax.get_title(loc="left") for ax in (none, edits, words)] == ["no PMP", "PMP on edits", "PMP on words"]
    expected = of(table, "line_order", "pm_loss", init=EDITS, intervention="", pairs_total=PAIRS[-1])
    np.testing.assert_allclose(lines(edits)["Line order"], expected)
    axes = draw(table, "figure27")
    assert len(axes) == 4
    expected = of(table, "edits", "accuracy", "pmp", init="lm")
    np.testing.assert_allclose(lines(axes[2])["PMP on this source"], expected)


def test_curves_within_one_run_lie_beside_separate_runs(table):
    for ax, task in zip(draw(table, "figure17"), TASKS, strict=True):
        np.testing.assert_allclose(lines(ax)["no PMP"], of(table, task, init="lm", intervention="", N=N))
        dashed = [line for line in ax.get_lines() if line.get_linestyle() == "--" and len(line.get_xdata()) == 2]
        assert [list(line.get_ydata()) for line in dashed] == [[pytest.approx(0.55), pytest.approx(0.6)]]


def test_controls_stand_beside_the_gain(table):
    _, right = draw(table, "figure4")
    gain = {"objective": "pmp-no_pmp", "metric": "accuracy_gain", "N": N, "init": EDITS}
    np.testing.assert_allclose(lines(right)["PMP on shuffled labels"], of(table, intervention="shuffled", **gain))
    np.testing.assert_allclose(lines(right)["PMP on edits"], of(table, intervention="", **gain))


def test_the_reliability_diagram_pools_seeds(study, table):
    """Against the pairs of all three seeds at once."""
    for ax, task in zip(draw(table, "figure30"), TASKS, strict=True):
        (label, shares), *more = lines(ax).items()
        rows = study.rows(task=task, N=N, init=EDITS, intervention="", pairs_total=2000, metric="accuracy")
        items = results.read_items(study.runs_dir / rows["run"].iloc[0], task, "test", "best", "reward", margins=True)
        pooled = calibration.calibration_rows(items.correct.ravel())
        expected = [row["value"] for row in pooled if row["metric"] == "reliability"]
        np.testing.assert_allclose(shares, expected)
        errors = [calibration.calibration_rows(margins)[0]["value"] for margins in items.correct]
        assert label == f"PMP on edits: error {np.mean(errors):.3f}" and not more


def test_a_study_without_such_arms_is_silent_about_them(table):
    plain = table[table["intervention"].isin(["", None]) & ~table["init"].astype(str).str.contains("ensemble|human")]
    concerned = {name for name, drawing in figures.FIGURES.items() if style.concerns(plain, drawing)}
    assert not concerned & {"figure29", "figure31", "figures19_36", "figure37", "ensembles", "who_wrote_it"}
    assert concerned >= {"figure4", "figure5", "figure16", "figure17", "figure27", "figure28", "figure32", "figure18"}
