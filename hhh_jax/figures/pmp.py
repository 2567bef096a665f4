"""Preference model pre-training: the paper's figures 4, 5, 16, 17, 27, 28, 32 and 33."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hhh_jax.figures import style
from hhh_jax.summary import PMP_GAIN, pmp_source, size_name, task_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SOURCE_COLORS = (style.GREEN, style.ORANGE, style.PURPLE, style.SKY)
TASK_COLORS = (style.BLUE, style.VERMILION, style.GREEN, style.ORANGE, style.PURPLE, style.SKY, style.GRAY)
MARKERS = "oDvXP^s"
CONTROLS = {"shuffled": ("PMP on shuffled labels", "v", (0, (1, 1))), "lm_alone": ("LM loss alone", "^", (0, (4, 2)))}
SYMBOL_ARMS = {  # start -> name, color, marker
    "lm": ("no PMP", style.BLACK, "o"),
    "T0": ("T0, the true ranking", style.GRAY, "p"),
    "T1": ("T1, weakly scrambled", "#084594", "s"),
    "T2": ("T2, moderately", "#2171b5", "D"),
    "T3": ("T3, strongly", "#6baed6", "^"),
    "T4": ("T4, very strongly", "#9ecae1", "v"),
    "Tb": ("Tb, binary", style.VERMILION, "X"),
}


def binary_gains(table: "pd.DataFrame", intervention: str = "") -> "pd.DataFrame":
    """Rows of the gains of binary PMP. Raises NoRows if there are none."""
    where = {"stage": "summary", "objective": PMP_GAIN, "metric": "accuracy_gain", "intervention": intervention}
    gains = style.select(table, **where)
    gains = gains[gains["init"].str.endswith(":binary")]
    return gains if intervention else style.need(gains, "finetuning with and without PMP")


def has_gains(table: "pd.DataFrame") -> bool:
    """Whether finetuning with and without PMP was done."""
    return bool((table["objective"] == PMP_GAIN).any())


def _has_curves(table: "pd.DataFrame") -> bool:
    return has_gains(table) and bool((table["curve"] == "within_run").any())


def several_sizes(table: "pd.DataFrame") -> bool:
    """Whether finetuning with and without PMP was done at two sizes or more."""
    return table[(table["objective"] == PMP_GAIN) & (table["intervention"] == "")]["N"].nunique() > 1


def few_and_many(rows: "pd.DataFrame") -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """The rows at each size's smallest and largest number of pairs; tasks drop a few at some sizes."""
    pairs = rows.groupby("N")["pairs_total"]
    return rows[rows["pairs_total"] == pairs.transform("min")], rows[rows["pairs_total"] == pairs.transform("max")]


def starts(inits: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """init, name, color and marker of finetuning without PMP and with PMP on each source."""
    sources = sorted({init for init in inits if init.endswith(":binary") and not init.startswith("pmp:symbols")})
    colored = zip(sources, SOURCE_COLORS, MARKERS, strict=False)
    named = [(init, f"PMP on {task_name(pmp_source(init) or '')}", color, marker) for init, color, marker in colored]
    return [("lm", "no PMP", style.BLACK, "s"), *named]


def pmp_pairs(table: "pd.DataFrame") -> "Figure":
    """Figure 4: mean accuracy with and without (binary) PMP, and its gain, against the number of finetuning pairs."""
    gains = binary_gains(table)
    gains = style.need(gains[gains["task"] == "mean:all"], "finetuning on every task with and without PMP")
    gains = gains[gains["N"] == gains["N"].max()]
    n = gains["N"].iloc[0]
    where = {"stage": "summary", "objective": "preference", "task": "mean:all", "metric": "accuracy", "N": n}
    accuracy = style.select(table, intervention="", **where)
    figure, axes = style.new_figure(2, panel=(3.3, 2.8))
    left, right = axes[0]
    style.zero_line(right)
    arms = starts(gains["init"].unique())
    for index, (init, name, color, marker) in enumerate(arms):
        shift = 0.02 * (index - (len(arms) - 1) / 2)
        style.band(left, accuracy[accuracy["init"] == init], "pairs_total", name, color, marker, shift)
        if init != "lm":
            style.band(right, gains[gains["init"] == init], "pairs_total", name, color, marker, shift)
    for index, (control, (name, marker, dashes)) in enumerate(CONTROLS.items()):
        rows = binary_gains(table, control)
        rows = rows[(rows["task"] == "mean:all") & (rows["N"] == n)]
        if len(rows):
            style.band(right, rows, "pairs_total", name, style.GRAY, marker, 0.02 * (index + 2), linestyle=dashes)
    for ax in axes[0]:
        style.pairs_axis(ax, sorted(gains["pairs_total"].astype(float).unique()))
    left.set_ylabel("accuracy, mean over tasks")
    left.set_title(f"With and without PMP (N = {size_name(n)})")
    right.set_ylabel("accuracy gain")
    right.set_title("PMP minus no PMP")
    style.legend_below(figure, [left, right], columns=3)
    return figure


def _mean_over_sizes(table: "pd.DataFrame", metric: str, label: str) -> "Figure":
    where = {"stage": "summary", "objective": "preference", "task": "mean:all", "metric": metric, "intervention": ""}
    rows = style.select(table, **where)
    binary = style.need(rows[rows["init"].str.endswith(":binary")], "finetuning on every task with and without PMP")
    rows = rows[rows["N"].isin(binary["N"])]
    figure, axes = style.new_figure(2, panel=(3.3, 2.8), sharey=True)
    for ax, part in zip(axes[0], few_and_many(rows), strict=True):
        arms = starts(part["init"].unique())
        for index, (init, name, color, marker) in enumerate(arms):
            style.band(ax, part[part["init"] == init], "N", name, color, marker, 0.02 * (index - len(arms) / 2))
        style.size_axis(ax, sorted(part["N"].astype(float).unique()))
        ax.set_title(f"{part['pairs_total'].max()} finetuning pairs")
    axes[0, 0].set_ylabel(f"{label}, mean over tasks")
    style.legend_below(figure, list(axes[0]), columns=3)
    return figure


def pmp_sizes(table: "pd.DataFrame") -> "Figure":
    """Figure 5: mean accuracy with and without PMP against size, with few pairs and with many."""
    return _mean_over_sizes(table, "accuracy", "accuracy")


def pmp_sizes_loss(table: "pd.DataFrame") -> "Figure":
    """Figure 16: the same in PM loss."""
    return _mean_over_sizes(table, "pm_loss", "PM loss (nats)")


def pmp_curves(table: "pd.DataFrame") -> "Figure":
    """Figure 17: accuracy on each task against the number of pairs, of separate runs and within the longest one."""
    gains = binary_gains(table)
    tasks = sorted(set(gains["task"]) - {"mean:all"})
    n = gains["N"].max()
    rows = style.select(table, objective="preference", task=tasks, N=n, intervention="")
    pooled = rows[(rows["stage"] == "summary") & (rows["metric"] == "accuracy")]
    within = rows[(rows["curve"] == "within_run") & (rows["metric"] == "accuracy_final")]
    figure, axes = style.panels(len(tasks))
    for ax, task in zip(axes, tasks, strict=True):
        seen = set(pooled["pairs_total"])
        for init, name, color, marker in starts(gains["init"].unique()):
            arm = pooled[(pooled["task"] == task) & (pooled["init"] == init)]
            style.band(ax, arm, "pairs_total", name, color, marker)
            curve = within[(within["task"] == task) & (within["init"] == init)].groupby("pairs_seen")["value"].mean()
            if len(curve):
                ax.plot(curve.index.astype(float), curve, color=color, linewidth=0.9, linestyle=(0, (2, 1.5)))
        style.zero_line(ax, 0.5)
        style.pairs_axis(ax, sorted(map(float, seen)))
        ax.set_title(task_name(task))
    axes[0].set_ylabel("accuracy")
    axes[0].plot([], [], color=style.GRAY, linewidth=0.9, linestyle=(0, (2, 1.5)), label="within one run")
    style.legend_below(figure, axes, columns=3)
    return figure


def pmp_losses(table: "pd.DataFrame") -> "Figure":
    """Figure 28: PM loss after finetuning on the most pairs, with (binary) PMP and without, against size."""
    gains = binary_gains(table)
    tasks = sorted(set(gains["task"]) - {"mean:all"})
    rows = style.select(table, stage="summary", objective="preference", task=tasks, metric="pm_loss", intervention="")
    rows = style.need(rows[rows["N"].isin(gains["N"])], "PM loss after finetuning")
    _, rows = few_and_many(rows.assign(pairs_total=rows.groupby(["N", "task"])["pairs_total"].rank(method="dense")))
    inits = starts(gains["init"].unique())
    figure, axes = style.panels(len(inits), sharey=True)
    for ax, (init, name, _, _) in zip(axes, inits, strict=True):
        for index, (task, color) in enumerate(zip(tasks, TASK_COLORS, strict=False)):
            arm = rows[(rows["task"] == task) & (rows["init"] == init)]
            shift = 0.02 * (index - (len(tasks) - 1) / 2)
            style.band(ax, arm, "N", task_name(task), color, MARKERS[index % len(MARKERS)], shift)
        style.zero_line(ax, math.log(2))
        style.size_axis(ax, sorted(rows["N"].astype(float).unique()))
        ax.set_title(name)
    axes[0].set_ylabel("PM loss (nats)")
    style.legend_below(figure, axes)
    return figure


def pmp_itself(table: "pd.DataFrame") -> "Figure":
    """Figure 27: loss and accuracy of (binary) PMP on held-out pairs of each source, of that source and of the mix."""
    rows = style.select(table, stage="summary", objective="pmp", intervention="")
    sources = _sources(rows)
    if not sources:
        raise style.NoRows("no rows of PMP on one source at several sizes")
    figure, axes = style.new_figure(len(sources), 2, panel=(2.9, 2.5), sharex=True, sharey="row")
    for column, source in zip(axes.T, sources, strict=True):
        here = rows[rows["task"] == source]
        others = sorted(set(here["init"]) - {"lm"})
        for ax, metric, chance in zip(column, ("pm_loss", "accuracy"), (math.log(2), 0.5), strict=True):
            style.zero_line(ax, chance)
            for index, (init, color) in enumerate(zip(("lm", *others), (style.BLUE, *SOURCE_COLORS), strict=False)):
                arm = here[(here["init"] == init) & (here["metric"] == metric)]
                arm = arm[arm["pairs_total"] == arm.groupby("N")["pairs_total"].transform("max")]
                name = "PMP on this source" if init == "lm" else f"PMP on {task_name(pmp_source(init) or '')}"
                style.band(ax, arm, "N", name, color, MARKERS[index], 0.01 * (2 * index - 1))
        style.size_axis(column[1], sorted(here["N"].astype(float).unique()))
        column[0].set_title(f"Held-out {task_name(source)}")
    axes[0, 0].set_ylabel("PM loss (nats)")
    axes[1, 0].set_ylabel("accuracy")
    style.legend_below(figure, list(axes[0]))
    return figure


def _sources(rows: "pd.DataFrame") -> list[str]:
    """Sources on which PMP was done at two sizes or more."""
    sizes = rows[rows["init"] == "lm"].groupby("task")["N"].nunique()
    return sorted(sizes[sizes > 1].index)


def _pmp_at_several_sizes(table: "pd.DataFrame") -> bool:
    return bool(_sources(table[(table["stage"] == "pmp") & (table["intervention"] == "")]))


def pmp_tasks(table: "pd.DataFrame") -> "Figure":
    """Figure 32: gain of (binary) PMP on every task and their mean, with few pairs and with many, a panel a size."""
    gains = binary_gains(table)
    sizes = sorted(gains["N"].unique())
    tasks = [t for t in sorted(gains["task"].unique()) if t != "mean:all"]
    names = [*tasks[::-1], "mean:all"][::-1] if "mean:all" in set(gains["task"]) else tasks
    sources = sorted(gains["init"].unique())
    figure, axes = style.new_figure(len(sizes), panel=(4.4, 0.42 * len(names) + 1.2), sharey=True, sharex=True)
    for ax, n in zip(axes[0], sizes, strict=True):
        here = gains[gains["N"] == n]
        few, many = here["pairs_total"].min(), here["pairs_total"].max()
        arms = [(i, p, style.ORANGE if p == few else style.BLUE) for i in sources for p in (few, many)]
        ax.axvline(0, color=style.GRAY, linewidth=0.8, zorder=1)
        for k, (init, pairs, color) in enumerate(arms):
            rows = here[(here["init"] == init) & (here["pairs_total"] == pairs)].set_index("task")
            rows = rows.loc[[name for name in names if name in rows.index]]
            y = [names.index(name) + 0.8 / max(len(arms), 5) * (k - (len(arms) - 1) / 2) for name in rows.index]
            error = [rows["value"] - rows["lo"], rows["hi"] - rows["value"]]
            label = f"{pairs} pairs" if len(sources) == 1 else f"{task_name(pmp_source(init) or '')}, {pairs} pairs"
            marker = MARKERS[sources.index(init)]
            ax.errorbar(rows["value"], y, xerr=error, color=color, fmt=marker, elinewidth=1.1, label=label)
        ax.set_yticks(range(len(names)), ["Mean" if t == "mean:all" else task_name(t) for t in names])
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.grid(axis="y", visible=False)
        ax.locator_params(axis="x", nbins=5)
        ax.set_xlabel("accuracy gain of PMP")
        ax.set_title(f"PMP minus no PMP, N = {size_name(n)}")
    style.legend_below(figure, list(axes[0]), columns=min(2 * len(sizes), 4))
    return figure


def symbols(table: "pd.DataFrame") -> "Figure":
    """Figure 33: accuracy on the true ranking T0 against the number of finetuning pairs, a line a
    pre-training."""
    rows = style.select(table, task="symbols:T0", objective="preference", metric="accuracy", intervention="")
    rows = rows[rows["stage"].isin(["finetune", "summary"])]
    style.need(rows[rows["init"].str.startswith("pmp:")], "finetuning on symbols:T0 after PMP")
    rows = rows[rows["N"] == rows["N"].max()]
    start = rows["init"].map(lambda init: (pmp_source(init) or "lm").removeprefix("symbols:"))
    figure, axes = style.new_figure(panel=(4.6, 3.4))
    ax: Axes = axes[0, 0]
    style.zero_line(ax, 0.5)
    for index, (name, (label, color, marker)) in enumerate(SYMBOL_ARMS.items()):
        arm, shift = rows[start == name], 0.008 * (index - 3)
        pooled = arm[arm["stage"] == "summary"]
        if len(pooled):
            style.seeds(ax, arm[arm["stage"] == "finetune"], "pairs_total", color, shift)
            style.band(ax, pooled, "pairs_total", label, color, marker, shift)
    style.pairs_axis(ax, sorted(rows["pairs_total"].astype(float).unique()))
    ax.set_ylabel("test accuracy on T0")
    ax.set_title(f"Symbols (N = {size_name(rows['N'].iloc[0])})")
    style.legend_below(figure, [ax], columns=3)
    return figure


FIGURES = {
    "figure4": style.Drawing(
        pmp_pairs,
        "Preference model pre-training over the number of pairs",
        "As the paper's figure 4. Left: mean accuracy over the tasks after finetuning on so many pairs, "
        "from the language model and from the (binary) preference-pretrained one. Right: their paired "
        "difference, with the controls in gray where there are some. The paper finds a gain at few pairs for "
        "models above about 1B parameters and none below 200M.",
        numbers=(4,),
        needs=has_gains,
    ),
    "figure5": style.Drawing(
        pmp_sizes,
        "Preference model pre-training over model size",
        "As the paper's figure 5. Mean accuracy over the tasks after finetuning on few pairs and on many, with and "
        "without (binary) PMP.",
        numbers=(5,),
        needs=several_sizes,
    ),
    "figure16": style.Drawing(
        pmp_sizes_loss,
        "Preference model pre-training over model size: loss",
        "As the paper's figure 16. PM loss of the same runs, averaged over pairs; knowing nothing it is log 2 = 0.693, "
        "and more than that is confidence in wrong answers.",
        numbers=(16,),
        needs=several_sizes,
    ),
    "figure17": style.Drawing(
        pmp_curves,
        "Finetuning task by task, with and without PMP",
        "As the paper's figure 17, at the largest size. Points with 95% intervals are runs of their own for each "
        "number of pairs, tested where validation was best; they decide the claims. Dashed: the longest run on its "
        "way, as the paper's curves.",
        numbers=(17,),
        needs=_has_curves,
    ),
    "figure27": style.Drawing(
        pmp_itself,
        "Scaling of preference model pre-training",
        "As the paper's figure 27. Loss and accuracy of binary PMP on held-out binary pairs of each source, from PMP "
        "on that source and on the mix; the horizontal lines are of a model that knows nothing.",
        numbers=(27,),
        stage="pmp",
        needs=_pmp_at_several_sizes,
    ),
    "figure28": style.Drawing(
        pmp_losses,
        "Loss after finetuning on the most pairs",
        "As the paper's figure 28, a panel for each start. PM loss on each task where validation was best; the "
        "horizontal line is log 2, of a model that knows nothing.",
        numbers=(28,),
        needs=several_sizes,
    ),
    "figure32": style.Drawing(
        pmp_tasks,
        "Preference model pre-training task by task",
        "As the paper's figures 5 and 32, at the sizes at hand. Difference in accuracy that (binary) PMP "
        "makes after finetuning on the fewest and on the most pairs, with 95% intervals; right of zero it "
        "helps.",
        numbers=(5, 32),
        needs=has_gains,
    ),
    "figure33": style.Drawing(
        symbols,
        "Symbols: how much does a scrambled ranking still teach?",
        "As the paper's figure 33. Accuracy on held-out pairs of the true ranking T0 after finetuning on so "
        "many pairs of it, from models that were preference-pretrained on T0, on rankings scrambled ever "
        "more (T1 to T4), on the binarized form (Tb), or not at all. The paper: the less scrambled the "
        "better, binary between moderate and strong.",
        numbers=(33,),
        needs=lambda table: bool((table["task"] == "symbols:T0").any()),
    ),
}
