"""Draws any figure of the paper.

    python -m hhh_jax.figures --figure=14 --results=RUNS/results.csv --out=DIR           from a results table
    python -m hhh_jax.figures --figure=14 --results=RUNS/results.csv --out=DIR --paper   and the paper's beside it
    python -m hhh_jax.figures --figure=14 --out=DIR --paper                              the paper's alone
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from hhh_jax import cli

_FIGURE = flags.DEFINE_string("figure", None, "Number of the paper's figure, or name of one of ours.", required=True)
_RESULTS = flags.DEFINE_string("results", None, "A study's results.csv; its summary.csv is read too if it is there.")
_OUT = flags.DEFINE_string("out", None, "Folder to write PNG and PDF into.", required=True)
_PAPER = flags.DEFINE_bool("paper", False, "Draw the paper's own curves, too.")


def main(_: Sequence[str]) -> None:
    from hhh_jax import figures

    for path in figures.draw_figure(_FIGURE.value, _RESULTS.value, Path(_OUT.value), _PAPER.value):
        print(path)


if __name__ == "__main__":
    cli.start(main)
