"""Distances and bins by hand, a planted discriminator, the formula of the ensemble, and top-N against sorting."""

import numpy as np
import pytest

from hhh_jax.data.packing import empty_batch
from hhh_jax.errors import UserError
from hhh_jax.evals import discriminator
from hhh_jax.evals.discriminator import Problem, Samples
from hhh_jax.scoring import compiled_forward, load_scorer

T = 12


def labels(*switches):
    return (np.arange(T) < np.array(switches)[:, None]).astype(np.uint8)


def test_distances_have_no_zero():
    expected = [[-3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9], [-11, -10, -9, -8, -7, -6, -5, -4, -3, -2, -1, 1]]
    np.testing.assert_array_equal(discriminator.distances(labels(3, 11)), expected)


def test_bins_double():
    starts = {1: 1, 2: 2, 3: 3, 4: 3, 5: 5, 8: 5, 9: 9, 16: 9, 17: 17, 32: 17, 33: 33, 64: 33, 65: 65}
    distance = np.array([*starts, *(-d for d in starts)])
    np.testing.assert_array_equal(discriminator.bin_start(distance), [*starts.values(), *(-s for s in starts.values())])


def test_a_planted_discriminator_is_measured_at_every_distance():
    """One that needs four tokens of a model to notice it, and is wrong in one human row of five."""
    rng = np.random.default_rng(0)
    switches = np.concatenate([rng.integers(2, T, 60), np.full(50, T), np.full(40, 1)])
    is_human = labels(*switches)
    distance = discriminator.distances(is_human)
    says_human = (distance < 0) | (distance <= 4)
    says_human[60:70] = False
    right = (says_human == (is_human > 0))[None].repeat(2, axis=0)
    rows = list(discriminator.accuracy_by_distance(right, is_human))
    at = {row["k"]: row for row in rows if row["metric"] == "accuracy_at_distance"}
    assert {k: row["value"] for k, row in at.items()} == {
        k: pytest.approx(float(k < 0 or k > 4)) for k in (-9, -5, -3, -2, -1, 1, 2, 3, 5, 9)
    }
    assert at[9]["n_items"] == (switches[:60] <= T - 9).sum()
    values = {row["metric"]: row["value"] for row in rows if "distance" not in row["metric"]}
    assert values["accuracy:human"] == pytest.approx(0.8)
    assert values["accuracy:model"] == pytest.approx((1 + (T - 5)) / T)
    assert values["after_switch_gain"] == pytest.approx(1.0)


def test_ensemble_is_the_formula():
    """Eq. D.2 for a word of two tokens: D = .8 and .6, P = .5 and .1."""
    d, p = np.array([0.8, 0.6]), np.array([0.5, 0.1])
    by_hand = (0.8 / 0.2 * 0.5) * (0.6 / 0.4 * 0.1)
    log_odds = np.log(d / (1 - d)).sum()
    assert np.exp(discriminator.ensemble(log_odds, np.log(p).sum())) == pytest.approx(by_hand)


def test_top_accuracy_is_the_mean_of_the_best_with_ties_shared():
    scores, right = np.array([0.1, 0.9, 0.5, 0.5, 0.2]), np.array([1.0, 1.0, 0.0, 1.0, 0.0])
    np.testing.assert_allclose(discriminator.top_accuracy(scores, right), [1, 1.5 / 2, 2 / 3, 2 / 4, 3 / 5])
    rng = np.random.default_rng(0)
    scores, right = rng.normal(size=50), rng.integers(0, 2, 50)
    order = np.argsort(-scores)
    expected = [right[order[:n]].mean() for n in range(1, 51)]
    np.testing.assert_allclose(discriminator.top_accuracy(scores, right), expected)


def test_a_word_ends_before_what_is_none():
    words = {(b" 2", b"1", b" 22"): 2, (b" don", b"'", b"t", b"."): 3, (b" caf", b"\xc3\xa9", b","): 2, (b"", b" a"): 1}
    for spellings, size in words.items():
        assert discriminator.word_length(spellings) == size
    assert discriminator.word_length([b" 1", b"2"]) == 2


def test_counting_problems_have_the_next_number():
    problems = discriminator.load_problems("counting", "", 3, 5)
    assert [p.answer for p in problems] == [str(int(p.context.split()[-1]) + 1) for p in problems]
    assert (problems[0].context, problems[-1].answer, len(problems)) == ("1 2 3", "128", 5)
    with pytest.raises(UserError, match="counting and lambada"):
        discriminator.load_problems("poems", "", 3, 5)


def test_each_word_is_scored_by_its_own_tokens(ranked):
    """Against the whole text computed alone, without packing or branches."""
    scorer, tokenizer, _ = load_scorer(str(ranked))
    context, words = tokenizer.encode("the red fox"), [" runs here", " sleeps", " eats and"]
    options = [tokenizer.encode(word) for word in words]
    human, odds = discriminator.score_words(scorer, [(context, options), (context[:1], options[:1])])
    forward = compiled_forward(scorer.model, scorer.n_seeds, scorer.mesh, ("reward",))
    for at, (before, option) in enumerate([*((context, option) for option in options), (context[:1], options[0])]):
        batch, _ = empty_batch(scorer.padded_rows(), scorer.length, 0, scorer.pad_id)
        n = len(before) + len(option)
        batch.tokens[0, :n], batch.segment_ids[0, :n] = np.concatenate([before, option]), 1
        batch.positions[0, :n] = np.arange(n)
        logits = np.asarray(forward(scorer.params, (), scorer.place(batch))[1])[:, 0, len(before) : n]
        np.testing.assert_allclose(odds[:, at], logits.sum(1), atol=1e-4)
        np.testing.assert_allclose(human[:, at], (1 / (1 + np.exp(-logits))).mean(1), atol=1e-5)


def test_ranking_rows_of_planted_scores():
    """Three problems of ten samples: the discriminator knows the right word, the language model prefers a wrong one."""
    which = np.array([0] * 3 + [1] * 7)
    said = Samples([np.array([1]), np.array([2])], np.log([0.3, 0.7]), np.array([True, False]), which)
    human = np.tile([0.9, 0.2], (2, 3))
    found = discriminator.ranking_rows(human, np.log(human / (1 - human)), [said] * 3)
    rows = {(row["metric"], row["ranker"], row["k"]): row["value"] for row in found}
    expected = {
        ("top_accuracy", "p_human", 1): 1, ("top_accuracy", "ensemble", 1): 1,  # .3 * 9 is more than .7 / 4
        ("top_accuracy", "logp", 1): 0, ("top_accuracy", "p_human", 4): 0.75, ("top_accuracy", "logp", 8): 1 / 8,
        ("top_accuracy", "p_human", 10): 0.3, ("top_accuracy", "logp", 10): 0.3, ("top_accuracy", "ensemble", 10): 0.3,
        ("top_accuracy_gain", "p_human-unranked", 1): 0.7, ("top_accuracy_gain", "logp-p_human", 1): -1,
        ("top_accuracy_gain", "ensemble-logp", 1): 1,
    }  # fmt: skip
    assert {key: rows[key] for key in expected} == {key: pytest.approx(value) for key, value in expected.items()}


def test_samples_are_merged_and_checked(pretrained):
    scorer, tokenizer, _ = load_scorer(str(pretrained), [0], "final")
    problems = [
        Problem("a", "red fox runs", "here"),
        Problem("b", "blue", "hen"),
        Problem("long", "red fox " * 80, "x"),
    ]
    drawn = discriminator.draw(scorer._replace(rows=32), tokenizer, problems, 30, 64)
    assert len(drawn) == 2  # one has no room
    spellings = tokenizer.token_bytes()
    for (tokens, said), problem in zip(drawn, problems, strict=False):
        np.testing.assert_array_equal(tokens, tokenizer.encode(problem.context))
        assert len(said.which_N) == 30 and set(said.which_N) == set(range(len(said.tokens)))
        for word, right in zip(said.tokens, said.right_D, strict=True):
            text = b"".join(spellings[t] for t in word).decode(errors="replace").strip()
            assert right == (text == problem.answer) and len(text.split()) <= 1
