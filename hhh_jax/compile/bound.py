"""Arithmetic of a compiled step against a chip's published peaks: no step can be faster than the slowest resource.

Four times are compared, each as if nothing else took any, and nothing got lost: all arithmetic at the peak rate of
bfloat16 (``compute``), the bytes that a step cannot avoid moving through memory (``hbm``), and the collectives of the
compiled program over the links of a slice (``ici``) and between slices (``dcn``). The largest bounds the step.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from hhh_jax import attention, sharding, train
from hhh_jax.compile.hardware import Topology
from hhh_jax.compile.hlo import Collective, received
from hhh_jax.compile.step import Compiled
from hhh_jax.data.packing import Batch
from hhh_jax.model import PAPER_TOKENS, count_params
from hhh_jax.objectives import logit_chunks


class Flops(NamedTuple):
    """FLOPs of one step over the whole batch.

    Attributes:
      model: of the gradient, nothing computed twice, attention in full: what `executed_flops_per_token` estimates.
      counted: the same with only the blocks of attention that the kernel visits; what MFU counts here.
      executed: `counted` and what is computed again in the backward pass.
    """

    model: float
    counted: float
    executed: float


class Bound(NamedTuple):
    """Attributes:
    seconds: of one step, at least, by resource.
    mfu: model FLOPs utilization, at most: `Flops.counted` a second over the peak of all chips.
    chip_hours: for the paper's 400B tokens, at least.
    """

    seconds: dict[str, float]
    mfu: float
    chip_hours: float

    @property
    def by(self) -> str:
        return max(self.seconds, key=lambda name: self.seconds[name])


def step_flops(step: Compiled, batch: Batch) -> Flops:
    """Counted by XLA in the program before any optimization, on one row of `batch` ``[G, R, ...]``."""
    config, length = step.config, batch.tokens.shape[-1]
    m = config.model
    row = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[2:]), x.dtype), batch)
    ends, layer = _row_flops(config, "none", row)
    model = ends + m.n_layer * layer
    # Forward, two for the gradients and, under DPO, the reference's forward.
    passes = 4 if config.reference else 3
    remat = 0.0 if m.remat == "none" else m.n_layer * (_row_flops(config, m.remat, row)[1] - layer)
    if logit_chunks(step.rows // config.accumulate, length, m.vocab_size, config.mesh, config.logit_bytes) > 1:
        remat += ends / passes  # the logits, which the backward pass needs again
    in_attention = 4.0 * passes * m.n_layer * m.d_model * length**2
    skipped = in_attention * (1 - attention.visited(m.attention, m.head_dim, m.dtype, length, config.mesh))
    # Full remat makes one pass over the visited part of attention again; dots keeps what splash gave.
    if skipped and m.remat != "none":
        remat -= (skipped if m.remat == "full" else in_attention) / passes
    rows = step.rows * config.n_seeds
    return Flops(rows * model, rows * (model - skipped), rows * (model - skipped + remat))


def _row_flops(config: train.StepConfig, remat: str, row: Batch) -> tuple[float, float]:
    """Of the gradient on one row: all but the layers, and one layer. Layers are alike, so two models tell them apart.

    They are as wide as the config's, unrolled (a loop's body would count once), with plain attention (a kernel would
    count as nothing) and logits in one piece.
    """
    one_device = sharding.make_mesh(1, 1, 1, devices=jax.devices("cpu")[:1])
    found = []
    for n_layer in (1, 2):
        model = dataclasses.replace(
            config.model, n_layer=n_layer, aspect=config.model.d_model // n_layer, attention="plain", remat=remat,
            unroll=n_layer,
        )  # fmt: skip
        small = dataclasses.replace(config, model=model, mesh=one_device, accumulate=1, n_seeds=1, logit_bytes=2**62)
        found.append(_lowered_flops(small, jax.tree.structure(row), tuple(jax.tree.leaves(row))))
    layer = found[1] - found[0]
    return found[0] - layer, layer


@functools.lru_cache(maxsize=64)
def _lowered_flops(config: train.StepConfig, structure: Any, leaves: tuple) -> float:
    gradients = functools.partial(train.batch_gradients, config, apart=False)
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), train.abstract_state(config))
    arguments = state["params"], jax.tree.unflatten(structure, leaves)
    costs = jax.jit(gradients).lower(*arguments, reference=state.get("reference")).cost_analysis()
    assert costs is not None
    return float(costs["flops"])


def bound(step: Compiled, topology: Topology, flops: Flops, tokens: int) -> Bound:
    """The bound of a step of `tokens` tokens, padding included."""
    chip = topology.chip
    peak = chip.flops * topology.chips
    ici, dcn = collective_seconds(step.collectives, topology, list(step.config.mesh.devices.flat))
    hbm = least_bytes(step) / (chip.hbm_bandwidth / chip.devices)
    seconds = {"compute": flops.executed / peak, "hbm": hbm, "ici": ici} | ({"dcn": dcn} if topology.slices > 1 else {})
    slowest = max(seconds.values())
    hours = slowest * topology.chips / 3600
    return Bound(seconds, flops.counted / (peak * slowest), hours * PAPER_TOKENS / tokens)


def least_bytes(step: Compiled) -> float:
    """Bytes that a step cannot avoid moving through one device's memory.

    Parameters and moments are read and written, gradients written and read, and the matrices of the blocks, gathered in
    the compute dtype, read in each pass: forward, backward and, under full remat, forward again; of DPO's reference,
    in one.
    """
    memory, m = step.memory, step.config.model
    passes = 2 + (m.remat == "full") + step.config.reference
    matrices = count_params(m)["n"] * np.dtype(m.dtype).itemsize / step.config.mesh.shape["tensor"]
    kept = memory.parameters + memory.optimizer
    return 2.0 * kept + 2.0 * memory.parameters + passes * matrices * step.config.accumulate * step.config.n_seeds


def collective_seconds(
    collectives: Sequence[Collective], topology: Topology, devices: Sequence[Any]
) -> tuple[float, float]:
    """Seconds of all collectives of a step, one after the other at full bandwidth: within slices, and between them.

    A collective over several slices goes through its members in a slice first, each of which then has its own part of
    the array to exchange with the other slices.
    """
    chip, within, between = topology.chip, 0.0, 0.0
    for collective in collectives:
        members = [devices[i] for i in collective.group]
        slices = len({getattr(device, "slice_index", 0) for device in members})
        local = [d for d in members if getattr(d, "slice_index", 0) == getattr(members[0], "slice_index", 0)]
        size = collective.size
        if len(local) > 1:
            taken = received(collective.kind, size, len(local))
            within += collective.times * taken / link_bandwidth(topology, local)
        if slices > 1:
            part = size if collective.kind == "collective-permute" else size / len(local)
            between += collective.times * received(collective.kind, part, slices) / (chip.dcn_bandwidth / chip.devices)
    return within, between


def link_bandwidth(topology: Topology, members: Sequence[Any]) -> float:
    """Bytes/s that the worst-placed of some devices of a slice takes in through links to others of them.

    Along each dimension that they spread over, a chip at an end has one link, and two where the group spans a dimension
    that is closed to a ring. Devices on one chip share its links; between themselves they need none.
    """
    chip = topology.chip
    one_link = chip.ici_bandwidth / (2 * chip.ici_axes) / chip.devices
    links = 0
    for axis, extent in enumerate(topology.dims):
        spread = len({device.coords[axis] for device in members})
        if spread > 1:
            links += 2 if spread == extent and topology.closed(axis) else 1
    return one_link * links if links else math.inf
