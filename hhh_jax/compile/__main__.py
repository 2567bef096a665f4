"""Any run's training step compiled for a named TPU topology, on a machine with no TPU.

    python -m hhh_jax.compile --config=configs/ranked.py:52b --topology=v5p:8x8x8 [--mesh=1,64,8] [--slices=2] \\
        [--json]
    python -m hhh_jax.compile --config=configs/pretrain.py:2.7b --topology=v5e:4x4 --suggest

Says whether it fits in memory, what its devices send each other, and how fast it could be at most by the chip's
published peaks. Without --mesh or --config.mesh.* it takes the best that fits: data tells slices apart, tensor takes
as few devices as leave each group of data x fsdp a row, fsdp takes the rest; if that does not fit, tensor takes twice
as many, and so on.
"""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from hhh_jax import cli
from hhh_jax.compile.hardware import GIB
from hhh_jax.compile.record import out_of_memory, prepare_environment, record, text
from hhh_jax.errors import UserError

if TYPE_CHECKING:
    from hhh_jax.compile.hardware import Topology

_CONFIG = cli.define_config()
_TOPOLOGY = flags.DEFINE_string("topology", None, "CHIP:SIZE, as v5e:4x4 or v5p:4x4x8.", required=True)
_SLICES = flags.DEFINE_integer("slices", 1, "Slices of that size, connected by the data center network.")
_MESH = flags.DEFINE_string("mesh", "", "data,fsdp,tensor; by default of --config.mesh.*, else the best that fits.")
_JSON = flags.DEFINE_boolean("json", False, "Print one JSON object instead of text.")
_QUICK = flags.DEFINE_boolean("quick", False, "Optimize less: a quarter of the time, and memory within some percent.")
_SUGGEST = flags.DEFINE_boolean("suggest", False, "Compile several meshes and remat policies and rank them.")

def _refuse(c: Any, topology: "Topology", sizes: Any, needed: int) -> None:
    """Says that a step does not fit, and where it would; exit status 1."""
    from hhh_jax.compile import meshes

    fits = meshes.smallest(c, topology, including=sizes is not None)
    chip = topology.chip
    where = f"{fits.topology} with --mesh={','.join(map(str, fits.sizes))}" if fits else "none of those that can be had"
    if _JSON.value:
        refusal = out_of_memory(c, topology, sizes, needed)
        print(json.dumps(refusal | {"smallest_topology": fits and record(fits, c)}))
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
    from hhh_jax import config, sharding
    from hhh_jax.compile import meshes
    from hhh_jax.compile.hardware import parse_topology
    from hhh_jax.compile.step import OutOfMemory, parse_mesh

    c = _CONFIG.value
    config.check(c)
    topology = parse_topology(_TOPOLOGY.value, _SLICES.value)
    topology.devices()
    quick, sizes = _QUICK.value, None
    if _MESH.value:
        sizes = parse_mesh(_MESH.value)
    elif c.mesh.to_dict() != config.base_config(c.stage, c.rung).mesh.to_dict():
        data, fsdp, tensor = sharding.make_mesh(**c.mesh, devices=topology.devices()).shape.values()
        sizes = data, fsdp, tensor
    if sizes and min(sizes) < 1:
        raise UserError(f"--mesh={_MESH.value}: sizes are 1 or more")
    if _SUGGEST.value:
        if sizes or _JSON.value:
            raise UserError("--suggest tries meshes and prints lines: leave out --mesh, --config.mesh.* and --json")
        return _suggest(c, topology)
    try:
        found = meshes.outcome(c, topology, sizes, quick) if sizes else meshes.best(c, topology, quick)
    except OutOfMemory as error:
        return _refuse(c, topology, sizes, error.needed)
    r = record(found, c)
    print(json.dumps(r) if _JSON.value else text(r))


if __name__ == "__main__":
    prepare_environment()  # config files import JAX
    cli.start(main)
