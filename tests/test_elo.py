"""Elo against hand computations, a grid, simulated comparisons and the paper's table 2."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hhh_jax import elo, results
from hhh_jax.elo import Comparison
from hhh_jax.errors import UserError

ROOT = Path(__file__).parents[1]
TABLE_2 = str(ROOT / "hhh_jax" / "figures" / "paper_table2.csv")
PROMPTED = ("200M prompt", "800M prompt", "3B prompt", "12B prompt", "52B prompt")


def _elo(ratings):
    return {rating.model: rating.elo for rating in ratings}


def _loss(elo_of, comparisons):
    """The definition, in Elo."""
    total = 0.0
    for a, b, wins_a, wins_b in comparisons:
        p = 1 / (1 + 10 ** ((elo_of[b] - elo_of[a]) / 400))
        total -= wins_a * np.log(p) + wins_b * np.log(1 - p)
    return total


def test_table_2_with_equal_weights():
    comparisons, counts = elo.read(TABLE_2)
    found = elo.fit(comparisons, counts)
    expected = dict(zip(PROMPTED, (0, 108.3, 171.9, 288.1, 301.4), strict=True)) | {"12B distilled": 260.2}
    scores = _elo(found)
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=0.05)
    for arm, rate in (("52B distilled", 0.46), ("52B short prompt", 0.47)):  # each compared with one model only
        assert scores[arm] - scores["52B prompt"] == pytest.approx(400 * np.log10(rate / (1 - rate)), abs=0.01)
    assert not counts and all(rating.se is rating.lo is rating.hi is None for rating in found)


def test_figure_9_is_the_same_rates_with_other_weights():
    """What the module says of the figure's offsets from the table: unequal counts can explain them."""
    weights = (39, 39, 39, 116, 39, 111, 39, 39, 383, 154)
    rates = elo.read(TABLE_2)[0][: len(weights)]
    comparisons = [
        Comparison(a, b, n * rate, n * (1 - rate)) for n, (a, b, rate, _) in zip(weights, rates, strict=True)
    ]
    expected = dict(zip(PROMPTED, (0, 103, 177, 277, 297), strict=True))
    assert _elo(elo.fit(comparisons)) == pytest.approx(expected, abs=1)


def test_rows_name_size_and_arm(tmp_path):
    short = "12.5b Short Prompt"
    ratings = elo.fit([Comparison("200M prompt", short, 36, 64), Comparison(short, "3B", 1, 1)])
    elo.write_results(ratings, 102, tmp_path / "mine")
    table = results.read_with_summary(tmp_path / "mine" / "results.csv").set_index("N")
    assert dict(table["intervention"]) == {200_000_000: "prompt", 12_500_000_000: "short", 3_000_000_000: ""}
    row = table.loc[12_500_000_000]
    assert (row["value"], row["lo"], row["hi"]) == pytest.approx(ratings[1][1:2] + ratings[1][3:])
    assert set(table["metric"]) == {"elo"} and set(table["n_items"]) == {102}
    with pytest.raises(UserError, match="the model 'ours' has no size"):
        elo.rows([elo.Rating("ours", 0.0, None, None, None)], 1, "x")


def test_two_models():
    """75% of 200 is 400 log10(3), with the standard error of a log-odds."""
    first, second = elo.fit([Comparison("worse", "better", 50, 150)])
    assert first == ("worse", 0, 0, 0, 0)
    assert second.elo == pytest.approx(190.8485, abs=1e-3)
    assert second.se == pytest.approx(400 / np.log(10) * np.sqrt(1 / 50 + 1 / 150), rel=1e-6)
    assert second.hi - second.elo == second.elo - second.lo == pytest.approx(1.96 * second.se, rel=1e-4)
    assert _elo(elo.fit([Comparison("a", "b", 36, 64)]))["b"] == pytest.approx(100, abs=0.1)


def test_a_chain_adds_up():
    """A tree of comparisons is fitted exactly, whatever the counts."""
    found = elo.fit([Comparison("a", "b", 25, 75), Comparison("c", "b", 3000, 1000), Comparison("d", "a", 1, 1)])
    assert _elo(found) == pytest.approx({"a": 0, "b": 190.8485, "c": 381.6970, "d": 0}, abs=1e-3)
    a, b, c, _ = found
    assert a.se < b.se < c.se


def test_a_grid_finds_nothing_better():
    comparisons = [Comparison("a", "b", 7, 12), Comparison("b", "c", 5, 9), Comparison("c", "a", 11, 8)]
    found = _elo(elo.fit(comparisons))
    grid = np.arange(-300, 301, 5.0)
    losses = {(b, c): _loss({"a": 0, "b": b, "c": c}, comparisons) for b, c in itertools.product(grid, grid)}
    best = min(losses, key=losses.__getitem__)
    assert best == pytest.approx((found["b"], found["c"]), abs=5)
    assert _loss(found, comparisons) < losses[best]
    around = [
        _loss({"a": 0, "b": found["b"] + x, "c": found["c"] + y}, comparisons)
        for x, y in ((0.1, 0), (-0.1, 0), (0, 0.1), (0, -0.1))
    ]
    assert _loss(found, comparisons) < min(around)


def test_standard_errors_are_the_inverse_curvature_of_the_loss():
    comparisons = [Comparison("a", "b", 70, 120), Comparison("b", "c", 50, 90), Comparison("c", "a", 110, 80)]
    ratings = elo.fit(comparisons)
    at, step = np.array([rating.elo for rating in ratings[1:]]), 0.5

    def loss(*shift):
        return _loss(dict(zip("abc", (0, *(at + step * np.array(shift))), strict=True)), comparisons)

    mixed = (loss(1, 1) - loss(1, -1) - loss(-1, 1) + loss(-1, -1)) / 4
    hessian = np.array([[loss(1, 0) + loss(-1, 0), mixed], [mixed, loss(0, 1) + loss(0, -1)]]) - 2 * np.eye(2) * loss(
        0, 0
    )
    errors = np.sqrt(np.diag(np.linalg.inv(hessian / step**2)))
    assert [rating.se for rating in ratings[1:]] == pytest.approx(errors, rel=1e-3)


def test_intervals_cover_the_truth():
    rng = np.random.default_rng(0)
    truth = {"a": 0.0, "b": 80.0, "c": 200.0, "d": 260.0}
    hits, runs = 0, 150
    for _ in range(runs):
        comparisons = []
        for a, b in itertools.combinations(truth, 2):
            wins = rng.binomial(60, 1 / (1 + 10 ** ((truth[b] - truth[a]) / 400)))
            comparisons.append(Comparison(a, b, wins, 60 - wins))
        hits += sum(rating.lo <= truth[rating.model] <= rating.hi for rating in elo.fit(comparisons)[1:])
    assert 0.91 <= hits / (3 * runs) <= 0.985


def test_order_sides_and_splitting_of_rows_do_not_matter():
    whole = [Comparison("a", "b", 7, 12), Comparison("b", "c", 5, 9), Comparison("c", "a", 11, 8)]
    other = [
        Comparison("a", "c", 8, 11),
        Comparison("c", "b", 9, 5),
        Comparison("a", "b", 3, 5),
        Comparison("b", "a", 7, 4),
    ]
    assert _elo(elo.fit(whole)) == pytest.approx(_elo(elo.fit(other)), abs=1e-6)


def test_lopsided_counts_are_fitted():
    assert _elo(elo.fit([Comparison("a", "b", 1, 10**6)]))["b"] == pytest.approx(2400, abs=1e-2)


def test_models_that_nothing_compares_are_named():
    with pytest.raises(UserError, match="no comparison joins a, b with c, d: "):
        elo.fit([Comparison("a", "b", 1, 2), Comparison("c", "d", 2, 1)])
    with pytest.raises(UserError, match="no comparison joins a, b with c: "):
        elo.fit([Comparison("a", "b", 1, 2), Comparison("b", "c", 0, 0)])


@pytest.mark.parametrize(
    ("comparisons", "message"),
    [
        ([("a", "b", 0, 9)], "b never lost to a: "),
        ([("a", "b", 1, 2), ("b", "c", 5, 0), ("a", "c", 3, 0)], "a, b never lost to c: "),
        ([("a", "b", 1, 2), ("c", "d", 1, 2), ("b", "c", 3, 0)], "a, b never lost to c, d: "),
    ],
)
def test_an_infinite_elo_is_refused(comparisons, message):
    with pytest.raises(UserError, match=message):
        elo.fit([Comparison(*comparison) for comparison in comparisons])


def test_a_cycle_of_shutouts_is_finite():
    """No pair was split, but everybody lost to somebody."""
    found = elo.fit([Comparison("a", "b", 5, 0), Comparison("b", "c", 5, 0), Comparison("c", "a", 5, 0)])
    assert list(_elo(found).values()) == pytest.approx([0, 0, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model_a,model_b\na,b\n", r"c\.csv:1: needs the columns"),
        ("model_a,model_b,wins_a\na,b,1\n", r"c\.csv:1: needs the columns"),
        ("model_a,model_b,wins_a,wins_b,rate\na,b,1,1,.5\n", r"c\.csv:1: .* either"),
        ("model_a,model_b,rate\n", "no comparisons"),
        ("model_a,model_b,rate\na,b,.5\na,b,34\n", r"c\.csv:3: rate must be a share from 0 to 1, not '34'"),
        ("model_a,model_b,wins_a,wins_b\na,b,-1,3\n", r"c\.csv:2: wins_a must be a number"),
        ("model_a,model_b,wins_a,wins_b\na,b,1\n", r"c\.csv:2: wins_b must be a number"),
        ("model_a,model_b,wins_a,wins_b\na,b,1,inf\n", r"c\.csv:2: wins_b must be a number"),
        ("model_a,model_b,wins_a,wins_b\na, a,1,2\n", r"c\.csv:2: needs two different models, not 'a' and 'a'"),
        ("model_a,model_b,wins_a,wins_b\na,,1,2\n", r"c\.csv:2: needs two different models"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, text, message):
    file = tmp_path / "c.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        elo.read(str(file))


def test_command_line(tmp_path):
    file = tmp_path / "c.csv"
    file.write_text("\ufeffmodel_a,model_b,wins_a,wins_b,rater\nold,new,50,150,x\n", encoding="utf-8")

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "hhh_jax.elo", *arguments], capture_output=True, text=True, cwd=ROOT
        )

    lines = run(str(file)).stdout.splitlines()
    assert lines[0].split() == ["old", "0.0", "[0.0,", "0.0]"]
    assert lines[1].split() == ["new", "190.8", "[135.2,", "246.4]"]
    assert lines[2] == "Elo above old, 95% intervals from the observed information of 200 comparisons"
    old, new = map(json.loads, run(str(file), "--json").stdout.splitlines())
    assert old == {"model": "old", "elo": 0, "se": 0, "lo": 0, "hi": 0} and new["se"] == pytest.approx(28.368, abs=1e-3)
    refused = run(str(tmp_path / "missing.csv"))
    assert refused.returncode == 2 and "missing.csv" in refused.stderr and "Traceback" not in refused.stderr
