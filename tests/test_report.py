"""The report stands alone, says what the table says, and does not change when it is written again."""

import json
import re
import shutil

import pytest
from simulated_study import SIZES, simulate

from hhh_jax import claims, figures, report, results
from hhh_jax.claims import objectives, pmp, rules
from hhh_jax.errors import UserError
from hhh_jax.figures import style
from hhh_jax.stats import Estimate
from hhh_jax.summary import Study

NOTHING_DRAWN = figures.Drawn({}, dict.fromkeys(figures.FIGURES, "no rows"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    simulate(folder, n_items=60)
    report.write_report(folder)
    return folder


def test_the_page_needs_no_other_file(folder):
    page = (folder / "report.html").read_text()
    assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")
    assert re.findall(r'(?:src|href)="(?!data:)', page) == [] and "http" not in page
    drawn = list((folder / "figures").glob("*.png"))
    assert page.count("data:image/png;base64,") == len(drawn) >= 8


def test_the_page_says_what_was_measured(folder):
    page = (folder / "report.html").read_text()
    record = json.loads((folder / "claims.json").read_text())
    outcomes = record["claims"]
    shared = {"pmp_every_source", "pmp_few_pairs"}  # which need no more than PMP does
    about = {claim.key for claim in objectives.CLAIMS if claim.needs != objectives.DPO}
    assert about | {claim.key for claim in pmp.CLAIMS} | shared == outcomes.keys()
    assert record["sizes"] == list(SIZES) and record["seeds"] == 3
    for outcome in outcomes.values():
        value = f"{outcome['value']:+.3f} [{outcome['lo']:+.3f}, {outcome['hi']:+.3f}]".replace("-", "−")
        assert value in page and outcome["verdict"] in page
    summary = results.read_table(folder / "summary.csv")
    row = summary[
        (summary["task"] == "ranked-binary") & (summary["N"] == 786432) & (summary["intervention"] == "")
    ]
    row = row[row["metric"] == "accuracy_gain"].iloc[0]
    measured = outcomes["ranked_minus_binary"]
    assert [measured[key] for key in ("value", "lo", "hi")] == pytest.approx(
        [row["value"], row["lo"], row["hi"]]
    )
    assert f"Of {len(outcomes)} claims tested" in page
    for text in (
        "786,432",
        "tokens per parameter",
        "1.3",
        "A processor",
        "12.1 min",
        "3.9e+13",
        "last step",
        "constant learning rate",
    ):
        assert text in page, text


def test_the_loss_of_a_size_is_the_ladders_own(folder):
    """And not that of the symbols' language model, which has the same size."""
    summary = results.read_table(folder / "summary.csv")
    loss = summary[(summary["metric"] == "loss") & (summary["task"] == "stdlib")].set_index("N")["value"]
    page = (folder / "report.html").read_text()
    for n in loss.index:
        cells = re.search(rf"<td>{int(n):,}</td>(.*?)</tr>", page, re.S)
        assert f"{loss[n]:.3f}" in cells[1]


@pytest.mark.slow
def test_the_same_study_gives_the_same_bytes(folder, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(
        folder, again, ignore=shutil.ignore_patterns("figures", "report.html", "summary.csv", "claims.json")
    )
    report.write_report(again)
    for name in ("report.html", "summary.csv", "claims.json", "figures/figure3.pdf"):
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name
    assert not list(again.glob("*.partial"))


def test_a_partial_study_without_facts(folder, tmp_path):
    """Only pretraining finished, and study.json is missing: a report all the same, which says so."""
    table = results.read_table(folder / "results.csv")
    results.write_table(table[table["objective"] == "lm"].to_dict("records"), tmp_path / "results.csv")
    (tmp_path / "runs").symlink_to(folder / "runs")
    page = report.write_report(tmp_path).read_text()
    part = results.read_with_summary(tmp_path / "results.csv")
    concerned = [name for name, drawing in figures.FIGURES.items() if style.concerns(part, drawing)]
    assert "Of 1 claim tested" in page and page.count("Not drawn") == len(concerned) - 1  # scaling is drawn
    assert f"{len(claims.CLAIMS) - 1} other claims of the paper are not about what this study ran" in page


def test_a_claim_that_the_study_is_about_says_why_it_was_not_tested(folder, tmp_path):
    """Two sizes are too few for claims about scaling: the one on imitation is told, as the study has such rows."""
    table = results.read_table(folder / "results.csv")
    few = table[table["N"].isna() | table["N"].isin(SIZES[:2])]
    results.write_table(few.to_dict("records"), tmp_path / "results.csv")
    study = Study(results.read_table(tmp_path / "results.csv"), folder / "runs")
    judged = claims.concerning(study, claims.evaluate(study))
    page = report.render({}, study, study.table, judged, NOTHING_DRAWN)
    outcome = {claim.key: outcome for claim, outcome in judged}["ranked_scaling"]
    assert outcome.verdict == rules.NOT_RUN and outcome.note == "needs 4 model sizes; there are 2"
    assert outcome.note in page and "more could not be tested" in page


def test_a_study_that_did_not_start_is_told(tmp_path):
    with pytest.raises(UserError, match=r"results\.csv"):
        report.write_report(tmp_path)


def test_broken_runs_and_strange_text_are_shown_safely(folder):
    table = results.read_table(folder / "results.csv")
    facts = {
        "name": "<b>mine</b>",
        "broken": {"ranked_n4": "loss is not finite at step 3 & so"},
        "config": {"seeds": 3},
    }
    page = report.render(facts, Study(table, folder / "runs"), table, _judged(), NOTHING_DRAWN)
    assert "&lt;b&gt;mine&lt;/b&gt;" in page and "<b>mine" not in page
    assert "Failed and left out: ranked_n4 (loss is not finite at step 3 &amp; so)." in page
    assert "Settings" in page


def _judged(**verdicts):
    estimate = Estimate(0.1, 0.05, 0.15, 100, 3)
    return [
        (claim, rules.Outcome(verdicts.get(claim.key, rules.SUPPORTED), estimate, "N = 786k"))
        for claim in claims.CLAIMS
    ]


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        (rules.SUPPORTED, "as the paper found"),
        (rules.CONTRADICTED, "the opposite of what the paper found"),
        (rules.POWER, "too close to call"),
        (rules.FLOOR, "undecided, at the floor"),
    ],
)
def test_headline_is_two_sentences_about_the_outcomes(verdict, words):
    text = report.headline(_judged(ranked_minus_binary=verdict, pmp_helps=rules.NOT_RUN))
    assert words in text and "+0.100 [+0.050, +0.150]" in text
    assert f"Of {len(claims.CLAIMS) - 1} claims tested" in text and "1 more could not be tested" in text
    assert len(re.findall(r"\.(?= [A-Z]|$)", text)) == 2
