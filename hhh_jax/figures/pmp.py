"""Preference model pre-training: the paper's figures 4, 5, 18 and 33."""

from typing import TYPE_CHECKING

from hhh_jax.figures import style
from hhh_jax.summary import BINARY_GAIN, PMP_GAIN, pmp_source, size_name, task_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SOURCE_COLORS = (style.GREEN, style.ORANGE, style.PURPLE, style.SKY)
SYMBOL_ARMS = {  # start -> name, color, marker
    "lm": ("no PMP", style.BLACK, "o"),
    "T0": ("T0, the true ranking", style.GRAY, "p"),
    "T1": ("T1, weakly scrambled", "#084594", "s"),
    "T2": ("T2, moderately", "#2171b5", "D"),
    "T3": ("T3, strongly", "#6baed6", "^"),
    "T4": ("T4, very strongly", "#9ecae1", "v"),
    "Tb": ("Tb, binary", style.VERMILION, "X"),
}


def pmp_pairs(table: "pd.DataFrame") -> "Figure":
    """Figure 4: mean accuracy with and without (binary) PMP, and its gain, against the number of finetuning
    pairs."""
    gains = style.select(table, stage="summary", objective=PMP_GAIN, metric="accuracy_gain", task="mean:all")
    gains = style.need(
        gains[gains["init"].str.endswith(":binary")], "finetuning on every task with and without PMP"
    )
    gains = gains[gains["N"] == gains["N"].max()]
    n = gains["N"].iloc[0]
    accuracy = style.select(
        table, stage="summary", objective="preference", task="mean:all", metric="accuracy", N=n
    )
    figure, axes = style.new_figure(2, panel=(3.3, 2.8))
    left, right = axes[0]
    style.band(left, accuracy[accuracy["init"] == "lm"], "pairs_total", "no PMP", style.BLACK, "s", -0.01)
    style.zero_line(right)
    for color, init in zip(SOURCE_COLORS, sorted(gains["init"].unique()), strict=False):
        name = f"PMP on {pmp_source(init)}"
        style.band(left, accuracy[accuracy["init"] == init], "pairs_total", name, color, "o", 0.01)
        style.band(right, gains[gains["init"] == init], "pairs_total", name, color, "o")
    for ax in axes[0]:
        style.pairs_axis(ax, sorted(gains["pairs_total"].astype(float).unique()))
    left.set_ylabel("accuracy, mean over tasks")
    left.set_title(f"With and without PMP (N = {size_name(n)})")
    right.set_ylabel("accuracy gain")
    right.set_title("PMP minus no PMP")
    style.legend_below(figure, [left, right])
    return figure


def pmp_tasks(table: "pd.DataFrame") -> "Figure":
    """Figure 5: gain of (binary) PMP on every task and their mean, with few pairs and with many, a panel a
    size."""
    gains = style.select(table, stage="summary", objective=PMP_GAIN, metric="accuracy_gain")
    gains = style.need(gains[gains["init"].str.endswith(":binary")], "finetuning with and without PMP")
    sizes = sorted(gains["N"].unique())
    tasks = [t for t in sorted(gains["task"].unique()) if t != "mean:all"]
    names = [*tasks[::-1], "mean:all"][::-1] if "mean:all" in set(gains["task"]) else tasks
    sources = sorted(gains["init"].unique())
    figure, axes = style.new_figure(
        len(sizes), panel=(4.4, 0.42 * len(names) + 1.2), sharey=True, sharex=True
    )
    for ax, n in zip(axes[0], sizes, strict=True):
        here = gains[gains["N"] == n]
        few, many = here["pairs_total"].min(), here["pairs_total"].max()
        arms = [(i, p, c) for i in sources for p, c in ((few, style.ORANGE), (many, style.BLUE))]
        ax.axvline(0, color=style.GRAY, linewidth=0.8, zorder=1)
        for k, (init, pairs, color) in enumerate(arms):
            rows = here[(here["init"] == init) & (here["pairs_total"] == pairs)].set_index("task")
            rows = rows.loc[[name for name in names if name in rows.index]]
            y = [names.index(name) + 0.16 * (k - (len(arms) - 1) / 2) for name in rows.index]
            error = [rows["value"] - rows["lo"], rows["hi"] - rows["value"]]
            label = f"{pairs} pairs" if len(sources) == 1 else f"{pmp_source(init)}, {pairs} pairs"
            ax.errorbar(rows["value"], y, xerr=error, color=color, fmt="o", elinewidth=1.1, label=label)
        ax.set_yticks(range(len(names)), ["Mean" if t == "mean:all" else task_name(t) for t in names])
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.grid(axis="y", visible=False)
        ax.locator_params(axis="x", nbins=5)
        ax.set_xlabel("accuracy gain of PMP")
        ax.set_title(f"PMP minus no PMP, N = {size_name(n)}")
    style.legend_below(figure, list(axes[0]))
    return figure


def binary_ranked(table: "pd.DataFrame") -> "Figure":
    """Figure 18: accuracy from binary PMP minus from ranked PMP against the number of pairs; thin lines are
    tasks."""
    gains = style.select(table, stage="summary", objective=BINARY_GAIN, metric="accuracy_gain")
    means = style.need(gains[gains["task"] == "mean:all"], "finetuning from binary and ranked PMP")
    n = means["N"].max()
    gains, means = gains[gains["N"] == n], means[means["N"] == n]
    figure, axes = style.new_figure(panel=(4.4, 3.2))
    ax = axes[0, 0]
    style.zero_line(ax)
    dashes = [(0, ()), (0, (4, 1.5)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5))]
    for color, init in zip(SOURCE_COLORS, sorted(means["init"].unique()), strict=False):
        lines = gains[(gains["init"] == init) & (gains["task"] != "mean:all")]
        for index, task in enumerate(sorted(lines["task"].unique())):
            line = lines[lines["task"] == task]
            style_ = {"linestyle": dashes[index % 4], "linewidth": 1, "alpha": 0.55, "marker": "."}
            ax.plot(
                line["pairs_total"].astype(float),
                line["value"],
                color=color,
                label=task_name(task),
                **style_,
            )
        label = f"mean, PMP on {init.removeprefix('pmp:')}"
        style.band(
            ax, means[means["init"] == init], "pairs_total", label, color, "o", linewidth=2.2, markersize=6
        )
    style.pairs_axis(ax, sorted(means["pairs_total"].astype(float).unique()))
    ax.set_ylabel("accuracy gain")
    ax.set_title(f"Binary minus ranked PMP (N = {size_name(n)})")
    style.legend_below(figure, [ax], columns=3)
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
    ax = axes[0, 0]
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
        "difference. The paper finds a gain at few pairs for models above about 1B parameters and none "
        "below 200M.",
        numbers=(4,),
    ),
    "figure5": style.Drawing(
        pmp_tasks,
        "Preference model pre-training task by task",
        "As the paper's figures 5 and 32, at the sizes at hand. Difference in accuracy that (binary) PMP "
        "makes after finetuning on the fewest and on the most pairs, with 95% intervals; right of zero it "
        "helps.",
        numbers=(5, 32),
    ),
    "figure18": style.Drawing(
        binary_ranked,
        "Binary against ranked pre-training",
        "As the paper's figure 18. Accuracy after binary PMP minus after ranked PMP on the same source; "
        "thin lines are tasks. Above zero, binary is better. Binarizing doubles the pairs, so binary PMP "
        "also has twice the updates.",
        numbers=(18,),
    ),
    "figure33": style.Drawing(
        symbols,
        "Symbols: how much does a scrambled ranking still teach?",
        "As the paper's figure 33. Accuracy on held-out pairs of the true ranking T0 after finetuning on so "
        "many pairs of it, from models that were preference-pretrained on T0, on rankings scrambled ever "
        "more (T1 to T4), on the binarized form (Tb), or not at all. The paper: the less scrambled the "
        "better, binary between moderate and strong.",
        numbers=(33,),
    ),
}
