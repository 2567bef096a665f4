"""Scores of a user's own pairs under a finished run's model, and how often it prefers the good side.

    python -m hhh_jax.score --checkpoint=RUN_DIR pairs.jsonl [--output=scores.jsonl] [--seed=0] [--bad_rows=drop]

pairs.jsonl holds {context, good, bad} a line. A preference model gives rewards (only differences between responses to
one context mean anything), a run of DPO implicit rewards, any other run mean log-probabilities of the response's
tokens. With --output the scores of every pair are written as JSON lines; the last line printed is the pair accuracy
with its 95% interval.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from hhh_jax import cli
from hhh_jax.errors import UserError


def score_file(
    checkpoint: str, path: str, seed: int | None, selection: str, bad_rows: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Scores every pair of a file of pairs, in file order.

    Args:
      checkpoint: directory of a finished run.
      path: JSON Lines, as `hhh_jax.data.files` reads them.
      seed: which of the run's seeds; None takes its first.
      selection: ``best`` takes the parameters chosen on validation where the run has them, ``final`` the last ones.
      bad_rows: ``error`` or ``drop``.

    Returns:
      ``{id, good, bad}`` of every pair that fits the model's rows, and the summary ``{score, pairs, accuracy, lo, hi,
      dropped}``.

    Raises:
      UserError: for a directory that is no run's, a file that can't be read, or a seed that the run doesn't have.
    """
    from hhh_jax import evaluate, held_out, run, scoring, stats
    from hhh_jax.data import files
    from hhh_jax.data.packing import tokenize_pairs
    from hhh_jax.storage import open_path

    c, tokenizer = run.load_config(open_path(checkpoint))
    seed = c.seeds[0] if seed is None else seed
    scorer, _, _ = scoring.load_scorer(checkpoint, (seed,), selection)
    pairs, _, counts = files.read_pairs(path, bad_rows)
    d = c.data
    form = {"share_context": d.share_context, "end_of_context": d.end_of_context}
    tokenized = tokenize_pairs(pairs, tokenizer, d.max_tokens, d.row_length, counts, **form)
    if not tokenized:
        raise UserError(f"{path}: no pair is left to score: {json.dumps(counts.as_dict())}")
    ranker = held_out.pair_ranker(c.objective.name)
    values_Px2 = evaluate.score_pairs(scorer, tokenized, (held_out.want(ranker),)).by(ranker)[0]
    records = [
        {"id": pair.id, "good": float(good), "bad": float(bad)}
        for pair, (good, bad) in zip(tokenized, values_Px2, strict=True)
    ]
    correct = float(evaluate.right(values_Px2[:, 0] - values_Px2[:, 1]).sum())
    lo, hi = stats.wilson(correct, len(records))
    summary = {"score": ranker, "pairs": len(records), "accuracy": correct / len(records), "lo": lo, "hi": hi}
    return records, summary | {"dropped": dict(counts.dropped)}


def main(argv: Sequence[str]) -> None:
    if len(argv) != 2:
        raise UserError("give one file of pairs: python -m hhh_jax.score --checkpoint=RUN_DIR pairs.jsonl")
    cli.use_compilation_cache()
    records, summary = score_file(_CHECKPOINT.value, argv[1], _SEED.value, _SELECTION.value, _BAD_ROWS.value)
    if _OUTPUT.value:
        from hhh_jax.record import write_text_atomic

        write_text_atomic(_OUTPUT.value, "".join(json.dumps(record) + "\n" for record in records))
    for reason, number in summary["dropped"].items():
        print(f"dropped {number}: {reason}", file=sys.stderr)
    print(
        f"{summary['score']}: accuracy {summary['accuracy']:.3f} [{summary['lo']:.3f}, {summary['hi']:.3f}] "
        f"on {summary['pairs']} pairs"
    )


if __name__ == "__main__":
    _CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Directory of a finished run.", required=True)
    _OUTPUT = flags.DEFINE_string("output", "", "Where to write every pair's scores as JSON lines.")
    _SEED = flags.DEFINE_integer("seed", None, "Which of the run's seeds; its first if not given.")
    _SELECTION = flags.DEFINE_enum(
        "selection", "best", ["best", "final"], "Parameters chosen on validation, or the last."
    )
    _BAD_ROWS = flags.DEFINE_enum("bad_rows", "error", ["error", "drop"], "What to do with rows that can't be used.")
    cli.start(main)
