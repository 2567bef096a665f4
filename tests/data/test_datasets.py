import json
import re
from string import ascii_uppercase

import pytest

from hhh_jax.data import datasets
from hhh_jax.data.records import SPLITS, Document, Pair, content_sha
from hhh_jax.errors import UserError


@pytest.mark.parametrize("name", datasets.PAIR_NAMES)
def test_every_named_source_of_pairs(name):
    data = datasets.load_pairs(name, "validation", limit=50)
    assert data.name == name
    assert len(data.records) == 50
    assert all(isinstance(pair, Pair) for pair in data.records)
    assert data.counts.as_dict() == {"read": 50, "kept": 50, "dropped": {}}
    assert data.sha == content_sha(data.records)
    assert datasets.load_pairs(name, "validation", limit=50).sha == data.sha
    assert datasets.load_pairs(name, "validation", limit=50, seed=3).sha != data.sha
    assert datasets.load_pairs(name, "validation", limit=20).records == data.records[:20]


def test_kinds():
    kinds = {name: datasets.kind(name) for name in datasets.PAIR_NAMES}
    assert [name for name, kind in kinds.items() if kind == "ranked"] == [
        "word_order",
        "line_order",
        "edits",
        *(f"symbols:T{i}" for i in range(5)),
    ]
    assert set(kinds.values()) == {"ranked", "binary"}
    assert datasets.kind("my/pairs.jsonl") == "ranked"
    assert datasets.kind("data/ethics_justice") == "binary"
    assert datasets.kind("data/ethics_utilitarianism") == "ranked"


def test_documents_of_the_library():
    data = datasets.load_documents("stdlib", "test")
    assert all(isinstance(document, Document) for document in data.records)
    assert data.sha == content_sha(data.records)
    assert data.counts.as_dict() == {"read": len(data.records), "kept": len(data.records), "dropped": {}}
    data.counts.drop("by the caller")  # doesn't reach the next one
    assert not datasets.load_documents("stdlib", "test").counts.dropped


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("word_ordr", "word_order"), ("symbols:T9", "symbols:T"), ("docstrings", "docstring_match")],
)
def test_unknown_name(name, nearest):
    for call in (lambda: datasets.load_pairs(name, "train"), lambda: datasets.kind(name)):
        with pytest.raises(UserError, match=f"no data named '{name}'; did you mean '{nearest}"):
            call()


def test_unknown_documents_and_split():
    with pytest.raises(UserError, match="did you mean 'stdlib'"):
        datasets.load_documents("stdlb", "train")
    with pytest.raises(UserError, match="no split 'dev'; the splits are train, validation, test"):
        datasets.load_pairs("word_order", "dev")


@pytest.fixture
def own_pairs(tmp_path):
    path = tmp_path / "own.jsonl"
    rows = [{"context": f"q{i // 2}", "good": f"yes {i}", "bad": f"no {i}", "id": i} for i in range(200)]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n{broken\n")
    return str(path)


def test_a_file_of_pairs(own_pairs):
    data = {split: datasets.load_pairs(own_pairs, split, bad_rows="drop") for split in SPLITS}
    ids = [pair.id for part in data.values() for pair in part.records]
    assert sorted(ids, key=int) == [str(i) for i in range(200)]
    assert len({part.sha for part in data.values()}) == 3
    for part in data.values():
        n = len(part.records)
        assert part.counts.as_dict() == {"read": n + 1, "kept": n, "dropped": {"broken JSON": 1}}
    train = data["train"].records
    assert [pair.id for pair in train] != sorted((pair.id for pair in train), key=int)
    assert datasets.load_pairs(own_pairs, "train", bad_rows="drop", limit=9).records == train[:9]
    other = datasets.load_pairs(own_pairs, "train", bad_rows="drop", seed=1).records
    assert other != train and set(other) == set(train)  # the split isn't the seed's


def test_errors_are_the_default(own_pairs):
    with pytest.raises(UserError, match=re.escape("own.jsonl:201: broken JSON")):
        datasets.load_pairs(own_pairs, "train")


def test_a_file_of_text(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(f"Paragraph {i}\nof the book." for i in range(100)))
    parts = [datasets.load_documents(str(path), split) for split in SPLITS]
    texts = [document.text for part in parts for document in part.records]
    assert sorted(texts) == sorted(f"Paragraph {i}\nof the book." for i in range(100))
    assert len(parts[0].records) > 60
    lines = [int(document.id.split(":")[1]) for document in parts[0].records]
    assert lines == sorted(lines)


def test_documents_of_symbols_say_nothing_of_their_ranking():
    for split in SPLITS:
        data = datasets.load_documents("symbols", split)
        assert [d.text for d in data.records] == [f"({a}{b})" * 4 for a in ascii_uppercase for b in ascii_uppercase]
