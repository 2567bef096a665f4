"""Evaluations that choose among written answers: HHH by category, TruthfulQA MC1, HellaSwag, and our own comparisons.

HHH is chosen by empirical mutual information, ``log P(a|q) - log P(a)`` (section 2.2); in which context the paper takes
P(a) isn't said, so both are given: after the document's delimiter (``mutual_information``) and after the dialogue with
an empty question (``mutual_information_empty``). TruthfulQA's official metric is the summed log-probability; the mean
and mutual information stand beside it (figure 21). Its two formats are the two forms: ``bare`` is "Q A".
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hhh_jax import stats
from hhh_jax.data.records import MultipleChoice
from hhh_jax.evals.subject import Outcome, Subject, accuracy_rows, ask, error_rows, read_prompt, value_row
from hhh_jax.scoring import score_options

METRICS = {
    "sum_logp": "sum", "mean_logp": "mean", "mutual_information": "mi:delimiter", "mutual_information_empty": "mi:empty"
}  # fmt: skip
"""Rankers of the results table and what `ItemScores.by` calls them."""


def evaluate(
    subject: Subject, task: str, template: str, records: Sequence[MultipleChoice], by_category: bool = False
) -> Outcome:
    """Scores every option of every item and chooses by each of `METRICS` (and by reward, of a preference model).

    Args:
      task: its name in the results table.
      template: which of the templates items are put into.
      by_category: whether there are rows of each category too, by mutual information and reward; item records name
        it in any case.
    """
    texts = subject.templates[template]
    items = [ask(record, texts[subject.form]) for record in records]
    prefix, note = read_prompt(subject, {i.id: [i.context + option for option in i.options] for i in items})
    with_reward = "score_head" in subject.scorer.params
    contexts = {"delimiter": None, "empty": texts["empty"]}
    scores = score_options(subject.scorer, subject.tokenizer, items, prefix, contexts, with_reward)
    metrics = METRICS | ({"reward": "reward"} if with_reward else {})
    rows = accuracy_rows(task, scores, subject.seeds, metrics)
    of_category = {ranker: metric for ranker, metric in metrics.items() if metric not in ("sum", "mean")}
    for category in sorted({record.category for record in records if record.category}) if by_category else ():
        members = [score for score in scores if score.item.category == category]
        rows += accuracy_rows(f"{task}:{category}", members, subject.seeds, of_category)
        rows += trivial_rows(f"{task}:{category}", [score.item for score in members])
    rows += trivial_rows(task, records) + error_rows(task, sum(bool(score.error) for score in scores))
    found = [record for score in scores for record in score.records(subject.seeds, task=task, split="test")]
    return Outcome(rows, found, [note])


def trivial_rows(task: str, records: Sequence[MultipleChoice]) -> list[dict[str, Any]]:
    """Chance, and choosing the option with the fewest or most bytes; several that are equally long share it.

    Records without a right option are left out; no rows if none is left.
    """
    share: dict[str, list[float]] = {"chance": [], "shorter": [], "longer": []}
    for record in records:
        if not 0 <= record.label < len(record.options):
            continue
        sizes_N = np.array([len(option.encode(errors="replace")) for option in record.options])
        share["chance"].append(1 / len(sizes_N))
        for ranker, best_N in (("shorter", sizes_N == sizes_N.min()), ("longer", sizes_N == sizes_N.max())):
            share[ranker].append(float(best_N[record.label] / best_N.sum()))
    rows = []
    for ranker, values in share.items() if share["chance"] else ():
        interval = stats.wilson(sum(values), len(values))
        row = value_row(task, ranker, "accuracy", float(np.mean(values)), *interval, n_items=len(values), seed="")
        rows.append(row | {"objective": "baseline", "stage": "baseline"})
    return rows
