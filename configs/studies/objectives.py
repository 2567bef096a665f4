"""Section 3 of the paper: imitation against preference modeling on ranked and binary tasks (figures 3, 14 and 15).

DPO stands beside them on the same pairs: it sees both sides as preference modeling does, and has no scalar head.

    python -m hhh_jax.study --config=configs/studies/objectives.py --workdir=runs/objectives
    python -m hhh_jax.study --config=configs/studies/objectives.py:data=DIR --workdir=runs/objectives-real

The first form takes about a minute: two rungs and tasks made from the standard library. The second one takes an hour or
two on two cores: four rungs, a learning rate chosen by validation for each task, rung and objective, and seven of the
paper's tasks, in prepared folders of DIR (`python -m hhh_jax.data.prepare`), named

    summarize, hellaswag, ethics_utilitarianism                                      ranked
    ethics_commonsense, ethics_deontology, ethics_justice, ethics_virtue             binary, in label form
    lm                                                                               documents to pretrain on

A folder that lacks train, validation or test, as of a sample, is cut anew by
``--source=mix --option=splits=cut --held_out=0.15``; a mix of books and code is made by ``--source=mix`` too.

Sides of summaries, HellaSwag and commonsense (context and response together) have at most 192 tokens of a vocabulary of
1024, in rows of 256: most posts and articles, which are longer, keep their end. What does not fit is counted in each
run's data.json. Deontology, justice and virtue are tested on all items, because they also count by group.
"""

from collections.abc import Iterator

import ml_collections

from hhh_jax import plan
from hhh_jax.data import datasets
from hhh_jax.study import Planned

EMBEDDED = ("word_order", "line_order", "order_label", "docstring_match")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Numbers of the study; `arg` is empty or ``data=DIR``."""
    folder = plan.folder_argument(arg)
    c = ml_collections.ConfigDict()
    c.name = "objectives-real" if folder else "objectives"
    c.data = folder
    c.rungs = ("12k", "98k", "332k", "786k") if folder else ("12k", "98k")
    c.seeds = (0, 1, 2)
    c.tokens = 1e6 if folder else 1e5
    c.pretraining = {"row_length": 256, "max_tokens": 192, "rows": 4} if folder else {
        "row_length": 128, "max_tokens": 64, "rows": 8,
    }  # fmt: skip
    c.long_rows = {"row_length": 256, "max_tokens": 192}
    c.rows = {"row_length": 128, "max_tokens": 120 if folder else 64}
    c.pairs = 800 if folder else 96
    c.batch_pairs = 8
    c.validation_items = 200 if folder else 50
    c.validations = 3 if folder else 1
    c.test_items = 800 if folder else 200
    c.lr_multiple = 0.5
    c.lr_grid = (0.3, 1.0) if folder else ()  # chosen by validation on the first seed, the same for all objectives
    c.paper_lr_rungs = ("98k",) if folder else ()  # the paper's constant 0.01 of the pretraining rate beside it
    return c


def runs(c: ml_collections.ConfigDict) -> list[Planned]:
    """All runs, every one after those that it needs."""
    return [*plan.baselines(c, _tasks(c), c.pairs), *_pretraining(c), *_finetuning(c), *_dpo(c)]


def _tasks(c: ml_collections.ConfigDict) -> tuple[str, ...]:
    return plan.PAPER_TASKS if c.data else EMBEDDED


def _pretraining(c: ml_collections.ConfigDict) -> Iterator[Planned]:
    p, corpus = c.pretraining, plan.source(c, "lm") if c.data else "stdlib"
    for rung in c.rungs:
        settings = {
            "tokens": c.tokens, "data.row_length": p.row_length, "data.max_tokens": p.max_tokens, "batch.rows": p.rows,
            "eval.tasks": tuple(plan.source(c, task) for task in _tasks(c)),
        }  # fmt: skip
        yield Planned(f"pretrain-{rung}", plan.run_config(c, "pretrain", rung, corpus, **settings))


def _finetuning(c: ml_collections.ConfigDict) -> Iterator[Planned]:
    for rung in c.rungs:
        for task in _tasks(c):
            for stage in ("imitation", datasets.kind(plan.source(c, task))):
                yield from _arm(c, stage, rung, task)


def _dpo(c: ml_collections.ConfigDict) -> Iterator[Planned]:
    for rung in c.rungs:
        for task in _tasks(c):
            yield from _arm(c, "dpo", rung, task)


def _arm(c: ml_collections.ConfigDict, stage: str, rung: str, task: str) -> Iterator[Planned]:
    """One objective on one task at one rung: the runs that choose its learning rate, and then all seeds."""
    lengths = c.long_rows if task in plan.LONG_TASKS else c.rows
    settings = {
        "labels.init": "lm", "data.limit": c.pairs, "batch.pairs": c.batch_pairs, "eval.points": c.validations,
        "eval.limit": plan.tested_items(c, task), "data.row_length": lengths.row_length,
        "data.max_tokens": lengths.max_tokens, "data.row_sizes": 1 if rung == "12k" else 2,
        "optim.lr_multiple": c.lr_multiple,
    }  # fmt: skip
    name, source, start = f"{stage}-{task}-{rung}", plan.source(c, task), f"pretrain-{rung}"
    run = plan.run_config(c, stage, rung, source, **settings)
    grid = plan.rate_grid(c, name, run, start)
    yield from grid
    yield Planned(name, run, start, tuple(run.name for run in grid))
    if rung in c.paper_lr_rungs:
        more = {"optim.lr_multiple": 0.01, "labels.intervention": "paper_lr"}
        yield Planned(f"{name}-paper_lr", plan.run_config(c, stage, rung, source, **settings | more), start)
