"""Any run's training step compiled for a named TPU topology, on a machine with no TPU.

    python -m hhh_jax.compile --config=configs/ranked.py:52b --topology=v5p:8x8x8 [--mesh=1,64,8] [--slices=2] \\
        [--json]
    python -m hhh_jax.compile --config=configs/pretrain.py:2.7b --topology=v5e:4x4 --suggest

Says whether it fits in memory, what its devices send each other, and how fast it could be at most by the chip's
published peaks. Without --mesh it takes the best that fits: data tells slices apart, tensor takes as few devices as
leave each group of data x fsdp a row, fsdp takes the rest; if that does not fit, tensor takes twice as many, and so on.
"""

import json
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from hhh_jax import cli
from hhh_jax.errors import UserError

if TYPE_CHECKING:
    from hhh_jax.compile.hardware import Topology
    from hhh_jax.compile.meshes import Outcome

_CONFIG = cli.define_config()
_TOPOLOGY = flags.DEFINE_string("topology", None, "CHIP:SIZE, as v5e:4x4 or v5p:4x4x8.", required=True)
_SLICES = flags.DEFINE_integer("slices", 1, "Slices of that size, connected by the data center network.")
_MESH = flags.DEFINE_string("mesh", "", "data,fsdp,tensor; by default the best that fits.")
_JSON = flags.DEFINE_boolean("json", False, "Print one JSON object instead of text.")
_QUICK = flags.DEFINE_boolean("quick", False, "Optimize less: a quarter of the time, and memory within some percent.")
_SUGGEST = flags.DEFINE_boolean("suggest", False, "Compile several meshes and remat policies and rank them.")

GIB = 2**30


def prepare_environment() -> None:
    """To be called before JAX is imported: its devices stay the CPU's, and libtpu looks for no machine."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")


def record(found: "Outcome", c: Any) -> dict[str, Any]:
    """What --json prints."""
    from hhh_jax.model import count_params

    step, chip = found.step, found.topology.chip
    counts = count_params(step.config.model)
    by_kind: dict[str, dict[str, float]] = defaultdict(lambda: {"count": 0, "bytes": 0.0})
    for collective in step.collectives:
        by_kind[collective.kind]["count"] += collective.times
        by_kind[collective.kind]["bytes"] += collective.times * collective.received()
    return {
        "stage": c.stage,
        "rung": c.rung,
        "topology": str(found.topology),
        "params": counts["total"],
        "n_nonembedding": counts["n"],
        "chips": found.topology.chips,
        "mesh": list(found.sizes),
        "remat": step.config.model.remat,
        "rows": step.rows,
        "hbm_bytes_per_chip": sum(step.memory) * chip.devices,
        "hbm_limit_bytes": int(chip.hbm_bytes),
        "hbm_parts": {name: size * chip.devices for name, size in step.memory._asdict().items()},
        "fits": True,
        "flops_per_step": found.flops.model,
        "flops_counted": found.flops.counted,
        "flops_executed": found.flops.executed,
        "collectives": by_kind,
        "compile_seconds": round(step.seconds, 1),
        "step_seconds": found.bound.seconds,
        "mfu_bound": found.bound.mfu,
        "bound_by": found.bound.by,
        "chip_hours_400b": found.bound.chip_hours,
    }


def text(r: dict[str, Any]) -> str:
    """A record for people."""
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in r["hbm_parts"].items())
    sent = ", ".join(f"{kind} {v['count']}x {v['bytes'] / GIB:.2f} GiB" for kind, v in r["collectives"].items())
    times = ", ".join(f"{name} {1e3 * seconds:.1f} ms" for name, seconds in r["step_seconds"].items())
    return "\n".join(
        [
            f"{r['stage']} {r['rung']} on {r['topology']}: {r['chips']} chips, "
            f"mesh (data, fsdp, tensor) = {tuple(r['mesh'])}, remat {r['remat']}, {r['rows']} rows a step",
            f"parameters      {r['params']:,}, of which {r['n_nonembedding']:,} in the matrices of the blocks",
            f"memory a chip   {r['hbm_bytes_per_chip'] / GIB:.2f} of {r['hbm_limit_bytes'] / GIB:.2f} GiB: {parts}",
            f"FLOPs a step    {r['flops_per_step']:.4g} with attention in full, {r['flops_counted']:.4g} as the kernel "
            f"visits it, {r['flops_executed']:.4g} with what remat repeats",
            f"collectives     taken in by a device: {sent or 'none'}",
            f"at least        {times} a step",
            f"MFU at most     {100 * r['mfu_bound']:.1f}% (head and visited attention count), bound by {r['bound_by']}",
            f"400B tokens     {r['chip_hours_400b']:,.0f} chip-hours at that bound",
            f"compiled in     {r['compile_seconds']} s",
        ]
    )


def _refuse(c: Any, topology: "Topology", sizes: Any, needed: int) -> None:
    """Says that a step does not fit, and where it would; exit status 1."""
    from hhh_jax.compile import meshes

    fits = meshes.smallest(c, topology)
    chip = topology.chip
    where = f"{fits.topology} with --mesh={','.join(map(str, fits.sizes))}" if fits else "none of those that can be had"
    if _JSON.value:
        missing = {
            "stage": c.stage, "rung": c.rung, "topology": str(topology), "chips": topology.chips,
            "mesh": sizes and list(sizes), "hbm_bytes_per_chip": needed * chip.devices,
            "hbm_limit_bytes": int(chip.hbm_bytes), "fits": False, "smallest_topology": fits and record(fits, c),
        }  # fmt: skip
        print(json.dumps(missing))
    mesh = f" with --mesh={','.join(map(str, sizes))}" if sizes else ""
    print(
        f"out of memory: {c.stage} {c.rung} needs {needed * chip.devices / GIB:.1f} GiB a chip on {topology}{mesh}, "
        f"which has {chip.hbm_bytes / GIB:.2f}; the smallest {topology.name} that works is {where}",
        file=sys.stderr,
    )
    sys.exit(1)


def _suggest(c: Any, topology: "Topology") -> None:
    from hhh_jax.compile import meshes

    found = []
    for sizes, remat, result in meshes.suggest(c, topology):
        name = f"--mesh={','.join(map(str, sizes))} --config.model.remat={remat}"
        if isinstance(result, meshes.Outcome):
            r = record(result, c)
            gib = r["hbm_bytes_per_chip"] / GIB
            line = f"MFU at most {100 * r['mfu_bound']:.1f}% by {r['bound_by']}, {gib:.2f} GiB a chip"
            found.append((r["mfu_bound"], f"{name:60} {line}"))
        else:
            found.append((-result.needed, f"{name:60} does not fit: {result.needed / GIB:.1f} GiB a device"))
        print(f"compiled {name}", file=sys.stderr, flush=True)
    for _, line in sorted(found, reverse=True):
        print(line)


def main(_: Sequence[str]) -> None:
    prepare_environment()
    from hhh_jax import config
    from hhh_jax.compile import meshes
    from hhh_jax.compile.hardware import parse_topology
    from hhh_jax.compile.step import OutOfMemory, parse_mesh

    c = _CONFIG.value
    config.check(c)
    topology = parse_topology(_TOPOLOGY.value, _SLICES.value)
    topology.devices()
    sizes, quick = parse_mesh(_MESH.value) if _MESH.value else None, _QUICK.value
    if sizes and min(sizes) < 1:
        raise UserError(f"--mesh={_MESH.value}: sizes are 1 or more")
    if _SUGGEST.value:
        return _suggest(c, topology)
    try:
        found = meshes.outcome(c, topology, sizes, quick) if sizes else meshes.best(c, topology, quick)
    except OutOfMemory as error:
        return _refuse(c, topology, sizes, error.needed)
    r = record(found, c)
    print(json.dumps(r) if _JSON.value else text(r))


if __name__ == "__main__":
    cli.start(main)
