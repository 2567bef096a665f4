"""Which mesh to take, and which topology, where none is given."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import ml_collections

from hhh_jax import run, sharding
from hhh_jax.compile.bound import Bound, Flops, bound, step_flops
from hhh_jax.compile.hardware import Topology
from hhh_jax.compile.step import Compiled, OutOfMemory, Sizes, abstract_batch, compile_step, state_bytes, step_config
from hhh_jax.config import PAIR_OBJECTIVES
from hhh_jax.errors import UserError

REMATS = ("none", "dots", "full")


class Outcome(NamedTuple):
    """A step that fits, and what it could do."""

    topology: Topology
    sizes: Sizes
    step: Compiled
    flops: Flops
    bound: Bound


def candidates(c: ml_collections.ConfigDict, topology: Topology) -> list[Sizes]:
    """Meshes that divide everything, best first: data tells slices apart, tensor takes as few devices as leave each
    group of data x fsdp a row at least, fsdp takes the rest; then twice as many devices to tensor, and so on.

    Fewer rows a group is what tensor is for: what fsdp sends is the weights, what tensor sends is every activation.

    Raises UserError if there are none.
    """
    n, rows = len(topology.devices()), _useful_rows(c)
    divisors = [tensor for tensor in range(1, n + 1) if n % (tensor * topology.slices) == 0]
    found = [
        (topology.slices, n // topology.slices // tensor, tensor)
        for tensor in divisors
        if n // tensor <= rows and divides(c, topology, (topology.slices, n // topology.slices // tensor, tensor))
    ]
    if not found:
        raise UserError(
            f"no mesh of {n} devices divides {c.rung}: its {_heads(c)} heads by tensor and a batch of {rows} rows by "
            f"data x fsdp; take fewer chips or a larger --config.batch"
        )
    doubled = [found[0]]
    for sizes in found[1:]:
        if sizes[2] >= 2 * doubled[-1][2]:
            doubled.append(sizes)
    return doubled


def _heads(c: ml_collections.ConfigDict) -> int:
    return int(c.model.n_layer * c.model.aspect // c.model.head_dim)


def _useful_rows(c: ml_collections.ConfigDict) -> int:
    """Rows that a step can fill: a pair fills one at most."""
    pairs = c.objective.name in PAIR_OBJECTIVES
    return int(c.batch.pairs if pairs else c.batch.rows) // c.optim.accumulate


def divides(c: ml_collections.ConfigDict, topology: Topology, sizes: Sizes) -> bool:
    """Whether a mesh divides parameters, heads and rows."""
    try:
        run.check_mesh(c, sharding.make_mesh(*sizes, devices=topology.devices()))
    except UserError:
        return False
    return True


def outcome(c: ml_collections.ConfigDict, topology: Topology, sizes: Sizes, quick: bool = False) -> Outcome:
    """Compiles and bounds one step. Raises OutOfMemory, and UserError for a mesh that doesn't divide everything."""
    step = compile_step(c, topology, sizes, quick)
    batch = abstract_batch(c, step.rows)
    flops = step_flops(step, batch)
    tokens = math.prod(batch.tokens.shape)
    return Outcome(topology, sizes, step, flops, bound(step, topology, flops, tokens))


def best(c: ml_collections.ConfigDict, topology: Topology, quick: bool = False) -> Outcome:
    """The first of the `candidates` that fits. Raises OutOfMemory, with the least that any of them needs."""
    needed = []
    for sizes in candidates(c, topology):
        try:
            config = step_config(c, sharding.make_mesh(*sizes, devices=topology.devices()))
            kept = state_bytes(config)
            if kept > device_limit(topology):  # no need to ask the compiler
                raise OutOfMemory(kept)
            return outcome(c, topology, sizes, quick)
        except OutOfMemory as error:
            needed.append(error.needed)
    raise OutOfMemory(min(needed))


def device_limit(topology: Topology) -> float:
    """Bytes of memory that a program has on one device."""
    return topology.chip.hbm_bytes / topology.chip.devices


def smallest(c: ml_collections.ConfigDict, than: Topology, including: bool) -> Outcome | None:
    """The smallest slice of the same chip with more chips than `than`, or as many if `including`, on which the step
    fits, by `best`."""
    for size in than.chip.sizes:
        topology = Topology(than.name, size, than.slices)
        if topology.chips > than.chips or (including and topology == than):
            try:
                return best(c, topology, quick=True)
            except (OutOfMemory, UserError):
                continue
    return None


def suggest(c: ml_collections.ConfigDict, topology: Topology) -> Iterator[tuple[Sizes, str, Outcome | OutOfMemory]]:
    """The first three `candidates` under every remat policy, compiled quickly: (mesh, policy, what comes of it)."""
    for sizes in candidates(c, topology)[:3]:
        for remat in REMATS:
            tried = c.copy_and_resolve_references()
            tried.model.remat = remat
            try:
                yield sizes, remat, outcome(tried, topology, sizes, quick=True)
            except OutOfMemory as error:
                yield sizes, remat, error
