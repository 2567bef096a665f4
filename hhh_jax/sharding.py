"""The mesh and the one table of rules that says how every array of a run lies on it."""

import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hhh_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
P = PartitionSpec

# First match wins, on the end of a parameter's path; blocks are stacked by layer, which is never sharded.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"transformer/embedding", P("fsdp", "tensor")),
    (r"transformer/position_embedding", P(None, "fsdp")),
    (r"blocks/(query|key|value|mlp_in)/kernel", P(None, "fsdp", "tensor")),
    (r"blocks/(attention_out|mlp_out)/kernel", P(None, "tensor", "fsdp")),
    (r"blocks/(query|key|value|mlp_in)/bias", P(None, "tensor")),
    (r"blocks/(attention_out|mlp_out)/bias", P()),
    (r"(attention|mlp|final)_norm/(scale|bias)", P()),
    (r"lm_head/kernel", P("fsdp", "tensor")),
    (r"score_head/(kernel|bias)", P()),
    (r"(count|best/value|best/step)", P()),
)


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh (data, fsdp, tensor) over all devices; one axis may be -1, which takes what is left.

    Raises UserError if the product is not the number of devices.
    """
    devices = jax.devices()
    sizes = [data, fsdp, tensor]
    known = int(np.prod([size for size in sizes if size != -1]))
    if sizes.count(-1) == 1 and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if int(np.prod(sizes)) != len(devices) or -1 in sizes:
        raise UserError(f"mesh (data, fsdp, tensor) = {(data, fsdp, tensor)} does not cover {len(devices)} devices")
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3)


def row_multiple(mesh: Mesh) -> int:
    """What the number of rows of a batch must be a multiple of."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def _path_name(path: tuple) -> str:
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def state_shardings(abstract_state: Any, mesh: Mesh) -> Any:
    """A sharding for every array of a state whose leaves all begin with the seeds axis ``[G, ...]``.

    Raises UserError for an array that no rule matches or that the mesh does not divide, by name.
    """

    def sharding(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        name = _path_name(path)
        spec = next((spec for pattern, spec in RULES if re.search(rf"(^|/){pattern}$", name)), None)
        if spec is None:
            raise UserError(f"no sharding rule matches parameter {name} of shape {leaf.shape}; add one to RULES")
        spec = P(None, *spec)  # seeds
        for size, axis in zip(leaf.shape, spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                raise UserError(
                    f"parameter {name} of shape {leaf.shape}: {size} is not divisible by mesh axis {axis} = "
                    f"{mesh.shape[axis]}; choose another --config.mesh"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, abstract_state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches ``[G, R, ...]``: rows over data and fsdp."""
    return NamedSharding(mesh, P(None, ("data", "fsdp")))


def constrain_residual(x_BxTxD: jax.Array, mesh: Mesh | None, along_tokens: bool) -> jax.Array:
    """Rows over data and fsdp and, if `along_tokens` and it comes out even, a row's tokens over tensor."""
    if mesh is None or mesh.size == 1:
        return x_BxTxD
    even = along_tokens and x_BxTxD.shape[1] % mesh.shape["tensor"] == 0
    spec = P(("data", "fsdp"), "tensor" if even else None, None)
    return jax.lax.with_sharding_constraint(x_BxTxD, NamedSharding(mesh, spec))


def replicated(mesh: Mesh) -> NamedSharding:
    """On every device in full."""
    return NamedSharding(mesh, P())
