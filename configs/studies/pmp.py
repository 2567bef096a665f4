"""Preference model pre-training: scaling on each source and their mix, and what finetuning gains by it.

    python -m hhh_jax.study --config=configs/studies/pmp.py --workdir=runs/pmp
    python -m hhh_jax.study --config=configs/studies/pmp.py:data=DIR --workdir=runs/pmp-real

1. PMP (section 4; binary, one epoch) on every source at every rung, tested on held-out pairs, the mix on those of every
   source: figure 27
2. finetuning with and without it on several numbers of pairs, in runs of their own, and, of the runs on the most pairs,
   curves within one run: figures 4, 5, 16, 17, 28 and 32
3. controls at one rung: PMP on shuffled labels (``shuffled``), and language modeling alone on the same tokens
   (``lm_alone``)

The first form takes about a minute: two rungs, `edits` and `word_order` made from the standard library as sources, and
two other tasks to finetune on. The second one takes hours on two cores and is meant for a GPU: four rungs and prepared
folders of DIR (`python -m hhh_jax.data.prepare`), named

    stackexchange, reddit, wikipedia, mix                    sources of pairs; the mix by ``--source=mix``
    and the tasks and the text of configs/studies/objectives.py
"""

from collections.abc import Iterator
from typing import Any

import ml_collections

from hhh_jax import config, plan
from hhh_jax.data import datasets
from hhh_jax.study import Planned

EMBEDDED = ("line_order", "docstring_match")
PMP = {"epochs": 1.0, "eval.points": 1, "eval.selections": ("best",)}
"""One epoch (C.1); validated at its end only."""
CONTROLS = {"shuffled": {"data.flip": 0.5}, "lm_alone": {"objective.lam": 0.0}}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Numbers of the study; `arg` is empty or ``data=DIR``."""
    folder = plan.folder_argument(arg)
    c = ml_collections.ConfigDict()
    c.name = "pmp-real" if folder else "pmp"
    c.data = folder
    c.rungs = ("98k", "332k", "786k", "2.7m") if folder else ("12k", "98k")
    c.seeds = (0, 1, 2)
    c.tokens = 1e7 if folder else 1e5
    c.row_length = 256 if folder else 128
    c.sources = ("stackexchange", "reddit", "wikipedia") if folder else ("edits", "word_order")
    c.mix = "mix" if folder else "edits+word_order"
    c.pmp_pairs = 20000 if folder else 200
    c.finetune_pairs = (500, 1500, 5000) if folder else (32, 128)
    c.curve = (500, 1000, 1500, 2500, 5000) if folder else (32, 64, 96, 128)  # pairs seen, within the longest run
    c.batch_pairs = 32 if folder else 8
    c.validation_items = 200 if folder else 50
    c.validations = 4 if folder else 1
    c.test_items = 2000 if folder else 200
    c.lr_multiple = 0.5
    c.lr_grid = (0.3, 1.0) if folder else ()  # chosen by validation for each task and rung, without PMP
    c.control_rung = c.rungs[-1]
    return c


def runs(c: ml_collections.ConfigDict) -> list[Planned]:
    """All runs, every one after those that it needs."""
    return [*plan.baselines(c, _tasks(c), c.finetune_pairs[-1]), *_pretraining(c), *_finetuning(c)]


def _tasks(c: ml_collections.ConfigDict) -> tuple[str, ...]:
    return plan.PAPER_TASKS if c.data else EMBEDDED


def _run(c: ml_collections.ConfigDict, stage: str, rung: str, name: str, **settings: Any) -> ml_collections.ConfigDict:
    """A run's config with the study's numbers and then `settings`, by full field names."""
    run = plan.run_config(c, stage, rung, plan.source(c, name))
    run.data.row_length, run.data.max_tokens, run.model.max_positions = c.row_length, c.row_length // 2, c.row_length
    if stage != "pretrain":
        run.batch.pairs, run.data.row_sizes, run.optim.lr_multiple = c.batch_pairs, 1, c.lr_multiple
    config.assign(run, settings)
    return run


def _pretraining(c: ml_collections.ConfigDict) -> Iterator[Planned]:
    """Language models, and PMP from each."""
    for rung in c.rungs:
        start = f"pretrain-{rung}"
        yield Planned(start, _run(c, "pretrain", rung, "lm" if c.data else "stdlib", tokens=c.tokens))
        for name in (*c.sources, c.mix):
            others = tuple(plan.source(c, source) for source in c.sources) if name == c.mix else ()
            settings = {"data.limit": c.pmp_pairs, "eval.tasks": others, **PMP}
            yield Planned(f"pmp-{name}-{rung}", _run(c, "pmp", rung, name, **settings), start)
    for control, settings in CONTROLS.items():
        more = {"data.limit": c.pmp_pairs, "labels.intervention": control, **PMP, **settings}
        name = f"pmp-{c.mix}-{control}-{c.control_rung}"
        yield Planned(name, _run(c, "pmp", c.control_rung, c.mix, **more), f"pretrain-{c.control_rung}")


def _finetuning(c: ml_collections.ConfigDict) -> Iterator[Planned]:
    for rung in c.rungs:
        for task in _tasks(c):
            longest = _tuned(c, rung, task, c.finetune_pairs[-1])
            grid = plan.rate_grid(c, f"{task}-{rung}", longest, f"pretrain-{rung}")
            yield from grid
            choose = tuple(run.name for run in grid)
            for pairs in c.finetune_pairs:
                for arm, (init, intervention, after) in _arms(c, rung).items():
                    keep = "fresh" if init == "lm" or intervention == "lm_alone" else "keep"
                    labels = {"labels.init": init, "labels.intervention": intervention, "init.score_head": keep}
                    name = f"{task}-{rung}-from_{arm}-{pairs}_pairs"
                    yield Planned(name, _tuned(c, rung, task, pairs, **labels), after, choose)


def _arms(c: ml_collections.ConfigDict, rung: str) -> dict[str, tuple[str, str, str]]:
    """What finetuning starts from: init and intervention as in the results table, and the run."""
    arms = {"lm": ("lm", "", f"pretrain-{rung}")}
    for name in (*c.sources, c.mix):
        arms[name] = (f"pmp:{name}:binary", "", f"pmp-{name}-{rung}")
    if rung == c.control_rung:
        for control in CONTROLS:
            arms[f"{c.mix}-{control}"] = (f"pmp:{c.mix}:binary", control, f"pmp-{c.mix}-{control}-{rung}")
    return arms


def _tuned(
    c: ml_collections.ConfigDict, rung: str, task: str, pairs: int, **settings: Any
) -> ml_collections.ConfigDict:
    """Finetuning of a preference model, with the curve within one run if it is the longest."""
    more = {
        "data.limit": pairs, "eval.points": c.validations, "eval.limit": plan.tested_items(c, task),
        "eval.selections": ("best",),
    }  # fmt: skip
    if pairs == c.finetune_pairs[-1]:
        more["eval.curve"] = c.curve
    if task in plan.LONG_TASKS:
        more["data.max_tokens"] = c.row_length * 3 // 4
    return _run(c, datasets.kind(plan.source(c, task)), rung, task, **more | settings)
