"""Run by test_distributed as one of several processes: ``DIRECTORY MESH SAVE`` with the flags of a run's processes.

Saves (SAVE is 1) and restores arrays that are divided over the mesh in several ways, and prints the SHA-256 of what was
saved and of what is restored as a JSON line, then what the processes agree on.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from hhh_jax import cli

SPECS = ((), ("fsdp",), (None, "tensor"), ("fsdp", "tensor"), (("data", "fsdp"), "tensor"))


def main(arguments: Sequence[str]) -> None:
    import jax
    import numpy as np
    from jax.experimental import multihost_utils
    from jax.sharding import NamedSharding, PartitionSpec

    from hhh_jax import distributed, sharding
    from hhh_jax.checkpoint import Checkpoints

    directory, mesh, save = arguments[1], sharding.make_mesh(*json.loads(arguments[2])), arguments[3] == "1"
    shardings = {str(spec): NamedSharding(mesh, PartitionSpec(*spec)) for spec in SPECS}

    def digest(tree: dict[str, Any]) -> dict[str, str]:
        whole = {name: np.asarray(multihost_utils.process_allgather(x, tiled=True)) for name, x in tree.items()}
        return {name: hashlib.sha256(x.tobytes()).hexdigest() for name, x in whole.items()}

    bits = np.random.default_rng(0).integers(0, 2**32, (len(SPECS), 8, 16), dtype=np.uint32)  # NaN among them
    arrays = {name: bits[i].view(np.float32) for i, name in enumerate(shardings)}
    with Checkpoints(directory) as checkpoints:
        if save:
            placed = {name: distributed.place(x, shardings[name]) for name, x in arrays.items()}
            for step in (1, 2):
                checkpoints.save(step, placed, {"step": step}, wait=True)
        abstract = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[name]) for name, x in arrays.items()
        }
        found = checkpoints.restore_latest(abstract)
        assert found is not None
        step, restored, extra = found
        assert all(restored[name].sharding == shardings[name] for name in shardings)
    agreed = distributed.agree({"step": extra["step"], "process": jax.process_index()})
    assert distributed.anywhere(jax.process_index() == 0) and not distributed.anywhere(False)
    local = {name: hashlib.sha256(x.tobytes()).hexdigest() for name, x in arrays.items()}
    print(json.dumps([step, digest(restored) == local, agreed, jax.process_count()]), flush=True)


cli.define_process_flags()
cli.start(main)
