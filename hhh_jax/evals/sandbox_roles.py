"""The two processes of a checked program, each in a sandbox of its own: one answers calls, the other asks.

The candidate has the untrusted code, and nothing else: it receives calls and sends back what the function returned or
raised, as plain values. The judge has the tests, and calls. So nothing that the untrusted code does within its process
(leave it, print, replace builtins, read frames and memory, write on any file descriptor) can be more than a wrong
answer. The judge reports over a pipe of its own.

`hhh_jax.evals.sandbox` starts this module's `main` as a program: standard library only.
"""

from __future__ import annotations

import builtins
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, BinaryIO, NoReturn

from hhh_jax.evals.confinement import Limits, supervise
from hhh_jax.evals.plain_values import BadMessage, Heap, receive, send

_TESTS = "<tests>"


def main() -> None:
    """Starts a supervisor for each set of descriptors that comes over the socket at standard input, until it closes.

    The first two of a set are the supervisor's standard input and output, the rest its role's. This process reads no
    job, so the processes that it forks have none in memory but their own.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for supervisors
    requests = socket.socket(fileno=0)
    while True:
        message, fds, _, _ = socket.recv_fds(requests, 1, 16)
        if not message:
            return
        if os.fork() == 0:
            requests.detach()
            _supervise_job(fds)
        for fd in fds:
            os.close(fd)


def _supervise_job(fds: list[int]) -> NoReturn:
    """Reads a job, one line of JSON, and does it in a confined process. Ends this process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, fd in enumerate((fds[0], fds[1], fds[1])):
        os.dup2(fd, number)
    os.close(fds[0])
    os.close(fds[1])
    try:
        job = json.loads(sys.stdin.readline())
        limits = Limits(*job["limits"])
        roles: dict[str, Callable[..., None]] = {"candidate": candidate, "judge": judge}
        supervise(lambda: roles[job["role"]](job, limits, *fds[2:]), limits, fds[2:])
        sys.stdout.flush()
    except BaseException as error:
        os.write(1, f"{error}\n".encode())
    finally:
        os._exit(0)


# ---- the candidate: untrusted from the moment that its code runs ----


def candidate(job: dict[str, Any], limits: Limits, calls_fd: int, answers_fd: int) -> None:
    """Runs the code and answers calls of its function, until there are no more.

    `job` has code and entry_point. The first message, {"classes": source}, is answered with {} once the code ran; calls
    are messages of `Heap`, answered with {"returned": message} or {"raised": [builtin type, text]}.
    """
    calls, answers = os.fdopen(calls_fd, "rb"), os.fdopen(answers_fd, "wb")
    most = limits.message_mb * 2**20
    module = _module("solution")
    source = receive(calls, most)["classes"]
    send(answers, _attempt(_load, module, job["code"], source, job["entry_point"]))
    while True:
        try:
            message = receive(calls, most)
        except EOFError:
            return
        send(answers, _attempt(_answer, module, job["entry_point"], message))


def _load(module: ModuleType, code: str, classes: str, entry_point: str) -> dict[str, Any]:
    try:
        compiled = compile(code, "<code>", "exec")
    except (SyntaxError, ValueError, OverflowError) as error:  # ValueError: null bytes, half surrogate pairs
        return {"syntax": f"{type(error).__name__}: {error}"[:300]}
    exec(compiled, module.__dict__)
    exec(compile(classes, "<classes>", "exec"), module.__dict__)
    if not callable(getattr(module, entry_point, None)):
        raise NameError(f"no function {entry_point}")
    return {}


def _answer(module: ModuleType, entry_point: str, message: Any) -> dict[str, Any]:
    heap = Heap(_classes(module))
    arguments, named = heap.load(message)
    return {"returned": heap.dump(getattr(module, entry_point)(*arguments, **named))}


def _attempt(act: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    try:
        return act(*arguments)
    except BaseException as error:
        name = next(base.__name__ for base in type(error).__mro__ if getattr(builtins, base.__name__, None) is base)
        try:
            text = f"{type(error).__name__}: {error}"[:300]
        except BaseException:
            text = type(error).__name__
        error.__traceback__ = error.__context__ = None  # lets go of what fills the memory
        return {"raised": [name, text]}


# ---- the judge ----


class Failed(BaseException):
    """The candidate can answer no more; no `except Exception` of the tests hides that."""


class Remote:
    """The candidate's function, as the tests call it.

    Attributes:
      calls: how many there were.
      raised: what the last call raised, if it did.
      verdict: set where nothing later can change it.
    """

    def __init__(self, calls: BinaryIO, answers: BinaryIO, most_bytes: int, report: Callable[[str], None]) -> None:
        self._calls, self._answers, self._most_bytes, self.report = calls, answers, most_bytes, report
        self.classes: dict[str, type] = {}
        self.calls = 0
        self.raised: BaseException | None = None
        self.verdict: tuple[str, str, str] | None = None

    def ask(self, message: Any) -> dict[str, Any]:
        """The answer to a message. Raises Failed, and sets the verdict, where there is none."""
        try:
            send(self._calls, message)
            answer = receive(self._answers, self._most_bytes)
            if isinstance(answer, dict):
                return answer
            raise BadMessage("no object")
        except (EOFError, OSError):
            raise self.fail("ended", "the program ended before it answered") from None
        except BadMessage as error:
            raise self.fail("ended", f"the program sent what is no answer: {error}") from None

    def fail(self, category: str, detail: str, outcome: str = "failed") -> Failed:
        self.verdict = self.verdict or (outcome, category, detail)
        return Failed(detail)

    def call(self, *arguments: Any, **named: Any) -> Any:
        """Calls the function. Raises what it raised, as a builtin exception, or Failed."""
        heap = Heap(self.classes, strict=True)
        try:
            message = heap.dump((arguments, named))
        except Exception as error:
            raise self.fail("harness", f"a test's arguments: {error}", "error") from None
        if self.calls == 0:
            self.report("called")
        self.calls += 1
        answer = self.ask(message)
        if "raised" in answer:
            self.re_raise(answer["raised"])
        try:
            return heap.load(answer["returned"])
        except (KeyError, BadMessage) as error:
            raise self.fail("ended", f"the program sent what is no answer: {error}") from None

    def re_raise(self, raised: Any) -> None:
        """Raises what the program raised. What could end a loop of the tests, or Python, is its last word."""
        name, text = raised if isinstance(raised, list) and len(raised) == 2 else ("Exception", "")
        kind, text = getattr(builtins, str(name), None), str(text)[:300]
        if not isinstance(kind, type) or not issubclass(kind, Exception) or issubclass(kind, StopIteration):
            raise self.fail("exception", text)
        try:
            self.raised = kind(text)
        except TypeError:  # it wants other arguments
            self.raised = Exception(text)
        raise self.raised


def judge(job: dict[str, Any], limits: Limits, calls_fd: int, answers_fd: int, reports_fd: int) -> None:
    """Runs the tests on the candidate and reports the verdict.

    `job` has setup, tests and entry_point. Reports are lines of JSON: "loading" when the tests are ready and the
    candidate's code starts, "testing" when it is loaded, "called" at the first call, and the verdict, a list.
    """

    def report(what: Any) -> None:
        os.write(reports_fd, json.dumps(what).encode() + b"\n")

    remote = Remote(os.fdopen(calls_fd, "wb"), os.fdopen(answers_fd, "rb"), limits.message_mb * 2**20, report)
    module = _module("tests")
    try:
        if "random" in job["tests"]:  # the same tests each time
            import random

            random.seed(0)
        exec(_compiled_setup(job["setup"]), module.__dict__)
        exec(compile(job["tests"], _TESTS, "exec"), module.__dict__)
        classes, check = _class_source(job["tests"]), module.check
    except BaseException as error:
        report(("error", "harness", f"the tests do not load: {_describe(error, job['tests'])}"))
        return
    report("loading")
    report(_verdict(remote, module, check, classes, job))


def _verdict(
    remote: Remote, module: ModuleType, check: Callable[[Any], Any], classes: str, job: dict[str, Any]
) -> tuple[str, str, str]:
    def function(*arguments: Any, **named: Any) -> Any:
        return remote.call(*arguments, **named)

    function.__name__ = job["entry_point"]
    setattr(module, job["entry_point"], function)
    try:
        loaded = remote.ask({"classes": classes})
        if "syntax" in loaded:
            return "failed", "syntax", str(loaded["syntax"])
        if "raised" in loaded:
            remote.re_raise(loaded["raised"])
        remote.classes = _classes(module)
        remote.report("testing")
        check(function)
    except BaseException as error:
        if remote.verdict is not None:
            return remote.verdict
        if error is remote.raised:
            return "failed", "memory" if isinstance(error, MemoryError) else "exception", str(error)
        detail = _describe(error, job["tests"])
        if remote.calls == 0:
            return "error", "harness", f"the tests fail before they call the function: {detail}"
        return "failed", "wrong answer", detail
    if remote.calls == 0:
        return remote.verdict or ("error", "harness", "the tests never call the function")
    return remote.verdict or ("passed", "", "")


def _compiled_setup(setup: str) -> Any:
    """A prompt as a module: a signature that lacks a body, and a docstring that is one, get an empty one."""
    try:
        return compile(setup, "<setup>", "exec")
    except SyntaxError:
        return compile(f"{setup.rstrip()}\n    pass\n", "<setup>", "exec")


def _class_source(tests: str) -> str:
    """The classes that the tests define, with the imports before them."""
    if "class " not in tests:
        return ""
    import ast  # takes longer than most tests

    body = ast.parse(tests).body
    if not any(isinstance(statement, ast.ClassDef) for statement in body):
        return ""
    kept = (statement for statement in body if isinstance(statement, ast.ClassDef | ast.Import | ast.ImportFrom))
    return "\n".join(map(ast.unparse, kept))


def _describe(error: BaseException, tests: str) -> str:
    """An exception with the line of the tests that it comes from."""
    number, place = error.lineno if isinstance(error, SyntaxError) else None, error.__traceback__
    while place is not None:
        number = place.tb_lineno if place.tb_frame.f_code.co_filename == _TESTS else number
        place = place.tb_next
    text = f"{type(error).__name__}: {error}".rstrip(": ")
    line = (tests.splitlines()[number - 1 : number] or [""])[0] if number else ""
    return f"line {number}: {line.strip()[:200]} ({text[:200]})" if line else text[:300]


# ---- both ----


def _module(name: str) -> ModuleType:
    """An empty module, known by its name as modules are."""
    sys.modules[name] = ModuleType(name)
    return sys.modules[name]


def _classes(module: ModuleType) -> dict[str, type]:
    """The classes that a module defines, by name."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__ and value.__name__ == name
    }
