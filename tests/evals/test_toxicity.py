"""The three measures of toxicity by hand, and scorers that don't keep their word."""

import numpy as np
import pytest
from scipy.stats import gaussian_kde

from hhh_jax import stats
from hhh_jax.data.records import Prompt
from hhh_jax.errors import UserError
from hhh_jax.evals import toxicity


def test_measures_by_hand():
    scores_PxN = np.array([[0.1, 0.9], [0.2, 0.4], [0.5, 0.5], [0.6, 0.0]])
    found = {measure.name: measure.estimate for measure in toxicity.measures(scores_PxN)}
    assert found["toxicity"].value == pytest.approx(3.2 / 8)
    assert found["toxicity_expected_maximum"].value == pytest.approx((0.9 + 0.4 + 0.5 + 0.6) / 4)
    assert found["toxicity_probability"].value == pytest.approx(2 / 4)  # 0.5 is not above 0.5
    for estimate in found.values():
        assert estimate.n_items == 4 and 0 <= estimate.lo < estimate.value < estimate.hi <= 1
    never = {measure.name: measure.estimate for measure in toxicity.measures(scores_PxN / 10)}["toxicity_probability"]
    assert never[:3] == (0, *stats.wilson(0, 4))


def test_the_density_is_scipys():
    scores_PxN = 10 ** np.random.default_rng(0).normal([-3.5, -2], 0.4, (40, 2))
    found = toxicity.density(scores_PxN.reshape(2, 20, 2))
    at = np.array([place / 100 for place, _ in found])
    values = np.array([estimate.value for _, estimate in found])
    np.testing.assert_allclose(values, gaussian_kde(np.log10(scores_PxN.ravel()))(at), rtol=1e-9, atol=1e-12)
    assert np.trapezoid(values, at) == pytest.approx(1, abs=1e-3)  # an area of 1 in factors of 10
    peak = found[int(values.argmax())][1]
    assert peak.lo < peak.value < peak.hi and (peak.n_items, peak.n_seeds) == (20, 2)
    assert all(estimate.lo >= 0 for _, estimate in found)


def test_scores_of_zero_have_a_density():
    values = [estimate.value for _, estimate in toxicity.density(np.zeros((1, 3, 4)))]
    assert toxicity.PLACES[int(np.argmax(values))] == -500 and np.isfinite(values).all()


def test_half_of_the_prompts_are_toxic():
    numbers = {"toxic": 7, "nontoxic": 30}
    prompts = [Prompt(f"{c}{i}", "x", "g", {"category": c}) for c, n in numbers.items() for i in range(n)]
    chosen = toxicity.choose_prompts(prompts, seed=0, count=20)
    assert [p.meta["category"] for p in chosen] == ["toxic"] * 7 + ["nontoxic"] * 7
    assert chosen == toxicity.choose_prompts(prompts[::-1], seed=0, count=20)
    assert chosen != toxicity.choose_prompts(prompts, seed=1, count=20)
    with pytest.raises(UserError, match="1 of 31 prompts are of category toxic"):
        toxicity.choose_prompts(prompts[6:], seed=0)


def test_a_scorer_of_the_users(tmp_path):
    path = tmp_path / "shouting.py"
    path.write_text("def score(texts):\n    return [sum(c.isupper() for c in t) / max(len(t), 1) for t in texts]\n")
    scorer = toxicity.load_scorer(f"{path}:score")
    np.testing.assert_allclose(toxicity.judge(scorer, ["AB", "aB", "ab", ""] * 100, batch=7), [1, 0.5, 0, 0] * 100)


@pytest.mark.parametrize(
    ("name", "words"),
    [("shouting", "FILE.py:FUNCTION"), ("missing.py:score", "cannot be loaded"), ("json:score", "cannot be loaded")],
)
def test_a_scorer_that_is_not_there(name, words):
    with pytest.raises(UserError, match=words):
        toxicity.load_scorer(name)


@pytest.mark.parametrize(
    ("scorer", "words"),
    [
        (lambda texts: [0.5], "1 scores for 2 texts"),
        (lambda texts: [0.5, float("nan")], "gave nan for 'b'"),
        (lambda texts: [1.5, 0.5], "gave 1.5 for 'a'"),
    ],
)
def test_a_scorer_that_gives_something_else(scorer, words):
    with pytest.raises(UserError, match=words):
        toxicity.judge(scorer, ["a", "b"])
