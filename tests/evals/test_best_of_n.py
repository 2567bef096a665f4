"""Best of n against brute force over subsets; a gold that is known, and what a proxy promises."""

import itertools
import json

import numpy as np
import pytest
from tiny_runs import tiny

from hhh_jax import run
from hhh_jax.data import symbols
from hhh_jax.errors import UserError
from hhh_jax.evals import best_of_n
from hhh_jax.evals.pass_at_k import acc_at_k, best_of_n_kl
from hhh_jax.scoring import load_scorer


def test_the_estimator_is_the_mean_over_all_subsets():
    """Gold values are no 0 or 1, and two candidates have one score."""
    rng = np.random.default_rng(0)
    scores, gold = rng.normal(size=9), rng.random(9)
    scores[3] = scores[7]
    for n in range(1, 10):
        best = []
        for subset in itertools.combinations(range(9), n):
            top = max(scores[list(subset)])
            best.append(np.mean([gold[i] for i in subset if scores[i] == top]))
        assert acc_at_k(scores, gold, n) == pytest.approx(np.mean(best), abs=1e-12)


def test_kl_is_that_of_the_best_of_n_uniform_numbers():
    """The best of n has the density n x^(n - 1), whose divergence from 1 is the integral of its own logarithm."""
    x = (np.arange(200_000) + 0.5) / 200_000
    for n in (1, 2, 16):
        density = n * x ** (n - 1)
        assert best_of_n_kl(np.array(n)) == pytest.approx(np.mean(density * np.log(density)), abs=1e-4)


def test_gold_is_the_share_that_a_symbol_beats():
    gold, ranking = best_of_n.gold("T0", 0), symbols.ranking("T0", 0)
    by_symbol = dict(zip(symbols.SYMBOLS, gold, strict=True))
    assert by_symbol[ranking[0]] == 1 and by_symbol[ranking[-1]] == 0
    assert by_symbol[ranking[100]] == pytest.approx(575 / 675) and gold.mean() == pytest.approx(0.5)


def test_what_is_promised_of_known_rewards():
    rewards = np.array([0.0, np.log(3.0)], np.float32)  # the second is better with probability 3/4
    np.testing.assert_allclose(best_of_n.promised(rewards), [0.25, 0.75], atol=1e-6)
    np.testing.assert_allclose(best_of_n.promised(np.arange(5) * 100.0), np.arange(5) / 4, atol=1e-12)


def rows_of(rewards, gold, most=16):
    pools = np.random.default_rng(1).integers(len(gold), size=(20, 2 * most))
    return {(row["metric"], row["k"]): row["value"] for row in best_of_n.best_of_n_rows(rewards, gold, pools, most)}


def test_a_perfect_proxy_keeps_its_promise_and_a_blind_one_does_not():
    gold = np.linspace(0, 1, 300)
    perfect = rows_of(100 * np.tile(np.arange(300.0), (3, 1)), gold)
    assert perfect["gold", 16] == pytest.approx(16 / 17, abs=0.02) == pytest.approx(perfect["oracle", 16], abs=0.02)
    assert perfect["promise-gold", 16] == pytest.approx(0, abs=1e-9) and perfect["gold_rise", 16] > 0.1
    rng = np.random.default_rng(0)
    blind = rows_of(rng.normal(0, 3, (3, 300)), gold)
    assert blind["gold", 1] == pytest.approx(0.5, abs=0.05) and blind["promise", 1] == pytest.approx(0.5, abs=0.05)
    assert blind["promise-gold", 16] > 0.2 and blind["oracle", 16] > 0.9


def test_every_symbol_gets_its_reward(pretrained, tmp_path):
    c = tiny("ranked", "symbols:T0", init__checkpoint=pretrained, data__limit=16, eval__limit=20)
    run.run(c, tmp_path, quiet=True)
    scorer, tokenizer, _ = load_scorer(str(tmp_path))
    rewards = best_of_n.symbol_rewards(scorer, tokenizer)
    assert rewards.shape == (2, 676)
    items = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    for item in [item for item in items if item["selection"] == "best"][:20]:
        good, bad = item["item_id"].removeprefix("T0:").split(">")
        symbol = good if item["option"] == "good" else bad
        expected = rewards[item["seed"], symbols.SYMBOLS.index(symbol)]
        assert item["reward"] == pytest.approx(float(expected), abs=1e-5)
    output = tmp_path / "best"
    output.mkdir()
    best_of_n.job(output, after=tmp_path, study="s", variant="T0", most=4, pools=3, seed=0)
    rows = [json.loads(line) for line in (output / "rows.jsonl").read_text().splitlines()]
    assert {(row["stage"], row["pairs_total"], row["task"]) for row in rows} == {("best_of_n", 16, "symbols:T0")}
    lm, lm_tokenizer, _ = load_scorer(str(pretrained))
    with pytest.raises(UserError, match="no score head"):
        best_of_n.symbol_rewards(lm, lm_tokenizer)
