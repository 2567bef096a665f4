"""What the files of configs/studies share: the paper's tasks, and runs with a study's numbers.

The numbers `c` of a study have its name, its seeds, how many test and validation items are scored (`test_items`,
`validation_items`; 0: all) and, where it has a form on real data, the folder of that (`data`, "" without one).
"""

from collections.abc import Iterable, Iterator
from typing import Any

import ml_collections

from hhh_jax import config
from hhh_jax.data.datasets import BINARY_FOLDERS
from hhh_jax.errors import UserError
from hhh_jax.study import RUN, Job, Planned

PAPER_TASKS = ("summarize", "hellaswag", "ethics_utilitarianism", *BINARY_FOLDERS)
"""The paper's finetuning tasks, by the names of their prepared folders: three ranked and four binary ones."""
LONG_TASKS = ("summarize", "hellaswag", "ethics_commonsense")
"""Those that do not fit short rows."""
BY_GROUP = ("ethics_deontology", "ethics_justice", "ethics_virtue")
"""Those tested on all items, because they also count by group."""


def folder_argument(arg: str) -> str:
    """The folder of a study's argument ``data=DIR``; "" without one. Raises UserError for any other argument."""
    key, _, folder = arg.partition("=")
    if key not in ("", "data") or (key and not folder):
        raise UserError(f"no argument {arg!r} of this study: give data=DIR, or nothing")
    return folder.rstrip("/")


def source(c: ml_collections.ConfigDict, name: str) -> str:
    """Where data named `name` comes from: the study's folder if it has one, unless another run makes them."""
    return f"{c.data}/{name}" if c.data and not name.startswith(RUN) else name


def tested_items(c: ml_collections.ConfigDict, task: str) -> int:
    """How many items of a task are tested; 0: all."""
    return 0 if task in BY_GROUP else int(c.test_items)


def run_config(
    c: ml_collections.ConfigDict, stage: str, rung: str, source: str, **settings: Any
) -> ml_collections.ConfigDict:
    """A run's config with the study's numbers and then `settings`, by full field names."""
    run = config.base_config(stage, rung)
    run.seeds, run.labels.study, run.data.source = c.seeds, c.name, source
    run.eval.limit, run.eval.validation_limit = c.test_items, c.validation_items
    run.term_norms_every = 0  # another program to compile
    run.checkpoint.every_minutes = 5.0
    config.assign(run, settings)
    return run


def baselines(c: ml_collections.ConfigDict, tasks: Iterable[str], train_pairs: int) -> Iterator[Planned]:
    """What lengths, words and the like alone get right of every task, from the pairs that its models are given."""
    for task in tasks:
        arguments = {
            "task": source(c, task), "seed": 0, "train_pairs": train_pairs, "test_pairs": tested_items(c, task),
        }  # fmt: skip
        yield Planned(f"baseline-{task}", job=Job("baselines", arguments))


def rate_grid(c: ml_collections.ConfigDict, name: str, run: ml_collections.ConfigDict, after: str) -> list[Planned]:
    """The runs whose validation chooses a learning rate for `run`, one for each of the study's `lr_grid`.

    They have one seed and do not read the test set.
    """
    planned = []
    for multiple in c.lr_grid:
        tuned = run.copy_and_resolve_references()
        settings = {"optim.lr_multiple": multiple, "seeds": c.seeds[:1], "eval.selections": (), "eval.curve": ()}
        config.assign(tuned, settings)
        planned.append(Planned(f"{name}-lr_{multiple}", tuned, after))
    return planned
