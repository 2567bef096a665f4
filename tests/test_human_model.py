"""Pairs whose sides differ in who wrote them, and the same file whether or not it was written in one go."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hhh_jax import human_model
from hhh_jax.data import files
from hhh_jax.data.records import Counts, Document, Pair
from hhh_jax.errors import UserError
from hhh_jax.human_model import make_tasks, matched, write_pairs
from hhh_jax.sample import Decoding
from hhh_jax.scoring import load_scorer

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def loaded(pretrained):
    scorer, tokenizer, _ = load_scorer(str(pretrained), [0])
    return scorer._replace(rows=16), tokenizer


def test_tasks_cut_documents_between_words_and_ask_for_less_than_a_person_wrote(loaded):
    _, tokenizer = loaded
    documents = [Document(f"d{i}", "red fox runs " * (i + 1) + "now", "g") for i in range(40)]
    pair = Pair("p", "the red fox", " runs and sleeps often here", " x", "g")
    short = Document("short", "red fox", "g")
    counts = Counts()
    tasks = make_tasks([*documents, pair, short], tokenizer, 0, 4, 20, counts)
    assert (counts.read, counts.kept, len(tasks)) == (42, 41, 41)
    assert counts.dropped == {"a person wrote fewer than 5 tokens": 1}
    whole = {document.id: document.text for document in documents} | {"p": "the red fox runs and sleeps often here"}
    for task in tasks:
        assert task.context + tokenizer.decode(task.good) == whole[task.id]
        assert 4 <= task.n_tokens < len(task.good) and task.n_tokens <= 20
        assert not task.context.endswith(" ") and tokenizer.decode(task.good).startswith(" ")
    assert len({task.n_tokens for task in tasks}) > 5
    again = {task.id: task for task in make_tasks(documents[::-1], tokenizer, 0, 4, 20, Counts())}
    assert all(again[task.id].n_tokens == task.n_tokens for task in tasks if task.id != "p")


def test_matched_texts_have_equally_many_tokens_and_whole_characters(loaded):
    _, tokenizer = loaded
    spellings = tokenizer.token_bytes()
    letters = {spelling: i for i, spelling in enumerate(spellings)}

    def in_bytes(text: str | bytes) -> np.ndarray:
        raw = text if isinstance(text, bytes) else text.encode()
        return np.array([letters[bytes([byte])] for byte in raw], np.int32)

    # Spelled letter by letter, a text has more tokens than it takes.
    good, bad = tokenizer.encode("red fox runs here often"), in_bytes("blue hen sleeps")
    texts = matched(tokenizer, spellings, good, bad)
    assert texts is not None and texts[1] == "blue hen sleeps" and "red fox runs here often".startswith(texts[0])
    assert len(tokenizer.encode(texts[0])) == len(tokenizer.encode(texts[1]))
    assert len(texts[0]) < len("red fox runs here often")
    # Cut within a character: é is two bytes.
    texts = matched(tokenizer, spellings, in_bytes("abcé".encode()[:4]), in_bytes("xyz"))
    assert texts == ("abc", "xyz")
    assert matched(tokenizer, spellings, in_bytes("né"), in_bytes("xyz")) == ("né", "xyz")
    assert matched(tokenizer, spellings, in_bytes("ab"), in_bytes(b"\xc3(")) is None
    assert matched(tokenizer, spellings, in_bytes("ab"), in_bytes("ab")) is None
    assert matched(tokenizer, spellings, in_bytes("ab"), in_bytes(b"\xf0\x9f")) is None


@pytest.mark.slow
def test_a_file_that_was_interrupted_goes_on_to_the_same(loaded, corpus, tmp_path, monkeypatch):
    scorer, tokenizer = loaded
    documents = files.read_documents(str(corpus))[0]
    tasks = [("train", task) for task in make_tasks(documents, tokenizer, 3, 4, 20, Counts())]
    assert len(tasks) == 60
    arguments = (scorer, tokenizer, tasks, Decoding(max_new_tokens=20, temperature=1.0, seed=3), 4)
    whole, counts = tmp_path / "whole.jsonl", Counts(60, 60)
    write_pairs(*arguments, whole, {"seed": 3}, counts)
    rows = [json.loads(line) for line in whole.read_text().splitlines()]
    assert counts.read == counts.kept + counts.dropped.total() and counts.kept == len(rows) > 20
    assert [row["id"] for row in rows] == [task.id for _, task in tasks if task.id in {row["id"] for row in rows}]
    texts = {document.id: document.text for document in documents}
    for row in rows:
        assert row["good"] != row["bad"] and texts[row["id"]].startswith(row["context"] + row["good"])
        assert len(tokenizer.encode(row["good"])) == len(tokenizer.encode(row["bad"]))
    assert len({row["bad"] for row in rows}) == len(rows)

    monkeypatch.setattr(human_model, "CHUNK", 16)
    write_bad_sides, calls = human_model.write_bad_sides, []

    def dies(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write_bad_sides(*args, **kwargs)

    monkeypatch.setattr(human_model, "write_bad_sides", dies)
    parts = tmp_path / "parts.jsonl"
    with pytest.raises(KeyboardInterrupt):
        write_pairs(*arguments, parts, {"seed": 3}, Counts(60, 60))
    partial = tmp_path / "parts.jsonl.partial"
    assert not parts.exists() and len(partial.read_text().splitlines()) > 10
    with partial.open("a") as file:
        file.write('{"id": "torn')
    with pytest.raises(UserError, match="other settings"):
        write_pairs(*arguments, parts, {"seed": 4}, Counts(60, 60))
    counts = Counts(60, 60)
    write_pairs(*arguments, parts, {"seed": 3}, counts)
    assert parts.read_bytes() == whole.read_bytes() and not partial.exists()


@pytest.mark.slow
def test_command_line(pretrained, corpus, tmp_path):
    output = tmp_path / "pairs.jsonl"
    command = [sys.executable, "-m", "hhh_jax.human_model", f"--checkpoint={pretrained}", f"--source={corpus}"]
    command += ["--kind=documents", f"--output={output}", "--least=4", "--most=16", "--limit=20"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    pairs, splits, _ = files.read_pairs(str(output))
    assert len(pairs) == counts["kept"] and set(splits) == {"train", "validation", "test"}
    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ, check=False)
    assert again.returncode == 2 and "is there" in again.stderr
