from itertools import combinations

import numpy as np
import pytest
from scipy.stats import kendalltau

from hhh_jax.data import symbols
from hhh_jax.errors import UserError

PLACE = {symbol: place for place, symbol in enumerate(symbols.ranking())}


def test_a_ranking_is_of_all_ordered_pairs_of_capitals():
    ranking = symbols.ranking()
    assert len(ranking) == len(set(ranking)) == 676
    assert all(len(s) == 2 and s.isalpha() and s.isupper() and s.isascii() for s in ranking)
    assert ranking != sorted(ranking)
    assert symbols.ranking(seed=1) != ranking
    assert symbols.ranking("Tb") == ranking
    assert symbols.sample("AC") == "(AC)(AC)(AC)(AC)"


@pytest.mark.parametrize("variant", symbols.TRANSPOSITIONS)
def test_number_of_transpositions(variant):
    """At most two symbols a transposition have moved; the permutation's parity is that of their number."""
    number = symbols.TRANSPOSITIONS[variant]
    order = [PLACE[symbol] for symbol in symbols.ranking(variant)]
    assert sum(place != k for place, k in enumerate(order)) <= 2 * number
    seen, cycles = set(), 0
    for start in range(len(order)):
        cycles += start not in seen
        while start not in seen:
            seen.add(start)
            start = order[start]
    assert len(order) - cycles <= number
    assert (len(order) - cycles) % 2 == number % 2
    if number <= 40:  # few enough that hardly any undoes another
        assert len(order) - cycles == number


def test_scrambles_get_stronger():
    """Kendall's tau against T0 is as expected after so many random transpositions."""
    tau = []
    for variant in symbols.TRANSPOSITIONS:
        values = []
        for seed in range(8):
            place = {symbol: k for k, symbol in enumerate(symbols.ranking("T0", seed))}
            order = [place[symbol] for symbol in symbols.ranking(variant, seed)]
            values.append(kendalltau(order, range(676)).statistic)
        tau.append(np.mean(values))
    assert tau[0] == 1
    assert tau == sorted(tau, reverse=True)
    # A symbol keeps its place with probability q; one that moved may be anywhere, which leaves a tau of 1/3
    # with one that didn't and of 0 with another that did.
    q = (1 - 2 / 676) ** np.array(list(symbols.TRANSPOSITIONS.values()))
    np.testing.assert_allclose(tau, q**2 + 2 * q * (1 - q) / 3, atol=0.03)


def unordered(pairs):
    return [tuple(sorted((pair.good[1:3], pair.bad[1:3]))) for pair in pairs]


def test_good_is_the_higher_symbol():
    for variant in symbols.TRANSPOSITIONS:
        place = {symbol: k for k, symbol in enumerate(symbols.ranking(variant))}
        for pair in symbols.pairs(variant, "train", limit=500):
            assert pair.context == ""
            good, bad = pair.good[1:3], pair.bad[1:3]
            assert (pair.good, pair.bad) == (symbols.sample(good), symbols.sample(bad))
            assert place[good] < place[bad]
            assert pair.id == f"{variant}:{good}>{bad}"


def test_held_out_pairs_are_in_no_training_and_their_symbols_are():
    available = {"train": 208_150, "validation": 10_000, "test": 10_000}
    pairs = {split: unordered(symbols.pairs("T0", split, limit=n)) for split, n in available.items()}
    everything = [pair for split in pairs.values() for pair in split]
    assert len(everything) == len(set(everything))
    assert set(everything) == set(combinations(symbols.SYMBOLS, 2))
    assert {symbol for pair in pairs["train"][:5000] for symbol in pair} == set(symbols.SYMBOLS)
    for variant in symbols.TRANSPOSITIONS:  # the same unordered pairs, so that T0's test is in none
        assert unordered(symbols.pairs(variant, "train", limit=3000)) == pairs["train"][:3000]


def test_sizes_and_limits():
    assert len(symbols.pairs("T0", "train")) == 20_000
    assert len(symbols.pairs("T0", "test")) >= 1000
    assert symbols.pairs("T2", "train", limit=7) == symbols.pairs("T2", "train", limit=50)[:7]
    assert symbols.pairs("T0", "test", seed=1) != symbols.pairs("T0", "test")
    with pytest.raises(UserError, match="10000 test pairs; 10001 were asked for"):
        symbols.pairs("T0", "test", limit=10_001)


def test_binary_labels_the_halves():
    pairs = symbols.pairs("Tb", "train", limit=2 * 676)
    for pair in pairs:
        symbol = pair.group
        right, wrong = ("GOOD:", "BAD:") if PLACE[symbol] < 338 else ("BAD:", "GOOD:")
        assert (pair.context, pair.good, pair.bad) == (
            "",
            right + symbols.sample(symbol),
            wrong + symbols.sample(symbol),
        )
    assert len({pair.id for pair in pairs}) == len(pairs)
    assert (
        {pair.group for pair in pairs[:676]} == {pair.group for pair in pairs[676:]} == set(symbols.SYMBOLS)
    )
    assert sum(pair.good.startswith("GOOD:") for pair in pairs) == 676
    assert [pair.group for pair in pairs[:676]] != [pair.group for pair in pairs[676:]]
    assert symbols.pairs("Tb", "test", limit=20) != symbols.pairs("Tb", "train", limit=20)
