"""What the paper does not plot: loss over pairs and size, label noise, and best of n against a planted gold reward."""

from typing import TYPE_CHECKING

import numpy as np

from hhh_jax.analyses.joint_fit import MISFIT, PARAMETERS, curve
from hhh_jax.evals.pass_at_k import best_of_n_kl
from hhh_jax.figures import style
from hhh_jax.summary import size_name, task_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

COLORS = (style.SKY, style.BLUE, style.VERMILION, style.ORANGE, style.GREEN)
MARKERS = "osD^v"


def loss_of_pairs_and_size(table: "pd.DataFrame") -> "Figure":
    """PM loss against pairs, a line a size, with the joint fit."""
    rows = style.need(style.select(table, stage="joint_fit"), "a joint fit over pairs and sizes")
    points = rows[rows["metric"] == "pm_loss"]
    found = {row.metric.removeprefix("joint:"): row for row in rows.itertuples() if row.metric.startswith("joint:")}
    fitted = np.array([found[name].value for name in PARAMETERS])
    sizes, pairs = (sorted(points[column].astype(int).unique()) for column in ("N", "pairs_total"))
    figure, axes = style.new_figure(panel=(5.6, 3.6))
    ax = axes[0, 0]
    grid = np.geomspace(pairs[0], pairs[-1], 60)
    for n, color, marker in zip(sizes, COLORS, MARKERS, strict=False):
        style.band(ax, points[points["N"] == n], "pairs_total", size_name(n), color, marker, linestyle="none")
        law = curve(fitted, np.full_like(grid, n / sizes[0]), grid / pairs[0])
        ax.plot(grid, law, color=color, linewidth=1.2, linestyle="-" if _whole(found) else ":")
    ax.axhline(np.log(2), color=style.GRAY, linewidth=0.8, label="chance, log 2", zorder=1)
    style.pairs_axis(ax, pairs)
    ax.set_ylabel("PM loss on held-out pairs (nats)")
    ax.set_title(f"L = E + A N$^{{-a}}$ + B D$^{{-b}}$ ({task_name(points['task'].iloc[0])})")
    lines = []
    for part, names in (("E", "E"), ("N", "Aa"), ("D", "Bb")):
        values = ", ".join(f"{x} {found[x].value:.2g} [{found[x].lo:.2g}, {found[x].hi:.2g}]" for x in names)
        lines.append(values if found[f"identified:{part}"].value else f"{values}: not identified")
    misfit = found["misfit"].value
    lines.append(f"misfit {misfit:.1%}" + (": not of this form" if misfit > MISFIT else ""))
    ax.text(1.03, 0.98, "\n".join(lines), transform=ax.transAxes, va="top", fontsize=7)
    style.legend_below(figure, [ax])
    return figure


def _whole(found: dict) -> bool:
    return bool(found["identified:N"].value and found["identified:D"].value)


def best_of_n(table: "pd.DataFrame") -> "Figure":
    """Gold score and what the proxy promises against the distance in nats, a color a proxy."""
    rows = style.need(style.select(table, stage="best_of_n"), "best of n against a gold reward")
    rows = rows.assign(nats=best_of_n_kl(rows["k"].to_numpy(float)))
    figure, axes = style.new_figure(panel=(4.8, 3.5))
    ax = axes[0, 0]
    proxies = list(rows.groupby(["pairs_total", "intervention"], sort=True))
    for ((pairs, noise), mine), color, marker in zip(proxies, COLORS, MARKERS, strict=False):
        flipped = f", {noise.removeprefix('flip_')}% flipped" if noise else ""
        for metric, line in (("gold", "-"), ("promise", ":")):
            name = f"{int(pairs)} pairs{flipped}" + (": promised" if metric == "promise" else "")
            style.band(ax, mine[mine["metric"] == metric].sort_values("k"), "nats", name, color, marker, linestyle=line)
    oracle = proxies[0][1]
    oracle = oracle[oracle["metric"] == "oracle"].sort_values("k")
    ax.plot(oracle["nats"], oracle["value"], color=style.GRAY, linewidth=0.8, label="best by the gold reward")
    style.zero_line(ax, 0.5)
    ax.set_xlabel("KL from the candidates, log n − (n − 1) / n (nats)")
    ax.set_ylabel("share of symbols beaten")
    ax.set_title(f"Best of n, n up to {int(rows['k'].max())} (N = {size_name(rows['N'].iloc[0])})")
    style.legend_below(figure, [ax], columns=2)
    return figure


def label_noise(table: "pd.DataFrame") -> "Figure":
    """Accuracy and calibration error against the share of training pairs that is flipped."""
    rows = style.need(style.select(table, stage="label_noise"), "runs with flipped training pairs")
    figure, axes = style.new_figure(2, panel=(3.4, 2.8))
    accuracy, calibration = axes[0]
    style.band(accuracy, _of(rows, "accuracy"), "k", "accuracy", style.VERMILION)
    style.band(accuracy, _of(rows, "confidence"), "k", "mean confidence", style.BLUE, "s", linestyle=":")
    style.zero_line(accuracy, 0.5)
    accuracy.set_ylabel("on true held-out labels")
    style.band(calibration, _of(rows, "calibration_error"), "k", "expected calibration error", style.BLACK, "D")
    calibration.set_ylim(bottom=0)
    for ax, title in ((accuracy, "Accuracy"), (calibration, "Calibration error")):
        ax.set_xlabel("training pairs flipped (%)")
        ax.set_title(title)
    row = rows.iloc[0]
    figure.suptitle(f"{task_name(row['task'])}, N = {size_name(row['N'])}, {int(row['pairs_total'])} pairs", fontsize=9)
    style.legend_below(figure, [accuracy, calibration])
    return figure


def _of(rows: "pd.DataFrame", metric: str) -> "pd.DataFrame":
    return rows[rows["metric"] == metric].sort_values("k")


FIGURES = {
    "joint_fit": style.Drawing(
        loss_of_pairs_and_size,
        "Loss over pairs and size together",
        "Ours; the paper's figures 27 and 28 vary one of the two. Points are separate runs with 95% intervals over "
        "seeds and test pairs; curves are one fit of all of them, dotted where it is not identified: many other curves "
        "would do as well. A and B are what the smallest size and the fewest pairs cost, in nats.",
        stage="joint_fit",
    ),
    "best_of_n": style.Drawing(
        best_of_n,
        "Best of n against a gold reward",
        "Ours, after Gao et al. (2022). The proxy, a preference model of few or noisy comparisons, picks the best of n "
        "symbols. Solid: the share of symbols that its pick truly beats; dotted: the share that it promises. The gap "
        "is what optimizing against a proxy costs. Intervals are over pools of candidates and seeds.",
        stage="best_of_n",
    ),
    "label_noise": style.Drawing(
        label_noise,
        "Wrong labels",
        "Ours. A share of the training pairs has its sides exchanged; held-out pairs keep their true labels. "
        "Confidence is the larger of the two probabilities that the rewards give a pair: above the accuracy the model "
        "is too sure, below it not sure enough.",
        stage="label_noise",
    ),
}
