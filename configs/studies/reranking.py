"""Re-ranking samples by imitation and by preference models: the paper's figures 11 to 13 on a CPU.

    python -m hhh_jax.study --config=configs/studies/reranking.py --workdir=runs/reranking
    python -m hhh_jax.figures --figure=12 --results=runs/reranking/results.csv --out=figures --paper

For each size and kind of problem:

1. a language model is pretrained, short enough that it solves some of the problems some of the time
2. it answers problems at T = 1, some of them rightly; pairs of a right and a wrong answer make the training data
3. from the same model, imitation learns from the right answers and a preference model from the pairs
4. both rank N answers of the language model to problems of the test split; acc@k

Problems are generated one-line functions with tests (code that the models wrote runs in a sandbox, which needs Linux;
``--config.run_untrusted_code=false`` leaves these out) and generated passages without their last word. Measured shares
of right answers at T = 1, means over three seeds and the test problems: functions .09 (12k) and .32 (98k), passages .09
(12k) and .34 (98k).

With ``:data=DIR`` the sizes and numbers are larger and problems come from DIR, as far as it has them:

    DIR/lambada          passages, prepared with train, validation and test splits (novels for the first two:
                         ``--source=lambada --option=held_out_novels=0.1``)
    DIR/text             what the language models of passages are pretrained on; else the standard library
    DIR/functions.jsonl  functions with tests, in the form of `hhh_jax.data.problems`; else the generated ones
    DIR/humaneval        to test the rankers of functions on, instead of the test split of functions.jsonl

and ``--config.run_untrusted_code=true`` has to allow code. ``--config.lambada_format=original`` or ``nice`` keeps the
passages of one format, where there are both.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_collections

from hhh_jax import plan
from hhh_jax.data.records import SPLITS
from hhh_jax.study import RUN, Job, Planned


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Numbers of the study; `arg` is empty or ``data=DIR``."""
    folder = plan.folder_argument(arg)
    real = bool(folder)
    c = ml_collections.ConfigDict()
    c.name = "reranking"
    c.data = folder
    c.lambada_format = ""
    c.run_untrusted_code = not real
    c.rungs = ("332k", "786k", "2.7m") if real else ("12k", "98k")
    c.seeds = (0, 1, 2)
    c.test_items = c.validation_items = 0  # all
    c.row_length = 512 if real else 128
    c.vocab_size = 4096 if real else 400
    # Updates count more than tokens at these sizes, so batches are small and rates high.
    c.pretrain_rows = 8 if real else 2
    c.pretrain_lr_multiple = (1.0, 1.0, 1.0) if real else (2.0, 1.0)
    c.tokens = {  # of each rung
        "code": (2e6, 2e6, 2e6) if real else (8e4, 4e4),
        "last_word": (2e7, 2e7, 2e7) if real else (1e5, 1e5),
    }
    c.problems = {  # of each split
        "code": (4000, 400, 1000) if real else (80, 20, 40),
        "last_word": (4000, 400, 1000) if real else (300, 60, 100),
    }
    c.n_train = 8 if real else 4  # of each seed, and all seeds' answers make pairs
    c.n_test = 100 if real else 16
    c.max_new_tokens = {"code": 256 if real else 20, "last_word": 8}
    c.pairs_per_problem = {"code": 8 if real else 6, "last_word": 2}
    c.sample_rows = 256
    c.batch_pairs = 32 if real else 8
    c.epochs = 2.0
    c.validations = 4
    c.lr_multiple = 0.5
    return c


def runs(c: ml_collections.ConfigDict) -> list[Planned]:
    """All runs, every one after those that it needs."""
    return [
        planned
        for index, rung in enumerate(c.rungs)
        for kind in (("code",) if c.run_untrusted_code else ()) + ("last_word",)
        for planned in _chain(c, kind, rung, c.tokens[kind][index], c.pretrain_lr_multiple[index])
    ]


def _sources(c: ml_collections.ConfigDict, kind: str) -> tuple[str, str, str]:
    """Names of what is pretrained on, of the problems, and of those to test on where they are others."""

    def there(name: str, otherwise: str) -> str:
        path = Path(c.data) / name
        return str(path) if c.data and path.exists() else otherwise

    if kind == "code":
        problems = there("functions.jsonl", "functions")
        return problems, problems, there("humaneval", "")
    problems = there("lambada", "passages")
    return there("text", "stdlib") if problems != "passages" else "passages", problems, ""


def _chain(
    c: ml_collections.ConfigDict, kind: str, rung: str, tokens: float, lr_multiple: float
) -> Iterator[Planned]:
    source, problems, test = _sources(c, kind)
    name = f"{kind}-{rung}"
    pretraining = {
        "tokens": tokens, "batch.rows": c.pretrain_rows, "optim.lr_multiple": lr_multiple,
        "eval.limit": 100, "eval.validation_limit": 50,
    }  # fmt: skip
    yield Planned(f"pretrain-{name}", _run(c, "pretrain", rung, source, **pretraining))
    limits = dict(zip(SPLITS, c.problems[kind], strict=True))
    arguments = {
        "problems": problems, "test": test, "written": c.lambada_format, "limits": limits,
        "n_train": c.n_train, "n_test": c.n_test, "temperature": 1.0, "max_new_tokens": c.max_new_tokens[kind],
        "pairs_per_problem": c.pairs_per_problem[kind], "context": c.row_length, "rows": c.sample_rows,
        "run_untrusted_code": c.run_untrusted_code,
    }  # fmt: skip
    yield Planned(f"samples-{name}", job=Job("samples", arguments), after=f"pretrain-{name}")
    finetuning = {
        "epochs": c.epochs, "batch.pairs": c.batch_pairs, "optim.lr_multiple": c.lr_multiple, "labels.init": "lm",
        "labels.intervention": "rerank", "data.max_tokens": c.row_length, "data.row_sizes": 1,
        "eval.points": c.validations, "eval.split": "validation", "eval.selections": (),
    }  # fmt: skip
    for stage in ("imitation", "binary"):
        pairs = f"{RUN}samples-{name}/pairs.jsonl"
        yield Planned(f"{stage}-{name}", _run(c, stage, rung, pairs, **finetuning), after=f"pretrain-{name}")
    zero = {"limits": {"test": limits["test"]}, "n_test": 1, "temperature": 0.0}
    yield Planned(f"greedy-{name}", job=Job("samples", arguments | zero), after=f"imitation-{name}")
    named = {"samples": "samples", "greedy": "greedy", "imitation": "imitation", "preference": "binary"}
    ranked = {argument: f"{RUN}{run}-{name}" for argument, run in named.items()}
    yield Planned(f"rerank-{name}", job=Job("analyses.rerank", ranked))


def _run(
    c: ml_collections.ConfigDict, stage: str, rung: str, source: str, **settings: Any
) -> ml_collections.ConfigDict:
    """A run's config with the study's numbers and then `settings`, by full field names."""
    lengths = {"data.row_length": c.row_length, "model.max_positions": c.row_length}
    return plan.run_config(c, stage, rung, source, **lengths, **{"model.vocab_size": c.vocab_size}, **settings)
