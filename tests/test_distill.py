"""A stored teacher against the whole computation without a cache; parts, refusals, and what a student makes of it."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_runs import tiny

from hhh_jax import distill, prompts, run
from hhh_jax.data import labeled_rows
from hhh_jax.data.tokenizer import train_tokenizer
from hhh_jax.errors import UserError
from hhh_jax.model import hidden_states, lm_logits
from hhh_jax.storage import open_path

PROMPT = "A person talks with an assistant.\n\nHuman: hi\n\nAssistant: hello\n\n-----\n\nHuman: yes?\n\nAssistant: no"


@pytest.fixture(scope="module")
def teacher(corpus, tmp_path_factory) -> Path:
    """A language model whose context is 192 tokens."""
    workdir = tmp_path_factory.mktemp("teacher")
    run.run(tiny("pretrain", corpus, data__row_length=192), workdir, quiet=True)
    return workdir


@pytest.fixture(scope="module")
def prompt_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompt") / "mine.txt"
    path.write_text(PROMPT)
    return path


def asked(prompt, corpus, **other) -> distill.Asked:
    given = {
        "prompt": str(prompt), "piece": 0, "data": str(corpus), "dialogues": "", "rows": 70, "row_length": 40,
        "context": 0, "k": 20, "seed": -1,
    }  # fmt: skip
    return distill.Asked(**given | other)


@pytest.fixture(scope="module")
def stored(teacher, prompt_file, corpus, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("stored")
    distill.make(teacher, output, asked(prompt_file, corpus))
    return output


def test_labels_are_those_of_the_prompt_and_text_computed_whole(teacher, stored):
    about = labeled_rows.read_about(stored)
    c, tokenizer = run.load_config(open_path(teacher))
    step_config = run.make_step_config(c, tokenizer.vocab_size, run.sharding.make_mesh())
    params = jax.tree.map(lambda x: x[0], run.load_state(open_path(teacher), step_config)["params"])
    prefix = tokenizer.encode(prompts.load(about["prompt"]["name"]).text)
    assert about["prompt_tokens"] == len(prefix) > 10
    rows = labeled_rows.open_rows(stored, "train")
    batch = rows.batch([0, 5, 66], tokenizer.pad_id)  # the last one is of another part
    places_1xT = np.arange(192)[None]

    @jax.jit
    def hidden_of(tokens_1xT, segments_1xT):
        return hidden_states(step_config.model, params, tokens_1xT, segments_1xT, 0 * segments_1xT, places_1xT)[0]

    checked = 0
    for r in range(3):
        for segment in range(1, int(batch.segment_ids[r].max()) + 1):
            own = batch.tokens[r][batch.segment_ids[r] == segment]
            size = len(prefix) + len(own)
            tokens_1xT = np.pad(np.concatenate([prefix, own]), (0, 192 - size))[None].astype(np.int32)
            hidden_TxD = np.asarray(hidden_of(tokens_1xT, (places_1xT < size).astype(np.int32)))
            logps = np.asarray(jax.nn.log_softmax(lm_logits(params, hidden_TxD[len(prefix) : size])))
            ids, given = (x[r][batch.segment_ids[r] == segment] for x in (batch.teacher_ids, batch.teacher_logps))
            np.testing.assert_allclose(np.take_along_axis(logps, ids, -1), given, atol=5e-3)
            np.testing.assert_allclose(np.sort(logps, -1)[:, ::-1][:, :20], given, atol=5e-3)
            checked += len(own)
    assert checked == (batch.segment_ids > 0).sum()


def test_every_segment_begins_with_the_label_of_a_person(stored):
    about = labeled_rows.read_about(stored)
    tokenizer = distill.Tokenizer.from_json((stored / "tokenizer.json").read_text())
    batch = labeled_rows.open_rows(stored, "train").batch(range(about["rows"]["train"]), tokenizer.pad_id)
    segments = 0
    for tokens_T, segments_T in zip(batch.tokens, batch.segment_ids, strict=True):
        for segment in range(1, int(segments_T.max()) + 1):
            assert tokenizer.decode(tokens_T[segments_T == segment]).startswith(prompts.HUMAN)
            segments += 1
    assert segments > about["rows"]["train"]


def test_what_a_row_has_no_room_for_goes_on_behind_the_label_of_whose_turn_it_is():
    text = "a person asks, at some length, what it is that goes on in the next row"
    tokenizer = train_tokenizer([text], 300)
    dialogue = f"{prompts.HUMAN} {text}?{prompts.ASSISTANT} {text}.{text}."
    whole = [np.append(tokenizer.encode(said), tokenizer.eoc_id) for said in (dialogue, f"{prompts.HUMAN} {text}")]
    rows = list(distill._rows(whole, 48, tokenizer))
    assert {sum(map(len, row)) for row in rows[:-1]} <= set(range(24, 49)) and len(rows) > 2
    segments = [segment for row in rows for segment in row]
    parts = [tokenizer.decode(segment) for segment in segments]
    labels = [max((prompts.HUMAN, prompts.ASSISTANT), key=part.startswith) for part in parts]
    assert all(part.startswith(label) for part, label in zip(parts, labels, strict=True))
    assert prompts.ASSISTANT in labels
    # Without the labels that were put in front again, nothing is lost or changed.
    again, speaker = parts[0], prompts.HUMAN
    for part, before, said in zip(parts[1:], parts, segments, strict=False):
        speaker = prompts.ASSISTANT if prompts.ASSISTANT in before else speaker
        if said[-1] == tokenizer.eoc_id:
            again, speaker = again + part, prompts.HUMAN
        else:
            assert part.startswith(speaker)
            again += part.removeprefix(speaker)
    assert again == tokenizer.decode(np.concatenate(whole))


def test_texts_come_in_one_random_order():
    shuffled = distill._shuffled(range(300))
    assert sorted(shuffled) == list(range(300)) and shuffled == distill._shuffled(range(300))
    assert np.corrcoef(np.arange(300), shuffled)[0, 1] < 0.3


def test_a_killed_teacher_goes_on_and_ends_the_same(teacher, prompt_file, corpus, stored, tmp_path, monkeypatch):
    written = []

    def die(folder, split, number, arrays):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append((split, number))
        return write(folder, split, number, arrays)

    write = labeled_rows.write_part
    monkeypatch.setattr(labeled_rows, "write_part", die)
    with pytest.raises(KeyboardInterrupt):
        distill.make(teacher, tmp_path, asked(prompt_file, corpus))
    monkeypatch.setattr(labeled_rows, "write_part", write)
    with pytest.raises(UserError, match="no finished labeled rows"):
        labeled_rows.read_about(tmp_path)
    distill.make(teacher, tmp_path, asked(prompt_file, corpus))
    files = sorted(path.relative_to(stored) for path in stored.rglob("*") if path.is_file())
    assert len(files) > 12
    for name in files:
        assert (tmp_path / name).read_bytes() == (stored / name).read_bytes(), name


def test_other_settings_in_the_same_folder_are_refused(teacher, prompt_file, corpus, stored):
    with pytest.raises(UserError, match="begun with k = 20, not 10"):
        distill.make(teacher, stored, asked(prompt_file, corpus, k=10))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"row_length": 180}, "more than the 192 tokens of the teacher's context"),
        ({"context": 50}, "more than the 50 tokens of the teacher's context"),
        ({"prompt": "hhh"}, "use a shorter prompt or row, or --piece=1"),
        ({"k": 1000}, "vocabulary has 300"),
        ({"seed": 7}, r"has seeds \[0, 1\]"),
        ({"piece": 9, "row_length": 100}, "pieces 1 to 2"),
    ],
)
def test_what_cannot_be_made(teacher, prompt_file, corpus, tmp_path, other, words):
    with pytest.raises(UserError, match=words):
        distill.make(teacher, tmp_path, asked(prompt_file, corpus)._replace(**other))


def test_texts_and_dialogues_have_half_of_the_tokens_each():
    plain, spoken = [np.zeros(10, int)] * 30, [np.ones(25, int)] * 30
    tokens = np.concatenate(list(distill._in_turn([plain, spoken])))
    assert abs((tokens == 0).sum() - (tokens == 1).sum()) <= 25
    assert len(tokens) >= 2 * 300  # until the shorter one has run out


def test_a_dialogue_has_the_labels_of_the_prompt():
    assert distill._dialogue("Question: why?\n\n", "Answer: so.") == "\n\nHuman: why?\n\nAssistant: so."


def test_the_control_has_no_prompt(teacher, corpus, tmp_path):
    about = distill.make(teacher, tmp_path, asked("none", corpus, rows=8))
    assert about["prompt"] == {"name": "none"} and about["prompt_tokens"] == 0
    assert json.loads((tmp_path / "rows.json").read_text())["bytes_per_token"] == 84


@pytest.fixture(scope="module")
def student(teacher, stored, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("student")
    settings = {"data__row_length": 40, "optim__lr_multiple": 5.0, "epochs": 4.0, "eval__points": 4}
    run.run(tiny("distill", stored, init__checkpoint=teacher, **settings), workdir, quiet=True)
    return workdir


def test_a_student_comes_nearer_to_its_prompted_teacher(student):
    lines = [json.loads(line) for line in (student / "metrics.jsonl").read_text().splitlines()]
    losses = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert len(losses) == 4 and all(after < before for before, after in zip(losses[0], losses[-1], strict=True))
    rows = [json.loads(line) for line in (student / "rows.jsonl").read_text().splitlines()]
    assert {row["metric"] for row in rows} == {"loss"} and {row["objective"] for row in rows} == {"distillation"}
    assert all(0 < row["lo"] < row["value"] < row["hi"] for row in rows)


def test_without_a_prompt_a_teacher_has_nothing_to_teach_itself(teacher, corpus, tmp_path):
    """The control's divergence is that of half-precision rounding, and the prompt's is not."""
    distill.make(teacher, tmp_path / "rows", asked("none", corpus, rows=8))
    settings = {"data__row_length": 40, "optim__lr_multiple": 1e-9, "steps": 1}
    c = tiny("distill", tmp_path / "rows", init__checkpoint=teacher, **settings)
    c.seeds = (0,)
    run.run(c, tmp_path / "run", quiet=True)
    (row,) = (json.loads(line) for line in (tmp_path / "run" / "rows.jsonl").read_text().splitlines())
    assert 0 <= row["value"] < 1e-4


def test_rows_of_another_form_or_length_are_refused(teacher, stored, tmp_path):
    with pytest.raises(UserError, match=r"set data\.row_length=40"):
        run.run(tiny("distill", stored, init__checkpoint=teacher), tmp_path / "a", quiet=True)
    with pytest.raises(UserError, match="holds rows of form teacher, and stage discriminator takes discriminator"):
        run.run(tiny("discriminator", stored, init__checkpoint=teacher), tmp_path / "b", quiet=True)


@pytest.mark.slow
def test_a_discriminator_learns_what_tells_the_tokens_apart(teacher, stored, tmp_path):
    """Tokens with an even number are a person's: a planted label that a model of any size finds."""
    about = labeled_rows.read_about(stored)
    for split in ("train", "validation", "test"):
        tokens = np.concatenate([part["tokens"] for part in labeled_rows.open_rows(stored, split).parts])
        segments = np.concatenate([part["segment_ids"] for part in labeled_rows.open_rows(stored, split).parts])
        arrays = {"tokens": tokens, "segment_ids": segments, "is_human": (tokens % 2 == 0).astype(np.uint8)}
        labeled_rows.write_part(tmp_path / "rows", split, 0, arrays)
    labeled_rows.finish(tmp_path / "rows", about | {"form": "discriminator"}, (stored / "tokenizer.json").read_text())
    settings = {"data__row_length": 40, "optim__lr_multiple": 10.0, "epochs": 10.0}
    c = tiny("discriminator", tmp_path / "rows", init__checkpoint=teacher, **settings)
    run.run(c, tmp_path / "run", quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "run" / "rows.jsonl").read_text().splitlines()]
    assert {row["metric"] for row in rows} == {"loss", "accuracy"}
    assert all(row["value"] > 0.9 for row in rows if row["metric"] == "accuracy")


def test_rows_of_a_student_are_recomputed_from_its_checkpoint(student, pairs):
    """Its own rows, to the last digit; and pairs, which it ranks as the language model that it is."""
    written = [json.loads(line) for line in (student / "rows.jsonl").read_text().splitlines()]
    again = run.recompute_rows(str(student), "", "", "best")
    assert [row["value"] for row in again] == [row["value"] for row in written]
    assert {row["ranker"] for row in run.recompute_rows(str(student), str(pairs), "", "best")} == {"mean_logp"}
