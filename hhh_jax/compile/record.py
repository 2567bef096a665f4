"""What is said of a compiled step, as JSON and for people."""

import os
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from hhh_jax.compile.hardware import GIB

if TYPE_CHECKING:
    from hhh_jax.compile.hardware import Topology
    from hhh_jax.compile.meshes import Outcome


def prepare_environment() -> None:
    """To be called before JAX is imported: its devices stay the CPU's, and libtpu looks for no machine and no lock."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
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


def out_of_memory(c: Any, topology: "Topology", sizes: Any, needed: int) -> dict[str, Any]:
    """What --json prints of a step that needs `needed` bytes on a device: what is not known of it is None."""
    from hhh_jax.config import model_config
    from hhh_jax.model import count_params

    counts = count_params(model_config(c, c.model.vocab_size))
    unknown = ("flops_per_step", "collectives", "compile_seconds", "mfu_bound", "bound_by")
    return {
        "stage": c.stage,
        "rung": c.rung,
        "topology": str(topology),
        "params": counts["total"],
        "n_nonembedding": counts["n"],
        "chips": topology.chips,
        "mesh": list(sizes) if sizes else None,
        "hbm_bytes_per_chip": needed * topology.chip.devices,
        "hbm_limit_bytes": int(topology.chip.hbm_bytes),
        "fits": False,
    } | dict.fromkeys(unknown)


def text(r: dict[str, Any]) -> str:
    """A record for people."""
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in r["hbm_parts"].items())
    sent = ", ".join(f"{kind} {v['count']}x {v['bytes'] / GIB:.2f} GiB" for kind, v in r["collectives"].items())
    times = ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in r["step_seconds"].items())
    sizes = zip(("data", "fsdp", "tensor"), r["mesh"], strict=True)
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
            f"to run so       --config.model.remat={r['remat']} "
            + " ".join(f"--config.mesh.{axis}={size}" for axis, size in sizes),
        ]
    )
