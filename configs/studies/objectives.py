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
from typing import Any

import ml_collections

from hhh_jax import config
from hhh_jax.study import Job, Planned

EMBEDDED = {"word_order": "ranked", "line_order": "ranked", "order_label": "binary", "docstring_match": "binary"}
REAL = {
    "summarize": "ranked", "hellaswag": "ranked", "ethics_utilitarianism": "ranked", "ethics_commonsense": "binary",
    "ethics_deontology": "binary", "ethics_justice": "binary", "ethics_virtue": "binary",
}  # fmt: skip
LONG = ("summarize", "hellaswag", "ethics_commonsense")
BY_GROUP = ("ethics_deontology", "ethics_justice", "ethics_virtue")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Numbers of the study; `arg` is empty or ``data=DIR``."""
    folder = config.folder_argument(arg)
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
    return [*_baselines(c), *_pretraining(c), *_finetuning(c), *_dpo(c)]


def _tasks(c: ml_collections.ConfigDict) -> dict[str, str]:
    return REAL if c.data else EMBEDDED


def _source(c: ml_collections.ConfigDict, task: str) -> str:
    return f"{c.data}/{task}" if c.data else task


def _test_items(c: ml_collections.ConfigDict, task: str) -> int:
    return 0 if task in BY_GROUP else c.test_items


def _run(
    c: ml_collections.ConfigDict, stage: str, rung: str, source: str, **settings: Any
) -> ml_collections.ConfigDict:
    run = config.base_config(stage, rung)
    run.seeds, run.labels.study, run.data.source = c.seeds, c.name, source
    run.eval.limit, run.eval.validation_limit = c.test_items, c.validation_items
    run.term_norms_every = 0  # another program to compile
    run.checkpoint.every_minutes = 5.0
    config.assign(run, settings)
    return run


def _baselines(c: ml_collections.ConfigDict) -> Iterator[Planned]:
    for task in _tasks(c):
        arguments = {
            "task": _source(c, task), "seed": 0, "train_pairs": c.pairs, "test_pairs": _test_items(c, task),
        }  # fmt: skip
        yield Planned(f"baseline-{task}", job=Job("baselines", arguments))


def _pretraining(c: ml_collections.ConfigDict) -> Iterator[Planned]:
    p, corpus = c.pretraining, _source(c, "lm") if c.data else "stdlib"
    for rung in c.rungs:
        settings = {
            "tokens": c.tokens, "data.row_length": p.row_length, "data.max_tokens": p.max_tokens, "batch.rows": p.rows,
            "eval.tasks": tuple(_source(c, task) for task in _tasks(c)),
        }  # fmt: skip
        yield Planned(f"pretrain-{rung}", _run(c, "pretrain", rung, corpus, **settings))


def _finetuning(c: ml_collections.ConfigDict) -> Iterator[Planned]:
    for rung in c.rungs:
        for task, kind in _tasks(c).items():
            for stage in ("imitation", kind):
                yield from _arm(c, stage, rung, task)


def _dpo(c: ml_collections.ConfigDict) -> Iterator[Planned]:
    for rung in c.rungs:
        for task in _tasks(c):
            yield from _arm(c, "dpo", rung, task)


def _arm(c: ml_collections.ConfigDict, stage: str, rung: str, task: str) -> Iterator[Planned]:
    """One objective on one task at one rung: the runs that choose its learning rate, and then all seeds."""
    lengths = c.long_rows if task in LONG else c.rows
    settings = {
        "labels.init": "lm", "data.limit": c.pairs, "batch.pairs": c.batch_pairs, "eval.points": c.validations,
        "eval.limit": _test_items(c, task), "data.row_length": lengths.row_length,
        "data.max_tokens": lengths.max_tokens, "data.row_sizes": 1 if rung == "12k" else 2,
        "optim.lr_multiple": c.lr_multiple,
    }  # fmt: skip
    name, source, start = f"{stage}-{task}-{rung}", _source(c, task), f"pretrain-{rung}"
    grid = []
    for multiple in c.lr_grid:
        # The test set is not read while a learning rate is chosen.
        more = {"optim.lr_multiple": multiple, "seeds": c.seeds[:1], "eval.selections": ()}
        grid.append(Planned(f"{name}-lr_{multiple}", _run(c, stage, rung, source, **settings | more), start))
    yield from grid
    yield Planned(name, _run(c, stage, rung, source, **settings), start, tuple(run.name for run in grid))
    if rung in c.paper_lr_rungs:
        more = {"optim.lr_multiple": 0.01, "labels.intervention": "paper_lr"}
        yield Planned(f"{name}-paper_lr", _run(c, stage, rung, source, **settings | more), start)
