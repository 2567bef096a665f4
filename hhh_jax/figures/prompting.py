"""Prompting and context distillation where answers are given: the paper's figures 2 (left), 6, 7, 20, 21, 25 and 26.

The rows are those of `hhh_jax.evals.battery`, one a seed. A point is the mean over seeds; its interval adds the
variance over seeds to the mean of their intervals over items, which the seeds share.
"""

import itertools
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from hhh_jax.figures import style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ARMS = {  # intervention -> name, color, marker
    "": ("no intervention", style.BLACK, "o"),
    "template": ("dialogue form alone", style.GRAY, "p"),
    "prompt": ("HHH prompt", style.BLUE, "s"),
    "short": ("short prompt", style.SKY, "s"),
    "distilled+template": ("distilled", style.VERMILION, "D"),
    "distilled_unprompted+template": ("distilled without prompt", style.ORANGE, "d"),
}
WITH_TWO = {  # two conversations in context
    "two": ("two conversations alone", style.BLACK, "o"),
    "finetuned+two": ("finetuned on the prompt, and two", style.GREEN, "^"),
    "distilled+two": ("distilled, and two", style.VERMILION, "D"),
}
OTHER_ARMS = ((style.GREEN, "^"), (style.PURPLE, "v"), (style.YELLOW, "<"), ("#8c6d31", ">"), ("#332288", "P"))
RANKERS = {
    "sum_logp": ("summed log-probability", style.BLUE, "s"),
    "mean_logp": ("mean log-probability", style.GREEN, "^"),
    "mutual_information": ("mutual information", style.VERMILION, "o"),
    "mutual_information_empty": ("mutual information, empty question", style.ORANGE, "D"),
}
CATEGORIES = {
    "helpful": (style.GREEN, "o"), "honest": (style.BLUE, "s"), "harmless": (style.VERMILION, "^"),
    "other": (style.PURPLE, "D"),
}  # fmt: skip
MI = "mutual_information"
SHARES = {"accuracy", "pass@k", "toxicity", "toxicity_expected_maximum", "toxicity_probability"}
"""Metrics from 0 to 1."""


def pooled(rows: "pd.DataFrame", by: str = "N") -> "pd.DataFrame":
    """One row for each value of column `by`: value, lo, hi over seeds and items.

    Each side of the interval is apart, as a share near 0 or 1 has little room beyond.
    """
    import pandas as pd

    found = []
    for at, group in rows.groupby(by):
        values_S = group["value"].to_numpy(float)
        ends_2xS = group[["lo", "hi"]].to_numpy(float).T
        over_items = abs(ends_2xS - values_S).mean(1) if group["lo"].notna().all() else np.zeros(2)
        over_seeds = 1.96 * values_S.std(ddof=1) / np.sqrt(len(values_S)) if len(values_S) > 1 else 0.0
        below, above = np.hypot(over_items, over_seeds)
        lo, hi = values_S.mean() - below, values_S.mean() + above
        if set(group["metric"]) <= SHARES:
            lo, hi = max(lo, 0.0), min(hi, 1.0)
        found.append({by: at, "value": values_S.mean(), "lo": lo, "hi": hi})
    return pd.DataFrame(found, columns=[by, "value", "lo", "hi"])


def evaluated(table: "pd.DataFrame", **where: Any) -> "pd.DataFrame":
    return style.select(table, stage="evaluate", **where)


def arms_of(rows: "pd.DataFrame") -> dict[str, tuple[str, str, str]]:
    """Name, color and marker of each intervention in the rows: known ones first, then others by name and number."""
    found = set(rows["intervention"])
    others = sorted(
        found - ARMS.keys(), key=lambda arm: (re.sub(r"\d+", "", arm), list(map(int, re.findall(r"\d+", arm))))
    )
    named = {arm: arm.removesuffix("+template").replace("_", " ").replace(" 1 steps", " 1 step") for arm in others}
    looks = itertools.cycle(OTHER_ARMS)
    known = {arm: look for arm, look in ARMS.items() if arm in found}
    return known | {arm: (named[arm], *next(looks)) for arm in others}


def _shift(index: int, count: int, rows: "pd.DataFrame") -> float:
    """How far to move line `index` of `count` along the axis of sizes, in decades, so that intervals lie apart."""
    decades = np.log10(float(rows["N"].max()) / float(rows["N"].min()))
    return 0.014 * max(decades, 0.5) * (index - (count - 1) / 2)


def draw_arms(ax: "Axes", rows: "pd.DataFrame", ylabel: str) -> None:
    """A line for each intervention that the rows have, against model size."""
    present = arms_of(rows)
    for index, (arm, (label, color, marker)) in enumerate(present.items()):
        of_arm = pooled(rows[rows["intervention"] == arm])
        style.band(ax, of_arm, "N", label, color, marker, _shift(index, len(present), rows))
    style.size_axis(ax, sorted(rows["N"].astype(float).unique()))
    ax.set_ylabel(ylabel)


def _trivial(ax: "Axes", table: "pd.DataFrame", task: str) -> None:
    rows = style.select(table, stage="baseline", task=task, metric="accuracy")
    for row in rows.drop_duplicates("ranker").itertuples():
        name, dashes = style.BASELINES[row.ranker]
        ax.axhline(row.value, color=style.GRAY, linewidth=0.8, linestyle=dashes, label=name, zorder=1)


def _hhh_task(table: "pd.DataFrame") -> str:
    tasks = set(evaluated(table, metric="accuracy")["task"])
    return next((task for task in ("hhh", "own_hhh") if task in tasks), "hhh")


def _hhh_title(task: str) -> str:
    return "HHH comparisons" + (" (our own)" if task == "own_hhh" else "")


def hhh(table: "pd.DataFrame") -> "Figure":
    """Figures 2 (left) and 20 (left): accuracy on HHH comparisons by mutual information, a line an intervention."""
    task = _hhh_task(table)
    rows = evaluated(table, task=task, metric="accuracy", ranker=MI)
    rows = style.need(rows[~rows["intervention"].str.endswith("two")], "HHH comparisons")
    figure, axes = style.new_figure(panel=(5.8, 3.9))
    ax = axes[0, 0]
    _trivial(ax, table, task)
    draw_arms(ax, rows, "accuracy")
    ax.set_title(_hhh_title(task))
    style.legend_below(figure, [ax], columns=3)
    return figure


def two_conversations(table: "pd.DataFrame") -> "Figure":
    """Figure 20 (right): HHH with two conversations in context: alone, after finetuning on the prompt, distilled."""
    task = _hhh_task(table)
    rows = evaluated(table, task=task, metric="accuracy", ranker=MI)
    rows["intervention"] = rows["intervention"].str.replace(r"finetuned_\d+_steps", "finetuned", regex=True)
    style.need(rows[rows["intervention"].isin(WITH_TWO)], "HHH comparisons after two conversations")
    lines = {arm: look for arm, look in WITH_TWO.items() if arm in set(rows["intervention"])}
    lines |= {arm: ARMS[arm] for arm in ("prompt", "short") if arm in set(rows["intervention"])}
    figure, axes = style.new_figure(panel=(4.6, 3.3))
    ax = axes[0, 0]
    _trivial(ax, table, task)
    for index, (arm, (label, color, marker)) in enumerate(lines.items()):
        of_arm = pooled(rows[rows["intervention"] == arm])
        style.band(ax, of_arm, "N", label, color, marker, _shift(index, len(lines), rows))
    style.size_axis(ax, sorted(rows["N"].astype(float).unique()))
    ax.set_ylabel("accuracy")
    ax.set_title(f"{_hhh_title(task)}, two in context")
    style.legend_below(figure, [ax], columns=2)
    return figure


def hhh_and_truthfulqa(table: "pd.DataFrame") -> "Figure":
    """Figure 6: HHH by category with the prompt (left), and TruthfulQA MC1 without and with it (right)."""
    task = _hhh_task(table)
    rows = evaluated(table, metric="accuracy", ranker=MI)
    prompted = rows[rows["intervention"].isin(["prompt", "short"])]
    by_category = {c: prompted[prompted["task"] == f"{task}:{c}"] for c in CATEGORIES}
    style.need(prompted[prompted["task"].str.startswith(f"{task}:")], "HHH comparisons with a prompt")
    truthful = rows[rows["task"] == "truthfulqa"]
    figure, axes = style.new_figure(2 if len(truthful) else 1, panel=(3.8, 3.1))
    ax = axes[0, 0]
    by_category = {category: lines for category, lines in by_category.items() if len(lines)}
    for index, (category, lines) in enumerate(by_category.items()):
        color, marker = CATEGORIES[category]
        style.band(ax, pooled(lines), "N", category, color, marker, _shift(index, len(by_category), prompted))
    style.zero_line(ax, 0.5)
    style.size_axis(ax, sorted(prompted["N"].astype(float).unique()))
    ax.set_ylabel("accuracy")
    ax.set_title("HHH by category, prompted" + (" (our own)" if task == "own_hhh" else ""))
    if len(truthful):
        _trivial(axes[0, 1], table, "truthfulqa")
        draw_arms(axes[0, 1], truthful, "accuracy")
        axes[0, 1].set_title("TruthfulQA (MC1)")
    style.legend_below(figure, list(axes[0]), columns=4)
    return figure


def truthfulqa(table: "pd.DataFrame") -> "Figure":
    """Figure 21: TruthfulQA MC1 by every metric, a panel an intervention."""
    rows = style.need(evaluated(table, task="truthfulqa", metric="accuracy", ranker=list(RANKERS)), "TruthfulQA")
    present = arms_of(rows)
    figure, axes = style.new_figure(len(present), sharey=True)
    for ax, (arm, (name, _, _)) in zip(axes[0], present.items(), strict=True):
        _trivial(ax, table, "truthfulqa")
        for index, (ranker, (label, color, marker)) in enumerate(RANKERS.items()):
            lines = rows[(rows["intervention"] == arm) & (rows["ranker"] == ranker)]
            style.band(ax, pooled(lines), "N", label, color, marker, _shift(index, len(RANKERS), rows))
        style.size_axis(ax, sorted(rows["N"].astype(float).unique()))
        ax.set_title(name)
    axes[0, 0].set_ylabel("accuracy")
    style.legend_below(figure, list(axes[0]), columns=3)
    return figure


def lambada(table: "pd.DataFrame") -> "Figure":
    """Figure 7: accuracy on LAMBADA (left) and what the interventions cost (right): accuracy without less with."""
    rows = style.need(evaluated(table, task="lambada", metric="accuracy"), "LAMBADA")
    figure, axes = style.new_figure(2)
    left, right = axes[0]
    draw_arms(left, rows, "accuracy")
    left.set_title("LAMBADA")
    bare = rows[rows["intervention"] == ""].set_index(["N", "seed"])[["value", "lo", "hi"]]
    tax = rows[rows["intervention"] != ""].copy()
    own, own_lo, own_hi = bare.reindex(tax.set_index(["N", "seed"]).index).to_numpy(float).T
    with_it, lo, hi = tax[["value", "lo", "hi"]].to_numpy(float).T
    tax["value"], tax["metric"] = own - with_it, "accuracy lost"
    tax["lo"] = tax["value"] - np.hypot(own - own_lo, hi - with_it)
    tax["hi"] = tax["value"] + np.hypot(own_hi - own, with_it - lo)
    style.zero_line(right)
    if len(tax):
        draw_arms(right, tax.dropna(subset=["value"]), "accuracy lost")
    right.set_title("Alignment tax")
    style.legend_below(figure, [left, right], columns=3)
    return figure


def lambada_formats(table: "pd.DataFrame") -> "Figure":
    """Figure 25: LAMBADA in four formats, without intervention."""
    names = {
        "lambada_original": ("0-shot, original", style.BLACK, "o"),
        "lambada_original_20shot": ("20-shot, original", style.BLUE, "s"),
        "lambada": ("0-shot, nicely formatted", style.GREEN, "^"),
        "lambada_blank_20shot": ("20-shot, fill in the blank", style.VERMILION, "D"),
    }  # fmt: skip
    rows = evaluated(table, task=list(names), metric="accuracy", intervention="")
    style.need(rows[rows["task"] != "lambada"], "LAMBADA in other formats")
    figure, axes = style.new_figure(panel=(4.4, 3.2))
    ax = axes[0, 0]
    names = {task: look for task, look in names.items() if task in set(rows["task"])}
    for index, (task, (label, color, marker)) in enumerate(names.items()):
        style.band(ax, pooled(rows[rows["task"] == task]), "N", label, color, marker, _shift(index, len(names), rows))
    style.size_axis(ax, sorted(rows["N"].astype(float).unique()))
    ax.set_ylabel("accuracy")
    ax.set_title("LAMBADA in its formats")
    style.legend_below(figure, [ax], columns=2)
    return figure


def counting(table: "pd.DataFrame") -> "Figure":
    """Figure 26: loss of each number while counting (left); of 64 to 71 when told 1 to 63, or trained on them."""
    rows = style.need(evaluated(table, metric="loss", task=["counting:1-80", "counting:64-71"]), "counting")
    rows = rows[rows["N"] == rows["N"].max()]
    figure, axes = style.new_figure(2, panel=(3.8, 3.1))
    left, right = axes[0]
    told = rows[(rows["task"] == "counting:1-80") & (rows["intervention"] == "")]
    line = pooled(told, "k")
    n = line["k"].to_numpy(float)
    left.plot(n, 1 / n, color=style.GRAY, linewidth=1, label="1/n")
    style.band(left, line, "k", "loss of n after 1, ..., n - 1", style.BLUE, "", linewidth=1.2)
    left.set(xscale="log", yscale="log", xlabel="number", ylabel="loss (nats)", title="Counting")
    style.band(right, line[(n >= 64) & (n <= 71)], "k", "after 1, ..., 63 in context", style.BLUE, "o")
    alone = rows[rows["task"] == "counting:64-71"]
    for index, arm in enumerate(sorted(alone["intervention"].unique(), key=lambda arm: (len(arm), arm))):
        color = (style.BLACK, style.ORANGE, style.GREEN, style.VERMILION, style.PURPLE, style.SKY)[index % 6]
        label = arm.replace("_", " ").replace(" 1 steps", " 1 step") or "neither"
        style.band(right, pooled(alone[alone["intervention"] == arm], "k"), "k", label, color, "")
    right.set(yscale="log", xlabel="number", ylabel="loss (nats)", title="Told or trained")
    style.legend_below(figure, [left, right], columns=3)
    return figure


FIGURES = {
    "figure2": style.Drawing(
        hhh,
        "Prompting and distillation on HHH comparisons",
        "As the paper's figures 2 (left) and 20 (left). Share of comparisons in which the better answer has the "
        "higher empirical mutual information with its question, for the bare model and every intervention. The "
        "paper: prompting helps large models, distillation as much, finetuning on the prompt less.",
        numbers=(2, 20),
        stage="evaluate",
    ),
    "figure20_right": style.Drawing(
        two_conversations,
        "Two conversations in context",
        "As the paper's figure 20 (right). Accuracy on HHH comparisons with two conversations in context: alone, after "
        "finetuning on the prompt, and with the prompt distilled; and the prompt itself instead.",
        numbers=(20,),
        stage="evaluate",
    ),
    "figure6": style.Drawing(
        hhh_and_truthfulqa,
        "HHH by category, and TruthfulQA",
        "As the paper's figure 6: prompted models on each category of HHH, and TruthfulQA MC1 if it was run.",
        numbers=(6,),
        stage="evaluate",
    ),
    "figure7": style.Drawing(
        lambada,
        "LAMBADA and what an intervention costs on it",
        "As the paper's figure 7. Left: accuracy of the last word. Right: accuracy of the bare model less that with "
        "the intervention, so above zero is a tax; its intervals are as wide as for two sets of passages. (In the "
        "paper's figure the sign is the opposite of its label.)",
        numbers=(7,),
        stage="evaluate",
    ),
    "figure21": style.Drawing(
        truthfulqa,
        "TruthfulQA by every metric",
        "As the paper's figure 21. The official metric is the summed log-probability.",
        numbers=(21,),
        stage="evaluate",
    ),
    "figure25": style.Drawing(
        lambada_formats,
        "LAMBADA in four formats",
        "As the paper's figure 25: the format of a task can matter more than the size of the model.",
        numbers=(25,),
        stage="evaluate",
    ),
    "figure26": style.Drawing(
        counting,
        "Counting: told or trained",
        "As the paper's figure 26. Left: the loss of each number after those before it falls like 1/n, as Laplace's "
        "rule has it. Right: the loss of 64 to 71 after 1 to 63 in context, and after so many steps of training on "
        "1 to 63.",
        numbers=(26,),
        stage="evaluate",
    ),
}
