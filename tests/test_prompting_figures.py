"""Figures of section 2 from a made-up table: what is drawn is what the rows say."""

import math

import numpy as np
import pandas as pd
import pytest

from hhh_jax import results, stats
from hhh_jax.figures import FIGURES, prompting, sampling, style

SIZES = {12288: 0.5, 98304: 0.6}


def table(rows) -> pd.DataFrame:
    frame = pd.DataFrame([{column: "" for column in results.COLUMNS} | row for row in rows])
    for column in (*results.INTEGERS, *results.FLOATS):
        frame[column] = pd.to_numeric(frame[column].replace("", None))
    return frame


def evaluated(task, ranker="", metric="accuracy", interventions=("", "short"), **more):
    """Two seeds at two sizes; the second seed is .02 above the first, and an intervention adds .1."""
    rows = []
    for n, base in SIZES.items():
        for seed in (0, 1):
            for how in interventions:
                value = base + 0.02 * seed + 0.1 * bool(how)
                about = {"stage": "evaluate", "split": "test", "task": task, "ranker": ranker, "metric": metric}
                interval = {"value": value, "lo": value - 0.05, "hi": value + 0.05}
                rows.append(about | {"N": n, "seed": seed, "intervention": how} | interval | more)
    return rows


def drawn(ax) -> dict[str, tuple[list[float], list[float]]]:
    """Each line with an interval by its label: sizes and values."""
    found = {}
    for container in ax.containers:
        line = container.lines[0]
        found[container.get_label()] = (list(line.get_xdata()), list(line.get_ydata()))
    return found


def test_pooled_adds_the_variance_over_seeds_to_the_interval_over_items():
    rows = table(evaluated("hhh", interventions=("",)))
    pooled = prompting.pooled(rows)
    assert list(pooled["N"]) == list(SIZES)
    np.testing.assert_allclose(pooled["value"], [0.51, 0.61])
    over_seeds = 1.96 * math.sqrt(2 * 0.01**2) / math.sqrt(2)
    np.testing.assert_allclose(pooled["hi"] - pooled["value"], math.hypot(0.05, over_seeds))


def test_a_share_of_none_has_no_interval_below_zero():
    """Wilson's interval of 0 of 8 under each of two seeds stays as it is."""
    rows = evaluated(
        "humaneval", metric="pass@k", interventions=("",), k=1, value=0.0, lo=0.0, hi=stats.wilson(0, 8)[1]
    )
    pooled = prompting.pooled(table(rows))
    assert pooled[["value", "lo", "hi"]].to_numpy().tolist() == [[0, 0, stats.wilson(0, 8)[1]]] * 2


def test_no_share_is_above_one():
    rows = evaluated("toxicity:toxic", metric="toxicity_probability", interventions=("",))
    near = [row | {"value": 0.99 - 0.02 * row["seed"], "lo": 0.9, "hi": 1.0} for row in rows]
    assert prompting.pooled(table(near))["hi"].tolist() == [1.0, 1.0]


def test_hhh_has_a_line_for_each_intervention():
    rows = evaluated("own_hhh", "mutual_information", interventions=("", "short", "finetuned_4_steps+template"))
    lines = drawn(prompting.hhh(table(rows)).axes[0])
    assert set(lines) == {"no intervention", "short prompt", "finetuned 4 steps"}
    np.testing.assert_allclose(lines["short prompt"][1], [0.61, 0.71])


def test_arms_are_in_the_order_of_their_numbers():
    """Those of a kind stay together, so that the legend reads as a curve over steps."""
    steps = [f"finetuned_{n}_steps+template" for n in (16, 4, 1)]
    pieces = [f"distilled_{n}_of_2_pieces+template" for n in (2, 1)]
    arms = prompting.arms_of(table(evaluated("hhh", interventions=("", *steps, *pieces))))
    assert list(arms) == ["", *pieces[::-1], *steps[::-1]]
    assert [arms[arm][0] for arm in (steps[-1], pieces[0])] == ["finetuned 1 step", "distilled 2 of 2 pieces"]


def test_the_tax_is_what_an_intervention_costs():
    figure = prompting.lambada(table(evaluated("lambada", "greedy")))
    np.testing.assert_allclose(drawn(figure.axes[1])["short prompt"][1], [-0.1, -0.1])
    (ends, _) = figure.axes[1].containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose(ends[:, 1], -0.1 + math.sqrt(2) * 0.05 * np.array([-1, 1]))  # of both, items apart


def test_what_may_end_its_turn_is_drawn_beside_what_may_not():
    """Figure 22: prompted samples without forbidden strings; figure 8 is the same without them."""
    rows = evaluated("toxicity:toxic", metric="toxicity") + evaluated("toxicity:nontoxic", metric="toxicity")
    free = [row | {"value": row["value"] + 0.2} for row in rows if row["intervention"]]
    free = [row | {"task": row["task"].replace(":", "_free:")} for row in free]
    left = drawn(sampling.toxicity(table(rows + free)).axes[0])
    assert set(left) == {"no intervention", "short prompt", "short prompt, nothing forbidden"}
    np.testing.assert_allclose(left["short prompt, nothing forbidden"][1], [0.81, 0.91])
    assert set(drawn(sampling.toxicity(table(rows)).axes[0])) == {"no intervention", "short prompt"}


def test_counting_shows_each_number_beside_one_over_n():
    rows = [
        {"stage": "evaluate", "split": "test", "task": task, "metric": "loss", "N": 98304, "seed": seed, "k": k,
         "intervention": how, "value": 1 / k}
        for task, numbers, how in (("counting:1-80", range(1, 81), ""), ("counting:64-71", range(64, 72), "trained"))
        for k in numbers for seed in (0, 1)
    ]  # fmt: skip
    left, right = prompting.counting(table(rows)).axes[:2]
    line = drawn(left)["loss of n after 1, ..., n - 1"]
    np.testing.assert_allclose(line[1], 1 / np.array(line[0]))
    assert set(drawn(right)) == {"after 1, ..., 63 in context", "trained"} and len(drawn(right)["trained"][0]) == 8


@pytest.mark.parametrize("name", [*prompting.FIGURES, *sampling.FIGURES])
def test_without_rows_a_figure_says_what_it_needs(name):
    with pytest.raises(style.NoRows, match="no rows of"):
        FIGURES[name].draw(table(evaluated("something else")))


def test_two_conversations_are_drawn_apart():
    """Figure 20, right; and what has two conversations in context is not in its left half."""
    arms = ("", "short", "two", "distilled+two", "finetuned_16_steps+two")
    rows = table(evaluated("own_hhh", "mutual_information", interventions=arms))
    lines = drawn(prompting.two_conversations(rows).axes[0])
    names = {"two conversations alone", "finetuned on the prompt, and two", "distilled, and two", "short prompt"}
    assert set(lines) == names
    np.testing.assert_allclose(lines["distilled, and two"][1], [0.61, 0.71])
    assert set(drawn(prompting.hhh(rows).axes[0])) == {"no intervention", "short prompt"}


def test_elo_bars_are_one_standard_error():
    rows = [
        {"stage": "evaluate", "split": "test", "task": "comparisons", "metric": "elo", "N": n, "seed": "",
         "intervention": "prompt", "value": elo, "lo": elo - 1.96 * se, "hi": elo + 1.96 * se}
        for n, elo, se in ((2e8, 0.0, 0.0), (5.2e10, 300.0, 20.0))
    ]  # fmt: skip
    (ax, *_) = sampling.elo(table(rows)).axes
    bars = ax.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([segment[:, 1] for segment in bars], [[0, 0], [280, 320]])
    assert drawn(ax)["HHH prompt"][1] == [0.0, 300.0]


def test_densities_are_drawn_at_their_scores():
    rows = []
    for place in (-300, -200, -100, 0):
        for task in ("toxicity:toxic", "toxicity:nontoxic"):
            rows += evaluated(task, metric="toxicity_density", k=place)
    figure = sampling.toxicity_density(table(rows))
    by_size, by_arm = figure.axes[:2]
    assert [line.get_label() for line in by_size.get_lines()] == ["no intervention, 12k", "no intervention, 98k"]
    np.testing.assert_allclose(by_size.get_lines()[0].get_xdata()[::10], [1e-3, 1e-2, 1e-1, 1])
    np.testing.assert_allclose(by_arm.get_lines()[1].get_ydata(), 0.71)  # the largest, prompted, mean of two seeds
    assert [line.get_label() for line in by_arm.get_lines()] == ["no intervention", "short prompt"]
