"""Rows of human and model text: thirds, switches and labels; what a model writes is what the sampler gives."""

import json
import random
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


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """300 documents of the words that `pretrained` knows."""
    rng = random.Random(3)
    words = ["red", "green", "blue", "fox", "hen", "cow", "runs", "sleeps", "eats", "now", "here"]
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n\n".join(" ".join(rng.choice(words) for _ in range(30)) + "." for _ in range(300)))
    return path


def asked(corpus, **other) -> thirds.Asked:
    given = {"source": str(corpus), "rows": 30, "held_out": 18, "row_length": LENGTH, "tries": TRIES}
    return thirds.Asked(**given | other)


@pytest.fixture(scope="module")
def made(pretrained, texts, tmp_path_factory):
    output = tmp_path_factory.mktemp("thirds")
    thirds.make(pretrained, output, asked(texts))
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


def test_human_tokens_are_a_documents_and_the_others_are_sampled_after_them(made, pretrained, texts):
    scorer, tokenizer, _ = load_scorer(str(pretrained), [0], "final")
    scorer = scorer._replace(rows=32)
    found = arrays(made, "train")
    documents = {d.id: tokenizer.encode(d.text)[:LENGTH] for d in datasets.load_documents(str(texts), "train").records}
    tokens, switch = found["tokens"].astype(np.int32), thirds.switches(found["is_human"])
    for row, at in zip(tokens, switch, strict=True):
        begin_alike = [name for name, text in documents.items() if np.array_equal(text[:at], row[:at])]
        assert begin_alike
    mixed = max((r for r in range(len(tokens)) if switch[r] < LENGTH - 4), key=lambda r: switch[r])
    row, at = tokens[mixed], int(switch[mixed])  # a switch so late that just one document begins like that
    (name,) = [name for name, text in documents.items() if np.array_equal(text[:at], row[:at])]
    decoding = Decoding(max_new_tokens=LENGTH - 1)
    for attempt in range(TRIES):
        prompts, limits = [Prompt(name, row[:at])], [LENGTH - at]
        ((drawn,),) = sample(scorer, tokenizer, prompts, decoding, limits=limits, first_sample=attempt)
        if drawn.finish == "length":
            np.testing.assert_array_equal(drawn.tokens, row[at:])
            return
    raise AssertionError("no try went on to the end of the row")


def test_going_on_gives_the_same_rows(made, pretrained, texts, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    (tmp_path / "rows.json").unlink()
    shutil.rmtree(labeled_rows.part_folder(tmp_path, "validation", 0))
    written = []
    write = labeled_rows.write_part
    monkeypatch.setattr(labeled_rows, "write_part", lambda *a: (written.append(a[1:3]), write(*a)))
    thirds.make(pretrained, tmp_path, asked(texts))
    assert written == [("validation", 0)]
    for split in ("train", "validation"):
        for name, array in arrays(made, split).items():
            np.testing.assert_array_equal(array, arrays(tmp_path, split)[name])
    assert json.loads((tmp_path / "rows.json").read_text()) == json.loads((made / "rows.json").read_text())


def test_what_cannot_be_made_is_said(pretrained, ranked, texts, made, tmp_path):
    with pytest.raises(UserError, match="begun with seed"):
        thirds.make(pretrained, made, asked(texts, seed=1))
    with pytest.raises(UserError, match="writes no text"):
        thirds.make(ranked, tmp_path / "a", asked(texts))
    with pytest.raises(UserError, match="model's context"):
        thirds.make(pretrained, tmp_path / "b", asked(texts, row_length=65))
    with pytest.raises(UserError, match="no three train documents"):
        thirds.make(pretrained, tmp_path / "c", asked(texts, rows=2))


@pytest.mark.slow
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
