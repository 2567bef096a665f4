"""The table and the item records: what is written is what is read, and what does not fit is refused."""

import itertools
import json
import random

import numpy as np
import pytest

from hhh_jax import results
from hhh_jax.errors import UserError

ROWS = [
    {
        "study": "s",
        "run": f"r{n}",
        "N": n,
        "lambda": 1,
        "mu": 0.1,
        "seed": seed,
        "metric": "accuracy",
        "value": 1 / 3,
    }
    for n in (98304, 12288)
    for seed in (1, 0)
]


def test_table_round_trip(tmp_path):
    results.write_table([*ROWS, {"task": 'a "b", c\n'}], tmp_path / "t.csv")
    table = results.read_table(tmp_path / "t.csv")
    assert list(table.columns) == list(results.COLUMNS)
    assert table["value"].dropna().unique().tolist() == [1 / 3]
    assert table["N"].dropna().tolist() == [12288, 12288, 98304, 98304]
    assert table["N"].dtype == "Int64" and table["lambda"].dtype == "float64"
    assert table["task"].tolist()[0] == 'a "b", c\n' and table["init"].tolist() == [""] * 5


def test_table_bytes_do_not_depend_on_the_order(tmp_path):
    written = set()
    for seed in range(4):
        rows = ROWS.copy()
        random.Random(seed).shuffle(rows)
        results.write_table(rows, tmp_path / "t.csv")
        written.add((tmp_path / "t.csv").read_bytes())
    assert len(written) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_what_a_baseline_gets_right_is_written_once():
    """Where runs have measured it on the same data; rows of models stay, even where all but the run is alike."""
    chance = {"stage": "baseline", "task": "t", "ranker": "chance", "value": 0.5, "data_sha": "1"}
    rows = [chance | {"run": "a"}, chance | {"run": "b"}, chance | {"run": "c", "data_sha": "2"}]
    rows += [{"stage": "evaluate", "task": "t", "value": 0.5, "run": run} for run in ("a", "a")]
    assert results.once(rows) == [rows[0], rows[2], *rows[3:]]


def test_rewriting_a_table_that_was_read_changes_nothing(tmp_path):
    results.write_table(ROWS, tmp_path / "a.csv")
    table = results.read_table(tmp_path / "a.csv")
    results.write_table(table.to_dict("records"), tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_unknown_columns_are_refused(tmp_path):
    with pytest.raises(ValueError, match="acuracy"):
        results.write_table([{"acuracy": 1}], tmp_path / "t.csv")


def test_a_missing_or_foreign_table_is_told(tmp_path):
    with pytest.raises(UserError, match=r"t\.csv: no such file"):
        results.read_table(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="expected the columns"):
        results.read_table(tmp_path / "t.csv")


def _item(item_id, seed, option, logp, n_tokens, reward=None, **more):
    fixed = {"task": "t", "split": "test", "selection": "best", "group_id": f"g{item_id}", "n_bytes": 9}
    return fixed | {
        "seed": seed, "item_id": item_id, "option": option, "logp_sum": logp, "n_tokens": n_tokens,
        "reward": reward, "label": int(option == "good"),
    } | more  # fmt: skip


def _write(tmp_path, items):
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return tmp_path


@pytest.fixture
def items():
    """Two seeds and three items: by summed log-probability all are wrong, by the mean a is right and b a
    tie."""
    sides = {"a": (-6.0, 6, -5.0, 4), "b": (-4.0, 4, -2.0, 2), "c": (-9.0, 3, -1.0, 3)}
    rewards = {(0, "a"): (1, 0), (0, "b"): (0, 1), (0, "c"): (2, 2)} | {(1, i): (1, 0) for i in "abc"}
    records = []
    for seed, (item_id, (good, n_good, bad, n_bad)) in itertools.product((1, 0), sides.items()):
        r_good, r_bad = rewards[seed, item_id]
        records.append(_item(item_id, seed, "good", good, n_good, r_good))
        records.append(_item(item_id, seed, "bad", bad, n_bad, r_bad))
    return records


def test_items_by_reward_and_mean_logp(tmp_path, items):
    random.Random(0).shuffle(items)
    run = _write(tmp_path, items)
    found = results.read_items(run, "t", "test", "best", "reward")
    assert found.seeds == (0, 1) and found.item_ids == ("a", "b", "c") and found.groups.tolist() == ["ga", "gb", "gc"]
    assert found.correct.tolist() == [[1, 0, 0.5], [1, 1, 1]]
    assert results.read_items(run, "t", "test", "best", "mean_logp").correct.tolist() == [[1, 0.5, 0]] * 2


def test_a_changed_file_is_read_again(tmp_path, items):
    run = _write(tmp_path, items)
    assert results.read_items(run, "t", "test", "best", "reward").correct[0, 0] == 1
    for item in items:
        item["reward"] = -float(item["reward"])
    _write(tmp_path, items)
    assert results.read_items(run, "t", "test", "best", "reward").correct[0, 0] == 0


@pytest.mark.parametrize(
    ("break_items", "message"),
    [
        (lambda items: items[:-1], "not every seed has every item once"),
        (lambda items: [i for i in items if i["item_id"] != "b" or i["option"] == "good"], "one side only"),
        (lambda items: [*items, items[0]], "not every seed has every item once"),
        (lambda items: [i | {"reward": None} for i in items], "has no reward"),
        (lambda items: [i | {"reward": float("nan")} for i in items], "not a finite number"),
        (lambda items: [i | {"selection": "final"} for i in items], "no such records"),
        (lambda items: [{"task": "t"}, *items], "line 1: not an item record"),
    ],
)
def test_items_that_do_not_fit_are_refused(tmp_path, items, break_items, message):
    run = _write(tmp_path, break_items(items))
    with pytest.raises(UserError, match=message):
        results.read_items(run, "t", "test", "best", "reward")


def test_a_run_without_items_is_told(tmp_path):
    with pytest.raises(UserError, match=r"items\.jsonl: no such file"):
        results.read_items(tmp_path, "t", "test", "best", "reward")


def test_baselines_and_documents(tmp_path):
    base = {"task": "t", "split": "test", "selection": "best", "ranker": "shorter"}
    records = [base | {"item_id": i, "group_id": "g", "correct": c} for i, c in (("b", 0.5), ("a", 1.0))]
    for seed, item_id in itertools.product((0, 1), "xy"):
        document = _item(item_id, seed, "text", -10.0 * (seed + 1), 4 + (item_id == "y"), selection="final")
        records.append({key: value for key, value in document.items() if key not in ("reward", "label")})
    run = _write(tmp_path, records)
    shorter = results.read_items(run, "t", "test", "best", "shorter")
    assert shorter.seeds == (0,) and shorter.correct.tolist() == [[1.0, 0.5]]
    documents = results.read_documents(run, "t", "test")
    np.testing.assert_array_equal(documents.logp, [[-10, -10], [-20, -20]])
    assert documents.n_tokens.tolist() == [4, 5] and documents.item_ids == ("x", "y")
    with pytest.raises(UserError, match="no document records"):
        results.read_documents(run, "other", "test")


def test_what_another_run_made_is_named_alike_wherever_the_study_is(tmp_path):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "job.json").write_text("{}")
    (tmp_path / "folder").mkdir()
    mine = tmp_path / "mine"
    assert results.task_of(f"{tmp_path}/teacher", mine) == "run:teacher"
    assert results.task_of(f"{tmp_path}/teacher/pairs.jsonl", mine) == "run:teacher/pairs.jsonl"
    for source in (f"{tmp_path}/folder/x", f"{tmp_path}/x", f"{tmp_path}-x/teacher", "word_order", "symbols:T0"):
        assert results.task_of(source, mine) == source
