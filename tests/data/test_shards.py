import contextlib
import hashlib
import resource
import subprocess
import sys
from collections import Counter

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hhh_jax.data import shards
from hhh_jax.data.records import Document, GroupedLabel, MultipleChoice, Pair, Prompt
from hhh_jax.data.source import Row
from hhh_jax.errors import UserError

TEXT = st.text(max_size=20)


@contextlib.contextmanager
def largest_file(size: int):
    """No file may grow beyond `size` bytes, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@given(
    st.lists(st.builds(Row, st.sampled_from(["", "a\t", "c\n", "é\u2028"]) | TEXT, st.dictionaries(TEXT, TEXT), TEXT)),
    st.integers(1, 20),
    st.data(),
)
def test_rows_come_back_by_bucket(tmp_path_factory, rows, buckets, data):
    path = tmp_path_factory.mktemp("rows") / "000000"
    shards.write_rows(path, map(shards.pack_row, rows), buckets, {"a": 1})
    file = shards.RowsFile(path)
    assert file.meta == {"a": 1}
    cuts = sorted(data.draw(st.sets(st.integers(1, buckets - 1)))) if buckets > 1 else []
    parts = [list(file.rows(first, last)) for first, last in zip([0, *cuts], [*cuts, buckets], strict=True)]
    found = [[shards.unpack_row(*packed) for packed in part] for part in parts]
    together = [row for part in found for row in part]
    assert sum(file.sizes) == sum(len(key) + len(rest) + 2 for part in parts for key, rest in part)
    for key in {row.key for row in rows}:
        assert [row for row in together if row.key == key] == [row for row in rows if row.key == key]
        assert sum(any(row.key == key for row in part) for part in found) == 1
    assert len(together) == len(rows)


def test_what_json_cannot_hold_is_not_packed():
    for row in (Row("k", {"text": "a\ud800"}), Row("\udfff", {}), Row("k", {"id": 2**64})):
        with pytest.raises(orjson.JSONEncodeError):
            shards.pack_row(row)


def test_damaged_rows(tmp_path):
    path = tmp_path / "x.partial" / "rows" / "000000"
    path.parent.mkdir(parents=True)
    shards.write_rows(path, [], 4, {})
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"x\.partial/rows/000000: damaged; remove the folder .*x\.partial to begin"):
        shards.RowsFile(path)


@given(st.lists(st.integers(0, 2 * shards.UNIT_BYTES), min_size=1, max_size=50))
def test_units_cover_all_buckets_within_their_bound(sizes):
    units = shards.plan_units(sizes)
    assert [bucket for first, last in units for bucket in range(first, last)] == list(range(len(sizes)))
    for first, last in units:
        assert sum(sizes[first:last]) <= shards.UNIT_BYTES or sum(size > 0 for size in sizes[first:last]) == 1
    assert len(units) <= 1 + 2 * sum(sizes) // shards.UNIT_BYTES


def test_fractions_are_even():
    tenths = Counter(int(10 * shards.fraction(f"name {i}")) for i in range(10_000))
    assert sorted(tenths) == list(range(10)) and all(900 < n < 1100 for n in tenths.values())


RECORDS = {
    "pairs": [Pair("1", "", "é\n", "\0", "g"), Pair("2", "c", "x" * 10_000, "b", "g")],
    "documents": [Document("1", "text", "g")],
    "choices": [
        MultipleChoice("1", "c", ("a",), 0, "g"),
        MultipleChoice("2", "c", ("a", "", "ü"), 2, "g", "category"),
        MultipleChoice("3", "c", (), 0, "g"),
    ],
    "labels": [GroupedLabel("1", "c", 1, "g"), GroupedLabel("2", "c", 0, "g", "hard")],
    "prompts": [Prompt("1", "t", "g", {"target": "ü", "n": [1, 2.5]}), Prompt("2", "t", "g")],
}
EXPECTED = {  # as TFDS gives them: text as bytes, `meta` as JSON
    "choices": {"id": b"2", "context": b"c", "options": [b"a", b"", "ü".encode()], "label": 2, "group": b"g"}
    | {"category": b"category"},
    "labels": {"id": b"2", "context": b"c", "label": 0, "group": b"g", "category": b"hard"},
    "prompts": {"id": b"2", "text": b"t", "group": b"g", "meta": b"{}"},
    "pairs": {"id": b"2", "context": b"c", "good": b"x" * 10_000, "bad": b"b", "group": b"g"},
    "documents": {"id": b"1", "text": b"text", "group": b"g"},
}


def folder_of(tmp_path, kind, split_of_unit):
    (tmp_path / "units").mkdir()
    for index, splits in enumerate(split_of_unit):
        records = [(split, shards.serialize(record)) for split in splits for record in RECORDS[kind]]
        shards.write_unit(tmp_path / "units" / f"{index:05}", records, {"tally": index})
    return shards.write_folder(tmp_path / "final", "some_name", "About.", kind, tmp_path / "units")


@pytest.mark.parametrize("kind", RECORDS)
def test_serialized_records_come_back(kind):
    assert [shards.deserialize(shards.serialize(record), kind) for record in RECORDS[kind]] == RECORDS[kind]


@pytest.mark.parametrize("kind", RECORDS)
def test_tfds_reads_every_kind(kind, tmp_path):
    import tensorflow_datasets as tfds

    made = folder_of(tmp_path, kind, [["train", "test"], ["test"], ["train", "test_hard"]])
    n = len(RECORDS[kind])
    assert [(shard["name"], shard["split"], shard["records"]) for shard in made] == [
        ("some_name-train.array_record-00000-of-00002", "train", n),
        ("some_name-train.array_record-00001-of-00002", "train", n),
        ("some_name-test.array_record-00000-of-00001", "test", 2 * n),
        ("some_name-test_hard.array_record-00000-of-00001", "test_hard", n),
    ]
    builder = tfds.builder_from_directory(tmp_path / "final")
    assert {name: info.num_examples for name, info in builder.info.splits.items()} == {
        "train": 2 * n,
        "test": 2 * n,
        "test_hard": n,
    }
    for split in builder.info.splits:
        row = builder.as_data_source(split)[min(1, n - 1)]
        plain = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in row.items()}
        assert plain == EXPECTED[kind]
    if kind == "choices":
        assert list(builder.as_data_source("test")[2]["options"]) == []


def test_tfds_finds_it_by_name_without_tensorflow(tmp_path):
    folder_of(tmp_path, "pairs", [["train"]])
    (tmp_path / "some_name").mkdir()
    (tmp_path / "final").rename(tmp_path / "some_name" / "1.0.0")
    code = (
        "import sys, tensorflow_datasets as tfds\n"
        "print(len(tfds.data_source('some_name', data_dir=sys.argv[1], split='train')), 'tensorflow' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code, tmp_path], text=True) == "2 False\n"


def test_a_folder_is_gone_on_with(tmp_path):
    made = folder_of(tmp_path, "pairs", [["train", "test"], ["train", "test"]])
    files = {path.name: path.read_bytes() for path in (tmp_path / "final").iterdir()}
    (tmp_path / "final" / "dataset_info.json").unlink()
    # As if it had been killed when one of the shards was still a unit's.
    (tmp_path / "final" / made[1]["name"]).rename(tmp_path / "units" / "00001" / "train")
    again = shards.write_folder(tmp_path / "final", "some_name", "About.", "pairs", tmp_path / "units")
    assert again == made
    assert {path.name: path.read_bytes() for path in (tmp_path / "final").iterdir()} == files


def test_a_merged_split_has_all_records_in_order(tmp_path):
    (tmp_path / "units").mkdir()
    units = [[b"%d" % (1000 * unit + i) for i in range(n)] for unit, n in enumerate((250, 1, 100))]
    for index, records in enumerate(units):
        shards.write_unit(tmp_path / "units" / f"{index:05}", [("test", record) for record in records], {})
    (shard,) = shards.write_folder(tmp_path / "final", "n", "", "documents", tmp_path / "units")
    together = [*units[0], *units[1], *units[2]]
    assert list(shards.read_records(tmp_path / "final" / shard["name"])) == together
    assert shard["records"] == 351 and shard["bytes"] == sum(map(len, together))


def test_equal_records_give_equal_bytes(tmp_path):
    a = Prompt("1", "t", "g", {"x": 1, "y": 2})
    b = Prompt("1", "t", "g", {"y": 2, "x": 1})
    assert shards.serialize(a) == shards.serialize(b)
    hashes = set()
    for name in "ab":
        shards.write_records(tmp_path / name, [b"%d" % i * i for i in range(300)])
        hashes.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(hashes) == 1


def test_a_full_disk_leaves_nothing(tmp_path):
    rows = [shards.pack_row(Row("key", {"text": hashlib.sha512(b"%d" % i).hexdigest()})) for i in range(1000)]
    with largest_file(10_000):
        with pytest.raises(UserError, match=r"cannot write .*rows: File too large; mend that and give the same"):
            shards.write_rows(tmp_path / "rows", rows, 4, {})
        with pytest.raises(UserError, match=r"cannot write .*unit: write.* failed: File too large"):
            shards.write_unit(tmp_path / "unit", [("train", b"x" * 10)], {})
    assert list(tmp_path.iterdir()) == []
