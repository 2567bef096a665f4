"""Appendix D of the paper on a CPU: the per-token discriminator, as a judge of tokens and as a ranker of samples.

    python -m hhh_jax.study --config=configs/studies/discriminator.py --workdir=runs/discriminator

1. language models of every size on `counting`
2. rows of which a third is by people (here: by the source), a third continued by the largest of these models, and a
   third by it alone
3. a discriminator of every size, from the language model of that size
4. accuracy by distance from the switch, on held-out and on training rows (figure 35; the paper's are on training rows);
   samples of the largest language model for problems with one right answer (which number follows?), ranked by P(human),
   by the model's own log-probability, and by both (eq. D.2): figure 34

    python -m hhh_jax.study --config=configs/studies/discriminator.py:data=DIR --workdir=runs/discriminator

is the same on real text: DIR holds folders ``text`` (documents) and ``lambada``, made by `hhh_jax.data.prepare`.
"""

from typing import Any

import ml_collections

from hhh_jax import plan
from hhh_jax.study import RUN, Job, Planned


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Numbers of the study; `arg` is empty or ``data=DIR``."""
    folder = plan.folder_argument(arg)
    c = ml_collections.ConfigDict()
    c.name = "discriminator"
    c.data = folder
    c.rungs = ("12k", "98k", "332k", "786k") if folder else ("12k", "98k")
    c.seeds = (0, 1, 2)  # of the discriminators; there is one language model of each size
    c.corpus = f"{folder}/text" if folder else "counting"
    c.vocab_size = 4096 if folder else 480
    c.tokens = 2e6 if folder else 4e4
    c.context = 256 if folder else 128
    c.rows = {"rows": 6000, "held_out": 900, "row_length": 256} if folder else {
        "rows": 2400, "held_out": 600, "row_length": 32,
    }  # fmt: skip
    c.epochs = 2.0
    c.lr_multiple = 1.0
    c.task = "lambada" if folder else "counting"
    c.test_items = c.validation_items = 100
    c.problems = 1000 if folder else 100
    c.samples = 100
    c.shown = 4  # numbers in the context of counting
    return c


def runs(c: ml_collections.ConfigDict) -> list[Planned]:
    """All runs, every one after those that it needs."""
    writer = f"pretrain-{c.rungs[-1]}"
    planned = [Planned(f"pretrain-{rung}", _run(c, "pretrain", rung, c.corpus, (0,))) for rung in c.rungs]
    made = {"source": c.corpus, **c.rows.to_dict()}
    planned.append(Planned("rows", job=Job("thirds", made), after=writer))
    for rung in c.rungs:
        name = f"discriminator-{rung}"
        planned.append(Planned(name, _run(c, "discriminator", rung, f"{RUN}rows", c.seeds), f"pretrain-{rung}"))
        asked = {name: c[name] for name in ("task", "data", "problems", "samples", "shown")}
        arguments = {"rows": f"{RUN}rows", "writer": f"{RUN}{writer}", **asked}
        planned.append(Planned(f"evaluate-{name}", job=Job("evals.discriminator", arguments), after=name))
    return planned


def _run(
    c: ml_collections.ConfigDict, stage: str, rung: str, source: str, seeds: tuple[int, ...]
) -> ml_collections.ConfigDict:
    run = plan.run_config(c, stage, rung, source)
    length = c.context if stage == "pretrain" else c.rows.row_length
    more: dict[str, Any] = {"tokens": c.tokens} if stage == "pretrain" else {"epochs": c.epochs}
    run.update(seeds=seeds, **more)
    run.data.row_length, run.data.max_tokens = length, length // 2
    run.model.max_positions, run.model.vocab_size = c.context, c.vocab_size
    run.batch.rows, run.eval.rows = (8, 8) if stage == "pretrain" else (16, 32)
    if stage == "discriminator":
        run.optim.lr_multiple = c.lr_multiple
    return run
