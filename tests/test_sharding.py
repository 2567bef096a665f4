"""The table of rules and the mesh; and, in a process of its own, eight devices against one."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import reference
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from reference import tiny

from hhh_jax import sharding, train
from hhh_jax.errors import UserError

P = PartitionSpec
HERE = Path(__file__).parent


def mesh_of(data: int, fsdp: int, tensor: int) -> AbstractMesh:
    return AbstractMesh((data, fsdp, tensor), sharding.AXES, axis_types=(AxisType.Auto,) * 3)


def abstract_state(**changes):
    config = reference.step_config("preference", tiny(**changes), n_seeds=2, select=True, weight_decay=0.1, clip=1.0)
    return train.abstract_state(config)


@pytest.mark.parametrize(
    "changes", [{}, {"positions": "learned", "norm": "rmsnorm"}, {"biases": False, "residual": "parallel"}]
)
def test_every_array_of_a_state_has_a_rule(changes):
    state = abstract_state(**changes)
    shardings = sharding.state_shardings(state, mesh_of(2, 2, 2))
    assert jax.tree.structure(shardings) == jax.tree.structure(state)
    specs = jax.tree.map(lambda s: s.spec, shardings["params"], is_leaf=lambda x: hasattr(x, "spec"))
    blocks = specs["transformer"]["blocks"]
    assert blocks["query"]["kernel"] == blocks["mlp_in"]["kernel"] == P(None, None, "fsdp", "tensor")
    assert blocks["attention_out"]["kernel"] == blocks["mlp_out"]["kernel"] == P(None, None, "tensor", "fsdp")
    assert specs["transformer"]["embedding"] == specs["lm_head"]["kernel"] == P(None, "fsdp", "tensor")
    # Moments and the best parameters lie where the parameters do.
    for other in (shardings["opt_state"][1].mu, shardings["opt_state"][1].nu, shardings["best"]["params"]):
        assert jax.tree.leaves(other) == jax.tree.leaves(shardings["params"])


def test_every_matrix_is_divided_among_all_devices_but_data():
    """What one device holds of the state is a quarter, up to gains and biases."""
    state = abstract_state(aspect=64)
    shardings = sharding.state_shardings(state, mesh_of(2, 2, 2))
    whole = sum(leaf.size for leaf in jax.tree.leaves(state))
    held = sum(
        np.prod(s.shard_shape(leaf.shape))
        for leaf, s in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True)
    )
    assert held / whole == pytest.approx(0.25, rel=0.03)


def test_a_parameter_without_a_rule_is_named():
    state = {"params": {"transformer": {"surprise": jax.ShapeDtypeStruct((1, 4), np.float32)}}}
    with pytest.raises(
        UserError, match=r"no sharding rule matches parameter params/transformer/surprise of shape \(1, 4\)"
    ):
        sharding.state_shardings(state, mesh_of(1, 1, 1))
    # A rule matches whole names, not their ends.
    state = {"params": {"my_score_head": {"kernel": jax.ShapeDtypeStruct((1, 4), np.float32)}}}
    with pytest.raises(UserError, match="my_score_head/kernel"):
        sharding.state_shardings(state, mesh_of(1, 1, 1))


def test_a_mesh_that_does_not_divide_a_parameter_is_named():
    with pytest.raises(UserError, match=r"parameter \S+/kernel of shape \(2, .* not divisible by mesh axis fsdp = 3"):
        sharding.state_shardings(abstract_state(), mesh_of(1, 3, 1))


@pytest.mark.parametrize(
    ("shape", "wanted", "near"),
    [
        ((8, 6), (1, 2, 4), (1, 4, 2)),  # 4 doesn't divide 6
        ((6, 8), (1, 8, 1), (1, 2, 4)),
        ((8, 3), (1, 1, 8), (1, 8, 1)),
        ((7, 3), (1, 4, 2), (8, 1, 1)),
    ],
)
def test_the_nearest_mesh_that_works_is_named(shape, wanted, near):
    state = {"params": {"lm_head": {"kernel": jax.ShapeDtypeStruct((1, *shape), np.float32)}}}
    message = rf"lm_head/kernel of shape \(1, .*; the nearest mesh that works is .* = {re.escape(str(near))}$"
    with pytest.raises(UserError, match=message):
        sharding.state_shardings(state, mesh_of(*wanted))
    sharding.state_shardings(state, mesh_of(*near))


def test_rows_and_heads_that_a_mesh_does_not_divide():
    sharding.check_mesh(mesh_of(2, 16, 8), rows=64, accumulate=2)
    with pytest.raises(UserError, match=r"64 rows .* data x fsdp = 64 times 2 microbatches; .* = \(1, 32, 8\)$"):
        sharding.check_mesh(mesh_of(2, 32, 4), rows=64, accumulate=2)
    sharding.check_mesh(mesh_of(4, 1, 2), heads=6)
    with pytest.raises(UserError, match=r"6 attention heads .* tensor = 4; .* = \(1, 4, 2\)$"):
        sharding.check_mesh(mesh_of(1, 2, 4), heads=6)


def test_the_nearest_mesh_works_for_rows_heads_and_parameters_together():
    state = {"params": {"lm_head": {"kernel": jax.ShapeDtypeStruct((1, 768, 65536), np.float32)}}}
    # 64 rows alone would take (1, 64, 4), of which 6 heads can't make use.
    with pytest.raises(UserError, match=r"^a batch of 64 rows cannot be .* = 256; no mesh of 256 devices works$"):
        sharding.check_mesh(mesh_of(1, 256, 1), rows=64, heads=6, state=state)
    with pytest.raises(UserError, match=r"^a batch of 96 rows .*; the nearest mesh that works is .* = (.*)$") as raised:
        sharding.check_mesh(mesh_of(1, 64, 1), rows=96, heads=6, state=state)
    near = tuple(map(int, re.findall(r"\d+", str(raised.value).rsplit("=", 1)[1])))
    assert near == (1, 32, 2)
    sharding.check_mesh(mesh_of(*near), rows=96, heads=6, state=state)


def test_meshes():
    assert sharding.make_mesh().shape == {"data": len(jax.devices()), "fsdp": 1, "tensor": 1}
    assert sharding.make_mesh(1, -1, 1).axis_types == (AxisType.Auto,) * 3
    for sizes in ((2, 1, 1), (1, 3, -1), (-1, -1, 1)):
        with pytest.raises(UserError, match=r"mesh \(data, fsdp, tensor\) = .* does not cover 1 devices"):
            sharding.make_mesh(*sizes)
    assert sharding.row_multiple(mesh_of(2, 4, 8)) == 8


# Eight devices

CASES = {
    "8x1x1": ((8, 1, 1), {}),
    "1x8x1": ((1, 8, 1), {}),
    "1x1x8": ((1, 1, 8), {}),
    "2x2x2": ((2, 2, 2), {}),
    "2x2x2, whole residuals": ((2, 2, 2), {"shard_sequence": False}),
    "1x4x2, logits in chunks": ((1, 4, 2), {"logit_bytes": 4 * 4 * 8 * 32}),
}
"""Meshes (data, fsdp, tensor) and options. Where tensor is above 1, residuals are divided along tokens."""


@pytest.fixture(scope="module")
def differences() -> dict:
    """``{(what, case): relative differences of loss and gradient}``."""
    quick = (f"--{flag}={value}" for flag, value in reference.QUICK_TO_COMPILE.items())
    flags = " ".join(["--xla_force_host_platform_device_count=8", *quick])
    done = subprocess.run(
        [sys.executable, HERE / "eight_devices.py", json.dumps(CASES)],
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(HERE.parent)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = (json.loads(line) for line in done.stdout.splitlines())
    return {(what, case): rest for what, case, *rest in lines}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("objective", reference.OBJECTIVES)
def test_eight_devices_equal_one(differences, objective, case):
    loss, gradient = differences[objective, case]
    assert loss < 1e-6 and gradient < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("what", ["step", "step of rewards alone"])
def test_a_step_of_two_seeds_and_two_microbatches_on_eight_devices_equals_one(differences, what):
    loss, gradient = differences[what, "2x2x2"]
    assert loss < 1e-6 and gradient < 1e-5


@pytest.mark.slow
def test_splash_on_its_own_rows_and_heads_equals_plain_attention(differences):
    output, gradient = differences["splash", "2x2x2"]
    assert output < 1e-5 and gradient < 1e-5
