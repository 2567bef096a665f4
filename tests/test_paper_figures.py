"""The paper's numbers against identities that hold among them, and values that its text states."""

import numpy as np
import pytest

from hhh_jax import figures, stats
from hhh_jax.errors import UserError
from hhh_jax.figures import paper


def values(figure: int, panel: str, series: str) -> np.ndarray:
    rows = paper.curves()
    rows = rows[(rows["figure"] == figure) & (rows["panel"] == panel) & (rows["series"] == series)]
    return rows.sort_values("x")["y"].to_numpy()


@pytest.mark.parametrize("task", ["hellaswag", "learn_to_summarize"])
def test_figure_3_is_the_difference_of_figure_14(task):
    gain = values(14, task, "Preference Modeling") - values(14, task, "Imitation Learning")
    np.testing.assert_allclose(gain, values(3, "main", f"light: {task}"), atol=2e-5)


def test_gains_of_figure_5_are_the_means_of_figure_32():
    for panel in ("500pairs", "5kpairs"):
        gain = values(5, panel, "PMP Mix")[-1] - values(5, panel, "No PMP")[-1]
        assert gain == pytest.approx(values(32, panel, "UPM Mix").mean(), abs=2e-4)


def test_figure_21_counts_whole_questions():
    rows = paper.curves()
    right = rows[rows["figure"] == 21]["y"].to_numpy() * 817
    np.testing.assert_allclose(right, np.round(right), atol=0.02)


def test_values_that_the_text_states():
    assert values(14, "hellaswag", "Preference Modeling")[-1] == pytest.approx(0.9375, abs=5e-5)
    assert values(3, "main", "Mean Over Ranked Evals")[-1] == pytest.approx(0.2095, abs=5e-5)
    assert values(3, "main", "Mean Over Binary Evals")[-1] == pytest.approx(-0.0078, abs=5e-5)


def test_every_panel_has_curves_and_every_curve_a_panel():
    curves, panels = paper.curves(), paper.panels()
    assert set(zip(curves["figure"], curves["panel"], strict=True)) == set(
        zip(panels["figure"], panels["panel"], strict=True)
    )


@pytest.mark.parametrize("figure", [11, 26, 32])
def test_draws_every_series_of_every_panel(figure):
    drawn = paper.draw(figure)
    rows = paper.curves()
    for panel, ax in zip(paper.panels_of(figure)["panel"], drawn.axes, strict=False):
        of_panel = rows[(rows["figure"] == figure) & (rows["panel"] == panel)]
        assert len(ax.get_legend_handles_labels()[1]) == of_panel["series"].nunique()


@pytest.mark.parametrize(
    ("panel", "series", "exponent", "broken"),
    [("stackexch", "StackExch", 0.0054, False), ("reddit", "Reddit", 0.0108, False), ("wiki", "Wiki", 0.0413, True)],
)
def test_power_laws_of_figure_27_are_least_squares(panel, series, exponent, broken):
    """By polynomial least squares of the same digitized points; a curve that bends is called broken."""
    rows = paper.curves()
    rows = rows[(rows["figure"] == 27) & (rows["panel"] == panel) & (rows["series"] == series)]
    slope, level = np.polyfit(np.log(rows["x"]), np.log(rows["y"]), 1)
    line = stats.power_law_line(rows["y"], rows["x"])
    assert (line.exponent, line.coefficient) == pytest.approx((-slope, np.exp(level)))
    assert line.exponent == pytest.approx(exponent, abs=5e-5)
    off = np.abs(np.exp(level + slope * np.log(rows["x"])) / rows["y"] - 1).max()
    assert (off > stats.MISFIT) == broken == bool(stats.flaws(line.misfit))


def test_fits_are_drawn_with_their_exponents():
    labels = paper.draw(27).axes[0].get_legend_handles_labels()[1]
    assert sorted(labels) == ["Mix: exponent 0.0055", "StackExch: exponent 0.0054"]
    broken = paper.draw(28).axes[0].get_legend_handles_labels()[1]
    assert broken == ["Hellaswag: exponent 0.3048\nmisses a loss by 48.1%"]


def test_figure_9_has_bars_and_the_refit_of_table_2():
    (ax,) = paper.draw(9).axes[:1]
    labels = ax.get_legend_handles_labels()[1]
    assert len(labels) == 4 and not any("error bar" in label for label in labels)
    refit = next(line for line in ax.get_lines() if str(line.get_label()).startswith("table 2"))
    scores = sorted(zip(*refit.get_data(), strict=True))
    assert scores[0] == (200_000_000, 0) and scores[-1][1] == pytest.approx(301.4, abs=0.05)
    bars = [path for collection in ax.collections for path in collection.get_segments()]
    assert len(bars) == 4


@pytest.mark.parametrize(("panel", "curves"), [("sizes", 7), ("alignment50B", 3)])
def test_curves_of_figure_24_share_an_area_of_one(panel, curves):
    """Per factor of 10. Some of the right panel's points lie outside its frame."""
    rows = paper.curves()
    areas = [
        np.trapezoid(line["y"], np.log10(line["x"]))
        for _, line in rows[(rows["figure"] == 24) & (rows["panel"] == panel)].sort_values("x").groupby("series")
    ]
    assert areas == pytest.approx([1 / curves] * curves, rel=0.06)


def test_says_what_is_missing(tmp_path):
    with pytest.raises(UserError, match="no curves in a figure 1; there are 2, 3"):
        figures.draw_figure("1", None, tmp_path, with_paper=True)
    with pytest.raises(UserError, match="--results, --paper"):
        figures.draw_figure("3", None, tmp_path, with_paper=False)
    with pytest.raises(UserError, match=r"no figure 1 can be drawn from a results table; there are 2, 3, .*scaling"):
        figures.draw_figure("1", "results.csv", tmp_path, with_paper=False)
