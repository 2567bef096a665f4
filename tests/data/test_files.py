import gzip
import json
import re
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hhh_jax.data import files
from hhh_jax.data.records import SPLITS, Document, Pair
from hhh_jax.errors import UserError

ROW = {"context": "c", "good": "g", "bad": "b"}


def line(**changes):
    return json.dumps({**ROW, **changes}).encode()


def without(field):
    return json.dumps({name: value for name, value in ROW.items() if name != field}).encode()


BAD_LINES = {
    b"caf\xe9": ("not UTF-8", "(byte 4)"),
    b'{"context": "c", "good": "g"': ("broken JSON", "delimiter"),
    b"[" * 100_000: ("broken JSON", "recursion"),
    b'["c", "g", "b"]': ("not a JSON object", ""),
    b"null": ("not a JSON object", ""),
    without("context"): ("no field 'context'", ""),
    without("good"): ("no field 'good'", ""),
    line(good=3): ("'good' is not text", ""),
    line(context=None): ("'context' is not text", ""),
    line(bad=["b"]): ("'bad' is not text", ""),
    line(good=""): ("'good' is empty", ""),
    line(bad=" \n"): ("'bad' is empty", ""),
    line(good="same", bad="same"): ("both sides are equal", ""),
    line(bad="\ud800"): ("'bad' has half a surrogate pair", ""),
    line(id="1"): ("id seen before", "'1'"),
    line(id=1.5): ("'id' is not text", ""),
    line(group=[1]): ("'group' is not text", ""),
    line(split="dev"): ("'split' is not one of train, validation, test", ""),
    b'{"context": "' + b"x" * files.MAX_BYTES + b'"}': (f"longer than {files.MAX_BYTES} bytes", ""),
}


@pytest.mark.parametrize("bad", BAD_LINES, ids=[reason for reason, _ in BAD_LINES.values()])
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_bad_row_is_named_or_dropped_and_counted(bad, suffix, tmp_path):
    path = tmp_path / f"own{suffix}"
    content = b"\n".join([line(id=1), b"", bad, line(id="last"), b""])
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    reason, detail = BAD_LINES[bad]
    with pytest.raises(
        UserError, match=f"own{suffix}:3: {re.escape(reason)}.*{re.escape(detail)}.*bad_rows=drop"
    ):
        files.read_pairs(str(path))
    pairs, _, counts = files.read_pairs(str(path), "drop")
    assert [pair.id for pair in pairs] == ["1", "last"]
    assert counts.as_dict() == {"read": 3, "kept": 2, "dropped": {reason: 1}}


def test_good_rows(tmp_path):
    path = tmp_path / "own.jsonl"
    rows = [
        line(),
        line(context="", id="x"),
        line(id=7, group=8, split="test", other="ignored"),
        line(id=None, group=None, split=None, good="\U0001f600 é"),
    ]
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(rows))
    pairs, named, counts = files.read_pairs(str(path))
    shared = pairs[0].group
    assert shared.startswith("context ")
    assert pairs == [
        Pair("own.jsonl:1", "c", "g", "b", shared),
        Pair("x", "", "g", "b", "x"),
        Pair("7", "c", "g", "b", "8"),
        Pair("own.jsonl:4", "c", "\U0001f600 é", "b", shared),
    ]
    assert named == [None, None, "test", None]
    assert counts.as_dict() == {"read": 4, "kept": 4, "dropped": {}}


def test_a_huge_line_is_not_held_in_memory(tmp_path):
    path = tmp_path / "own.jsonl"
    with open(path, "wb") as stream:
        stream.write(line() + b"\n")
        for _ in range(50):
            stream.write(b"x" * 2**20)
        stream.write(b"\n" + line() + b"\n")
    tracemalloc.start()
    pairs, _, counts = files.read_pairs(str(path), "drop")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [pair.id for pair in pairs] == ["own.jsonl:1", "own.jsonl:3"]
    assert counts.dropped == {f"longer than {files.MAX_BYTES} bytes": 1}
    assert peak < 5 * files.MAX_BYTES


def test_the_longest_line_allowed(tmp_path):
    path = tmp_path / "own.jsonl"
    longest = line(context="x" * (files.MAX_BYTES - len(line(context=""))))
    assert len(longest) == files.MAX_BYTES
    for end in (b"\n", b"\r\n", b""):
        path.write_bytes(line() + b"\n" + longest + end)
        assert len(files.read_pairs(str(path))[0]) == 2
    path.write_bytes(longest.replace(b"x", b"xx", 1) + b"\n" + line())
    assert files.read_pairs(str(path), "drop")[2].as_dict()["kept"] == 1


@pytest.mark.parametrize("damage", ["truncated", "checksum"])
def test_broken_gzip(damage, tmp_path):
    path = tmp_path / "own.jsonl.gz"
    rows = b"\n".join(line(good=f"{i * 7919 % 10007}") for i in range(5000))
    packed = gzip.compress(rows)
    path.write_bytes(packed[: len(packed) // 2] if damage == "truncated" else packed[:-8] + bytes(8))
    with pytest.raises(UserError, match=r"own.jsonl.gz:\d+: broken gzip .*copy it again"):
        files.read_pairs(str(path))
    pairs, _, counts = files.read_pairs(str(path), "drop")
    assert counts.dropped == {"broken gzip": 1}
    assert 1000 < len(pairs) == counts.kept <= (4000 if damage == "truncated" else 5000)
    assert pairs[999].good == str(999 * 7919 % 10007)


def test_not_gzip_at_all(tmp_path):
    path = tmp_path / "own.jsonl.gz"
    path.write_bytes(line())
    for bad_rows in files.BAD_ROWS:
        with pytest.raises(UserError, match="broken gzip"):
            files.read_pairs(str(path), bad_rows)


@pytest.mark.parametrize("content", [b"", b"\n \r\n\n"])
@pytest.mark.parametrize("name", ["own.jsonl", "own.jsonl.gz", "own.txt"])
def test_an_empty_file_is_an_error_always(content, name, tmp_path):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    read = files.read_documents if name == "own.txt" else files.read_pairs
    with pytest.raises(UserError, match=r"own.*no usable rows \(the file is empty\)"):
        read(str(path), "drop")


def test_all_rows_dropped_is_an_error_with_the_counts(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_bytes(b"\n".join([without("good"), line(bad=""), without("good")]))
    with pytest.raises(UserError, match=r"no usable rows \(2 x no field 'good', 1 x 'bad' is empty\)"):
        files.read_pairs(str(path), "drop")


def test_sources_that_cannot_be_opened(tmp_path):
    with pytest.raises(UserError, match=r"gone.jsonl: can't be read: No such file"):
        files.read_pairs(str(tmp_path / "gone.jsonl"))
    with pytest.raises(UserError, match=r"own.csv: the name must end in .jsonl or .jsonl.gz"):
        files.read_pairs(str(tmp_path / "own.csv"))
    with pytest.raises(UserError, match=r"own.txt: the name must end in .jsonl"):
        files.read_pairs(str(tmp_path / "own.txt"))
    with pytest.raises(UserError, match="bad_rows is 'skip'; it must be one of error, drop"):
        files.read_pairs(str(tmp_path / "own.jsonl"), "skip")


@given(st.lists(st.binary(max_size=60).filter(lambda raw: b"\n" not in raw), min_size=1, max_size=8))
def test_any_bytes_are_counted_or_refused(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("any") / "own.jsonl"
    path.write_bytes(b"\n".join([line(), *lines, line()]))
    pairs, named, counts = files.read_pairs(str(path), "drop")
    assert counts.read == counts.kept + sum(counts.dropped.values())
    assert len(pairs) == len(named) == counts.kept >= 2


def test_documents_in_json_lines(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(
        '{"text": "first"}\n{"text": "second", "id": "s", "group": "g", "split": "test"}\n{"text": " "}\n'
    )
    documents, named, counts = files.read_documents(str(path), "drop")
    assert documents == [Document("own.jsonl:1", "first", "own.jsonl:1"), Document("s", "second", "g")]
    assert named == [None, "test"]
    assert counts.dropped == {"'text' is empty": 1}


def test_blocks_of_text(tmp_path):
    path = tmp_path / "own.txt.gz"
    parts = [b"\xef\xbb\xbf\n\nfirst\r\n  line two ", b"second", b"bad \xff\nblock", b"third\n"]
    path.write_bytes(gzip.compress(b"\n\n \n".join(parts)))
    documents, _, counts = files.read_documents(str(path), "drop")
    assert [(document.id, document.text) for document in documents] == [
        ("own.txt.gz:3", "first\n  line two "),
        ("own.txt.gz:7", "second"),
        ("own.txt.gz:14", "third"),
    ]
    assert counts.dropped == {"not UTF-8": 1}
    with pytest.raises(UserError, match=r"own.txt.gz:10: not UTF-8 \(byte 5\)"):
        files.read_documents(str(path))


def test_a_block_of_text_that_is_too_long(tmp_path):
    path = tmp_path / "own.txt"
    path.write_bytes(b"short\n\n" + (b"x" * 999 + b"\n") * (files.MAX_BYTES // 1000 + 1) + b"\nalso short")
    with pytest.raises(UserError, match=r"own.txt:3: longer than .* put a blank line between documents"):
        files.read_documents(str(path))
    assert [d.text for d in files.read_documents(str(path), "drop")[0]] == ["short", "also short"]


def cut_split(pairs, named, split):
    return [pairs[i] for i in files.cut_split(*files.places(pairs, named), split, "own.jsonl")]


def cut(pairs, named):
    return {split: cut_split(pairs, named, split) for split in SPLITS}


def make(n, per_group=1):
    return [Pair(str(i), "", "g", "b", f"group {i // per_group}") for i in range(n)]


def test_split_is_by_group_and_about_a_tenth():
    pairs = make(6000, per_group=2)
    parts = cut(pairs, [None] * 6000)
    groups = {split: {pair.group for pair in part} for split, part in parts.items()}
    assert sum(map(len, groups.values())) == 3000
    assert sum(map(len, parts.values())) == 6000
    for split in ("validation", "test"):
        assert 0.08 < len(parts[split]) / 6000 < 0.12
    assert parts["train"] == [pair for pair in pairs if pair.group in groups["train"]]  # in order


def test_split_does_not_move_when_rows_are_added_or_dropped():
    pairs = make(3000)
    whole, half = cut(pairs, [None] * 3000), cut(pairs[::2], [None] * 1500)
    for split in SPLITS:
        assert set(half[split]) <= set(whole[split])


@given(st.integers(3, 40), st.integers())
def test_small_files_have_at_least_one_of_each(n, salt):
    pairs = [Pair(str(i), "", "g", "b", f"{salt} {i}") for i in range(n)]
    parts = cut(pairs, [None] * n)
    assert all(parts.values())
    assert Counter(pair.id for part in parts.values() for pair in part) == Counter(pair.id for pair in pairs)


def test_too_few_groups_to_hold_out():
    pairs = make(10, per_group=5)
    assert cut_split(pairs, [None] * 10, "train") == pairs
    with pytest.raises(
        UserError, match=r"own.jsonl: nothing for the test split \(10 rows, 2 groups .*at least 3 groups"
    ):
        cut_split(pairs, [None] * 10, "test")


def test_named_splits_are_kept_and_missing_ones_cut_from_the_rest():
    pairs = make(1000)
    parts = cut(pairs, ["test" if i < 300 else None for i in range(1000)])
    assert parts["test"] == pairs[:300]
    assert 40 < len(parts["validation"]) < 110
    assert len(parts["train"]) + len(parts["validation"]) == 700
    names = [SPLITS[i % 3] for i in range(1000)]
    assert all(part == pairs[i::3] for i, part in enumerate(cut(pairs, names).values()))


def write_tfds(folder: Path, splits: dict[str, range]) -> Path:
    """A dataset written by TFDS as array_record; two of its rows can't be used."""
    import numpy as np
    import tensorflow_datasets as tfds

    class OwnPairs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            text = tfds.features.Text()
            features = {"context": text, "good": text, "bad": text, "id": tfds.features.Scalar(np.int64)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _):
            return {split: self._generate_examples(numbers) for split, numbers in splits.items()}

        def _generate_examples(self, numbers):
            for i in numbers:
                good = "é good" if i else b"not UTF-8 \xff"
                yield i, {"context": f"q{i}", "good": good, "bad": "b" if i != 1 else "", "id": i}

    OwnPairs(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder / "own_pairs" / "1.0.0"


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    return write_tfds(tmp_path_factory.mktemp("tfds"), {"train": range(60), "test": range(60, 80)})


def test_a_folder_with_all_splits_is_read_in_one_only(tmp_path):
    splits = {"train": range(2, 50), "validation": range(50, 55), "test": range(55, 63)}
    folder = str(write_tfds(tmp_path, splits))
    for split, numbers in splits.items():
        pairs, named, counts = files.read_pairs(folder, split=split)
        assert sorted(int(pair.id) for pair in pairs) == list(numbers) and counts.read == len(numbers)
        assert named == [None] * len(numbers) and files.has_split(folder, split)
    assert len(files.read_pairs(folder)[0]) == 61


def test_tfds_folder(tfds_folder):
    pairs, named, counts = files.read_pairs(str(tfds_folder), "drop")
    assert sorted(int(pair.id) for pair in pairs) == list(range(2, 80))
    assert counts.as_dict() == {"read": 80, "kept": 78, "dropped": {"'bad' is empty": 1, "not UTF-8": 1}}
    assert all((pair.context, pair.good, pair.bad) == (f"q{pair.id}", "é good", "b") for pair in pairs)
    parts = cut(pairs, named)
    assert {int(pair.id) for pair in parts["test"]} == set(range(60, 80))
    assert parts["validation"] and len(parts["validation"]) + len(parts["train"]) == 58
    with pytest.raises(UserError, match=r"1.0.0/train\[\d+\]: ('bad' is empty|not UTF-8)"):
        files.read_pairs(str(tfds_folder))
    with pytest.raises(UserError, match="no field 'text'"):
        files.read_documents(str(tfds_folder))


def test_tfds_without_tensorflow(tfds_folder):
    code = (
        "import sys\n"
        "from hhh_jax.data import datasets\n"
        "records = datasets.load_pairs(sys.argv[1], 'test', bad_rows='drop').records\n"
        "print(len(records), 'tensorflow' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code, tfds_folder], text=True) == "20 False\n"


def test_folders_that_are_not_tfds(tfds_folder, tmp_path):
    with pytest.raises(UserError, match=f"not a TFDS folder.*did you mean {tfds_folder}"):
        files.read_pairs(str(tfds_folder.parent.parent))
    with pytest.raises(UserError, match=r"not a TFDS folder, which has a dataset_info.json$"):
        files.read_pairs(str(tmp_path))


def test_tfds_in_another_format_or_broken(tfds_folder, tmp_path):
    for path in tfds_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    info = tmp_path / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="has tfrecord files; prepare it with file_format='array_record'"):
        files.read_pairs(str(tmp_path))
    info.write_text((tfds_folder / "dataset_info.json").read_text())
    next(tmp_path.glob("*train*")).write_bytes(b"junk")
    with pytest.raises(UserError, match=r"-train.array_record-00000-of-00001: can't be read: .*; copy it again"):
        files.read_pairs(str(tmp_path))
    info.write_text("{")
    with pytest.raises(UserError, match="TFDS can't read it"):
        files.read_pairs(str(tmp_path))
