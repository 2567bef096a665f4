"""The ledger says of every claim what each study's records say, and the committed pages are what they produce."""

import json
from pathlib import Path

import pytest
from simulated_study import SIZES, simulated

from hhh_jax import claims, ledger, results
from hhh_jax.claims import rules
from hhh_jax.errors import UserError
from hhh_jax.summary import Study

ROOT = Path(__file__).parents[1]
SMALL = {
    "verdict": rules.SUPPORTED, "value": -0.25, "lo": -0.5, "hi": 0.125, "n_items": 40, "n_seeds": 1, "n_groups": 40,
    "at": "N = 12k", "note": "",
}  # fmt: skip


def _record(**outcomes):
    how = {"ranked": {"lr_multiples": [0.01, 0.5], "stopping": ["the last step"]}}
    return {"study": "small", "sizes": [12288], "seeds": 1, "code": ["1"], "training": how, "claims": outcomes}


def _write(folder, **studies):
    for name, record in studies.items():
        (folder / name / "figures").mkdir(parents=True)
        (folder / name / "claims.json").write_text(json.dumps(record))


def test_the_record_of_a_study_has_its_outcomes():
    folder = simulated()
    study = Study(results.read_table(folder / "results.csv"), folder / "runs")
    judged = claims.evaluate(study)
    record = ledger.record("mine", study, judged)
    assert (record["study"], record["sizes"], record["seeds"], record["training"]) == ("mine", list(SIZES), 3, {})
    outcome = dict((claim.key, outcome) for claim, outcome in judged)["ranked_gain"]
    written = record["claims"]["ranked_gain"]
    assert [written[key] for key in ("verdict", "value", "lo", "hi", "n_seeds")] == [
        outcome.verdict, *outcome.estimate[:3], outcome.estimate.n_seeds
    ]  # fmt: skip


def test_how_it_was_trained_comes_from_the_runs(tmp_path):
    table = results.read_table(simulated() / "results.csv")
    runs = sorted(table[table["objective"] == "preference"]["run"].unique())[:3]
    settings = [(0.5, 8, ["best"]), (0.5, 1, ["best"]), (0.15, 4, ["final"])]
    for run, (rate, points, selections) in zip(runs, settings, strict=True):
        (tmp_path / run).mkdir()
        config = {"stage": "ranked", "optim.lr_multiple": rate, "eval.points": points, "eval.selections": selections}
        (tmp_path / run / "config.json").write_text(json.dumps(config))
    stopping = ["the best of 8 validations", "the last step"]
    assert ledger.training(Study(table, tmp_path)) == {"ranked": {"lr_multiples": [0.15, 0.5], "stopping": stopping}}


def test_every_claim_is_a_row_and_every_study_a_column(tmp_path):
    _write(tmp_path, one=_record(ranked_gain=SMALL), two=_record(pmp_helps=SMALL | {"verdict": rules.CONTRADICTED}))
    studies = ledger.read(tmp_path)
    rows = {row["claim"]: row["outcomes"] for row in ledger.as_json(studies)["claims"]}
    assert list(rows) == [claim.key for claim in claims.CLAIMS]
    assert rows["ranked_gain"]["one"]["value"] == -0.25 and rows["ranked_gain"]["two"]["verdict"] == rules.NOT_RUN
    others = [of for key, of in rows.items() if key not in ("ranked_gain", "pmp_helps")]
    assert {outcome["verdict"] for of in others for outcome in of.values()} == {rules.NOT_RUN}
    counted = f"{len(claims.CLAIMS)} claims; 2 of them were tested at least once, in 2 tests over 2 studies"
    assert counted in ledger.count(studies)
    page = ledger.as_markdown(studies)
    assert "| claim | one | two |" in page and page.count("\n- **") == len(claims.CLAIMS)
    assert "| ✓ supported −0.250 [−0.500, +0.125]; N = 12k; 40 items, 1 seed | – |" in page
    assert "ranked: 0.01, 0.5, the last step" in page


def test_the_readme_section_is_replaced_and_nothing_else(tmp_path):
    docs = tmp_path / "docs"
    _write(docs, a_small=_record(ranked_gain=SMALL), ladder=_record(ranked_gain=SMALL) | {"sizes": [1, 2, 3, 4]})
    for name in ("figure33", "other"):
        for study in ("a_small", "ladder"):
            (docs / study / "figures" / f"{name}.png").write_bytes(b"")
    section = ledger.readme_section(docs, tmp_path)
    ladder, small = section.split("### Studies of fewer than 4 sizes")
    assert "![figure33](docs/ladder/figures/figure33.png)" in ladder and "| +" not in small
    assert "[other](docs/ladder/figures/other.png)" in ladder and "| −0.250 [−0.500, +0.125] | N = 12k |" in ladder
    assert "- **a_small**: 12k parameters, 1 seeds. 1 claim tested: 1 supported." in small and "not run" not in section
    assert "[figure33](docs/a_small/figures/figure33.png)" in small and "!" not in small.replace("<!--", "")
    text = f"before\n\n{ledger.BEGIN}\nold\n{ledger.END}\n\nafter\n"
    once = ledger.with_section(text, section)
    assert once == f"before\n\n{section}\n\nafter\n" and ledger.with_section(once, section) == once
    with pytest.raises(UserError, match="has no lines"):
        ledger.with_section("no such lines", section)


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"no folder in it has a claims\.json"):
        ledger.read(tmp_path)
    _write(tmp_path, old={"ranked_gain": SMALL})
    with pytest.raises(UserError, match=r"old/claims\.json: has no claims; let the study write its report again"):
        ledger.read(tmp_path)


def test_the_committed_pages_are_what_the_committed_records_produce():
    """If this fails: python -m hhh_jax.ledger --studies=docs --readme=README.md"""
    studies = ledger.read(ROOT / "docs")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert ledger.with_section(readme, ledger.readme_section(ROOT / "docs", ROOT)) == readme
    assert (ROOT / "docs" / "claims.md").read_text(encoding="utf-8") == ledger.as_markdown(studies)
    assert json.loads((ROOT / "docs" / "claims.json").read_text()) == ledger.as_json(studies)
