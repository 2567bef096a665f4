"""Trivial rankers of pairs, to stand beside every model: a result that one of them matches shows nothing.

    chance         one half
    majority       the label that is good most often in training; only where the same two labels are the sides
                   throughout
    shorter        the side with fewer UTF-8 bytes
    longer         the side with more
    bag_of_words   logistic regression on word counts; trained, like majority, on the training pairs, those included
                   that are too long for the models

The features of bag_of_words are the words of the good side less those of the bad one; the context, which both share,
cancels. Where the same two labels are the sides throughout, only the context can tell them apart, and the features are
words of the context times label.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hhh_jax.data.records import Pair
from hhh_jax.stats import wilson

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_WORD = re.compile(r"\w+|[^\w\s]")


def baseline_scores(train_pairs: Sequence[Pair], test_pairs: Sequence[Pair]) -> dict[str, np.ndarray]:
    """How each ranker does on each test pair: ranker -> float64 [I], 1 right, 0 wrong, 0.5 undecided."""
    length_I = np.array([len(p.good.encode()) - len(p.bad.encode()) for p in test_pairs])
    scores = {
        "chance": np.full(len(test_pairs), 0.5),
        "shorter": _right(-length_I),
        "longer": _right(length_I),
        "bag_of_words": _right(_bag_of_words(train_pairs, test_pairs)),
    }
    if label := _first_label(train_pairs):
        majority = np.sign(sum(1 if p.good == label else -1 for p in train_pairs))  # 0 at a tie
        side_I = np.array([(p.good == label) * 1.0 - (p.bad == label) for p in test_pairs])
        scores["majority"] = _right(majority * side_I)
    return scores


def job(
    directory: Path, *, after: Path | None, study: str, task: str, seed: int, train_pairs: int, test_pairs: int
) -> None:
    """Measures all rankers on a task: rows.jsonl and items.jsonl of a study's run.

    Args:
      directory, after, study: as in `hhh_jax.study.Job`; nothing comes before.
      seed: of what the task draws.
      train_pairs, test_pairs: how many to use; 0 takes all.
    """
    from hhh_jax.data import datasets
    from hhh_jax.results import task_of
    from hhh_jax.run import write_lines
    from hhh_jax.version import code_version

    task = str(task)  # a file of another run is a Path
    train = datasets.load_pairs(task, "train", seed=seed, limit=train_pairs or None)
    test = datasets.load_pairs(task, "test", seed=seed, limit=test_pairs or None)
    columns = {
        "study": study, "run": directory.name, "ladder": "cpu", "data_sha": train.sha[:6] + test.sha[:6],
        "pairs_total": len(train.records), "code_version": code_version(),
    }  # fmt: skip
    rows, items = baseline_results(task_of(task, directory), train.records, test.records, columns)
    write_lines(directory / "items.jsonl", items)
    write_lines(directory / "rows.jsonl", rows)


def baseline_results(
    task: str, train_pairs: Sequence[Pair], test_pairs: Sequence[Pair], columns: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the results table and lines of items.jsonl, as hhh_jax.results describes them.

    `columns` are the cells that the rows share beyond these (study, run, ladder, data_sha, code_version).
    """
    rows, items = [], []
    for ranker, correct_I in baseline_scores(train_pairs, test_pairs).items():
        lo, hi = wilson(float(correct_I.sum()), len(correct_I))
        value = {"value": float(correct_I.mean()), "n_items": len(correct_I), "lo": lo, "hi": hi}
        named = {
            "stage": "baseline",
            "objective": "baseline",
            "task": task,
            "ranker": ranker,
            "metric": "accuracy",
        }
        rows.append({**columns, **named, "split": "test", "curve": "separate", **value})
        for pair, correct in zip(test_pairs, correct_I, strict=True):
            item = {"task": task, "split": "test", "selection": "best", "ranker": ranker}
            items.append(item | {"item_id": pair.id, "group_id": pair.group, "correct": float(correct)})
    return rows, items


def _right(margin_I: np.ndarray) -> np.ndarray:
    return (np.sign(margin_I) + 1) / 2


def _first_label(pairs: Sequence[Pair]) -> str | None:
    """The first of the two labels that are the sides of every pair; None if the sides are free text."""
    sides = {frozenset((pair.good, pair.bad)) for pair in pairs}
    return min(next(iter(sides))) if len(sides) == 1 and len(pairs) > 1 else None


def _bag_of_words(train_pairs: Sequence[Pair], test_pairs: Sequence[Pair]) -> np.ndarray:
    """The log-odds [I] by which bag_of_words prefers the good side."""
    from scipy.sparse import vstack
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    words = CountVectorizer(analyzer=lambda text: _WORD.findall(text.lower()), dtype=np.float64)
    label = _first_label(train_pairs)
    if label is None:
        words.fit([text for pair in train_pairs for text in (pair.good, pair.bad)])
    else:
        words.fit(
            [f"{pair.context} \x00" for pair in train_pairs]
        )  # the last word stands for the label alone

    def features(pairs: Sequence[Pair]) -> "csr_matrix":
        if label is None:
            return words.transform([p.good for p in pairs]) - words.transform([p.bad for p in pairs])
        side_I = np.array([(p.good == label) * 1.0 - (p.bad == label) for p in pairs])
        return words.transform([f"{p.context} \x00" for p in pairs]).multiply(side_I[:, None]).tocsr()

    # Every pair enters both ways round, so there is nothing for an intercept to learn.
    train = features(train_pairs)
    model = LogisticRegression(fit_intercept=False, max_iter=1000)
    model.fit(vstack([train, -train]), np.repeat([1, 0], train.shape[0]))
    return model.decision_function(features(test_pairs))
