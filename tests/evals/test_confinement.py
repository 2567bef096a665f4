"""A hostile program gets nothing of its host: no process, file, secret, network or time; and none runs unasked."""

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
from sandboxed import PASSED, none_left, processes, verdict

from hhh_jax.errors import UserError
from hhh_jax.evals import sandbox
from hhh_jax.evals.sandbox import Limits, Program, run_many

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("isolation", "mark")


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
