"""The joint fit finds what was planted, and says so where the points do not fix it."""

import itertools
import json

import numpy as np
import pytest

from hhh_jax import results, stats
from hhh_jax.analyses import joint_fit
from hhh_jax.errors import UserError

SIZES, PAIRS = (12288, 98304, 331776), (100, 250, 500, 1000, 2000)
PLANTED = np.array([0.2, 0.15, 0.5, 0.3, 0.7])
POINTS = list(itertools.product(SIZES, PAIRS))


def losses(parameters=PLANTED, noise=0.02, items=400, seeds=3):
    """Samples of every point: items differ alike everywhere, and each has noise of its own."""
    rng = np.random.default_rng(1)
    item_I = rng.normal(0, 0.2, items)
    found = []
    for n, d in POINTS:
        mean = joint_fit.curve(parameters, np.float64(n / SIZES[0]), np.float64(d / PAIRS[0]))
        found.append(mean + item_I - item_I.mean() + rng.normal(0, noise, (seeds, items)))
    return found


def fitted(parameters=PLANTED, **how) -> joint_fit.JointFit:
    samples = [stats.sample(values) for values in losses(parameters, **how)]
    return joint_fit.joint_fit(samples, *zip(*POINTS, strict=True), n_boot=40)


def test_planted_parameters_are_found():
    fit = fitted()
    for (name, estimate), truth in zip(fit.parameters.items(), PLANTED, strict=True):
        assert abs(estimate.value - truth) < estimate.hi - estimate.lo < 0.4 * truth, name
    assert fit.identified == {"E": True, "N": True, "D": True} and fit.misfit < 0.02


def test_without_noise_the_fit_is_exact():
    size, pairs = (np.array(x, float) / min(x) for x in zip(*POINTS, strict=True))
    found = joint_fit.fit_once(joint_fit.curve(PLANTED, size, pairs), size, pairs)
    np.testing.assert_allclose(found, PLANTED, rtol=0.02)


def test_what_makes_no_difference_is_not_identified():
    fit = fitted(np.array([0.3, 0.0, 0.5, 0.3, 0.7]))
    assert not fit.identified["N"] and fit.identified["D"]
    assert not fitted(np.array([0.3, 0.2, 0.5, 0.0, 0.7])).identified["D"]


def test_a_line_without_an_end_has_no_identified_rest():
    fit = fitted(np.array([0.0, 0.2, 0.4, 0.4, 0.2]), noise=0.3)
    assert not fit.identified["E"]


def test_losses_of_another_form_are_not_described():
    """Nothing is learned from few pairs, and then all at once."""
    steps = np.where(np.array(POINTS)[:, 1] > 500, 0.3, 0.69)
    rng = np.random.default_rng(0)
    samples = [stats.sample(step + rng.normal(0, 0.02, (3, 400))) for step in steps]
    fit = joint_fit.joint_fit(samples, *zip(*POINTS, strict=True), n_boot=20)
    assert fit.misfit > joint_fit.MISFIT and not any(fit.identified.values())


def test_few_points_are_refused():
    sample = stats.sample(np.ones((2, 10)))
    with pytest.raises(ValueError, match="six points"):
        joint_fit.joint_fit([sample] * 6, [10] * 6, PAIRS[:5] + (50,))


def test_rows_of_a_study(tmp_path):
    """The job reads runs and writes each point, the parameters and what is identified."""
    runs = {}
    for (n, d), loss_SxI in zip(POINTS, losses(items=30), strict=True):
        folder = tmp_path / f"run-{n}-{d}"
        folder.mkdir()
        row = {"metric": "pm_loss", "task": "t", "N": n, "n_layer": 1, "pairs_total": d, "ladder": "cpu", "init": "lm"}
        (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
        margin_SxI = -np.log(np.expm1(np.maximum(loss_SxI, 1e-3)))
        items = [
            {"task": "t", "split": "test", "selection": "best", "seed": s, "item_id": f"{i:02}", "group_id": f"{i}",
             "option": option, "reward": sign * margin_SxI[s, i] / 2}
            for s in range(3) for i in range(30) for option, sign in (("good", 1), ("bad", -1))
        ]  # fmt: skip
        (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
        runs[folder.name] = folder
    output = tmp_path / "fit"
    output.mkdir()
    joint_fit.job(output, after=None, study="s", **runs)
    rows = [json.loads(line) for line in (output / "rows.jsonl").read_text().splitlines()]
    assert all(set(row) <= set(results.COLUMNS) for row in rows)
    points = {(row["N"], row["pairs_total"]): row["value"] for row in rows if row["metric"] == "pm_loss"}
    expected = [np.maximum(loss, 1e-3).mean() for loss in losses(items=30)]
    np.testing.assert_allclose([points[point] for point in POINTS], expected, rtol=1e-9)
    saved = {row["metric"]: row["value"] for row in rows if row["metric"].startswith("saved:")}
    assert saved["saved:pairs"] == pytest.approx(points[SIZES[-1], 100] - points[SIZES[-1], 2000])
    assert saved["saved:size"] == pytest.approx(points[SIZES[0], 2000] - points[SIZES[-1], 2000])
    found = {row["metric"]: row["value"] for row in rows if row["metric"].startswith("joint:")}
    assert found["joint:A"] == pytest.approx(0.15, rel=0.4) and found["joint:identified:D"] in (0.0, 1.0)
    (output / "items.jsonl").unlink()
    other = runs.popitem()[1]
    text = (other / "items.jsonl").read_text().replace('"item_id": "00"', '"item_id": "x"')
    (other / "items.jsonl").write_text(text)
    with pytest.raises(UserError, match="same test items"):
        joint_fit.job(output, after=None, study="s", other=other, **runs)
