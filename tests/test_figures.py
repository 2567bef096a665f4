"""Figures draw the table's numbers, skip what is missing, and come out the same every time."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.container import ErrorbarContainer
from simulated_study import PAIRS, PMP_SIZE, SIZES, simulated

from hhh_jax import figures, results
from hhh_jax.figures import style
from hhh_jax.summary import Study, summarize


@pytest.fixture(autouse=True)
def house_style():
    with matplotlib.rc_context(style.RC):
        yield


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder, out = simulated(), tmp_path_factory.mktemp("summary")
    measured = results.read_table(folder / "results.csv")
    results.write_table(summarize(Study(measured, folder / "runs")), out / "summary.csv")
    return pd.concat([measured, results.read_table(out / "summary.csv")], ignore_index=True)


def _lines(ax):
    """label -> (x, y, lo, hi) of lines with intervals, (x, y) of plain ones."""
    lines = {}
    for container in ax.containers:
        if isinstance(container, ErrorbarContainer):
            x, y = (np.asarray(v, float) for v in container.lines[0].get_data())
            ends = np.array([segment[:, 1] for segment in container.lines[2][0].get_segments()])
            lines[container.get_label()] = (x, y, ends[:, 0], ends[:, 1])
    for line in ax.get_lines():
        if not line.get_label().startswith("_"):
            lines.setdefault(line.get_label(), tuple(np.asarray(v, float) for v in line.get_data()))
    return lines


def _value(table, **where):
    rows = style.select(table, **where)
    assert len(rows) == 1, where
    return rows.iloc[0]


def test_figure_3_draws_the_gains(table):
    (ax,) = figures.FIGURES["figure3"].draw(table).axes
    lines = _lines(ax)
    where = {
        "stage": "summary",
        "objective": "preference-imitation",
        "metric": "accuracy_gain",
        "intervention": "",
    }
    for kind in ("ranked", "binary"):
        x, y, lo, hi = lines[f"mean over {kind} tasks"]
        np.testing.assert_allclose(x, SIZES, rtol=0.05)
        rows = [_value(table, task=f"mean:{kind}", N=n, **where) for n in SIZES]
        np.testing.assert_allclose(
            [y, lo, hi], [[getattr(row, c) for row in rows] for c in ("value", "lo", "hi")]
        )
    expected = [_value(table, task="word_order", N=n, **where).value for n in SIZES]
    np.testing.assert_allclose(lines["Word order (ranked)"], [SIZES, expected])
    assert not any("labels" in label for label in lines)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["12k", "98k", "332k", "786k"]
    assert ax.get_xscale() == "log"


def test_figures_14_and_15_draw_every_arm_and_baseline(table):
    figure = figures.FIGURES["figures14_15"].draw(table)
    panels = {ax.get_title(loc="left"): ax for ax in figure.axes}
    titles = [
        "Line order (ranked)",
        "Word order (ranked)",
        "Docstring match (binary)",
        "Intact or mixed? (binary)",
    ]
    assert list(panels) == titles
    panel = panels["Line order (ranked)"]
    lines = _lines(panel)
    where = {"stage": "summary", "task": "line_order", "metric": "accuracy", "intervention": ""}
    arms = {
        "untuned LM": {"objective": "untuned"},
        "imitation": {"objective": "imitation"},
        "preference modeling": {"objective": "preference", "init": "lm", "pairs_total": PAIRS[-1]},
    }
    for name, arm in arms.items():
        np.testing.assert_allclose(lines[name][1], [_value(table, N=n, **where, **arm).value for n in SIZES])
    for ranker in ("chance", "shorter", "longer", "bag_of_words"):
        value = _value(table, stage="baseline", task="line_order", ranker=ranker).value
        assert set(lines[style.BASELINES[ranker][0]][1]) == {value}
    dots = [len(dots.get_offsets()) for dots in panel.collections if isinstance(dots, PathCollection)]
    assert dots == [3 * len(SIZES)] * 3  # three objectives, a dot a seed


def test_no_figure_fails_where_every_run_differs_by_an_intervention(table):
    assert all(figure for _, figure in figures.each_of(table.assign(intervention="flip_10")))
    with pytest.raises(style.NoRows, match="finetuning from the language model"):
        figures.FIGURES["figures14_15"].draw(table.assign(intervention="flip_10"))


def test_figure_4_draws_accuracy_and_gain_over_pairs(table):
    left, right = figures.FIGURES["figure4"].draw(table).axes
    where = {"stage": "summary", "task": "mean:all", "N": PMP_SIZE}
    with_pmp = {"init": "pmp:stdlib:binary"}
    gains = [_value(table, objective="pmp-no_pmp", pairs_total=p, **with_pmp, **where).value for p in PAIRS]
    np.testing.assert_allclose(_lines(right)["PMP on stdlib"][1], gains)
    both = [
        [_value(table, objective="preference", init=init, pairs_total=p, **where).value for p in PAIRS]
        for init in ("pmp:stdlib:binary", "lm")
    ]
    np.testing.assert_allclose([_lines(left)[name][1] for name in ("PMP on stdlib", "no PMP")], both)
    np.testing.assert_allclose(gains, np.subtract(*both))


def test_figure_32_draws_few_and_many_pairs(table):
    (ax,) = figures.FIGURES["figure32"].draw(table).axes
    labels = [tick.get_text() for tick in ax.get_yticklabels()]
    assert labels == ["Mean", "Docstring match", "Line order", "Intact or mixed?", "Word order"]
    for container, pairs in zip(ax.containers, (PAIRS[0], PAIRS[-1]), strict=True):
        x, y = (np.asarray(v, float) for v in container.lines[0].get_data())
        assert container.get_label() == f"{pairs} pairs" and np.round(y).tolist() == [0, 1, 2, 3, 4]
        where = {"objective": "pmp-no_pmp", "init": "pmp:stdlib:binary", "pairs_total": pairs}
        assert x[0] == pytest.approx(_value(table, task="mean:all", **where).value)
        assert x[4] == pytest.approx(_value(table, task="word_order", **where).value)


def test_figure_33_draws_every_start(table):
    (ax,) = figures.FIGURES["figure33"].draw(table).axes
    lines = _lines(ax)
    assert len(lines) == 7
    where = {"stage": "summary", "task": "symbols:T0", "metric": "accuracy"}
    for label, init in (
        ("no PMP", "lm"),
        ("T1, weakly scrambled", "pmp:symbols:T1:ranked"),
        ("Tb, binary", "pmp:symbols:Tb:binary"),
    ):
        expected = [_value(table, init=init, pairs_total=p, **where).value for p in PAIRS]
        np.testing.assert_allclose(lines[label][1], expected)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [str(p) for p in PAIRS]


def test_scaling_draws_the_fit(table):
    (ax,) = figures.FIGURES["scaling"].draw(table).axes
    lines = _lines(ax)
    x, y = next(line for label, line in lines.items() if label.startswith("power law"))
    exponent = _value(table, metric="fit:exponent").value
    np.testing.assert_allclose(np.diff(np.log(y)) / np.diff(np.log(x)), -exponent)
    losses = [_value(table, stage="summary", metric="loss", task="stdlib", N=n).value for n in SIZES]
    np.testing.assert_allclose(lines["measured"][1], losses)


def test_format_figure_draws_both_gains(table):
    *_, right = figures.FIGURES["task_or_format"].draw(table).axes
    where = {"objective": "preference-imitation", "metric": "accuracy_gain", "intervention": ""}
    for label, task in (("gain as ranked pairs", "word_order"), ("gain as labels", "word_order_label")):
        expected = [_value(table, task=task, N=n, **where).value for n in SIZES]
        np.testing.assert_allclose(_lines(right)[label][1], expected)


def test_what_is_missing_is_skipped_with_a_reason(table, tmp_path):
    part = table[table["task"] == "stdlib"]
    drawn = figures.draw_all(part, tmp_path)
    assert set(drawn.paths) == {"scaling"}
    concerned = {name for name, drawing in figures.FIGURES.items() if style.concerns(part, drawing)}
    assert set(drawn.skipped) == concerned - {"scaling"}
    assert all(reason for reason in drawn.skipped.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scaling.pdf", "scaling.png"]
    nothing = figures.draw_all(table[table["task"] == "no such task"], tmp_path)
    assert not nothing.paths and "figure3" in nothing.skipped and "figure4" not in nothing.skipped


def test_the_same_rows_give_the_same_bytes(table, tmp_path):
    for folder, seed in (("a", 0), ("b", 1)):
        (tmp_path / folder).mkdir()
        for name in ("figure3", "figure33"):
            figure = figures.FIGURES[name].draw(table.sample(frac=1, random_state=seed))
            style.save(figure, tmp_path / folder / f"{name}.png")
    for name in ("figure3.png", "figure3.pdf", "figure33.png", "figure33.pdf"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_colors_are_told_apart_without_hue():
    """Objectives that share a panel also differ in marker, baselines in dashes."""
    assert len({marker for _, _, marker in style.OBJECTIVES.values()}) == len(style.OBJECTIVES)
    assert len({str(dashes) for _, dashes in style.BASELINES.values()}) == len(style.BASELINES)


@pytest.mark.parametrize("panels", [1, 3])
def test_a_legend_stays_within_the_figure(panels):
    """A narrow figure puts long names one under the other; a wide one has all in a row."""
    figure, axes = style.new_figure(panels)
    for name in ("no intervention", "dialogue form alone", "distilled"):
        axes[0, 0].plot([1, 2], label=name)
    style.legend_below(figure, list(axes[0]))
    figure.draw_without_rendering()
    (legend,) = figure.legends
    left, right = legend.get_window_extent().intervalx
    assert figure.bbox.x0 <= left < right <= figure.bbox.x1
    heights = {text.get_window_extent().y0 for text in legend.get_texts()}
    assert (len(heights) == 1) == (panels == 3)
