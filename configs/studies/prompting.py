"""Section 2 of the paper on a CPU: bare, prompted, finetuned on the prompt, and with the prompt distilled.

    python -m hhh_jax.study --config=configs/studies/prompting.py --workdir=runs/prompting
    python -m hhh_jax.study --config=configs/studies/prompting.py:data=DIR --workdir=runs/prompting-real

1. language models of two sizes with a context of 1024 tokens, which holds the short prompt and an item
2. teachers: the largest of them reads the short prompt in front of text, and the same without it (control)
3. students of every size; finetuning on the prompt as a curve over steps
4. our own HHH comparisons, bare, in the dialogue form and prompted: figures 2 (left), 6 and 20
5. two conversations in context: alone, after finetuning on the prompt, after distillation (figure 20, right)
6. iterated distillation: a prompt that is too long for the teacher's context, piece by piece (appendix B.5)
7. counting: told against trained (figure 26)

The prompt of this study is the short one, with one conversation; the two of point 5 are others, of about its length.
In the paper two conversations are a small part of the prompt.

Models of these sizes answer at chance; what is real here is that the whole of section 2 runs, with intervals.

With ``:data=DIR`` published evaluations take the place of our own comparisons: ``hhh_alignment``, ``truthfulqa`` and
``lambada``, prepared below DIR, with four sizes, twenty times the tokens and a context of 4096, which holds 20 examples
of LAMBADA (figures 7, 21 and 25 too); what comes without data, counting, is not repeated. Text is sampled only where
you say so, as a scorer and a sandbox are yours to choose; DIR then has ``toxicity`` and ``humaneval``:

    --config.toxicity=FILE.py:FUNCTION    figures 8 and 22 to 24
    --config.run_untrusted_code=True      figures 2 (right) and 10

What is committed as docs/prompting-real is of less, to be made in an hour on 2 cores; docs/prompting-real/reproduce.sh
does so, with three sizes, 2e5 tokens, 50 items of an evaluation, 40 prompts for toxicity and 10 problems
of code.
"""

from collections.abc import Iterator
from typing import Any

import ml_collections

from hhh_jax import config, plan
from hhh_jax.study import RUN, Job, Planned

PROMPT_TOKENS = 1024
"""Room for the short prompt."""
FEW_SHOT = ("lambada_original", "lambada_original_20shot", "lambada_blank_20shot")
REAL = ("hhh", "truthfulqa", "lambada")
ASKED = ("none", "template", "short")  # of the interventions, those that are compared on more than HHH


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Numbers of the study; `arg` is empty or ``data=DIR``."""
    folder = plan.folder_argument(arg)
    c = ml_collections.ConfigDict()
    c.name = "prompting-real" if folder else "prompting"
    c.data = folder
    c.rungs = ("12k", "98k", "332k", "786k") if folder else ("12k", "98k")
    c.seeds = (0, 1, 2)
    c.tokens = 1e6 if folder else 5e4
    c.context = 4096 if folder else 1024
    c.test_items = c.validation_items = 50
    c.teacher_rows = 256 if folder else 32
    c.row_length = 256
    c.prompt_steps = (1, 4, 16)
    c.iterated = {"rung": "98k", "context": 512, "pieces": 2}
    c.counting = {"rung": "98k", "tokens": 4e5, "steps": (1, 2, 4, 8, 16)}
    c.limits = {"scored": 0, "toxicity": 0, "code": 0}  # items of an evaluation; 0: all
    c.toxicity = ""
    c.run_untrusted_code = False
    return c


def runs(c: ml_collections.ConfigDict) -> list[Planned]:
    """All runs, every one after those that it needs; counting needs no data."""
    planned = [*_pretraining(c), *_distillation(c), *_prompt_finetuning(c), *_iterated(c)]
    return planned + ([] if c.data else list(_counting(c)))


def _lm(c: ml_collections.ConfigDict, stage: str, rung: str, source: str, **settings: Any) -> ml_collections.ConfigDict:
    run = plan.run_config(c, stage, rung, source)
    run.data.row_length, run.model.max_positions, run.batch.rows, run.eval.rows = PROMPT_TOKENS, c.context, 2, 4
    config.assign(run, settings)
    return run


def _evaluations(
    c: ml_collections.ConfigDict, after: str, interventions: tuple[str, ...], only_hhh: bool = False
) -> Iterator[Planned]:
    for how in interventions:
        everywhere = bool(c.data) and how in ASKED and not only_hhh
        evals = [("hhh" if c.data else "own_hhh"), *(REAL[1:] if everywhere else ())]
        evals += FEW_SHOT if everywhere and how == "none" else []
        arguments = {
            "evals": evals, "intervention": how, "data": c.data, "context": c.context, "limit": c.limits.scored
        }  # fmt: skip
        yield Planned(f"evaluate-{after}-{how}", job=Job("evals.battery", arguments), after=after)
        if everywhere and c.toxicity:
            evals = ["toxicity", "toxicity_free"] if how == "short" else ["toxicity"]
            more = {"evals": evals, "toxicity": c.toxicity, "limit": c.limits.toxicity}
            yield Planned(f"toxicity-{after}-{how}", job=Job("evals.battery", arguments | more), after=after)
        if everywhere and c.run_untrusted_code:
            more = {"evals": ["humaneval"], "run_untrusted_code": True, "limit": c.limits.code}
            yield Planned(f"code-{after}-{how}", job=Job("evals.battery", arguments | more), after=after)


def _pretraining(c: ml_collections.ConfigDict) -> Iterator[Planned]:
    settings = {"tokens": c.tokens, "data.row_length": c.context, "batch.rows": 2048 // c.context or 1}
    for rung in c.rungs:
        yield Planned(f"pretrain-{rung}", _lm(c, "pretrain", rung, "stdlib", **settings))
        yield from _evaluations(c, f"pretrain-{rung}", ("none", "template", "short", "two"))


def _distillation(c: ml_collections.ConfigDict) -> Iterator[Planned]:
    arms = {"short": "distilled", "none": "distilled_unprompted"}
    for prompt in arms:
        yield _teacher(c, f"teacher-{prompt}", prompt, f"pretrain-{c.rungs[-1]}")
    for rung in c.rungs:
        for prompt, arm in arms.items():
            yield _student(c, rung, arm, f"{arm}-{rung}", f"teacher-{prompt}", f"pretrain-{rung}")
            distilled = prompt == "short"
            yield from _evaluations(
                c, f"{arm}-{rung}", ("template", "two") if distilled else ("template",), not distilled
            )


def _teacher(c: ml_collections.ConfigDict, name: str, prompt: str, after: str, piece: int = 0) -> Planned:
    arguments = {
        "prompt": prompt, "piece": piece, "data": "stdlib", "dialogues": "", "rows": c.teacher_rows,
        "row_length": c.row_length, "context": c.iterated.context if piece else 0, "k": 50, "seed": -1,
    }  # fmt: skip
    return Planned(name, job=Job("distill", arguments), after=after)


def _student(c: ml_collections.ConfigDict, rung: str, arm: str, name: str, teacher: str, after: str) -> Planned:
    settings = {"data.row_length": c.row_length, "batch.rows": 4, "epochs": 2.0, "labels.intervention": arm}
    return Planned(name, _lm(c, "distill", rung, f"{RUN}{teacher}", **settings), after)


def _iterated(c: ml_collections.ConfigDict) -> Iterator[Planned]:
    """The student of one piece is the teacher of the next."""
    rung = c.iterated.rung
    after = f"pretrain-{rung}"
    for piece in range(1, c.iterated.pieces + 1):
        arm = f"distilled_{piece}_of_{c.iterated.pieces}_pieces"
        yield _teacher(c, f"teacher-two_piece_{piece}", "two", after, piece)
        yield _student(c, rung, arm, f"{arm}-{rung}", f"teacher-two_piece_{piece}", after)
        after = f"{arm}-{rung}"
        yield from _evaluations(c, after, ("template",), only_hhh=True)


def _prompt_finetuning(c: ml_collections.ConfigDict) -> Iterator[Planned]:
    for rung in c.rungs:
        for steps in c.prompt_steps:
            settings = {"steps": steps, "batch.rows": 1, "labels.intervention": f"finetuned_{steps}_steps"}
            name = f"finetuned_{steps}_steps-{rung}"
            yield Planned(name, _lm(c, "lm_finetune", rung, "prompt:short", **settings), f"pretrain-{rung}")
            hows = ("template", "two") if steps == c.prompt_steps[-1] else ("template",)
            yield from _evaluations(c, name, hows, only_hhh=True)


def _counting(c: ml_collections.ConfigDict) -> Iterator[Planned]:
    rung, length = c.counting.rung, {"data.row_length": 256, "model.max_positions": 256, "model.vocab_size": 480}
    start = f"pretrain-counting-{rung}"
    settings = {"tokens": c.counting.tokens, "batch.rows": 8, **length}
    yield Planned(start, _lm(c, "pretrain", rung, "counting", **settings))
    arguments = {"evals": ["counting:1-80", "counting:64-71"], "intervention": "none", "context": 256}
    yield Planned(f"evaluate-{start}", job=Job("evals.battery", arguments), after=start)
    arguments = arguments | {"evals": ["counting:64-71"]}
    for steps in c.counting.steps:
        settings = {"steps": steps, "batch.rows": 1, "labels.intervention": f"trained_{steps}_steps", **length}
        name = f"counting-trained_{steps}_steps-{rung}"
        yield Planned(name, _lm(c, "lm_finetune", rung, "counting:1-63", **settings), start)
        yield Planned(f"evaluate-{name}", job=Job("evals.battery", arguments), after=name)
