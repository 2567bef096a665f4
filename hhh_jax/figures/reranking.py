"""Re-ranking samples: the paper's figures 11 to 13, from the rows of `hhh_jax.analyses.rerank`."""

from typing import TYPE_CHECKING, Any

from hhh_jax.analyses.rerank import PAPER_KS
from hhh_jax.figures import style
from hhh_jax.summary import size_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STAGE = "rerank"
KINDS = {"code": "code correctness", "last_word": "the last word"}
BOUNDS = {  # ranker -> name, dashes of its thin line
    "oracle": ("oracle", (0, (6, 2))),
    "unranked": ("unranked average", (0, (2, 1.5))),
    "greedy": ("imitation at T = 0", (0, (6, 2, 1, 2))),
}
PANELS = 4  # numbers of samples in a figure against size, as in the paper


def over_samples(table: "pd.DataFrame") -> "Figure":
    """Figure 11: acc@k against k at the largest size, a panel a task."""
    rows = style.need(_pooled(table), "acc@k of re-ranked samples")
    tasks = sorted(rows["task"].unique())
    figure, axes = style.new_figure(len(tasks), panel=(3.6, 2.9))
    for ax, task in zip(axes[0], tasks, strict=True):
        here = rows[rows["task"] == task]
        here = here[here["N"] == here["N"].max()].sort_values("k")
        _lines(ax, here, "k")
        samples = sorted(here["k"].dropna().astype(int).unique())
        ax.set_xscale("log", base=2)
        ax.set_xticks(samples, [str(k) for k in samples])
        ax.minorticks_off()
        ax.set_xlabel("samples ranked, k")
        ax.set_title(f"{task_title(task)} (N = {size_name(here['N'].max())})")
    axes[0, 0].set_ylabel("accuracy of the best-ranked of k")
    style.legend_below(figure, list(axes[0]), columns=5)
    return figure


def over_size(kind: str, table: "pd.DataFrame") -> "Figure":
    """Figures 12 and 13: acc@k against N for some k, a row of panels a task of this kind."""
    rows = _pooled(table)
    rows = style.need(rows[rows["task"].str.startswith(f"{kind}:")], f"acc@k of {KINDS[kind]}")
    tasks, there = sorted(rows["task"].unique()), {int(k) for k in rows["k"].dropna()}
    shown = [k for k in PAPER_KS if k in there]
    shown = sorted({*shown, max(there)})[-PANELS:]  # with fewer samples than the paper's, all of them come last
    figure, axes = style.new_figure(len(shown), len(tasks), panel=(2.6, 2.6), sharey="row")
    for panels, task in zip(axes, tasks, strict=True):
        for ax, k in zip(panels, shown, strict=True):
            here = rows[(rows["task"] == task) & ((rows["k"] == k) | rows["k"].isna()).fillna(False)]
            _lines(ax, here.sort_values("N"), "N")
            style.size_axis(ax, sorted(here["N"].astype(float).unique()))
            ax.set_title(f"{task_title(task)}, k = {k}")
        panels[0].set_ylabel("accuracy of the best-ranked")
    style.legend_below(figure, list(axes.flat), columns=5)
    return figure


def task_title(task: str) -> str:
    """The name of a task of `hhh_jax.samples` for readers."""
    return task.partition(":")[2].replace("_", " ").capitalize()


def _pooled(table: "pd.DataFrame") -> "pd.DataFrame":
    rows = style.select(table, stage=STAGE, metric="acc_at_k")
    return rows[rows["seed"].isna()]


def _lines(ax: "Axes", rows: "pd.DataFrame", x: str) -> None:
    """Both rankers with their intervals, and what bounds them as thin lines, against k or N."""
    for index, (objective, ranker) in enumerate((("imitation", "mean_logp"), ("preference", "reward"))):
        name, color, marker = style.OBJECTIVES[objective]
        style.band(ax, rows[rows["ranker"] == ranker], x, name, color, marker, (-0.012, 0.012)[index])
    for ranker, (name, dashes) in BOUNDS.items():
        line = rows[rows["ranker"] == ranker]
        look: dict[str, Any] = {"color": style.GRAY, "linewidth": 0.9, "linestyle": dashes, "label": name, "zorder": 1}
        look |= {"marker": "."} if x == "N" else {}  # a single size is no line
        if ranker == "greedy" and x == "k":
            for value in line["value"]:
                ax.axhline(value, **look)
        elif len(line):
            ax.plot(line[x].astype(float), line["value"], **look)


def code(table: "pd.DataFrame") -> "Figure":
    """Figure 12."""
    return over_size("code", table)


def last_word(table: "pd.DataFrame") -> "Figure":
    """Figure 13."""
    return over_size("last_word", table)


_HOW = (
    "Of k samples of the language model, how often the one that a ranker puts first is right (unbiased over all "
    "subsets of the samples), with 95% intervals over seeds and problems. Imitation ranks by mean log-probability, "
    "preference modeling by reward. The oracle takes a right sample if there is one."
)

FIGURES = {
    "figure11": style.Drawing(
        over_samples,
        "Re-ranking more samples",
        f"As the paper's figure 11, at the largest size. {_HOW} The paper: both rise with k, and about equally.",
        numbers=(11,),
        stage=STAGE,
    ),
    "figure12": style.Drawing(
        code,
        "Re-ranking code",
        f"As the paper's figure 12. {_HOW} Code is right if it passes the tests.",
        numbers=(12,),
        stage=STAGE,
    ),
    "figure13": style.Drawing(
        last_word,
        "Re-ranking last words",
        f"As the paper's figure 13. {_HOW} A further line is the imitation model's most probable answer (T = 0).",
        numbers=(13,),
        stage=STAGE,
    ),
}
