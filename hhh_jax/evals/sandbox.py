"""Runs programs that nobody has read, on tests, and says whether they are right. Only where that was asked for.

A program is a function that tests call. Its code runs in one confined process, the tests in another
(`hhh_jax.evals.confinement` says what confines them, `hhh_jax.evals.sandbox_roles` how they talk): the code is asked
for plain values and never meets the tests, so it can be wrong but cannot claim to be right. Where the kernel gives no
such confinement nothing is run, and a UserError says what is missing.

The tests see copies. Arguments may be changed in place, and shared or returned, as in one process, but tests cannot

  * hand over functions, open files, or instances of classes other than those that the tests or the prompt define at
    the top level (such a test is an error of the harness, not the program's);
  * take part of an endless generator, or look at what was printed, a function's attributes or a module's state;
  * have the same object seen by two calls, or see what a call that raised did to its arguments.

Programs cannot start processes or threads, use the network, or import what the standard library lacks.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hhh_jax.errors import UserError
from hhh_jax.evals.confinement import Limits

__all__ = ["Limits", "Program", "Verdict", "require_isolation", "run_many"]

_ROOT = str(Path(__file__).resolve().parents[2])
_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from hhh_jax.evals import sandbox_roles; del sys.path[0]"
_LIMITS = Limits()
_START_S = 60.0  # for the two processes to start and load the tests
_END_S = 10.0  # for a supervisor to end what it supervises


class Program(NamedTuple):
    """A function and its tests.

    Attributes:
      code: untrusted source that defines the function.
      entry_point: the function's name.
      tests: trusted source that defines ``check(candidate)``, which raises what the function does wrong.
      setup: trusted source that the tests may use, run before them; a prompt, which may lack its function's body. The
        function's name then stands for the function of `code`.
    """

    code: str
    entry_point: str
    tests: str
    setup: str = ""


class Verdict(NamedTuple):
    """What came of a program.

    Attributes:
      outcome: passed, failed, or error: nothing is known of the program, for the harness or the tests failed.
      category: of failed: wrong answer, exception, timeout, memory, syntax, or ended (it left, crashed, or sent what
        is no answer). Of error: harness. Otherwise empty.
      detail: for people.
    """

    outcome: str
    category: str = ""
    detail: str = ""


class _End(NamedTuple):
    """How a confined process ended; `problem` if it did not come to run."""

    stopped: bool = False
    signal: int = 0
    cpu_s: float = 0.0
    problem: str = ""


def run_many(
    programs: Iterable[Program], *, allow_untrusted: bool, limits: Limits = _LIMITS, workers: int | None = None
) -> list[Verdict]:
    """The programs' verdicts, in order, of which `workers` (one a core) run at a time.

    Raises UserError where `allow_untrusted` is false, which a flag of the user's sets, or programs cannot be confined.
    """
    if not allow_untrusted:
        raise UserError("this runs code that a model wrote, in a sandbox: allow it with --run_untrusted_code")
    require_isolation()
    with _starter() as start:
        pool = concurrent.futures.ThreadPoolExecutor(workers or len(os.sched_getaffinity(0)))
        try:
            return list(pool.map(lambda program: _run(program, limits, start), programs))
        finally:
            pool.shutdown(cancel_futures=True)


@functools.cache
def require_isolation() -> None:
    """Raises UserError, which says what is missing, where programs cannot be confined."""
    verdict = Verdict("error", "harness", f"{sys.platform}, and it rests on Linux")
    if sys.platform == "linux":
        one = Program("def one(): return 1", "one", "def check(candidate):\n    assert candidate() == 1")
        with _starter() as start:
            verdict = _run(one, _LIMITS, start)
    if verdict.outcome != "passed":
        raise UserError(f"generated code is not run, for it cannot be confined here ({verdict.detail}). {_advice()}")


def _advice() -> str:
    need = "It takes Linux 5.12 or later on x86-64 or arm64, and"
    if os.geteuid() == 0:
        return (
            f"{need} for root CAP_SYS_ADMIN and unshare, mount and pivot_root allowed. A container needs --privileged, "
            "or --cap-add=SYS_ADMIN with --security-opt seccomp=unconfined and apparmor=unconfined"
        )
    return (
        f"{need} user namespaces for ordinary users: sysctl user.max_user_namespaces above 0, and where there are "
        "such, kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0. Or run it as root"
    )


class _Process(NamedTuple):
    """A confined process, for as long as `control` is open; `status` is where it says how it ended."""

    control: int
    status: int


Start = Callable[[dict[str, Any], tuple[int, ...]], _Process]


@contextlib.contextmanager
def _starter() -> Iterator[Start]:
    """A function that starts a confined process for a job, which gets the descriptors. The interpreter starts once."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-sSP", "-c", f"{_BOOT}; sandbox_roles.main()", _ROOT],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            env={"PYTHONHASHSEED": "0"},  # the order of sets, so that two runs agree
            cwd="/",
            start_new_session=True,
        )

    def start(job: dict[str, Any], fds: tuple[int, ...]) -> _Process:
        job_end, control = os.pipe()
        status, status_end = os.pipe()
        try:
            socket.send_fds(ours, [b"."], [job_end, status_end, *fds])
        finally:
            os.close(job_end)
            os.close(status_end)
        with contextlib.suppress(BrokenPipeError), os.fdopen(os.dup(control), "wb") as stream:
            stream.write(json.dumps(job).encode() + b"\n")
        return _Process(control, status)

    try:
        yield start
    finally:
        ours.close()
        os.killpg(process.pid, signal.SIGKILL)  # and any supervisor that is left: what they supervise ends with them
        process.wait()


def _run(program: Program, limits: Limits, start: Start) -> Verdict:
    """A program's verdict. Both its processes have ended by then."""
    calls, answers, reports = os.pipe(), os.pipe(), os.pipe()
    ours = {*calls, *answers, *reports}
    code = {"role": "candidate", "limits": limits, "code": program.code, "entry_point": program.entry_point}
    tests = {**code, "role": "judge", "code": None, "setup": program.setup, "tests": program.tests}
    processes: list[_Process] = []
    try:
        processes.append(start(code, (calls[0], answers[1])))
        processes.append(start(tests, (calls[1], answers[0], reports[1])))
        for fd in ours - {reports[0]}:
            os.close(fd)
        ours = {reports[0]}
        said, late = _read(reports[0], _START_S, limits.wall_s)  # the first is when the code starts
    except OSError as error:
        return Verdict("error", "harness", f"no process could be started: {error}")
    finally:
        ends = [_end(process) for process in processes]
        for fd in ours:
            os.close(fd)
    return _verdict([json.loads(line) for line in said], late, ends[0], ends[1], limits)


def _end(process: _Process) -> _End:
    """Ends a confined process, and says how it went."""
    os.close(process.control)
    lines, late = _read(process.status, _END_S, _END_S)
    os.close(process.status)
    *problems, last = lines or ["it does not end" if late else "its supervisor was killed"]
    try:
        return _End(**json.loads(last), problem=problems[-1] if problems else "")
    except (TypeError, ValueError):
        return _End(problem=last)


def _read(fd: int, first_s: float, then_s: float) -> tuple[list[str], bool]:
    """The lines up to the end, and whether that was not reached in time: `then_s` seconds from the first."""
    poll, data, deadline = select.poll(), b"", time.monotonic() + first_s
    poll.register(fd, select.POLLIN)
    while not (late := not poll.poll(max(0.0, deadline - time.monotonic()) * 1000)):
        if not (more := os.read(fd, 2**16)):
            break
        if not data:
            deadline = time.monotonic() + then_s
        data += more
    return data.decode(errors="replace").splitlines(), late


def _verdict(said: list[Any], late: bool, candidate: _End, judge: _End, limits: Limits) -> Verdict:
    """The judge's verdict, or else what can be told from how the two ended."""
    for name, end in (("program", candidate), ("tests", judge)):
        if end.problem:
            return Verdict("error", "harness", f"the {name} could not be started: {end.problem}"[:300])
    used_up = Verdict("failed", "timeout", f"{limits.cpu_s} s of CPU time")
    if said and isinstance(said[-1], list):
        verdict = Verdict(*said[-1])
        if verdict.category != "ended" or not candidate.signal:
            return verdict
        if candidate.signal != signal.SIGKILL:
            return verdict._replace(detail=f"the program crashed: {signal.Signals(candidate.signal).name}")
        if _out_of_time(candidate, limits):
            return used_up
        if candidate.stopped:
            return verdict
        return Verdict("error", "harness", "the kernel killed the program: is memory short?")
    if not said or said[-1] == "testing":
        return Verdict("error", "harness", "the tests did not come to call the function")
    if _out_of_time(candidate, limits) or _out_of_time(judge, limits):
        return used_up
    if late:
        return Verdict("failed", "timeout", f"{limits.wall_s:g} s")
    return Verdict("failed", "wrong answer", f"the tests ended without a verdict, by signal {judge.signal}")


def _out_of_time(end: _End, limits: Limits) -> bool:
    """Whether the limit on CPU time ended a process. Its time is more exact than what the kernel compares with it."""
    return end.signal == signal.SIGKILL and end.cpu_s >= limits.cpu_s * (0.95 if end.stopped else 0.5)
