"""The per-token discriminator: the paper's figures 34 and 35. The rows are those of `hhh_jax.evals.discriminator`."""

from typing import TYPE_CHECKING

from hhh_jax.figures import style
from hhh_jax.summary import size_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STAGE = "discriminator"
SIZES = ((style.BLUE, "s"), (style.VERMILION, "o"), (style.GREEN, "^"), (style.ORANGE, "D"), (style.PURPLE, "v"))
SPLITS = {"test": "held-out rows", "train": "training rows (as the paper's)"}


def top_samples(table: "pd.DataFrame") -> "Figure":
    """Figure 34: mean accuracy of the top N samples of a problem, by the discriminator and by the ensemble."""
    rows = style.need(style.select(table, stage=STAGE, metric="top_accuracy"), "samples ranked by a discriminator")
    sizes = sorted(rows["N"].astype(int).unique())
    counts = sorted(rows["k"].astype(int).unique())
    everything = rows[(rows["k"] == counts[-1]) & (rows["ranker"] == "logp")].iloc[0]
    figure, axes = style.new_figure(2, panel=(3.6, 2.9), sharey=True)
    panels = {"p_human": "ranked by mean P(human)", "ensemble": "ranked by the ensemble (eq. D.2)"}
    for ax, (ranker, title) in zip(axes[0], panels.items(), strict=True):
        lm = rows[(rows["ranker"] == "logp") & (rows["N"] == sizes[-1])].sort_values("k")
        style.band(ax, lm, "k", "ranked by the language model", style.BLACK, "")
        for index, (n, (color, marker)) in enumerate(zip(sizes, SIZES, strict=False)):
            mine = rows[(rows["ranker"] == ranker) & (rows["N"] == n)].sort_values("k")
            style.band(ax, mine, "k", f"discriminator of {size_name(n)}", color, marker, 0.012 * index)
        ax.axhline(everything["value"], color=style.GRAY, linewidth=0.8, label="mean of all samples", zorder=1)
        ax.set_xscale("log")
        ax.set_xticks(counts, [str(k) for k in counts])
        ax.minorticks_off()
        ax.set_xlabel("number of top samples, N")
        ax.set_title(title)
    axes[0, 0].set_ylabel("mean accuracy of these N")
    style.legend_below(figure, list(axes[0]))
    return figure


def by_distance(table: "pd.DataFrame") -> "Figure":
    """Figure 35: accuracy per token by its distance from the switch, on held-out and on training rows."""
    rows = table[(table["stage"] == STAGE) & (table["metric"] == "accuracy_at_distance")]
    style.need(rows, "a discriminator's accuracy by distance from the switch")
    starts = sorted(rows["k"].astype(int).unique())
    place = {start: float(i) for i, start in enumerate(starts)}
    figure, axes = style.new_figure(2, panel=(4.2, 2.9), sharey=True)
    for ax, (split, name) in zip(axes[0], SPLITS.items(), strict=True):
        _switch(ax, starts)
        for index, (n, (color, marker)) in enumerate(zip(sorted(rows["N"].astype(int).unique()), SIZES, strict=False)):
            mine = rows[(rows["split"] == split) & (rows["N"] == n)].sort_values("k")
            at = mine.assign(at=mine["k"].astype(int).map(place) + 0.12 * index)
            for side in (at[at["k"] < 0], at[at["k"] > 0]):
                style.band(ax, side, "at", size_name(n), color, marker)
        ax.set_title(name)
    axes[0, 0].set_ylabel("accuracy per token")
    style.legend_below(figure, list(axes[0]))
    return figure


def _switch(ax: "Axes", starts: list[int]) -> None:
    """An axis of bins by the distances that they begin with, those of human tokens left of the switch."""
    ax.set_xticks(range(len(starts)), [f"{start}" for start in starts], rotation=45)
    ax.axvline(sum(start < 0 for start in starts) - 0.5, color=style.GRAY, linewidth=0.8, linestyle="--", zorder=1)
    ax.set_xlabel("tokens from the switch (human < 0 < model)")
    style.zero_line(ax, 0.5)


FIGURES = {
    "figure34": style.Drawing(
        top_samples,
        "Samples ranked by a per-token discriminator",
        "As the paper's figure 34. A language model's samples of the next word, ranked by the discriminator's mean "
        "P(human), by the model's own log-probability, or by both as eq. D.2 has it; the height is the mean accuracy "
        "of the N best, not the chance that one of them is right. Intervals are over problems and seeds. The paper "
        "ranks samples for LAMBADA, the embedded study those for the number that goes on with a count.",
        numbers=(34,),
        stage=STAGE,
    ),
    "figure35": style.Drawing(
        by_distance,
        "Accuracy of the discriminator around the switch",
        "As the paper's figure 35, by bins of distance that begin with the number under them: 1 is the model's first "
        "token, -1 the last one before it. The paper measures on training data; held-out rows stand beside it here.",
        numbers=(35,),
        stage=STAGE,
    ),
}
