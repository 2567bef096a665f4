"""Run by test_sharding with eight fake devices: each objective on one of them and on meshes of all eight.

Prints JSON lines ``[what, case, relative difference of the loss, of the gradient]``; what is the name of an objective,
"step" for one whole update of two seeds with two microbatches, "step of rewards alone" for the same without a
language-modeling term, or "splash" for attention alone, by the TPUs' kernel.
"""

import dataclasses
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import reference
from jax.sharding import AxisType, Mesh

from hhh_jax import attention, sharding, train

MODEL = reference.tiny(n_layer=1, head_dim=2)  # eight heads


def stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *x: np.stack(x), *trees)


def all_objectives(
    mesh: Mesh, params: Any, batch: Any, shard_sequence: bool = True, logit_bytes: int = 2**28
) -> tuple[np.ndarray, Any]:
    """Losses ``[6]`` and gradients ``[6, ...]``, parameters and rows divided as the rules say."""
    model = dataclasses.replace(MODEL, shard_sequence=shard_sequence)
    shapes = jax.eval_shape(lambda x: x, {"params": params})
    shardings = sharding.state_shardings(shapes, mesh)["params"], sharding.batch_sharding(mesh)

    def of_one_seed(params: Any, batch: Any) -> tuple[jax.Array, Any]:
        return reference.all_objectives(model, *jax.tree.map(lambda x: x[0], (params, batch)), mesh, logit_bytes)

    losses, gradients = reference.jit(of_one_seed, in_shardings=shardings)(params, batch)
    return np.asarray(losses), jax.tree.map(np.asarray, gradients)


def whole_step(mesh: Mesh, params: Any, batch: Any, mu: float) -> tuple[np.ndarray, Any]:
    """Losses and gradients of two seeds: the first moments after one update from zero, by 1 - b1."""
    config = reference.step_config("preference", MODEL, n_seeds=2, accumulate=2, mu=mu)
    config = dataclasses.replace(config, mesh=mesh)
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), train.abstract_state(config)) | {"params": params}
    state, metrics = train.compiled_step(config, False)(state, batch, np.zeros(2, np.float32))
    moments = state["opt_state"][1].mu
    if mesh.shape["fsdp"] > 1:
        assert not moments["transformer"]["embedding"].is_fully_replicated
    return np.asarray(metrics["loss"]), jax.tree.map(lambda x: np.asarray(x) / (1 - config.b1), moments)


def splash(mesh: Mesh, kind: str) -> tuple[np.ndarray, Any]:
    """Attention's output and its gradient by the queries on rows of pairs, by the kernel `kind`."""
    batch = reference.example_batch(8, 10)
    fields = (batch.segment_ids, batch.branch_ids, batch.positions)
    layout = attention.Layout(*(np.pad(x, ((0, 0), (0, 128 - x.shape[1]))) for x in fields))
    q_BxTxHxK, k_BxTxHxK, v_BxTxHxK = np.random.default_rng(0).normal(size=(3, 8, 128, 2, 128)).astype(np.float32)

    def attended(q_BxTxHxK: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = attention.attend(q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, attention.visibility(layout, layout, kind, mesh))
        y *= (layout.segment_ids > 0)[..., None, None]
        return (y**2).sum(), y

    gradient, y = reference.jit(jax.grad(attended, has_aux=True))(jnp.asarray(q_BxTxHxK))
    return np.asarray(y), np.asarray(gradient)


def difference(gradient: Any, expected: Any) -> float:
    """The largest one of any array, relative to that array's largest value."""
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True)
    return max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-3)) for a, b in pairs)


def main() -> None:
    devices = np.array(jax.devices())
    assert devices.size == 8
    one = Mesh(devices[:1].reshape(1, 1, 1), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    params = [reference.random_params(MODEL, seed) for seed in (0, 1)]
    batches = [reference.example_batch(16, 20, seed) for seed in (0, 1)]

    alone = all_objectives(one, stacked(params[:1]), stacked(batches[:1]))
    for case, (sizes, options) in json.loads(sys.argv[1]).items():
        mesh = sharding.make_mesh(*sizes)
        losses, gradients = all_objectives(mesh, stacked(params[:1]), stacked(batches[:1]), **options)
        for i, name in enumerate(reference.OBJECTIVES):
            gradient, expected = (jax.tree.map(lambda x, i=i: x[i], tree) for tree in (gradients, alone[1]))
            loss = abs(float(losses[i] / alone[0][i]) - 1)
            print(json.dumps([name, case, loss, difference(gradient, expected)]), flush=True)

    for what, mu in (("step", 1.0), ("step of rewards alone", 0.0)):
        alone = whole_step(one, stacked(params), stacked(batches), mu)
        losses, gradients = whole_step(sharding.make_mesh(2, 2, 2), stacked(params), stacked(batches), mu)
        loss = float(np.abs(losses / alone[0] - 1).max())
        print(json.dumps([what, "2x2x2", loss, difference(gradients, alone[1])]), flush=True)

    found, expected = splash(sharding.make_mesh(2, 2, 2), "splash"), splash(one, "plain")
    print(json.dumps(["splash", "2x2x2", *map(difference, found, expected)]), flush=True)


main()
