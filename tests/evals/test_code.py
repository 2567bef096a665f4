"""Completions become verdicts by their tests, and verdicts pass@k; what the harness cannot score counts for nothing."""

import pytest

from hhh_jax.data import sources
from hhh_jax.data.records import Prompt
from hhh_jax.errors import UserError
from hhh_jax.evals import code, sandbox
from hhh_jax.evals.code import pass_rows, program, score_completions, truncate


def record(name, text, tests, entry_point):
    return Prompt(name, text, name, {"entry_point": entry_point, "tests": tests})


DOUBLE = record(
    "code/double", 'def double(x: int) -> int:\n    """ Twice x. """\n',
    "METADATA = {}\n\n\ndef check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n",
    "double",
)  # fmt: skip
DECODE = record(
    "code/decode",
    'def encode(s: str):\n    return s[::-1]\n\n\ndef decode(s: str):\n    """ Undoes encode. """\n',
    "def check(candidate):\n    assert candidate(encode('abc')) == 'abc'\n", "decode",
)  # fmt: skip
BROKEN = record("code/broken", DOUBLE.text, "def check(candidate):\n    assert wanted() == candidate(2)\n", "double")


pytestmark = pytest.mark.usefixtures("isolation")


@pytest.mark.parametrize(
    ("completion", "kept"),
    [
        ("    return 2\n\n\ndef g():\n    pass\n", "    return 2\n\n"),
        ("    # Note\n    if x:\n        print(x)\n", "    # Note\n    if x:\n        print(x)\n"),
        ("    return 2\nprint(1)\nclass A:\n", "    return 2"),
        ("    return 2\n#", "    return 2"),
        ("\nif", ""),
        ("def", "def"),
    ],
)  # fmt: skip
def test_truncation_ends_the_body(completion, kept):
    assert truncate(completion) == kept and truncate(completion, stop=()) == completion


def test_completions_get_their_verdicts():
    completions = [
        ["    return 2 * x\n", "    return x + 2\n", "    return 2 * x\n\ndef double(x):\n    pass\n", "    return ("],
        ["    return encode(s)", "    raise ValueError(s)\n", "    while True:\n        pass\n", ""],
        ["    return 4\n"],
    ]  # fmt: skip
    items = score_completions([DOUBLE, DECODE, BROKEN], completions, allow_untrusted=True, timeout=1)
    assert [(item["item_id"], item["sample"], item["outcome"], item["category"]) for item in items] == [
        ("code/double", 0, "passed", ""), ("code/double", 1, "failed", "wrong answer"),
        ("code/double", 2, "passed", ""), ("code/double", 3, "failed", "syntax"),
        ("code/decode", 0, "passed", ""), ("code/decode", 1, "failed", "exception"),
        ("code/decode", 2, "failed", "timeout"), ("code/decode", 3, "failed", "wrong answer"),
        ("code/broken", 0, "error", "harness"),
    ]  # fmt: skip
    assert "assert candidate(-1) == -2" in items[1]["detail"] and "ValueError: cba" in items[5]["detail"]
    assert "NameError" in items[8]["detail"] and all(item["group_id"] == item["item_id"] for item in items)
    rows = pass_rows(items, (1, 2, 10))
    assert [(row["metric"], row["k"], row["n_items"]) for row in rows] == [("pass@k", 1, 2), ("pass@k", 2, 2)]
    assert rows[0]["value"] == (2 / 4 + 1 / 4) / 2
    assert rows[1]["value"] == pytest.approx(((1 - 1 / 6) + (1 - 3 / 6)) / 2)
    assert all(0 <= row["lo"] <= row["value"] <= row["hi"] <= 1 for row in rows)


def test_equal_programs_run_once(monkeypatch):
    ran = []

    def run_many(programs, **kwargs):
        ran.extend(programs)
        return sandbox.run_many(programs, **kwargs)

    monkeypatch.setattr(code, "run_many", run_many)
    completions = ["    return 2 * x", "    return 2 * x\n#", "    return x"]
    items = score_completions([DOUBLE], [completions], allow_untrusted=True)
    assert [item["outcome"] for item in items] == ["passed", "passed", "failed"] and len(ran) == 2


def test_errors_are_left_out_and_not_zeros():
    def item(name, outcome):
        return {"item_id": name, "group_id": name, "outcome": outcome}

    items = [item("a", "passed"), item("a", "error"), item("b", "failed"), item("b", "passed"), item("c", "error")]
    one, two = pass_rows(items, (1, 2, 3))
    assert (one["k"], one["value"], one["n_items"]) == (1, 0.75, 2)
    assert (two["k"], two["value"], two["n_items"]) == (2, 1.0, 1)
    assert pass_rows([item("c", "error")]) == [] == pass_rows([])


def test_user_errors():
    with pytest.raises(UserError, match="--run_untrusted_code"):
        score_completions([DOUBLE], [["    return 2 * x"]], allow_untrusted=False)
    with pytest.raises(UserError, match=r"plain/1: a prompt for code needs meta\.entry_point"):
        program(Prompt("plain/1", "Once", "plain/1", {}), "")
    with pytest.raises(ValueError, match="argument"):
        score_completions([DOUBLE], [], allow_untrusted=True)


@pytest.mark.real_data("humaneval/HumanEval.jsonl.gz")
def test_every_solution_of_humaneval_passes_and_no_empty_body_does(real_data):
    source = sources.load("humaneval")
    blocks = list(source.blocks([str(real_data / "humaneval/HumanEval.jsonl.gz")], {}))
    records = [
        made.record for block in blocks for row in source.read(block, {}) for made in source.join(row.key, [row], {})
    ]
    assert len(records) == 164
    completions = [[record.meta["solution"] + "\ndef g(): pass", "    pass\n"] for record in records]
    items = score_completions(records, completions, allow_untrusted=True)
    outcomes = {(item["sample"], item["outcome"], item["category"]) for item in items}
    assert outcomes == {(0, "passed", ""), (1, "failed", "wrong answer")}
    assert pass_rows(items)[0]["value"] == 0.5
