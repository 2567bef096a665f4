"""Tokens kept on disk: what a run reads of them is what it reads without, and nothing is done twice."""

import dataclasses
import json

import numpy as np
import pytest
from prepared_folders import prepared

from hhh_jax import atomic, config, stage_data
from hhh_jax.data import datasets, files, token_store
from hhh_jax.data.files import Source
from hhh_jax.data.loader import DocumentLoader, PairLoader
from hhh_jax.data.packing import tokenize_documents, tokenize_pairs
from hhh_jax.data.records import SPLITS, Counts, Document, Pair, content_sha
from hhh_jax.data.token_store import PairForm
from hhh_jax.data.tokenizer import train_tokenizer
from hhh_jax.errors import UserError

WORDS = ("the", "cat", "sat", "on", "a", "mat", "while", "dogs", "were", "barking", "é", "ß", "漢", "at", "night")


def text(rng, most):
    return " ".join(rng.choice(WORDS, rng.integers(1, most)))


def some_pairs(n, seed=0):
    """Some have no context, and some are too long."""
    rng = np.random.default_rng(seed)
    return [
        Pair(f"id {i} é", text(rng, 60) if i % 3 else "", text(rng, 30) + "!", text(rng, 30), f"group {i // 2}")
        for i in range(n)
    ]


def some_documents(n):
    rng = np.random.default_rng(1)
    return [Document(f"d{i}", text(rng, 90), f"g{i // 3}") for i in range(n)]


def write_lines(path, records, **more):
    rows = [dataclasses.asdict(record) | more for record in records]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_folder(folder, records):
    """A tenth of the records each for validation and test."""
    held_out = {"validation": records[::10], "test": records[1::10]}
    return prepared(folder, {"train": [record for i, record in enumerate(records) if i % 10 > 1], **held_out})


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(token_store.texts([*some_pairs(100), *some_documents(50)]), 300)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Everything that is a path counts as large, and parts are small."""
    monkeypatch.setenv("HHH_JAX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(token_store, "LARGE", 0)
    monkeypatch.setattr(token_store, "PART", 2000)
    return tmp_path / "cache"


def stage_config(stage, source, **settings):
    c = config.base_config(stage, "12k")
    c.data.source, c.data.row_length, c.data.max_tokens = str(source), 64, 25
    c.model.vocab_size = 300
    for name, value in settings.items():
        section, _, key = name.rpartition(".")
        c[section][key] = value
    return c


def assert_same_batches(one, other, steps):
    for step in steps:
        a, b = (dataclasses.asdict(loader.batch(step, (3, 7))) for loader in (one, other))
        for name in a:
            assert np.array_equal(a[name], b[name]) and (a[name] is None or a[name].dtype == b[name].dtype), name


def as_plain(pairs):
    return [(p.id, p.group, p.context.tolist(), p.good.tolist(), p.bad.tolist(), p.n_bytes) for p in pairs]


@pytest.mark.parametrize("form", ["folder", "lines"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"data.limit": 50, "data.seed": 3},
        {"data.binarize": True},
        {"data.share_context": False},
    ],
)
def test_pairs_on_disk_are_those_of_lists(form, settings, tokenizer, cache, tmp_path):
    """The batches of a run, its held-out pairs, counts and hashes equal those that lists of records give."""
    records = some_pairs(300)
    if form == "folder":
        source = write_folder(tmp_path / "folder", records)
    else:
        source = write_lines(tmp_path / "own.jsonl", records)
        source.write_text(source.read_text() + '{"context": "c"}\n')
    c = stage_config("ranked", source, **{"data.bad_rows": "drop", "eval.limit": 20, "batch.pairs": 8}, **settings)
    data = stage_data.load(c, tokenizer, 1)
    d = c.data
    expected = {}
    for split, limit in {"train": d.limit, "validation": 0, "test": 20}.items():
        read = datasets.load_pairs(str(source), split, bad_rows="drop", seed=d.seed, limit=limit or None)
        expected[split] = tokenize_pairs(
            read.records, tokenizer, d.max_tokens, d.row_length, read.counts, binarize=d.binarize,
            share_context=d.share_context,
        )  # fmt: skip
        assert data.counts[split] == read.counts.as_dict() | {"sha256": content_sha(read.records)}
    assert data.counts["train"]["dropped"]["response longer than max_tokens"] > 5
    for found, split in zip((data.train_pairs, data.validation, data.test), SPLITS, strict=True):
        assert as_plain(found) == as_plain(expected[split])
        assert as_plain(found[-3:]) == as_plain(expected[split][-3:])
        assert all(pair.good.dtype == pair.context.dtype == np.int32 for pair in found)
        with pytest.raises(IndexError):
            found[len(found)]
    lists = PairLoader(expected["train"], 8, d.row_length, d.slots, tokenizer.pad_id, 1, d.share_context, d.row_sizes)
    assert_same_batches(data.train, lists, (0, 5, 40))
    assert len(list(cache.glob("*/meta.json"))) == (3 if form == "folder" else 1)  # lines are all in one


@pytest.mark.parametrize("form", ["folder", "lines"])
def test_documents_on_disk_are_those_of_lists(form, tokenizer, cache, tmp_path):
    records = some_documents(200)
    if form == "folder":
        source = write_folder(tmp_path / "folder", records)
    else:
        source = write_lines(tmp_path / "own.jsonl", records)
    c = stage_config("pretrain", source, **{"eval.limit": 9, "batch.rows": 2})
    data = stage_data.load(c, tokenizer, 1)
    read = {split: datasets.load_documents(str(source), split).records for split in SPLITS}
    read["test"] = read["test"][:9]
    expected = {split: tokenize_documents(found, tokenizer) for split, found in read.items()}
    for found, split in zip((data.train.documents, data.validation, data.test), SPLITS, strict=True):
        assert [ids.tolist() for ids in found] == [ids.tolist() for ids in expected[split]]
        assert [found.about(i) for i in range(len(found))] == [
            (document.id, document.group, len(document.text.encode())) for document in read[split]
        ]
        assert data.counts[split]["sha256"] == content_sha(read[split])
    assert data.counts["train"]["tokens"] == sum(map(len, expected["train"]))
    assert_same_batches(data.train, DocumentLoader(expected["train"], 2, 64, tokenizer.pad_id), (0, 7, 300))


@pytest.mark.parametrize("stage", ["ranked", "pretrain"])
@pytest.mark.parametrize("form", ["folder", "lines"])
def test_a_tokenizer_is_that_of_the_training_records(stage, form, cache, tmp_path, monkeypatch):
    records = some_pairs(100) if stage == "ranked" else some_documents(100)
    source = tmp_path / "own.jsonl"
    if form == "folder":
        source = write_folder(tmp_path / "folder", records)
    else:
        write_lines(source, records)
    c = stage_config(stage, source, **{"data.limit": 30})
    kept = stage_data.load(c, None, 1)
    again = stage_data.load(c, None, 1)
    monkeypatch.setattr(token_store, "LARGE", 10**9)
    assert kept.tokenizer.to_json() == again.tokenizer.to_json() == stage_data.load(c, None, 1).tokenizer.to_json()


def store_of(source, tokenizer):
    return token_store.on_disk(Source(str(source), "pairs"), tokenizer, PairForm(64, 128))


def test_what_is_kept_is_read_again_until_the_file_changes(tokenizer, cache, tmp_path, monkeypatch):
    source = write_lines(tmp_path / "own.jsonl", some_pairs(100))
    first = store_of(source, tokenizer)
    read = []
    iterate = files.iterate
    monkeypatch.setattr(files, "iterate", lambda *arguments: read.append(1) or iterate(*arguments))
    again = store_of(source, tokenizer)
    assert not read and again.counts == first.counts
    assert all(np.array_equal(again.arrays[name], first.arrays[name]) for name in first.arrays)
    token_store.on_disk(Source(str(source), "pairs"), tokenizer, PairForm(32, 128))
    assert len(read) == 1  # another form
    write_lines(source, some_pairs(101))
    assert store_of(source, tokenizer).counts.kept == 101 and len(read) == 2


def test_a_killed_run_goes_on_with_the_parts_that_it_has(tokenizer, cache, tmp_path, monkeypatch):
    source = write_lines(tmp_path / "own.jsonl", some_pairs(100))
    whole = store_of(source, tokenizer)
    atomic.remove(cache)
    write, done = token_store._write_part, []

    def dies(path, *arguments):
        if len(done) == 3:
            raise KeyboardInterrupt
        write(path, *arguments)
        done.append(path.name)

    monkeypatch.setattr(token_store, "_write_part", dies)
    with pytest.raises(KeyboardInterrupt):
        store_of(source, tokenizer)
    assert [path.suffix for path in sorted(cache.iterdir())] == [".lock", ".partial"]
    kept = {path.name: path.stat().st_mtime_ns for path in next(cache.glob("*.partial")).iterdir()}
    assert sorted(kept) == ["000000.npz", "000001.npz", "000002.npz"] == done
    stray = cache / f"{next(cache.glob('*.lock')).stem}.0123abcd.tmp"
    stray.mkdir()  # as kill -9 leaves it
    written = []
    monkeypatch.setattr(token_store, "_write_part", lambda path, *rest: written.append(path.name) or write(path, *rest))
    resumed = store_of(source, tokenizer)
    assert len(written) > 3 and not set(written) & set(kept)
    assert all(np.array_equal(resumed.arrays[name], whole.arrays[name]) for name in whole.arrays)
    assert not list(cache.glob("*.partial")) and not stray.exists()


def test_processes_make_the_same(tokenizer, cache, tmp_path, monkeypatch):
    source = write_lines(tmp_path / "own.jsonl", some_pairs(100))
    alone = store_of(source, tokenizer)
    atomic.remove(cache)
    monkeypatch.setattr(token_store, "SHARED", 0)
    monkeypatch.setattr(token_store.os, "sched_getaffinity", lambda _: {0, 1})
    shared = store_of(source, tokenizer)
    assert alone.counts == shared.counts
    assert all(np.array_equal(alone.arrays[name], shared.arrays[name]) for name in alone.arrays)


def test_a_large_vocabulary_takes_larger_numbers(tokenizer):
    documents = some_documents(3)
    assert token_store.in_memory(documents, Counts(3, 3), tokenizer, None).arrays["tokens"].dtype == np.uint16

    class Large:
        vocab_size, eoc_id = 2**16 + 1, 2**16

        def encode_batch(self, texts):
            return [np.array([2**16 - 1], np.int32)] * len(texts)

    items, _, _ = token_store.in_memory(documents, Counts(3, 3), Large(), None).choose(np.arange(3))
    assert items[2].tolist() == [2**16 - 1, 2**16]


def test_bad_rows_and_a_cache_that_cannot_be_written(tokenizer, cache, tmp_path, monkeypatch):
    source = write_lines(tmp_path / "own.jsonl", some_pairs(10))
    source.write_text(source.read_text() + "{\n")
    with pytest.raises(UserError, match=r"own.jsonl:11: broken JSON"):
        store_of(source, tokenizer)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HHH_JAX_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/file/"):
        store_of(source, tokenizer)


def test_small_files_leave_nothing_behind(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("HHH_JAX_CACHE_DIR", str(tmp_path / "cache"))
    source = write_lines(tmp_path / "own.jsonl", some_pairs(100))
    stage_data.load(stage_config("ranked", source), tokenizer, 1)
    assert not (tmp_path / "cache").exists()
