"""Three questions beyond the paper, cheap to ask of preference models of any size.

    python -m hhh_jax.study --config=configs/studies/beyond.py --workdir=runs/beyond

1. How does the loss of preference models fall with their size and with their pairs together? Separate runs at every
   size and number of pairs, and a joint fit (`hhh_jax.analyses.joint_fit`)
2. What do wrong labels cost, in accuracy and in calibration? A share of the training pairs is flipped, up to 40%
   (`hhh_jax.analyses.label_noise`)
3. What comes of optimizing against such a model? Best of n against a planted gold reward (`hhh_jax.evals.best_of_n`)

All are asked of `symbols:T0` here, whose ranking is known. The third stays there; the others are asked of real pairs by

    python -m hhh_jax.study --config=configs/studies/beyond.py:data=DIR --workdir=runs/beyond

where DIR holds folders ``text`` (documents) and ``summarize`` (pairs), made by `hhh_jax.data.prepare`.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import ml_collections

from hhh_jax import plan
from hhh_jax.study import RUN, Job, Planned

SYMBOLS = {
    "objective.mu": 0.0, "model.vocab_size": 935, "data.row_length": 64, "data.max_tokens": 32, "data.row_sizes": 4,
}  # fmt: skip
"""Each symbol is one token (256 bytes, 2 special tokens and 677 merges) and a pair has about ten."""


class Arm(NamedTuple):
    """Runs of one task that differ in these."""

    task: str
    rung: str
    pairs: int
    flip: float = 0.0

    @property
    def name(self) -> str:
        noise = f"-flip_{self.flip * 100:.0f}" if self.flip else ""
        return f"ranked-{_short(self.task)}-{self.rung}-{self.pairs}_pairs{noise}"


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Numbers of the study; `arg` is empty or ``data=DIR``."""
    folder = plan.folder_argument(arg)
    c = ml_collections.ConfigDict()
    c.name = "beyond"
    c.data = folder
    c.task = f"{folder}/summarize" if folder else "symbols:T0"
    c.rungs = ("12k", "98k", "332k", "786k") if folder else ("12k", "98k", "332k")
    c.seeds = (0, 1, 2)
    c.pretrain_tokens = 2e6 if folder else 5e4
    c.symbols_tokens = 5e4
    c.pairs = (250, 500, 1000, 2000, 4000) if folder else (100, 300, 800, 2000)
    c.noise = {"rung": "332k" if folder else "98k", "pairs": 2000, "flips": (0.0, 0.1, 0.2, 0.3, 0.4)}
    c.best_of_n = {
        "rung": "98k",
        "proxies": ((100, 0.0), (800, 0.0), (2000, 0.0), (2000, 0.4)),
        "most": 256,
        "pools": 40,
    }
    c.batch_pairs = 8
    c.lr_multiple = 0.5
    c.test_items = 2000 if folder else 600
    c.validation_items = 300 if folder else 100
    c.validations = 4 if folder else 2
    return c


def runs(c: ml_collections.ConfigDict) -> list[Planned]:
    """All runs, every one after those that it needs."""
    grid = [Arm(c.task, rung, pairs) for rung in c.rungs for pairs in c.pairs]
    noisy = [Arm(c.task, c.noise.rung, c.noise.pairs, flip) for flip in c.noise.flips]
    proxies = [Arm("symbols:T0", c.best_of_n.rung, pairs, flip) for pairs, flip in c.best_of_n.proxies]
    arms = list(dict.fromkeys((*grid, *noisy, *proxies)))
    planned = [*_pretraining(c, arms), *(_finetuning(c, arm) for arm in arms)]
    for name, of in (("joint_fit", grid), ("label_noise", noisy)):
        planned.append(Planned(name, job=Job(f"analyses.{name}", {arm.name: f"{RUN}{arm.name}" for arm in of})))
    asked = {"variant": "T0", "most": c.best_of_n.most, "pools": c.best_of_n.pools, "seed": 0}
    planned += [Planned(f"best_of_n-{a.name}", after=a.name, job=Job("evals.best_of_n", asked)) for a in proxies]
    return planned


def _short(task: str) -> str:
    return task.rpartition("/")[2].replace(":", "_")


def _pretraining(c: ml_collections.ConfigDict, arms: Iterable[Arm]) -> Iterator[Planned]:
    for task, rung in dict.fromkeys((arm.task, arm.rung) for arm in arms):
        of_symbols = task.startswith("symbols")
        more = {"model.vocab_size": SYMBOLS["model.vocab_size"]} if of_symbols else {}
        source = "symbols" if of_symbols else f"{c.data}/text"
        tokens = c.symbols_tokens if of_symbols else c.pretrain_tokens
        yield Planned(_start(task, rung), plan.run_config(c, "pretrain", rung, source, tokens=tokens, **more))


def _finetuning(c: ml_collections.ConfigDict, arm: Arm) -> Planned:
    of_symbols = arm.task.startswith("symbols")
    more: dict[str, Any] = SYMBOLS if of_symbols else {}
    settings = {
        "data.limit": arm.pairs, "data.flip": arm.flip, "batch.pairs": c.batch_pairs, "eval.points": c.validations,
        "eval.selections": ("best",), "optim.lr_multiple": c.lr_multiple,
        "labels.intervention": f"flip_{arm.flip * 100:.0f}" if arm.flip else "",
    }  # fmt: skip
    run = plan.run_config(c, "ranked", arm.rung, arm.task, **settings, **more)
    return Planned(arm.name, run, _start(arm.task, arm.rung))


def _start(task: str, rung: str) -> str:
    return f"pretrain-{'symbols' if task.startswith('symbols') else 'text'}-{rung}"
