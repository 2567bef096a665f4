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

from hhh_jax import study
from hhh_jax.errors import UserError

ROOT = Path(__file__).parents[1]

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
    for rung, size in (("a", "12k"), ("b", "98k")):
        planned.append(Planned(f"pretrain-{{rung}}", tiny("pretrain", corpus, size), ""))
        for multiple in (0.001, 1.0):
            tuned = tiny("ranked", pairs, size, optim__lr_multiple=multiple)
            tuned.eval.selections = ()
            planned.append(Planned(f"ranked-{{rung}}-lr_{{multiple}}", tuned, f"pretrain-{{rung}}"))
        choose = tuple(run.name for run in planned[-2:])
        planned.append(Planned(f"ranked-{{rung}}", tiny("ranked", pairs, size), f"pretrain-{{rung}}", choose))
    planned.append(Planned("broken", tiny("ranked", Path("no_such_file.jsonl")), "pretrain-a"))
    planned.append(Planned("after-broken", tiny("ranked", pairs), "broken"))
    return planned[: len(planned) - {left_out}]
"""


@pytest.fixture
def study_file(corpus, pairs, tmp_path):
    def write(left_out: int) -> Path:
        path = tmp_path / f"study_{left_out}.py"
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


def test_a_file_that_is_no_study(tmp_path):
    (tmp_path / "x.py").write_text("def get_config(): ...")
    with pytest.raises(UserError, match=r"no function runs\(config\)"):
        study.load_study(str(tmp_path / "x.py"))


def test_a_broken_run_is_reported_and_the_others_go_on(study_file, tmp_path):
    process = start(study_file(0), tmp_path / "out", "--workers=1")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output
    assert "broken: BROKEN:" in output and "no_such_file.jsonl" in output
    assert "after-broken: BROKEN: needs broken, which is broken" in output
    done = {path.parent.name for path in (tmp_path / "out" / "runs").glob("*/DONE.json")}
    assert {"pretrain-a", "pretrain-b", "ranked-a", "ranked-b"} <= done and "after-broken" not in done
    assert (tmp_path / "out" / "report.html").exists()


def test_killed_three_times_the_table_is_the_same(study_file, tmp_path):
    file = study_file(2)
    whole = start(file, tmp_path / "whole", "--workers=2")  # as many threads an operation as below
    output, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, output
    rng = random.Random(int.from_bytes(os.urandom(4)))
    for done in (0, 2, 4):  # dies after so many runs
        process = start(file, tmp_path / "killed", "--workers=2")
        while process.poll() is None and len(list((tmp_path / "killed" / "runs").glob("*/DONE.json"))) < done:
            time.sleep(0.01)
        time.sleep(rng.random())
        os.killpg(process.pid, signal.SIGKILL)  # and its workers
        process.communicate()
    again = start(file, tmp_path / "killed", "--workers=2")
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    assert (tmp_path / "killed" / "results.csv").read_bytes() == (tmp_path / "whole" / "results.csv").read_bytes()
    runs = tmp_path / "whole" / "runs"
    chosen = json.loads((runs / "ranked-a" / "config.json").read_text())["optim.lr_multiple"]
    validation = {
        multiple: sum(json.loads((runs / f"ranked-a-lr_{multiple}" / "DONE.json").read_text())["best_validation"])
        for multiple in (0.001, 1.0)
    }
    assert chosen == max(validation, key=lambda multiple: validation[multiple])
    table = (tmp_path / "whole" / "results.csv").read_text()
    assert "ranked-a-lr_" not in table  # the test set is not read while a learning rate is chosen
