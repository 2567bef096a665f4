"""Right programs pass, wrong ones fail with their reason, and hostile ones get nothing: no verdict, no host, no time.

A hostile program tries something and returns what came of it, which its tests compare with what a program in a sandbox
can have. It is our own and tells the truth; what it could do to the host is looked at from the host.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from hhh_jax.errors import UserError
from hhh_jax.evals import sandbox
from hhh_jax.evals.sandbox import Limits, Program, run_many

ROOT = Path(__file__).parents[2]
PASSED = ("passed", "", "")
QUICK = Limits(cpu_s=1, wall_s=0.5)


@pytest.fixture(scope="module", autouse=True)
def _isolation():
    try:
        sandbox.require_isolation()
    except UserError as error:
        pytest.skip(str(error))


def processes(mark):
    """The ids of the processes with `mark` in their command line."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if mark in Path("/proc", name, "cmdline").read_bytes():
                found.append(int(name))
    return found


def none_left(mark):
    """Whether the processes go, given time."""
    end = time.monotonic() + 30
    while processes(mark) and time.monotonic() < end:
        time.sleep(0.02)
    return not processes(mark)


@pytest.fixture(autouse=True)
def mark(tmp_path, monkeypatch):
    """What the command line of this test's sandboxes has; at the end of the test all of them are gone."""
    (tmp_path / "root").symlink_to(ROOT)
    monkeypatch.setattr(sandbox, "_ROOT", str(tmp_path / "root"))
    mark = os.fsencode(tmp_path / "root")
    yield mark
    assert none_left(mark)


def verdict(code, tests="assert candidate() == 1", limits=sandbox._LIMITS, setup=""):
    """What becomes of code that defines f, for the body of a check."""
    check = "def check(candidate):\n" + textwrap.indent(textwrap.dedent(tests), "    ")
    (found,) = run_many(
        [Program(textwrap.dedent(code), "f", check, setup)], allow_untrusted=True, limits=limits, workers=1
    )
    return found


# ---- verdicts ----


@pytest.mark.parametrize(
    ("code", "category", "detail"),
    [
        ("def f(): return 2", "wrong answer", "line 2: assert candidate() == 1 (AssertionError)"),
        ("def f(): return None + 1", "exception", "TypeError: unsupported operand type"),
        ("def f(): raise SystemExit(0)", "exception", "SystemExit: 0"),
        ("def f(x): return 1", "exception", "TypeError: f() missing 1 required positional argument"),
        ("def f(:", "syntax", "SyntaxError: invalid syntax"),
        ("def f(): return 1\x00", "syntax", "null bytes"),
        ("f = 1", "exception", "NameError: no function f"),
        ("", "exception", "NameError: no function f"),
        ("1 / 0", "exception", "ZeroDivisionError: division by zero"),
        ("import numpy", "exception", "ModuleNotFoundError: No module named 'numpy'"),
        ("def f(): return f()", "exception", "RecursionError"),
        ("def f(): return b'x' * 10**9", "memory", "MemoryError"),
        ("def f():\n    x = []\n    while True:\n        x.append('x' * 10**6)", "memory", "MemoryError"),
        ("import ctypes\ndef f(): ctypes.string_at(0)", "ended", "the program crashed: SIGSEGV"),
    ],
)
def test_failures_have_their_category(code, category, detail):
    found = verdict(code)
    assert found[:2] == ("failed", category) and detail in found.detail


@pytest.mark.parametrize("code", ["def f():\n    while True: pass", "while True: pass"])
def test_endless_programs_use_up_their_time(code):
    assert verdict(code, limits=Limits(cpu_s=1)) == ("failed", "timeout", "1 s of CPU time")


def test_limits_are_set_for_good():
    code = """
    import resource
    def f():
        names = ("CPU", "AS", "FSIZE", "CORE", "NPROC")
        return [resource.getrlimit(getattr(resource, "RLIMIT_" + name)) for name in names]
    """
    expected = [(most, most) for most in (7, 300 * 2**20, 2 * 2**20, 0, 1)]
    limits = Limits(cpu_s=7, memory_mb=300, files_mb=2)
    assert verdict(code, f"assert candidate() == {expected}, candidate()", limits) == PASSED


@pytest.mark.parametrize("code", ["import time\ndef f(): time.sleep(999)", "import time\ntime.sleep(999)"])
def test_sleeping_programs_are_ended(code):
    assert verdict(code, limits=QUICK) == ("failed", "timeout", "0.5 s")


def test_many_programs_in_order():
    programs = [Program(f"def f(): return {n}", "f", "def check(f):\n    assert f() % 3") for n in range(7)]
    found = run_many(programs, allow_untrusted=True, workers=3)
    assert [one.outcome for one in found] == [("passed" if n % 3 else "failed") for n in range(7)]
    assert run_many([], allow_untrusted=True) == []


def test_calls_are_as_in_one_process():
    code = """
    class Counter:
        def __init__(self): self.n = 0
    state = Counter()
    def f(first, *rest, last=None):
        state.n += 1
        first.append((state.n, rest, last))
        return first
    """
    tests = """
    numbers = [0]
    assert candidate(numbers, {1: "a"}, last={2}) is numbers
    assert numbers == [0, (1, ({1: "a"},), {2})]
    assert f([]) == [(2, (), None)] and check.__name__ == "check"
    """
    assert verdict(code, tests) == PASSED
    generator = "def f():\n    for n in range(3):\n        print(n)\n        yield n"
    assert verdict(generator, "assert list(candidate()) == [0, 1, 2] and candidate() != [0, 1, 2]") == PASSED
    assert verdict("def f(x):\n    raise KeyError(x)", "try:\n    candidate(1)\nexcept KeyError:\n    pass") == PASSED


def test_linked_lists_of_the_tests_classes():
    tests = """
import dataclasses
@dataclasses.dataclass(eq=False)
class Node:
    value: int
    after: object = None
def check(candidate):
    a = Node(1)
    b = Node(2, a)
    assert candidate(b) is a and a.after is b
"""
    right = "def f(node):\n    node.after.after, node.after, last = node, None, node.after\n    return last"
    wrong = "def f(node):\n    return Node(1, node)"  # as good as a, but not a
    found = run_many([Program(code, "f", tests) for code in (right, wrong)], allow_untrusted=True)
    assert found[0] == PASSED and found[1][:2] == ("failed", "wrong answer")


def test_a_prompt_is_the_tests_setup():
    prompt = 'SCALE = 3\ndef scaled(x):\n    return SCALE * x\ndef f(x):\n    """Undoes scaled."""\n'
    for setup in (prompt, prompt.replace('    """Undoes scaled."""\n', "")):
        tests = "assert candidate(scaled(2)) == f(6) == 2"
        assert verdict(prompt + "    return x / SCALE\n", tests, setup=setup) == PASSED


def test_two_runs_agree():
    code = "def f(): return [str(set('abcdefgh')), hash('a')]"
    tests = "import random\nraise ValueError(random.random(), candidate())"
    details = {verdict(code, tests).detail for _ in range(3)}
    assert len(details) == 1 and "'a'" in details.pop()


@pytest.mark.parametrize(
    ("tests", "detail"),
    [
        ("assert candidate(lambda: 1)", "a test's arguments: no plain copy can be made of a function"),
        ("assert undefined", "before they call the function: line 2: assert undefined (NameError"),
        ("pass", "the tests never call the function"),
        ("return (", "the tests do not load: line 2: return ( (SyntaxError"),
    ],
)
def test_faults_of_the_tests_are_errors_of_the_harness(tests, detail):
    found = verdict("def f(*values): return 1", tests)
    assert found[:2] == ("error", "harness") and detail in found.detail


def test_tests_that_take_for_ever():
    assert verdict("def f(): return 1", "while True: pass", limits=Limits(cpu_s=1))[:2] == ("error", "harness")
    slow = "while candidate(): pass"  # which the answer decides
    assert verdict("def f(): return 1", slow, limits=QUICK)[:2] == ("failed", "timeout")


# ---- no forged verdicts ----

FORGERS = {
    "exits": "import sys\nsys.exit(0)",
    "exits hard": "import os\ndef f(): os._exit(0)",
    "exits when loaded": "import os\nos._exit(0)",
    "exits later": "import atexit, os\natexit.register(os._exit, 0)\ndef f(): raise SystemExit(0)",
    "prints": 'def f():\n    print(\'["passed", "", ""]\')\n    print("passed")',
    "patches": """
        import builtins, sys
        builtins.AssertionError = type("Nothing", (BaseException,), {})
        sys.modules["tests"] = sys
        for name, module in list(sys.modules.items()):
            if name.startswith("hhh_jax"):
                for key in ("judge", "_verdict", "report"):
                    setattr(module, key, lambda *a: ("passed", "", ""))
        def f(): return 0
    """,
    "is equal to all": """
        class Equal(int):
            def __eq__(self, other): return True
            __hash__ = int.__hash__
        def f(): return Equal(7)
    """,
    "is an equal object": """
        class Equal:
            def __eq__(self, other): return True
        def f(): return Equal()
    """,
    "writes reports": """
        import os
        def f():
            for fd in range(64):
                for line in (b'["passed", "", ""]\\n', b'"called"\\n'):
                    try: os.write(fd, line)
                    except OSError: pass
            return 0
    """,
    "answers twice": """
        import gc, io
        from hhh_jax.evals.plain_values import send
        def f():
            for stream in gc.get_objects():
                if isinstance(stream, io.BufferedWriter) and stream.name > 2:
                    for answer in ({"passed": 1}, ["passed", "", ""], {"returned": {"value": 0, "objects": []}}):
                        send(stream, answer)
            return 0
    """,
    "sends an executable": """
        import gc, io, pickle
        from hhh_jax.evals.plain_values import send
        def f():
            for stream in gc.get_objects():
                if isinstance(stream, io.BufferedWriter) and stream.name > 2:
                    send(stream, {"returned": {"value": [0], "objects": [["os._exit", [0]]]}})
    """,
}


@pytest.mark.parametrize("name", FORGERS)
def test_no_program_can_say_that_it_passed(name):
    found = verdict(FORGERS[name])
    assert found.outcome == "failed" and found.category in ("wrong answer", "exception", "ended")


def test_raising_does_not_cut_the_tests_short():
    loop = "for answer in map(candidate, [1, 2]):\n    assert answer == 7"
    assert verdict("def f(x): raise StopIteration", loop)[:2] == ("failed", "exception")
    swallow = "try:\n    candidate()\nexcept:\n    pass"
    for code in ("raise SystemExit", "raise GeneratorExit", "import os; os._exit(0)"):
        assert verdict(f"def f(): {code}", swallow).outcome == "failed"


def test_the_expected_answer_is_nowhere_in_the_program():
    code = """
    import gc, os, re, sys
    def f():
        frame, texts = sys._getframe(), []
        while frame:
            texts += map(repr, [*frame.f_locals.values(), *frame.f_globals.values()])
            frame = frame.f_back
        for thing in gc.get_objects():
            texts += [repr(thing)] if type(thing) in (dict, list, tuple, bytes) and len(thing) < 100 else []
        for fd in range(3, 64):
            try:
                os.set_blocking(fd, False)
                texts.append(os.read(fd, 10**6).decode(errors="replace"))
            except OSError:
                pass
        return next((found[0] for text in texts if (found := re.search(r"the.answer.is.\\d+", text))), len(texts))
    """
    found = verdict(code, "assert (got := candidate()) == 'the answer is 7341', got")
    assert found[:2] == ("failed", "wrong answer") and int(found.detail.rpartition(" ")[2].rstrip(")")) > 1000


def send_raw(data):
    return f"""
    import gc, io
    def f():
        for stream in gc.get_objects():
            if isinstance(stream, io.BufferedWriter) and stream.name > 2:
                {data}
    """


@pytest.mark.parametrize(
    "code",
    [
        send_raw("stream.write((2**62).to_bytes(8)); stream.flush(); input()"),
        send_raw("stream.write((2**62).to_bytes(8) + b'x' * 10**7); stream.flush()"),
        send_raw("stream.write((5).to_bytes(8) + b'[[[[['); stream.flush()"),
        send_raw("stream.write((10**6).to_bytes(8) + b'[' * 10**6); stream.flush()"),
        send_raw("stream.write((2).to_bytes(8) + b'{}'); stream.flush()"),
        send_raw("stream.close()"),
        "import os\nos.closerange(0, 64)\ndef f(): return 1",
        "def f(): return 'x' * 2 * 10**7",
        """
        import os
        while True:
            for fd in range(3, 64):
                try: os.write(fd, b"x" * 4096)
                except OSError: pass
        """,
    ],
)  # fmt: skip
def test_no_message_does_more_than_fail(code):
    found = verdict(code, limits=Limits(memory_mb=256))
    assert found[:2] == ("failed", "ended")


def test_a_flood_of_output_goes_nowhere():
    code = "import sys\ndef f():\n    for _ in range(100):\n        print('x' * 10**6)\n"
    assert verdict(code + "    sys.stderr.write('x' * 10**7)\n    return 1") == PASSED


# ---- nothing of the host ----


def test_no_process_can_be_made():
    code = """
    import ctypes, multiprocessing, os, subprocess, threading
    libc = ctypes.CDLL(None, use_errno=True)
    def tried(call, *arguments):
        try:
            return call(*arguments)
        except (OSError, RuntimeError) as error:
            return type(error).__name__
    def f():
        bomb = [tried(os.fork) for _ in range(1000)]
        return [set(bomb), tried(subprocess.run, ["/bin/true"]), tried(threading.Thread(target=print).start),
                tried(multiprocessing.Process(target=print).start), tried(os.execv, "/bin/sh", ["sh"]),
                libc.syscall(435, None, 0), ctypes.get_errno(), libc.unshare(0x10000000), ctypes.get_errno()]
    """
    tests = """
    denied, enosys, eperm = "PermissionError", 38, 1
    got = candidate()
    assert got == [{denied}, denied, "RuntimeError", denied, denied, -1, enosys, -1, eperm], got
    """
    assert verdict(code, tests) == PASSED


def test_nothing_outside_can_be_signalled():
    code = """
    import os, signal
    def f(host):
        reached = []
        for target in [0, -1, os.getppid(), *range(2, 2000), host]:
            try:
                os.kill(target, signal.SIGKILL)
                reached.append(target)
            except OSError:
                pass
        return reached, os.getpid(), os.getppid()
    """
    # Its process group is itself, and no signal from within its namespace ends the first process there.
    tests = f"reached, own, parent = candidate({os.getpid()})\n"
    assert verdict(code, tests + "assert (own, parent) == (1, 0) and set(reached) <= {0}, reached") == PASSED


def test_files_and_environment_of_the_host_are_out_of_sight(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "in the environment")
    secret = tmp_path / "secret"
    secret.write_text("in a file")
    tmp_path.chmod(0o755)
    code = """
    import glob, os
    def f(*paths):
        seen = [name for name in paths if os.path.exists(name)]
        files = [name for top in sorted(os.listdir("/")) if top not in ("lib", "lib64", "usr")
                 for folder, _, names in os.walk("/" + top) for name in names if "/lib/" not in folder + "/"]
        return seen, files, dict(os.environ), os.path.isfile(os.path.dirname(os.__file__) + "/glob.py"), os.getcwd()
    """
    hidden = [
        str(secret), str(ROOT), str(Path.home() / ".ssh"), str(Path.home() / ".bashrc"), "/etc/passwd", "/etc/shadow",
        "/proc/self", "/sys/kernel", "/dev/null", "/usr/bin", "/var", "/run", "/home", sys.executable,
    ]  # fmt: skip
    hidden += ["/.." + name for name in hidden] + ["/tmp/../.." + name for name in hidden]
    tests = f"assert candidate(*{hidden!r}) == ([], [], {{}}, True, '/tmp'), candidate(*{hidden!r})"
    assert verdict(code, tests) == PASSED


def test_nothing_outside_can_be_written(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("as it was")
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        with contextlib.suppress(OSError):
            folder.chmod(0o755)
    victim.chmod(0o666)
    code = """
    import os
    def f(*paths):
        written = []
        for path in paths:
            for act in (lambda: open(path, "w").write("x"), lambda: os.remove(path), lambda: os.mkdir(path + "x"),
                        lambda: os.chmod(path, 0o777), lambda: os.symlink("/", path + "y")):
                try:
                    act()
                    written.append(path)
                except OSError:
                    pass
        open("own", "w").write("x")
        folders = ("/", "/usr/lib", os.path.dirname(os.__file__))
        return written, os.listdir("."), {os.statvfs(name).f_flag & os.ST_RDONLY for name in folders}
    """
    places = [str(victim), "/x", "/etc/passwd", "/usr/lib/x", os.path.dirname(os.__file__) + "/x", os.__file__]
    assert verdict(code, f"assert candidate(*{places!r}) == ([], ['own'], {{1}}), candidate(*{places!r})") == PASSED
    assert victim.read_text() == "as it was" and sorted(os.listdir(tmp_path)) == ["root", "victim"]
    assert "import abc" in Path(os.__file__).read_text()


def test_there_is_no_network():
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.1)
    code = """
    import socket
    def f(port):
        made = []
        for family in range(64):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
                try:
                    made.append(socket.socket(family, kind))
                except PermissionError:
                    pass
        try:
            made.append(socket.create_connection(("127.0.0.1", port)))
        except PermissionError:
            pass
        return len(made), socket.if_nameindex() if made else []
    """
    with server:
        assert verdict(code, f"assert candidate({server.getsockname()[1]}) == (0, [])") == PASSED
        with pytest.raises(TimeoutError):
            server.accept()


def test_the_disk_cannot_be_filled():
    code = """
    import os
    def f():
        before, written, files = os.listdir("."), 0, 0
        try:
            while True:
                with open(str(files), "wb") as file:
                    files += 1
                    for _ in range(100):
                        written += file.write(b"x" * 2**20)
                        file.flush()
        except OSError:
            pass
        try:
            while True:
                open(f"empty{files}", "w").close()
                files += 1
        except OSError:
            return before, written, files
    """
    tests = "before, written, files = got = candidate()\n"
    tests += "assert not before and 2**20 <= written <= 4 * 2**20 and files < 1100, got"
    for _ in range(2):
        assert verdict(code, tests, limits=Limits(files_mb=4)) == PASSED


def test_memory_that_limits_do_not_count_cannot_be_had():
    code = """
    import ctypes, os
    libc = ctypes.CDLL(None, use_errno=True)
    def f():
        got = [libc.shmget(0, 1 << 30, 0o1600), libc.inotify_init1(0), libc.ptrace(0, 0, 0, 0), libc.prctl(1, 0)]
        try:
            got.append(os.memfd_create("x"))
        except PermissionError:
            got.append(-1)
        return got, ctypes.get_errno()
    """
    assert verdict(code, "assert candidate() == ([-1] * 5, 1), candidate()") == PASSED


def test_there_are_no_privileges():
    code = """
    import os, resource
    def f():
        gained = []
        for act in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]), lambda: os.chroot("/tmp"),
                    lambda: os.nice(-5), lambda: os.mknod("null", 0o20666, os.makedev(1, 3)),
                    lambda: os.chown(".", 0, 0), lambda: resource.setrlimit(resource.RLIMIT_CPU, (99, 99)),
                    lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))):
            try:
                act()
                gained.append(len(gained))
            except (OSError, ValueError):
                pass
        return gained, os.getresuid(), os.getresgid(), set(os.getgroups()) - {65534}
    """
    three = (65534,) * 3
    assert verdict(code, f"assert candidate()[:3] == ([], {three}, {three}), candidate()") == PASSED


def test_programs_end_with_the_process_that_runs_them(tmp_path, mark):
    code = """
        import sys
        from hhh_jax.evals import sandbox
        sandbox._ROOT = sys.argv[1]
        sandbox.require_isolation()
        print(flush=True)
        clings = "import ctypes, time\\nctypes.CDLL(None).prctl(1, 0)\\ntime.sleep(999)"
        program = sandbox.Program(clings, "f", "def check(f): f()")
        sandbox.run_many([program], allow_untrusted=True, limits=sandbox.Limits(wall_s=999))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), tmp_path / "root"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as host:
        host.stdout.readline()
        end = time.monotonic() + 30
        while len(processes(mark)) < 6 and time.monotonic() < end:  # itself, the starter, two supervisors, their two
            time.sleep(0.02)
        running = processes(mark)
        host.kill()
    assert len(running) == 6
    assert none_left(mark)


# ---- permission, and where there is no isolation ----


def test_nothing_runs_unless_allowed(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(UserError, match="--run_untrusted_code"):
        run_many([Program("", "f", "")], allow_untrusted=False)


def refusal(command, **kwargs):
    """The message of the UserError that a process gives where it would run a program; "ran" if it ran."""
    code = """
        from hhh_jax.errors import UserError
        from hhh_jax.evals.sandbox import Program, run_many
        program = Program("open('/tmp/ran', 'w')\\ndef f(): return 1", "f", "def check(f): assert f() == 1")
        try:
            (verdict,) = run_many([program], allow_untrusted=True)
            print("ran" if verdict.outcome == "passed" else verdict)
        except UserError as error:
            print(error)
    """
    done = subprocess.run([*command, "-c", textwrap.dedent(code)], capture_output=True, text=True, **kwargs)
    assert not done.stderr
    return done.stdout.strip()


def test_it_refuses_where_namespaces_are_denied():
    if os.geteuid():
        return  # only root can give up what it takes, here CAP_SYS_ADMIN
    give_up = "import ctypes, sys; ctypes.CDLL(None).prctl(24, 21, 0, 0, 0); exec(sys.argv[2])"
    said = refusal([sys.executable, "-c", give_up], cwd=ROOT)
    assert said.startswith("generated code is not run, for it cannot be confined here (the program could not be star")
    assert "unshare: Operation not permitted" in said and "Linux 5.12" in said and "CAP_SYS_ADMIN" in said


def test_it_refuses_elsewhere(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    sandbox.require_isolation.cache_clear()
    with pytest.raises(UserError, match=r"\(darwin, and it rests on Linux\)"):
        sandbox.require_isolation()


def test_an_ordinary_user_needs_no_root():
    """The rest of this file shows it where an ordinary user runs it. Root runs it as one here."""
    if os.geteuid():
        return
    pythons = [sys.executable, shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable]
    version = "import sys; sys.exit(sys.version_info < (3, 11))"
    user = {"user": 12345, "group": 12345, "extra_groups": [], "cwd": "/"}
    with tempfile.TemporaryDirectory() as folder:
        names = ("__init__", "confinement", "plain_values", "sandbox", "sandbox_roles")
        for file in ("__init__.py", "errors.py", *(f"evals/{name}.py" for name in names)):
            (Path(folder) / "hhh_jax" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / "hhh_jax" / file, Path(folder) / "hhh_jax" / file)
        subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
        for python in pythons:
            with contextlib.suppress(OSError):
                if subprocess.run([python, "-c", version], **user).returncode == 0:
                    break
        else:
            pytest.skip("needs a Python 3.11 that every user may run")
        said = refusal([python], env={"PYTHONPATH": folder}, **user)
    assert said == "ran" or ("unshare" in said and "sysctl user.max_user_namespaces" in said)
