"""The mesh and the one table of rules that says how every array of a run lies on it."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
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


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh (data, fsdp, tensor) over all devices; one axis may be -1, which takes what is left.

    Devices of one TPU slice lie next to each other in fsdp and tensor; several slices are told apart by data alone,
    because what connects them is slow.

    Args:
      devices: those of a TPU topology to compile for; None takes JAX's own.

    Raises UserError if the product is not the number of devices, or data no multiple of the number of slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    known = int(np.prod([size for size in sizes if size != -1]))
    if sizes.count(-1) == 1 and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if int(np.prod(sizes)) != len(devices) or -1 in sizes:
        raise UserError(f"mesh (data, fsdp, tensor) = {(data, fsdp, tensor)} does not cover {len(devices)} devices")
    slices = _slices(devices)
    if sizes[0] % slices:
        raise UserError(
            f"mesh (data, fsdp, tensor) = {tuple(sizes)} on {slices} slices: data must be a multiple of {slices}, as "
            f"slices are told apart by data alone"
        )
    within = (sizes[0] // slices, *sizes[1:])
    if slices > 1:
        grid = mesh_utils.create_hybrid_device_mesh(
            within, (slices, 1, 1), devices, allow_split_physical_axes=True
        )
    else:
        grid = mesh_utils.create_device_mesh(within, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def platform(mesh: Mesh | None) -> str:
    """``cpu``, ``gpu`` or ``tpu``; of JAX's own devices if `mesh` is None."""
    return str(jax.default_backend() if mesh is None else mesh.devices.flat[0].platform)


def on_cpu(mesh: Mesh | None) -> bool:
    """Whether to compute in the form that suits a CPU; without a mesh too, as of shapes alone no device is asked."""
    return mesh is None or platform(mesh) == "cpu"


def row_multiple(mesh: Mesh) -> int:
    """What the number of rows of a batch must be a multiple of."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_mesh(mesh: Mesh | None, *, rows: int = 0, accumulate: int = 1, heads: int = 0, state: Any = None) -> None:
    """Raises UserError if a mesh doesn't divide all that is given; it names the nearest mesh that does.

    Args:
      rows, accumulate: of a batch, and the microbatches that it is taken in.
      heads: attention heads.
      state: arrays as shapes ``[G, ...]``, for `state_shardings`.
    """
    if mesh is None:
        return
    slices = _slices(mesh.devices.flat) if isinstance(mesh, Mesh) else 1  # an abstract mesh has no devices
    divided = _divided(state)

    def fault(sizes: tuple[int, int, int]) -> str:
        data, fsdp, tensor = sizes
        if data % slices:
            return f"data = {data} is no multiple of {slices} slices"
        if rows % (data * fsdp * accumulate):
            micro = f" times {accumulate} microbatches" if accumulate > 1 else ""
            return f"a batch of {rows} rows cannot be divided among data x fsdp = {data * fsdp}{micro}"
        if heads % tensor:
            return f"{heads} attention heads cannot be divided among mesh axis tensor = {tensor}"
        for name, shape, size, axis in divided:
            if size % (n := sizes[AXES.index(axis)]):
                return f"parameter {name} of shape {shape}: {size} is not divisible by mesh axis {axis} = {n}"
        return ""

    wanted = mesh.shape["data"], mesh.shape["fsdp"], mesh.shape["tensor"]
    wrong, n = fault(wanted), mesh.size
    if not wrong:
        return
    sizes = [(a, b, n // a // b) for a in range(1, n + 1) if n % a == 0 for b in range(1, n + 1) if n // a % b == 0]
    found = [size for size in sizes if not fault(size)]
    if not found:
        raise UserError(f"{wrong}; no mesh of {n} devices works")
    near = min(found, key=lambda size: sum(abs(np.log2(a / b)) for a, b in zip(size, wanted, strict=True)))
    raise UserError(f"{wrong}; the nearest mesh that works is (data, fsdp, tensor) = {near}")


def _slices(devices: Iterable[Any]) -> int:
    """TPU slices that devices are of; 1 of other devices."""
    return len({getattr(device, "slice_index", 0) if device.platform == "tpu" else 0 for device in devices})


def _path_name(path: tuple) -> str:
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def _specs(abstract_state: Any) -> Any:
    """How every array of a state is divided, by `RULES`. Raises UserError for one that no rule matches."""

    def spec_of(path: tuple, leaf: jax.ShapeDtypeStruct) -> PartitionSpec:
        name = _path_name(path)
        spec = next((spec for pattern, spec in RULES if re.search(rf"(^|/){pattern}$", name)), None)
        if spec is None:
            raise UserError(f"no sharding rule matches parameter {name} of shape {leaf.shape}; add one to RULES")
        return P(None, *spec)  # seeds

    return jax.tree_util.tree_map_with_path(spec_of, abstract_state)


def _divided(abstract_state: Any) -> list[tuple[str, tuple[int, ...], int, str]]:
    """Every axis of an array that a mesh axis divides: the array's name and shape, the axis's size, the mesh axis."""
    leaves = jax.tree_util.tree_leaves_with_path(abstract_state)
    return [
        (_path_name(path), leaf.shape, size, axis)
        for (path, leaf), spec in zip(leaves, jax.tree.leaves(_specs(abstract_state)), strict=True)
        for size, axis in zip(leaf.shape, spec, strict=False)
        if axis is not None
    ]


def state_shardings(abstract_state: Any, mesh: Mesh) -> Any:
    """A sharding for every array of a state whose leaves all begin with the seeds axis ``[G, ...]``.

    Raises UserError for an array that no rule matches or that the mesh does not divide, by name.
    """
    check_mesh(mesh, state=abstract_state)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), _specs(abstract_state))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches ``[G, R, ...]``: rows over data and fsdp."""
    return NamedSharding(mesh, P(None, ("data", "fsdp")))


class Activations(NamedTuple):
    """How activations ``[B, T, ...]`` lie on a mesh: rows over data and fsdp, and what tensor divides.

    On a single device nothing is done. Sizes that a mesh doesn't divide stay whole.

    Attributes:
      mesh: None for a single device.
      along_tokens: whether the residual stream is divided along tokens.
    """

    mesh: Mesh | None
    along_tokens: bool

    def residual(self, x_BxTxD: jax.Array) -> jax.Array:
        """Tokens over tensor: what adds to the residual stream is reduced and scattered, not reduced for all."""
        return self._constrain(x_BxTxD, "tensor" if self.along_tokens else None, None)

    def features(self, x_BxTxF: jax.Array) -> jax.Array:
        """The last axis over tensor: what a matrix with divided columns gives, or heads side by side."""
        return self._constrain(x_BxTxF, None, "tensor")

    def whole(self, x_BxTxD: jax.Array) -> jax.Array:
        """All tokens of the residual stream, gathered as they are; their gradient is divided along tokens again."""
        if self.mesh is None or self.mesh.size == 1:
            return x_BxTxD

        @jax.custom_vjp
        def gather(x_BxTxD: jax.Array) -> jax.Array:
            # Both constraints, or a conversion to a smaller type that comes before would be done after.
            return self._constrain(self.residual(x_BxTxD), None, None)

        gather.defvjp(lambda x_BxTxD: (gather(x_BxTxD), None), lambda _, dy_BxTxD: (self.residual(dy_BxTxD),))
        return gather(x_BxTxD)

    def _constrain(self, x_BxTxD: jax.Array, *axes: str | None) -> jax.Array:
        mesh = self.mesh
        if mesh is None or mesh.size == 1:
            return x_BxTxD
        rows = ("data", "fsdp") if x_BxTxD.shape[0] % row_multiple(mesh) == 0 else None
        even = (a if a and n % mesh.shape[a] == 0 else None for n, a in zip(x_BxTxD.shape[1:], axes, strict=True))
        return jax.lax.with_sharding_constraint(x_BxTxD, NamedSharding(mesh, P(rows, *even)))


def gather_once(matrix_VxD: jax.Array, dtype: Any, mesh: Mesh | None) -> jax.Array:
    """A matrix ``[V, D]`` or ``[D, V]`` rounded to `dtype` and whole on every device, but for what tensor divides.

    It stays float32, so that what its users add up of its gradient is added in float32.
    """
    rounded = matrix_VxD.astype(dtype)
    if mesh is not None and mesh.size > 1:
        rounded = jax.lax.with_sharding_constraint(rounded, NamedSharding(mesh, P(None, "tensor")))
    return rounded.astype(jnp.float32)


def by_rows(mesh: Mesh | None, fn: Callable[..., jax.Array], shared: jax.Array, *arrays_R: jax.Array) -> jax.Array:
    """``fn(shared, *arrays_R)`` run by each group of devices on its own rows; what tensor divides stays so.

    The gradient by `shared` is added up over a group's rows before it is over the groups.
    """
    if mesh is None or row_multiple(mesh) == 1 or arrays_R[0].shape[0] % row_multiple(mesh):
        return fn(shared, *arrays_R)
    groups = ("data", "fsdp")
    rows = P(groups)

    def of_one_group(shared: jax.Array, *arrays_R: jax.Array) -> jax.Array:
        return fn(jax.lax.pcast(shared, groups, to="varying"), *arrays_R)

    specs = (P(), *[rows] * len(arrays_R))
    mapped = jax.shard_map(of_one_group, mesh=mesh, in_specs=specs, out_specs=rows, axis_names={*groups})
    return mapped(shared, *arrays_R)


def local_logits(rows: int, vocab_size: int, mesh: Mesh) -> tuple[int, int]:
    """Rows and columns of the logits that one device holds."""
    return -(-rows // row_multiple(mesh)), -(-vocab_size // mesh.shape["tensor"])


def replicated(mesh: Mesh) -> NamedSharding:
    """On every device in full."""
    return NamedSharding(mesh, P())
