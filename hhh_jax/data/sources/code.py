"""Function synthesis, signature and docstring in, body out: HumanEval and QuixBugs. For evaluation only.

A prompt ends where the body begins. Its `meta` has the `entry_point`, a right `solution` (a body, and helpers after it)
and `tests`, which define ``check(candidate)``. A completion is right if

    prompt + completion + "\\n" + tests + "\\n" + f"check({entry_point})"

runs without an exception: code that nobody has read, for a sandbox only.

HumanEval is `HumanEval.jsonl.gz`: `{task_id, prompt, entry_point, canonical_solution, test}`.

QuixBugs, made for program repair, is recast, as arXiv 2112.00861 does, from a checkout of its repository. Signature and
description come from `python_programs`, the solution from `correct_python_programs`, the tests from `json_testcases`
or, for the programs on graphs, which have none there, from `python_testcases`. As in the repository's own tests,
generators count as lists and tuples too, `sqrt` may be off by its epsilon, and two cases that take minutes are left out
(of `knapsack` and `levenshtein`). A row is a file: a record is made of three.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hhh_jax.data.records import Prompt
from hhh_jax.data.rows import Skip, each, is_json_lines, json_lines, paths, stem, text
from hhh_jax.data.source import Block, Drop, Made, Options, Row, Source, as_row, one_by_one
from hhh_jax.data.streams import file_blocks, line_blocks
from hhh_jax.errors import UserError

PARTS = {
    "python_programs": "prompt", "correct_python_programs": "solution", "json_testcases": "tests",
    "python_testcases": "tests",
}  # fmt: skip
SLOW = {"knapsack": 6404180, "levenshtein": "amanaplanacanalpanama"}  # first arguments
_CHECK = """
def plain(value):
    if isinstance(value, (str, bytes, dict)) or not hasattr(value, "__iter__"):
        return value
    return [plain(item) for item in value]


def check(candidate):
    for arguments, expected in {cases}:
        assert {condition}
"""


def _humaneval_blocks(inputs: Sequence[str], options: Options) -> Iterator[Block]:
    return line_blocks(paths(inputs, is_json_lines, "HumanEval.jsonl.gz"))


def _humaneval_read(block: Block, options: Options) -> Iterator[Row | Drop]:
    return each(json_lines(block), _problem)


def _problem(row: dict[str, Any], place: str) -> Row:
    name = text(row, "task_id")
    meta = {
        "entry_point": text(row, "entry_point"),
        "solution": text(row, "canonical_solution"),
        "tests": text(row, "test"),
    }
    return as_row(Prompt(name, text(row, "prompt"), name, meta), "test", place)


def _quixbugs_blocks(inputs: Sequence[str], options: Options) -> Iterator[Block]:
    files = paths(inputs, _is_part, "of a checkout of QuixBugs")
    with_cases = {stem(name) for name in files if Path(name).parent.name == "json_testcases"}
    node = b""
    for block in file_blocks([name for name in files if _program(name) not in with_cases or "python_test" not in name]):
        if not _is_part(block.name):
            raise UserError(f"{block.name}: give the checkout of QuixBugs, its folder")
        if stem(block.name) == "node":
            node = block.data
        else:
            yield dataclasses.replace(block, context=node)


def _is_part(name: str) -> bool:
    """Whether a file is a program or its tests; `node.py` is what tests on graphs are written with."""
    folder, file = Path(name).parent.name, Path(name).name
    if folder == "python_testcases":
        return file == "node.py" or (file.startswith("test_") and file.endswith(".py"))
    of_programs = file.endswith(".py") and not file.endswith("_test.py") and file not in ("node.py", "__init__.py")
    return file.endswith(".json") if folder == "json_testcases" else folder in PARTS and of_programs


def _program(name: str) -> str:
    return stem(name).removeprefix("test_")


def _quixbugs_read(block: Block, options: Options) -> Iterator[Row | Drop]:
    return each([(block.place, block)], _part)


def _part(block: Block, place: str) -> Row:
    folder, program = Path(block.name).parent.name, _program(block.name)
    try:
        source, node = block.data.decode(), block.context.decode()
        if folder == "json_testcases":
            value = _cases(source, program)
        elif folder == "python_testcases":
            value = _graph_tests(source, node, program)
        else:
            value = _signature(source, program) if folder == "python_programs" else _body(source, program)
    except UnicodeDecodeError:
        raise Skip("not UTF-8") from None
    except SyntaxError as error:
        raise Skip("not Python", f"line {error.lineno}: {error.msg}") from None
    return Row(program, {"part": PARTS[folder], "text": value}, place)


def _signature(source: str, program: str) -> str:
    """Imports, signature, and the description that follows the function as its docstring."""
    statements, function = _parsed(source, program)
    texts = [string for statement in statements if (string := _string(statement)) is not None]
    if not texts:
        raise Skip("no description after the function")
    description = re.sub(r"\n{3,}", "\n\n", texts[-1].strip()).replace('"""', "'''")
    raw = "r" if "\\" in description else ""
    before = [ast.unparse(statement) for statement in statements if isinstance(statement, ast.Import | ast.ImportFrom)]
    signature = source.splitlines()[function.lineno - 1 : function.body[0].lineno - 1]
    docstring = textwrap.indent(f'{raw}"""\n{description}\n"""', "    ")
    return "\n".join([*before, *(["", ""] if before else []), "\n".join(signature).rstrip(), docstring, ""])


def _body(source: str, program: str) -> str:
    """The function's body, and what follows it but comments and the alternatives that are kept in strings."""
    statements, function = _parsed(source, program)
    after = [later for later in statements if later.lineno >= function.lineno and _string(later) is None]
    body = source.splitlines()[function.body[0].lineno - 1 : after[-1].end_lineno]
    return "\n".join(body) + "\n"


def _parsed(source: str, program: str) -> tuple[list[ast.stmt], ast.FunctionDef]:
    statements = ast.parse(source).body
    for statement in statements:
        if isinstance(statement, ast.FunctionDef) and statement.name == program:
            return statements, statement
    raise Skip("no function of the file's name")


def _string(statement: ast.stmt) -> str | None:
    """The text of a statement that is nothing else."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return statement.value.value if isinstance(statement.value.value, str) else None
    return None


def _cases(source: str, program: str) -> str:
    cases = []
    for number, line in enumerate(source.splitlines(), 1):
        if not line.strip():
            continue
        try:
            arguments, expected = json.loads(line)
        except (ValueError, TypeError, RecursionError):
            raise Skip("a line is not [arguments, result]", f"line {number}") from None
        arguments = arguments if isinstance(arguments, list) else [arguments]
        if arguments[:1] != [SLOW.get(program)]:
            cases.append((arguments, expected))
    if not cases:
        raise Skip("no cases")
    exact, close = "plain(candidate(*arguments)) == expected", "abs(candidate(*arguments) - expected) <= arguments[-1]"
    return _CHECK.format(cases=cases, condition=close if program == "sqrt" else exact)


def _graph_tests(source: str, node: str, program: str) -> str:
    """The test functions of a file within `check`, where the program's name is the candidate's."""
    kept, names = [f"{program} = candidate"], []
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.FunctionDef) and statement.name.startswith("test"):
            names.append(statement.name)
        # Imports are of pytest, of nodes and, under an if, of the program.
        if not isinstance(statement, ast.Import | ast.ImportFrom | ast.If):
            kept.append(ast.unparse(statement))
    if not names:
        raise Skip("no cases")
    calls = [f"{name}()" for name in names]
    return f"{node.strip()}\n\n\ndef check(candidate):\n" + textwrap.indent("\n".join(kept + calls), "    ") + "\n"


def _quixbugs_join(key: str, rows: Sequence[Row], options: Options) -> Iterator[Made | Drop]:
    parts = {row.fields["part"]: row for row in rows}
    missing = [part for part in ("prompt", "solution", "tests") if part not in parts]
    for row in rows:
        if missing:
            yield Drop(f"the program has no {missing[0]}", row.place, key, bad=True)
        elif row is not parts[row.fields["part"]]:
            yield Drop("file of the same program seen before", row.place, key)
    if not missing:
        prompt, solution, tests = (parts[part].fields["text"] for part in ("prompt", "solution", "tests"))
        name = f"quixbugs/{key}"
        yield Made(Prompt(name, prompt, name, {"entry_point": key, "solution": solution, "tests": tests}), "test")


HUMANEVAL = Source(
    name="humaneval",
    about="HumanEval: Python functions to write from their docstring, with tests. Never train on it",
    licence="MIT (Chen et al. 2021). From github.com/openai/human-eval, or openai/openai_humaneval",
    kinds=("prompts",),
    blocks=_humaneval_blocks,
    read=_humaneval_read,
    join=one_by_one,
    published=("test",),
)
QUIXBUGS = Source(
    name="quixbugs",
    about="QuixBugs: classic algorithms to write from their description, with tests. Never train on it",
    licence="MIT (Lin et al. 2017). From github.com/jkoppel/QuixBugs",
    kinds=("prompts",),
    blocks=_quixbugs_blocks,
    read=_quixbugs_read,
    join=_quixbugs_join,
    published=("test",),
)
