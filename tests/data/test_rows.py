"""Files of folders, splits by name, rows of JSON and CSV with their places, and what damage does to them."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hhh_jax.data import rows
from hhh_jax.data.source import Block, Drop, Row
from hhh_jax.errors import UserError


def block(data: bytes) -> Block:
    return Block("f:1", "f", data)


def test_paths_walk_folders_in_order_and_leave_files_alone(tmp_path):
    for name in ("b/two.txt", "a/one.txt", "a/three.csv", ".git/four.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    given_file = str(tmp_path / "a" / "three.csv")
    found = rows.paths(["-", str(tmp_path), given_file], lambda name: name.endswith(".txt"), "text")
    assert found == ["-", str(tmp_path / "a/one.txt"), str(tmp_path / "b/two.txt"), given_file]
    with pytest.raises(UserError, match="none of its 3 files is a song"):
        rows.paths([str(tmp_path)], lambda name: name.endswith(".mp3"), "a song")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("hellaswag_val_head5000.jsonl.gz", "validation"),
        ("ethics/justice/justice_test_hard.csv", "test"),
        ("lambada_development_plain_text.txt", "validation"),
        ("data/train.jsonl", "train"),
        ("train/README.md", None),
        ("latest.jsonl", None),
        ("-", None),
    ],
)
def test_split_is_a_word_of_the_file_name(name, split):
    assert rows.split_of(name) == split


def test_names_are_seen_through_compression():
    assert rows.bare("a/Novel.txt.bz2") == rows.bare("a/Novel.txt") == "a/Novel.txt"
    assert rows.stem("A/Posts.jsonl.GZ".lower()) == "posts" and rows.stem("LICENSE") == "license"
    assert rows.is_json_lines("a.jsonl.zst") and rows.is_json_lines("a.json") and not rows.is_json_lines("a.csv.gz")


def test_json_lines_tell_damage_with_its_line():
    data = b'{"a": 1}\n\n[1]\n{"a"\n{"a": "\xff"}\n{"a": 2}'
    made = list(rows.each(rows.json_lines(block(data)), lambda row, place: Row(str(row["a"]), row, place)))
    assert [(row.key, row.place) for row in made if isinstance(row, Row)] == [("1", "f:1"), ("2", "f:6")]
    drops = [(drop.reason, drop.place, drop.bad) for drop in made if isinstance(drop, Drop)]
    assert drops == [("not a JSON object", "f:3", True), ("broken JSON", "f:4", True), ("not UTF-8", "f:5", True)]


def test_a_broken_document_is_refused_with_its_line():
    assert rows.json_document(block(b'\xef\xbb\xbf["\xc3\xa9"]')) == ["é"]
    with pytest.raises(UserError, match="f:3: broken JSON"):
        rows.json_document(block(b'{\n"a": 1,\n}'))
    with pytest.raises(UserError, match="f:2: not UTF-8"):
        rows.json_document(block(b'{\n"a": "\xff"}'))


def test_csv_rows_know_the_line_they_start_at():
    data = b'\xef\xbb\xbfa,b\r\n"one\ntwo",2\r\n\r\n3,"say ""hi"""\r\n'
    expected = [("f:1", ["a", "b"]), ("f:2", ["one\ntwo", "2"]), ("f:5", ["3", 'say "hi"'])]
    assert list(rows.csv_rows(block(data))) == expected


def test_an_open_quote_costs_one_row():
    data = b'a,b\n1,"open\n2,two\n3,three,four\n4,\xff\n5,five\n'
    made = list(rows.csv_rows(block(data)))
    assert [(place, row) for place, row in made if not isinstance(row, rows.Skip)] == [
        ("f:1", ["a", "b"]), ("f:3", ["2", "two"]), ("f:6", ["5", "five"]),
    ]  # fmt: skip
    skips = [(place, row.reason) for place, row in made if isinstance(row, rows.Skip)]
    assert skips == [("f:2", "broken CSV"), ("f:4", "not 2 columns"), ("f:5", "not UTF-8")]


def test_a_stray_quote_that_swallows_rows_gives_them_back():
    data = b'1,a\n2,"b\n3,c\n4,d",x\n5,e\n'
    good = [row for _, row in rows.csv_rows(block(data)) if not isinstance(row, rows.Skip)]
    assert good == [["1", "a"], ["3", "c"], ["5", "e"]]


field = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r"), max_size=8)


@given(st.lists(st.tuples(field, field.filter(bool)), max_size=8))
def test_csv_rows_read_what_csv_writes(table):
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows(table)
    read = list(rows.csv_rows(block(buffer.getvalue().encode())))
    if not table or not table[0][0].startswith("\ufeff"):
        assert [row for _, row in read] == [list(row) for row in table]


def test_fields_are_checked():
    row = {"a": {"b": ["x", 1, True, "2", "\ud800", "1" * 5000, float("nan"), float("-inf")]}}
    assert rows.text(row, "a", "b", 0) == "x" and rows.number(row, "a", "b", 1) == 1
    assert rows.index(row, 3, "a", "b", 3) == 2 and rows.index(row, 2, "a", "b", 1) == 1
    for read, reason in (
        (lambda: rows.text(row, "a", "c"), r"no field a\.c"),
        (lambda: rows.text(row, "a", "b", 1), r"a\.b\.1 is not text"),
        (lambda: rows.text(row, "a", "b", 4), "half a surrogate pair"),
        (lambda: rows.text(None, "a"), "no field a"),
        (lambda: rows.number(row, "a", "b", 2), "is not a number"),
        (lambda: rows.number(row, "a", "b", 6), "is not a number"),
        (lambda: rows.number(row, "a", "b", 7), "is not a number"),
        (lambda: rows.index(row, 2, "a", "b", 2), r"is not in 0\.\.1"),
        (lambda: rows.index(row, 2, "a", "b", 3), r"is not in 0\.\.1"),
        (lambda: rows.index(row, 2, "a", "b", 5), r"is not in 0\.\.1"),
    ):
        with pytest.raises(rows.Skip, match=reason):
            read()


def test_shuffled_options_keep_the_right_one_and_leave_no_position_out():
    places = []
    for number in range(200):
        options, label = rows.shuffled(["good", "bad", "worse"], 0, f"item {number}", 0)
        assert options[label] == "good" and sorted(options) == ["bad", "good", "worse"]
        assert rows.shuffled(["good", "bad", "worse"], 0, f"item {number}", 0) == (options, label)
        places.append(label)
    assert all(40 < places.count(place) < 95 for place in range(3))
    assert [rows.shuffled("abc", 0, f"item {n}", 1)[1] for n in range(200)] != places
