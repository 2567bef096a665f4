'''Generated one-line Python functions with tests, which models of a few thousand parameters can write now and then.

A problem is a signature with a docstring of one or two steps, its solution the rest of the line:

    def f(x):
        """Add 3, then double."""
        return (x + 3) * 2

Splits are by what functions do with the arguments of all tests, so that no function of one is in another, however it is
put: "add 2, then add 3" and "add 3, then add 2" are one group.
'''

from __future__ import annotations

import ast
import functools
import hashlib
import itertools
from typing import Any, NamedTuple

from hhh_jax.data.records import Document, Prompt
from hhh_jax.data.shards import fraction

NAME = "functions"
HELD_OUT_SHARE = 0.15  # of the groups, for each of validation and test
ENTRY_POINT = "f"
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "number": (0, 1, 7, 12, -5, 30, 101),
    "list": ([4, 1, 9, 3, 7], [2, 2, 5, 8, 1, 6], [10, -3, 0, 6]),
    "text": ("Python", "ab cd ef", "Table"),
}
"""What tests call functions with, by the type that they take."""


class Step(NamedTuple):
    """What a function may do: its words and its code, with ``{c}`` one of `constants`, or as the only step also one of
    `more`. In the code ``{x}`` is any expression, and ``{a}`` one in parentheses where it needs them."""

    takes: str
    gives: str
    words: str
    code: str
    constants: tuple[int, ...] = (0,)
    more: tuple[int, ...] = ()


_NUMBERS, _SIZES = (tuple(range(2, 7)), tuple(range(7, 61))), ((1, 2, 3),)
STEPS = (
    Step("number", "number", "add {c}", "{a} + {c}", *_NUMBERS),
    Step("number", "number", "subtract {c}", "{a} - {c}", *_NUMBERS),
    Step("number", "number", "multiply by {c}", "{a} * {c}", *_NUMBERS),
    Step("number", "number", "divide by {c}", "{a} // {c}", *_NUMBERS),
    Step("number", "number", "take the rest by {c}", "{a} % {c}", *_NUMBERS),
    Step("number", "number", "square", "{a} ** 2"),
    Step("number", "number", "drop the sign", "abs({x})"),
    Step("list", "list", "sort", "sorted({x})"),
    Step("list", "list", "reverse", "{a}[::-1]"),
    Step("list", "list", "keep the first {c}", "{a}[:{c}]", *_SIZES),
    Step("list", "list", "drop the first {c}", "{a}[{c}:]", *_SIZES),
    Step("list", "list", "repeat {c} times", "{a} * {c}", (2, 3)),
    Step("list", "number", "take the sum", "sum({x})"),
    Step("list", "number", "take the largest", "max({x})"),
    Step("list", "number", "take the smallest", "min({x})"),
    Step("list", "number", "count", "len({x})"),
    Step("text", "text", "turn to capitals", "{a}.upper()"),
    Step("text", "text", "reverse", "{a}[::-1]"),
    Step("text", "text", "keep the first {c}", "{a}[:{c}]", *_SIZES),
    Step("text", "text", "drop the first {c}", "{a}[{c}:]", *_SIZES),
    Step("text", "text", "repeat {c} times", "{a} * {c}", (2, 3)),
    Step("text", "number", "count", "len({x})"),
)


class Function(NamedTuple):
    """A function: its docstring, the expression that it returns, and the type that it takes."""

    words: str
    code: str
    takes: str

    def prompt(self) -> str:
        """All up to the expression."""
        return f'def {ENTRY_POINT}(x):\n    """{self.words.capitalize()}."""\n    return'

    def results(self) -> list[tuple[str, Any, Any]]:
        """(type, argument, result) for the arguments of all types; "error" where it does not take them."""
        compiled, found = compile(self.code, "<function>", "eval"), []
        for kind, arguments in ARGUMENTS.items():
            for argument in arguments:
                try:
                    found.append((kind, argument, eval(compiled, {"x": argument})))
                except (AttributeError, TypeError):
                    found.append((kind, argument, "error"))
        return found


@functools.cache
def problems(split: str) -> tuple[Prompt, ...]:
    """The problems of a split in an order without meaning: the first k are a fair sample.

    `meta` is as that of `hhh_jax.data.sources.code`: entry_point, solution, and tests with ``check(candidate)``.
    """
    found = []
    for function in functions():
        results = function.results()
        group = hashlib.sha256(repr(results).encode()).hexdigest()[:12]
        if _split(group) == split:
            cases = [(argument, result) for kind, argument, result in results if kind == function.takes]
            tests = f"def check(candidate):\n    for argument, result in {cases}:\n        "
            meta = {
                "entry_point": ENTRY_POINT, "solution": f" {function.code}",
                "tests": f"{tests}assert candidate(argument) == result\n",
            }  # fmt: skip
            found.append(Prompt(f"{NAME}:{function.words}: {function.takes}", function.prompt(), group, meta))
    return tuple(sorted(found, key=lambda problem: fraction(problem.id)))


def documents(split: str) -> list[Document]:
    """The problems with their solutions, for language models."""
    return [Document(p.id, p.text + p.meta["solution"], p.group) for p in problems(split)]


@functools.cache
def functions() -> tuple[Function, ...]:
    """All functions of one step and of two."""
    one = [(step, Function(*_applied(step, c, "x"), step.takes)) for step in STEPS for c in step.constants]
    alone = [Function(*_applied(step, c, "x"), step.takes) for step in STEPS for c in step.more]
    two = []
    for (first, inner), step in itertools.product(one, STEPS):
        for c in step.constants if first.gives == step.takes else ():
            words, code = _applied(step, c, inner.code)
            two.append(Function(f"{inner.words}, then {words}", code, first.takes))
    return (*(function for _, function in one), *alone, *two)


def _applied(step: Step, constant: int, code: str) -> tuple[str, str]:
    """The words of a step, and the code of what it makes of an expression."""
    is_atom = not isinstance(ast.parse(code, mode="eval").body, ast.BinOp)
    filled = step.code.format(x=code, a=code if is_atom else f"({code})", c=constant)
    return step.words.format(c=constant), filled


def _split(group: str) -> str:
    place = fraction(group)
    return "test" if place < HELD_OUT_SHARE else "validation" if place < 2 * HELD_OUT_SHARE else "train"
