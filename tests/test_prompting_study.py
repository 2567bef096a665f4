"""The study of section 2: what its plan compares, and that its iterated prompt has the pieces that it says."""

from pathlib import Path

import pytest

from hhh_jax import prompts, study
from hhh_jax.claims import prompting
from hhh_jax.errors import UserError

STUDY = study.load_study(str(Path(__file__).parents[1] / "configs" / "studies" / "prompting.py"))


@pytest.mark.parametrize("arg", ["", "data=some/folder"])
def test_every_arm_of_a_claim_is_planned(arg):
    c = STUDY.get_config(arg)
    planned = STUDY.runs(c)
    study.check_plan(planned)
    of = {run.name: run for run in planned}
    arms = set()
    for run in planned:
        if run.job is not None and run.job.module == "evals.battery":
            trained, how = of[run.after].config.labels.intervention, run.job.arguments["intervention"]
            arms.add("+".join(filter(None, (trained, "" if how == "none" else how))))
    for choice in (prompting.BARE, prompting.PROMPTED, prompting.DISTILLED, prompting.UNPROMPTED, prompting.TWO,
                   prompting.DISTILLED_TWO):  # fmt: skip
        assert arms & set(choice), choice
    assert any(prompting.FINETUNED.fullmatch(arm) for arm in arms)
    assert any(prompting.TRAINED.fullmatch(arm) for arm in arms) == (not arg)  # counting needs no data


def test_published_text_is_sampled_where_that_is_asked_for():
    c = STUDY.get_config("data=some/folder")
    assert not [run for run in STUDY.runs(c) if run.name.startswith(("toxicity", "code"))]
    c.toxicity, c.run_untrusted_code, c.limits.code = "file.py:score", True, 8
    planned = STUDY.runs(c)
    study.check_plan(planned)
    jobs = {run.name: run.job.arguments for run in planned if run.job is not None}
    asked = {name: job["evals"] for name, job in jobs.items() if name.startswith(("toxicity", "code"))}
    of_98k = {name: evals for name, evals in asked.items() if "-98k" in name}
    assert of_98k == {
        "toxicity-pretrain-98k-none": ["toxicity"], "toxicity-pretrain-98k-template": ["toxicity"],
        "toxicity-pretrain-98k-short": ["toxicity", "toxicity_free"], "toxicity-distilled-98k-template": ["toxicity"],
        "code-pretrain-98k-none": ["humaneval"], "code-pretrain-98k-template": ["humaneval"],
        "code-pretrain-98k-short": ["humaneval"], "code-distilled-98k-template": ["humaneval"],
    }  # fmt: skip
    assert all(jobs[name]["run_untrusted_code"] and jobs[name]["limit"] == 8 for name in asked if "code" in name)
    of_lambada = ["lambada", "lambada_original", "lambada_original_20shot", "lambada_blank_20shot"]
    assert jobs["evaluate-pretrain-98k-none"]["evals"] == ["hhh", "truthfulqa", *of_lambada]


def test_the_student_of_a_piece_is_the_teacher_of_the_next():
    c = STUDY.get_config()
    of = {run.name: run for run in STUDY.runs(c)}
    rung = c.iterated.rung
    first, second = of["teacher-two_piece_1"], of["teacher-two_piece_2"]
    assert (first.after, second.after) == (f"pretrain-{rung}", f"distilled_1_of_2_pieces-{rung}")
    assert of[second.after].config.data.source == f"{study.RUN}{first.name}"
    assert [run.job.arguments["piece"] for run in (first, second)] == [1, 2]
    room = c.iterated.context - c.row_length
    pieces = prompts.pieces(prompts.load("two").text, lambda text: len(text) // 2, room)  # two letters a token
    assert len(pieces) == c.iterated.pieces


def test_an_argument_that_is_none():
    with pytest.raises(UserError, match="data=DIR"):
        STUDY.get_config("dta=x")
