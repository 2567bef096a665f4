"""Text that stands before rows of tokens, kept as the keys and values that later tokens attend to.

A prefix that all rows share is computed once and read in place by every row; nothing is copied for a row.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


class KeyValues(NamedTuple):
    """One block of such text, whose ``U`` rows serve ``B / U`` consecutive rows of tokens ``[B, T]`` each.

    ``U = 1`` is a prompt that all rows share, ``U = B`` what each row has generated. Every new token sees all of its
    block, whatever its segment and branch, so who gives a cache gives positions that go on after it.

    Attributes:
      keys, values: ``[L, U, S, H, K]`` in the compute dtype, keys rotated; ``[U, S, H, K]`` within a layer.
      real: bool ``[U, S]``; the other places are seen by no token.
    """

    keys: jax.Array
    values: jax.Array
    real: jax.Array


Cache = tuple[KeyValues, ...]

MAX_SCORES = {"cpu": 2**22, "gpu": 2**27, "tpu": 2**27}
"""Attention scores, in float32, that are held at once; on a CPU those that stay in its caches are twice as fast."""


def attend_after(
    blocks: Sequence[KeyValues], q_BxTxHxK: jax.Array, k_BxTxHxK: jax.Array, v_BxTxHxK: jax.Array, mask_BxTxT: jax.Array
) -> jax.Array:
    """Softmax attention over the keys of `blocks` and, where the mask says so, the row's own; ``[B, T, H, K]``.

    Goes through the queries in chunks where there would be more than `MAX_SCORES` scores at once.
    """
    b, t, h, _ = q_BxTxHxK.shape
    n_keys = t + sum(block.keys.shape[1] for block in blocks)
    at_once = max(MAX_SCORES[jax.default_backend()] // (b * h * n_keys), 1)
    chunk = math.gcd(t, 1 << (at_once.bit_length() - 1))

    def chunks(x_BxT: jax.Array) -> jax.Array:
        return jnp.swapaxes(x_BxT.reshape(b, t // chunk, chunk, *x_BxT.shape[2:]), 0, 1)

    def attend(queries: tuple[jax.Array, jax.Array]) -> jax.Array:
        q_BxCxHxK, mask_BxCxT = queries
        parts = [_attend_block(q_BxCxHxK, block.keys, block.values, block.real[:, None]) for block in blocks]
        parts.append(_attend_block(q_BxCxHxK, k_BxTxHxK, v_BxTxHxK, mask_BxCxT))
        outputs_NxBxCxHxK, log_sums_NxBxCxH = (jnp.stack(part) for part in zip(*parts, strict=True))
        weights_NxBxCxH = jax.nn.softmax(log_sums_NxBxCxH, axis=0)
        return (weights_NxBxCxH[..., None] * outputs_NxBxCxHxK).sum(0).astype(v_BxTxHxK.dtype)

    if chunk == t:
        return attend((q_BxTxHxK, mask_BxTxT))
    y_NxBxCxHxK = jax.lax.map(attend, (chunks(q_BxTxHxK), chunks(mask_BxTxT)))
    return jnp.swapaxes(y_NxBxCxHxK, 0, 1).reshape(q_BxTxHxK.shape)


def _attend_block(
    q_BxTxHxK: jax.Array, k_UxSxHxK: jax.Array, v_UxSxHxK: jax.Array, mask_UxTxS: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Attention over one block of keys, float32 ``[B, T, H, K]``, and the log-sum-exp of its scores ``[B, T, H]``."""
    b, t, h, k = q_BxTxHxK.shape
    # The rows of queries that read the same row of keys become one.
    q_UxQxHxK = q_BxTxHxK.reshape(len(k_UxSxHxK), -1, h, k)
    scores_UxHxQxS = jnp.einsum("uqhk,ushk->uhqs", q_UxQxHxK, k_UxSxHxK, preferred_element_type=jnp.float32)
    scores_UxHxQxS = jnp.where(mask_UxTxS[:, None], scores_UxHxQxS / math.sqrt(k), -1e30)
    log_sum_UxHxQ = jax.nn.logsumexp(scores_UxHxQxS, axis=-1)
    weights_UxHxQxS = jnp.exp(scores_UxHxQxS - log_sum_UxHxQ[..., None]).astype(v_UxSxHxK.dtype)
    out_UxQxHxK = jnp.einsum("uhqs,ushk->uqhk", weights_UxHxQxS, v_UxSxHxK, preferred_element_type=jnp.float32)
    return out_UxQxHxK.reshape(b, t, h, k), log_sum_UxHxQ.swapaxes(1, 2).reshape(b, t, h)
