"""The model computed the slow way, one sequence at a time in numpy float64, and what tests share.

Nothing here knows of packing, segments, branches or masks: each sequence is alone.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hhh_jax.data.packing import Batch, TokenizedPair, pack_pairs
from hhh_jax.model import ModelConfig, abstract_params, hidden_states
from hhh_jax.objectives import LOGIT_BYTES, Outputs, make_objective
from hhh_jax.sharding import make_mesh
from hhh_jax.train import StepConfig

EOC, PAD = 0, 1

QUICK_TO_COMPILE = {"xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1}
jit = functools.partial(jax.jit, compiler_options=QUICK_TO_COMPILE)
"""Compiles in half the time; what it gives is the same up to rounding."""


def tiny(**changes: Any) -> ModelConfig:
    """A model of one or two layers, 16 wide each, in float32."""
    fields = {
        "n_layer": 2,
        "aspect": 16,
        "head_dim": 16,
        "vocab_size": 64,
        "max_positions": 32,
        "dtype": "float32",
    }
    return ModelConfig(**(fields | changes))


def random_params(config: ModelConfig, seed: int = 0) -> dict[str, Any]:
    """Parameters with a score head in which nothing is zero or one: gains and biases are drawn as well.

    Matrices keep the variance of what they multiply: larger ones make attention all but hard, and then any float32
    computation is off in its fifth digit.
    """
    rng = np.random.default_rng(seed)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        kind = path[-1].key
        if kind == "kernel":
            spread = leaf.shape[-2 if leaf.ndim > 1 else -1] ** -0.5
        else:
            spread = {"scale": 0.3, "bias": 0.3, "embedding": 1.0, "position_embedding": 1.0}[kind]
        return ((kind == "scale") + spread * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(config, score_head=True))


def _norm(config: ModelConfig, p: dict[str, np.ndarray], x_TxD: np.ndarray) -> np.ndarray:
    if config.norm == "layernorm":
        x_TxD = x_TxD - x_TxD.mean(-1, keepdims=True)
    scale = p["scale"] / np.sqrt((x_TxD**2).mean(-1, keepdims=True) + 1e-5)
    return x_TxD * scale + p.get("bias", 0.0)


def _linear(p: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    return x @ p["kernel"] + p.get("bias", 0.0)


def _rotate(config: ModelConfig, x_TxK: np.ndarray) -> np.ndarray:
    """Numbers j of both rotated halves are one complex number, turned by t * base^(-2j/n)."""
    n = int(config.head_dim * config.rotary_fraction)
    j = np.arange(n // 2)
    turn = np.exp(1j * np.arange(len(x_TxK))[:, None] * config.rotary_base ** (-2 * j / n))
    z = (x_TxK[:, : n // 2] + 1j * x_TxK[:, n // 2 : n]) * turn
    return np.concatenate([z.real, z.imag, x_TxK[:, n:]], axis=1)


def hidden(config: ModelConfig, params: dict[str, Any], tokens: np.ndarray) -> np.ndarray:
    """Hidden states ``[T, D]`` of one sequence by itself."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["transformer"])
    t = len(tokens)
    x = p["embedding"][tokens]
    if config.positions == "learned":
        x = x + p["position_embedding"][:t]
    for layer in range(config.n_layer):
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], p["blocks"])
        y = _norm(config, block["attention_norm"], x)
        q, k, v = (_linear(block[name], y) for name in ("query", "key", "value"))
        heads = []
        for head in range(config.n_head):
            part = slice(head * config.head_dim, (head + 1) * config.head_dim)
            q_h, k_h = q[:, part], k[:, part]
            if config.positions == "rotary":
                q_h, k_h = _rotate(config, q_h), _rotate(config, k_h)
            scores = q_h @ k_h.T / math.sqrt(config.head_dim)
            weights = np.tril(np.exp(scores - scores.max()))
            heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, part])
        attended = _linear(block["attention_out"], np.concatenate(heads, axis=1))
        z = _norm(config, block["mlp_norm"], x if config.residual == "parallel" else x + attended)
        h = _linear(block["mlp_in"], z)
        h = h * 0.5 * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
        x = x + attended + _linear(block["mlp_out"], h)
    return _norm(config, p["final_norm"], x)


def logits(config: ModelConfig, params: dict[str, Any], tokens: np.ndarray) -> np.ndarray:
    """Next-token logits ``[T, V]`` of one sequence by itself."""
    return hidden(config, params, tokens) @ np.asarray(params["lm_head"]["kernel"], np.float64)


def target_logps(config: ModelConfig, params: dict[str, Any], tokens: np.ndarray) -> np.ndarray:
    """Log-probability of each token but the first, given those before it, ``[T - 1]``."""
    z = logits(config, params, tokens)
    z = z - z.max()
    return (z - np.log(np.exp(z).sum(-1, keepdims=True)))[np.arange(len(z) - 1), tokens[1:]]


def reward(config: ModelConfig, params: dict[str, Any], tokens: np.ndarray) -> float:
    """The score head's value at the last token."""
    head = jax.tree.map(lambda x: np.asarray(x, np.float64), params["score_head"])
    return float(hidden(config, params, tokens)[-1] @ head["kernel"] + head["bias"])


def make_pair(name: str, context: list[int], good: list[int], bad: list[int]) -> TokenizedPair:
    """A pair from token ids, end-of-context appended to both sides."""
    context_, good_, bad_ = (np.array(ids, np.int32) for ids in (context, [*good, EOC], [*bad, EOC]))
    return TokenizedPair(name, name, context_, good_, bad_, (len(good), len(bad)))


def random_pairs(rng: np.random.Generator, n: int, longest: int = 6, vocab_size: int = 64) -> list[TokenizedPair]:
    """Pairs with 0 to `longest` tokens of context and 1 to `longest` on each side, which differ at once."""
    pairs = []
    for i in range(n):
        context, good, bad = (rng.integers(2, vocab_size, size) for size in rng.integers((0, 1, 1), longest + 1))
        bad[0] = good[0] + 1 if good[0] + 1 < vocab_size else 2
        pairs.append(make_pair(f"pair {i}", list(context), list(good), list(bad)))
    return pairs


def sides(pair: TokenizedPair) -> tuple[np.ndarray, np.ndarray]:
    """The two whole sequences of a pair, good one first."""
    return np.concatenate([pair.context, pair.good]), np.concatenate([pair.context, pair.bad])


def assert_trees_close(a: Any, b: Any, tolerance: float) -> None:
    """Every leaf within `tolerance` of the largest value of its kind in `b`, leaf by leaf with its name."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert x.shape == y.shape
        worst, scale = np.abs(x - y).max(), max(np.abs(y).max(), 1e-3)
        assert worst <= tolerance * scale, f"{jax.tree_util.keystr(path)}: {worst} of {scale}"


def step_config(objective: str, model: ModelConfig, **changes: Any) -> StepConfig:
    """A step on one device with plain AdamW."""
    fields = {
        "lam": 1.0, "mu": 1.0, "b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.0, "clip": 0.0,
        "accumulate": 1, "n_seeds": 1, "select": False,
    }  # fmt: skip
    return StepConfig(model=model, objective=objective, mesh=make_mesh(), **(fields | changes))


OBJECTIVES = ("lm", "imitation", "preference", "dpo", "distillation", "discriminator")


def example_batch(rows: int, n_pairs: int, seed: int = 0, vocab_size: int = 64) -> Batch:
    """A batch that any objective takes, with ragged masks and, where `n_pairs` is low for `rows`, spare rows."""
    rng = np.random.default_rng(seed)
    batch, _ = pack_pairs(random_pairs(rng, n_pairs, vocab_size=vocab_size), 24, 3, PAD, sizes=[rows])
    batch.is_human = rng.integers(0, 2, batch.tokens.shape).astype(np.float32)
    batch.teacher_ids = np.argsort(rng.random((*batch.tokens.shape, vocab_size)))[..., :4].astype(np.int32)
    batch.teacher_logps = np.log(rng.dirichlet(np.ones(5), batch.tokens.shape)[..., :4]).astype(np.float32)
    batch.reference_logps = rng.uniform(-30, -10, (*batch.pair_mask.shape, 2)).astype(np.float32)
    return batch


LAM, MU = 0.7, 0.5  # of `preference` here


def all_objectives(
    model: ModelConfig, params: Any, batch: Batch, mesh: Mesh | None = None, logit_bytes: int = LOGIT_BYTES
) -> tuple[jax.Array, Any]:
    """Losses ``[6]`` and gradients ``[6, ...]`` of the objectives on a whole batch; to be jitted.

    They share the forward pass, and the backward pass is compiled once for all.
    """

    def losses_of(params: Any) -> jax.Array:
        layout = batch.segment_ids, batch.branch_ids, batch.positions
        hidden = hidden_states(model, params, batch.tokens, *layout, mesh)
        outputs = Outputs(params, hidden, batch, mesh, logit_bytes)
        objectives = [make_objective(name, LAM, MU).values() for name in OBJECTIVES]
        return jnp.stack(
            [
                sum(term.coefficient * term.sum(outputs, batch)[0] / term.weight(batch) for term in terms)
                for terms in objectives
            ]
        )

    losses, pullback = jax.vjp(losses_of, params)
    return losses, jax.lax.map(lambda which: pullback(which)[0], jnp.eye(len(losses)))
