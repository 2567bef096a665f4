"""The paper's own figures as numbers, and drawn in the style of ours.

`paper_curves.csv.xz` holds every curve of figures 2 to 37 (columns figure, panel, series, x, y, method),
`paper_panels.csv` the axes of every panel, `paper_table2.csv` the win rates of table 2 for `hhh_jax.elo`. How far to
trust them:

  * method "vector": from the drawing commands of the PDF, exact to about 1e-5 of the axis. Long finetuning curves were
    thinned by whoever plotted them, so their points are some of the data.
  * method "pixel": read from bitmaps (2 left, 6 left, 9, 20, 26, 30): accuracies to 0.001, Elo to 1, figure 26 to a few
    percent.
  * Sizes on the axes follow three conventions that differ by up to 1.7% for the same model: 12 n d^2 (2 right, 3, 5, 9,
    10, 14-16, 25, 27, 28), 2e5 n^3 (2 left, 6-8, 20-23) and 1.96e5 n^3 (12, 13).
  * Figures 8 and 22 have the same values with "prompt" and "distillation" exchanged. Figure 4 is not the mean of figure
    17's differences (off by up to 0.0175). Figure 7's tax has the opposite sign of its label. Figure 9's Elo is not the
    fit of table 2 with equal weights, which is drawn beside it (`hhh_jax.elo` has the numbers); its bars are probably
    one standard error (`hhh_jax.figures.sampling.elo`). Figure 24's legend has one name less than its curves. Which of
    each is right is not known, so nothing was mended.
  * Figure 24's densities are per factor of 10, and the curves of a panel share an area of 1: each of seven has 1/7.
  * Figures 27 and 28 are drawn with power laws fitted here, by the code that fits ours; points alone give no intervals.
    Stack Exchange and Reddit in figure 27 are power laws within 1% (exponents .005 and .011). Wikipedia misses its line
    by 3 to 6%, and every curve of figure 28 by 3 to 48%: these bend, and their exponents hold for no other sizes.
  * Finetuning curves look like trailing means over the second half of the steps so far.
  * Bars of figure 32 have their place among `TASKS_OF_FIGURE_32` as x.
"""

import functools
import io
import lzma
from importlib import resources
from typing import TYPE_CHECKING, Any

from hhh_jax import elo, stats
from hhh_jax.errors import UserError
from hhh_jax.figures import style
from hhh_jax.summary import size_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TASKS_OF_FIGURE_32 = (
    "Learn to Summarize", "HellaSwag", "Justice", "Commonsense", "Deontology", "Virtue", "Utilitarianism"
)  # fmt: skip
THIN = "light: "  # begins the names of what the paper draws as thin lines
ERROR_BAR = " (error bar "  # in the names of the ends of error bars, after that of their series
FITTED = (27, 28)
COLORS = (style.BLUE, style.VERMILION, style.GREEN, style.ORANGE, style.PURPLE, style.SKY, style.BLACK)


@functools.cache
def curves() -> "pd.DataFrame":
    """All curves: figure (int), panel, series, x, y (float), method."""
    import pandas as pd

    packed = resources.files("hhh_jax.figures").joinpath("paper_curves.csv.xz").read_bytes()
    return pd.read_csv(io.BytesIO(lzma.decompress(packed)))


@functools.cache
def panels() -> "pd.DataFrame":
    """All panels: figure (int), panel, xlabel, ylabel, xscale, yscale."""
    import pandas as pd

    with resources.files("hhh_jax.figures").joinpath("paper_panels.csv").open() as file:
        return pd.read_csv(file)


def panels_of(figure: int) -> "pd.DataFrame":
    """The panels of one figure. Raises UserError if the paper plots nothing under that number."""
    found = panels()[panels()["figure"] == figure]
    if not len(found):
        numbers = ", ".join(map(str, sorted(panels()["figure"].unique())))
        raise UserError(f"the paper has no curves in a figure {figure}; there are {numbers}")
    return found


def draw(figure: int) -> "Figure":
    """All panels of one of the paper's figures."""
    found = panels_of(figure)
    columns = min(len(found), 2 if len(found) <= 4 else 3)
    drawn, axes = style.new_figure(columns, -(-len(found) // columns), panel=(4.8, 2.8))
    for ax, panel in zip(axes.flat, found.itertuples(), strict=False):
        draw_panel(ax, figure, panel.panel)
    for ax in axes.flat[len(found) :]:
        ax.set_axis_off()
    return drawn


def draw_panel(ax: "Axes", figure: int, panel: str) -> None:
    """One panel; where series are sizes, a color is a size and dashes tell kinds apart."""
    about = panels_of(figure).set_index("panel").loc[panel]
    rows = curves()[(curves()["figure"] == figure) & (curves()["panel"] == panel)]
    names = [name for name in rows["series"].unique() if ERROR_BAR not in name]
    sizes = sorted({size for _, size in map(_kind_and_size, names) if size})
    kinds = list(dict.fromkeys(kind for kind, size in map(_kind_and_size, names) if size))
    bars = about["xscale"] == "categorical"
    for index, series in enumerate(names):
        line = rows[rows["series"] == series]
        kind, size = _kind_and_size(series)
        label = f"{kind} {size_name(size)}".strip() if size else kind
        color = COLORS[(sizes.index(size) if size else index) % len(COLORS)]
        if bars:
            ax.bar(line["x"] + 0.2 * (index - 1.5), line["y"], 0.18, color=color, label=label)
            continue
        thin = series.startswith(THIN)
        dashed = kinds.index(kind) > 0 if size else index >= len(COLORS)
        look: dict[str, Any] = {"linewidth": 0.9, "alpha": 0.6} if thin else {"linewidth": 1.4}
        marker = "" if len(line) > 40 or thin else "o"
        if figure in FITTED:
            law = stats.power_law_line(line["y"], line["x"])
            label = "\n".join([f"{label}: exponent {law.exponent:.4f}", *stats.flaws(law.misfit)])
            ax.plot(line["x"], law.coefficient * line["x"] ** -law.exponent, ":", color=color, linewidth=1)
            look = {"linewidth": 0}
        ax.plot(line["x"], line["y"], "--" if dashed else "-", color=color, marker=marker, label=label, **look)
        low, high = (rows[rows["series"] == f"{series}{ERROR_BAR}{end})"]["y"].to_numpy() for end in ("low", "high"))
        if len(low):
            ax.vlines(line["x"], low, high, color=color, linewidth=1)
    if figure == 9:
        _refit_table_2(ax)
    if bars:
        ax.set_xticks(range(len(TASKS_OF_FIGURE_32)), TASKS_OF_FIGURE_32, rotation=40, ha="right")
        style.zero_line(ax)
    else:
        ax.set_xscale(about["xscale"])
    ax.set_yscale(about["yscale"])
    ax.set_xlabel("non-embedding parameters" if about["xlabel"] == "number of parameters" else about["xlabel"])
    ax.set_ylabel(about["ylabel"])
    ax.set_title(f"the paper's figure {figure}" + ("" if panel == "main" else f", {panel.replace('_', ' ')}"))
    ax.legend(fontsize=6.5, loc="center left", bbox_to_anchor=(1, 0.5))


def _refit_table_2(ax: "Axes") -> None:
    """Elo scores by the equal-weight fit of the win rates of table 2, as open marks."""
    ratings = elo.fit(*elo.read(str(resources.files("hhh_jax.figures").joinpath("paper_table2.csv"))))
    scores = elo.rows(ratings, 0, "table 2")
    ax.plot(
        [row["N"] for row in scores], [row["value"] for row in scores], "o", color=style.BLACK, fillstyle="none",
        markersize=7, label="table 2, fitted here\nwith equal weights",
    )  # fmt: skip


def _kind_and_size(series: str) -> tuple[str, int]:
    """The name of a series and, where it ends in a model's parameters, these; else 0."""
    name = series.removeprefix(THIN)
    kind, _, size = name.rpartition(" ")
    return (kind, int(size)) if size.isdigit() and int(size) > 10**6 else (name, 0)
