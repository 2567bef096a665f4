"""Real pairs of the folder that HHH_JAX_DATA names, tokenized once for all contenders."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from hhh_jax.data import sources, streams
from hhh_jax.data.packing import TokenizedPair, tokenize_pairs
from hhh_jax.data.records import Counts, Pair
from hhh_jax.data.source import Made, Row
from hhh_jax.data.tokenizer import END_OF_CONTEXT, PAD, Tokenizer
from hhh_jax.errors import UserError

TOKENIZER = "tokenizers/gpt_neox_20b/tokenizer.json"


class PairSet(NamedTuple):
    """Published comparisons: the source that reads them, where they lie in the folder, options of the source."""

    source: str
    path: str
    options: Mapping[str, str] = MappingProxyType({})


SETS = {
    "ethics utilitarianism": PairSet("ethics", "ethics/utilitarianism", {"task": "utilitarianism"}),
    "hellaswag": PairSet("hellaswag", "hellaswag/hellaswag_train_olmes_docs.jsonl.gz"),
    "summarize": PairSet("summarize", "learn_to_summarize/comparisons"),
    "hh-rlhf": PairSet("hh_rlhf", "hh_rlhf"),
}


def data_folder() -> Path:
    """The folder of real data. Raises UserError if none is named."""
    if not os.environ.get("HHH_JAX_DATA"):
        raise UserError("reads real data: set HHH_JAX_DATA to the folder that has " + SETS["summarize"].path)
    return Path(os.environ["HHH_JAX_DATA"])


def read(name: str) -> list[Pair]:
    """All pairs of a set, in the order of its input."""
    chosen = SETS[name]
    path = data_folder() / chosen.path
    if not path.exists():
        raise UserError(f"HHH_JAX_DATA={data_folder()} lacks {chosen.path}")
    source = sources.load(chosen.source)
    options = dict(source.options) | dict(chosen.options) | {"kind": "pairs", "seed": 0}
    by_key: dict[str, list[Row]] = {}
    with streams.journal("drop"):
        for block in source.blocks([str(path)], options):
            for row in source.read(block, options):
                if isinstance(row, Row):
                    by_key.setdefault(row.key, []).append(row)
    made = (item for key, rows in by_key.items() for item in source.join(key, rows, options))
    return [item.record for item in made if isinstance(item, Made) and isinstance(item.record, Pair)]


def tokenizer() -> Tokenizer:
    """GPT-NeoX's, with the two tokens that hhh_jax needs."""
    import tokenizers

    path = data_folder() / TOKENIZER
    if not path.exists():
        raise UserError(f"HHH_JAX_DATA={data_folder()} lacks {TOKENIZER}")
    bpe = tokenizers.Tokenizer.from_file(str(path))
    bpe.add_special_tokens([END_OF_CONTEXT, PAD])
    return Tokenizer(bpe)


def tokenize(
    pairs: Sequence[Pair], bpe: Tokenizer, max_tokens: int, row_length: int
) -> tuple[list[TokenizedPair], str]:
    """The pairs that both kinds of contenders can take, and in words how many and which were left out."""
    counts = Counts(read=len(pairs), kept=len(pairs))
    tokenized = tokenize_pairs(pairs, bpe, max_tokens, row_length, counts)
    dropped = ", ".join(f"{n} {reason}" for reason, n in counts.dropped.items())
    return tokenized, f"{counts.kept:,} pairs" + (f" ({dropped} left out)" if dropped else "")


def write(path: Path, pairs: Sequence[TokenizedPair]) -> None:
    """As JSON lines of token ids, which contenders read."""
    lines = [
        json.dumps({"context": pair.context.tolist(), "good": pair.good.tolist(), "bad": pair.bad.tolist()})
        for pair in pairs
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
