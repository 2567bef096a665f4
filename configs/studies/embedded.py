"""The embedded study: the paper's comparisons on text that every machine has, at sizes that a CPU trains.

    bash launch/local.sh study                  # about a quarter of an hour on 2 cores
    bash launch/local.sh study --preset=full    # hours: a fifth rung, more data, learning-rate grids, five seeds

1. language-model pretraining at every rung: loss against N
2. finetuning with each objective on two ranked and two binary tasks and a format twin: figures 3, 14, 15
3. preference model pre-training on `edits` (pages of the standard library with words replaced), then finetuning:
   figures 4, 5, 18
4. the symbols experiment: figure 33
"""

from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections

from hhh_jax import config, plan
from hhh_jax.errors import UserError
from hhh_jax.study import Planned

RANKED = ("word_order", "line_order")
BINARY = ("order_label", "docstring_match")
TWIN = "word_order_label"
TASKS = (*RANKED, *BINARY, TWIN)
PMP = {"epochs": 1.0, "eval.points": 1, "eval.selections": ("best",)}
"""One epoch (C.1); validated at its end only."""


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    """Numbers of the study; `preset` is empty or ``full``."""
    if preset not in ("", "full"):
        raise UserError(f"no preset {preset!r} of the embedded study; there is full, and none")
    full = preset == "full"
    c = ml_collections.ConfigDict()
    c.name, c.data = preset or "embedded", ""
    c.rungs = ("12k", "98k", "332k", "786k") + (("2.7m",) if full else ())
    c.seeds = tuple(range(5 if full else 3))
    c.pretrain_tokens = 1e6 if full else 5e5  # with a million, two cores need a quarter of an hour for these alone
    c.pairs = 1200 if full else 400
    c.epochs = 2.0 if full else 1.0
    c.batch_pairs = 8  # many small updates: at these sizes more of them help more than larger ones
    c.test_items = 1500 if full else 1000
    c.validation_items = 400 if full else 100
    c.validations = 3 if full else 2
    c.one_program_rungs = ("12k", "98k")  # padding costs them less than another size of batch to compile
    c.selections = ("best", "final") if full else ("best",)
    c.twin_rungs = c.rungs if full else ("332k",)
    c.lr_multiple = 0.5
    c.lr_grid = (0.15, 0.5, 1.5) if full else ()  # chosen for each rung, task and objective by validation, on one seed
    c.paper_lr_rungs = ("98k", "332k") if full else ()  # the paper's constant 0.01 of the pretraining rate beside it
    c.pmp = {
        "rung": "332k",
        "source": "edits",
        "pairs": 3000 if full else 600,
        "finetune_pairs": (100, 500, c.pairs) if full else (100, c.pairs),
        "ranked_finetune_pairs": (100, 500, c.pairs) if full else (100,),  # where pre-training matters most
    }
    c.symbols = {
        "rung": "98k",
        "pretrain_tokens": 5e4,
        "pairs": 20000 if full else 4000,
        "finetune_pairs": (100, 500, 2000) if full else (100, 500),
    }
    return c


def runs(c: ml_collections.ConfigDict) -> list[Planned]:
    """All runs, every one after those that it needs."""
    return [*plan.baselines(c, TASKS, c.pairs), *_pretraining(c), *_objectives(c), *_pmp(c), *_symbols(c)]


def _run(
    c: ml_collections.ConfigDict, stage: str, rung: str, task: str, init: str, **settings: Any
) -> ml_collections.ConfigDict:
    """A run's config with the study's numbers and then `settings`, by full field names."""
    run = plan.run_config(c, stage, rung, task, **{"checkpoint.every_minutes": 1.0})
    if stage != "pretrain":
        run.labels.init = init
        run.batch.pairs = c.batch_pairs
        run.data.row_sizes = 1 if rung in c.one_program_rungs else 2
        run.epochs = c.epochs
        run.eval.points = c.validations
        run.eval.selections = c.selections
        run.data.limit = c.pairs
        run.optim.lr_multiple = c.lr_multiple
        if task == TWIN:
            run.data.max_tokens = 124  # both texts are in the context
    config.assign(run, settings)
    return run


def _pretraining(c: ml_collections.ConfigDict) -> Iterator[Planned]:
    for rung in c.rungs:
        # The twin's two texts are in the context.
        tasks = TASKS if rung in c.twin_rungs else (*RANKED, *BINARY)
        settings = {"tokens": c.pretrain_tokens, "eval.tasks": tasks, "data.max_tokens": 124}
        yield Planned(f"pretrain-{rung}", _run(c, "pretrain", rung, "stdlib", "", **settings))


def _objectives(c: ml_collections.ConfigDict) -> Iterator[Planned]:
    for rung in c.rungs:
        for task in (*RANKED, *BINARY, *((TWIN,) if rung in c.twin_rungs else ())):
            ranked = "ranked" if task in RANKED else "binary"
            for stage in ("imitation", ranked):
                name = f"{stage}-{task}-{rung}"
                run = _run(c, stage, rung, task, "lm")
                grid = plan.rate_grid(c, name, run, f"pretrain-{rung}")
                yield from grid
                yield Planned(name, run, f"pretrain-{rung}", tuple(run.name for run in grid))
                if rung in c.paper_lr_rungs:
                    constant = {"optim.lr_multiple": 0.01, "labels.intervention": "paper_lr"}
                    yield Planned(f"{name}-paper_lr", _run(c, stage, rung, task, "lm", **constant), f"pretrain-{rung}")


def _pmp(c: ml_collections.ConfigDict) -> Iterator[Planned]:
    rung, source = c.pmp.rung, c.pmp.source
    arms = {"lm": f"pretrain-{rung}"}
    for form in ("ranked", "binary"):
        name = f"pmp-{source}-{form}-{rung}"
        settings = {"data.limit": c.pmp.pairs, "data.binarize": form == "binary", **PMP}
        yield Planned(name, _run(c, "pmp", rung, source, "lm", **settings), f"pretrain-{rung}")
        arms[f"pmp:{source}:{form}"] = name
    ranked = {f"pmp:{source}:ranked": arms.pop(f"pmp:{source}:ranked")}
    yield from _finetuning(c, rung, (*RANKED, *BINARY), arms, c.pmp.finetune_pairs, {})
    yield from _finetuning(c, rung, (*RANKED, *BINARY), ranked, c.pmp.ranked_finetune_pairs, {})


def _symbols(c: ml_collections.ConfigDict) -> Iterator[Planned]:
    rung = c.symbols.rung
    # Symbols have a language model and a tokenizer of their own, in which each is one token: 256 bytes, 2 special
    # tokens and 677 merges. A pair has about ten tokens, so that a quarter of a row each is enough.
    settings = {
        "objective.mu": 0.0, "model.vocab_size": 935, "data.row_length": 64, "data.max_tokens": 32, "data.row_sizes": 4,
    }  # fmt: skip
    start = f"pretrain-symbols-{rung}"
    pretraining = {"tokens": c.symbols.pretrain_tokens, "model.vocab_size": 935}
    yield Planned(start, _run(c, "pretrain", rung, "symbols", "", **pretraining))
    arms = {"lm": start}
    for variant in ("T0", "T1", "T2", "T3", "T4", "Tb"):
        name = f"pmp-symbols-{variant}-{rung}"
        more = {"data.limit": c.symbols.pairs, "data.binarize": False, **PMP}
        yield Planned(name, _run(c, "pmp", rung, f"symbols:{variant}", "lm", **settings, **more), start)
        arms[f"pmp:symbols:{variant}:{'binary' if variant == 'Tb' else 'ranked'}"] = name
    yield from _finetuning(c, rung, ("symbols:T0",), arms, c.symbols.finetune_pairs, settings)


def _finetuning(
    c: ml_collections.ConfigDict,
    rung: str,
    tasks: Sequence[str],
    arms: dict[str, str],
    numbers_of_pairs: Sequence[int],
    settings: dict[str, Any],
) -> Iterator[Planned]:
    """Preference modeling on every task from every arm's start, in runs of their own for each number of pairs."""
    for task in tasks:
        stage = "binary" if task in BINARY else "ranked"
        for init, after in arms.items():
            for pairs in numbers_of_pairs:
                if init == "lm" and pairs == c.pairs and not settings:
                    continue  # that is the run of the comparison of objectives
                keep = "fresh" if init == "lm" else "keep"
                more = {"data.limit": pairs, "init.score_head": keep, "eval.selections": ("best",)}
                start = init.replace(":", "_")
                name = f"{stage}-{task.replace(':', '_')}-{rung}-from_{start}-{pairs}_pairs"
                # The rate that was chosen for this task without PMP.
                choose = tuple(f"{stage}-{task}-{rung}-lr_{m}" for m in c.lr_grid) if not settings else ()
                yield Planned(name, _run(c, stage, rung, task, init, **settings, **more), after, choose)
