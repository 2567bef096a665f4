"""Pretraining loss against model size."""

from typing import TYPE_CHECKING

import numpy as np

from hhh_jax import stats
from hhh_jax.figures import style
from hhh_jax.summary import ladder_corpus

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def scaling(table: "pd.DataFrame") -> "Figure":
    """Held-out loss of the language models against N in log-log, with the fitted power law."""
    rows = style.need(style.select(table, stage="summary", objective="lm", metric="loss"), "pretraining loss")
    corpus = ladder_corpus(table)
    rows = rows[rows["task"] == corpus]
    each = style.select(table, stage="pretrain", objective="lm", metric="loss", task=corpus)
    figure, axes = style.new_figure(panel=(4.4, 3.2))
    ax = axes[0, 0]
    fits = style.select(table, stage="summary", objective="lm", task=corpus)
    fit = {row.metric: row for row in fits.itertuples() if row.metric.startswith(("fit:", "offset:"))}
    grid = np.geomspace(rows["N"].min() / 1.3, rows["N"].max() * 1.3, 200)
    if fit:
        exponent = fit["fit:exponent"]
        law = fit["fit:coefficient"].value * grid**-exponent.value
        label = f"power law, exponent {exponent.value:.3f} [{exponent.lo:.3f}, {exponent.hi:.3f}]"
        if broken := stats.flaws(fit["fit:misfit"].value, fit["fit:curvature"], exponent):
            label += f"\nbroken: {', '.join(broken)}"
        ax.plot(grid, law, color=style.BLUE, linewidth=1.2, label=label)
        if fit["offset:identified"].value:
            c, a, power = (fit[f"offset:{name}"].value for name in ("constant", "coefficient", "exponent"))
            label = f"with irreducible loss {c:.2f}, exponent {power:.2f}"
            ax.plot(grid, c + a * grid**-power, color=style.ORANGE, linewidth=1.2, dashes=(4, 2), label=label)
    style.seeds(ax, each, "N", style.BLACK)
    style.band(ax, rows, "N", "measured", style.BLACK, linestyle="none")
    style.size_axis(ax, sorted(rows["N"].astype(float)))
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("{x:g}")
    ax.grid(axis="y", which="both")
    ax.set_ylabel("held-out loss (nats per token)")
    ax.set_title("Pretraining")
    ax.legend(loc="best")
    return figure


FIGURES = {
    "scaling": style.Drawing(
        scaling,
        "Pretraining loss against model size",
        "The premise of every plot against size. Held-out loss of the language models that all else starts "
        "from; points are means over seeds with 95% intervals over documents and seeds, the line is a "
        "least-squares power law in log-log; where it is called broken, its exponent holds for no other sizes. A fit "
        "with an irreducible loss is drawn only where these sizes can tell it from none.",
    ),
}
