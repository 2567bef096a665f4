"""Rows of human and model text: thirds, switches and labels; what a model writes is what the sampler gives."""

import json
import shutil

import numpy as np
import pytest
from tiny_runs import tiny

from hhh_jax import results, run, thirds
from hhh_jax.data import datasets, labeled_rows
from hhh_jax.errors import UserError
from hhh_jax.evals import discriminator
from hhh_jax.sample import Decoding, Prompt, sample
from hhh_jax.scoring import load_scorer

LENGTH, TRIES = 24, 3


def asked(corpus, **other) -> thirds.Asked:
    given = {"source": str(corpus), "rows": 30, "held_out": 9, "row_length": LENGTH, "tries": TRIES}
    return thirds.Asked(**given | other)


@pytest.fixture(scope="module")
def made(pretrained, corpus, tmp_path_factory):
    output = tmp_path_factory.mktemp("thirds")
    thirds.make(pretrained, output, asked(corpus))
    return output


def arrays(folder, split):
    parts = labeled_rows.open_rows(folder, split).parts
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_a_third_each_with_the_switch_in_the_labels(made):
    about = labeled_rows.read_about(made)
    assert about["documents"]["train"] == 30 and about["rows"]["train"] <= 30
    for split in ("train", "validation", "test"):
        is_human = arrays(made, split)["is_human"]
        switch, kind = thirds.switches(is_human), thirds.kinds(is_human)
        assert len(is_human) == about["rows"][split] and np.ptp(np.bincount(kind, minlength=3)) == 0
        np.testing.assert_array_equal(is_human, np.arange(LENGTH) < switch[:, None])  # human up to it, never after
        assert (switch[kind == thirds.HUMAN] == LENGTH).all() and (switch[kind == thirds.MODEL] == 1).all()
        mixed = switch[kind == thirds.MIXED]
        assert ((mixed >= 2) & (mixed < LENGTH)).all()
    assert len(set(thirds.switches(arrays(made, "train")["is_human"]))) > 4


def test_human_tokens_are_a_documents_and_the_others_are_sampled_after_them(made, pretrained, corpus):
    scorer, tokenizer, _ = load_scorer(str(pretrained), [0], "final")
    scorer = scorer._replace(rows=32)
    found = arrays(made, "train")
    documents = datasets.load_documents(str(corpus), "train").records
    texts = {tokenizer.encode(d.text)[:LENGTH].tobytes(): d.id for d in documents}
    held_out = {d.id for d in datasets.load_documents(str(corpus), "test").records}
    starts = [np.frombuffer(text, np.int32) for text in texts]
    model_rows = 0
    for tokens, is_human in zip(found["tokens"].astype(np.int32), found["is_human"], strict=True):
        switch = int(is_human.sum())
        same = [start for start in starts if np.array_equal(start[:switch], tokens[:switch])]
        assert same
        if switch in (1, LENGTH):
            continue
        name = texts[same[0].tobytes()]
        assert name not in held_out
        prompt, decoding = Prompt(name, tokens[:switch]), Decoding(max_new_tokens=LENGTH - 1)
        tries = [
            sample(scorer, tokenizer, [prompt], decoding, limits=[LENGTH - switch], first_sample=i)[0][0]
            for i in range(TRIES)
        ]
        whole = next(one for one in tries if one.finish == "length")
        np.testing.assert_array_equal(whole.tokens, tokens[switch:])
        model_rows += 1
    assert model_rows >= 5


def test_going_on_gives_the_same_rows(made, pretrained, corpus, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    (tmp_path / "rows.json").unlink()
    shutil.rmtree(labeled_rows.part_folder(tmp_path, "validation", 0))
    written = []
    write = labeled_rows.write_part
    monkeypatch.setattr(labeled_rows, "write_part", lambda *a: (written.append(a[1:3]), write(*a)))
    thirds.make(pretrained, tmp_path, asked(corpus))
    assert written == [("validation", 0)]
    for split in ("train", "validation"):
        for name, array in arrays(made, split).items():
            np.testing.assert_array_equal(array, arrays(tmp_path, split)[name])
    assert json.loads((tmp_path / "rows.json").read_text()) == json.loads((made / "rows.json").read_text())


def test_what_cannot_be_made_is_said(pretrained, ranked, corpus, made, tmp_path):
    with pytest.raises(UserError, match="begun with seed"):
        thirds.make(pretrained, made, asked(corpus, seed=1))
    with pytest.raises(UserError, match="writes no text"):
        thirds.make(ranked, tmp_path / "a", asked(corpus))
    with pytest.raises(UserError, match="model's context"):
        thirds.make(pretrained, tmp_path / "b", asked(corpus, row_length=65))
    with pytest.raises(UserError, match="no three train documents"):
        thirds.make(pretrained, tmp_path / "c", asked(corpus, rows=2))


def test_a_discriminator_trains_on_the_rows_and_is_judged(made, pretrained, tmp_path):
    c = tiny("discriminator", made, data__row_length=LENGTH, data__max_tokens=12, init__checkpoint=pretrained)
    run.run(c, tmp_path, quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {row["metric"] for row in rows} == {"loss", "accuracy"}
    output = tmp_path / "judged"
    output.mkdir()
    asked_of = {"task": "counting", "data": "", "problems": 4, "samples": 6, "shown": 2}
    discriminator.job(output, after=tmp_path, study="s", rows=made, writer=pretrained, **asked_of)
    judged = [json.loads(line) for line in (output / "rows.jsonl").read_text().splitlines()]
    assert all(set(row) <= set(results.COLUMNS) for row in judged)
    overall = {row["seed"]: row["value"] for row in rows if row["metric"] == "accuracy"}
    by_kind = [row["value"] for row in judged if row["metric"].startswith("accuracy:") and row["split"] == "test"]
    assert np.mean(by_kind) == pytest.approx(np.mean(list(overall.values())))  # a third of the rows each
    distances = {row["split"] for row in judged if row["metric"] == "accuracy_at_distance"}
    assert distances == {"train", "test"}
    ranked = {(row["ranker"], row["k"]) for row in judged if row["metric"] == "top_accuracy"}
    assert ranked == {(ranker, k) for ranker in ("p_human", "logp", "ensemble") for k in (1, 2, 4, 6)}
