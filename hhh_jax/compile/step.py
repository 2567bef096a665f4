"""The real training step of a config, compiled for a topology that is not there."""

import math
import re
import time
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from hhh_jax import run, sharding, train
from hhh_jax.compile import hlo
from hhh_jax.compile.hardware import Topology
from hhh_jax.config import PAIR_OBJECTIVES
from hhh_jax.data.packing import Batch, empty_batch, row_sizes
from hhh_jax.errors import UserError

Sizes = tuple[int, int, int]
"""Of the mesh (data, fsdp, tensor)."""

TEACHER_TOKENS = 50
"""The teacher's tokens that a row of distillation holds for each place (appendix B.5)."""


_QUICK: dict[str, Any] = {"exec_time_optimization_effort": -1.0}


class Memory(NamedTuple):
    """Bytes of one device's memory.

    Attributes:
      parameters: float32.
      optimizer: both moments.
      best: the parameters kept for the best validation, in stages that have one.
      reference: the frozen parameters of DPO.
      batch: what is fed.
      rest: gradients, activations, gathered weights and all else that comes and goes within a step.
    """

    parameters: int
    optimizer: int
    best: int
    reference: int
    batch: int
    rest: int


class Compiled(NamedTuple):
    """A step that fits.

    Attributes:
      config: of the step.
      rows: of its batch; for pairs, of the largest of the batches that a run may meet.
      memory: of one device at the fullest moment.
      collectives: of one step.
      seconds: that compiling took, tracing included.
    """

    config: train.StepConfig
    rows: int
    memory: Memory
    collectives: list[hlo.Collective]
    seconds: float


class OutOfMemory(Exception):
    """The compiler found no way to fit the step; `needed` bytes on a device, as far as it says."""

    def __init__(self, needed: int):
        super().__init__(needed)
        self.needed = needed


def n_rows(c: ml_collections.ConfigDict, multiple: int) -> int:
    """Rows of a step's batch, where they must be a multiple of `multiple`; pairs may fill as many rows as there are."""
    if c.objective.name in PAIR_OBJECTIVES:
        return row_sizes(c.batch.pairs, multiple, c.data.row_sizes)[-1]
    return int(c.batch.rows)


def abstract_batch(c: ml_collections.ConfigDict, rows: int) -> Batch:
    """The shapes of a batch of the config's stage, ``[G, rows, ...]``."""
    pairs = c.objective.name in PAIR_OBJECTIVES
    batch, _ = empty_batch(rows, c.data.row_length, c.data.slots if pairs else 0, 0)
    if c.objective.name == "distillation":
        batch.teacher_ids = np.zeros((rows, c.data.row_length, TEACHER_TOKENS), np.int32)
        batch.teacher_logps = np.zeros(batch.teacher_ids.shape, np.float32)
    if c.objective.name == "discriminator":
        batch.is_human = np.zeros((rows, c.data.row_length), np.float32)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(c.seeds), *x.shape), x.dtype), batch)


def step_config(c: ml_collections.ConfigDict, mesh: Mesh) -> train.StepConfig:
    """The config of the step that a run of `c` makes."""
    return run.make_step_config(c, c.model.vocab_size, mesh)


def compile_step(c: ml_collections.ConfigDict, topology: Topology, sizes: Sizes, quick: bool = False) -> Compiled:
    """Compiles the step of `c` as a run would, for a mesh of `sizes` over a topology.

    Args:
      quick: spend as little as possible on making the program fast, which takes a quarter of the time and changes its
        memory by some percent.

    Raises OutOfMemory, and UserError for a mesh that doesn't divide the parameters or the rows.
    """
    started = time.monotonic()
    mesh = sharding.make_mesh(*sizes, devices=topology.devices())
    run.check_mesh(c, mesh)
    config = step_config(c, mesh)
    multiple = sharding.row_multiple(mesh) * c.optim.accumulate
    rows = n_rows(c, multiple)
    batch, state = abstract_batch(c, rows), train.abstract_state(config)
    rates_G = jax.ShapeDtypeStruct((config.n_seeds,), np.float32)
    lowered = train.compiled_step(config, False).lower(state, batch, rates_G)
    try:
        compiled = lowered.compile(_QUICK if quick else None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needed = _bytes_asked_for(str(error))
        if not needed:
            raise UserError(f"the compiler refuses this step: {' '.join(str(error).split())[:300]}") from error
        raise OutOfMemory(needed) from error
    parts = _state_bytes(config, state)
    fed = sum(_local_bytes(leaf, sharding.batch_sharding(mesh)) for leaf in jax.tree.leaves(batch))
    analysis, text = compiled.memory_analysis(), compiled.as_text()
    assert analysis is not None and text is not None
    peak = analysis.peak_memory_in_bytes
    memory = Memory(*parts, fed, peak - sum(parts) - fed)
    return Compiled(config, rows, memory, hlo.collectives(text), time.monotonic() - started)


def _local_bytes(leaf: Any, where: Any) -> int:
    return math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _state_bytes(config: train.StepConfig, state: train.State) -> tuple[int, int, int, int]:
    """Bytes on one device of parameters, optimizer state, kept best and reference."""
    shardings = sharding.state_shardings(state, config.mesh)
    parts = (
        sum(map(_local_bytes, jax.tree.leaves(state.get(part)), jax.tree.leaves(shardings.get(part))))
        for part in ("params", "opt_state", "best", "reference")
    )
    parameters, optimizer, best, reference = parts
    return parameters, optimizer, best, reference


def state_bytes(config: train.StepConfig) -> int:
    """Bytes on one device of all that stays from step to step, and of the gradients, which every step needs beside."""
    parameters, optimizer, *others = _state_bytes(config, train.abstract_state(config))
    return 2 * parameters + optimizer + sum(others)


def _bytes_asked_for(message: str) -> int:
    """``... (33.74G) exceeds available HBM (15.75G)`` or ``Used 33.74G of 15.75G hbm`` to bytes; 0 of other memory."""
    size = r"([\d.]+)([KMGT])"
    match = re.search(rf"\({size}\) exceeds available HBM", message) or re.search(rf"Used {size} of \S+ hbm", message)
    if match is None:
        return 0
    return int(float(match[1]) * 2 ** {"K": 10, "M": 20, "G": 30, "T": 40}[match[2]])


def parse_mesh(text: str) -> Sizes:
    """``1,4,2`` to sizes. Raises UserError."""
    try:
        data, fsdp, tensor = (int(size) for size in text.split(","))
    except ValueError:
        raise UserError(f"--mesh={text} is not three numbers: data,fsdp,tensor") from None
    return data, fsdp, tensor
