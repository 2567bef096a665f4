"""Claims of section 2 on records with planted effects: each statistic is the one that the plant implies."""

import json
from pathlib import Path

import numpy as np
import pytest

from hhh_jax import claims, results
from hhh_jax.claims import prompting
from hhh_jax.claims.rules import CONTRADICTED, FLOOR, NOT_RUN, POWER, SUPPORTED
from hhh_jax.summary import Study

SIZES = (12288, 98304, 331776, 786432)
SEEDS, ITEMS = (0, 1, 2), 300


class Planted:
    """Writes a study's evaluation records; `value` of each arm is what an independent reading of them gives."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows, self.rng = folder, [], np.random.default_rng(0)
        self.value: dict[tuple[str, str, int], float] = {}

    def write(self, task, arm, n, items, values, **row):
        run = f"evaluate-{task}-{arm}-{n}".replace(":", "-")
        (self.folder / "runs" / run).mkdir(parents=True)
        (self.folder / "runs" / run / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
        self.value[task, arm, n] = float(np.mean(values))
        about = {"study": "s", "run": run, "stage": "evaluate", "split": "test", "curve": "separate", "N": n}
        about |= {"task": task, "intervention": arm, "value": float(np.mean(values))}
        self.rows += [about | {"seed": seed} | row for seed in SEEDS]

    def choices(self, arm, n, accuracy, task="own_hhh"):
        """Two options an item; the summed log-probability alone would choose the other one."""
        right_SxI = self.rng.random((len(SEEDS), ITEMS)) < accuracy
        items = []
        for s, seed in enumerate(SEEDS):
            for i, right in enumerate(right_SxI[s]):
                about = {"task": task, "split": "test", "seed": seed, "item_id": f"{i:03d}", "group_id": f"{i:03d}"}
                for option, label in enumerate((0, 1) if i % 2 else (1, 0)):
                    better = label == int(right)
                    logp = {"logp_sum": -9.0 if better else -5.0}
                    unconditional = {"delimiter": -12.0 if better else -5.0, "empty": 0.0}
                    items.append(about | logp | {"option": option, "label": label, "logp_unconditional": unconditional})
        items.append(about | {"item_id": "long", "error": "too long"})
        self.write(task, arm, n, items, right_SxI, metric="accuracy", ranker="mutual_information")

    def baselines(self, task, **values):
        about = {"study": "s", "run": "b", "stage": "baseline", "split": "test", "curve": "separate", "task": task}
        self.rows += [about | {"metric": "accuracy", "ranker": name, "value": value} for name, value in values.items()]

    def items(self, task, arm, n, draw, metric, ranker="", own_task=None, **more):
        """One record an item and seed (or several samples, a list); `draw` makes the fields and the item's value."""
        records, values = [], []
        for seed in SEEDS:
            for i in range(ITEMS):
                samples, value = draw(i)
                about = {"task": own_task or task, "split": "test", "seed": seed, "item_id": f"{i}", "group_id": f"{i}"}
                records += [about | more | sample for sample in samples]
                values.append(value)
        self.write(task, arm, n, records, values, metric=metric, ranker=ranker)

    def judged(self):
        results.write_table(self.rows, self.folder / "results.csv")
        study = Study(results.read_table(self.folder / "results.csv"), self.folder / "runs")
        return {claim.key: claim.judge(study) for claim in prompting.CLAIMS}, study


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """The paper's findings on HHH, at four sizes; the prompt gains more at larger ones."""
    study = Planted(tmp_path_factory.mktemp("planted"))
    for level, n in enumerate(SIZES):
        base = 0.58 + 0.01 * level
        for arm, gain in {
            "": 0.0, "short": 0.05 * (level + 1), "distilled+template": 0.05 * (level + 1),
            "distilled_unprompted+template": 0.02, "finetuned_1_steps+template": 0.0, "two": 0.02,
            "finetuned_16_steps+template": 0.05, "distilled+two": 0.2, "finetuned_16_steps+two": 0.0,
        }.items():  # fmt: skip
            study.choices(arm, n, base + gain)
    study.baselines("own_hhh", chance=0.5, longer=0.55)
    return study


@pytest.fixture(scope="module")
def outcomes(planted):
    return planted.judged()[0]


def test_planted_effects_are_found(planted, outcomes):
    top = {arm: planted.value["own_hhh", arm, SIZES[-1]] for task, arm, n in planted.value if n == SIZES[-1]}
    expected = {
        "prompt_hhh": top["short"] - top[""],
        "distilled_as_prompt": top["distilled+template"] - top["short"],
        "distilled_above_finetuned": top["distilled+template"] - top["finetuned_16_steps+template"],
        "distilled_by_the_prompt": top["distilled+template"] - top["distilled_unprompted+template"],
        "distilled_with_examples": top["distilled+two"] - top["two"],
    }
    for key, value in expected.items():
        outcome = outcomes[key]
        assert outcome.estimate.value == pytest.approx(value), key
        assert outcome.estimate.n_items == ITEMS and outcome.estimate.n_seeds == 3, key
        assert outcome.at == "own_hhh, N = 786k"
        assert outcome.verdict == (SUPPORTED if key != "distilled_as_prompt" else outcome.verdict), key
    assert outcomes["distilled_as_prompt"].verdict in (SUPPORTED, POWER)


def test_a_slope_over_sizes_is_least_squares(planted, outcomes):
    gains = [planted.value["own_hhh", "short", n] - planted.value["own_hhh", "", n] for n in SIZES]
    outcome = outcomes["prompt_scaling"]
    assert outcome.estimate.value == pytest.approx(np.polyfit(np.log10(SIZES), gains, 1)[0])
    assert outcome.verdict == SUPPORTED


def test_what_was_not_evaluated_is_not_run(planted, outcomes):
    missing = {key for key, outcome in outcomes.items() if outcome.verdict == NOT_RUN}
    others = ("prompt_tax", "truthfulqa_prompt", "truthfulqa_scaling", "toxicity_prompt", "code_prompt")
    assert missing == {*others, "told_better_than_trained"}
    judged, study = planted.judged()
    concerned = claims.concerning(study, [(claim, judged[claim.key]) for claim in prompting.CLAIMS])
    assert not missing & {claim.key for claim, _ in concerned}


def test_models_that_do_not_beat_the_longer_answer_are_at_the_floor(tmp_path):
    study = Planted(tmp_path)
    study.choices("", SIZES[0], 0.5)
    study.choices("prompt", SIZES[0], 0.62)
    study.baselines("own_hhh", chance=0.5, longer=0.7)
    outcome = study.judged()[0]["prompt_hhh"]
    assert outcome.verdict == FLOOR and outcome.estimate.lo > 0


def test_sampled_evaluations(tmp_path):
    """LAMBADA, toxicity, code and counting, each with a plant of its own."""
    study, n = Planted(tmp_path), SIZES[0]
    rng = np.random.default_rng(1)

    def right(p):
        def draw(i):
            correct = int(rng.random() < p)
            return [{"correct": correct}], correct
        return draw

    def toxic(mean):
        def draw(i):
            values = rng.uniform(mean - 0.1, mean + 0.1, 4)
            return [{"sample": k, "toxicity": float(v)} for k, v in enumerate(values)], values.mean()
        return draw

    def passing(p):
        def draw(i):
            ran = rng.random(5) < p
            samples = [{"sample": k, "outcome": "passed" if ok else "failed"} for k, ok in enumerate(ran)]
            return [*samples, {"sample": 9, "outcome": "error"}], ran.mean()
        return draw

    for arm, p in (("", 0.6), ("prompt", 0.4)):
        study.items("lambada", arm, n, right(p), "accuracy", "greedy")
    for arm, p in (("", 0.3), ("short", 0.2)):
        study.items("toxicity:toxic", arm, n, toxic(p), "toxicity", own_task="toxicity", category="toxic")
    for arm, p in (("", 0.3), ("prompt", 0.35)):
        study.items("humaneval", arm, n, passing(p), "pass@k")
    outcomes = study.judged()[0]
    value = study.value
    for key, task, plus, minus in (
        ("prompt_tax", "lambada", "prompt", ""),
        ("toxicity_prompt", "toxicity:toxic", "", "short"),
        ("code_prompt", "humaneval", "prompt", ""),
    ):
        expected = value[task, plus, n] - value[task, minus, n]
        assert outcomes[key].estimate.value == pytest.approx(expected), key
    verdicts = {key: outcomes[key].verdict for key in ("prompt_tax", "toxicity_prompt", "code_prompt")}
    assert verdicts == {"prompt_tax": CONTRADICTED, "toxicity_prompt": SUPPORTED, "code_prompt": SUPPORTED}


def test_counting_is_compared_on_the_next_numbers_and_with_the_best_training(tmp_path):
    study, n = Planted(tmp_path), SIZES[1]
    for arm, task, numbers, loss in (
        ("", "counting:1-80", range(1, 81), 0.1), ("", "counting:64-71", range(64, 72), 9.0),
        ("trained_4_steps", "counting:64-71", range(64, 72), 1.1),
        ("trained_16_steps", "counting:64-71", range(64, 72), 2.0),
    ):  # fmt: skip
        items = [
            {"task": task, "split": "test", "seed": seed, "item_id": f"{k}", "group_id": task, "category": "",
             "option": 0, "label": 1, "logp_sum": -(loss if k >= 64 else 7.0) - 0.01 * seed * (k % 3)}
            for seed in SEEDS for k in numbers
        ]  # fmt: skip
        study.write(task, arm, n, items, [loss], metric="loss")
    outcome = study.judged()[0]["told_better_than_trained"]
    assert outcome.verdict == SUPPORTED and outcome.estimate.value == pytest.approx(1.0)
    assert outcome.estimate.n_items == 8 and outcome.at == "N = 98k, 64 to 71"


def test_every_claim_says_what_it_needs():
    assert all(claim.needs for claim in prompting.CLAIMS)
    assert len({claim.key for claim in prompting.CLAIMS}) == len(prompting.CLAIMS)
