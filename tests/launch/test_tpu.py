"""launch/tpu.sh against a Cloud TPU that fails, hangs and preempts."""

import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from fake_checkout import Checkout

ACTIVE = ["PROVISIONING", "ACTIVE"]
WHERE = ["--name=big", "--zone=us-east5-a"]
RUN = ["run", *WHERE, "--type=v5p-16", "--poll=0.3", "--backoff=0"]
QUEUE = ("gcloud", "compute", "tpus", "queued-resources")
CREATE, DELETE = (*QUEUE, "create"), (*QUEUE, "delete")


def run(checkout: Checkout, command: str, *options: str) -> subprocess.CompletedProcess[str]:
    return checkout.run("tpu.sh", *RUN, *options, "--", "bash", "-c", command)


def logs(checkout: Checkout) -> Path:
    return checkout.root / "runs/tpu/big"


def attempts(checkout: Checkout) -> list[dict[str, list[str]]]:
    """What each start of the command wrote, by worker; the first line says which worker it is."""
    folders = sorted(logs(checkout).glob("2*"), key=lambda folder: folder.stat().st_mtime)
    return [{log.name: log.read_text().splitlines()[1:] for log in folder.glob("big*.log")} for folder in folders]


def wait_for(checkout: Checkout, name: str, text: str = "") -> None:
    """Until a file of the launcher's or the cloud's has a text in it."""
    deadline = time.monotonic() + 60
    while not any(
        text in path.read_text() for path in (*logs(checkout).glob(f"2*/{name}"), *checkout.cloud.glob(name))
    ):
        assert time.monotonic() < deadline, f"no {text!r} in {name}"
        time.sleep(0.05)


def test_runs_on_every_worker_of_every_slice_and_gathers_their_logs(checkout: Checkout) -> None:
    """Also when a connection breaks: the job goes on, is followed again, and is not started twice."""
    checkout.scenario(workers=2, ahead=["ACCEPTED", "WAITING_FOR_RESOURCES", *ACTIVE], drop=["big-1:0"])
    steps = """echo x >> $FAKE_CLOUD/started.$FAKE_NODE.$FAKE_WORKER; git rev-parse HEAD
        for i in 1 2 3 4 5 6 7 8; do echo "  step $i of  'this'"; sleep 0.1; done; echo ouch >&2"""
    done = run(checkout, steps, "--slices=2", "--create_flag=--reserved")
    assert done.returncode == 0, done.stderr
    assert "costs money until you give it back" in done.stderr
    (create,) = checkout.calls(*CREATE)
    assert {"--node-count=2", "--node-prefix=big", "--accelerator-type=v5p-16", "--reserved"} < set(create)
    assert {"--runtime-version=v2-alpha-tpuv5", "--valid-until-duration=86400s"} < set(create)
    assert "--spot" not in create
    commit = subprocess.check_output(["git", "-C", checkout.root, "rev-parse", "HEAD"], text=True).strip()
    expected = [commit, *(f"  step {i} of  'this'" for i in range(1, 9)), "ouch"]
    assert attempts(checkout) == [{f"big-{s}.worker{w}.log": expected for s in range(2) for w in range(2)}]
    assert (checkout.cloud / "dropped.big-1:0").exists()
    assert all(path.read_text() == "x\n" for path in checkout.cloud.glob("started.*"))
    assert done.stdout.splitlines()[-10:] == expected, "the first worker's output is shown"


@pytest.mark.slow
def test_a_preempted_spot_tpu_is_created_again_and_the_command_goes_on(checkout: Checkout) -> None:
    """The program saves and exits 0 at SIGTERM, which is not taken for being finished."""
    checkout.scenario(workers=2, ahead=ACTIVE)
    program = """saved=$FAKE_CLOUD/saved.$FAKE_WORKER
        trap 'echo "saved at $n"; exit 0' TERM
        n=$(cat $saved 2>/dev/null || echo 0)
        while [ $n -lt 6 ]; do
            n=$((n + 1)); echo $n > $saved; echo "step $n"
            if [ $n = 4 ] && [ $FAKE_WORKER = 1 ]; then touch $FAKE_CLOUD/preempt; sleep 5 & wait; fi
            sleep 0.1
        done"""
    done = run(checkout, program, "--spot", "--max_restarts=0", "--delete_when_done")
    assert done.returncode == 0, done.stderr
    assert "preempted" in done.stderr
    assert len(checkout.calls(*CREATE)) == 2 and all("--spot" in create for create in checkout.calls(*CREATE))
    assert len(checkout.calls(*DELETE)) == 2, "the preempted one and, at the end, the other"
    first, second = (attempt["big.worker1.log"] for attempt in attempts(checkout))
    assert "step 4" in first and "step 6" not in first
    assert second == ["step 5", "step 6"]


@pytest.mark.slow
def test_a_failure_is_named_and_started_again_on_the_same_tpus(checkout: Checkout) -> None:
    checkout.scenario(workers=2, ahead=ACTIVE)
    program = """mkdir $FAKE_CLOUD/again.$FAKE_WORKER 2>/dev/null || exit 0
        if [ $FAKE_WORKER = 1 ]; then echo "no such luck"; exit 3; fi
        sleep 0.5; echo "another" "process died"; exit 1"""
    done = run(checkout, program)
    assert done.returncode == 0, done.stderr
    assert len(checkout.calls(*CREATE)) == 1
    assert "big.worker1.exit: 3" in done.stderr and "no such luck" in done.stderr
    assert "another process died" not in done.stderr, "which is a consequence"


@pytest.mark.slow
def test_workers_that_go_on_after_another_failed_are_ended(checkout: Checkout) -> None:
    checkout.scenario(workers=2, ahead=ACTIVE)
    program = """if [ $FAKE_WORKER = 0 ]; then echo $$ > $FAKE_CLOUD/pid; exec sleep 1000; fi
        until [ -e $FAKE_CLOUD/pid ]; do sleep 0.1; done; exit 3"""
    done = run(checkout, program, "--max_restarts=0", "--stop_timeout=1")
    assert done.returncode == 1 and "failed 1 times in a row" in done.stderr
    assert "did not end in 1 s after another worker had failed: big.worker0" in done.stderr
    assert not Path("/proc", (checkout.cloud / "pid").read_text().strip()).exists()


def test_an_error_of_the_user_is_not_tried_again(checkout: Checkout) -> None:
    checkout.scenario(workers=2, ahead=ACTIVE)
    done = run(checkout, "echo 'error: no config file x.py' >&2; exit 2")
    assert done.returncode == 2
    assert "error: no config file x.py" in done.stderr
    assert len(list(logs(checkout).glob("2*"))) == 1


def test_a_worker_that_does_not_start_is_named(checkout: Checkout) -> None:
    checkout.scenario(workers=3, ahead=ACTIVE, hang=["big:1"])
    done = run(checkout, "true", "--start_timeout=1")
    assert done.returncode == 1
    assert re.search(r"did not start in 1 s:.* big\.worker1;", done.stderr.replace(" big.worker2", ""))
    assert "delete --name=big --zone=us-east5-a" in done.stderr, "the TPUs are still there"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"create_error": "RESOURCE_EXHAUSTED: Quota limit 'TPUV5pPod' has been exceeded. Limit: 0"}, "Quota limit"),
        ({"ahead": ["FAILED"]}, "failed: no capacity in this zone"),
        ({"ahead": ["WAITING_FOR_RESOURCES"]}, "no TPUs in 1 s"),
    ],
)  # fmt: skip
def test_tpus_that_are_not_to_be_had(checkout: Checkout, values: dict[str, object], expected: str) -> None:
    checkout.scenario(workers=1, **values)
    done = run(checkout, "true", "--wait=1")
    assert done.returncode == 1
    assert expected in done.stderr
    assert not (checkout.cloud / "queue.json").exists(), "nothing waits that would cost money later"


def test_an_interrupted_launcher_follows_what_it_started(checkout: Checkout) -> None:
    checkout.scenario(workers=2, ahead=ACTIVE)
    program = "echo begun; while [ ! -e $FAKE_CLOUD/go ]; do sleep 0.1; done; echo over"
    launcher = checkout.start("tpu.sh", *RUN, "--", "bash", "-c", program)
    for worker in (0, 1):
        wait_for(checkout, f"big.worker{worker}.log", "begun")
    launcher.send_signal(signal.SIGINT)
    _, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 130 and "what was started goes on" in err and "delete --name=big" in err

    other = run(checkout, "echo something else")
    assert other.returncode == 2 and "big is at another command" in other.stderr

    other = run(checkout, program, "--slices=2")
    assert other.returncode == 2 and "big has 1 of v5p-16, not 2 of v5p-16" in other.stderr

    (checkout.cloud / "go").touch()
    again = run(checkout, program)
    assert again.returncode == 0, again.stderr
    assert attempts(checkout) == [{f"big.worker{w}.log": ["begun", "over"] for w in range(2)}]


def test_ctrl_c_gives_the_tpus_back_if_told_so(checkout: Checkout) -> None:
    checkout.scenario(workers=1, ahead=["WAITING_FOR_RESOURCES"])
    launcher = checkout.start("tpu.sh", *RUN, "--delete_when_done", "--", "true")
    wait_for(checkout, "queue.json", "WAITING")
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=60)
    assert launcher.returncode == 130
    assert not (checkout.cloud / "queue.json").exists()


@pytest.mark.slow
def test_status_logs_stop_and_delete(checkout: Checkout) -> None:
    """Worker 1 saves when it is told to stop, worker 0 has to be killed."""
    checkout.scenario(workers=2, ahead=ACTIVE)
    program = """if [ $FAKE_WORKER = 0 ]; then trap '' TERM; else trap 'echo saved; exit 0' TERM; fi
        echo begun; sleep 1000 & wait; sleep 1000"""
    launcher = checkout.start("tpu.sh", *RUN, "--", "bash", "-c", program)
    for worker in (0, 1):
        wait_for(checkout, f"big.worker{worker}.log", "begun")
    status = checkout.run("tpu.sh", "status", *WHERE)
    assert "ACTIVE" in status.stderr
    assert status.stdout.splitlines() == ["big.worker0: running: begun", "big.worker1: running: begun"]
    checkout.run("tpu.sh", "stop", *WHERE, "--poll=0.3", "--stop_timeout=1")
    _, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 1 and "ended by tpu.sh stop" in err
    next(logs(checkout).glob("2*/big.worker1.log")).unlink()
    gathered = checkout.run("tpu.sh", "logs", *WHERE, "--poll=0.3").stdout.splitlines()
    assert "big.worker0: exit 130: begun" in gathered and "big.worker1: exit 130: saved" in gathered
    assert checkout.run("tpu.sh", "delete", *WHERE).returncode == 0
    assert not (checkout.cloud / "queue.json").exists()


def test_what_was_deleted_is_not_created_again(checkout: Checkout) -> None:
    checkout.scenario(workers=1, ahead=ACTIVE)
    launcher = checkout.start("tpu.sh", *RUN, "--", "sleep", "100")
    wait_for(checkout, "big.worker0.log")
    assert checkout.run("tpu.sh", "delete", *WHERE).returncode == 0
    _, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 1 and "big was deleted" in err and "costs money" not in err
    assert len(checkout.calls(*CREATE)) == 1


def test_a_dry_run_prints_commands_that_do_it(checkout: Checkout) -> None:
    checkout.scenario(workers=1, ahead=["ACTIVE"])
    done = run(checkout, "echo it\\'s $((1 + 1)) > $FAKE_CLOUD/proof", "--dry_run", "--delete_when_done")
    assert done.returncode == 0, done.stderr
    assert checkout.calls() == [] and not logs(checkout).exists()
    lines = done.stdout.splitlines()
    verbs = [re.search(r" (create|describe|delete|scp|ssh) ", line)[1] for line in lines]  # type: ignore[index]
    assert verbs == ["describe", "create", "describe", "describe", "ssh", "create", "scp", "ssh", "ssh", "delete"]
    logs(checkout).mkdir(parents=True)
    for line in lines:
        subprocess.run(["bash", "-c", line], cwd=checkout.root, env=checkout.environment, timeout=20, check=False)
    assert (checkout.cloud / "proof").read_text() == "it's 2\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "--type=v5p-8", "--zone=z", "--", "true"], "give --name=NAME and --zone=ZONE"),
        ([*RUN], "give the command after --"),
        ([*RUN, "--sloces=2", "--", "true"], "no option --sloces=2"),
        ([*RUN, "--slices=two", "--", "true"], "--slices=two: give a whole number"),
        ([*RUN, "--type=tpu7x-8", "--", "true"], "gke_jobset.yaml"),
        ([*RUN, "--type=h100", "--", "true"], "give --type, as"),
        (["start"], "no command 'start'"),
    ],
)
def test_errors_of_the_user_are_one_line(checkout: Checkout, arguments: list[str], expected: str) -> None:
    done = checkout.run("tpu.sh", *arguments)
    assert done.returncode == 2 and checkout.calls() == []
    assert expected in done.stderr and len(done.stderr.splitlines()) == 1
