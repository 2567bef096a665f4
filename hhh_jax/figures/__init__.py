"""One function a figure of the paper: the results table in, a matplotlib Figure out.

The table is results.csv and summary.csv together (`hhh_jax.results`, `hhh_jax.summary`). A function raises
`style.NoRows` when the rows that it draws are missing; `draw_all` skips such a figure and says why.
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hhh_jax import results
from hhh_jax.errors import UserError
from hhh_jax.figures import objectives, paper, pmp, prompting, scaling, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

FIGURES = objectives.FIGURES | scaling.FIGURES | pmp.FIGURES | prompting.FIGURES
"""Every figure by name, in the order of a report."""


class Drawn(NamedTuple):
    """The PNG of every figure drawn (a PDF lies beside it), and why the others were not."""

    paths: dict[str, Path]
    skipped: dict[str, str]


def draw_number(number: int, results_path: str | None, out_dir: Path, with_paper: bool) -> list[Path]:
    """Draws one of the paper's figures from a results table, from the paper's own numbers, or from both.

    Returns the PNG of each; a PDF lies beside it. Raises UserError if there is no such figure, or nothing to draw it
    from.
    """
    import matplotlib

    ours = [(name, drawing) for name, drawing in FIGURES.items() if number in drawing.numbers]
    figures: dict[str, Figure] = {}
    with matplotlib.rc_context(style.RC):
        if results_path:
            if not ours:
                known = ", ".join(map(str, sorted({n for drawing in FIGURES.values() for n in drawing.numbers})))
                raise UserError(f"no figure {number} can be drawn from a results table; there are {known}")
            table = results.read_with_summary(results_path)
            for name, drawing in ours:
                try:
                    figures[name] = drawing.draw(table)
                except style.NoRows as missing:
                    raise UserError(f"{results_path}: figure {number} needs what it lacks: {missing}") from None
        if with_paper:
            figures[f"paper{number}"] = paper.draw(number)
        if not figures:
            raise UserError("give --results, --paper, or both: there is nothing to draw from")
        out_dir.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            style.save(figure, out_dir / f"{name}.png")
    return [out_dir / f"{name}.png" for name in figures]


def draw_all(table: "pd.DataFrame", out_dir: str | Path) -> Drawn:
    """Draw every figure whose rows the table has into `out_dir`, as NAME.png and NAME.pdf; the same table
    gives the same bytes. Figures of stages that the table has no rows of are passed over without a word."""
    import matplotlib

    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    drawn = Drawn({}, {})
    stages = {"", *table["stage"].unique()}
    for name, drawing in FIGURES.items():
        if drawing.stage not in stages:
            continue
        with matplotlib.rc_context(style.RC):
            try:
                figure = drawing.draw(table)
            except style.NoRows as missing:
                drawn.skipped[name] = str(missing)
                continue
            drawn.paths[name] = out_dir / f"{name}.png"
            style.save(figure, drawn.paths[name])
    return drawn
