"""Attention over packed rows: which keys a query sees, and the softmax over them."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Layout(NamedTuple):
    """Where the tokens of packed rows stand, int32 ``[B, T]`` each; the fields are those of a `Batch`."""

    segment_ids: jax.Array
    branch_ids: jax.Array
    positions: jax.Array


class Visibility(NamedTuple):
    """Which keys each query sees, in the form that `attend` takes; computed once for all layers.

    Attributes:
      mask: bool ``[B, Q, S]``, queries before keys.
    """

    mask: jax.Array


def visibility(queries: Layout, keys: Layout) -> Visibility:
    """A query ``[B, Q]`` sees a key ``[B, S]`` of the same segment, at a position not after its own, whose branch is 0
    or its own.

    Branch 0 is what the branches of a segment share (the context of a pair); branches never see each other.
    """
    same_segment = queries.segment_ids[:, :, None] == keys.segment_ids[:, None, :]
    not_after = queries.positions[:, :, None] >= keys.positions[:, None, :]
    key_branch = keys.branch_ids[:, None, :]
    visible_branch = (key_branch == 0) | (key_branch == queries.branch_ids[:, :, None])
    return Visibility(same_segment & not_after & visible_branch)


def attend(q_BxQxHxK: jax.Array, k_BxSxHxK: jax.Array, v_BxSxHxK: jax.Array, visible: Visibility) -> jax.Array:
    """Softmax attention with scores and softmax in float32; returns ``[B, Q, H, K]`` in the dtype of ``v``."""
    head_dim = q_BxQxHxK.shape[-1]
    scores_BxHxQxS = jnp.einsum("bqhk,bshk->bhqs", q_BxQxHxK, k_BxSxHxK, preferred_element_type=jnp.float32)
    scores_BxHxQxS = jnp.where(visible.mask[:, None], scores_BxHxQxS / math.sqrt(head_dim), -1e30)
    weights_BxHxQxS = jax.nn.softmax(scores_BxHxQxS, axis=-1).astype(v_BxSxHxK.dtype)
    return jnp.einsum("bhqs,bshk->bqhk", weights_BxHxQxS, v_BxSxHxK)
