"""The decoder-only transformer of the paper's ladder, as a pure function, with its size and FLOP arithmetic.

One dial, ``n_layer``: ``d_model = aspect * n_layer`` and ``d_ff = 4 * d_model`` (paper, section 1.2 and appendix A).
What the paper leaves open, and what is chosen here (each is a field of `ModelConfig`):

* positions: rotary over the whole head. They are relative, so packed documents need no position table, and GPT-NeoX
  checkpoints can become rungs; ``learned`` gives GPT-3's table.
* residual form: sequential, as in GPT-3; ``parallel`` gives GPT-NeoX's.
* norm: pre-LayerNorm with GELU and biases, as in GPT-3 and GPT-NeoX; ``rmsnorm`` and ``biases=False`` are the
  usual alternatives.
* head size: 128 on the paper's ladder (what TPU attention kernels ask for), 32 on the CPU ladder.
* embeddings: input and output matrices are separate, as in GPT-NeoX.
"""

import dataclasses
import functools
import math
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh

from hhh_jax import attention, sharding
from hhh_jax.cache import Cache, KeyValues, attend_after
from hhh_jax.errors import UserError

Params = dict[str, Any]

PAPER_LADDER = {
    "0.2m": 1, "1.6m": 2, "5.3m": 3, "13m": 4, "42m": 6, "197m": 10, "810m": 16, "2.7b": 24, "13b": 40, "52b": 64
}  # fmt: skip
"""Rungs of the paper's ladder (aspect and head size 128) by name: number of layers. Table 1 has the last seven."""

CPU_LADDER = {"12k": 1, "98k": 2, "332k": 3, "786k": 4, "2.7m": 6}
"""The same rule with aspect and head size 32."""

PAPER_TOKENS = 4e11
"""Tokens that every model of the paper was pretrained on (section 1.2)."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape and form of one model.

    Attributes:
      n_layer: the dial; ``d_model = aspect * n_layer``.
      aspect: width per layer; 128 on the paper's ladder, 32 on the CPU ladder.
      head_dim: size of one attention head; must divide ``d_model``.
      vocab_size: rows of the embedding and of the LM head.
      positions: ``rotary`` or ``learned``.
      rotary_fraction: share of each head that is rotated (GPT-NeoX: 0.25).
      rotary_base: longest wavelength is about ``2 pi * rotary_base`` positions.
      max_positions: rows of the position table; used by ``learned`` only.
      residual: ``sequential`` or ``parallel`` (attention and MLP read the same input).
      norm: ``layernorm`` or ``rmsnorm``.
      biases: whether linear layers and norms add one.
      dtype: compute dtype; parameters, logits, rewards and losses are always float32.
      attention: a kernel of `attention.KINDS`; ``auto`` takes the platform's.
      remat: ``none``, ``full`` (keep block inputs only) or ``dots`` (keep outputs of matmuls and TPUs' attention too).
      unroll: layers per iteration of the scan over layers; never changes the parameter tree.
      shard_sequence: whether the residual stream is divided along tokens among the devices of mesh axis ``tensor``
        between attention and MLP, where their number divides the length of a row.
    """

    n_layer: int
    aspect: int = 128
    head_dim: int = 128
    vocab_size: int = 65536
    positions: str = "rotary"
    rotary_fraction: float = 1.0
    rotary_base: float = 10000.0
    max_positions: int = 8192
    residual: str = "sequential"
    norm: str = "layernorm"
    biases: bool = True
    dtype: str = "bfloat16"
    attention: str = "auto"
    remat: str = "none"
    unroll: int = 1
    shard_sequence: bool = True

    @property
    def d_model(self) -> int:
        return self.aspect * self.n_layer

    @property
    def d_ff(self) -> int:
        return 4 * self.d_model

    @property
    def n_head(self) -> int:
        return self.d_model // self.head_dim


def rotary_angles(positions_BxT: jax.Array, rotated_dim: int, base: float) -> tuple[jax.Array, jax.Array]:
    """Cosines of the rotary angles, and sines with each half's sign; float32 ``[B, T, 1, 2, rotated_dim / 2]``."""
    inverse_frequency = base ** (-jnp.arange(0, rotated_dim, 2, dtype=jnp.float32) / rotated_dim)
    angles_BxTx1x1xF = (positions_BxT[..., None].astype(jnp.float32) * inverse_frequency)[:, :, None, None, :]
    cos, sin = jnp.cos(angles_BxTx1x1xF), jnp.sin(angles_BxTx1x1xF)
    return jnp.concatenate([cos, cos], axis=-2), jnp.concatenate([-sin, sin], axis=-2)


def rotate(x_BxTxHxK: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary position embedding on the first part of each head, its halves against each other as in GPT-NeoX."""
    cos_BxTx1x2xF, sin_BxTx1x2xF = angles
    rotated_dim = 2 * cos_BxTx1x2xF.shape[-1]
    halves_BxTxHx2xF = x_BxTxHxK[..., :rotated_dim].astype(jnp.float32).reshape(*x_BxTxHxK.shape[:-1], 2, -1)
    rotated = halves_BxTxHx2xF * cos_BxTx1x2xF + halves_BxTxHx2xF[..., ::-1, :] * sin_BxTx1x2xF
    rotated_BxTxHxR = rotated.astype(x_BxTxHxK.dtype).reshape(*x_BxTxHxK.shape[:-1], rotated_dim)
    return jnp.concatenate([rotated_BxTxHxR, x_BxTxHxK[..., rotated_dim:]], axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def cpu_matmul(x_NxI: jax.Array, kernel_IxO: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """``x @ kernel`` in `dtype`, in the form that XLA's CPU backend is fastest at.

    The kernel's gradient is the product of a transposed copy of ``x``: in place it takes up to 2.6 times as long, most
    where kernels are wide, as the LM head's is. Products of bfloat16 are added up and handed over in float32: those
    that are asked for in bfloat16 make no use of the processor's instructions for it.
    """
    return jnp.dot(x_NxI, kernel_IxO, preferred_element_type=jnp.float32).astype(dtype)


def _cpu_matmul_forward(
    x_NxI: jax.Array, kernel_IxO: jax.Array, dtype: jnp.dtype
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return cpu_matmul(x_NxI, kernel_IxO, dtype), (x_NxI, kernel_IxO)


def _cpu_matmul_backward(
    _dtype: jnp.dtype, saved: tuple[jax.Array, jax.Array], dy_NxO: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x_NxI, kernel_IxO = saved
    dtype, product = x_NxI.dtype, functools.partial(jnp.dot, preferred_element_type=jnp.float32)
    copied = _transposed_copy if dtype == jnp.bfloat16 else jnp.transpose
    dx_NxI = product(dy_NxO.astype(dtype), copied(kernel_IxO))
    return dx_NxI.astype(dtype), product(_transposed_copy(x_NxI), dy_NxO.astype(dtype)).astype(dtype)


def _transposed_copy(x_NxM: jax.Array) -> jax.Array:
    """What XLA would else leave in place and read across."""
    return jax.lax.optimization_barrier(with_layout_constraint(x_NxM.T, Layout((0, 1))))


cpu_matmul.defvjp(_cpu_matmul_forward, _cpu_matmul_backward)


class Linear(nn.Module):
    """``x @ kernel + bias``.

    `on_cpu` runs the matmul in two dimensions, which XLA's CPU backend does twice as fast. Elsewhere rows and tokens
    stay apart, because both may be divided among devices.
    """

    features: int
    use_bias: bool
    dtype: jnp.dtype
    on_cpu: bool
    init_scale: float = 1.0

    @nn.compact
    def __call__(self, x_BxTxI: jax.Array) -> jax.Array:
        d_in = x_BxTxI.shape[-1]
        init = nn.initializers.normal(self.init_scale / math.sqrt(d_in))
        kernel_IxO = self.param("kernel", init, (d_in, self.features), jnp.float32)
        x_BxTxI, kernel_IxO = x_BxTxI.astype(self.dtype), kernel_IxO.astype(self.dtype)
        y = cpu_matmul(x_BxTxI.reshape(-1, d_in), kernel_IxO, self.dtype) if self.on_cpu else x_BxTxI @ kernel_IxO
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(self.dtype)
        return y.reshape(*x_BxTxI.shape[:-1], self.features)


def _norm(config: ModelConfig, name: str) -> nn.Module:
    if config.norm == "layernorm":
        return nn.LayerNorm(epsilon=1e-5, use_bias=config.biases, dtype=config.dtype, name=name)
    return nn.RMSNorm(epsilon=1e-5, dtype=config.dtype, name=name)


class Block(nn.Module):
    """One layer: attention and MLP, each behind a norm and added to the residual stream.

    If asked to `keep` them, it also returns the keys (rotated) and values of its tokens, ``[B, T, H, K]`` each. With
    `read_BxM` it returns the stream of the tokens at these places only, ``[B, M, D]``, and computes no other's.
    """

    config: ModelConfig
    mesh: Mesh | None
    keep: bool

    @nn.compact
    def __call__(
        self,
        x_BxTxD: jax.Array,
        before: tuple[tuple[jax.Array, jax.Array], ...],
        before_is_real: tuple[jax.Array, ...],
        visibility: attention.Visibility,
        angles: tuple[jax.Array, jax.Array],
        read_BxM: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        c = self.config
        dtype = jnp.dtype(c.dtype)
        # Projections into the residual stream start smaller, so that its variance at initialization doesn't grow with
        # depth.
        residual_scale = 1 / math.sqrt(2 * c.n_layer)

        def linear(features: int, name: str, init_scale: float = 1.0) -> Linear:
            return Linear(features, c.biases, dtype, sharding.on_cpu(self.mesh), init_scale, name=name)

        place = sharding.Activations(self.mesh, c.shard_sequence)

        def heads(y_BxTxD: jax.Array, name: str) -> jax.Array:
            projected_BxTxD = place.features(linear(c.d_model, name)(y_BxTxD))
            return projected_BxTxD.reshape(*y_BxTxD.shape[:2], c.n_head, c.head_dim)

        y_BxTxD = place.whole(_norm(c, "attention_norm")(x_BxTxD))
        k, v = heads(y_BxTxD, "key"), heads(y_BxTxD, "value")
        q_angles = angles
        if read_BxM is not None:
            x_BxTxD, y_BxTxD, q_angles = (_at(read_BxM, x) for x in (x_BxTxD, y_BxTxD, angles))
            visibility = attention.visibility(_at(read_BxM, visibility.queries), visibility.keys)
        q = heads(y_BxTxD, "query")
        if c.positions == "rotary":
            q, k = rotate(q, q_angles), rotate(k, angles)
        if before:
            blocks = [KeyValues(*kv, real) for kv, real in zip(before, before_is_real, strict=True)]
            assert visibility.mask is not None
            attended_BxTxHxK = attend_after(blocks, q, k, v, visibility.mask)
        else:
            attended_BxTxHxK = attention.attend(q, k, v, visibility)
        attended_BxTxD = place.features(attended_BxTxHxK.reshape(y_BxTxD.shape))
        attended_BxTxD = place.residual(linear(c.d_model, "attention_out", residual_scale)(attended_BxTxD))

        z_BxTxD = x_BxTxD if c.residual == "parallel" else x_BxTxD + attended_BxTxD
        z_BxTxD = place.whole(_norm(c, "mlp_norm")(z_BxTxD))
        h_BxTxF = nn.gelu(place.features(linear(c.d_ff, "mlp_in")(z_BxTxD)), approximate=False)
        added_BxTxD = place.residual(linear(c.d_model, "mlp_out", residual_scale)(h_BxTxF))
        return x_BxTxD + attended_BxTxD + added_BxTxD, (k, v) if self.keep else None


def _at(read_BxM: jax.Array, tree: Any) -> Any:
    """Arrays ``[B, T, ...]`` at some places of each row, ``[B, M, ...]``."""

    def at(x_BxT: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x_BxT, read_BxM.reshape(*read_BxM.shape, *[1] * (x_BxT.ndim - 2)), axis=1)

    return jax.tree.map(at, tree)


class Transformer(nn.Module):
    """Tokens to hidden states; the heads are the separate functions `lm_logits` and `rewards`."""

    config: ModelConfig
    mesh: Mesh | None = None

    @nn.compact
    def __call__(
        self,
        tokens_BxT: jax.Array,
        segment_ids_BxT: jax.Array,
        branch_ids_BxT: jax.Array,
        positions_BxT: jax.Array,
        cache: Cache | None = None,
        read_BxM: jax.Array | None = None,
    ) -> tuple[jax.Array, KeyValues | None]:
        """Returns hidden states ``[B, T, D]`` after the last norm, in the compute dtype, and, if a cache was given, be
        it empty, the keys and values of these tokens."""
        c = self.config
        sharding.check_mesh(self.mesh, heads=c.n_head)
        init = nn.initializers.normal(0.02)
        embedding_VxD = self.param("embedding", init, (c.vocab_size, c.d_model), jnp.float32)
        # The table is smaller than what a large batch would look up in its parts.
        place = sharding.Activations(self.mesh, c.shard_sequence)
        table_VxD = sharding.gather_once(embedding_VxD, c.dtype, self.mesh)
        look_up = lambda table_VxD, tokens_BxT: table_VxD[tokens_BxT].astype(c.dtype)  # noqa: E731
        x_BxTxD = place.features(sharding.by_rows(self.mesh, look_up, table_VxD, tokens_BxT))
        if c.positions == "learned":
            table_PxD = self.param("position_embedding", init, (c.max_positions, c.d_model), jnp.float32)
            x_BxTxD += table_PxD.astype(c.dtype)[positions_BxT]
        layout = attention.Layout(segment_ids_BxT, branch_ids_BxT, positions_BxT)
        length = tokens_BxT.shape[1]
        kind = "plain" if cache else attention.choose(c.attention, c.head_dim, c.dtype, length, length, self.mesh)
        visibility = attention.visibility(layout, layout, kind, self.mesh)
        angles = rotary_angles(positions_BxT, int(c.head_dim * c.rotary_fraction) // 2 * 2, c.rotary_base)
        # Without the barrier XLA computes both anew in every operation of every layer that reads them.
        visibility, angles = jax.lax.optimization_barrier((visibility, angles))
        block: Any = Block
        if c.remat != "none":
            policies = jax.checkpoint_policies
            dots = policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(attention.SAVED)
            policy = None if c.remat == "full" else policies.save_from_both_policies(*dots)
            block = nn.remat(Block, prevent_cse=False, policy=policy)
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=c.n_layer - (read_BxM is not None),
            unroll=c.unroll,
        )
        x_BxTxD = place.residual(x_BxTxD)
        before = tuple((block.keys, block.values) for block in cache or ())
        before_is_real = tuple(block.real for block in cache or ())
        keep = cache is not None
        stack = blocks(c, self.mesh, keep, name="blocks")
        x_BxTxD, kept = stack(x_BxTxD, before, before_is_real, visibility, angles)
        if read_BxM is not None:  # only in the last layer are the states of other places of no use
            last = block(c, self.mesh, keep, name="last_block")
            x_BxTxD, _ = last(x_BxTxD, before, before_is_real, visibility, angles, read_BxM)
        hidden_BxTxD = place.whole(_norm(c, "final_norm")(x_BxTxD))
        return hidden_BxTxD, KeyValues(kept[0], kept[1], segment_ids_BxT > 0) if keep else None


def init_params(config: ModelConfig, key: jax.Array, score_head: bool) -> Params:
    """Float32 parameters: ``transformer`` (blocks stacked by layer), ``lm_head`` and, if asked for, ``score_head``.

    The score head starts small but not at zero: at zero every pair would tie until the first update.
    """
    trunk_key, lm_key, score_key = jax.random.split(key, 3)
    dummy_1x1 = jnp.zeros((1, 1), jnp.int32)
    plain = dataclasses.replace(config, attention="plain")  # kernels don't take one token
    trunk = Transformer(plain).init(trunk_key, dummy_1x1, dummy_1x1, dummy_1x1, dummy_1x1)["params"]
    d, vocab = config.d_model, config.vocab_size
    params = {"transformer": trunk, "lm_head": {"kernel": jax.random.normal(lm_key, (d, vocab)) / math.sqrt(d)}}
    if score_head:
        params["score_head"] = init_score_head(config, score_key)
    return params


def init_score_head(config: ModelConfig, key: jax.Array) -> Params:
    """A fresh scalar head: ``kernel`` ``[D]`` with a standard deviation of ``0.1 / sqrt(D)``, ``bias`` ``[]``."""
    kernel_D = 0.1 * jax.random.normal(key, (config.d_model,)) / math.sqrt(config.d_model)
    return {"kernel": kernel_D, "bias": jnp.zeros(())}


def hidden_states(
    config: ModelConfig,
    params: Params,
    tokens_BxT: jax.Array,
    segment_ids_BxT: jax.Array,
    branch_ids_BxT: jax.Array,
    positions_BxT: jax.Array,
    mesh: Mesh | None = None,
    read_BxM: jax.Array | None = None,
) -> jax.Array:
    """The transformer applied: int32 ``[B, T]`` each to hidden states ``[B, T, D]`` in the compute dtype.

    Args:
      mesh: what the rows and the parameters are divided over; None for a single device.
      read_BxM: places in each row whose hidden states ``[B, M, D]`` are wanted, for less work in the last layer; None
        for all.
    """
    trunk, layout = params["transformer"], (segment_ids_BxT, branch_ids_BxT, positions_BxT)
    if read_BxM is not None:
        first, last = (jax.tree.map(lambda x, i=i: x[i], trunk["blocks"]) for i in (slice(-1), -1))
        trunk = trunk | {"blocks": first, "last_block": last}
    hidden_BxTxD, _ = Transformer(config, mesh).apply({"params": trunk}, tokens_BxT, *layout, None, read_BxM)
    return cast(jax.Array, hidden_BxTxD)  # apply's type also allows for mutated variables, which are not asked for


def hidden_states_after(
    config: ModelConfig,
    params: Params,
    cache: Cache,
    tokens_BxT: jax.Array,
    segment_ids_BxT: jax.Array,
    branch_ids_BxT: jax.Array,
    positions_BxT: jax.Array,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, KeyValues]:
    """`hidden_states` of tokens that go on after a `cache`, which may be empty, and what to cache of them."""
    variables, layout = {"params": params["transformer"]}, (segment_ids_BxT, branch_ids_BxT, positions_BxT)
    output = Transformer(config, mesh).apply(variables, tokens_BxT, *layout, cache)
    return cast(tuple[jax.Array, KeyValues], output)


def check_length(config: ModelConfig, n_tokens: int) -> None:
    """Raises UserError if a text of so many tokens has places that the model knows no position of."""
    if config.positions == "learned" and n_tokens > config.max_positions:
        raise UserError(f"texts of {n_tokens} tokens: the model has learned positions of {config.max_positions} tokens")


def lm_logits(params: Params, hidden_NxD: jax.Array, mesh: Mesh | None = None) -> jax.Array:
    """Next-token logits, float32 ``[N, V]``, of hidden states ``[N, D]``; `mesh` as for `hidden_states`."""
    kernel_DxV = params["lm_head"]["kernel"].astype(hidden_NxD.dtype)
    if sharding.on_cpu(mesh):
        return cpu_matmul(hidden_NxD, kernel_DxV, jnp.dtype(jnp.float32))
    return jnp.dot(hidden_NxD, kernel_DxV, preferred_element_type=jnp.float32)


def rewards(params: Params, hidden_xD: jax.Array) -> jax.Array:
    """Scalar scores, float32 ``[...]``, of hidden states ``[..., D]`` (section 3: the value head)."""
    head = params["score_head"]
    return hidden_xD.astype(jnp.float32) @ head["kernel"] + head["bias"]


def abstract_params(config: ModelConfig, score_head: bool = False) -> Params:
    """The parameter tree as shapes, without making an array; any rung, on any machine."""
    params = jax.tree.map(lambda x: x, _abstract_params(config))
    return params if score_head else {name: tree for name, tree in params.items() if name != "score_head"}


@functools.lru_cache(maxsize=64)
def _abstract_params(config: ModelConfig) -> Params:
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0), True))  # no device is used


@functools.cache
def count_params(config: ModelConfig) -> dict[str, int]:
    """Parameters of the real tree by kind.

    Returns:
      ``n`` (the matrices of the blocks, ``12 * n_layer * d_model**2``: the paper's "number of parameters"),
      ``gains_and_biases``, ``embeddings`` (input, positions and LM head), and ``total``.
    """
    counts = {"n": 0, "gains_and_biases": 0, "embeddings": 0}
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params(config)):
        names = [key.key for key in path]
        if "blocks" in names and names[-1] == "kernel":
            counts["n"] += leaf.size
        elif names[-1] in ("embedding", "position_embedding") or "lm_head" in names:
            counts["embeddings"] += leaf.size
        else:
            counts["gains_and_biases"] += leaf.size
    return counts | {"total": sum(counts.values())}


def paper_flops(config: ModelConfig, tokens: float = PAPER_TOKENS) -> float:
    """Training FLOPs by the paper's convention (table 1): ``6 * N * tokens``, without embeddings and attention."""
    return 6.0 * count_params(config)["n"] * tokens


def executed_flops_per_token(config: ModelConfig, length: int) -> float:
    """Multiply-adds times two that a training step really executes for a token, forward and backward.

    Matrices of the blocks and the LM head, and attention over full rows of ``length`` tokens (masked scores are
    computed too). Recomputation by remat is not counted.
    """
    n = count_params(config)["n"]
    head = config.d_model * config.vocab_size
    return 6.0 * (n + head) + 12.0 * config.n_layer * config.d_model * length
