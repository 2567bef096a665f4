"""Rows for the per-token discriminator: written by people, by people and then a model, by a model (appendix D).

    python -m hhh_jax.thirds --checkpoint=runs/pretrain-98k --source=stdlib --row_length=128 --output=data/thirds
    python -m hhh_jax.main --config=configs/discriminator.py:98k,data=data/thirds,init=runs/pretrain-98k --workdir=DIR

A row is the beginning of one document, exactly `row_length` tokens, and shorter documents are left out: nothing but who
wrote a token should tell one kind of row from another. In every third row a model takes over at a random token; in
every third the model has all but the first token, which it is never asked for in pretraining either. A sample that ends
before the row does is drawn again; what fails `tries` times is left out, with as many rows of the other two kinds.

The rows are a dataset of their own (`hhh_jax.data.labeled_rows`), in splits by document. ``is_human`` is 1 up to the
switch and 0 from there on, so that its sum is the switch's place. Samples come from (seed, id, try): a command that was
killed goes on with the part that it was at, and gives the same rows.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from hhh_jax import cli
from hhh_jax.checkpoint import read_extra
from hhh_jax.data import datasets, labeled_rows
from hhh_jax.data.records import SPLITS
from hhh_jax.data.tokenizer import Tokenizer
from hhh_jax.errors import UserError
from hhh_jax.sample import Decoding, Prompt, sample
from hhh_jax.scoring import Scorer, load_scorer
from hhh_jax.storage import open_path

HUMAN, MIXED, MODEL = range(3)
KINDS = ("human", "mixed", "model")
PART_ROWS = 192


class Asked(NamedTuple):
    """What is to be made, as rows.json says it.

    Attributes:
      source: of documents.
      rows, held_out: documents to use at most, of the training split and of each other one.
      row_length: tokens of a row.
      tries: samples drawn for a row before it is left out.
      seed: of the choice of documents, of kinds, switches and samples.
      model_seed: which of the model's seeds writes; -1 takes its first.
      sampled_at_once: rows of a batch of samples.
    """

    source: str
    rows: int
    held_out: int
    row_length: int
    tries: int = 4
    seed: int = 0
    model_seed: int = -1
    sampled_at_once: int = 32


def switches(is_human_RxT: np.ndarray) -> np.ndarray:
    """The place of the first token of a model in each row, int64 ``[R]``; T where there is none."""
    return is_human_RxT.sum(1, dtype=np.int64)


def kinds(is_human_RxT: np.ndarray) -> np.ndarray:
    """HUMAN, MIXED or MODEL of each row, ``[R]``."""
    switch_R = switches(is_human_RxT)
    return np.where(switch_R == is_human_RxT.shape[1], HUMAN, np.where(switch_R == 1, MODEL, MIXED))


def make(checkpoint: Path, output: Path, asked: Asked) -> dict[str, Any]:
    """Makes the rows, or goes on with them; returns what rows.json says.

    Raises UserError for a run that is no language model's, too little text, and an `output` that holds something else.
    """
    seeds = [] if asked.model_seed == -1 else [asked.model_seed]
    extra = read_extra(open_path(checkpoint) / "checkpoints")
    if extra["config"]["objective.name"] not in ("lm", "distillation"):
        raise UserError(f"{checkpoint}: a model of objective {extra['config']['objective.name']} writes no text")
    scorer, tokenizer, seeds_there = load_scorer(str(checkpoint), seeds, "final")
    if not 4 <= asked.row_length <= scorer.length:
        raise UserError(f"--row_length={asked.row_length}: give 4 to {scorer.length}, the model's context")
    scorer = scorer.of_seed(0)._replace(rows=asked.sampled_at_once)
    source = {
        **asked._asdict(), "model_seed": seeds_there[0], "checkpoint": str(checkpoint),
        "config_sha": extra["config_sha"], "tokenizer_sha": tokenizer.sha,
    }  # fmt: skip
    labeled_rows.claim(output, source)
    if (output / "rows.json").exists():
        return labeled_rows.read_about(output)
    n_rows, documents = {}, {}
    for split in SPLITS:
        passages = _passages(asked, split, tokenizer)
        documents[split], n_rows[split] = len(passages), 0
        for number, first in enumerate(range(0, len(passages), PART_ROWS)):
            path = labeled_rows.part_folder(output, split, number)
            if not path.exists():
                part = _write(scorer, tokenizer, passages[first : first + PART_ROWS], asked)
                labeled_rows.write_part(output, split, number, part)
            n_rows[split] += len(np.load(path / "tokens.npy", mmap_mode="r"))
        if not n_rows[split]:
            raise UserError(f"{asked.source}: no three {split} documents have {asked.row_length} tokens")
    about = source | {
        "form": "discriminator", "rows": n_rows, "documents": documents, "vocab_size": tokenizer.vocab_size,
    }  # fmt: skip
    labeled_rows.finish(output, about, tokenizer.to_json())
    return labeled_rows.read_about(output)


def job(directory: Path, *, after: Path | None, study: str, **asked: Any) -> None:
    """As a run of a study: `directory` holds rows of the model `after`; `asked` are the fields of `Asked`."""
    from hhh_jax.run import write_lines

    assert after is not None
    make(after, directory, Asked(**asked))
    write_lines(directory / "rows.jsonl", [])
    write_lines(directory / "items.jsonl", [])


class _Passage(NamedTuple):
    """The first tokens ``[T]`` of a document, and the kind of row that they are for."""

    id: str
    tokens: np.ndarray
    kind: int


def _passages(asked: Asked, split: str, tokenizer: Tokenizer) -> list[_Passage]:
    """Passages of a split in random order, the three kinds in turn."""
    documents = datasets.load_documents(asked.source, split).records
    random.Random(f"thirds {split} {asked.seed}").shuffle(documents)
    found: list[_Passage] = []
    most = asked.rows if split == "train" else asked.held_out
    for first in range(0, len(documents), 1024):
        some = documents[first : first + 1024]
        for document, tokens in zip(some, tokenizer.encode_batch([d.text for d in some]), strict=True):
            if len(tokens) >= asked.row_length and len(found) < most:
                found.append(_Passage(document.id, tokens[: asked.row_length], len(found) % 3))
        if len(found) == most:
            break
    return found


def _write(scorer: Scorer, tokenizer: Tokenizer, passages: Sequence[_Passage], asked: Asked) -> dict[str, np.ndarray]:
    """The arrays of a part: as many rows of each kind, those of people first."""
    length = asked.row_length
    tokens = [passage.tokens.copy() for passage in passages]
    switch = [_switch(passage, asked.seed) for passage in passages]
    left = [i for i, passage in enumerate(passages) if passage.kind != HUMAN]
    decoding = Decoding(max_new_tokens=length - 1, seed=asked.seed)
    for attempt in range(asked.tries):
        prompts = [Prompt(passages[i].id, passages[i].tokens[: switch[i]]) for i in left]
        limits = [length - switch[i] for i in left]
        drawn = sample(scorer, tokenizer, prompts, decoding, limits=limits, first_sample=attempt)
        missing = []
        for i, (found,) in zip(left, drawn, strict=True):
            if found.finish == "length":
                tokens[i][switch[i] :] = found.tokens
            else:
                missing.append(i)
        left = missing
    whole = [[i for i, p in enumerate(passages) if p.kind == kind and i not in set(left)] for kind in range(3)]
    chosen = [i for numbers in whole for i in numbers[: min(map(len, whole))]]
    switch_R = np.array([switch[i] for i in chosen], int)
    return {
        "tokens": np.array([tokens[i] for i in chosen], np.uint16).reshape(len(chosen), length),
        "segment_ids": np.ones((len(chosen), length), np.uint16),
        "is_human": (np.arange(length) < switch_R[:, None]).astype(np.uint8),
    }


def _switch(passage: _Passage, seed: int) -> int:
    """How many tokens of a row a person wrote: all, 2 to T - 1 (each alike), or 1."""
    length = len(passage.tokens)
    digest = hashlib.sha256(f"switch {seed} {passage.id}".encode()).digest()
    drawn = np.random.default_rng(np.frombuffer(digest, np.uint32)).integers(2, length)
    return (length, int(drawn), 1)[passage.kind]


def main(_: Sequence[str]) -> None:
    cli.use_compilation_cache()
    given: dict[str, Any] = {name: flags.FLAGS[name].value for name in Asked._fields}
    print(json.dumps(make(Path(_CHECKPOINT.value), Path(_OUTPUT.value), Asked(**given)), indent=2))


if __name__ == "__main__":
    _CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Directory of the language model that writes.", required=True)
    _OUTPUT = flags.DEFINE_string("output", None, "Folder of the rows.", required=True)
    flags.DEFINE_string("source", "stdlib", "Documents: a name of hhh_jax.data.datasets or a path.")
    flags.DEFINE_integer("rows", 3000, "Documents of the training split to use, at most.", lower_bound=3)
    flags.DEFINE_integer("held_out", 600, "Documents of validation and of test to use, at most.", lower_bound=3)
    flags.DEFINE_integer("row_length", 128, "Tokens of a row; shorter documents are left out.")
    flags.DEFINE_integer("tries", 4, "Samples drawn for a row before it is left out.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of documents, switches and samples.")
    flags.DEFINE_integer("model_seed", -1, "Which of the run's seeds writes; -1: its first.")
    flags.DEFINE_integer("sampled_at_once", 32, "Rows of a batch of samples.", lower_bound=1)
    cli.start(main)
