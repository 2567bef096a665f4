"""What trivial predictors make of held-out records of any kind; `hhh_jax.baselines` does it for pairs.

A choice stands for the pairs of its right option with each wrong one: a ranker that finds the right option wins all of
them. A label stands for the pair of itself and the other label after the same text.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, compress
from typing import Any, cast

import numpy as np

from hhh_jax.baselines import baseline_scores
from hhh_jax.data.records import GroupedLabel, MultipleChoice, Pair, Record
from hhh_jax.stats import wilson

KINDS = ("pairs", "choices", "labels")  # those that have a right answer among given ones
FOLDS = 5
MAX_TRAIN_PAIRS = 20_000


def affordable(train: Sequence[Record]) -> Sequence[Record]:
    """The first records, up to MAX_TRAIN_PAIRS pairs of them."""
    sizes = (len(record.options) - 1 if isinstance(record, MultipleChoice) else 1 for record in train)
    return train[: sum(total <= MAX_TRAIN_PAIRS for total in accumulate(sizes))]


def held_out_scores(train: Sequence[Record], test: Sequence[Record], seed: int = 0) -> dict[str, np.ndarray]:
    """How each predictor does on each test record: predictor -> float64 [I]; 1 right, 0 wrong, ties in between.

    Without training records, those predictors that learn do it on the test records of other groups, in five folds cut
    by group with `seed`; with a single fold's groups there is nothing to learn from, and the result is empty.
    """
    import sklearn.linear_model  # noqa: F401  # loads the libraries whose threads are limited
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # more threads are slower on matrices as small as these, and add up in another order
        return _scores(train, test) if train else _scores_in_folds(test, seed)


def _scores_in_folds(test: Sequence[Record], seed: int) -> dict[str, np.ndarray]:
    fold_I = np.array([_fold(record.group, seed) for record in test])
    folds = np.unique(fold_I)
    if len(folds) < 2:
        return {}
    scores: dict[str, np.ndarray] = {}
    for fold in folds:
        own_I = fold_I == fold
        for name, score_I in _scores(list(compress(test, ~own_I)), list(compress(test, own_I))).items():
            scores.setdefault(name, np.full(len(test), 0.5))[own_I] = score_I
    return scores


def accuracy(score_I: np.ndarray) -> dict[str, Any]:
    """Mean with Wilson's 95% interval: n, value, lo, hi."""
    lo, hi = wilson(float(score_I.sum()), len(score_I))
    return {"n": len(score_I), "value": float(score_I.mean()), "lo": lo, "hi": hi}


def by_group(score_I: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """The chance [G] that all items of a group are right: the product of their scores, in order of appearance."""
    right: dict[str, float] = {}
    for group, score in zip(groups, score_I, strict=True):
        right[group] = right.get(group, 1.0) * float(score)
    return np.array(list(right.values()))


def _fold(group: str, seed: int) -> int:
    return hashlib.sha256(f"{seed} {group}".encode()).digest()[0] % FOLDS


def _scores(train: Sequence[Record], test: Sequence[Record]) -> dict[str, np.ndarray]:
    kind = type(test[0])
    if kind is Pair:
        scores = baseline_scores(cast(Sequence[Pair], train), cast(Sequence[Pair], test))
        return _without_lengths(scores) if "majority" in scores else scores
    if kind is MultipleChoice:
        return _choice_scores(cast(Sequence[MultipleChoice], train), cast(Sequence[MultipleChoice], test))
    return _label_scores(cast(Sequence[GroupedLabel], train), cast(Sequence[GroupedLabel], test))


def _choice_scores(train: Sequence[MultipleChoice], test: Sequence[MultipleChoice]) -> dict[str, np.ndarray]:
    owner_P = np.repeat(np.arange(len(test)), [len(choice.options) - 1 for choice in test])
    scores = {}
    for name, score_P in baseline_scores(choice_pairs(train), choice_pairs(test)).items():
        lost_I, tied_I = (np.bincount(owner_P, score_P == value, minlength=len(test)) for value in (0, 0.5))
        scores[name] = (lost_I == 0) / (1 + tied_I)
    most_common = Counter(choice.label for choice in train).most_common(1)[0][0]
    scores["position"] = np.array([float(choice.label == most_common) for choice in test])
    return scores


def choice_pairs(choices: Sequence[MultipleChoice]) -> list[Pair]:
    """The right option against each wrong one, question by question."""
    return [
        Pair(f"{choice.id}/{i}", choice.context, choice.options[choice.label], option, choice.group)
        for choice in choices
        for i, option in enumerate(choice.options)
        if i != choice.label
    ]


def _label_scores(train: Sequence[GroupedLabel], test: Sequence[GroupedLabel]) -> dict[str, np.ndarray]:
    def pairs(labels: Sequence[GroupedLabel]) -> list[Pair]:
        return [Pair(x.id, x.context, str(x.label), str(1 - x.label), x.group) for x in labels]

    return _without_lengths(baseline_scores(pairs(train), pairs(test))) | {"length": _length_scores(train, test)}


def _without_lengths(scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Less those of shorter and longer, which say nothing where the sides are the names of two labels."""
    return {name: score_I for name, score_I in scores.items() if name not in ("shorter", "longer")}


def _length_scores(train: Sequence[GroupedLabel], test: Sequence[GroupedLabel]) -> np.ndarray:
    """The cut of the text's length in bytes, and the label above it, that fit the training records best."""
    sizes_N, sizes_I = (np.array([len(x.context.encode()) for x in labels]) for labels in (train, test))
    label_N, label_I = (np.array([x.label for x in labels]) for labels in (train, test))
    sizes_U, inverse_N = np.unique(sizes_N, return_inverse=True)
    ones_C, zeros_C = (
        np.concatenate([[0], np.cumsum(np.bincount(inverse_N[label_N == label], minlength=len(sizes_U)))])
        for label in (1, 0)
    )  # at or below each cut; the first cut is below everything
    right_C = zeros_C + ones_C[-1] - ones_C  # of calling everything above the cut 1
    cut = int(np.argmax(np.maximum(right_C, len(train) - right_C)))
    above_I = sizes_I > (sizes_U[cut - 1] if cut else -1)
    says_one_I = above_I if 2 * right_C[cut] >= len(train) else ~above_I
    return (says_one_I == (label_I == 1)).astype(np.float64)
