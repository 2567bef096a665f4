"""The trivial rankers on pairs whose answer is known by construction."""

import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from hhh_jax import baselines, results
from hhh_jax.data.records import Pair
from hhh_jax.results import COLUMNS


def _pair(number, good, bad, context=""):
    return Pair(f"i{number}", context, good, bad, f"g{number // 2}")


def test_lengths_are_in_bytes_and_ties_count_half():
    pairs = [
        _pair(0, "abc", "ab"),
        _pair(1, "ab", "abc"),
        _pair(2, "ab", "cd"),
        _pair(3, "é", "ab"),
        _pair(4, "é", "a"),
    ]
    scores = baselines.baseline_scores(pairs, pairs)
    assert scores["shorter"].tolist() == [0, 1, 0.5, 0.5, 0]
    assert scores["longer"].tolist() == [1, 0, 0.5, 0.5, 1]
    assert scores["chance"].tolist() == [0.5] * 5
    assert "majority" not in scores


def test_majority_is_the_label_that_is_good_more_often_in_training():
    train = [_pair(i, " yes", " no") if i % 3 else _pair(i, " no", " yes") for i in range(9)]
    test = [_pair(0, " yes", " no"), _pair(1, " no", " yes")]
    assert baselines.baseline_scores(train, test)["majority"].tolist() == [1, 0]
    balanced = train[:2]
    assert baselines.baseline_scores(balanced, test)["majority"].tolist() == [0.5, 0.5]


def test_bag_of_words_finds_a_word_in_free_text():
    rng = np.random.default_rng(0)
    words = np.array(["alpha", "beta", "gamma", "delta", "epsilon", "zeta"])
    texts = [[" ".join(rng.choice(words, 5)) for _ in range(2)] for _ in range(300)]
    pairs = [_pair(i, f"{a} kind", f"{b} rude") for i, (a, b) in enumerate(texts)]
    correct_I = baselines.baseline_scores(pairs[:200], pairs[200:])["bag_of_words"]
    assert correct_I.mean() > 0.98


def test_bag_of_words_ignores_order():
    pairs = [_pair(i, f"a{i % 7} b c", f"c b a{i % 7}") for i in range(60)]
    assert set(baselines.baseline_scores(pairs[:40], pairs[40:])["bag_of_words"]) == {0.5}


def test_bag_of_words_reads_the_context_where_the_sides_are_labels():
    rng = np.random.default_rng(1)
    pairs = []
    for i in range(300):
        nice = bool(rng.integers(2))
        context = f"{'kind' if nice else 'rude'} {rng.choice(['x', 'y', 'z'])}"
        pairs.append(_pair(i, *([" good", " bad"] if nice else [" bad", " good"]), context))
    assert baselines.baseline_scores(pairs[:200], pairs[200:])["bag_of_words"].mean() == 1.0


def test_pair_differences_are_an_ordinary_regression():
    """Two words with given counts: the same odds as a regression written out by hand."""
    counts = [(3, 0), (1, 2), (0, 1), (2, 2), (4, 1), (0, 3)]
    pairs = [_pair(i, "u " * a + "v", "v " * b + "u") for i, (a, b) in enumerate(counts)]
    x_Px2 = np.array([[a - 1, 1 - b] for a, b in counts], dtype=float)
    by_hand = LogisticRegression(fit_intercept=False, max_iter=1000)
    by_hand.fit(np.concatenate([x_Px2, -x_Px2]), [1] * 6 + [0] * 6)
    np.testing.assert_allclose(
        baselines._bag_of_words(pairs, pairs), by_hand.decision_function(x_Px2), atol=1e-4
    )


def test_nothing_is_learned_from_shuffled_labels():
    rng = np.random.default_rng(2)
    words = np.array([f"w{i}" for i in range(30)])
    pairs = [_pair(i, *(" ".join(rng.choice(words, 6)) for _ in range(2))) for i in range(1500)]
    assert baselines.baseline_scores(pairs[:500], pairs[500:])["bag_of_words"].mean() == pytest.approx(
        0.5, abs=0.05
    )


def test_results_are_rows_and_items(tmp_path):
    pairs = [_pair(0, "abc", "ab"), _pair(1, "ab", "abc"), _pair(2, "ab", "cd")]
    rows, items = baselines.baseline_results("t", pairs, pairs, {"study": "s", "run": "base"})
    assert all(set(row) <= set(COLUMNS) for row in rows)
    longer = next(row for row in rows if row["ranker"] == "longer")
    assert longer["value"] == 0.5 and longer["n_items"] == 3 and longer["lo"] < 0.5 < longer["hi"]
    assert len(items) == 4 * 3
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    assert results.read_items(tmp_path, "t", "test", "best", "longer").correct.tolist() == [[1.0, 0.0, 0.5]]
