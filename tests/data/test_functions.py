"""Generated problems: tests tell right solutions from others, and splits share nothing."""

import ast
import itertools
import random

from hhh_jax.data import datasets, functions, passages
from hhh_jax.data.records import SPLITS


def run_tests(problem, solution: str) -> bool:
    """What the sandbox finds out, in this process: the code is ours."""
    space = {}
    exec(f"{problem.text}{solution}\n\n{problem.meta['tests']}", space)
    try:
        space["check"](space[problem.meta["entry_point"]])
    except Exception:
        return False
    return True


def test_solutions_pass_their_tests_and_no_others():
    rng = random.Random(0)
    problems = rng.sample(functions.problems("train"), 150)
    assert all(run_tests(problem, problem.meta["solution"]) for problem in problems)
    for problem, other in itertools.pairwise(problems):
        same = problem.group == other.group
        assert run_tests(problem, other.meta["solution"]) == same, (problem.id, other.id)


def test_a_changed_constant_or_sign_fails():
    (problem,) = (p for split in SPLITS for p in functions.problems(split) if p.meta["solution"] == " x + 37")
    assert run_tests(problem, " 37 + x")
    assert not any(run_tests(problem, f" {code}") for code in ("x + 38", "x - 37", "x + x", ""))


def test_no_function_of_one_split_is_in_another():
    arguments = itertools.chain.from_iterable(functions.ARGUMENTS.values())
    calls = [*arguments, *range(-20, 20), [3, 1, 2, 1], "Splits"]

    def behavior(problem) -> tuple:
        solution = eval(f"lambda x: {problem.meta['solution']}")
        results = []
        for call in calls:
            try:
                results.append(repr(solution(call)))
            except (AttributeError, TypeError):
                results.append("error")
        return tuple(results)

    found = {split: {behavior(problem) for problem in functions.problems(split)} for split in SPLITS}
    prompts = {split: {problem.text for problem in functions.problems(split)} for split in SPLITS}
    for a, b in itertools.combinations(SPLITS, 2):
        assert not found[a] & found[b] and not prompts[a] & prompts[b]
    assert len(found["train"]) > 400 and min(len(found["validation"]), len(found["test"])) > 90


def test_documents_are_functions_in_full():
    for split in SPLITS:
        documents = datasets.load_documents("functions", split).records
        assert [d.text for d in documents] == [p.text + p.meta["solution"] for p in functions.problems(split)]
        for document in documents[:50]:
            (function,) = ast.parse(document.text).body
            assert function.name == "f" and isinstance(function.body[-1], ast.Return)


def test_the_verb_names_the_only_word_of_its_kind():
    for problem in passages.problems("test"):
        verb = problem.text.split()[-2]
        owned = set(problem.text.replace(",", "").replace(".", "").split())
        assert owned & set(passages.KINDS[verb].split()) == {problem.meta["target"]}
        assert problem.text.endswith(f"omebody {verb} the")


def test_passages_of_a_split_are_in_no_other():
    keys = {}
    for split in SPLITS:
        documents = datasets.load_documents("passages", split).records
        assert len(documents) == passages.SIZES[split] == len({d.text for d in documents})
        # Whoever owns what, and in whichever order: the things, and what is asked for.
        texts = [d.text.replace(",", "").replace(".", "").split() for d in documents]
        keys[split] = {(frozenset(words) & _words(), words[-1]) for words in texts}
    assert not keys["train"] & keys["test"] and not keys["train"] & keys["validation"]
    assert not keys["validation"] & keys["test"]


def _words() -> frozenset[str]:
    return frozenset(word for words in passages.KINDS.values() for word in words.split())
