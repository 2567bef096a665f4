import dataclasses
import math
import re
from collections import Counter

import pytest
from prepared_folders import KIND, prepared

from hhh_jax.data import prepare, streams
from hhh_jax.data.prepared import load
from hhh_jax.data.records import SPLITS, Document, GroupedLabel, MultipleChoice, Pair, Prompt
from hhh_jax.data.source import Drop
from hhh_jax.data.sources import mix
from hhh_jax.errors import UserError


def pairs(name, number):
    return [Pair(f"{name}{i}", f"context {i}", f"good {name}", "bad", f"group{i % 7}") for i in range(number)]


def read(inputs, kind="pairs", seed=0, weights="", splits="keep"):
    """({split: records}, drops, journal) of a mix."""
    options = {"weights": weights, "kind": kind, "seed": seed, "splits": splits}
    with streams.journal() as journal:
        found = [item for block in mix.SOURCE.blocks(inputs, options) for item in mix.SOURCE.read(block, options)]
    records = {}
    for row in found:
        if not isinstance(row, Drop):
            (made,) = mix.SOURCE.join(row.key, [row], options)
            assert row.key == made.record.id
            records.setdefault(made.split, []).append(made.record)
    return records, [item for item in found if isinstance(item, Drop)], journal


@pytest.fixture
def two(tmp_path):
    one = prepared(tmp_path / "stack", {"train": pairs("s", 300), "validation": pairs("v", 30), "test": pairs("t", 40)})
    free = pairs("u", 3)
    other = prepared(tmp_path / "reddit", {"train": pairs("r", 100), "test": pairs("u", 10), "test_no_overlap": free})
    return [one, other]


def test_the_union_keeps_every_record_and_its_split(two):
    records, drops, journal = read(two)
    assert not drops
    assert {split: Counter(record.id.split("/")[0] for record in part) for split, part in records.items()} == {
        "train": {"stack": 300, "reddit": 100}, "validation": {"stack": 30}, "test": {"stack": 40, "reddit": 10},
    }  # fmt: skip
    names = {record.id: record for record in records["train"]}
    assert names["reddit/r99"] == Pair("reddit/r99", "context 99", "good r", "bad", "reddit/group1")
    assert len(journal.inputs) == 4 + 3  # two shards of train each, the other splits one
    assert all(entry["bytes"] for entry in journal.inputs.values())


def test_splits_are_cut_anew_by_group(two, tmp_path):
    records, _, _ = read(two, splits="cut")
    assert {split: len(part) for split, part in records.items()} == {None: 480}  # a hash of the group decides
    card = prepare.prepare("mix", two, tmp_path / "out", options={"splits": "cut"}, held_out=0.2, workers=1)
    assert sum(card["records"][split] for split in SPLITS) == 480
    train, validation, test = (
        {record.group for record in load(tmp_path / "out", "pairs", split)} for split in SPLITS
    )
    assert train and validation and test and not (train & validation or train & test or validation & test)


def test_weights_are_shares_of_each_split(two):
    records, drops, _ = read(two, weights="0.5,0.5")
    assert {split: Counter(record.id.split("/")[0] for record in part) for split, part in records.items()} == {
        "train": {"stack": 100, "reddit": 100}, "validation": {"stack": 30}, "test": {"stack": 10, "reddit": 10},
    }  # fmt: skip
    assert Counter(drop.reason for drop in drops) == {"left out by the weights": 230}
    assert len({drop.place for drop in drops}) == 230
    assert drops[0].place.startswith(f"{two[0]}/train[")
    records, _, _ = read(two, weights="9,1")  # no record twice
    assert Counter(record.id.split("/")[0] for record in records["train"]) == {"stack": 300, "reddit": 33}


def test_the_seed_draws_who_is_left_out(two):
    def taken(seed):
        return frozenset(record.id for record in read(two, weights="0.5,0.5", seed=seed)[0]["train"])

    drawn = [taken(seed) for seed in range(12)]
    assert drawn[0] == taken(0)
    assert len(set(drawn)) == 12
    counts = Counter(name for names in drawn for name in names if name.startswith("stack"))
    assert counts.total() == 12 * 100
    spread = sum((counts[f"stack/s{i}"] - 4) ** 2 for i in range(300)) / 300
    assert math.isclose(spread, 12 / 3 * 2 / 3, rel_tol=0.4)  # binomial: each has a chance of 1/3


EVERY_KIND = [
    Pair("1", "c\n", "gé", "b", "g"),
    Document("1", "text", "g"),
    MultipleChoice("1", "c", ("a", "b"), 1, "g", "k"),
    GroupedLabel("1", "c", 0, "g", ""),
    Prompt("1", "t", "g", {"target": "x", "n": [1, None]}),
]


@pytest.mark.parametrize("record", EVERY_KIND, ids=lambda record: type(record).__name__)
def test_every_kind_of_record(record, tmp_path):
    records, _, _ = read([prepared(tmp_path / "a", {"test": [record]})], kind=KIND[type(record)])
    assert records == {"test": [dataclasses.replace(record, id="a/1", group="a/g")]}


def test_prepared(two, tmp_path):
    card = prepare.prepare("mix", two, tmp_path / "out", options={"weights": "0.5,0.5"}, workers=1)
    assert (card["read"], card["kept"], card["dropped"]) == (480, 250, {"left out by the weights": 230})
    assert {split: n for split, n in card["records"].items() if not split.endswith("_no_overlap")} == {
        "train": 200, "validation": 30, "test": 20,
    }  # fmt: skip


def test_blocks_cut_by_size_change_nothing(two, monkeypatch):
    whole = read(two, weights="1,1")[:2]
    monkeypatch.setattr(streams, "BLOCK_BYTES", 500)
    assert read(two, weights="1,1")[:2] == whole
    assert len(list(mix.blocks(two, {"weights": "", "splits": "keep", "kind": "pairs", "seed": 0}))) > 20


def test_missing_and_unfit_components(two, tmp_path):
    def refuses(message, *inputs, **kwargs):
        with pytest.raises(UserError, match=message):
            read([str(path) for path in inputs], **kwargs)

    refuses("nowhere: no such folder; prepare it first", *two, tmp_path / "nowhere")
    (tmp_path / "half.partial").mkdir()
    refuses(r"half: no such folder; .*half\.partial is not finished", tmp_path / "half")
    refuses("half.partial: not a prepared folder", tmp_path / "half.partial")
    texts = prepared(tmp_path / "texts", {"train": [Document("1", "t", "g")]})
    refuses("texts: documents can't be mixed as pairs; give --kind=documents", *two, texts)
    refuses("2 folders are named stack", two[0], prepared(tmp_path / "b" / "stack", {"train": pairs("x", 2)}))
    for weights in ("1", "1,2,3", "1,x", "1,0", "1,-1", "1,nan", "1,inf"):
        refuses(re.escape(f"weights={weights}: must be 2 positive numbers"), *two, weights=weights)


def test_damaged_components(two, tmp_path):
    (shard,) = (tmp_path / "stack").glob("tiny-test.array_record-*")
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(UserError, match=r"tiny-test.*: not what card.json says"):
        read(two)
    (tmp_path / "stack" / "card.json").unlink()
    with pytest.raises(UserError, match="stack"):
        read(two)
    shard.unlink()
    with pytest.raises(UserError, match="stack"):
        read(two)
