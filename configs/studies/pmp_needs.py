"""What preference model pre-training needs: each of its choices against the alternative (section 4, appendix C).

    python -m hhh_jax.study --config=configs/studies/pmp_needs.py --workdir=runs/pmp_needs
    python -m hhh_jax.study --config=configs/studies/pmp_needs.py:data=DIR --workdir=runs/pmp_needs-real

PMP on one source, finetuned on every task with several numbers of pairs, in these arms, by init and intervention:

    pmp:SOURCE:binary                   as configs/studies/pmp.py does it
    pmp:SOURCE:ranked                   at equal epochs, with half the updates; figures 18, 37
    pmp:SOURCE:ranked, equal_updates    over twice the epochs
    pmp:SOURCE:binary, pm_alone         without the language-modeling loss; figure 29
    pmp:SOURCE:binary, lm_alone         with that alone
    pmp:SOURCE:binary, no_eoc           without end-of-context tokens, and finetuning too, as lm, no_eoc; figure 31
    pmp:SOURCE:human_model              the bad sides written by a language model, at matched lengths; figures 19, 36
    pmp:OTHER:binary                    another source, and with it
    ensemble:rewards, :probabilities    of the models finetuned from both (C.5)

The writer of bad sides is the language model trained on the good ones. How well length and words alone tell its text
from people's is measured beside it. Calibration (figure 30) is that of the models finetuned on the most pairs.

The first form takes about a minute: one rung, `edits` and `word_order`. The second one is meant for a GPU; its folders
are those of configs/studies/pmp.py.
"""

from collections.abc import Iterator
from typing import Any

import ml_collections

from hhh_jax import config, plan
from hhh_jax.data import datasets
from hhh_jax.study import RUN, Job, Planned

EMBEDDED = ("line_order", "docstring_match")
REAL = ("summarize", "hellaswag", "ethics_utilitarianism", "ethics_commonsense", "ethics_justice")
NO_EOC = {"data.end_of_context": False}
FORMS: dict[str, tuple[str, str, dict[str, Any]]] = {  # of PMP: name -> last part of init, intervention, settings
    "binary": ("binary", "", {}),
    "ranked": ("ranked", "", {"data.binarize": False}),
    "ranked-equal_updates": ("ranked", "equal_updates", {"data.binarize": False, "epochs": 2.0}),
    "pm_alone": ("binary", "pm_alone", {"objective.mu": 0.0}),
    "lm_alone": ("binary", "lm_alone", {"objective.lam": 0.0}),
    "no_eoc": ("binary", "no_eoc", NO_EOC),
}
ENSEMBLES = ("rewards", "probabilities")
CALIBRATED = ("lm", "binary", "pm_alone")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Numbers of the study; `arg` is empty or ``data=DIR``."""
    folder = plan.folder_argument(arg)
    c = ml_collections.ConfigDict()
    c.name = "pmp_needs-real" if folder else "pmp_needs"
    c.data = folder
    c.rungs = ("332k", "786k") if folder else ("98k",)
    c.seeds = (0, 1, 2)
    c.tokens = 1e7 if folder else 1e5
    c.row_length = 256 if folder else 128
    c.source, c.other = ("reddit", "stackexchange") if folder else ("edits", "word_order")
    c.pmp_pairs = 20000 if folder else 160
    # Held-out records, and tokens of human and model-written sides.
    c.human_model = {"held_out": 1000 if folder else 100, "least": 8, "most": 96 if folder else 24}
    c.finetune_pairs = (500, 1500, 5000) if folder else (32, 128)
    c.batch_pairs = 32 if folder else 8
    c.validation_items = 200 if folder else 50
    c.validations = 4 if folder else 1
    c.test_items = 2000 if folder else 200
    c.lr_multiple = 0.5
    return c


def runs(c: ml_collections.ConfigDict) -> list[Planned]:
    """All runs, every one after those that it needs."""
    return [*plan.baselines(c, _tasks(c), c.finetune_pairs[-1]), *_pretraining(c), *_human_model(c), *_finetuning(c)]


def _tasks(c: ml_collections.ConfigDict) -> tuple[str, ...]:
    return REAL if c.data else EMBEDDED


def _run(c: ml_collections.ConfigDict, stage: str, rung: str, name: str, **settings: Any) -> ml_collections.ConfigDict:
    """A run's config with the study's numbers and then `settings`, by full field names."""
    run = plan.run_config(c, stage, rung, plan.source(c, name))
    run.data.row_length, run.data.max_tokens, run.model.max_positions = c.row_length, c.row_length // 2, c.row_length
    if stage != "pretrain":
        run.batch.pairs, run.data.row_sizes, run.optim.lr_multiple = c.batch_pairs, 1, c.lr_multiple
    if stage == "pmp":  # one epoch (C.1), validated at its end only
        run.epochs, run.data.limit, run.eval.points, run.eval.selections = 1.0, c.pmp_pairs, 1, ("best",)
    config.assign(run, settings)
    return run


def _pretraining(c: ml_collections.ConfigDict) -> Iterator[Planned]:
    """Language models, and PMP from each in every form and on the other source."""
    for rung in c.rungs:
        start = f"pretrain-{rung}"
        yield Planned(start, _run(c, "pretrain", rung, "lm" if c.data else "stdlib", tokens=c.tokens))
        for form, (_, intervention, settings) in FORMS.items():
            more = {"labels.intervention": intervention, **settings}
            yield Planned(f"pmp-{c.source}-{form}-{rung}", _run(c, "pmp", rung, c.source, **more), start)
        yield Planned(f"pmp-{c.other}-binary-{rung}", _run(c, "pmp", rung, c.other), start)


def _human_model(c: ml_collections.ConfigDict) -> Iterator[Planned]:
    """The writer of bad sides, its pairs, what simple rankers make of them, and PMP on them."""
    name, rung = f"human_model_{c.source}", c.rungs[-1]
    # Language modeling on the whole good sides, as they are.
    settings = {"objective.lam": 0.0, "data.binarize": False, "labels.intervention": "writer"}
    writer = f"writer-{c.source}-{rung}"
    yield Planned(writer, _run(c, "pmp", rung, c.source, **settings), f"pretrain-{rung}")
    arguments = {"name": name, "source": plan.source(c, c.source), "limit": c.pmp_pairs, **c.human_model}
    yield Planned(name, job=Job("human_model", arguments), after=writer)
    pairs = f"{RUN}{name}/{name}.jsonl"
    numbers = {"train_pairs": c.pmp_pairs, "test_pairs": c.test_items}
    yield Planned(f"baseline-{name}", job=Job("baselines", {"task": pairs, "seed": 0, **numbers}))
    for rung in c.rungs:
        yield Planned(f"pmp-{name}-{rung}", _run(c, "pmp", rung, pairs), f"pretrain-{rung}")


def _arms(c: ml_collections.ConfigDict, rung: str) -> dict[str, tuple[str, str, str, dict[str, Any]]]:
    """What finetuning starts from: init and intervention as in the results table, the run, and settings."""
    arms: dict[str, tuple[str, str, str, dict[str, Any]]] = {
        "lm": ("lm", "", f"pretrain-{rung}", {}),
        "lm-no_eoc": ("lm", "no_eoc", f"pretrain-{rung}", NO_EOC),
        "human_model": (f"pmp:{c.source}:human_model", "", f"pmp-human_model_{c.source}-{rung}", {}),
        "other": (f"pmp:{c.other}:binary", "", f"pmp-{c.other}-binary-{rung}", {}),
    }
    for form, (last, intervention, _) in FORMS.items():
        settings = NO_EOC if form == "no_eoc" else {}
        arms[form] = (f"pmp:{c.source}:{last}", intervention, f"pmp-{c.source}-{form}-{rung}", settings)
    return arms


def _finetuning(c: ml_collections.ConfigDict) -> Iterator[Planned]:
    for rung in c.rungs:
        for task in _tasks(c):
            for pairs in c.finetune_pairs:
                for arm, (init, intervention, after, settings) in _arms(c, rung).items():
                    keep = "fresh" if init == "lm" or intervention == "lm_alone" else "keep"
                    labels = {"labels.init": init, "labels.intervention": intervention, "init.score_head": keep}
                    tuned = _tuned(c, rung, task, pairs, **labels, **settings)
                    yield Planned(_name(task, rung, arm, pairs), tuned, after)
                for of in ENSEMBLES:
                    members = {arm: RUN + _name(task, rung, arm, pairs) for arm in ("binary", "other")}
                    job = Job("analyses.ensemble", {"of": of, "init": f"ensemble:{of}", **members})
                    yield Planned(_name(task, rung, f"ensemble_{of}", pairs), job=job)
            for arm in CALIBRATED:
                run = _name(task, rung, arm, c.finetune_pairs[-1])
                yield Planned(f"calibration-{run}", job=Job("analyses.calibration", {}), after=run)


def _name(task: str, rung: str, arm: str, pairs: int) -> str:
    return f"{task}-{rung}-from_{arm}-{pairs}_pairs"


def _tuned(
    c: ml_collections.ConfigDict, rung: str, task: str, pairs: int, **settings: Any
) -> ml_collections.ConfigDict:
    more = {
        "data.limit": pairs, "eval.points": c.validations, "eval.limit": plan.tested_items(c, task),
        "eval.selections": ("best",),
    }  # fmt: skip
    if task in plan.LONG_TASKS:
        more["data.max_tokens"] = c.row_length * 3 // 4
    return _run(c, datasets.kind(plan.source(c, task)), rung, task, **more | settings)
