"""The arithmetic of benchmarks, the order in which contenders take turns, and processes that race."""

import json

import pytest

from hhh_jax.bench.harness import report
from hhh_jax.bench.harness.contender import Contender
from hhh_jax.bench.harness.timing import Row, compare, interleave, ratio
from hhh_jax.errors import UserError


def test_contenders_take_turns_and_change_their_order():
    calls = []
    measures = {name: lambda name=name: calls.append(name) or float(len(calls)) for name in "ABC"}
    assert interleave(measures, 3) == {"A": [1, 6, 7], "B": [2, 5, 8], "C": [3, 4, 9]}
    assert "".join(calls) == "ABCCBAABC"


def test_a_ratio_is_taken_within_rounds():
    # The machine is half as fast in the last two rounds: 3, 4, 5, 3, 2 within rounds, while the medians' is 30 / 10.
    middle, lo, hi = ratio([60, 80, 100, 30, 20], [20, 20, 20, 10, 10])
    assert middle == 3
    assert (lo, hi) == (2, 5)  # of 5 rounds, a resample has the least as its median in 5.8% of the cases


def test_interval_by_all_resamples():
    # The median of 3 draws from 1, 2, 9: each extreme has at least two draws of three in 7 of 27 resamples.
    assert ratio([1, 2, 9], [1, 1, 1]) == (2, 1, 9)
    # Of 9 rounds with one slow one, it needs at least 5 draws of that one: 0.2% of the resamples.
    assert ratio([4] * 8 + [1], [2] * 9) == (2, 2, 2)
    assert ratio([3], [2]) == (1.5, 1.5, 1.5)


def test_row_and_table():
    row = compare("set", "pairs/s", [1234.0, 10.0, 2000.0], "theirs", [617.0, 10.0, 500.0], "a note")
    assert (row.value, row.baseline, row.ratio) == (1234, 500, 2)
    heading, line, note, plain = report.table([row, Row("alone", "ms", 0.12345)])
    assert heading.split() == ["value", "unit", "baseline", "against", "ratio", "[95%", "interval]"]
    assert line.split() == ["set", "1,234", "pairs/s", "500", "theirs", "2.00", "[1.00,", "4.00]"]
    assert note.strip() == "a note" and plain.split() == ["alone", "0.123", "ms"]


def test_rows_are_appended_with_the_machine(tmp_path):
    where = report.machine()
    assert where["cores"] >= 1 and where["jax"] and where["cpu"]
    for value in (1.0, 2.0):
        report.append(tmp_path / "runs" / "x.jsonl", [Row("x", "s", value)], where)
    lines = [json.loads(line) for line in (tmp_path / "runs" / "x.jsonl").read_text().splitlines()]
    assert [line["value"] for line in lines] == [1, 2] and lines[0]["machine"] == where


PROGRAM = """
from hhh_jax.bench.harness.contender import Channel

channel = Channel()
print("this is no answer")
channel.answer(ready=channel.settings["start"])
while steps := channel.steps():
    if steps == 13:
        raise SystemExit("13 is too many")
    channel.answer(double=2 * steps)
"""


def test_a_process_answers_and_says_why_it_ended(tmp_path, monkeypatch):
    (tmp_path / "doubler.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    with Contender("doubler", {"start": 7}) as doubler:
        assert doubler.ready == {"ready": 7}
        assert [doubler.measure(steps)["double"] for steps in (1, 4)] == [2, 8]
        with pytest.raises(UserError, match=r"doubler ended with status 1: .*13 is too many"):
            doubler.measure(13)
    with pytest.raises(UserError, match="KeyError: 'start'"):
        Contender("doubler", {})
