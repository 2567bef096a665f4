"""The ETHICS tasks, by item and, where the benchmark counts so, by group: a group is right if all its items are.

Commonsense, deontology, justice and virtue set the right of two labels against the other one, utilitarianism one
situation against another, all as prepared pairs. Groups of a few items are hard to get by chance (1 of 16 or 32), so
accuracy by item stands beside it. Utilitarianism has no context; its dialogue form has an empty question.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from hhh_jax import stats
from hhh_jax.data.records import MultipleChoice, Pair
from hhh_jax.evals.choices import trivial_rows
from hhh_jax.evals.subject import Outcome, Subject, accuracy_rows, ask, error_rows, read_prompt, value_row
from hhh_jax.scoring import ItemScores, score_options

METRICS = {
    "sum_logp": "sum", "mean_logp": "mean", "mutual_information": "mi:delimiter", "mutual_information_empty": "mi:empty"
}  # fmt: skip


def evaluate(subject: Subject, task: str, records: Sequence[Pair]) -> Outcome:
    """Scores both sides of every pair; a preference model also ranks by reward."""
    texts = subject.templates["ethics"]
    items = [
        ask(
            MultipleChoice(pair.id, pair.context, (pair.good, pair.bad), 0, pair.group),
            texts[subject.form if pair.context or subject.form == "bare" else "empty"],
        )
        for pair in records
    ]
    prefix, note = read_prompt(subject, {i.id: [i.context + option for option in i.options] for i in items})
    with_reward = "score_head" in subject.scorer.params
    contexts = {"delimiter": None, "empty": texts["empty"]}
    scores = score_options(subject.scorer, subject.tokenizer, items, prefix, contexts, with_reward)
    metrics = METRICS | ({"reward": "reward"} if with_reward else {})
    rows = accuracy_rows(task, scores, subject.seeds, metrics)
    for ranker, metric in metrics.items():
        for g, seed in enumerate(subject.seeds):
            right = group_accuracy(scores, metric, g)
            if right is not None:
                n, share = len(right), float(np.mean(right))
                interval = stats.wilson(share * n, n)
                rows.append(value_row(task, ranker, "group_accuracy", share, *interval, n_items=n, seed=seed))
    rows += trivial_rows(task, items) + error_rows(task, sum(bool(score.error) for score in scores))
    found = [record for score in scores for record in score.records(subject.seeds, task=task, split="test")]
    return Outcome(rows, found, [note])


def whole_groups(records: Sequence[Pair], limit: int) -> list[Pair]:
    """The records of the first groups that have `limit` of them, or a few more."""
    kept: set[str] = set()
    n = 0
    for group, size in Counter(record.group for record in records).items():  # in the order of their first records
        if n < limit:
            kept.add(group)
            n += size
    return [record for record in records if record.group in kept]


def group_accuracy(scores: Sequence[ItemScores], metric: str, seed: int) -> np.ndarray | None:
    """1 for every group whose items are all right under seed number `seed`, else 0 (ties count their share).

    None unless all groups are of one size above one: others only keep together what is alike. A group with an item that
    could not be scored is left out.
    """
    groups: dict[str, list[ItemScores]] = defaultdict(list)
    for score in scores:
        groups[score.item.group].append(score)
    whole = [members for members in groups.values() if not any(member.error for member in members)]
    if len(sizes := {len(members) for members in groups.values()}) > 1 or sizes == {1} or not whole:
        return None
    return np.array([np.prod([member.right(metric)[seed] for member in members]) for members in whole])
