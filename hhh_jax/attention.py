"""Attention over packed rows: which keys a query sees, and the softmax over them, by the kernel of the platform.

There are four ways to compute the same thing, and all are tested against the first:

* ``plain``: scores of all queries and keys at once; the reference, and the fastest on short rows of a CPU.
* ``chunked``: the same over chunks of queries, which keeps memory linear in the length of a row.
* ``splash``: the Pallas kernel of TPUs. Up to `MASKED_TOKENS` it takes any visibility as a mask; longer rows are causal
  in their order within each branch of each segment, so pairs in them have to repeat their context.
* ``cudnn``: cuDNN's flash attention, with the visibility as a mask.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from hhh_jax import sharding

P = PartitionSpec

KINDS = ("auto", "plain", "chunked", "splash", "cudnn")

MASKED_TOKENS = 2048
"""Longest row in which the branches of a segment may share tokens, whatever the platform."""

CHUNK = 256
"""Queries of a chunk."""

BLOCK = 512
"""Largest tile of the splash kernel, in queries and in keys."""

SAVED = "attention"
"""Name of what the splash kernel's backward pass needs, for remat policies that keep it."""

_LANES = 128  # a TPU's vectors


class Layout(NamedTuple):
    """Where the tokens of packed rows stand, int32 ``[B, T]`` each; the fields are those of a `Batch`."""

    segment_ids: jax.Array
    branch_ids: jax.Array
    positions: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Visibility:
    """Which keys each query sees, in the form that `attend` takes; computed once for all layers.

    Attributes:
      queries, keys: the layouts of both.
      mask: bool ``[B, Q, S]``, queries before keys; None where the kind needs none.
      kind: one of `KINDS` but ``auto``.
      mesh: what the rows (data, fsdp) and the heads (tensor) are divided over; None for a single device.
    """

    queries: Layout
    keys: Layout
    mask: jax.Array | None
    kind: str = dataclasses.field(metadata={"static": True})
    mesh: Mesh | None = dataclasses.field(metadata={"static": True})


def choose(kind: str, head_dim: int, dtype: str, n_queries: int, n_keys: int, mesh: Mesh | None) -> str:
    """What ``auto`` means for these shapes on the platform of `mesh` (None: JAX's own); other kinds are kept.

    TPUs take splash where every token is query and key, a row is a multiple of 128 and so is a head; GPUs take cuDNN
    in bfloat16 with heads of up to 128; all else takes ``plain``, and ``chunked`` for more than two chunks of queries.
    """
    if kind != "auto":
        return kind
    platform = sharding.platform(mesh)
    if platform == "tpu" and n_queries == n_keys and n_queries % _LANES == 0 and head_dim % _LANES == 0:
        return "splash"
    if platform == "gpu" and dtype == "bfloat16" and head_dim <= 128 and head_dim % 8 == 0 and n_queries > 1:
        return "cudnn"
    return "chunked" if n_queries > 2 * CHUNK else "plain"


def visited(kind: str, head_dim: int, dtype: str, length: int, mesh: Mesh | None) -> float:
    """Share of the scores of a row that the kernel computes, at most: splash leaves out the blocks after the query."""
    if choose(kind, head_dim, dtype, length, length, mesh) != "splash":
        return 1.0
    blocks = length // math.gcd(length, BLOCK)
    return (blocks + 1) / (2 * blocks)


def visibility(queries: Layout, keys: Layout, kind: str = "plain", mesh: Mesh | None = None) -> Visibility:
    """A query ``[B, Q]`` sees a key ``[B, S]`` of the same segment, at a position not after its own, whose branch is 0
    or its own.

    Branch 0 is what the branches of a segment share (the context of a pair); branches never see each other.
    """
    masked = kind in ("plain", "cudnn") or (kind == "splash" and keys.segment_ids.shape[1] <= MASKED_TOKENS)
    return Visibility(queries, keys, _mask(queries, keys) if masked else None, kind, mesh)


def _mask(queries: Layout, keys: Layout) -> jax.Array:
    same_segment = queries.segment_ids[:, :, None] == keys.segment_ids[:, None, :]
    not_after = queries.positions[:, :, None] >= keys.positions[:, None, :]
    key_branch = keys.branch_ids[:, None, :]
    visible_branch = (key_branch == 0) | (key_branch == queries.branch_ids[:, :, None])
    return same_segment & not_after & visible_branch


def attend(q_BxQxHxK: jax.Array, k_BxSxHxK: jax.Array, v_BxSxHxK: jax.Array, visible: Visibility) -> jax.Array:
    """Softmax attention with scores and softmax in float32; returns ``[B, Q, H, K]`` in the dtype of ``v``."""
    attend_as = {"plain": _plain, "chunked": _chunked, "splash": _splash, "cudnn": _cudnn}[visible.kind]
    return attend_as(q_BxQxHxK, k_BxSxHxK, v_BxSxHxK, visible)


def _plain(q_BxQxHxK: jax.Array, k_BxSxHxK: jax.Array, v_BxSxHxK: jax.Array, visible: Visibility) -> jax.Array:
    assert visible.mask is not None
    head_dim = q_BxQxHxK.shape[-1]
    scores_BxHxQxS = jnp.einsum("bqhk,bshk->bhqs", q_BxQxHxK, k_BxSxHxK, preferred_element_type=jnp.float32)
    scores_BxHxQxS = jnp.where(visible.mask[:, None], scores_BxHxQxS / math.sqrt(head_dim), -1e30)
    weights_BxHxQxS = jax.nn.softmax(scores_BxHxQxS, axis=-1).astype(v_BxSxHxK.dtype)
    return jnp.einsum("bhqs,bshk->bqhk", weights_BxHxQxS, v_BxSxHxK)


def _chunked(q_BxQxHxK: jax.Array, k_BxSxHxK: jax.Array, v_BxSxHxK: jax.Array, visible: Visibility) -> jax.Array:
    """One chunk of queries after the other; the backward pass computes a chunk's scores again."""
    b, n = q_BxQxHxK.shape[:2]
    padding = -n % CHUNK

    def chunks(x_BxQ: jax.Array) -> jax.Array:
        """``[B, Q, ...]`` to ``[Q / CHUNK, B, CHUNK, ...]``; what is added at the end is cut off again."""
        x_BxQ = jnp.pad(x_BxQ, ((0, 0), (0, padding), *[(0, 0)] * (x_BxQ.ndim - 2)))
        return jnp.swapaxes(x_BxQ.reshape(b, -1, CHUNK, *x_BxQ.shape[2:]), 0, 1)

    @jax.checkpoint
    def one(chunk: tuple[jax.Array, Layout]) -> jax.Array:
        q_BxCxHxK, queries = chunk
        return _plain(q_BxCxHxK, k_BxSxHxK, v_BxSxHxK, visibility(queries, visible.keys))

    y_NxBxCxHxK = jax.lax.map(one, (chunks(q_BxQxHxK), jax.tree.map(chunks, visible.queries)))
    return jnp.swapaxes(y_NxBxCxHxK, 0, 1).reshape(b, n + padding, *q_BxQxHxK.shape[2:])[:, :n]


def _cudnn(q_BxQxHxK: jax.Array, k_BxSxHxK: jax.Array, v_BxSxHxK: jax.Array, visible: Visibility) -> jax.Array:
    assert visible.mask is not None
    return jax.nn.dot_product_attention(
        q_BxQxHxK, k_BxSxHxK, v_BxSxHxK, mask=visible.mask[:, None], implementation="cudnn"
    )


def _splash(q_BxTxHxK: jax.Array, k_BxTxHxK: jax.Array, v_BxTxHxK: jax.Array, visible: Visibility) -> jax.Array:
    """The kernel on each device's own rows and heads."""
    mesh, length, heads = visible.mesh, q_BxTxHxK.shape[1], q_BxTxHxK.shape[2]
    tensor = mesh.shape["tensor"] if mesh is not None else 1
    interpret = sharding.platform(mesh) == "cpu"
    kernel: Any = functools.partial(_splash_rows, heads=heads // tensor, length=length, interpret=interpret)
    # A branch of a segment is one run of tokens, and a number of its own.
    runs_BxT = visible.keys.segment_ids * length + visible.keys.branch_ids
    limits = runs_BxT if visible.mask is None else visible.mask
    if mesh is not None and mesh.size > 1:
        rows, heads_of_rows = P(("data", "fsdp")), P(("data", "fsdp"), "tensor")
        kernel = jax.shard_map(
            kernel, mesh=mesh, in_specs=(*[heads_of_rows] * 3, rows), out_specs=heads_of_rows, check_vma=False
        )
    scale = 1 / math.sqrt(q_BxTxHxK.shape[-1])
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q_BxTxHxK * jnp.asarray(scale, q_BxTxHxK.dtype), k_BxTxHxK, v_BxTxHxK))
    return jnp.swapaxes(kernel(q, k, v, limits), 1, 2)


def _splash_rows(
    q_BxHxTxK: jax.Array,
    k_BxHxTxK: jax.Array,
    v_BxHxTxK: jax.Array,
    limits: jax.Array,
    heads: int,
    length: int,
    interpret: bool,
) -> jax.Array:
    """`limits` are masks ``[B, T, T]``, or the runs ``[B, T]`` within which attention is causal."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    block = math.gcd(length, BLOCK)
    tiles: dict[str, Any] = dict.fromkeys(
        ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute", "block_q_dq", "block_kv_dq"),
        block,
    )
    options: dict[str, Any] = {
        "block_sizes": splash.BlockSizes(**tiles), "head_shards": 1, "q_seq_shards": 1, "interpret": interpret,
        "residual_checkpoint_name": SAVED,
    }  # fmt: skip

    def masked(q: jax.Array, k: jax.Array, v: jax.Array, mask_TxT: jax.Array) -> jax.Array:
        kernel = splash.make_splash_mha(mask_TxT[None], **options)
        # Under jit the field has become an array, which the kernel's `if` does not take.
        kernel.fwd_mask_info = kernel.fwd_mask_info._replace(is_dynamic_mask=True)
        return kernel(q, k, v)

    def causal(q: jax.Array, k: jax.Array, v: jax.Array, runs_T: jax.Array) -> jax.Array:
        mask = splash.MultiHeadMask([splash.CausalMask((length, length))] * heads)
        return splash.make_splash_mha(mask, **options)(q, k, v, segment_ids=splash.SegmentIds(runs_T, runs_T))

    return jax.vmap(masked if limits.ndim == 3 else causal)(q_BxHxTxK, k_BxHxTxK, v_BxHxTxK, limits)
