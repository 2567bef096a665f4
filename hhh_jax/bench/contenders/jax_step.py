"""hhh_jax's training loop: batches made ahead by a thread, the compiled step, metrics fetched one step late.

Settings: ``model`` (fields of `ModelConfig`), ``objective``, ``lam``, ``mu``, ``loader`` (see `make_loader`) and
``warm_up`` (steps); with ``update_only`` the optimizer's update is all that it does. Answers have ``seconds``,
``cpu_seconds`` (of all threads), ``tokens`` and ``rows`` trained on, ``loss``, and ``dispatch``, the median seconds
that a call of the compiled step takes until it returns; the first one has ``compile_seconds``, which the first losses
of all sizes took, and ``sizes``, the numbers of rows that batches have.
"""

import functools
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hhh_jax import sharding, train
from hhh_jax.bench.harness.contender import Channel
from hhh_jax.data.loader import DocumentLoader, PairLoader, prefetch
from hhh_jax.data.packing import Batch, TokenizedPair
from hhh_jax.model import ModelConfig

LR = np.full(1, 1e-4, np.float32)
LOOK_AHEAD = 30  # batches


def step_config(settings: dict[str, Any]) -> train.StepConfig:
    """AdamW behind clipping, one seed, all devices on the data axis."""
    return train.StepConfig(
        model=ModelConfig(**settings["model"]), objective=settings["objective"],
        lam=settings.get("lam", 1.0), mu=settings.get("mu", 0.0), b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.0, clip=1.0,
        accumulate=1, n_seeds=1, select=False, mesh=sharding.make_mesh(),
    )  # fmt: skip


def read_pairs(path: str) -> list[TokenizedPair]:
    """Pairs from JSON lines of token ids: ``{"context", "good", "bad"}``."""
    pairs = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines()):
        context, good, bad = (np.array(json.loads(line)[name], np.int32) for name in ("context", "good", "bad"))
        pairs.append(TokenizedPair(str(number), str(number), context, good, bad, (0, 0)))
    return pairs


def make_loader(settings: dict[str, Any], multiple: int) -> PairLoader | DocumentLoader:
    """Of ``pairs`` (a file for `read_pairs`; with ``batch``, ``row_length``, ``slots``, ``row_sizes``), or of documents
    of random tokens (``rows`` rows of ``row_length`` tokens a batch, ``vocab_size``)."""
    if "pairs" in settings:
        return PairLoader(
            read_pairs(settings["pairs"]), settings["batch"], settings["row_length"], settings["slots"], 1, multiple,
            settings.get("share_context", True), settings["row_sizes"],
        )  # fmt: skip
    rng = np.random.default_rng(0)
    documents = [rng.integers(2, settings["vocab_size"], size).astype(np.int32) for size in rng.integers(50, 2000, 300)]
    return DocumentLoader(documents, settings["rows"], settings["row_length"], 1)


class Loop:
    """The loop of `hhh_jax.run`, less its record, checkpoints and validations.

    Programs are compiled beforehand, one for each number of rows that the first batches have.
    """

    def __init__(self, config: train.StepConfig, loader: PairLoader | DocumentLoader) -> None:
        self._update = train.compiled_step(config, False)
        self._everywhere = sharding.batch_sharding(config.mesh)
        self._state = train.init_state(config, (0,))
        self._batches: Iterator[Batch] = prefetch(lambda i: loader.batch(i, (0,)), 0, 10**9)
        by_rows = {batch.tokens.shape[1]: batch for batch in (loader.batch(i, (0,)) for i in range(LOOK_AHEAD))}
        start = time.perf_counter()
        for batch in by_rows.values():
            self._state, metrics = self._update(self._state, jax.device_put(batch, self._everywhere), LR)
            jax.block_until_ready(metrics)
        self.compile_seconds = time.perf_counter() - start
        self.sizes = sorted(by_rows)

    def run(self, steps: int) -> dict[str, Any]:
        """Does `steps` steps; what a contender answers."""
        tokens, rows, dispatch, pending = 0, 0, [], None
        start, cpu_start = time.perf_counter(), time.process_time()
        for _ in range(steps):
            batch = next(self._batches)
            tokens, rows = tokens + int((batch.segment_ids > 0).sum()), rows + batch.tokens.shape[1]
            on_device = jax.device_put(batch, self._everywhere)
            called = time.perf_counter()
            self._state, metrics = self._update(self._state, on_device, LR)
            dispatch.append(time.perf_counter() - called)
            if pending is not None:
                jax.device_get(pending)
            pending = metrics
        loss = float(jax.device_get(pending)["loss"][0]) if pending else 0.0
        jax.block_until_ready(self._state)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        facts = {"seconds": seconds, "cpu_seconds": cpu_seconds, "tokens": tokens, "rows": rows, "loss": loss}
        return facts | {"dispatch": statistics.median(dispatch)}


class UpdateLoop:
    """The optimizer's update alone, by gradients that stay the same."""

    sizes: tuple[int, ...] = ()

    def __init__(self, config: train.StepConfig) -> None:
        self._update = jax.jit(functools.partial(train.updated, config), donate_argnums=0)
        self._state = train.init_state(config, (0,))
        self._gradients = jax.tree.map(np.ones_like, train.trained_params(config, self._state["params"]))
        start = time.perf_counter()
        self.run(1)
        self.compile_seconds = time.perf_counter() - start

    def run(self, steps: int) -> dict[str, Any]:
        """Does `steps` updates; what a contender answers."""
        start = time.perf_counter()
        for _ in range(steps):
            self._state = self._update(self._state, self._gradients, LR)
        jax.block_until_ready(self._state)
        return {"seconds": time.perf_counter() - start}


def main() -> None:
    channel = Channel()
    settings = channel.settings
    config = step_config(settings)
    loop: Loop | UpdateLoop
    if settings.get("update_only"):
        loop = UpdateLoop(config)
    else:
        loop = Loop(config, make_loader(settings["loader"], sharding.row_multiple(config.mesh)))
    loop.run(settings.get("warm_up", 2))
    channel.answer(compile_seconds=loop.compile_seconds, sizes=loop.sizes, device=jax.devices()[0].device_kind)
    while steps := channel.steps():
        channel.answer(**loop.run(steps))


if __name__ == "__main__":
    main()
