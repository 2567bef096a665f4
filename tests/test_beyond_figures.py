"""Figures and claims of the discriminator and of what is beyond the paper, from a made-up table."""

import numpy as np
import pytest
from test_prompting_figures import drawn, table

from hhh_jax import claims
from hhh_jax.analyses.joint_fit import curve
from hhh_jax.claims.rules import CONTRADICTED, FLOOR, NOT_RUN, POWER, SUPPORTED
from hhh_jax.evals.pass_at_k import best_of_n_kl
from hhh_jax.figures import beyond, discriminator, style
from hhh_jax.summary import Study

N = (12288, 98304)
FIT = {"E": 0.3, "A": 0.1, "a": 0.5, "B": 0.2, "b": 0.7}


def row(stage, metric, value, half=0.02, **more):
    about = {"stage": stage, "split": "test", "curve": "separate", "metric": metric, "n_items": 100, "N": N[1]}
    return about | {"value": value, "lo": value - half, "hi": value + half} | more


def discriminator_rows():
    rows = []
    for n in N:
        for k, bases in ((1, (0.5, 0.8, 0.82)), (10, (0.6, 0.75, 0.76)), (100, (0.4, 0.4, 0.4))):
            for ranker, value in zip(("p_human", "logp", "ensemble"), bases, strict=True):
                rows.append(row("discriminator", "top_accuracy", value, k=k, ranker=ranker, N=n))
        for ranker, gain in (("p_human-unranked", 0.2), ("logp-p_human", 0.15), ("ensemble-logp", 0.005)):
            rows.append(row("discriminator", "top_accuracy_gain", gain, k=10, ranker=ranker, N=n))
        for split in ("test", "train"):
            rows.append(row("discriminator", "after_switch_gain", 0.4, k=5, N=n, split=split))
            for k in (-5, -3, -2, -1, 1, 2, 3, 5):
                value = 0.9 if k < 0 else k / 10
                rows.append(row("discriminator", "accuracy_at_distance", value, k=k, N=n, split=split))
    return rows


def beyond_rows(identified=1.0):
    rows = [row("joint_fit", f"joint:{name}", value) for name, value in FIT.items()]
    rows += [row("joint_fit", f"joint:identified:{part}", identified) for part in "END"]
    rows.append(row("joint_fit", "joint:misfit", 0.01))
    for n in N:
        for pairs in (100, 1000):
            value = curve(np.array([*FIT.values()]), np.float64(n / N[0]), np.float64(pairs / 100))
            rows.append(row("joint_fit", "pm_loss", float(value), N=n, pairs_total=pairs, task="symbols:T0"))
    rows.append(row("joint_fit", "saved:pairs", 0.16, pairs_total=1000, task="symbols:T0"))
    rows.append(row("joint_fit", "saved:size", 0.01, pairs_total=1000, task="symbols:T0"))
    for pairs, noise in ((100, ""), (1000, ""), (1000, "flip_40")):
        arm = {"pairs_total": pairs, "intervention": noise, "task": "symbols:T0"}
        for k in (1, 4, 16):
            rows.append(row("best_of_n", "gold", 0.5 + 0.02 * np.log2(k), k=k, **arm))
            rows.append(row("best_of_n", "promise", 0.5 + 0.1 * np.log2(k), k=k, **arm))
            rows.append(row("best_of_n", "oracle", k / (k + 1), k=k, **arm))
        rows.append(row("best_of_n", "promise-gold", 0.32, k=16, **arm))
        rows.append(row("best_of_n", "gold_rise", 0.01, k=16, **arm))
    for percent in (0, 20, 40):
        for metric, value in (("accuracy", 0.8), ("confidence", 0.85), ("calibration_error", 0.05)):
            rows.append(row("label_noise", metric, value - percent / 200, task="symbols:T0", k=percent, pairs_total=9))
        if percent:
            for metric, gain in (("accuracy", -percent / 200), ("calibration_error", percent / 400)):
                rows.append(row("label_noise", f"{metric}_gain", gain, task="symbols:T0", k=percent, pairs_total=9))
    return rows


def outcomes(rows, tmp_path):
    return {claim.key: outcome for claim, outcome in claims.evaluate(Study(table(rows), tmp_path))}


def test_top_samples_has_a_panel_a_ranker():
    figure = discriminator.top_samples(table(discriminator_rows()))
    left, right = (drawn(ax) for ax in figure.axes)
    assert left["discriminator of 98k"][1] == [0.5, 0.6, 0.4] and right["discriminator of 98k"][1] == [0.82, 0.76, 0.4]
    assert left["ranked by the language model"][1] == right["ranked by the language model"][1] == [0.8, 0.75, 0.4]


def test_distances_go_on_either_side_of_the_switch():
    figure = discriminator.by_distance(table(discriminator_rows()))
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["-5", "-3", "-2", "-1", "1", "2", "3", "5"]
    lines = [list(c.lines[0].get_ydata()) for c in ax.containers if c.get_label() == "12k"]
    assert lines == [[0.9] * 4, [0.1, 0.2, 0.3, 0.5]]


def test_joint_fit_is_dotted_where_it_is_not_identified():
    for identified, look in ((1.0, "-"), (0.0, ":")):
        figure = beyond.loss_of_pairs_and_size(table(beyond_rows(identified)))
        ax = figure.axes[0]
        assert drawn(ax)["12k"][0] == [100, 1000]
        fitted = [line for line in ax.lines if len(line.get_xdata()) == 60]
        assert {line.get_linestyle() for line in fitted} == {look}
        np.testing.assert_allclose(fitted[0].get_ydata()[[0, -1]], drawn(ax)["12k"][1])
        assert ("not identified" in ax.texts[0].get_text()) == (not identified)


def test_best_of_n_is_over_nats():
    lines = drawn(beyond.best_of_n(table(beyond_rows())).axes[0])
    np.testing.assert_allclose(lines["100 pairs"][0], best_of_n_kl(np.array([1.0, 4, 16])))
    np.testing.assert_allclose(lines["1000 pairs, 40% flipped: promised"][1], [0.5, 0.7, 0.9])


def test_label_noise_shows_accuracy_and_calibration():
    left, right = beyond.label_noise(table(beyond_rows())).axes
    np.testing.assert_allclose(drawn(left)["accuracy"][1], [0.8, 0.7, 0.6])
    assert drawn(right)["expected calibration error"][0] == [0, 20, 40]


def test_a_table_without_the_rows_has_no_figure():
    for name, drawing in (discriminator.FIGURES | beyond.FIGURES).items():
        with pytest.raises(style.NoRows):
            drawing.draw(table([row("finetune", "accuracy", 0.5)]))
        assert drawing.stage, name


def test_claims_are_judged_by_their_rows(tmp_path):
    found = outcomes(discriminator_rows() + beyond_rows(0.0), tmp_path)
    verdicts = {
        "discriminator_ranks": SUPPORTED, "discriminator_below_lm": SUPPORTED, "ensemble_equals_lm": SUPPORTED,
        "switch_is_noticed": SUPPORTED, "loss_of_pairs": SUPPORTED, "loss_of_size": POWER,
        "overoptimization": SUPPORTED, "noise_costs_little": CONTRADICTED, "noise_decalibrates": SUPPORTED,
    }  # fmt: skip
    assert {key: found[key].verdict for key in verdicts} == verdicts
    assert found["overoptimization"].estimate.value == 0.32 and "100 pairs" in found["overoptimization"].at
    assert "do not identify" in found["loss_of_pairs"].note
    assert "do not identify" not in outcomes(beyond_rows(), tmp_path)["loss_of_pairs"].note
    contrary = [r | {"value": -0.4, "lo": -0.5, "hi": -0.3} for r in discriminator_rows() if "gain" in r["metric"]]
    against = outcomes(contrary, tmp_path)
    assert {against[key].verdict for key in list(verdicts)[:4]} == {CONTRADICTED}


def test_noise_that_leaves_nothing_learned_shows_nothing(tmp_path):
    rows = beyond_rows()
    for r in rows:
        if (r["stage"], r["metric"], r.get("k")) == ("label_noise", "accuracy", 40):
            r |= {"value": 0.52, "lo": 0.49, "hi": 0.55}
    found = outcomes(rows, tmp_path)
    assert found["noise_decalibrates"].verdict == FLOOR and found["noise_costs_little"].verdict == CONTRADICTED


def test_without_rows_no_claim_is_tested(tmp_path):
    found = outcomes([row("finetune", "accuracy", 0.5, task="symbols:T0", objective="preference")], tmp_path)
    assert all(outcome.verdict == NOT_RUN for outcome in found.values())
