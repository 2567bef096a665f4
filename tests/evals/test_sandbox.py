"""Right programs pass, wrong ones fail with their reason, and none can say that it passed; verdicts are not forged."""


import pytest
from sandboxed import PASSED, QUICK, verdict

from hhh_jax.evals.sandbox import Limits, Program, run_many

pytestmark = pytest.mark.usefixtures("isolation", "mark")


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
