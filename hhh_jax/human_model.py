"""Pairs of human and model-written text for preference model pre-training (section 4.4, figures 19 and 36).

    python -m hhh_jax.human_model --checkpoint=RUN_DIR --source=FILE_OR_FOLDER --output=pairs.jsonl [--kind=documents]

The good side is written by people, the bad side sampled by a language model after the same context; the paper's model
was finetuned on the good sides (configs/lm_finetune.py). The source holds pairs, of which the good side is taken, or
documents, which are cut in two between words.

Nothing but who wrote it should tell the two sides apart. So both have exactly the same number of tokens, drawn for each
pair, at which neither writer had come to an end: a human text that is too short is left out, and a sample that ends
before is drawn again. Both are cut at a token, in the middle of whatever they were saying.

Every sample comes from (seed, id, try). A command that was killed goes on where it was, and gives the same file.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from hhh_jax import cli
from hhh_jax.data.records import SPLITS, Counts, Document, Pair
from hhh_jax.data.tokenizer import Tokenizer
from hhh_jax.errors import UserError
from hhh_jax.sample import Decoding, Prompt, sample
from hhh_jax.scoring import Scorer

CHUNK = 1024
"""Pairs that are written at once."""


class Task(NamedTuple):
    """A human continuation, int32 ``[N]``, of a context, and how many tokens of it to ask of the model too, below N."""

    id: str
    group: str
    context: str
    good: np.ndarray
    n_tokens: int


def make_tasks(
    records: Sequence[Pair] | Sequence[Document],
    tokenizer: Tokenizer,
    seed: int,
    least: int,
    most: int,
    counts: Counts,
) -> list[Task]:
    """What to ask of the model: `least` to `most` tokens after each context, drawn from (seed, id).

    A document's context ends before a word between a tenth and a half of its text. What is too short is counted.
    """
    tasks = []
    for record in records:
        rng = np.random.default_rng(np.frombuffer(hashlib.sha256(f"{seed} {record.id}".encode()).digest(), np.uint32))
        if isinstance(record, Pair):
            context, good = record.context, record.good
        else:
            gaps = [gap.start() for gap in re.finditer(r"(?<=\S)\s", record.text)]
            gaps = [gap for gap in gaps if 0.1 <= gap / len(record.text) <= 0.5]
            cut = gaps[rng.integers(len(gaps))] if gaps else 0
            context, good = record.text[:cut], record.text[cut:]
        tokens = tokenizer.encode(good)
        longest = min(len(tokens) - 1, most)
        if longest < least:
            counts.drop(f"a person wrote fewer than {least + 1} tokens")
            continue
        counts.keep()
        n_tokens = int(rng.integers(least, longest + 1))
        tasks.append(Task(record.id, record.group, context, tokens, n_tokens))
    return tasks


def write_bad_sides(
    scorer: Scorer, tokenizer: Tokenizer, tasks: Sequence[Task], decoding: Decoding, tries: int
) -> dict[str, Pair]:
    """A pair for each task that has one after `tries`, by id; both sides have as many tokens, read again from text.

    The model reads the last tokens of a context, as many as leave room for what it writes.
    """
    spellings = tokenizer.token_bytes()
    start = np.array([tokenizer.eoc_id], np.int32)
    contexts = {task.id: tokenizer.encode(task.context) for task in tasks}
    pairs: dict[str, Pair] = {}
    for attempt in range(tries):
        left = [task for task in tasks if task.id not in pairs]
        prompts = [Prompt(task.id, contexts[task.id][-(scorer.length - task.n_tokens) :]) for task in left]
        prompts = [prompt if len(prompt.tokens) else Prompt(prompt.id, start) for prompt in prompts]
        limits = [task.n_tokens for task in left]
        for task, (found,) in zip(
            left, sample(scorer, tokenizer, prompts, decoding, limits=limits, first_sample=attempt), strict=True
        ):
            if found.finish == "length":
                sides = matched(tokenizer, spellings, task.good[: task.n_tokens], found.tokens)
                if sides:
                    pairs[task.id] = Pair(task.id, task.context, *sides, task.group)
    return pairs


def matched(
    tokenizer: Tokenizer, spellings: Sequence[bytes], good: np.ndarray, bad: np.ndarray
) -> tuple[str, str] | None:
    """Texts of the first tokens of both, as long as they can be while they have equally many when tokenized again.

    A model may spell a text in more tokens than the tokenizer would. None if nothing is left, if the texts are equal,
    or if the model's is no UTF-8.
    """
    while True:
        texts = []
        for tokens in (good, bad):
            spelled = b"".join(spellings[token] for token in tokens)
            whole = re.sub(rb"[\xc2-\xf4][\x80-\xbf]{0,2}\Z", _keep_whole_character, spelled)
            try:
                texts.append(whole.decode())
            except UnicodeDecodeError:
                return None
        good, bad = (tokenizer.encode(text) for text in texts)
        n = min(len(good), len(bad))
        if n == 0 or texts[0] == texts[1]:
            return None
        if len(good) == len(bad):
            return texts[0], texts[1]
        good, bad = good[:n], bad[:n]


def _keep_whole_character(end: re.Match[bytes]) -> bytes:
    """The character that ends a text, or nothing where the text was cut within it."""
    return end[0] if len(end[0]) >= (2 if end[0][0] < 0xE0 else 3 if end[0][0] < 0xF0 else 4) else b""


def write_pairs(
    scorer: Scorer,
    tokenizer: Tokenizer,
    tasks: Sequence[tuple[str, Task]],
    decoding: Decoding,
    tries: int,
    output: Path,
    about: dict[str, object],
    counts: Counts,
) -> None:
    """Writes a JSON line {id, group, split, context, good, bad} for each task that has a pair, in their order.

    Args:
      tasks: with the split of each.
      about: all that the file depends on; a partial file of anything else is refused.
    """
    partial = output.with_name(output.name + ".partial")
    header = json.dumps(about) + "\n"
    done: set[str] = set()
    if partial.exists():
        head, *lines = partial.read_text(encoding="utf-8").splitlines(keepends=True)
        if head != header:
            raise UserError(f"{partial} was begun with other settings: {head.strip()}; move it away to start again")
        lines = [line for line in lines if line.endswith("\n")]
        partial.write_text(head + "".join(lines), encoding="utf-8")
        done = {json.loads(line)["id"] for line in lines}
    else:
        partial.write_text(header, encoding="utf-8")
    first = max((i + 1 for i, (_, task) in enumerate(tasks) if task.id in done), default=0)
    with partial.open("a", encoding="utf-8") as file:
        for at in range(first, len(tasks), CHUNK):
            chunk = tasks[at : at + CHUNK]
            pairs = write_bad_sides(scorer, tokenizer, [task for _, task in chunk], decoding, tries)
            for split, task in chunk:
                if task.id in pairs:
                    pair = pairs[task.id]
                    row = {"id": pair.id, "group": pair.group, "split": split}
                    row |= {"context": pair.context, "good": pair.good, "bad": pair.bad}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
    lines = partial.read_text(encoding="utf-8").splitlines(keepends=True)[1:]
    counts.dropped[f"no sample of {tries} was long enough and UTF-8"] += len(tasks) - len(lines)
    counts.kept = len(lines)
    output.write_text("".join(lines), encoding="utf-8")
    partial.unlink()


class Asked(NamedTuple):
    """What to write; the flags of the command of these names say what they are."""

    source: str
    kind: str = "pairs"
    limit: int = 0
    held_out: int = 0
    least: int = 8
    most: int = 256
    tries: int = 4
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    rows: int = 32
    model_seed: int | None = None
    selection: str = "best"
    context: int = 0


def make(checkpoint: Path | str, output: Path, asked: Asked) -> dict[str, object]:
    """Writes the file `output` of pairs whose bad sides the model of a finished run wrote.

    Returns all that it depends on, and the counts. Raises UserError if the sides don't fit the model's context.
    """
    from hhh_jax.data import datasets
    from hhh_jax.scoring import load_scorer

    seeds = [] if asked.model_seed is None else [asked.model_seed]
    scorer, tokenizer, seeds_there = load_scorer(str(checkpoint), seeds, asked.selection, asked.context)
    scorer = scorer.of_seed(0)._replace(rows=asked.rows)
    most = min(asked.most, scorer.length // 2)
    if not 1 <= asked.least <= most:
        raise UserError(f"--least={asked.least}: sides have at most {most} tokens in a context of {scorer.length}")
    decoding = Decoding(max_new_tokens=most, temperature=asked.temperature, top_p=asked.top_p, seed=asked.seed)
    counts, tasks = Counts(), []
    for split in SPLITS:
        limit = (asked.limit if split == "train" else asked.held_out or -(-asked.limit // 10)) or None
        if asked.kind == "pairs":
            data = datasets.load_pairs(asked.source, split, limit=limit)
        else:
            data = datasets.load_documents(asked.source, split)
        records = data.records[:limit]
        tasks += [(split, task) for task in make_tasks(records, tokenizer, asked.seed, asked.least, most, counts)]
    about = {
        "checkpoint": str(checkpoint), "model_seed": seeds_there[0], "source": asked.source, "limit": asked.limit,
        "held_out": asked.held_out, "least": asked.least, "most": most, "context": scorer.length,
        "temperature": decoding.temperature, "top_p": decoding.top_p, "seed": asked.seed, "tries": asked.tries,
        "tokenizer": tokenizer.sha,
    }  # fmt: skip
    write_pairs(scorer, tokenizer, tasks, decoding, asked.tries, output, about, counts)
    return about | counts.as_dict()


def job(directory: Path, *, after: Path | None, study: str, name: str, **asked: Any) -> None:
    """As a run of a study: the pairs are NAME.jsonl in `directory`, bad sides by the model of `after`; `asked` are the
    fields of `Asked`. There are no result rows."""
    from hhh_jax.record import write_json_atomic
    from hhh_jax.run import write_lines

    assert after is not None
    output = directory / f"{name}.jsonl"
    if not output.exists():
        write_json_atomic(directory / "about.json", make(after, output, Asked(**asked)))
    write_lines(directory / "rows.jsonl", [])
    write_lines(directory / "items.jsonl", [])


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unknown argument {argv[1]}")
    output = Path(_OUTPUT.value)
    if output.exists():
        raise UserError(f"{output} is there; move it away to write it again")
    cli.use_compilation_cache()
    given: dict[str, Any] = {name: flags.FLAGS[name].value for name in Asked._fields}
    print(json.dumps(make(_CHECKPOINT.value, output, Asked(**given))))


if __name__ == "__main__":
    _CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Directory of the finished run that writes.", required=True)
    _OUTPUT = flags.DEFINE_string("output", None, "The file of pairs to write.", required=True)
    flags.DEFINE_string("source", None, "Human text: a name or path of pairs or documents.", required=True)
    flags.DEFINE_enum("kind", "pairs", ["pairs", "documents"], "What the source holds.")
    flags.DEFINE_integer("limit", 0, "Training records to read; 0 reads all.")
    flags.DEFINE_integer("held_out", 0, "Records to read of validation and of test; 0: a tenth of --limit.")
    flags.DEFINE_integer("least", 8, "Fewest tokens of a side.")
    flags.DEFINE_integer("most", 256, "Most tokens of a side; at most half of the model's context.")
    flags.DEFINE_integer("tries", 4, "Samples drawn for a pair before it is left out.")
    flags.DEFINE_float("temperature", 1.0, "Of sampling.")
    flags.DEFINE_float("top_p", 1.0, "Share of the probability that is sampled from.")
    flags.DEFINE_integer("seed", 0, "Of cuts, lengths and samples.")
    flags.DEFINE_integer("rows", 32, "Samples that are drawn at once.")
    flags.DEFINE_integer("model_seed", None, "Which of the run's seeds; its first if not given.")
    flags.DEFINE_enum("selection", "best", ["best", "final"], "Parameters chosen on validation, or the last.")
    flags.DEFINE_integer("context", 0, "The model's context in tokens; the run's own rows if not given.")
    cli.start(main)
