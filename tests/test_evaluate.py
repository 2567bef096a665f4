"""Scores against each side and document computed one by one in numpy; ties; every item once."""

from itertools import pairwise

import jax
import numpy as np
import pytest
import reference
from reference import EOC, PAD, make_pair, random_pairs, random_params, sides, tiny

from hhh_jax import evaluate, scoring
from hhh_jax.errors import UserError
from hhh_jax.sharding import make_mesh

MODEL = tiny(n_layer=1)
PAIRS = [
    *random_pairs(np.random.default_rng(0), 11),
    make_pair("no context", [], [5], [6, 7]),
    make_pair("one token of context", [8], [9, 10, 11], [12]),
]
SEEDS = (3, 8)


def scorer_of(params: list, rows: int = 3) -> scoring.Scorer:
    stacked = jax.tree.map(lambda *x: np.stack(x), *params)
    return scoring.Scorer(MODEL, stacked, len(params), make_mesh(), rows, 40, PAD)


@pytest.fixture(scope="module")
def params() -> list:
    return [random_params(MODEL, seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def scores(params) -> evaluate.PairScores:
    return evaluate.score_pairs(scorer_of(params), PAIRS, ("logp", "reward"))


def test_scores_equal_each_side_alone(params, scores):
    """In batches of three rows, so that the last one is ragged."""
    assert scores.logp_sum_GxPx2.shape == scores.reward_GxPx2.shape == (2, 13, 2)
    for g, p in np.ndindex(2, len(PAIRS)):
        for side, sequence in enumerate(sides(PAIRS[p])):
            logps = reference.target_logps(MODEL, params[g], sequence)
            # The response with its end-of-context; without context its first token is not predicted.
            n = len(sequence) - max(len(PAIRS[p].context), 1)
            assert scores.n_tokens_Px2[p, side] == n
            assert scores.logp_sum_GxPx2[g, p, side] == pytest.approx(logps[-n:].sum(), abs=1e-5 * n)
            reward = reference.reward(MODEL, params[g], sequence)
            assert scores.reward_GxPx2[g, p, side] == pytest.approx(reward, abs=1e-5)


def test_margins_are_of_rewards_or_of_log_probabilities_a_token(scores):
    np.testing.assert_allclose(scores.margins("reward"), scores.reward_GxPx2[..., 0] - scores.reward_GxPx2[..., 1])
    mean = scores.logp_sum_GxPx2 / scores.n_tokens_Px2
    np.testing.assert_allclose(scores.margins("mean_logp"), mean[..., 0] - mean[..., 1])


def test_what_is_not_asked_for_is_not_there(params, scores):
    """A language model has no score head, and needs none."""
    lm = [{name: each[name] for name in ("transformer", "lm_head")} for each in params]
    only = evaluate.score_pairs(scorer_of(lm), PAIRS, ("logp",))
    assert only.reward_GxPx2 is None
    np.testing.assert_allclose(only.logp_sum_GxPx2, scores.logp_sum_GxPx2, atol=1e-5)


def test_documents_equal_each_row_alone(params):
    """A document that the end of a row divides goes on without what came before, all of it predicted but its first."""
    rng = np.random.default_rng(0)
    documents = [np.append(rng.integers(2, 64, size), EOC).astype(np.int32) for size in (9, 1, 70, 30, 0, 20)]
    logp_GxD, n_D = scoring.score_documents(scorer_of(params), documents)
    assert n_D.tolist() == [9, 1, 70, 30, 0, 20]
    for g in range(2):
        start = 0
        for d, document in enumerate(documents):
            cuts = [0, *(cut for cut in range(-start % 40, len(document), 40) if cut > 0), len(document)]
            # The last token of a row predicts the first one of the next.
            parts = [document[first : last + 1] for first, last in pairwise(cuts)]
            expected = sum(reference.target_logps(MODEL, params[g], part).sum() for part in parts)
            assert logp_GxD[g, d] == pytest.approx(expected, abs=1e-4)
            start += len(document)


def test_a_score_that_is_not_finite_is_an_error_and_not_a_wrong_answer(params):
    broken = jax.tree.map(np.array, params[1])
    broken["score_head"]["kernel"][3] = np.nan
    scorer = scorer_of([params[0], broken])
    with pytest.raises(UserError, match="reward of item pair 0 is not finite under seed number 1"):
        evaluate.score_pairs(scorer, PAIRS, ("logp", "reward"))
    broken["lm_head"]["kernel"][0, 0] = np.inf
    scorer = scorer_of([params[0], broken])
    with pytest.raises(UserError, match="log-probability of item 0 is not finite under seed number 1"):
        scoring.score_documents(scorer, [np.arange(9, dtype=np.int32)])


def test_ties_count_half():
    assert evaluate.right(np.array([[2.0, -1.0, 0.0, 1e-30]])).tolist() == [[1.0, 0.0, 0.5, 1.0]]


def test_loss_of_margins_by_hand():
    margins = np.array([0.0, 1.0, -3.0, 1e4, -1e4], np.float32)
    np.testing.assert_allclose(
        evaluate.pm_loss(margins), [np.log(2), np.log1p(np.exp(-1)), np.log1p(np.exp(3)), 0, 1e4]
    )


def test_rows_and_items_of_known_scores():
    """Four pairs, two seeds: the first gets 2 right and ties 1, the second ties all."""
    reward_GxPx2 = np.array([[[2, 1], [0, 3], [1, 1], [5, -5]], [[1, 1]] * 4], np.float64)
    logp_GxPx2 = np.array([[[-2, -6], [-8, -3], [-4, -8], [-1, -2]], [[-2, -4], [-2, -4], [-2, -4], [-2, -4]]], float)
    n_tokens = np.array([[1, 2], [2, 1], [1, 4], [1, 1]])
    scores = evaluate.PairScores(logp_GxPx2, n_tokens, reward_GxPx2)
    pairs = PAIRS[:4]
    rows = evaluate.pair_rows(scores, SEEDS, "best", ("reward", "mean_logp"))
    values = {(row["ranker"], row["metric"], row["seed"]): row["value"] for row in rows}
    assert values == {
        ("reward", "accuracy", 3): 2.5 / 4,
        ("reward", "accuracy", 8): 0.5,
        ("reward", "pm_loss", 3): pytest.approx(np.log1p(np.exp([-1.0, 3.0, 0.0, -10.0])).mean()),
        ("reward", "pm_loss", 8): pytest.approx(np.log(2)),
        # Means a token of seed 3: -2 > -3, -4 < -3, -4 < -2, -1 > -2.
        ("mean_logp", "accuracy", 3): 0.5,
        # Of seed 8: -2 = -2, -1 > -4, -2 < -1, -2 > -4.
        ("mean_logp", "accuracy", 8): 2.5 / 4,
    }
    # Wilson's interval of 2 of 4, from its formula at z = 1.96.
    (row,) = (row for row in rows if (row["ranker"], row["seed"]) == ("mean_logp", 3))
    half = 1.96 * (0.25 / 4 + 1.96**2 / 64) ** 0.5 / (1 + 1.96**2 / 4)
    assert (row["lo"], row["hi"], row["n_items"]) == (
        pytest.approx(0.5 - half, abs=1e-4), pytest.approx(0.5 + half, abs=1e-4), 4,
    )  # fmt: skip
    final = evaluate.pair_rows(scores, SEEDS, "final", ("reward",))
    assert {row["metric"] for row in final} == {"accuracy_final", "pm_loss_final"}

    items = evaluate.pair_items(scores, pairs, SEEDS, task="t", split="test", selection="best")
    assert len(items) == 2 * 4 * 2
    assert items[3] == {
        "task": "t", "split": "test", "selection": "best", "seed": 3, "item_id": pairs[1].id,
        "group_id": pairs[1].group, "option": "bad", "n_tokens": 1, "n_bytes": pairs[1].n_bytes[1], "logp_sum": -3.0,
        "reward": 3.0, "label": 0,
    }  # fmt: skip
    only_logp = evaluate.PairScores(logp_GxPx2, n_tokens, None)
    assert {item["reward"] for item in evaluate.pair_items(only_logp, pairs, SEEDS)} == {None}


def test_a_group_is_right_if_all_its_pairs_are():
    """Pairs of three groups, mixed; one of the groups is wholly right, one has a tie, one a wrong pair."""
    groups = ("b", "a", "c", "a", "b", "c")
    margins = np.array([[1.0, 2.0, -1.0, 3.0, 0.0, 1.0]])
    scores = evaluate.PairScores(None, np.ones((6, 2)), np.stack([margins, 0 * margins], -1), groups)
    rows = {row["metric"]: row for row in evaluate.pair_rows(scores, (0,), "best", ("reward",))}
    assert rows["group_accuracy"]["value"] == 1.5 / 3 and rows["group_accuracy"]["n_items"] == 3
    assert rows["accuracy"]["value"] == 4.5 / 6
    for groups in (("a", "b", "c", "d", "e", "f"), ("a",) * 6, ("a", "a", "b", "b", "b", "c"), ()):
        assert evaluate.by_group(np.ones(6), groups) is None
