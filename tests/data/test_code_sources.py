"""HumanEval and QuixBugs: what is made of them runs, solutions pass the tests, and wrong programs fail them."""

import gzip
import json

import pytest
from source_runs import run

from hhh_jax.data import sources
from hhh_jax.errors import UserError

HUMANEVAL, QUIXBUGS = sources.load("humaneval"), sources.load("quixbugs")


def passes(prompt, completion):
    """Whether the completion is right, as the source's docstring says. Runs it: only for code of this repository."""
    program = f"{prompt.text}{completion}\n{prompt.meta['tests']}\ncheck({prompt.meta['entry_point']})"
    try:
        exec(compile(program, prompt.id, "exec"), {})
    except AssertionError:
        return False
    return True


PROBLEM = {
    "task_id": "HumanEval/0", "prompt": 'def double(x: int) -> int:\n    """ Twice x. """\n', "entry_point": "double",
    "canonical_solution": "    return 2 * x\n", "test": "\n\ndef check(candidate):\n    assert candidate(2) == 4\n",
}  # fmt: skip


def test_humaneval(tmp_path):
    path = tmp_path / "HumanEval.jsonl.gz"
    rows = [PROBLEM, {**PROBLEM, "task_id": "HumanEval/1", "test": None}]
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    made = run(HUMANEVAL, [path])
    (prompt,) = made.records
    assert prompt.id == "HumanEval/0" and made.splits == ["test"] and made.read == 2 and made.drops[0].bad
    assert passes(prompt, prompt.meta["solution"]) and not passes(prompt, "    return x\n")


TOTAL = '''
def total(numbers):
    result = 0
    for number in numbers:
        result = number
    return result



"""
Total


Input:
    numbers: A list of ints, as "\\\\d+"

Output:
    Their sum
"""
'''
TOTAL_RIGHT = '''
def total(numbers):
    # Adds up.
    result = 0
    for number in numbers:
        result += number

    return result

"""
def total(numbers):
    return sum(numbers)
"""
'''
STEPS = '''from collections import deque as Queue

def steps(n):
    while n:
        yield (n, helper(n))

def helper(n):
    return n - 2

"""
Steps down from n
"""
'''
REACHES = '''
def reaches(node, goal):
    return node is goal

"""
Whether a node leads to another
"""
'''
NODE = """
class Node:
    def __init__(self, successor=None):
        self.successor = successor
"""
TEST_REACHES = """import pytest
from node import Node

if pytest.use_correct:
    from correct_python_programs.reaches import reaches
else:
    from python_programs.reaches import reaches

last = Node()


def test1():
    "Case 1"
    assert reaches(Node(Node(last)), last)


def test2():
    assert not reaches(last, Node())
"""
CHECKOUT = {
    "README.md": "QuixBugs",
    "conftest.py": "import pytest\n",
    "python_programs/total.py": TOTAL,
    "python_programs/steps.py": STEPS,
    "python_programs/reaches.py": REACHES,
    "python_programs/reaches_test.py": "def main():\n    pass\n",
    "python_programs/node.py": NODE,
    "correct_python_programs/total.py": TOTAL_RIGHT,
    "correct_python_programs/steps.py": STEPS.replace("n - 2", "n - 1").replace("while n", "for n in range(n, 0, -1)"),
    "correct_python_programs/reaches.py": REACHES.replace(
        "return", "while node and node is not goal:\n        node = node.successor\n    return"
    ),
    "correct_python_programs/node.py": NODE,
    "json_testcases/total.json": "[[[1, 2]], 3]\n[[[]], 0]\n",
    "json_testcases/steps.json": "[2, [[2, 1], [1, 0]]]\n",
    "python_testcases/node.py": NODE,
    "python_testcases/load_testdata.py": "",
    "python_testcases/test_total.py": "from load_testdata import *\n",
    "python_testcases/test_reaches.py": TEST_REACHES,
}


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(content)
    return folder


def test_quixbugs_is_recast_as_synthesis(tmp_path):
    made = run(QUIXBUGS, [write(tmp_path, CHECKOUT)])
    assert made.read == made.kept == 9 and made.splits == ["test"] * 3
    prompts = {prompt.meta["entry_point"]: prompt for prompt in made.records}
    assert prompts["total"].text == (
        'def total(numbers):\n    r"""\n    Total\n\n    Input:\n        numbers: A list of ints, as "\\\\d+"\n\n'
        '    Output:\n        Their sum\n    """\n'
    ).replace("\\\\", "\\")
    assert prompts["total"].meta["solution"].startswith("    result = 0\n")
    assert "sum(" not in prompts["total"].meta["solution"]
    assert prompts["steps"].text.startswith('from collections import deque as Queue\n\n\ndef steps(n):\n    """\n')
    assert all(passes(prompt, prompt.meta["solution"]) for prompt in prompts.values())
    assert not passes(
        prompts["total"], "    result = 0\n    for number in numbers:\n        result = number\n    return result\n"
    )
    assert not passes(prompts["steps"], "    return []\n")
    assert not passes(prompts["reaches"], "    return node is goal\n")


def test_quixbugs_tolerance_and_slow_cases(tmp_path):
    program = 'def {0}(*values):\n    return 3\n\n"""\nThree\n"""\n'
    files = {f"{folder}/{name}.py": program.format(name) for name in ("sqrt", "knapsack")
             for folder in ("python_programs", "correct_python_programs")}  # fmt: skip
    files["json_testcases/sqrt.json"] = "[[9, 0.1], 3.05]\n"
    files["json_testcases/knapsack.json"] = "[[6404180, []], 5]\n[[1, []], 3]\n"
    made = run(QUIXBUGS, [write(tmp_path, files)])
    assert len(made.records) == 2 and all(passes(prompt, prompt.meta["solution"]) for prompt in made.records)
    knapsack, sqrt = sorted(made.records, key=lambda prompt: prompt.id)
    assert not passes(sqrt, "    return 3.2\n") and "6404180" not in knapsack.meta["tests"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("python_programs/total.py", "def total(:\n", "not Python"),
        ("python_programs/total.py", "def sum(x):\n    pass\n", "no function of the file's name"),
        ("python_programs/total.py", "def total(x):\n    pass\n", "no description after the function"),
        ("json_testcases/total.json", "[[1], 2, 3]\n", "a line is not [arguments, result]"),
        ("json_testcases/total.json", "", "no cases"),
        ("correct_python_programs/total.py", None, "the program has no solution"),
    ],
)
def test_quixbugs_programs_that_lack_a_part_are_dropped(tmp_path, name, content, reason):
    write(tmp_path, CHECKOUT)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    made = run(QUIXBUGS, [tmp_path])
    assert {prompt.meta["entry_point"] for prompt in made.records} == {"steps", "reaches"}
    assert made.kept == 6 and reason in made.reasons and all(drop.bad for drop in made.drops)
    assert str(tmp_path / name) in made.places(reason) or content is None


def test_quixbugs_needs_the_checkout(tmp_path):
    write(tmp_path, CHECKOUT)
    with pytest.raises(UserError, match="give the checkout of QuixBugs"):
        run(QUIXBUGS, [tmp_path / "README.md"])
    with pytest.raises(UserError, match="none of its 1 files is of a checkout"):
        run(QUIXBUGS, [write(tmp_path / "x", {"a.py": ""})])


@pytest.mark.real_data("humaneval/HumanEval.jsonl.gz")
def test_real_humaneval(real_data):
    made = run(HUMANEVAL, [real_data / "humaneval/HumanEval.jsonl.gz"])
    assert made.read == made.kept == 164
    for prompt in made.records:
        compile(prompt.text + prompt.meta["solution"] + prompt.meta["tests"], prompt.id, "exec")
        assert f"def {prompt.meta['entry_point']}(" in prompt.text
