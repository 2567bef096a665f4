"""The loader's tokens a second against those of the training step that it feeds: it must never be the bottleneck.

The step is the 13m rung's at context 1024, on batches of two rows: the language-modeling step on documents, and the
preference step (lambda = mu = 1) on pairs, in the dtype whose matmuls are faster here. The loader runs in one thread by
itself; in training it runs beside the step. A ratio of 10 means that it needs a tenth of one core.
"""

import functools
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hhh_jax.bench.contenders.jax_step import make_loader
from hhh_jax.bench.harness.contender import Contender
from hhh_jax.bench.harness.probe import best_dtype
from hhh_jax.bench.harness.timing import Measures, Row, compare, interleave
from hhh_jax.model import PAPER_LADDER
from hhh_jax.study import MALLOC

RUNG, LENGTH, ROWS, PAIRS, ROUNDS = "13m", 1024, 2, 8, 3


def rows(quick: bool) -> Iterator[Row]:
    """One row for documents and one for pairs."""
    n_layer, aspect, length, vocab_size = (1, 16, 128, 512) if quick else (PAPER_LADDER[RUNG], 128, LENGTH, 65536)
    dtype = "float32" if quick else best_dtype()
    model = {"n_layer": n_layer, "aspect": aspect, "head_dim": aspect, "vocab_size": vocab_size, "dtype": dtype}
    model["unroll"] = n_layer
    with tempfile.TemporaryDirectory() as scratch:
        pairs = Path(scratch, "pairs.jsonl")
        _write_pairs(pairs, length, vocab_size)
        kinds: dict[str, dict[str, Any]] = {
            "documents": {
                "objective": "lm", "loader": {"rows": ROWS, "row_length": length, "vocab_size": vocab_size},
            },
            "pairs": {
                "objective": "preference", "mu": 1.0,
                "loader": {
                    "pairs": str(pairs), "batch": PAIRS, "row_length": length, "slots": length // 16, "row_sizes": 1,
                },
            },
        }  # fmt: skip
        for kind, settings in kinds.items():
            settings |= {"model": model, "warm_up": 1}
            with Contender("hhh_jax.bench.contenders.jax_step", settings, {"GLIBC_TUNABLES": MALLOC}) as step:
                loader = _Loader(settings["loader"])
                measures: Measures = {"loader": loader.speed, "step": functools.partial(_speed, step)}
                speeds = interleave(measures, 1 if quick else ROUNDS)
            note = f"{RUNG}, rows of {length} tokens, {dtype}"
            yield compare(kind, "tokens/s", speeds["loader"], "training step", speeds["step"], note)


def _write_pairs(path: Path, length: int, vocab_size: int) -> None:
    """Pairs of random tokens of a tenth to a half of a row."""
    rng = np.random.default_rng(0)

    def ids(least: int, most: int) -> list[int]:
        return [int(i) for i in rng.integers(2, vocab_size, rng.integers(least, most))]

    lines = []
    for _ in range(400):
        context = ids(length // 20, length // 4)
        good, bad = (ids(length // 40, length // 8) for _ in range(2))
        lines.append(json.dumps({"context": context, "good": [*good, 0], "bad": [*bad, 0]}))
    path.write_text("\n".join(lines), encoding="utf-8")


class _Loader:
    """Batches in order, by themselves."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._loader, self._step = make_loader(settings, 1), 0

    def speed(self, seconds: float = 0.5) -> float:
        """Tokens a second over about so many seconds."""
        tokens, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < seconds:
            tokens += int((self._loader.batch(self._step, (0,)).segment_ids > 0).sum())
            self._step += 1
        return tokens / spent


def _speed(step: Contender) -> float:
    answer = step.measure(1)
    return float(answer["tokens"] / answer["seconds"])
