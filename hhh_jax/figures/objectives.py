"""Preference modeling against imitation: the paper's figures 3, 14 and 15, and the control of format."""

from typing import TYPE_CHECKING

from hhh_jax.figures import style
from hhh_jax.summary import DPO_GAIN, FORMAT_TWIN, PM_GAIN, task_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHES = (
    (0, ()), (0, (4, 1.5)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5)), (0, (8, 2)), (0, (1, 3)), (0, (7, 2, 1, 2, 1, 2)),
)  # fmt: skip
"""Of the lines of tasks."""
KINDS = {"ranked": (style.VERMILION, "o"), "binary": (style.BLUE, "s")}


def gain(table: "pd.DataFrame") -> "Figure":
    """Figure 3: accuracy of preference modeling minus imitation against N; a thin line a task, a thick one a
    mean. DPO minus imitation in a panel of its own, where it was run."""
    rows = style.select(table, stage="summary", metric="accuracy_gain", intervention="", init="lm")
    panels = {
        objective: rows[rows["objective"] == objective]
        for objective in (PM_GAIN, DPO_GAIN)
        if (rows["task"][rows["objective"] == objective].str.startswith("mean:")).any()
    }
    if PM_GAIN not in panels:
        raise style.NoRows("no rows of preference modeling and imitation on the same task")
    figure, axes = style.new_figure(len(panels), panel=(4.6, 3.3), sharey=True)
    for ax, (objective, gains) in zip(axes[0], panels.items(), strict=True):
        _gain_panel(ax, gains)
        ax.set_title({PM_GAIN: "Preference modeling minus imitation", DPO_GAIN: "DPO minus imitation"}[objective])
    axes[0, 0].set_ylabel("accuracy gain over imitation")
    style.legend_below(figure, list(axes[0]), columns=2 * len(panels))
    return figure


def _gain_panel(ax: "Axes", rows: "pd.DataFrame") -> None:
    from hhh_jax.data.datasets import kind as kind_of

    style.zero_line(ax)
    tasks = [t for t in sorted(rows["task"].unique()) if not t.startswith("mean:") and t != "ranked-binary"]
    for index, task in enumerate(t for t in tasks if t not in FORMAT_TWIN.values()):
        color, _ = KINDS[kind_of(task)]
        line = rows[rows["task"] == task]
        dashes = DASHES[index % len(DASHES)]
        label = f"{task_name(task)} ({kind_of(task)})"
        ax.plot(
            line["N"].astype(float),
            line["value"],
            color=color,
            alpha=0.5,
            linewidth=1,
            linestyle=dashes,
            label=label,
        )
    for shift, (kind, (color, marker)) in zip((-0.012, 0.012), KINDS.items(), strict=True):
        mean = rows[rows["task"] == f"mean:{kind}"]
        if len(mean):
            style.band(
                ax, mean, "N", f"mean over {kind} tasks", color, marker, shift, linewidth=2.2, markersize=6
            )
    style.size_axis(ax, sorted(rows["N"].astype(float).unique()))


def tasks(table: "pd.DataFrame") -> "Figure":
    """Figures 14 and 15: a panel a task, accuracy against N of both objectives, the untuned model and the
    baselines."""
    from hhh_jax.data.datasets import kind as kind_of

    rows = style.select(
        table, stage="summary", objective=["preference", "imitation"], init="lm", metric="accuracy", intervention=""
    )
    rows = style.need(
        rows[~rows["task"].str.startswith(("symbols:", "mean:"))], "finetuning from the language model"
    )
    names = [t for t in rows["task"].unique() if t not in FORMAT_TWIN.values()]
    names = sorted(names, key=lambda t: (kind_of(t) != "ranked", t))
    columns = min(len(names), 2 if len(names) <= 4 else 3)
    figure, axes = style.new_figure(columns, -(-len(names) // columns), sharey=True)
    for ax, task in zip(axes.flat, names, strict=False):
        accuracy_panel(ax, table, task)
        ax.set_title(f"{task_name(task)} ({kind_of(task)})")
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    for ax in axes[:, 0]:
        ax.set_ylabel("test accuracy")
    style.legend_below(figure, list(axes.flat), columns=2 if columns == 1 else 4)
    return figure


def accuracy_panel(ax: "Axes", table: "pd.DataFrame", task: str) -> None:
    """Accuracy on one task against N: objectives and untuned model with seeds and intervals, baselines as
    thin lines."""
    baselines = style.select(table, stage="baseline", task=task, metric="accuracy")
    for row in baselines.itertuples():
        name, dashes = style.BASELINES[row.ranker]
        ax.axhline(row.value, color=style.GRAY, linewidth=0.8, linestyle=dashes, label=name, zorder=1)
    arms = style.select(table, task=task, metric="accuracy", intervention="", init=["lm", ""])
    sizes: set[float] = set()
    for shift, objective in ((0.02, "untuned"), (-0.02, "imitation"), (0.0, "preference"), (0.04, "dpo")):
        name, color, marker = style.OBJECTIVES[objective]
        rows = main_rows(arms[arms["objective"] == objective])
        pooled, each = rows[rows["stage"] == "summary"], rows[rows["stage"] != "summary"]
        if len(pooled):
            style.seeds(ax, each, "N", color, shift)
            style.band(ax, pooled, "N", name, color, marker, shift)
            sizes |= set(pooled["N"].astype(float))
    style.size_axis(ax, sorted(sizes))


def main_rows(rows: "pd.DataFrame") -> "pd.DataFrame":
    """The rows with the largest number of pairs (all, where pairs do not apply)."""
    return rows[rows["pairs_total"].isna() | (rows["pairs_total"] == rows["pairs_total"].max()).fillna(False)]


def task_or_format(table: "pd.DataFrame") -> "Figure":
    """The same comparisons posed as ranked pairs and as labels: accuracy in both forms, and the gain in
    both."""
    gains = style.select(table, stage="summary", objective=PM_GAIN, metric="accuracy_gain", intervention="")
    found = [(t, w) for t, w in FORMAT_TWIN.items() if {t, w} <= set(gains["task"])]
    if not found:
        raise style.NoRows("no task was run in both formats with both objectives")
    task, twin = found[0]
    figure, axes = style.new_figure(3, panel=(3.1, 2.8))
    left, middle, right = axes[0]
    middle.sharey(left)
    for ax, name, title in ((left, task, "as ranked pairs"), (middle, twin, "as labels")):
        accuracy_panel(ax, table, name)
        ax.set_title(f"{task_name(task)} {title}")
    left.set_ylabel("test accuracy")
    style.zero_line(right)
    for name, label, color, marker, shift in (
        (task, "gain as ranked pairs", style.GREEN, "D", -0.015),
        (twin, "gain as labels", style.PURPLE, "v", 0.015),
    ):
        style.band(right, gains[gains["task"] == name], "N", label, color, marker, shift)
    style.size_axis(right, sorted(gains["N"].astype(float).unique()))
    right.set_ylabel("accuracy gain")
    right.set_title("Gain over imitation")
    style.legend_below(figure, [left, middle, right], columns=5)
    return figure


FIGURES = {
    "figure3": style.Drawing(
        gain,
        "What preference modeling gains over imitation",
        "As the paper's figure 3. Accuracy of preference modeling minus accuracy of imitation on the same "
        "test items: thin lines are tasks, thick ones the means over ranked and over binary tasks with 95% "
        "intervals over seeds and items. Above zero, preference modeling is better. The paper: far above "
        "zero on ranked tasks, about zero on binary ones, at every size. Where DPO was run, which is not in "
        "the paper, it has a panel of its own: contrast without a scalar head.",
        numbers=(3,),
    ),
    "figures14_15": style.Drawing(
        tasks,
        "Accuracy on every task",
        "As the paper's figures 14 (ranked) and 15 (binary). Large marks are means over seeds with 95% "
        "intervals over seeds and items, faint dots single seeds, thin gray lines the trivial baselines. A "
        "mark that is not above the highest gray line shows nothing that counting words or bytes would not.",
        numbers=(14, 15),
    ),
    "task_or_format": style.Drawing(
        task_or_format,
        "Is it the task or the format?",
        "No figure of the paper. The same comparisons, once as ranked pairs and once as a question with the "
        "answers 1 and 2, which gives imitation the contrast for free. If the gain follows the task the two "
        "lines on the right agree; if it follows the format they part.",
    ),
}
