"""Answers become words or code, right or wrong, and pairs of both."""

import json
from pathlib import Path

import numpy as np
import pytest
from data.test_functions import run_tests
from prepared_folders import prepared

from hhh_jax import samples
from hhh_jax.data import datasets, functions, problems
from hhh_jax.data.records import Prompt
from hhh_jax.errors import UserError

CAT = Prompt("cat", "The dog chased the", "animals", {"target": "cat", "format": "nice"})


@pytest.mark.parametrize(
    ("kind", "said", "kept"),
    [
        ("last_word", " cat and the dog", " cat"),
        ("last_word", "cat", " cat"),
        ("last_word", " o'clock.", " o'clock"),
        ("last_word", ' "Cat"', ""),
        ("last_word", "", ""),
        ("code", " x + 1  \n\n\ndef g():\n    pass", " x + 1"),
        ("code", "\n    y = 2\n    return y", "\n    y = 2\n    return y"),
    ],
)
def test_what_counts_of_a_sample(kind, said, kept):
    assert samples.tidy(kind, said) == kept


def test_a_last_word_is_right_if_it_is_the_target():
    (right_N,) = samples.judge([CAT], [[" cat", " Cat", "", " cats"]], run_untrusted_code=False)
    assert right_N.tolist() == [1, 0, 0, 0]


@pytest.mark.usefixtures("isolation")
def test_the_sandbox_agrees_with_running_code_that_is_ours():
    asked = functions.problems("test")[:4]
    answers = [[p.meta["solution"] for p in asked], [" x + 2", " (x", ""], [" x"], [" x + x", " undefined"]]
    judged = samples.judge(asked, answers, run_untrusted_code=True)
    for problem, texts, right_N in zip(asked, answers, judged, strict=True):
        trusted = []
        for text in texts:
            try:
                trusted.append(float(run_tests(problem, text)))
            except SyntaxError:
                trusted.append(0.0)
        assert right_N.tolist() == trusted
    assert sum(right_N.sum() for right_N in judged) >= 1


def test_code_is_not_run_unasked():
    with pytest.raises(UserError, match="run_untrusted_code"):
        samples.judge(functions.problems("test")[:1], [[" x"]], run_untrusted_code=False)


def _given(name, seed, answers, correct) -> samples.Answers:
    return samples.Answers(name, f"group {name}", seed, f"context {name}", answers, np.array(correct, float))


def test_pairs_have_a_right_and_a_wrong_answer_of_any_seed():
    given = [
        _given("a", 0, [" r1", " w1", " w1", " w2"], [1, 0, 0, 0]),
        _given("a", 1, [" r2", " r1", "", " lost"], [1, 1, 0, np.nan]),
        _given("b", 0, [" r1", " r2"], [1, 1]),
        _given("c", 0, ["", " r"], [0, 1]),
    ]
    rows = samples.make_pairs(given, 2, "train")
    assert [row["context"] for row in rows] == ["context a"] * 2 and {row["split"] for row in rows} == {"train"}
    sides = {(row["good"], row["bad"]) for row in rows}
    assert len(sides) == 2 and sides <= {(good, bad) for good in (" r1", " r2") for bad in (" w1", " w2")}
    assert len({row["id"] for row in rows}) == 2
    assert len(samples.make_pairs(given, 9, "train")) > 2


def test_the_share_of_right_answers_is_a_mean_over_problems():
    given = [_given("a", 0, [" x"] * 4, [1, 0, 0, 0]), _given("b", 0, [" x"] * 3, [1, 1, np.nan])]
    (row,) = samples.share_rows({"test": given}, 1.0)
    assert row["value"] == pytest.approx((0.25 + 1.0) / 2) and row["n_items"] == 2
    assert row["split"] == "test" and 0 <= row["lo"] < row["value"] < row["hi"] <= 1


def test_problems_of_a_file_are_cut_as_the_documents_that_are_pretrained_on(tmp_path):
    path = tmp_path / "functions.jsonl"
    rows = [
        {"id": f"f{i}", "prompt": f"def f{i}():\n", "entry_point": f"f{i}", "tests": "", "text": f"def f{i}(): pass"}
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split in ("train", "validation", "test"):
        asked = {problem.id for problem in problems.load(str(path), split)}
        assert asked and asked == {document.id for document in datasets.load_documents(str(path), split).records}
    path.write_text('{"id": "f", "prompt": 3, "entry_point": "f", "tests": ""}\n')
    with pytest.raises(UserError, match=r"functions\.jsonl:1"):
        problems.load(str(path), "train")


def test_problems_of_a_folder_are_of_one_format(tmp_path):
    other = Prompt("dog", "the cat chased the", "animals", {"target": "dog", "format": "original"})
    folder = prepared(tmp_path / "lambada", {"test": [CAT, other]})
    assert [problem.id for problem in problems.load(folder, "test", "original")] == ["dog"]
    assert problems.kind(CAT) == "last_word" and problems.title(folder) == "lambada"
    with pytest.raises(UserError, match="no problems named"):
        problems.load("passage", "train")


@pytest.mark.slow
def test_a_job_writes_answers_pairs_and_shares_and_goes_on(corpus, pretrained, tmp_path):
    text = [document.text for document in datasets.load_documents(str(corpus), "train").records[:4]]
    asked = [Prompt(f"p{i}", " ".join(t.split()[:20]), f"p{i}", {"target": t.split()[20]}) for i, t in enumerate(text)]
    folder = prepared(tmp_path / "words", {"train": asked, "validation": asked, "test": asked})
    arguments = {
        "problems": folder, "test": "", "written": "", "limits": {"train": 4, "validation": 2, "test": 3},
        "n_train": 6, "n_test": 5, "temperature": 1.0, "max_new_tokens": 4, "pairs_per_problem": 2, "context": 64,
        "rows": 16, "run_untrusted_code": False,
    }  # fmt: skip
    directory = tmp_path / "samples"
    directory.mkdir()
    samples.job(directory, after=Path(pretrained), study="s", **arguments)
    written = {name: (directory / name).read_text() for name in ("samples-test.jsonl", "rows.jsonl", "pairs.jsonl")}
    answers = samples.read_answers(directory / "samples-test.jsonl")
    names = [problem.id for problem in problems.load(folder, "test")][:3]
    assert [(one.item_id, one.seed, len(one.answers)) for one in answers] == [
        (name, seed, 5) for seed in (0, 1) for name in names
    ]
    targets = {problem.id: f" {problem.meta['target']}" for problem in asked}
    for one in answers:
        assert one.correct.tolist() == [float(text == targets[one.item_id]) for text in one.answers]
    for pair in map(json.loads, written["pairs.jsonl"].splitlines()):
        assert pair["good"] == targets[pair["id"].partition("#")[0]] != pair["bad"]
    shares = [row for row in map(json.loads, written["rows.jsonl"].splitlines()) if row["split"] == "test"]
    assert [row["value"] for row in shares] == pytest.approx(
        [np.mean([one.correct for one in answers if one.seed == seed]) for seed in (0, 1)]
    )
    assert {row["task"] for row in shares} == {"last_word:words"}
    (directory / "rows.jsonl").unlink()
    (directory / "samples-train.jsonl").unlink()
    before = (directory / "samples-test.jsonl").stat().st_mtime_ns
    samples.job(directory, after=Path(pretrained), study="s", **arguments)
    assert {name: (directory / name).read_text() for name in written} == written
    assert (directory / "samples-test.jsonl").stat().st_mtime_ns == before


def test_a_prompt_alone_is_no_problem():
    with pytest.raises(UserError, match="no tests and no target"):
        problems.kind(Prompt("p", "text", "p"))
