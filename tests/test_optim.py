"""Learning rates and the optimizer by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from reference import tiny

from hhh_jax.model import PAPER_LADDER, ModelConfig, count_params
from hhh_jax.optim import learning_rate, make_optimizer, pretraining_lr


def rates(total: int, **changes) -> list[float]:
    settings = {"peak": 2.0, "warmup_steps": 4, "schedule": "linear", "final_fraction": 0.1} | changes
    return [learning_rate(step, total, **settings) for step in range(total)]


def test_schedules_by_hand():
    warmup = [0.5, 1.0, 1.5, 2.0]
    assert rates(7, schedule="constant") == pytest.approx([*warmup, 2.0, 2.0, 2.0])
    assert rates(7, schedule="linear") == pytest.approx([*warmup, 2.0, 1.1, 0.2])
    assert rates(7, schedule="cosine") == pytest.approx([*warmup, 2.0, 1.1, 0.2])
    # A quarter of the way down: linear 0.2 + 1.8 * 3/4, cosine 0.2 + 1.8 * (1 + cos(pi / 4)) / 2.
    assert rates(9, schedule="linear")[5] == pytest.approx(1.55)
    assert rates(9, schedule="cosine")[5] == pytest.approx(0.2 + 0.9 * (1 + 0.5**0.5))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("total, warmup", [(1, 0), (1, 1), (2, 1), (5, 5), (3, 10), (50, 0)])
def test_schedules_stay_between_zero_and_the_peak(schedule, total, warmup):
    values = rates(total, schedule=schedule, warmup_steps=warmup)
    assert len(values) == total and all(0 < value <= 2.0 for value in values)
    after = values[warmup:]
    assert after == sorted(after, reverse=True)
    if schedule != "constant" and len(after) > 1:
        assert (after[0], after[-1]) == pytest.approx((2.0, 0.2))


def test_pretraining_rates_are_near_gpt_3s():
    """Table 2.1 of Brown et al. 2020, whose models have these numbers of non-embedding parameters."""
    table = {  # (layers, width): rate
        (12, 768): 6.0e-4, (24, 1024): 3.0e-4, (24, 1536): 2.5e-4, (24, 2048): 2.0e-4, (32, 2560): 1.6e-4,
        (32, 4096): 1.2e-4, (40, 5140): 1.0e-4,
    }  # fmt: skip
    for (layers, width), rate in table.items():
        assert pretraining_lr(12 * layers * width**2) == pytest.approx(rate, rel=0.2)


def test_pretraining_rates_fall_as_the_width_grows():
    sizes = {n: count_params(ModelConfig(n))["n"] for n in PAPER_LADDER.values()}
    assert [pretraining_lr(size) * n for n, size in sizes.items()] == pytest.approx(
        [pretraining_lr(sizes[1])] * len(sizes)
    )


def adamw(params, gradients, lr, b1, b2, eps, weight_decay, clip, decayed):
    """Three lines of Loshchilov and Hutter in float64, behind clipping by the global norm."""
    m, v = {k: 0.0 for k in params}, {k: 0.0 for k in params}
    for t, g in enumerate(gradients, start=1):
        norm = np.sqrt(sum((x**2).sum() for x in g.values()))
        for k in params:
            g_k = g[k] * min(1.0, clip / norm) if clip else g[k]
            m[k], v[k] = b1 * m[k] + (1 - b1) * g_k, b2 * v[k] + (1 - b2) * g_k**2
            step = m[k] / (1 - b1**t) / (np.sqrt(v[k] / (1 - b2**t)) + eps)
            params[k] = params[k] - lr * (step + (weight_decay * params[k] if k in decayed else 0))
    return params


@pytest.mark.parametrize("clip, weight_decay", [(1.0, 0.1), (0.0, 0.0)])
def test_updates_are_adamw_by_hand(clip, weight_decay):
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 4), "bias": (4,), "scale": (4,), "embedding": (5, 3)}
    start = {k: rng.standard_normal(shape) for k, shape in shapes.items()}
    gradients = [{k: scale * rng.standard_normal(shape) for k, shape in shapes.items()} for scale in (0.05, 1.0, 30.0)]
    optimizer = make_optimizer(0.9, 0.95, 1e-8, weight_decay, clip)

    @jax.jit
    def run(params):
        state = optimizer.init(params)
        for gradient in gradients:
            updates, state = optimizer.update(jax.tree.map(jnp.float32, gradient), state, params)
            params = jax.tree.map(lambda p, u: p + 0.01 * u, params, updates)
        return params

    found = run(jax.tree.map(jnp.float32, start))
    expected = adamw(start, gradients, 0.01, 0.9, 0.95, 1e-8, weight_decay, clip, ("kernel", "embedding"))
    reference.assert_trees_close(found, expected, 1e-5)


def test_weight_decay_acts_on_matrices_only():
    """With no gradient, what moves is what decays."""
    params = reference.random_params(tiny(positions="learned"))
    optimizer = make_optimizer(0.9, 0.95, 1e-8, 0.5, 0.0)
    still = jax.tree.map(np.zeros_like, params)
    updates = reference.jit(lambda params: optimizer.update(still, optimizer.init(params), params)[0])(params)
    moved = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, update in jax.tree_util.tree_leaves_with_path(updates)
        if np.abs(update).max() > 0
    }
    blocks = {f"blocks/{name}/kernel" for name in ("query", "key", "value", "attention_out", "mlp_in", "mlp_out")}
    trunk = {f"transformer/{name}" for name in blocks | {"embedding", "position_embedding"}}
    assert moved == trunk | {"lm_head/kernel"}
    np.testing.assert_allclose(updates["lm_head"]["kernel"], -0.5 * params["lm_head"]["kernel"], rtol=1e-6)
