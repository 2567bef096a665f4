"""Counting (figure 26): the loss of each number after those before it.

``counting:1-80`` counts from 1, so that a model sees ever more evidence that this is counting; ``counting:64-71``
begins with 64, for models that were trained on 1 to 63 instead of being told.
"""

from hhh_jax.data.counting import counted
from hhh_jax.data.records import MultipleChoice
from hhh_jax.evals.subject import Outcome, Subject, error_rows, value_row
from hhh_jax.scoring import score_options

RANGES = {"counting:1-80": (1, 80), "counting:64-71": (64, 71)}
"""First and last number of each evaluation."""


def evaluate(subject: Subject, task: str) -> Outcome:
    """Rows of metric ``loss``, in nats, with the number as ``k``, under every seed; `task` is one of `RANGES`."""
    first, last = RANGES[task]
    asked = [MultipleChoice(f"{first}", "", (f"{first}",), 0, task)]
    for n in range(first + 1, last + 1):
        asked.append(MultipleChoice(f"{n}", counted(first, n - 1), (f" {n}",), 0, task))
    scores = score_options(subject.scorer, subject.tokenizer, asked)
    rows, items = [], []
    for score in scores:
        for g, seed in enumerate(subject.seeds if not score.error else ()):
            loss = -float(score.logp_GxN[g, 0])
            row = value_row(task, "", "loss", loss, None, None, n_items=1, seed=seed)
            rows.append(row | {"k": int(score.item.id)})
        items += score.records(subject.seeds, task=task, split="test")
    rows += error_rows(task, sum(bool(score.error) for score in scores))
    return Outcome(rows, items, ["no prompt"])
