"""One function a figure of the paper: the results table in, a matplotlib Figure out.

The table is results.csv and summary.csv together (`hhh_jax.results`, `hhh_jax.summary`). A function raises
`style.NoRows` when the rows that it draws are missing; `draw_all` skips such a figure and says why.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hhh_jax import results
from hhh_jax.errors import UserError
from hhh_jax.figures import (
    beyond,
    discriminator,
    objectives,
    paper,
    pmp,
    pmp_needs,
    prompting,
    reranking,
    sampling,
    scaling,
    style,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

FIGURES = (
    objectives.FIGURES
    | reranking.FIGURES
    | scaling.FIGURES
    | pmp.FIGURES
    | pmp_needs.FIGURES
    | prompting.FIGURES | sampling.FIGURES
    | discriminator.FIGURES
    | beyond.FIGURES
)
"""Every figure by name, in the order of a report."""


class Drawn(NamedTuple):
    """The PNG of every figure drawn (a PDF lies beside it), and why the others were not."""

    paths: dict[str, Path]
    skipped: dict[str, str]


def draw_figure(which: str, results_path: str | None, out_dir: Path, with_paper: bool) -> list[Path]:
    """Draws one of the paper's figures from a results table, from the paper's own numbers, or from both.

    Args:
      which: a number of the paper, or a name of `FIGURES` for a figure that the paper has none of.

    Returns the PNG of each; a PDF lies beside it. A number may be several figures of ours; those that the table has the
    rows of are drawn. Raises UserError if there is no such figure, or nothing to draw it from.
    """
    import matplotlib

    number = int(which) if which.isdecimal() else None
    figures: dict[str, Figure] = {}
    with matplotlib.rc_context(style.RC):
        if results_path:
            figures |= _drawn(which, number, results_path)
        if with_paper:
            if number is None:
                raise UserError(f"--figure={which} --paper: the paper has numbers only; leave out --paper")
            figures[f"paper{number}"] = paper.draw(number)
        if not figures:
            raise UserError("give --results, --paper, or both: there is nothing to draw from")
        out_dir.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            style.save(figure, out_dir / f"{name}.png")
    return [out_dir / f"{name}.png" for name in figures]


def _drawn(which: str, number: int | None, results_path: str) -> "dict[str, Figure]":
    ours = {name: drawing for name, drawing in FIGURES.items() if which == name or number in drawing.numbers}
    if not ours:
        numbers = ", ".join(map(str, sorted({n for drawing in FIGURES.values() for n in drawing.numbers})))
        names = ", ".join(name for name, drawing in FIGURES.items() if not drawing.numbers)
        raise UserError(f"no figure {which} can be drawn from a results table; there are {numbers}, {names}")
    table = results.read_with_summary(results_path)
    figures, missing = {}, []
    for name, drawing in ours.items():
        try:
            figures[name] = drawing.draw(table)
        except style.NoRows as reason:
            missing.append(str(reason))
    if not figures:
        raise UserError(f"{results_path}: figure {which} needs what it lacks: {'; '.join(missing)}")
    return figures


def each_of(table: "pd.DataFrame") -> Iterator[tuple[str, "Figure | str"]]:
    """Every figure that concerns the table, by name: drawn, in the style that holds until the next one, or why not."""
    import matplotlib

    for name, drawing in FIGURES.items():
        if not style.concerns(table, drawing):
            continue
        with matplotlib.rc_context(style.RC):
            try:
                figure = drawing.draw(table)
            except style.NoRows as missing:
                yield name, str(missing)
                continue
            yield name, figure


def draw_all(table: "pd.DataFrame", out_dir: str | Path) -> Drawn:
    """Draw every figure whose rows the table has into `out_dir`, as NAME.png and NAME.pdf; the same table
    gives the same bytes. Figures of stages that the table has no rows of are passed over without a word."""
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    drawn = Drawn({}, {})
    for name, figure in each_of(table):
        if isinstance(figure, str):
            drawn.skipped[name] = figure
        else:
            drawn.paths[name] = out_dir / f"{name}.png"
            style.save(figure, drawn.paths[name])
    return drawn
