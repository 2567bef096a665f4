"""Many runs: shares, resuming after kill -9, a broken run, the choice of a learning rate."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_runs import tiny

from hhh_jax import config, study
from hhh_jax.errors import UserError
from hhh_jax.record import jsonable

ROOT = Path(__file__).parents[1]

BASELINES = study.Job("baselines", {"task": "symbols:T0", "seed": 0, "train_pairs": 10, "test_pairs": 10})

STUDY = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import ml_collections
from hhh_jax.study import Planned
from tiny_runs import tiny

def get_config(arg=""):
    return ml_collections.ConfigDict({{"name": "tiny"}})

def runs(c):
    corpus, pairs = Path({corpus!r}), Path({pairs!r})
    planned = []
    for arm, rate, label in (("a", 0.003, ""), ("b", 0.005, "faster")):
        settings = {{"optim__lr": rate, "labels__intervention": label}}
        planned.append(Planned(f"pretrain-{{arm}}", tiny("pretrain", corpus, **settings), ""))
        for multiple in (0.001, 1.0):
            tuned = tiny("ranked", pairs, optim__lr_multiple=multiple, **settings)
            tuned.eval.selections = ()
            planned.append(Planned(f"ranked-{{arm}}-lr_{{multiple}}", tuned, f"pretrain-{{arm}}"))
        choose = tuple(run.name for run in planned[-2:])
        planned.append(Planned(f"ranked-{{arm}}", tiny("ranked", pairs, **settings), f"pretrain-{{arm}}", choose))
    planned.append(Planned("broken", tiny("ranked", Path("no_such_file.jsonl")), "pretrain-a"))
    planned.append(Planned("after-broken", tiny("ranked", pairs), "broken"))
    return planned[: len(planned) - {left_out}]
"""


@pytest.fixture(scope="module")
def study_file(corpus, pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")

    def write(left_out: int) -> Path:
        path = folder / f"study_{left_out}.py"
        tests = str(ROOT / "tests")
        path.write_text(STUDY.format(tests=tests, corpus=str(corpus), pairs=str(pairs), left_out=left_out))
        return path

    return write


def start(file: Path, workdir: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "hhh_jax.study", f"--config={file}", f"--workdir={workdir}", *arguments]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_chains_and_shares(study_file):
    planned = study.load_study(str(study_file(0))).runs(None)
    chains = study.chains(planned)
    assert [chain[0].name for chain in chains] == ["pretrain-a", "pretrain-b"]
    assert {"broken", "after-broken"} <= {run.name for run in chains[0]}
    for count in (1, 2, 3):
        shares = [study.shard(planned, index, count) for index in range(count)]
        names = [run.name for share in shares for run in share]
        assert sorted(names) == sorted(run.name for run in planned)
        for share in shares:  # whole chains, in an order that can be done
            assert all(run.after in [r.name for r in share[: i + 1]] for i, run in enumerate(share) if run.after)


@pytest.mark.parametrize("text", ["2/2", "1", "a/b", "-1/2"])
def test_bad_shards(text):
    with pytest.raises(UserError, match="give i/n"):
        study._parse_shard(text)


def test_chains_join_what_a_choice_joins():
    grid = [study.Planned("a", None), study.Planned("b", None), study.Planned("c", None, choose=("a", "b"))]
    assert [[run.name for run in chain] for chain in study.chains([*grid, study.Planned("d", None)])] == [
        ["a", "b", "c"],
        ["d"],
    ]


@pytest.mark.parametrize(
    "planned, message",
    [
        ([study.Planned("a", None), study.Planned("a", None)], "two runs named a"),
        ([study.Planned("a", None, after="b"), study.Planned("b", None)], "a needs b, which is not among the runs"),
        ([study.Planned("a", None, choose=("x",))], "a needs x, which is not among the runs"),
    ],
)
def test_plans_that_cannot_be_done(planned, message):
    with pytest.raises(UserError, match=message):
        study.check_plan(planned)


def test_a_finished_run_of_other_settings_is_refused(ranked, pairs, pretrained, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "x").symlink_to(ranked)
    same = tiny("ranked", pairs, init__checkpoint=pretrained)
    study.check_unchanged(tmp_path, [study.Planned("x", same)])
    other = tiny("ranked", pairs, init__checkpoint=pretrained, optim__lr_multiple=0.125)
    study.check_unchanged(tmp_path, [study.Planned("x", other, choose=("chosen_by_a_grid",))])
    with pytest.raises(UserError, match=r"config.json: this run was made with optim.lr_multiple = .*says 0.125"):
        study.check_unchanged(tmp_path, [study.Planned("x", other)])


def test_a_run_from_before_a_field_was_there_had_its_default(tmp_path, pairs):
    now = tiny("ranked", pairs)
    there = {name: value for name, value in jsonable(config.fields(now)).items() if name != "data.flip"}
    (tmp_path / "runs" / "x").mkdir(parents=True)
    (tmp_path / "runs" / "x" / "config.json").write_text(json.dumps(there))
    study.check_unchanged(tmp_path, [study.Planned("x", now)])
    with pytest.raises(UserError, match=r"made with data.flip = 0.0, and the study says 0.5"):
        study.check_unchanged(tmp_path, [study.Planned("x", tiny("ranked", pairs, data__flip=0.5))])


def test_a_run_whose_process_dies_is_not_tried_again_in_the_same_start(tmp_path, monkeypatch):
    """The lock of the dead process is gone, and the mark of the start that it belonged to is left."""
    planned = [study.Planned("x", job=BASELINES), study.Planned("y", job=BASELINES, after="x")]
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "x").write_text("first")
    monkeypatch.setenv(study.START, "first")
    said: list[str] = []
    broken = study.execute(tmp_path, planned, said.append)
    assert broken == {"x": "its process died (for want of memory?)", "y": "needs x, which is broken"}
    assert (tmp_path / "runs" / "x" / "error.txt").read_text().startswith("its process died") and len(said) == 2
    (tmp_path / "runs" / "x" / "error.txt").unlink()
    monkeypatch.setenv(study.START, "second")
    assert study.execute(tmp_path, planned[:1], said.append) == {} and study.is_done(tmp_path, planned[0])


def test_a_run_in_other_hands_is_waited_for(tmp_path):
    planned = [study.Planned("x", job=BASELINES)]
    with study._hold(tmp_path, planned[0]) as (held, _):
        assert held
        with study._hold(tmp_path, planned[0]) as (again, _):
            assert not again
        assert study.execute(tmp_path, planned, stop=iter((False, False, True)).__next__) == {}
    assert not study.is_done(tmp_path, planned[0])


def test_a_job_of_other_arguments_is_refused(tmp_path):
    planned = study.Planned("x", job=BASELINES)
    assert study.execute(tmp_path, [planned]) == {}
    study.check_unchanged(tmp_path, [planned])
    other = study.Planned("x", job=study.Job("baselines", BASELINES.arguments | {"train_pairs": 20}))
    with pytest.raises(UserError, match=r"job.json: this run was made with train_pairs = 10, and the study says 20"):
        study.check_unchanged(tmp_path, [other])


def test_a_field_can_name_another_run(corpus, tmp_path):
    """The tokenizer of one run is another's, wherever the study lies."""
    first = tiny("pretrain", corpus)
    second = tiny("pretrain", corpus)
    second.data.tokenizer = study.RUN + "first"
    planned = [study.Planned("first", first), study.Planned("second", second)]
    assert study.needs(planned[1]) == ["first"]
    with pytest.raises(UserError, match="second needs first"):
        study.check_plan(planned[::-1])
    assert study.execute(tmp_path, planned[:1]) == {}
    with pytest.raises(UserError, match="cannot read"):  # a run's directory is no tokenizer
        study._execute_one(tmp_path, planned[1])
    config = json.loads((tmp_path / "runs" / "second" / "config.json").read_text())
    assert config["data.tokenizer"] == str(tmp_path / "runs" / "first")


def test_a_file_that_is_no_study(tmp_path):
    (tmp_path / "x.py").write_text("def get_config(): ...")
    with pytest.raises(UserError, match=r"no function runs\(config\)"):
        study.load_study(str(tmp_path / "x.py"))


def test_the_time_left_is_that_of_like_runs(tmp_path):
    other = study.Job("human_model", {})
    planned = [
        *(study.Planned(f"train-{n}", config.base_config("pretrain", "12k")) for n in range(3)),
        *(study.Planned(f"job-{n}", job=BASELINES) for n in range(4)),
        study.Planned("another-job", job=other),
    ]

    def done(name: str, seconds: float) -> None:
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "DONE.json").write_text(json.dumps({"run_seconds": seconds}))

    guess = study.seconds_left(tmp_path, planned)
    assert guess == pytest.approx(3 * study.flops(planned[0]) / study.FLOPS_PER_CORE)
    done("train-0", 20.0)
    done("job-0", 4.0)
    done("job-1", 8.0)
    assert study.seconds_left(tmp_path, planned) == pytest.approx(2 * 20 + 2 * 6)


@pytest.fixture(scope="module")
def whole(study_file, tmp_path_factory) -> tuple[Path, int, str]:
    """Folder, exit status and output of the study with its broken runs, which nobody kills."""
    folder = tmp_path_factory.mktemp("studies") / "whole"
    process = start(study_file(0), folder, "--workers=2")
    output, _ = process.communicate(timeout=300)
    return folder, process.returncode, output


@pytest.mark.slow
def test_a_broken_run_is_reported_and_the_others_go_on(whole):
    folder, code, output = whole
    assert code == 1, output
    assert "broken: BROKEN:" in output and "no_such_file.jsonl" in output
    assert "after-broken: BROKEN: needs broken, which is broken" in output
    done = {path.parent.name for path in (folder / "runs").glob("*/DONE.json")}
    assert {"pretrain-a", "pretrain-b", "ranked-a", "ranked-b"} <= done and "after-broken" not in done
    assert (folder / "report.html").exists()


@pytest.mark.slow
def test_killed_three_times_the_table_is_the_same(whole, study_file, tmp_path):
    """As that of a study that nobody killed, to which broken runs add no rows."""
    file = study_file(2)
    for done in (0, 2, 4):  # dies after so many runs
        process = start(file, tmp_path / "killed", "--workers=2")
        while process.poll() is None and len(list((tmp_path / "killed" / "runs").glob("*/DONE.json"))) < done:
            time.sleep(0.01)
        time.sleep(random.random())
        os.killpg(process.pid, signal.SIGKILL)  # and its workers
        process.communicate()
    again = start(file, tmp_path / "killed", "--workers=2")  # as many threads an operation as the other
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    assert (tmp_path / "killed" / "results.csv").read_bytes() == (whole[0] / "results.csv").read_bytes()
    runs = whole[0] / "runs"
    chosen = json.loads((runs / "ranked-a" / "config.json").read_text())["optim.lr_multiple"]
    validation = {
        multiple: sum(json.loads((runs / f"ranked-a-lr_{multiple}" / "DONE.json").read_text())["best_validation"])
        for multiple in (0.001, 1.0)
    }
    assert chosen == max(validation, key=lambda multiple: validation[multiple])
    table = (whole[0] / "results.csv").read_text()
    assert "ranked-a-lr_" not in table  # the test set is not read while a learning rate is chosen
