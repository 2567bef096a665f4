"""Pairs a second of a full preference-model training step, against TRL's `RewardTrainer`, on real pairs.

n_layer 2, d_model 256, vocabulary 65536, AdamW with clipping, batches of 32 pairs of the sets in the folder that
HHH_JAX_DATA names, the same tokens on both sides; each in its own loop, batches and all. Both train the same network:
TRL a GPT-NeoX of transformers with sequential residuals and rotary positions over the whole head. (lambda, mu) = (1, 0)
is what TRL computes; (1, 1) adds the language-modeling loss on the good side, which TRL has not, and is shown beside.

TRL takes pairs in a drawn order, as it does by default, or pairs of like length in a batch, which leaves less padding
and makes batches that are no fair draw of the data. Either runs in the dtype in which PyTorch's matmuls are faster
here, eager. Ours are exactly the drawn pairs, packed.
"""

import dataclasses
import functools
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from hhh_jax.bench.harness import pairs, probe
from hhh_jax.bench.harness.contender import Contender
from hhh_jax.bench.harness.timing import Measures, Row, compare, interleave
from hhh_jax.study import MALLOC

BATCH, ROUNDS, MOST_PAIRS = 32, 5, 6000
OURS, TRL, MATMUL = (f"hhh_jax.bench.contenders.{name}" for name in ("jax_step", "trl_rewards", "torch_matmul"))


@dataclasses.dataclass(frozen=True)
class Packing:
    """Our settings for one set: the longest side and row in tokens, pairs a row, numbers of rows; steps of a turn."""

    max_tokens: int
    row_length: int
    slots: int
    row_sizes: int
    steps: int


PACKINGS = {
    "ethics utilitarianism": Packing(64, 128, 8, 32, 12),
    "hellaswag": Packing(192, 512, 8, 32, 6),
    "summarize": Packing(1024, 1536, 8, 16, 1),
    "hh-rlhf": Packing(1024, 1536, 24, 16, 3),
}


def rows(quick: bool) -> Iterator[Row]:
    """Three rows a set: against TRL in a drawn order, against TRL with like lengths, and (1, 1) beside (1, 0)."""
    bpe = pairs.tokenizer()
    with Contender(MATMUL, {}) as matmul:
        speeds = matmul.ready
    dtypes = {"ours": probe.best_dtype(), "trl": max(probe.DTYPES, key=lambda dtype: speeds[dtype])}
    shape = {"n_layer": 2, "vocab_size": 65536, "head_dim": 64}
    if quick:
        shape |= {"aspect": 64}
    for name, packing in PACKINGS.items():
        records = pairs.read(name)
        drawn = np.random.default_rng(0).permutation(len(records))[: 100 if quick else MOST_PAIRS]
        tokenized, note = pairs.tokenize([records[i] for i in drawn], bpe, packing.max_tokens, packing.row_length)
        note += f"; ours {dtypes['ours']}, rows of {packing.row_length} tokens; TRL {dtypes['trl']}"
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            pairs.write(folder / "pairs.jsonl", tokenized)
            (folder / "tokenizer.json").write_text(bpe.to_json(), encoding="utf-8")
            yield from _race(name, packing, folder, shape, dtypes, note, quick)
        if quick:
            return


def _race(
    name: str, packing: Packing, folder: Path, shape: dict[str, Any], dtypes: dict[str, str], note: str, quick: bool
) -> Iterator[Row]:
    batch = 4 if quick else BATCH
    loader = {
        "pairs": str(folder / "pairs.jsonl"), "batch": batch, "row_length": packing.row_length,
        "slots": packing.slots, "row_sizes": 1 if quick else packing.row_sizes,
    }  # fmt: skip
    model = shape | {"dtype": dtypes["ours"], "unroll": shape["n_layer"]}
    ours = {"objective": "preference", "lam": 1.0, "model": model, "loader": loader}
    neox = {name: shape[name] for name in ("n_layer", "vocab_size", "head_dim")}
    trl = {
        "pairs": loader["pairs"], "batch": batch, "tokenizer": str(folder / "tokenizer.json"), "dtype": dtypes["trl"],
        "model": neox | {"d_model": shape.get("aspect", 128) * shape["n_layer"]},
    }  # fmt: skip
    env = {"GLIBC_TUNABLES": MALLOC}
    with ExitStack() as stack:
        programs = {
            "TRL": (TRL, trl | {"order": "drawn"}),
            "TRL, like lengths": (TRL, trl | {"order": "grouped"}),
            "(1, 0)": (OURS, ours | {"mu": 0.0}),
            "(1, 1)": (OURS, ours | {"mu": 1.0}),
            "update": (OURS, ours | {"mu": 0.0, "update_only": True}),
        }
        steps = dict.fromkeys(programs, 1 if quick else packing.steps)
        steps["(1, 1)"] = max(steps["(1, 1)"] // 6, 1)  # the head over 65536 tokens makes it ten times slower
        measures: Measures = {
            which: functools.partial(_speed, stack.enter_context(Contender(module, settings, env)), steps[which], batch)
            for which, (module, settings) in programs.items()
        }
        speeds = interleave(measures, 1 if quick else ROUNDS)
    share = statistics.median(step / update for step, update in zip(speeds["(1, 0)"], speeds["update"], strict=True))
    note += f"; the optimizer's update alone takes {share:.0%} of our step's time"
    for against in ("TRL", "TRL, like lengths"):
        yield compare(f"{name} (1, 0)", "pairs/s", speeds["(1, 0)"], against, speeds[against], note)
    yield compare(f"{name} (1, 1)", "pairs/s", speeds["(1, 1)"], "ours (1, 0)", speeds["(1, 0)"])


def _speed(contender: Contender, steps: int, batch: int) -> float:
    return float(steps * batch / contender.measure(steps)["seconds"])
