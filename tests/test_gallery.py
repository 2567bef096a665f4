"""The page shows what the studies' tables draw beside the paper's own, with the command under each."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from simulated_study import simulated

from hhh_jax import figures, gallery, results
from hhh_jax.errors import UserError
from hhh_jax.figures import paper, style
from hhh_jax.summary import Study, summarize

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Two studies: a whole simulated one, and one that has pretraining alone."""
    folder = tmp_path_factory.mktemp("studies")
    small = simulated(n_items=40)
    table = results.read_table(small / "results.csv")
    derived = summarize(Study(table, small / "runs"))
    parts = {"embedded": (table, derived), "another": (table[table["stage"] == "pretrain"], [])}
    for name, (measured, summary) in parts.items():
        (folder / name).mkdir()
        results.write_table(measured.to_dict("records"), folder / name / "results.csv")
        results.write_table(summary, folder / name / "summary.csv")
    shutil.copy(small / "study.json", folder / "embedded")
    return folder


@pytest.fixture(scope="module")
def page(studies, tmp_path_factory):
    """Of the paper's figures two, to be quick."""
    out = tmp_path_factory.mktemp("gallery")
    some = paper.panels()[paper.panels()["figure"].isin([14, 30])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper, "panels", lambda: some)
        path = gallery.write(studies, out)
    return path.read_text(encoding="utf-8"), out


def test_the_page_needs_no_other_file(page):
    text, _ = page
    assert text.startswith("<!doctype html>") and text.rstrip().endswith("</html>")
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text) and "http" not in text


def test_every_figure_that_can_be_drawn_is_there_with_its_command(page, studies):
    text, out = page
    for name in ("figure3", "figures14_15", "figure4", "figure33", "scaling"):
        assert (out / "embedded" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    table = studies / "embedded" / "results.csv"
    for number in (3, 4, 14, 15, 33):
        section = re.search(rf'<section id="figure{number}">(.*?)</section>', text, re.S)[1]
        command = f"python -m hhh_jax.figures --figure={number} --results={table} --out=DIR"
        assert command in section and section.count("<img") == 1 + (number == 14)
    assert f"--figure=scaling --results={table} --out=DIR" in text
    assert "python -m hhh_jax.figures --figure=30 --out=DIR --paper" in text


def test_what_is_missing_is_said(page):
    text, _ = page
    section = re.search(r'<section id="figure26">(.*?)</section>', text, re.S)[1]
    assert "Not drawn (no study here has its rows)" in section and "The paper plots none" in section
    section = re.search(r'<section id="figure33">(.*?)</section>', text, re.S)[1]
    assert "<img" in section and "another" not in section


def test_studies_come_in_the_stated_order(studies, tmp_path):
    for name in ("zebra", "pmp", "prompting"):
        shutil.copytree(studies / "another", tmp_path / name)
    assert list(gallery.studies_of(tmp_path)) == ["prompting", "pmp", "zebra"]
    with pytest.raises(UserError, match=r"no folder in it has a results\.csv and a summary\.csv"):
        gallery.studies_of(tmp_path / "zebra")


def test_a_number_with_several_figures_draws_those_that_it_can(studies, tmp_path, monkeypatch):
    """Figure 2 is two of ours; a table with rows of one gives that one, and of none an error."""
    def without_rows(table):
        raise style.NoRows("no rows of HumanEval")

    both = {
        "one": style.Drawing(figures.FIGURES["scaling"].draw, "", "", (2,)),
        "other": style.Drawing(without_rows, "", "", (2, 10)),
    }
    monkeypatch.setattr(figures, "FIGURES", both)
    table = str(studies / "embedded" / "results.csv")
    assert figures.draw_figure("2", table, tmp_path, with_paper=False) == [tmp_path / "one.png"]
    with pytest.raises(UserError, match="figure 10 needs what it lacks: no rows of HumanEval"):
        figures.draw_figure("10", table, tmp_path, with_paper=False)


def test_launcher_and_page_agree_on_the_order():
    script = (ROOT / "launch" / "local.sh").read_text()
    assert re.search(r'first="([^"]*)"', script)[1].split() == list(gallery.ORDER)


def test_command_line(tmp_path):
    command = [sys.executable, "-m", "hhh_jax.gallery", f"--studies={tmp_path}", f"--out={tmp_path}"]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2 and "run a study first" in refused.stderr and "Traceback" not in refused.stderr
