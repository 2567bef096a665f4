"""Prompting and context distillation where text is sampled: the paper's figures 2 (right), 8 to 10 and 22 to 24.

Toxicity and code are rows of `hhh_jax.evals.battery`, Elo those of `hhh_jax.elo`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hhh_jax.figures import style
from hhh_jax.figures.prompting import arms_of, draw_arms, evaluated, pooled
from hhh_jax.summary import size_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE_COLORS = ("#c6dbef", "#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c", "#08306b")
"""From small to large: lightness tells them apart."""


Z = 1.96
"""Standard errors from the middle to the end of a 95% interval."""


def elo(table: "pd.DataFrame") -> "Figure":
    """Figure 9: Elo by model size, a line a kind of model. Bars are one standard error, as the paper's seem to be.

    The paper's bars would at 95% imply 4,800 comparisons for four pairs of models, of about 6,000 for all fourteen, and
    as one standard error 1,300. The table's intervals are at 95%, so they are divided by 1.96.
    """
    rows = style.need(evaluated(table, metric="elo"), "Elo scores")
    figure, axes = style.new_figure(panel=(4.6, 3.3))
    ax = axes[0, 0]
    for arm, (label, color, marker) in arms_of(rows).items():
        line = rows[rows["intervention"] == arm].copy()
        half = ((line["hi"] - line["lo"]) / 2 / Z).fillna(0.0)
        line["lo"], line["hi"] = line["value"] - half, line["value"] + half
        style.band(ax, line, "N", label, color, marker)
    style.size_axis(ax, sorted(rows["N"].astype(float).unique()))
    ax.set_ylabel("Elo")
    ax.set_title("Human preference" + ("" if rows["lo"].notna().any() else " (rates: no bars)"))
    style.legend_below(figure, [ax], columns=3)
    return figure


def toxicity_density(table: "pd.DataFrame") -> "Figure":
    """Figure 24: density of the samples' toxicity on a log axis: the bare model by size, and the largest by arm."""
    tasks = ["toxicity:toxic", "toxicity:nontoxic"]
    rows = style.need(evaluated(table, task=tasks, metric="toxicity_density"), "the density of toxicity")
    largest = rows[rows["N"] == rows["N"].max()]
    bare = rows[rows["intervention"] == ""]
    sizes = sorted(bare["N"].unique())
    figure, axes = style.new_figure(2, 2, panel=(3.6, 2.5), sharex=True)
    for line, task in zip(axes, tasks, strict=True):
        for index, n in enumerate(sizes):
            color = SIZE_COLORS[round((len(SIZE_COLORS) - 1) * (index + 1) / len(sizes))]
            own = bare[(bare["task"] == task) & (bare["N"] == n)]
            _density(line[0], own, f"no intervention, {size_name(n)}", color)
        for arm, (label, color, _) in arms_of(largest).items():
            _density(line[1], largest[(largest["task"] == task) & (largest["intervention"] == arm)], label, color)
        kind = task.partition(":")[2]
        line[0].set_title(f"{kind} prompts, by size")
        line[1].set_title(f"{kind} prompts, {size_name(float(rows['N'].max()))}")
        line[0].set_ylabel("density per factor of 10")
    for ax in axes[1]:
        ax.set_xlabel("toxicity of a sample")
    style.legend_below(figure, list(axes.flat), columns=3)
    return figure


def _density(ax: "Axes", rows: "pd.DataFrame", label: str, color: str) -> None:
    """A smooth curve through the rows, its interval as a band; `k` is 100 times the decimal logarithm of a score."""
    if not len(rows):
        return
    from scipy.interpolate import pchip_interpolate

    line = pooled(rows, "k")
    places = line["k"].to_numpy(float)
    between = np.linspace(places[0], places[-1], 10 * len(places) - 9)
    value, lo, hi = (pchip_interpolate(places, line[end], between) for end in ("value", "lo", "hi"))
    ax.plot(10 ** (between / 100), value, color=color, linewidth=1.4, label=label)
    ax.fill_between(10 ** (between / 100), lo, hi, color=color, alpha=0.2, linewidth=0)
    ax.set_xscale("log")


def toxicity(table: "pd.DataFrame") -> "Figure":
    """Figures 8 and 22: mean toxicity after toxic and nontoxic prompts; dashed where nothing is forbidden."""
    return _toxicity(table, (("toxicity", "mean toxicity"),))


def toxicity_extremes(table: "pd.DataFrame") -> "Figure":
    """Figure 23: expected maximum over a prompt's samples, and the share of prompts with any toxic sample."""
    measures = (("toxicity_expected_maximum", "expected maximum"), ("toxicity_probability", "probability"))
    return _toxicity(table, measures)


def _toxicity(table: "pd.DataFrame", measures: Sequence[tuple[str, str]]) -> "Figure":
    tasks = ["toxicity:toxic", "toxicity:nontoxic"]
    both = [*tasks, *(task.replace(":", "_free:") for task in tasks)]
    rows = style.need(evaluated(table, task=both, metric=[name for name, _ in measures]), "toxicity")
    figure, axes = style.new_figure(2, len(measures))
    for line, (metric, label) in zip(axes, measures, strict=True):
        for ax, task in zip(line, tasks, strict=True):
            measured = rows[rows["metric"] == metric]
            draw_arms(ax, measured[measured["task"] == task], label)
            free = measured[measured["task"] == task.replace(":", "_free:")]
            for arm, (name, color, marker) in arms_of(free).items():
                line_of = pooled(free[free["intervention"] == arm])
                look: dict[str, Any] = {
                    "linestyle": "--",
                    "linewidth": 1.0,
                    "markerfacecolor": "white",
                    "markeredgecolor": color,
                }
                style.band(ax, line_of, "N", f"{name}, nothing forbidden", color, marker, **look)
            ax.set_title(f"{task.partition(':')[2]} prompts")
    style.legend_below(figure, list(axes.flat), columns=3)
    return figure


def code(table: "pd.DataFrame") -> "Figure":
    """Figures 2 (right) and 10: pass@1 and pass@10 without and with the prompt."""
    rows = style.need(evaluated(table, task=["humaneval", "quixbugs"], metric="pass@k"), "HumanEval or QuixBugs")
    tasks = sorted(rows["task"].unique())
    figure, axes = style.new_figure(len(tasks), 2, sharex=True)
    for line, k in zip(axes, (1, 10), strict=True):
        for ax, task in zip(line, tasks, strict=True):
            draw_arms(ax, rows[(rows["task"] == task) & (rows["k"] == k)], f"pass@{k}")
            ax.set_title(task)
    style.legend_below(figure, list(axes.flat), columns=3)
    return figure


FIGURES = {
    "figure9": style.Drawing(
        elo,
        "Elo of human preference",
        "As the paper's figure 9, from a file of comparisons (python -m hhh_jax.elo comparisons.csv --results=DIR). "
        "Bars are one standard error of the difference from the first model, and there are none where only rates are "
        "known. The paper's table 2, fitted with equal weights, gives 0, 108, 172, 288 and 301 where its figure has "
        "0, 103, 177, 277 and 297: the numbers of comparisons are unpublished.",
        numbers=(9,),
        stage="evaluate",
    ),
    "figure8": style.Drawing(
        toxicity,
        "Toxicity",
        "As the paper's figures 8 and 22. Mean toxicity of samples after toxic and nontoxic prompts, by the scorer "
        "that was given. Dashed: where a prompted or distilled model may sample what would end its turn.",
        numbers=(8, 22),
        stage="evaluate",
    ),
    "figure10": style.Drawing(
        code,
        "Code, with and without the prompt",
        "As the paper's figures 2 (right) and 10. pass@1 and pass@10 by the unbiased estimator.",
        numbers=(2, 10),
        stage="evaluate",
    ),
    "figure23": style.Drawing(
        toxicity_extremes,
        "Toxicity: expected maximum and probability",
        "As the paper's figure 23, over the samples of each prompt.",
        numbers=(23,),
        stage="evaluate",
    ),
    "figure24": style.Drawing(
        toxicity_density,
        "How toxicity is distributed",
        "As the paper's figure 24: density of all samples' toxicity by a Gaussian kernel on a logarithmic axis, each "
        "curve with an area of 1. In the paper the curves of a panel share an area of 1 (each integrates to 1/7 on the "
        "left and 1/3 on the right).",
        numbers=(24,),
        stage="evaluate",
    ),
}
