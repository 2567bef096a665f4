"""Context distillation's teacher: it runs once over a prompt and text, and what it expects of each token is stored.

    python -m hhh_jax.distill --teacher=runs/pretrain-98k --prompt=short --data=stdlib --rows=512 --output=DIR
    python -m hhh_jax.main --config=configs/distill.py:98k,data=DIR,init=runs/pretrain-98k --workdir=runs/student

Students of any size train on ``KL(teacher(X | prompt) || student(X))`` (eq. 2.1) over the teacher's top k tokens and
all others together (B.5). The rows are a dataset of their own (`hhh_jax.data.labeled_rows`); a killed teacher goes on
with the part that it was at.

Every text begins with the label of a person's turn, "Human:", and the prompt ends in front of it: the student learns to
behave as if prompted wherever it sees that label. What a row has no room for goes on in the next one, behind the label
of whose turn it is; texts come in one fixed random order. Half of the tokens are of such texts and half of questions
with answers labeled "Assistant:" (the paper: Stack Exchange), where ``--dialogues`` names them. ``--prompt=none`` is
the control that separates the prompt's effect from ordinary distillation. A prompt that is longer than the teacher's
context is distilled by pieces: the student of ``--piece=1`` is the teacher of ``--piece=2``.
"""

import functools
import itertools
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import NamedSharding, PartitionSpec

from hhh_jax import cli, prompts
from hhh_jax import run as run_lib
from hhh_jax.cache import Cache
from hhh_jax.checkpoint import read_extra
from hhh_jax.data import datasets, labeled_rows
from hhh_jax.data.packing import Batch, empty_batch, tokenize_documents
from hhh_jax.data.records import SPLITS, Document
from hhh_jax.data.tokenizer import Tokenizer
from hhh_jax.errors import UserError
from hhh_jax.model import ModelConfig, Params, hidden_states_after, lm_logits
from hhh_jax.sharding import make_mesh
from hhh_jax.storage import open_path

TOP_K = 50
ROW_TOKENS = 1536
"""Tokens of a row, where the context has room for them (B.5: about 1500)."""

HELD_OUT = 0.05
"""Rows of each of validation and test, as a share of the training rows; there are at least 8."""

PART_ROWS = 64
CHUNK = 128
"""Tokens of a row whose logits are held at once."""


class Teacher(NamedTuple):
    """A language model that has read its prompt.

    Attributes:
      model, params: of one seed.
      tokenizer: its tokenizer, which the students share.
      cache: the prompt's keys and values; empty without a prompt.
      offset: tokens of the prompt.
      mesh: where it runs.
      rows: rows that it reads at once.
    """

    model: ModelConfig
    params: Params
    tokenizer: Tokenizer
    cache: Cache
    offset: int
    mesh: jax.sharding.Mesh
    rows: int


class Asked(NamedTuple):
    """What is to be made, as rows.json says it.

    Attributes:
      prompt: ``none``, a name or file of `hhh_jax.prompts`.
      piece: which piece of a prompt that is too long, from 1; 0 takes it whole.
      data, dialogues: sources of documents, and of pairs whose contexts and good sides are questions and answers; ""
        does without the latter.
      rows: training rows, at most.
      row_length: tokens of a row; 0 takes what fits, up to `ROW_TOKENS`.
      context: tokens that the teacher reads at once; 0 takes the length of the rows that it was trained on.
      k: tokens that are stored with their log-probability.
      seed: which of the teacher's seeds; -1 takes its first.
    """

    prompt: str
    piece: int
    data: str
    dialogues: str
    rows: int
    row_length: int
    context: int
    k: int
    seed: int


def make(teacher_dir: Path, output: Path, asked: Asked) -> dict[str, Any]:
    """Makes the rows, or goes on with them; returns what rows.json says.

    Raises UserError for a teacher without a language model, a prompt and row that exceed its context, too little text,
    and an `output` that holds something else.
    """
    c, tokenizer = run_lib.load_config(open_path(teacher_dir))
    context = asked.context or c.data.row_length
    prompt, text = _prompt_text(asked, tokenizer, context)
    prefix = tokenizer.encode(text)
    length = asked.row_length or min(ROW_TOKENS, context - len(prefix))
    if len(prefix) + length > context or length < 16:
        raise UserError(
            f"the prompt {asked.prompt} has {len(prefix)} tokens and a row {max(length, 16)}: together more than the "
            f"{context} tokens of the teacher's context; use a shorter prompt or row, or --piece=1"
        )
    if asked.k > tokenizer.vocab_size:
        raise UserError(f"--k={asked.k}: the teacher's vocabulary has {tokenizer.vocab_size} tokens")
    source = {
        **asked._asdict(), "row_length": length, "teacher": str(teacher_dir), "prompt_sha256": prompt.get("sha256", ""),
        "teacher_config_sha": read_extra(teacher_dir / "checkpoints")["config_sha"],
        "tokenizer_sha": tokenizer.sha,
    }  # fmt: skip
    labeled_rows.claim(output, source)
    if (output / "rows.json").exists():
        return labeled_rows.read_about(output)
    held_out = max(8, round(asked.rows * HELD_OUT))
    wanted = {"train": asked.rows, "validation": held_out, "test": held_out}
    rows = {
        split: list(itertools.islice(_rows(_texts(asked, split, tokenizer), length, tokenizer), wanted[split]))
        for split in SPLITS
    }
    n_rows = {split: len(packed) for split, packed in rows.items()}
    if not all(n_rows.values()):
        raise UserError(f"--data={asked.data}: too little text for rows of {length} tokens: {n_rows}")
    teacher = _read_prompt(teacher_dir, c, tokenizer, asked.seed, prefix)
    for split in SPLITS:
        for part, first in enumerate(range(0, n_rows[split], PART_ROWS)):
            if not labeled_rows.part_folder(output, split, part).exists():
                arrays = _label(teacher, rows[split][first : first + PART_ROWS], length, asked.k)
                labeled_rows.write_part(output, split, part, arrays)
    about = source | {
        "form": "teacher", "rows": n_rows, "rows_wanted": wanted, "prompt": prompt, "prompt_tokens": len(prefix),
        "vocab_size": tokenizer.vocab_size, "bytes_per_token": 2 + 2 + 4 * asked.k,
    }  # fmt: skip
    labeled_rows.finish(output, about, tokenizer.to_json())
    return labeled_rows.read_about(output)


def job(directory: Path, *, after: Path | None, study: str, **asked: Any) -> None:
    """As a run of a study: `directory` holds the rows of the teacher `after`; `asked` are the fields of `Asked`."""
    assert after is not None
    make(after, directory, Asked(**asked))
    run_lib.write_lines(directory / "rows.jsonl", [])
    run_lib.write_lines(directory / "items.jsonl", [])


def _prompt_text(asked: Asked, tokenizer: Tokenizer, context: int) -> tuple[dict[str, Any], str]:
    """What rows.json says of the prompt, and its text."""
    if asked.prompt == "none":
        return {"name": "none"}, ""
    prompt = prompts.load(asked.prompt)
    about = {"name": prompt.name, "sha256": prompt.sha256, "is_original": prompt.is_original}
    if not asked.piece:
        return about, prompt.text
    room = context - (asked.row_length or min(ROW_TOKENS, context // 2))
    pieces = prompts.pieces(prompt.text, lambda text: len(tokenizer.encode(text)), room)
    if not 1 <= asked.piece <= len(pieces):
        raise UserError(f"--piece={asked.piece}: in a context of {context} the prompt has pieces 1 to {len(pieces)}")
    return about | {"piece": asked.piece, "pieces": len(pieces)}, pieces[asked.piece - 1]


def _texts(asked: Asked, split: str, tokenizer: Tokenizer) -> list[np.ndarray]:
    """Token ids of the split's texts, documents and dialogues in turn so that both have as many tokens."""
    documents = _shuffled(datasets.load_documents(asked.data, split).records)
    plain = [Document(d.id, f"{prompts.HUMAN} {d.text.strip()}", d.group) for d in documents]
    if not asked.dialogues:
        return tokenize_documents(plain, tokenizer)
    pairs = _shuffled(datasets.load_pairs(asked.dialogues, split).records)
    spoken = [Document(p.id, _dialogue(p.context, p.good), p.group) for p in pairs]
    return list(_in_turn([tokenize_documents(texts, tokenizer) for texts in (plain, spoken)]))


def _shuffled(records: Sequence[Any]) -> list[Any]:
    return random.Random("texts of a teacher").sample(list(records), len(records))


def _rows(texts: Iterable[np.ndarray], length: int, tokenizer: Tokenizer) -> Iterator[list[np.ndarray]]:
    """Rows of segments that begin with a label and have `length` tokens together, or a few less than that."""
    labels = {label: tokenizer.encode(label) for label in (prompts.HUMAN, prompts.ASSISTANT)}
    least = min(2 * max(map(len, labels.values())), length)  # so that a segment is more than its label
    row: list[np.ndarray] = []
    room = length
    for text in texts:
        rest = text
        while len(rest):
            if room < least:
                yield row
                row, room = [], length
            segment, rest = rest[:room], rest[room:]
            row.append(segment)
            room -= len(segment)
            if len(rest):
                said = tokenizer.decode(segment)
                rest = np.concatenate([labels[max(labels, key=said.rfind)], rest])
    if row:
        yield row


def _dialogue(question: str, answer: str) -> str:
    question, answer = question.strip().removeprefix("Question:"), answer.strip().removeprefix("Answer:")
    return f"{prompts.as_question(question)} {answer.strip()}"


def _in_turn(kinds: Sequence[Sequence[np.ndarray]]) -> Iterator[np.ndarray]:
    """Texts of every kind in their order, the next one of the kind with the fewest tokens so far; ends with a kind."""
    tokens, taken = [0] * len(kinds), [0] * len(kinds)
    while True:
        kind = tokens.index(min(tokens))
        if taken[kind] == len(kinds[kind]):
            return
        text = kinds[kind][taken[kind]]
        taken[kind] += 1
        tokens[kind] += len(text)
        yield text


def _read_prompt(teacher_dir: Path, c: Any, tokenizer: Tokenizer, seed: int, prefix: np.ndarray) -> Teacher:
    mesh = make_mesh(**c.mesh)
    step_config = run_lib.make_step_config(c, tokenizer.vocab_size, mesh)
    seeds = list(c.seeds)
    if seed not in (-1, *seeds):
        raise UserError(f"--seed={seed}: {teacher_dir} has seeds {seeds}")
    number = 0 if seed == -1 else seeds.index(seed)
    state = run_lib.load_state(open_path(teacher_dir), step_config)
    params = jax.tree.map(lambda x: x[number], state["params"])
    model = step_config.model
    cache: Cache = ()
    if len(prefix):
        ones_1xT = jnp.ones((1, len(prefix)), jnp.int32)
        places_1xT = jnp.arange(len(prefix), dtype=jnp.int32)[None]
        read = jax.jit(functools.partial(hidden_states_after, model, cache=()))
        _, keys = read(
            params, tokens_BxT=jnp.asarray(prefix)[None], segment_ids_BxT=ones_1xT, branch_ids_BxT=0 * ones_1xT,
            positions_BxT=places_1xT,
        )  # fmt: skip
        cache = (keys,)
    rows = c.eval.rows
    return Teacher(model, params, tokenizer, cache, len(prefix), mesh, rows)


def _label(teacher: Teacher, rows: Sequence[list[np.ndarray]], length: int, k: int) -> dict[str, np.ndarray]:
    """`rows` with the teacher's labels, as a part is stored."""
    sharding = NamedSharding(teacher.mesh, PartitionSpec(("data", "fsdp")))
    parts = []
    for start in range(0, len(rows), teacher.rows):
        batch = _batch(rows[start : start + teacher.rows], teacher.rows, length, teacher.tokenizer.pad_id)
        device = jax.tree.map(lambda x: jax.device_put(x, sharding), batch)
        ids_RxTxK, logps_RxTxK = _compiled_labels(teacher.model, k, teacher.offset, teacher.mesh)(
            teacher.params, teacher.cache, device
        )
        parts.append({
            "tokens": batch.tokens.astype(np.uint16),
            "segment_ids": batch.segment_ids.astype(np.uint16),
            "teacher_ids": np.asarray(ids_RxTxK),
            "teacher_logps": np.asarray(logps_RxTxK),
        })  # fmt: skip
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {name: array[: len(rows)] for name, array in whole.items()}


def _batch(rows: Sequence[list[np.ndarray]], count: int, length: int, pad_id: int) -> Batch:
    batch, _ = empty_batch(count, length, 0, pad_id)
    for r, row in enumerate(rows):
        at = 0
        for number, segment in enumerate(row, 1):
            batch.tokens[r, at : at + len(segment)] = segment
            batch.segment_ids[r, at : at + len(segment)] = number
            at += len(segment)
    batch.positions[:] = labeled_rows.positions(batch.segment_ids)
    return batch


@functools.lru_cache(maxsize=4)
def _compiled_labels(model: ModelConfig, k: int, offset: int, mesh: jax.sharding.Mesh) -> Any:
    def labels(params: Params, cache: Cache, batch: Batch) -> tuple[jax.Array, jax.Array]:
        hidden_RxTxD, _ = hidden_states_after(
            model, params, cache, batch.tokens, batch.segment_ids, batch.branch_ids, batch.positions + offset, mesh
        )
        r, t, d = hidden_RxTxD.shape
        padded = jnp.pad(hidden_RxTxD, ((0, 0), (0, -t % CHUNK), (0, 0)))
        chunks_NxRxCxD = jnp.swapaxes(padded.reshape(r, -1, CHUNK, d), 0, 1)

        def top(hidden_RxCxD: jax.Array) -> tuple[jax.Array, jax.Array]:
            logps = jax.nn.log_softmax(lm_logits(params, hidden_RxCxD.reshape(-1, d)), axis=-1)
            logps, ids = jax.lax.top_k(logps, k)
            return ids.astype(jnp.uint16).reshape(r, CHUNK, k), logps.astype(jnp.float16).reshape(r, CHUNK, k)

        tops = jax.lax.map(top, chunks_NxRxCxD)
        ids_RxTxK, logps_RxTxK = (jnp.swapaxes(x, 0, 1).reshape(r, -1, k)[:, :t] for x in tops)
        return ids_RxTxK, logps_RxTxK

    return jax.jit(labels, out_shardings=NamedSharding(mesh, PartitionSpec()))


def main(_: Sequence[str]) -> None:
    cli.use_compilation_cache()
    given: dict[str, Any] = {name: flags.FLAGS[name].value for name in Asked._fields}
    asked = Asked(**given)
    print(json.dumps(make(Path(_TEACHER.value), Path(_OUTPUT.value), asked), indent=2))


if __name__ == "__main__":
    _TEACHER = flags.DEFINE_string("teacher", None, "Directory of a language model's run.", required=True)
    _OUTPUT = flags.DEFINE_string("output", None, "Folder of the rows.", required=True)
    flags.DEFINE_string("prompt", "hhh", "hhh, short, a text file, or none.")
    flags.DEFINE_integer("piece", 0, "Piece of a prompt that is longer than the context, from 1; 0: all of it.")
    flags.DEFINE_string("data", "stdlib", "Documents: a name of hhh_jax.data.datasets or a path.")
    flags.DEFINE_string("dialogues", "", "Pairs whose contexts and good sides are questions and answers.")
    flags.DEFINE_integer("rows", 1024, "Training rows, at most.", lower_bound=1)
    flags.DEFINE_integer("row_length", 0, "Tokens of a row; 0: what the context has room for, up to 1536.")
    flags.DEFINE_integer("context", 0, "Tokens that the teacher reads at once; 0: of the rows that it was trained on.")
    flags.DEFINE_integer("k", TOP_K, "Tokens stored for each place.", lower_bound=1)
    flags.DEFINE_integer("seed", -1, "The teacher's seed; -1: its first.")
    cli.start(main)
