"""Re-ranking with planted rankers, as rows, records, figures and claims; and the study that does it."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hhh_jax import evaluate, results, study
from hhh_jax.analyses import rerank
from hhh_jax.claims import reranking as claims
from hhh_jax.claims.rules import CONTRADICTED, FLOOR, NOT_RUN, POWER, SUPPORTED
from hhh_jax.data.packing import TokenizedPair
from hhh_jax.errors import UserError
from hhh_jax.figures import reranking as figures
from hhh_jax.figures import style
from hhh_jax.samples import Answers
from hhh_jax.scoring import load_scorer
from hhh_jax.summary import Study

N, SEEDS, PROBLEMS = 12, (0, 1), [f"p{i:03}" for i in range(150)]


def planted(seed: int = 0):
    """Answers of which a share is right that differs by problem, and rankers by what they know of the truth."""
    rng = np.random.default_rng(seed)
    answers, knows, guesses = {}, {}, {}
    for name in PROBLEMS:
        share = rng.random()
        for s in SEEDS:
            right_N = (rng.random(N) < share).astype(float)
            answers[name, s] = Answers(name, name, s, "context", [f" {i}" for i in range(N)], right_N)
            knows[name, s], guesses[name, s] = right_N + 0.5 * rng.random(N), rng.random(N)
    return answers, knows, guesses


def values(imitation, preference, answers):
    return rerank.curves(answers, {"mean_logp": imitation, "reward": preference}, PROBLEMS, SEEDS)


def found(**arms):
    """Items by (ranker, k)."""
    answers, knows, guesses = planted()
    rankers = {"knows": knows, "guesses": guesses}
    groups = np.array(PROBLEMS)
    curves = values(rankers[arms["imitation"]], rankers[arms["preference"]], answers)
    return {key: results.Items(SEEDS, tuple(PROBLEMS), groups, of_key) for key, of_key in curves.items()}


def test_a_ranker_that_knows_the_truth_is_the_oracle_and_a_random_one_is_unranked():
    answers, knows, guesses = planted()
    curves = values(guesses, knows, answers)
    right = np.array([[answers[name, s].correct for name in PROBLEMS] for s in SEEDS])
    for k in rerank.ks(N):
        np.testing.assert_allclose(curves["reward", k], curves["oracle", k], atol=1e-12)
        np.testing.assert_allclose(curves["unranked", k], right.mean(-1), atol=1e-12)
        noise_SxP = curves["mean_logp", k] - curves["unranked", k]
        assert abs(noise_SxP.mean()) < 4 * noise_SxP.std() / np.sqrt(noise_SxP.size) + 1e-12
    np.testing.assert_array_equal(curves["oracle", N], right.any(-1))
    np.testing.assert_allclose(curves["mean_logp", 1], right.mean(-1))
    equal = {key: np.zeros(N) for key in answers}
    np.testing.assert_allclose(values(equal, equal, answers)["reward", 8], right.mean(-1))


def test_numbers_of_samples_are_powers_of_two_and_the_papers():
    assert rerank.ks(24) == [1, 2, 4, 8, 16, 24]
    assert rerank.ks(100) == [1, 2, 4, 8, 16, 32, 64, 96, 100]


def test_rows_have_every_seed_and_all_of_them_and_differences_are_paired():
    items = found(imitation="guesses", preference="knows")
    rows = pd.DataFrame(list(rerank.rows(items)))
    eight = rows[(rows["k"] == 8) & (rows["metric"] == "acc_at_k")]
    for (ranker,), own in eight.groupby(["ranker"]):
        by_seed = own[own["seed"] != ""]
        np.testing.assert_allclose(by_seed["value"], items[ranker, 8].correct.mean(1))
        pooled = own[own["seed"] == ""].iloc[0]
        assert pooled["value"] == pytest.approx(by_seed["value"].mean())
        assert pooled["lo"] < pooled["value"] < pooled["hi"]
    gains = rows[(rows["k"] == 8) & (rows["metric"] == "acc_at_k_gain")].set_index("objective")
    gain = gains.loc["preference-imitation"]
    mean = {ranker: items[ranker, 8].correct.mean() for ranker in ("reward", "mean_logp", "unranked")}
    assert gain["value"] == pytest.approx(mean["reward"] - mean["mean_logp"]) and gain["lo"] > 0
    null = gains.loc["imitation-unranked"]
    assert null["lo"] < 0 < null["hi"] and null["value"] == pytest.approx(mean["mean_logp"] - mean["unranked"])


def test_shares_that_agree_on_all_problems_keep_an_interval():
    items = results.Items(SEEDS, ("a", "b", "c"), np.array(["a", "b", "c"]), np.ones((2, 3)))
    pooled = next(row for row in rerank.rows({("unranked", 1): items}) if row["seed"] == "")
    assert pooled["lo"] < pooled["value"] == pooled["hi"] == 1


def write_study(folder: Path, found_by_size: dict[int, dict], task="code:functions") -> Study:
    """A study directory with the rows and records of re-ranking at each size."""
    rows = []
    for n, items in found_by_size.items():
        run = folder / "runs" / f"rerank-{n}"
        run.mkdir(parents=True)
        columns = {"study": "s", "run": run.name, "stage": "rerank", "N": n, "task": task, "split": "test"}
        rows += [columns | row for row in rerank.rows(items)]
        (run / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in rerank.records(task, items)))
    results.write_table(rows, folder / "results.csv")
    return Study(results.read_table(folder / "results.csv"), folder / "runs")


def test_records_come_back_as_the_values(tmp_path):
    items = found(imitation="guesses", preference="knows")
    made = write_study(tmp_path, {12288: items})
    back = results.read_items(made.runs_dir / "rerank-12288", "code:functions", "test", "best", "reward@8")
    assert back.seeds == SEEDS and back.item_ids == tuple(PROBLEMS)
    np.testing.assert_array_equal(back.correct, items["reward", 8].correct)


@pytest.mark.parametrize(
    ("imitation", "preference", "equal", "above"),
    [
        ("knows", "knows", SUPPORTED, SUPPORTED),
        ("knows", "guesses", CONTRADICTED, POWER),
        ("guesses", "guesses", FLOOR, POWER),
    ],
)
def test_claims_find_what_is_planted_at_the_largest_size(tmp_path, imitation, preference, equal, above):
    small = found(imitation="guesses", preference="knows")
    made = write_study(tmp_path, {12288: small, 98304: found(imitation=imitation, preference=preference)})
    outcomes = {claim.key: claim.judge(made) for claim in claims.CLAIMS}
    assert outcomes["rerank_equal"].verdict == equal
    assert outcomes["rerank_above_unranked"].verdict == above
    assert "98k, k = 8" in outcomes["rerank_equal"].at


def test_claims_without_rows_are_not_run(tmp_path):
    made = write_study(tmp_path, {})
    assert [claim.judge(made).verdict for claim in claims.CLAIMS] == [NOT_RUN, NOT_RUN]


def lines(ax) -> dict[str, tuple[list[float], list[float]]]:
    """Each line by its label: x and y."""
    drawn = {c.get_label(): c.lines[0] for c in ax.containers}
    drawn |= {line.get_label(): line for line in ax.lines if not str(line.get_label()).startswith("_")}
    return {name: (list(line.get_xdata()), list(line.get_ydata())) for name, line in drawn.items()}


def test_figures_draw_the_rows(tmp_path):
    items = found(imitation="guesses", preference="knows")
    greedy = results.Items(SEEDS, tuple(PROBLEMS), np.array(PROBLEMS), np.full((2, len(PROBLEMS)), 0.25))
    made = write_study(tmp_path, {12288: items, 98304: items | {("greedy", 0): greedy}})
    over_k = lines(figures.over_samples(made.table).axes[0])
    assert over_k["oracle"][0] == rerank.ks(N)
    np.testing.assert_allclose(over_k["oracle"][1], [items["oracle", k].correct.mean() for k in rerank.ks(N)])
    assert over_k["imitation at T = 0"][1] == [0.25, 0.25]
    panels = figures.code(made.table).axes
    assert [ax.get_title() for ax in panels] == [f"Functions, k = {k}" for k in (2, 8, 12)]
    drawn = lines(panels[1])
    np.testing.assert_allclose(drawn["preference modeling"][1], [items["reward", 8].correct.mean()] * 2)
    np.testing.assert_allclose(drawn["unranked average"][1], [items["unranked", 8].correct.mean()] * 2)
    with pytest.raises(style.NoRows, match="last word"):
        figures.last_word(made.table)


def test_scores_are_those_of_pairs(ranked, pairs):
    scorer, tokenizer, seeds = load_scorer(str(ranked))
    rows = [json.loads(line) for line in pairs.read_text().splitlines()[:5]]
    answers = {
        (str(i), seed): Answers(str(i), "", seed, row["context"], [row["bad"], row["good"], row["bad"]], np.zeros(3))
        for i, row in enumerate(rows)
        for seed in seeds
    }
    end = [tokenizer.eoc_id]
    tokenized = [
        TokenizedPair(
            str(i), str(i), tokenizer.encode(row["context"]),
            *(np.concatenate([tokenizer.encode(row[side]), end]).astype(np.int32) for side in ("good", "bad")), (1, 1),
        )
        for i, row in enumerate(rows)
    ]  # fmt: skip
    expected = evaluate.score_pairs(scorer, tokenized, ("logp", "reward"))
    for want, ranker in (("reward", "reward"), ("logp", "mean_logp")):
        scores = rerank.score(answers, str(ranked), want, seeds, 0)
        got_GxPx3 = np.array([[scores[str(i), seed] for i in range(len(rows))] for seed in seeds])
        np.testing.assert_allclose(got_GxPx3[..., [1, 0]], expected.by(ranker), rtol=2e-5, atol=2e-5)
        np.testing.assert_array_equal(got_GxPx3[..., 0], got_GxPx3[..., 2])


def test_answers_that_the_context_does_not_hold_have_no_score(ranked):
    long = Answers("long", "long", 0, "red fox " * 20, [" fox", " hen " * 40], np.zeros(2))
    (score_2,) = rerank.score({("long", 0): long}, str(ranked), "reward", (0,), 0).values()
    assert np.isfinite(score_2[0]) and np.isnan(score_2[1])


def _study_file():
    path = Path(__file__).parents[2] / "configs/studies/reranking.py"
    spec = importlib.util.spec_from_file_location("reranking", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_study_is_planned_with_what_the_data_has(tmp_path):
    module = _study_file()
    planned = module.runs(module.get_config())
    study.check_plan(planned)
    by_name = {run.name: run for run in planned}
    assert study.needs(by_name["binary-code-98k"]) == ["pretrain-code-98k", "samples-code-98k"]
    assert {"samples-code-98k", "greedy-code-98k", "binary-code-98k"} <= set(study.needs(by_name["rerank-code-98k"]))
    c = module.get_config()
    c.run_untrusted_code = False
    assert not any("code" in run.name for run in module.runs(c))
    (tmp_path / "lambada").mkdir()
    real = module.get_config(f"data={tmp_path}")
    (samples,) = [run for run in module.runs(real) if run.name == "samples-last_word-332k"]
    assert samples.job.arguments["problems"] == str(tmp_path / "lambada") and samples.job.arguments["n_test"] == 100
    with pytest.raises(UserError, match="data=DIR"):
        module.get_config("full")
