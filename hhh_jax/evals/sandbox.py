"""Runs programs that nobody has read, on tests, and says whether they are right. Only where that was asked for.

A program is a function that tests call. Its code runs in one confined process, the tests in another
(`hhh_jax.evals.confinement` says what confines them, `hhh_jax.evals.sandbox_roles` how they talk): the code is asked
for plain values and never meets the tests, so it can be wrong but cannot claim to be right. Where the kernel gives no
such confinement nothing is run, and a UserError says what is missing.

The tests see copies. Arguments may be changed in place, and shared or returned, as in one process, but tests cannot

  * hand over functions, open files, or instances of classes other than those that the tests or the prompt define at
    the top level (such a test is an error of the harness, not the program's);
  * take part of an endless generator, or look at what was printed, a function's attributes or a module's state;
  * have the same object seen by two calls.

Programs cannot start processes or threads, use the network, or import what the standard library lacks.
"""

from __future__ import annotations

import concurrent.futures
import functools
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
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
    pool = concurrent.futures.ThreadPoolExecutor(workers or len(os.sched_getaffinity(0)))
    try:
        return list(pool.map(lambda program: _run(program, limits), programs))
    finally:
        pool.shutdown(cancel_futures=True)


@functools.cache
def require_isolation() -> None:
    """Raises UserError, which says what is missing, where programs cannot be confined."""
    verdict = Verdict("error", "harness", f"{sys.platform}, and it rests on Linux")
    if sys.platform == "linux":
        one = Program("def one(): return 1", "one", "def check(candidate):\n    assert candidate() == 1")
        verdict = _run(one, _LIMITS)
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


def _run(program: Program, limits: Limits) -> Verdict:
    """A program's verdict. Both its processes have ended by then."""
    calls, answers, reports = os.pipe(), os.pipe(), os.pipe()
    started: list[subprocess.Popen[bytes]] = []
    ends: list[_End] = []
    try:
        code = {"code": program.code, "entry_point": program.entry_point}
        tests = {"setup": program.setup, "tests": program.tests, "entry_point": program.entry_point}
        started.append(_start("candidate", code, limits, (calls[0], answers[1])))
        started.append(_start("judge", tests, limits, (calls[1], answers[0], reports[1])))
        for fd in (*calls, *answers, reports[1]):
            os.close(fd)
        said, late = _read(reports[0], limits.wall_s)
    finally:
        ends = [_end(process) for process in started]
        for fd in (*calls, *answers, *reports) if len(started) < 2 else (reports[0],):
            os.close(fd)
    return _verdict(said, late, ends[0], ends[1], limits)


def _start(role: str, job: dict[str, Any], limits: Limits, fds: tuple[int, ...]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-sSP", "-c", f"{_BOOT}; sandbox_roles.main()", _ROOT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=fds,
        env={"PYTHONHASHSEED": "0"},  # the order of sets, so that two runs agree
        cwd="/",
        start_new_session=True,
    )
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps({"role": role, "limits": limits, "fds": fds, **job}).encode() + b"\n")
        process.stdin.flush()
    except BrokenPipeError:  # its output says why
        pass
    return process


def _end(process: subprocess.Popen[bytes]) -> _End:
    """Ends what a supervisor supervises, and says how it went."""
    try:
        output, _ = process.communicate(timeout=_END_S)  # closes its standard input
    except subprocess.TimeoutExpired:
        process.kill()  # the kernel ends the process with its supervisor
        output, _ = process.communicate()
    *problems, last = output.decode(errors="replace").strip().splitlines() or [""]
    try:
        return _End(**json.loads(last), problem=problems[-1] if problems else "")
    except (TypeError, ValueError):
        return _End(problem=last or f"its supervisor ended with status {process.returncode}")


def _read(fd: int, wall_s: float) -> tuple[list[Any], bool]:
    """The reports of the judge, and whether it was late. Time counts from the start of the program's code."""
    poll, data, deadline = select.poll(), b"", time.monotonic() + _START_S
    poll.register(fd, select.POLLIN)
    while not (late := not poll.poll(max(0.0, deadline - time.monotonic()) * 1000)):
        if not (more := os.read(fd, 2**16)):
            break
        if not data:
            deadline = time.monotonic() + wall_s
        data += more
    return [json.loads(line) for line in data.split(b"\n")[:-1]], late


def _verdict(said: list[Any], late: bool, candidate: _End, judge: _End, limits: Limits) -> Verdict:
    """The judge's verdict, or else what can be told from how the two ended."""
    for name, end in (("program", candidate), ("tests", judge)):
        if end.problem:
            return Verdict("error", "harness", f"the {name} could not be started: {end.problem}"[:300])
    spent = limits.cpu_s - 0.1
    used_up = Verdict("failed", "timeout", f"{limits.cpu_s} s of CPU time")
    if said and isinstance(said[-1], list):
        verdict = Verdict(*said[-1])
        if verdict.category != "ended" or candidate.stopped or not candidate.signal:
            return verdict
        if candidate.cpu_s >= spent:
            return used_up
        if candidate.signal == signal.SIGKILL:
            return Verdict("error", "harness", "the kernel killed the program: is memory short?")
        return verdict._replace(detail=f"the program crashed: {signal.Signals(candidate.signal).name}")
    if not said or said[-1] == "testing":
        return Verdict("error", "harness", "the tests did not come to call the function")
    if max(candidate.cpu_s, judge.cpu_s) >= spent:
        return used_up
    if late:
        return Verdict("failed", "timeout", f"{limits.wall_s:g} s")
    return Verdict("failed", "wrong answer", f"the tests ended without a verdict, by signal {judge.signal}")
