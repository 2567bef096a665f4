"""launch/slurm.sh against a SLURM cluster that preempts and whose jobs fail."""

import json
import shlex
import subprocess

import pytest
from fake_checkout import Checkout


def run(checkout: Checkout, command: str, *options: str) -> subprocess.CompletedProcess[str]:
    return checkout.run("slurm.sh", "run", "--backoff=0", *options, "--", "bash", "-c", command)


def codes(checkout: Checkout) -> list[list[int]]:
    """Exit codes of each job's tasks."""
    return [json.loads(path.read_text()) for path in sorted(checkout.cloud.glob("job.*"))]


def logs(checkout: Checkout, pattern: str) -> dict[str, str]:
    folder = checkout.root / "runs/slurm"
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.glob(pattern))}


def test_one_process_a_gpu_with_a_log_each(checkout: Checkout) -> None:
    done = run(checkout, "echo $SLURM_PROCID of $SLURM_NTASKS", "--nodes=2", "--gpus=2", "--time=1:00", "--name=big",
               "--sbatch_flag=--partition=gpu")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert codes(checkout) == [[0]]
    (job,) = checkout.calls("sbatch")
    assert {"--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--time=1:00", "--partition=gpu"} < set(job)
    assert {"--requeue", "--signal=TERM@120", f"--chdir={checkout.root}"} < set(job)
    (step,) = checkout.calls("srun")
    assert "--gpu-bind=none" in step, "JAX chooses the GPU by SLURM_LOCALID among all of the node"
    assert logs(checkout, "big-1/*") == {f"big-1/task-{i}.log": f"{i} of 4\n" for i in range(4)}


def test_a_job_told_to_stop_is_queued_again_and_goes_on(checkout: Checkout) -> None:
    """The program saves and exits 0 at SIGTERM, which is not taken for being finished."""
    program = """saved=$FAKE_CLOUD/saved.$SLURM_PROCID
        trap 'echo "saved at $n"; exit 0' TERM
        n=$(cat $saved 2>/dev/null || echo 0)
        while [ $n -lt 4 ]; do
            n=$((n + 1)); echo $n > $saved; echo "step $n"
            if [ $n = 2 ]; then if [ $SLURM_PROCID = 1 ]; then touch $FAKE_CLOUD/preempt; fi; sleep 5 & wait; fi
        done"""
    done = run(checkout, program, "--nodes=2", "--max_restarts=0")
    assert done.returncode == 0 and codes(checkout) == [[0]]
    assert checkout.calls("scontrol") == [["scontrol", "requeue", "1"]]
    task = logs(checkout, "*/task-1.log")["hhh_jax-1/task-1.log"].splitlines()
    assert [line for line in task if line.startswith("s")] == ["step 1", "step 2", "saved at 2", "step 3", "step 4"]


@pytest.mark.parametrize(("code", "starts"), [(3, 2), (2, 1), (127, 1)])
def test_failures_are_started_again_and_errors_to_mend_are_not(checkout: Checkout, code: int, starts: int) -> None:
    run(checkout, f"echo start; exit {code}", "--max_restarts=1")
    assert codes(checkout) == [[code]]
    assert logs(checkout, "*/task-0.log") == {"hhh_jax-1/task-0.log": "start\n" * starts}
    assert len(checkout.calls("scontrol")) == 0


def test_a_study_is_an_array_of_shares_and_a_job_that_gathers(checkout: Checkout) -> None:
    """A share that fails is left to the last job."""
    python = checkout.root / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$*" >> "$FAKE_CLOUD/ran"\ncase "$*" in *=1/3) exit 1 ;; esac\n')
    python.chmod(0o755)
    given = ["--config=configs/studies/embedded.py", "--workdir=runs/a study"]
    done = checkout.run("slurm.sh", "study", "--shards=3", "--cpus=2", "--backoff=0", "--", *given)
    assert done.returncode == 0, done.stderr
    assert codes(checkout) == [[0, 1, 0], [0]]
    command = "-m hhh_jax.study --config=configs/studies/embedded.py --workdir=runs/a study"
    ran = (checkout.cloud / "ran").read_text().splitlines()
    assert ran == [*(f"{command} --shard={i}/3" for i in range(3)), command]
    array, last = checkout.calls("sbatch")
    assert "--array=0-2" in array and "--dependency=afterany:1" in last
    assert set(logs(checkout, "*.log")) == {"hhh_jax-1_0.log", "hhh_jax-1_1.log", "hhh_jax-1_2.log", "hhh_jax-2.log"}
    assert "slurm.sh: submitted what gathers them: job 2" in done.stderr.splitlines()


def test_a_dry_run_prints_commands_that_do_it(checkout: Checkout) -> None:
    done = run(checkout, "echo it\\'s > $FAKE_CLOUD/proof", "--dry_run", "--gpus=1")
    assert done.returncode == 0 and checkout.calls() == [] and not (checkout.root / "runs").exists()
    lines = done.stdout.splitlines()
    inside = lines.index("# in each job:")
    assert [line.split()[0] for line in lines[:inside]] == ["mkdir", "sbatch"]
    assert [line.split()[0] for line in lines[inside + 1 :]] == ["bash", "mkdir", "srun"]
    for line in lines[:inside]:
        subprocess.run(["bash", "-c", line], cwd=checkout.root, env=checkout.environment, check=True, timeout=20)
    assert (checkout.cloud / "proof").read_text() == "it's\n"
    printed = shlex.split(lines[-1].replace("NAME-JOB", "hhh_jax-1"))
    assert checkout.calls("srun") == [printed]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "--nodes=2"], "give the command after --"),
        (["run", "--nodez=2", "--", "true"], "no option --nodez=2"),
        (["run", "--nodes=some", "--", "true"], "--nodes=some: give a whole number"),
        (["study", "--", "--config=x"], "--shards=N"),
        (["study", "--shards=2", "--gpus=4", "--", "--config=x"], "--gpus=0 or 1"),
        (["go"], "no command 'go'"),
    ],
)
def test_errors_of_the_user_are_one_line(checkout: Checkout, arguments: list[str], expected: str) -> None:
    done = checkout.run("slurm.sh", *arguments)
    assert done.returncode == 2 and checkout.calls() == []
    assert expected in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("action", "taken"), [("run", 0), ("study", 0), ("study", 1)])
def test_a_refused_submission_is_an_error(checkout: Checkout, action: str, taken: int) -> None:
    (checkout.cloud / "refuse").write_text(str(taken))
    shares = ["--shards=2"] if action == "study" else []
    done = checkout.run("slurm.sh", action, *shares, "--", "--config=x" if shares else "true")
    assert done.returncode == 1 and "Batch job submission failed" in done.stderr
    assert done.stderr.count("submitted") == taken
