"""Run by test_sharding with eight fake devices: each objective on one of them and on meshes of all eight.

Prints JSON lines ``[what, mesh, relative difference of the loss, of the gradient]``; what is the name of an objective,
or "step" for one whole update of two seeds with two microbatches.
"""

import dataclasses
import json
import sys
from typing import Any

import jax
import numpy as np
import reference
from jax.sharding import AxisType, Mesh

from hhh_jax import sharding, train

MODEL = reference.tiny(n_layer=1)


def stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *x: np.stack(x), *trees)


def all_objectives(mesh: Mesh, params: Any, batch: Any) -> tuple[np.ndarray, Any]:
    """Losses ``[5]`` and gradients ``[5, ...]``, parameters and rows divided as the rules say."""
    shapes = jax.eval_shape(lambda x: x, {"params": params})
    shardings = sharding.state_shardings(shapes, mesh)["params"], sharding.batch_sharding(mesh)

    def of_one_seed(params: Any, batch: Any) -> tuple[jax.Array, Any]:
        return reference.all_objectives(MODEL, *jax.tree.map(lambda x: x[0], (params, batch)))

    losses, gradients = jax.jit(of_one_seed, in_shardings=shardings)(params, batch)
    return np.asarray(losses), jax.tree.map(np.asarray, gradients)


def whole_step(mesh: Mesh, params: Any, batch: Any) -> tuple[np.ndarray, Any]:
    """Losses and gradients of two seeds: the first moments after one update from zero, by 1 - b1."""
    config = reference.step_config("preference", MODEL, n_seeds=2, accumulate=2)
    config = dataclasses.replace(config, mesh=mesh)
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), train.abstract_state(config)) | {"params": params}
    state, metrics = train.compiled_step(config, False)(state, batch, np.zeros(2, np.float32))
    moments = state["opt_state"][1].mu
    if mesh.shape["fsdp"] > 1:
        assert not moments["transformer"]["embedding"].is_fully_replicated
    return np.asarray(metrics["loss"]), jax.tree.map(lambda x: np.asarray(x) / (1 - config.b1), moments)


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
    for sizes in json.loads(sys.argv[1]):
        mesh = sharding.make_mesh(*sizes)
        losses, gradients = all_objectives(mesh, stacked(params[:1]), stacked(batches[:1]))
        for i, name in enumerate(reference.OBJECTIVES):
            gradient, expected = (jax.tree.map(lambda x, i=i: x[i], tree) for tree in (gradients, alone[1]))
            loss = abs(float(losses[i] / alone[0][i]) - 1)
            print(json.dumps([name, sizes, loss, difference(gradient, expected)]), flush=True)

    alone = whole_step(one, stacked(params), stacked(batches))
    losses, gradients = whole_step(sharding.make_mesh(2, 2, 2), stacked(params), stacked(batches))
    loss = float(np.abs(losses / alone[0] - 1).max())
    print(json.dumps(["step", [2, 2, 2], loss, difference(gradients, alone[1])]), flush=True)


main()
