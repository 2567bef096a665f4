"""What a run is tested on."""

import json

import jax
import numpy as np
import pytest
import reference
from prepared_folders import prepared
from tiny_runs import tiny

from hhh_jax import run, scoring, stage_data
from hhh_jax.data.records import Document, Pair
from hhh_jax.data.tokenizer import train_tokenizer
from hhh_jax.errors import UserError


def pairs(name, number):
    return [Pair(f"{name}{i}", f"{name} {i} is", " right", f" wrong {i}", f"{name}{i}") for i in range(number)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One of four test pairs has a context that is in train, too."""
    splits = {"train": pairs("t", 40), "validation": pairs("v", 9), "test": [*pairs("u", 3), pairs("t", 1)[0]]}
    return prepared(tmp_path_factory.mktemp("data") / "folder", {**splits, "test_no_overlap": pairs("u", 3)})


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer((text for p in pairs("tuv", 50) for text in (p.context, p.good, p.bad)), 270)


def test_a_split_without_overlap_is_named_by_the_config(folder, tokenizer):
    whole = stage_data.load(tiny("ranked", folder), tokenizer, 1)
    assert sorted(pair.id for pair in whole.test) == ["t0", "u0", "u1", "u2"]
    free = stage_data.load(tiny("ranked", folder, eval__split="test_no_overlap"), tokenizer, 1)
    assert sorted(pair.id for pair in free.test) == ["u0", "u1", "u2"]
    assert list(free.counts) == ["train", "validation", "test_no_overlap"] and free.sha != whole.sha
    assert free.counts["train"] == whole.counts["train"]
    same = stage_data.load(tiny("ranked", folder, eval__split="validation"), tokenizer, 1)
    assert [pair.id for pair in same.test] == [pair.id for pair in same.validation]


def test_a_split_of_documents(tmp_path, tokenizer):
    def documents(name):
        return [Document(f"{name}{i}", f"{name} text {i}", f"{name}{i}") for i in range(3)]

    splits = {name: documents(name) for name in ("train", "validation", "test", "test_no_overlap")}
    source = prepared(tmp_path / "folder", splits)
    data = stage_data.load(tiny("pretrain", source, eval__split="test_no_overlap"), tokenizer, 1)
    assert {data.test.about(i)[0] for i in range(3)} == {document.id for document in splits["test_no_overlap"]}


@pytest.mark.parametrize("source", ["word_order", "folder", "pairs.jsonl"])
def test_a_split_that_is_not_there(source, folder, tokenizer, tmp_path):
    message = "no split 'test_free'; (the splits are|it has) train, validation, test"
    if source == "folder":
        source = folder
    elif source == "pairs.jsonl":
        source = tmp_path / source
        source.write_text("".join(json.dumps({"context": "", "good": f"{i}", "bad": "b"}) + "\n" for i in range(9)))
    with pytest.raises(UserError, match=message):
        stage_data.load(tiny("ranked", source, eval__split="test_free", data__limit=20), tokenizer, 1)


def test_a_run_is_tested_on_its_split_and_can_be_on_others(folder, tmp_path):
    run.run(tiny("ranked", folder, eval__split="test_no_overlap", epochs=1.0), tmp_path, quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    items = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert {row["split"] for row in rows} == {item["split"] for item in items} == {"test_no_overlap"}
    assert {row["n_items"] for row in rows} == {3} and {item["item_id"] for item in items} == {"u0", "u1", "u2"}
    stored = {(row["seed"], row["metric"]): row["value"] for row in rows}
    for split, n in (("", 3), ("test", 4), ("validation", 9)):
        again = run.recompute_rows(str(tmp_path), "", split, "best")
        assert {(row["split"], row["n_items"]) for row in again} == {(split or "test_no_overlap", n)}
        if not split:
            assert {(row["seed"], row["metric"]): row["value"] for row in again}.items() <= stored.items()
    assert run.recompute_rows(str(tmp_path), folder, "", "best")[0]["split"] == "test"


def sides(data):
    return {pair.id: (pair.good.tolist(), pair.bad.tolist()) for pair in data.train_pairs}


@pytest.mark.parametrize("binarize", [False, True])
def test_a_share_of_training_pairs_is_flipped(folder, tokenizer, binarize):
    settings = {"data__binarize": binarize, "data__max_tokens": 30}
    true = stage_data.load(tiny("ranked", folder, **settings), tokenizer, 1)
    flipped = {}
    for share in (0.25, 0.5):
        data = stage_data.load(tiny("ranked", folder, data__flip=share, **settings), tokenizer, 1)
        assert sides(data).keys() == sides(true).keys()
        flipped[share] = {name for name, both in sides(data).items() if both != sides(true)[name]}
        assert all(sides(data)[name] == sides(true)[name][::-1] for name in flipped[share])
        assert data.counts["train"]["flipped"] == round(40 * share)
        assert [p.n_bytes for p in data.test] == [p.n_bytes for p in true.test] and data.sha == true.sha
    records = {share: {name.partition("/")[0] for name in names} for share, names in flipped.items()}
    assert {share: len(names) for share, names in records.items()} == {0.25: 10, 0.5: 20}
    assert records[0.25] < records[0.5]
    assert all(len(names) == len(records[share]) * (2 if binarize else 1) for share, names in flipped.items())


def test_what_is_flipped_follows_the_seed_of_the_data(folder, tokenizer):
    def flipped(seed):
        true, data = (
            sides(stage_data.load(tiny("ranked", folder, data__flip=flip, data__seed=seed), tokenizer, 1))
            for flip in (0.0, 0.5)
        )
        return {name for name in true if data[name] != true[name]}

    assert flipped(0) == flipped(0) != flipped(1)


def test_a_model_without_end_of_context_reads_its_scores_at_the_last_token(folder, tmp_path):
    """Those of the run's records equal those of each side's text alone, under the parameters that it saved."""
    run.run(tiny("ranked", folder, data__end_of_context=False, epochs=1.0), tmp_path, quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {row["eoc"] for row in rows} == {"false"}
    items = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    scorer, tokenizer, seeds = scoring.load_scorer(str(tmp_path))
    assert not scorer.end_of_context
    for pair in [*pairs("u", 3), pairs("t", 1)[0]]:
        for g, seed in enumerate(seeds):
            params = jax.tree.map(lambda x, g=g: np.asarray(x[g]), scorer.params)
            for option, text in (("good", pair.good), ("bad", pair.bad)):
                tokens = np.concatenate([tokenizer.encode(pair.context), tokenizer.encode(text)])
                (item,) = (
                    i for i in items
                    if (i["item_id"], i["option"], i["seed"], i["selection"]) == (pair.id, option, seed, "best")
                )  # fmt: skip
                assert item["n_tokens"] == len(tokenizer.encode(text))
                assert item["reward"] == pytest.approx(reference.reward(scorer.model, params, tokens), abs=1e-4)
