"""What preference model pre-training needs: the paper's figures 18, 19, 29, 30, 31, 36 and 37, and ensembles (C.5)."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hhh_jax import stats
from hhh_jax.figures import style
from hhh_jax.summary import BINARY_GAIN, pmp_source, size_name, task_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UPDATES = {"": ("equal epochs", "o", "-"), "equal_updates": ("equal updates", "D", (0, (4, 1.5)))}
COLORS = (style.GREEN, style.ORANGE, style.PURPLE, style.SKY)
HUMAN_MODEL = "human_model"
ALONE = {"pm_alone": "PM loss alone", "lm_alone": "LM loss alone"}


class Arm(NamedTuple):
    """A line over numbers of pairs: its name, the columns init and intervention of its rows, and its look."""

    name: str
    init: str
    intervention: str
    color: str
    marker: str


def binary_ranked(table: "pd.DataFrame") -> "Figure":
    """Figure 18: mean accuracy from binary PMP minus from ranked PMP over numbers of pairs; thin lines are tasks."""
    gains, n = _binary_gains(table)
    means = style.need(gains[gains["task"] == "mean:all"], "finetuning on every task from binary and ranked PMP")
    figure, axes = style.new_figure(panel=(5.0, 3.6))
    ax = axes[0, 0]
    style.zero_line(ax)
    for color, init in zip(COLORS, sorted(means["init"].unique()), strict=False):
        _binary_lines(ax, means[means["init"] == init], color, f"mean, PMP on {task_name(init.removeprefix('pmp:'))}")
        lines = gains[(gains["init"] == init) & (gains["task"] != "mean:all") & (gains["intervention"] == "")]
        dashes = [(0, ()), (0, (4, 1.5)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5))]
        for index, task in enumerate(sorted(lines["task"].unique())):
            line = lines[lines["task"] == task]
            look = {"linestyle": dashes[index % 4], "linewidth": 1, "alpha": 0.55, "marker": "."}
            ax.plot(line["pairs_total"].astype(float), line["value"], color=color, label=task_name(task), **look)
    style.pairs_axis(ax, sorted(means["pairs_total"].astype(float).unique()))
    ax.set_ylabel("accuracy gain")
    ax.set_title(f"Binary minus ranked PMP (N = {size_name(n)})")
    style.legend_below(figure, [ax], columns=2)
    return figure


def binary_ranked_tasks(table: "pd.DataFrame") -> "Figure":
    """Figure 37: the same task by task, at equal epochs and at equal updates."""
    gains, _ = _binary_gains(table)
    tasks = sorted(set(gains["task"]) - {"mean:all"})
    figure, axes = style.panels(len(tasks), sharey=True)
    for ax, task in zip(axes, tasks, strict=True):
        style.zero_line(ax)
        here = gains[gains["task"] == task]
        for color, init in zip(COLORS, sorted(here["init"].unique()), strict=False):
            _binary_lines(ax, here[here["init"] == init], color, f"PMP on {task_name(init.removeprefix('pmp:'))}")
        style.pairs_axis(ax, sorted(here["pairs_total"].astype(float).unique()))
        ax.set_title(task_name(task))
    axes[0].set_ylabel("accuracy, binary minus ranked")
    style.legend_below(figure, axes)
    return figure


def _binary_gains(table: "pd.DataFrame") -> tuple["pd.DataFrame", int]:
    gains = style.select(table, stage="summary", objective=BINARY_GAIN, metric="accuracy_gain")
    gains = style.need(gains[gains["intervention"].isin(UPDATES)], "finetuning from binary and ranked PMP")
    n = gains["N"].max()
    return gains[gains["N"] == n], int(n)


def _binary_lines(ax: "Axes", rows: "pd.DataFrame", color: str, name: str) -> None:
    for index, (how, (label, marker, dashes)) in enumerate(UPDATES.items()):
        arm = rows[rows["intervention"] == how]
        if len(arm):
            line = {"linewidth": 2.2, "markersize": 6, "linestyle": dashes}
            style.band(ax, arm, "pairs_total", f"{name}, {label}", color, marker, 0.02 * index, **line)


def _over_pairs(table: "pd.DataFrame", arms: Sequence[Arm], what: str) -> "Figure":
    """Accuracy against the number of pairs, the mean over tasks first and then each task, at the largest size."""
    rows = style.select(table, stage="summary", objective="preference", metric="accuracy")
    key = rows["init"] + " " + rows["intervention"]
    rows = rows[key.isin([f"{arm.init} {arm.intervention}" for arm in arms])]
    if missing := [arm.name for arm in arms if not len(_of(rows, arm))]:
        raise style.NoRows(f"no rows of {what}: {', '.join(missing)}")
    n = _of(rows, arms[-1])["N"].max()
    rows = rows[rows["N"] == n]
    tasks = [t for t in ("mean:all", *sorted(set(rows["task"]) - {"mean:all"})) if len(_of(rows, arms[-1], t))]
    figure, axes = style.panels(len(tasks))
    for ax, task in zip(axes, tasks, strict=True):
        for index, arm in enumerate(arms):
            shift = 0.02 * (index - (len(arms) - 1) / 2)
            style.band(ax, _of(rows, arm, task), "pairs_total", arm.name, arm.color, arm.marker, shift)
        style.zero_line(ax, 0.5)
        style.pairs_axis(ax, sorted(_of(rows, arms[-1], task)["pairs_total"].astype(float).unique()))
        ax.set_title(f"Mean over tasks (N = {size_name(n)})" if task == "mean:all" else task_name(task))
    axes[0].set_ylabel("accuracy")
    style.legend_below(figure, axes)
    return figure


def _of(rows: "pd.DataFrame", arm: Arm, task: str | None = None) -> "pd.DataFrame":
    chosen = rows[(rows["init"] == arm.init) & (rows["intervention"] == arm.intervention)]
    return chosen if task is None else chosen[chosen["task"] == task]


def _source(table: "pd.DataFrame", ending: str, intervention: str = "") -> str:
    """The source of PMP that models of this form and intervention were finetuned from. Raises NoRows if none was."""
    rows = table[(table["stage"] == "finetune") & (table["intervention"] == intervention)]
    rows = style.need(rows[rows["init"].str.endswith(ending)], f"finetuning from PMP, {intervention or ending}")
    return pmp_source(rows["init"].iloc[0]) or ""


def losses(table: "pd.DataFrame") -> "Figure":
    """Figure 29: PMP with both losses and with each alone."""
    init = f"pmp:{_source(table, ':binary', 'pm_alone')}:binary"
    arms = [
        Arm("no PMP", "lm", "", style.BLACK, "s"),
        Arm("PM + LM loss", init, "", style.GREEN, "o"),
        Arm("PM loss alone", init, "pm_alone", style.VERMILION, "D"),
        Arm("LM loss alone", init, "lm_alone", style.BLUE, "^"),
    ]
    return _over_pairs(table, arms, "PMP with each loss alone")


def end_of_context(table: "pd.DataFrame") -> "Figure":
    """Figure 31: with and without the end-of-context token."""
    init = f"pmp:{_source(table, ':binary', 'no_eoc')}:binary"
    arms = [
        Arm("no PMP", "lm", "", style.BLACK, "s"),
        Arm("no PMP, no end-of-context", "lm", "no_eoc", style.GRAY, "P"),
        Arm("PMP", init, "", style.GREEN, "o"),
        Arm("PMP, no end-of-context", init, "no_eoc", style.ORANGE, "D"),
    ]
    return _over_pairs(table, arms, "finetuning without end-of-context")


def human_model(table: "pd.DataFrame") -> "Figure":
    """Figures 19 and 36: PMP on pairs of two human texts and on pairs of a human and a model-written one."""
    source = _source(table, f":{HUMAN_MODEL}")
    arms = [
        Arm("no PMP", "lm", "", style.BLACK, "s"),
        Arm("PMP, human-human", f"pmp:{source}:binary", "", style.GREEN, "o"),
        Arm("PMP, human-model", f"pmp:{source}:{HUMAN_MODEL}", "", style.PURPLE, "D"),
    ]
    return _over_pairs(table, arms, "PMP on human-model pairs")


def who_wrote_it(table: "pd.DataFrame") -> "Figure":
    """How well held-out human and model-written sides are told apart: by length, by words, and by PMP on such pairs."""
    rows = style.select(table, metric="accuracy")
    rows = rows[rows["task"].map(lambda task: task_name(task).startswith(HUMAN_MODEL))]
    baselines = style.need(rows[rows["stage"] == "baseline"], "baselines on human-model pairs").set_index("ranker")
    models = style.need(rows[rows["stage"] == "summary"], "PMP on human-model pairs")
    rankers = [ranker for ranker in style.BASELINES if ranker in baselines.index]
    found = [(style.BASELINES[ranker][0], baselines.loc[ranker]) for ranker in rankers]
    found += [(f"PMP, N = {size_name(row.N)}", row) for row in models.itertuples()]
    figure, axes = style.new_figure(panel=(4.6, 0.35 * len(found) + 1.0))
    ax = axes[0, 0]
    ax.axvline(0.5, color=style.GRAY, linewidth=0.8, zorder=1)
    for y, (name, row) in enumerate(found):
        color = style.PURPLE if name.startswith("PMP") else style.BLACK
        error = [[row.value - row.lo], [row.hi - row.value]]
        ax.errorbar([row.value], [y], xerr=error, color=color, fmt="o", elinewidth=1.1)
    ax.set_yticks(range(len(found)), [name for name, _ in found])
    ax.set_ylim(len(found) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("accuracy on held-out pairs")
    ax.set_title("Which side did a person write?")
    return figure


def calibration(table: "pd.DataFrame") -> "Figure":
    """Figure 30: how often the preferred side is the better one against the model's confidence, all seeds together."""
    rows = style.need(style.select(table, metric=["ece", "confidence", "reliability"]), "calibration")
    rows = rows[rows["N"] == rows["N"].max()]
    tasks = sorted(rows["task"].unique())
    figure, axes = style.panels(len(tasks), panel=(3.3, 3.1), sharey=True)
    key = rows["init"] + " " + rows["intervention"]
    looks = dict(zip(sorted(key.unique()), zip((style.BLACK, *COLORS), "soDv^", strict=False), strict=False))
    for ax, task in zip(axes, tasks, strict=True):
        ax.plot([0.5, 1], [0.5, 1], color=style.GRAY, linewidth=0.8)
        for name, (color, marker) in looks.items():
            arm = rows[(rows["task"] == task) & (key == name)]
            if len(arm):
                ece = arm[arm["metric"] == "ece"]["value"].mean()
                label = f"{_start_name(*name.split(' '))}: error {ece:.3f}"
                x, y, lo, hi = _pooled_bins(arm)
                ax.errorbar(x, y, yerr=[y - lo, hi - y], color=color, marker=marker, elinewidth=1.1, label=label)
        ax.set_xlabel("confidence")
        ax.set_title(task_name(task))
        ax.legend(loc="lower right", fontsize=7)
    axes[0].set_ylabel("share of pairs that are right")
    return figure


def _start_name(init: str, intervention: str) -> str:
    start = "no PMP" if init == "lm" else f"PMP on {task_name(pmp_source(init) or init)}"
    return f"{start}, {ALONE.get(intervention, intervention)}" if intervention else start


def _pooled_bins(rows: "pd.DataFrame") -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean confidence and share that is right of each bin over all seeds' pairs, with Wilson's interval, [K] each."""
    found = []
    for _, of_bin in rows[rows["metric"] != "ece"].groupby("k"):
        sums = {
            metric: float((part["value"] * part["n_items"].astype(float)).sum())
            for metric, part in of_bin.groupby("metric")
        }
        n = int(of_bin[of_bin["metric"] == "reliability"]["n_items"].sum())
        found.append((sums["confidence"] / n, sums["reliability"] / n, *stats.wilson(sums["reliability"], n)))
    x_K, y_K, lo_K, hi_K = np.array(found).T
    return x_K, y_K, lo_K, hi_K


def ensembles(table: "pd.DataFrame") -> "Figure":
    """Appendix C.5: the mean of two finetuned models' rewards or probabilities beside the two."""
    made = style.need(style.select(table, init="ensemble:rewards", stage="finetune"), "ensembles")
    finetuned = style.select(table, stage="finetune", objective="preference", intervention="", N=made["N"].max())
    members = sorted({init for init in finetuned["init"] if init.endswith(":binary")})
    arms = [
        Arm(_start_name(init, ""), init, "", color, marker)
        for init, color, marker in zip(members, COLORS, "ovP^", strict=False)
    ]
    arms.append(Arm("mean of probabilities", "ensemble:probabilities", "", style.BLUE, "D"))
    arms.append(Arm("mean of rewards", "ensemble:rewards", "", style.VERMILION, "s"))
    return _over_pairs(table, arms, "ensembles")


def _has(column: str, ending: str) -> Callable[["pd.DataFrame"], bool]:
    """Whether a value of the column has this end."""
    return lambda table: bool(table[column].astype(str).str.endswith(ending).any())


FIGURES = {
    "figure18": style.Drawing(
        binary_ranked,
        "Binary against ranked pre-training",
        "As the paper's figure 18. Accuracy after binary PMP minus after ranked PMP on the same source; thin lines are "
        "tasks. Above zero, binary is better. Binarizing doubles the pairs: at equal epochs, as in the paper, binary "
        "PMP has twice the updates; at equal updates ranked PMP sees each pair twice as often.",
        numbers=(18,),
        needs=_has("objective", BINARY_GAIN),
    ),
    "figure37": style.Drawing(
        binary_ranked_tasks,
        "Binary against ranked pre-training, task by task",
        "As the paper's figure 37, whose lines are at equal epochs.",
        numbers=(37,),
        needs=_has("intervention", "equal_updates"),
    ),
    "figures19_36": style.Drawing(
        human_model,
        "Pre-training on human and model-written text",
        "As the paper's figures 19 and 36. Accuracy after PMP on pairs of two human texts, and on as many pairs whose "
        "bad side a language model wrote after the same context, both sides of equally many tokens.",
        numbers=(19, 36),
        needs=_has("init", f":{HUMAN_MODEL}"),
    ),
    "who_wrote_it": style.Drawing(
        who_wrote_it,
        "What tells model-written text from people's",
        "Beside figure 19. If length alone told the sides apart, PMP on such pairs would learn length; with matched "
        "lengths in tokens what is left is that of bytes.",
        needs=_has("init", f":{HUMAN_MODEL}"),
    ),
    "figure29": style.Drawing(
        losses,
        "Which loss does pre-training need?",
        "As the paper's figure 29. Accuracy after PMP with both losses, with the preference loss alone and with the "
        "language-modeling loss alone, on the same tokens.",
        numbers=(29,),
        needs=_has("intervention", "pm_alone"),
    ),
    "figure30": style.Drawing(
        calibration,
        "Calibration",
        "As the upper half of the paper's figure 30; the lower half mirrors it. Share of held-out pairs that are right "
        "against the model's confidence, in bins 0.05 wide, with the expected calibration error. On the diagonal a "
        "model is as sure as it is right, below it too sure.",
        numbers=(30,),
        needs=_has("metric", "ece"),
    ),
    "figure31": style.Drawing(
        end_of_context,
        "Does the end-of-context token help?",
        "As the paper's figure 31. Accuracy with the score read at an end-of-context token, and at the last token of "
        "the response where there is none, in PMP and finetuning alike.",
        numbers=(31,),
        needs=_has("intervention", "no_eoc"),
    ),
    "ensembles": style.Drawing(
        ensembles,
        "Ensembles over sources of pre-training",
        "Appendix C.5, of which the paper has no figure: about +0.005 there.",
        needs=_has("init", "ensemble:rewards"),
    ),
}
