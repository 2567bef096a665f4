"""Several real processes over loopback: what they save, what becomes of them when one dies, what starts them."""

import contextlib
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from tiny_runs import arguments, tiny

from hhh_jax import distributed, record, run
from hhh_jax.checkpoint import steps
from hhh_jax.data.loader import DocumentLoader, batch_rows
from hhh_jax.errors import UserError

HERE = Path(__file__).parent
HEARTBEAT = 60  # seconds; on a busy machine a process may well be silent for some


class Job:
    """`n` processes of a command that know of each other by flags, or by `environment` of each process."""

    def __init__(
        self, n: int, command: Sequence[object], environment: Callable[[int], dict[str, str]] | None = None
    ) -> None:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        self.processes = []
        for i in range(n):
            flags = [f"--coordinator=localhost:{port}", f"--num_processes={n}", f"--process_id={i}"]
            flags = [] if environment else flags
            flags = [*flags, f"--heartbeat_timeout_seconds={HEARTBEAT}"] if n > 1 else []
            quick = {"XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"}
            own = environment(i) if environment else {}
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, *map(str, command), *flags],
                    cwd=HERE.parent,
                    env={**os.environ, "PYTHONPATH": str(HERE.parent), **quick, **own},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def running(self) -> bool:
        return all(process.poll() is None for process in self.processes)

    def worker(self, i: int) -> int:
        """The process that process `i` started to do the work."""
        pid = self.processes[i].pid
        children: list[str] = []
        while self.running() and not children:
            time.sleep(0.01)
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        assert children, self.last_words()
        return int(children[0])

    def finish(self) -> list[tuple[int, str, str]]:
        """(exit status, standard output, standard error) of each."""
        try:
            outputs = [process.communicate(timeout=300) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [(process.returncode, *output) for process, output in zip(self.processes, outputs, strict=True)]

    def last_words(self) -> str:
        """What they said, to be shown when they should not have ended."""
        return "\n\n".join(f"exit status {code}: {errors[-2000:]}" for code, _, errors in self.finish())


def metrics(workdir: Path, since: float = 0.0) -> list[dict[str, Any]]:
    """The record, if it was written to since then."""
    path = workdir / "metrics.jsonl"
    return record.read_metrics(path) if path.exists() and path.stat().st_mtime > since else []


# What is saved


@pytest.mark.slow
def test_what_four_processes_save_two_and_one_restore_bit_for_bit(tmp_path):
    """The two find the newest checkpoint damaged, where only one of them looks, and agree on the one before."""
    program = [HERE / "many_processes.py", tmp_path]

    def results(n: int, mesh: list[int], save: int, **options: Any) -> tuple[list[list], str]:
        done = Job(n, [*program, json.dumps(mesh), save], **options).finish()
        assert [code for code, *_ in done] == [0] * n, done[0][2][-3000:]
        return [json.loads(out.splitlines()[-1]) for _, out, _ in done], "".join(error for *_, error in done)

    agreed = {"step": 2, "process": 0}
    assert results(4, [1, 2, 2], 1)[0] == [[2, True, agreed, 4]] * 4
    assert results(1, [1, 1, 1], 0)[0] == [[2, True, agreed, 1]]
    files = [path for path in (tmp_path / "2" / "state").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size - 1)

    def slurm(i: int) -> dict[str, str]:
        job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
        return job | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}

    printed, errors = results(2, [1, 1, 2], 0, environment=slurm)
    assert printed == [[1, True, {"step": 1, "process": 0}, 2]] * 2
    assert "2 is damaged and not used: state/" in errors and "not used: another process found that" in errors
    assert steps(tmp_path) == [1]


# What becomes of a run

TOTAL, EVERY = 200, 20  # updates; those between checkpoints


class Story(NamedTuple):
    """A run that is killed within a step, then while it saves, then told to stop, and ends.

    `stops` are the results of its three jobs of 4, 2 and 2 processes; `steps` the checkpoints that each left; `seconds`
    what it took the processes to end when one was killed.
    """

    workdir: Path
    stops: list[list[tuple[int, str, str]]]
    steps: list[list[int]]
    left: list[str]
    seconds: list[float]


@pytest.fixture(scope="module")
def config(corpus):
    """At a low rate: Adam makes of a last bit of a small gradient a whole update, and the difference would grow."""
    c = tiny("pretrain", corpus, tokens=4 * 64 * TOTAL, checkpoint__every_steps=EVERY, optim__lr=1e-4)
    c.seeds, c.eval.limit, c.eval.validation_limit = (0,), 8, 8
    return c


@pytest.fixture(scope="module")
def uninterrupted(config, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("uninterrupted")
    run.run(config, workdir, quiet=True)
    return workdir


@pytest.fixture(scope="module")
def story(config, tmp_path_factory) -> Story:
    workdir = tmp_path_factory.mktemp("story")
    divided = config.copy_and_resolve_references()
    divided.mesh.fsdp = 2
    command = ["-m", "hhh_jax.main", f"--workdir={workdir}", *arguments(divided)]
    stops, saved, seconds = [], [], []

    def end(job: Job) -> None:
        started = time.monotonic()
        stops.append(job.finish())
        seconds.append(time.monotonic() - started)
        saved.append(steps(workdir / "checkpoints"))

    def saving(since: float = 0.0) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            folders = list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))
            return [path.name for path in folders if path.stat().st_mtime > since]
        return []

    job = Job(4, command)
    while job.running() and len(metrics(workdir)) < EVERY + 5:
        time.sleep(0.01)
    assert job.running(), job.last_words()
    os.kill(job.worker(2), signal.SIGKILL)
    end(job)

    started = time.time()
    job = Job(2, command)
    worker = job.worker(0)
    while job.running() and not saving(started):
        time.sleep(0.001)
    assert job.running(), job.last_words()
    os.kill(worker, signal.SIGKILL)
    end(job)
    left = saving(started)

    started = time.time()
    job = Job(2, command)
    while job.running() and len(metrics(workdir, started)) <= saved[-1][-1] + 2:
        time.sleep(0.01)
    job.processes[1].terminate()
    end(job)

    stopped = workdir.with_name("ended")
    shutil.copytree(workdir, stopped)
    run.run(config, stopped, quiet=True)  # on this process's device
    return Story(stopped, stops, saved, left, seconds)


@pytest.mark.slow
def test_when_one_dies_the_others_stop_with_a_clear_last_line(story):
    for stopped, killed, seconds in zip(story.stops[:2], (2, 0), story.seconds[:2], strict=True):
        assert seconds < 60
        for i, (code, _, errors) in enumerate(stopped):
            last = errors.strip().splitlines()[-1]
            assert code == distributed.LOST, errors
            lost = "error: lost another process, which died or cannot be reached"
            assert last.startswith("error: killed by SIGKILL" if i == killed else lost)
            assert "start all processes again with the same command: the run goes on from its last checkpoint" in last


@pytest.mark.slow
def test_a_kill_within_a_save_leaves_the_checkpoint_before(story):
    first, second, _ = story.steps
    assert first and first[-1] % EVERY == 0
    assert len(story.left) == 1 and int(story.left[0].partition(".")[0]) == second[-1] + EVERY


@pytest.mark.slow
def test_sigterm_to_one_of_two_saves_in_both_and_exits_0(story):
    assert [code for code, *_ in story.stops[2]] == [0, 0], story.stops[2]
    step = story.steps[2][-1]
    assert f"stopped after step {step} of {TOTAL}: saved but not finished; the same command" in story.stops[2][0][2]
    assert story.steps[1][-1] < step < TOTAL


@pytest.mark.slow
def test_it_ends_as_an_uninterrupted_run_of_one_process(story, uninterrupted):
    """Within 1e-5: sums are taken in another order. What is counted is the same."""
    ours, theirs = metrics(story.workdir), metrics(uninterrupted)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == list(range(1, TOTAL + 1))
    for a, b in zip(ours, theirs, strict=True):
        assert a["tokens"] == b["tokens"] and a["lr"] == b["lr"]
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
    rows = [[json.loads(line) for line in (where / "rows.jsonl").open()] for where in (story.workdir, uninterrupted)]
    assert [row["value"] for row in rows[0]] == pytest.approx([row["value"] for row in rows[1]], rel=1e-5)
    assert rows[0][0]["config_sha"] == rows[1][0]["config_sha"]


# Who joins


@pytest.mark.parametrize(
    "given, message",
    [
        (("localhost:1", -1, 0), "give all of --coordinator"),
        (("", 2, 0), "give all of --coordinator"),
        (("localhost:1", 2, 2), "give HOST:PORT of process 0, and an id"),
        (("localhost", 2, 0), "give HOST:PORT of process 0, and an id"),
    ],
)
def test_flags_that_make_no_sense(given, message):
    with pytest.raises(UserError, match=message), distributed.joined(*given, 10):
        pass


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, False),
        ({"SLURM_STEP_NODELIST": "a", "SLURM_NTASKS": "1"}, False),  # a job of one task stays as it is
        ({"SLURM_STEP_NODELIST": "a,b", "SLURM_NTASKS": "2"}, True),
        ({"SLURM_NTASKS": "2"}, False),  # the batch script, before srun
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),  # a notebook in a pod
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
    ],
)
def test_environments_of_several_processes(monkeypatch, environment, expected):
    for name in list(os.environ):
        if name.startswith(("SLURM", "KUBERNETES", "JOB_")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert distributed.in_cluster() == expected


def test_rows_of_any_share_are_those_of_the_whole_batch():
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, 50, size).astype(np.int32) for size in rng.integers(1, 30, 20)]
    loader = DocumentLoader(documents, 12, 16, 0)
    whole, n_rows, tokens = batch_rows(loader, 3, (0, 1), np.arange)
    assert n_rows == 12 and tokens == (whole.segment_ids > 0).sum() == 2 * 12 * 16
    for rows in ([0, 1, 2], [3], [1, 2, 7, 8, 11], list(range(12))):
        part, n_rows, counted = batch_rows(loader, 3, (0, 1), lambda n, rows=rows: np.array(rows))
        assert (n_rows, counted) == (12, tokens)
        for a, b in zip(jax.tree.leaves(part), jax.tree.leaves(whole), strict=True):
            np.testing.assert_array_equal(a, b[:, rows])


def test_a_preemption_notice_is_a_sigterm(monkeypatch):
    """From a metadata server as Google Cloud's: FALSE until the machine is taken away."""
    asked: list[str | None] = []

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/computeMetadata/v1/instance/preempted"
            asked.append(self.headers["Metadata-Flavor"])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"FALSE" if len(asked) < 2 else b"TRUE")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("localhost", 0), Metadata) as server, distributed.StopSignal() as stop:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_HOST", f"localhost:{server.server_port}")
        assert not stop.before(1)
        distributed._await_preemption()
        assert stop.before(2) and stop.code == 0
        server.shutdown()
    assert asked == ["Google", "Google"]


def test_a_lost_process_is_told_from_other_errors():
    assert distributed.is_loss(ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer"))
    assert distributed.is_loss(TimeoutError("Timed out while waiting for async_commit_complete barrier."))
    assert not distributed.is_loss(ValueError("operands could not be broadcast together"))
    assert re.fullmatch(r"[\w ,:]+checkpoint", distributed.AGAIN)


def test_where_nothing_is_left_to_save_it_stops_at_once(capsys):
    with distributed.StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.before(1)
        with pytest.raises(distributed.Stopped) as stopped:
            stop.at_once("trained and saved")
        assert stopped.value.code == 0
    with distributed.StopSignal() as stop:
        stop.at_once("trained and saved")
        with pytest.raises(distributed.Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
    assert capsys.readouterr().err == "trained and saved\n" * 2
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_second_ctrl_c_stops_without_saving(capsys):
    with distributed.StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.before(1) and stop.code == 130
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
    assert "Ctrl-C again stops at once" in capsys.readouterr().err
