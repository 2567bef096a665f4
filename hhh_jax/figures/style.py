"""One look for every figure: colors that color-blind readers can tell apart (Okabe and Ito), sizes, axes,
saving."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hhh_jax.summary import size_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLACK, GRAY, LIGHT = "#222222", "#7a7a7a", "#d9d9d9"
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"

PANEL = (3.1, 2.6)  # inches
RC: Any = {
    "font.size": 9, "axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8,
    "legend.frameon": False, "legend.handlelength": 1.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GRAY, "axes.labelcolor": BLACK,
    "text.color": BLACK, "xtick.color": GRAY, "ytick.color": GRAY,
    "xtick.labelcolor": BLACK, "ytick.labelcolor": BLACK, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": "#ececec", "grid.linewidth": 0.7, "lines.linewidth": 1.6, "lines.markersize": 4.5,
    "figure.dpi": 100, "savefig.dpi": 200, "pdf.fonttype": 3,
}  # fmt: skip

OBJECTIVES = {  # objective -> name, color, marker
    "preference": ("preference modeling", VERMILION, "o"),
    "imitation": ("imitation", BLUE, "s"),
    "dpo": ("DPO", ORANGE, "D"),
    "untuned": ("untuned LM", GRAY, "^"),
}
BASELINES = {  # ranker -> name, dashes of its thin line
    "chance": ("chance", (0, ())),
    "majority": ("majority label", (0, (1, 1))),
    "shorter": ("shorter", (0, (3, 2))),
    "longer": ("longer", (0, (6, 2))),
    "bag_of_words": ("bag of words", (0, (6, 2, 1, 2))),
}


class Drawing(NamedTuple):
    """How to draw a figure; `caption` says how to read it and what it corresponds to in the paper, `numbers` which of
    the paper's figures it is, `stage` the rows without which a study has nothing to do with it ("": any study), and
    `needs` says so of what a stage does not tell."""

    draw: Callable[["pd.DataFrame"], "Figure"]
    title: str
    caption: str
    numbers: tuple[int, ...] = ()
    stage: str = ""
    needs: Callable[["pd.DataFrame"], bool] = lambda table: True


def concerns(table: "pd.DataFrame", drawing: Drawing) -> bool:
    """Whether a study with this table has anything to do with a figure."""
    return drawing.stage in {"", *table["stage"].unique()} and drawing.needs(table)


class NoRows(Exception):
    """The table lacks the rows that a figure draws; the message says which."""


def new_figure(columns: int = 1, rows: int = 1, panel: tuple[float, float] = PANEL, **kwargs: Any) -> Any:
    """A figure of equal panels and its axes [rows, columns]; no global state is touched."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(panel[0] * columns, panel[1] * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def panels(count: int, columns: int = 4, panel: tuple[float, float] = PANEL, **kwargs: Any) -> Any:
    """A figure of `count` panels, `columns` to a row, and their axes in order."""
    columns = min(count, columns)
    figure, axes = new_figure(columns, -(-count // columns), panel, **kwargs)
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    return figure, list(axes.flat[:count])


def select(table: "pd.DataFrame", **where: Any) -> "pd.DataFrame":
    """The table's rows with these values (a list: any of them), sorted by N and number of pairs."""
    chosen = table[table["split"] == "test"]
    for column, value in where.items():
        same = chosen[column].isin(value) if isinstance(value, list | tuple) else chosen[column] == value
        chosen = chosen[same.fillna(False)]
    return chosen.sort_values(["N", "pairs_total", "seed"], kind="stable")


def need(rows: "pd.DataFrame", what: str) -> "pd.DataFrame":
    """The rows; raises NoRows if there are none."""
    if not len(rows):
        raise NoRows(f"no rows of {what}")
    return rows


def size_axis(ax: "Axes", sizes: Sequence[float]) -> None:
    """A logarithmic axis of non-embedding parameters with a tick at every rung."""
    _log_ticks(ax, sizes, [size_name(n) for n in sizes])
    ax.set_xlabel("non-embedding parameters")


def pairs_axis(ax: "Axes", pairs: Sequence[float]) -> None:
    """A logarithmic axis of training pairs with a tick at every number that was run."""
    _log_ticks(ax, pairs, [f"{p:.0f}" for p in pairs])
    ax.set_xlabel("finetuning pairs")


def _log_ticks(ax: "Axes", values: Sequence[float], labels: Sequence[str]) -> None:
    ax.set_xscale("log")
    ax.set_xticks(list(values), labels)
    ax.minorticks_off()
    margin = max((max(values) / min(values)) ** 0.09, 1.2)  # a single value needs room too
    ax.set_xlim(min(values) / margin, max(values) * margin)


def band(
    ax: "Axes",
    rows: "pd.DataFrame",
    x: str,
    label: str,
    color: str,
    marker: str = "o",
    shift: float = 0,
    **line: Any,
) -> None:
    """A line through the values of pooled rows with their 95% intervals; `shift` moves it along a logarithmic
    axis (in decades), so that neighbours do not hide each other."""
    x_values = rows[x].astype(float) * 10**shift
    error = [rows["value"] - rows["lo"], rows["hi"] - rows["value"]]
    style: dict[str, Any] = {
        "linewidth": 1.6,
        "elinewidth": 1.1,
        "capsize": 0,
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
    } | line
    ax.errorbar(x_values, rows["value"], yerr=error, color=color, marker=marker, label=label, **style)


def seeds(ax: "Axes", rows: "pd.DataFrame", x: str, color: str, shift: float = 0) -> None:
    """A faint dot for every seed's own value."""
    ax.scatter(
        rows[x].astype(float) * 10**shift,
        rows["value"],
        s=7,
        color=color,
        alpha=0.35,
        linewidths=0,
        zorder=1.5,
    )


def zero_line(ax: "Axes", at: float = 0.0) -> None:
    """The line of no difference, or of chance."""
    ax.axhline(at, color=GRAY, linewidth=0.8, zorder=1)


def legend_below(figure: "Figure", axes: Sequence["Axes"], columns: int = 4) -> None:
    """One legend for all panels, under them, each name once: lines with intervals first, then plain ones.

    It has as many of `columns` as fit the figure's width.
    """
    from matplotlib.container import ErrorbarContainer

    handles: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    handles = dict(sorted(handles.items(), key=lambda item: not isinstance(item[1], ErrorbarContainer)))
    for n in range(min(columns, len(handles)), 0, -1):
        legend = figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=n)
        if n == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def save(figure: "Figure", path: Path) -> None:
    """Write `path` as PNG and, beside it, PDF; without dates, so the same figure gives the same bytes."""
    figure.savefig(path.with_suffix(".png"), metadata={"Software": None})
    figure.savefig(
        path.with_suffix(".pdf"), metadata={"CreationDate": None, "Producer": None, "Creator": None}
    )
