"""Known effects are found, absent ones are not, and the rules say what the module says they say."""

import json

import numpy as np
import pytest
from simulated_study import PAIRS, PMP_SIZE, SIZES, null, simulate, simulated

from hhh_jax import claims, results
from hhh_jax.claims import rules
from hhh_jax.claims.rules import CONTRADICTED, FLOOR, NOT_RUN, POWER, SUPPORTED
from hhh_jax.stats import Estimate, paired_difference
from hhh_jax.summary import Study


def _study(folder):
    return Study(results.read_table(folder / "results.csv"), folder / "runs")


@pytest.fixture(scope="module")
def study():
    return _study(simulated())


@pytest.fixture(scope="module")
def outcomes(study):
    return {claim.key: outcome for claim, outcome in claims.concerning(study, claims.evaluate(study))}


@pytest.mark.parametrize(
    ("lo", "hi", "direction", "equality"),
    [
        (0.01, 0.02, SUPPORTED, SUPPORTED),
        (0.01, 0.05, SUPPORTED, POWER),
        (0.04, 0.05, SUPPORTED, CONTRADICTED),
        (-0.01, 0.01, POWER, SUPPORTED),
        (-0.01, 0.05, POWER, POWER),
        (-0.05, -0.01, CONTRADICTED, POWER),
        (-0.05, -0.04, CONTRADICTED, CONTRADICTED),
    ],
)
def test_rules(lo, hi, direction, equality):
    estimate = Estimate((lo + hi) / 2, lo, hi, 100, 3)
    assert rules.direction(estimate) == direction
    assert rules.equality(estimate, 0.03) == equality


def test_a_margin_moves_the_line():
    assert rules.direction(Estimate(0.0, -0.01, 0.01, 1, 1), margin=0.02) == SUPPORTED
    assert rules.direction(Estimate(-0.015, -0.03, -0.01, 1, 1), margin=0.02) == POWER
    assert rules.direction(Estimate(-0.03, -0.04, -0.025, 1, 1), margin=0.02) == CONTRADICTED


def test_planted_effects_are_found(outcomes):
    for key in ("ranked_gain", "ranked_minus_binary", "loss_power_law", "symbols_weak", "symbols_order"):
        assert outcomes[key].verdict == SUPPORTED, key
    truth = {  # what simulated_study.paper_like plants at these places
        "ranked_gain": (0.12 + 0.08) / 2 + 0.02 * np.log10(64),
        "ranked_minus_binary": (0.12 + 0.08) / 2 + 0.02 * np.log10(64),
        "binary_equal": 0.0,
        "ranked_scaling": 0.02,
        "loss_power_law": 0.09,
        "pmp_helps": 0.05 * 0.4,
        "binary_pmp": 0.03 * 0.4,
    }
    inside = [outcomes[key].estimate.lo <= value <= outcomes[key].estimate.hi for key, value in truth.items()]
    assert sum(inside) >= len(inside) - 1
    assert all(outcome.verdict != CONTRADICTED for outcome in outcomes.values())


def test_outcomes_say_where_and_from_how_much(outcomes):
    gain = outcomes["ranked_gain"]
    assert gain.at == "N = 786k" and gain.estimate.n_seeds == 3 and gain.estimate.n_items == 2 * 160
    assert [label for label, _ in gain.details] == [
        "Line order",
        "Word order",
        "mean at 12k",
        "mean at 98k",
        "mean at 332k",
        "Line order, untuned LM",
        "Word order, untuned LM",
        "Line order, imitation minus untuned",
        "Word order, imitation minus untuned",
    ]
    assert outcomes["pmp_helps"].at == "N = 332k, 500 pairs, PMP on stdlib"
    assert outcomes["symbols_weak"].at == "N = 98k, 500 pairs"


def test_nothing_is_found_where_nothing_is_learned():
    outcomes = {claim.key: outcome for claim, outcome in claims.evaluate(_study(simulated(null, n_items=80)))}
    for key in (
        "ranked_gain",
        "binary_equal",
        "ranked_minus_binary",
        "task_or_format",
        "pmp_helps",
        "binary_pmp",
    ):
        assert outcomes[key].verdict == FLOOR, key
    assert {outcomes[key].verdict for key in ("symbols_weak", "symbols_order", "symbols_binary")} <= {
        FLOOR,
        POWER,
    }


def test_a_null_difference_is_undecided_nineteen_times_in_twenty():
    rng = np.random.default_rng(0)
    verdicts = []
    for _ in range(300):
        seed_Sx1 = rng.normal(0, 0.02, (3, 1))
        correct = [
            (rng.random((3, 150)) < 0.7 + 0.1 * rng.normal(size=150) + seed_Sx1).astype(float) for _ in "ab"
        ]
        verdicts.append(rules.direction(paired_difference(*correct, n_boot=500)))
    assert 0.9 <= verdicts.count(POWER) / 300 <= 1.0
    assert abs(verdicts.count(SUPPORTED) - verdicts.count(CONTRADICTED)) < 15


def test_a_reversed_effect_contradicts(tmp_path):
    def reversed_gain(task, objective, n, init, pairs):
        return 0.6 if objective == "preference" and task in ("word_order", "line_order") else 0.85

    simulate(tmp_path, reversed_gain, n_items=80)
    outcomes = {claim.key: outcome for claim, outcome in claims.evaluate(_study(tmp_path))}
    assert outcomes["ranked_gain"].verdict == CONTRADICTED
    assert outcomes["ranked_minus_binary"].verdict == CONTRADICTED
    assert outcomes["ranked_gain"].estimate.value == pytest.approx(-0.25, abs=0.06)
    assert outcomes["symbols_weak"].verdict == POWER


def test_what_was_not_run_is_said(study, outcomes):
    def verdicts(table):
        return {
            claim.key: outcome.verdict for claim, outcome in claims.evaluate(Study(table, study.runs_dir))
        }

    table = study.table
    empty = verdicts(table[table["stage"] == "pmp"])
    assert set(empty.values()) == {NOT_RUN}
    some = verdicts(table[(table["N"] != SIZES[0]).fillna(True)])
    tested = {key for key, outcome in outcomes.items() if outcome.verdict != NOT_RUN}
    assert {key for key in tested if some[key] == NOT_RUN} == {"ranked_scaling", "loss_power_law"}
    one_arm = verdicts(table[~((table["init"] == "pmp:stdlib:ranked") & (table["task"] == "line_order"))])
    assert one_arm["binary_pmp"] == NOT_RUN and one_arm["pmp_helps"] != NOT_RUN


def test_a_baseline_that_wins_puts_a_claim_on_the_floor(tmp_path):
    simulate(tmp_path, n_items=60)
    for task in ("word_order", "line_order"):
        path = tmp_path / "runs" / f"baselines_{task}" / "items.jsonl"
        items = [json.loads(line) for line in path.read_text().splitlines()]
        always = [item | {"correct": 1.0} if item["ranker"] == "bag_of_words" else item for item in items]
        path.write_text("".join(json.dumps(item) + "\n" for item in always))
    outcomes = {claim.key: outcome for claim, outcome in claims.evaluate(_study(tmp_path))}
    assert outcomes["ranked_gain"].verdict == FLOOR and outcomes["ranked_minus_binary"].verdict == FLOOR
    assert outcomes["ranked_gain"].estimate.value > 0.05  # the difference itself is still told
    assert outcomes["binary_equal"].verdict != FLOOR


def test_every_claim_states_itself():
    keys = [claim.key for claim in claims.CLAIMS]
    assert len(set(keys)) == len(keys)
    assert all(claim.statement and claim.where and claim.statistic and claim.rule for claim in claims.CLAIMS)


def test_small_data_is_the_nearest_number_of_pairs():
    assert claims.pmp.nearest([64, 600]) == 600 and claims.pmp.nearest([300, 5000]) == 300
    assert PMP_SIZE in SIZES and PAIRS[-1] == claims.pmp.SMALL_DATA
