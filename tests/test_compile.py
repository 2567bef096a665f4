"""Collectives read from HLO, topologies by name, and bounds by hand; and, with libtpu, one step compiled for a TPU."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import reference
from reference import tiny

from hhh_jax import config
from hhh_jax.compile import bound, hlo, meshes, step
from hhh_jax.compile.hardware import CHIPS, Topology, parse_topology
from hhh_jax.compile.record import out_of_memory
from hhh_jax.errors import UserError
from hhh_jax.model import executed_flops_per_token

ROOT = Path(__file__).parents[1]

# Collectives

HLO = """HloModule jit_step

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%started (p: bf16[2,8]) -> bf16[8,8] {
  %all-gather.1 = bf16[8,8]{1,0} all-gather(%p), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
}

%going_on (p: bf16[2,8]) -> bf16[8,8] {
  %all-gather.2 = bf16[8,8]{1,0} all-gather(%p), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
}

%all-reduce-scatter.3 (input: f32[16]) -> f32[4] {
  %all-reduce.3 = f32[16]{0} all-reduce(%input), channel_id=3, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}

%body (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %on = bf16[8,8] fusion(%x), kind=kCustom, calls=%going_on
  %all-reduce.4 = (f32[4]{0}, f32[]) all-reduce(%a, %b), channel_id=4, replica_groups=mesh['a'=2,'b'=4] {'b'}
  %go = (f32[8], f32[8], u32[]) collective-permute-start(%c), channel_id=5, source_target_pairs={{0,2},{2,4},{4,0}}
}

%condition (t: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(6)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %async-collective-start.1 = bf16[8,8] fusion(%p), kind=kCustom, calls=%started
  %scattered = f32[4] fusion(%p), kind=kCustom, calls=%all-reduce-scatter.3
  %loop = (s32[], f32[8]) while(%init), condition=%condition, body=%body
  %reduce-scatter.6 = f32[2]{0} reduce-scatter(%p), channel_id=6, replica_groups={{0,1,2,3}}, to_apply=%add
  %nothing = f32[2]{0} all-reduce(%p), channel_id=7, replica_groups={{0},{1}}, to_apply=%add
}
"""


def test_collectives_of_a_program():
    """A gather that goes on in a loop counts once, what a loop of six does six times; groups come in any notation."""
    found = {(c.kind, c.size, c.group, c.times) for c in hlo.collectives(HLO)}
    assert found == {
        ("all-gather", 128, (0, 2, 4, 6), 1),
        ("reduce-scatter", 64, (0, 1, 2, 3), 1),
        ("all-reduce", 20, (0, 1, 2, 3), 6),
        ("collective-permute", 32, (0, 2, 4), 6),
        ("reduce-scatter", 32, (0, 1, 2, 3), 1),
    }


def test_bytes_that_a_device_takes_in():
    """Of n parts a device has one; to reduce for all is to scatter and to gather."""
    assert hlo.received("all-gather", 80, 4) == hlo.received("reduce-scatter", 80, 4) == 60
    assert hlo.received("all-reduce", 80, 4) == 120
    assert hlo.received("collective-permute", 80, 4) == 80


def test_the_collectives_of_a_sharded_matmul():
    """Compiled by XLA for eight devices of this machine: a matrix in eight parts is gathered once."""
    code = """
import jax, sys
from jax.sharding import NamedSharding, PartitionSpec as P
from hhh_jax.compile import hlo
mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
rows, whole = NamedSharding(mesh, P("x")), NamedSharding(mesh, P())
def f(w_LxDxD, x_BxD):
    return jax.lax.scan(lambda x, w: (jax.lax.with_sharding_constraint(x @ w, rows), None), x_BxD, w_LxDxD)[0]
layers = NamedSharding(mesh, P(None, "x"))
step = jax.jit(f, in_shardings=(layers, rows), out_shardings=rows)
w, x = jax.ShapeDtypeStruct((5, 64, 64), "float32"), jax.ShapeDtypeStruct((800, 64), "float32")
found = hlo.collectives(step.lower(w, x).compile().as_text())
print(sum(c.received() * c.times for c in found), {c.kind for c in found}, {len(c.group) for c in found})
"""
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(5 * 64 * 64 * 4 * 7 / 8), "{'all-gather'}", "{8}"]


# Topologies


def test_topologies_by_name():
    assert parse_topology("v5p:4x4x8", 2) == Topology("v5p", "4x4x8", 2)
    assert (parse_topology("v5p:4x4x8", 2).chips, parse_topology("v5e:4x4").chips) == (256, 16)
    assert parse_topology("v5p:4x4x12").chips == 192, "built of cubes"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v9:2x2", "there are v4, v5e"),
        ("v5e", "names no size; there are v5e: 2x2, 2x4"),
        ("v5e:0x4", "names no size"),
        ("v5e:3x5", "no TPU topology v5e:3x5; there are v5e: 2x2, 2x4"),
        ("v5e:4x4x4", "no TPU topology v5e:4x4x4"),
        ("v5p:8x8", "no TPU topology v5p:8x8; there are v5p: 2x2x1"),
        ("v5p:8x8x7", "no TPU topology v5p:8x8x7; there are v5p: 2x2x1, .* and more, by multiples of 4"),
    ],
)
def test_topologies_that_are_not_to_be_had_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse_topology(text)


def test_slices_are_listed_smallest_first():
    for chip in CHIPS.values():
        sizes = [Topology("", size).dims for size in chip.sizes]
        assert [int(np.prod(dims)) for dims in sizes] == sorted({int(np.prod(dims)) for dims in sizes})


def slice_of(topology: Topology) -> list[SimpleNamespace]:
    places = [np.unravel_index(i, topology.dims) for i in range(int(np.prod(topology.dims)))]
    return [SimpleNamespace(coords=coords, slice_index=s) for s in range(topology.slices) for coords in places]


def test_bandwidth_of_a_group_by_its_links():
    """v5p: 600 GB/s through six links, 100 each; whole cubes are closed to a ring, smaller slices are not."""
    ring, open_ended = Topology("v5p", "4x4x8"), Topology("v5p", "2x4x4")
    devices = slice_of(ring)
    line = [d for d in devices if d.coords[:2] == (0, 0)]
    assert bound.link_bandwidth(ring, devices) == 600e9
    assert bound.link_bandwidth(ring, line) == 200e9
    assert bound.link_bandwidth(ring, line[:4]) == 100e9
    assert bound.link_bandwidth(open_ended, slice_of(open_ended)) == 300e9
    assert bound.link_bandwidth(Topology("v5e", "16x16"), slice_of(Topology("v5e", "16x16"))) == 200e9


def test_seconds_of_collectives_by_hand():
    """Two slices of four v5e chips: within a slice 2 links of 50 GB/s, between them 3.125 GB/s a chip."""
    topology = Topology("v5e", "2x2", 2)
    devices = slice_of(topology)
    within = hlo.Collective("all-gather", 4 * 10**9, (0, 1, 2, 3), 3)
    assert bound.collective_seconds([within], topology, devices) == (pytest.approx(3 * 3e9 / 100e9), 0)
    pair = hlo.Collective("all-reduce", 10**9, (0, 4), 1)
    assert bound.collective_seconds([pair], topology, devices) == (0, pytest.approx(1e9 / 3.125e9))
    everyone = hlo.Collective("all-reduce", 4 * 10**9, tuple(range(8)), 1)
    assert bound.collective_seconds([everyone], topology, devices) == (
        pytest.approx(2 * 3e9 / 100e9),
        pytest.approx(1e9 / 3.125e9),
    )


# FLOPs, batches and meshes


def compiled(c, sizes=(1, 1, 1)) -> step.Compiled:
    """What a step would be, without compiling it."""
    this = step.step_config(c, reference.step_config("lm", tiny()).mesh)
    return step.Compiled(this, step.n_rows(c, 1), step.Memory(10, 20, 5, 0, 1, 100), [], 0.0)


def test_flops_of_a_step_are_what_it_executes():
    """XLA's count agrees with the arithmetic; remat adds a forward pass of the layers, less what none needs again."""
    c = config.base_config("pretrain", "13m")
    c.update(batch={"rows": 3}, model={"dtype": "float32", "remat": "full"})
    c.data.row_length = c.model.max_positions = 1024
    this = compiled(c)
    batch = step.abstract_batch(c, this.rows)
    assert batch.tokens.shape == (1, 3, 1024) and batch.score_positions.shape == (1, 3, 0, 2)
    flops = bound.step_flops(this, batch)
    per_token = executed_flops_per_token(this.config.model, 1024)
    assert flops.model == pytest.approx(3 * 1024 * per_token, rel=0.01)
    head = 6 * 512 * 65536
    mlp_out = 4 * 2 * 4 * 512**2
    recomputed = (per_token - head) / 3 - mlp_out + head / 3  # the logits are computed in chunks here, and so twice
    assert flops.executed - flops.model == pytest.approx(3 * 1024 * recomputed, rel=0.01)
    assert flops.counted == flops.model  # this machine's kernel leaves nothing out


def test_a_bound_is_the_slowest_resource():
    topology = Topology("v5e", "2x2")
    c = config.base_config("ranked", "13m")
    this = compiled(c)
    flops = bound.Flops(4 * 197e12, 3 * 197e12, 4 * 197e12)
    found = bound.bound(this, topology, flops, tokens=10**6)
    assert found.by == "compute" and found.seconds["compute"] == 1.0 and found.mfu == 0.75
    assert found.chip_hours == pytest.approx(4e11 / 1e6 * 4 / 3600)
    matrices = 12 * 4 * 512**2
    assert found.seconds["hbm"] == pytest.approx((2 * 30 + 2 * 10 + 2 * 2 * matrices) / 819e9)


@pytest.mark.parametrize("stage", config.STAGES)
def test_every_stage_has_the_shapes_of_its_batches(stage):
    c = config.base_config(stage, "13m")
    rows = step.n_rows(c, 24)
    batch = step.abstract_batch(c, rows)
    assert batch.tokens.shape == (1, rows, c.data.row_length)
    assert rows == {"pmp": 528, "ranked": 48, "binary": 48, "imitation": 48, "dpo": 48}.get(stage, 64)
    assert (batch.teacher_ids is not None) == (c.objective.name == "distillation")
    assert (batch.is_human is not None) == (c.objective.name == "discriminator")


def test_state_bytes_by_hand():
    this = compiled(config.base_config("ranked", "13m")).config
    size = sum(leaf.size for leaf in jax.tree.leaves(step.train.abstract_state(this)["params"]))
    # Parameters, both moments, the best, the gradients; Adam's count of updates, and the best's value and step.
    assert step.state_bytes(this) == 4 * (5 * size + 3)


def test_an_error_says_what_it_needs():
    asked = step._bytes_asked_for
    assert asked("required for HLO temporaries (33.5G) exceeds available HBM (15.75G)") == 33.5 * 2**30
    assert asked("Used 1.25T of 95.74G hbm") == 1.25 * 2**40
    assert asked("no numbers") == asked("Used 33.74M of 16.00M vmem") == 0


def test_the_smallest_topology_may_be_the_same_with_another_mesh(monkeypatch):
    def best(c, topology, quick):
        if topology.chips < fits:
            raise step.OutOfMemory(1)
        return topology.size

    monkeypatch.setattr(meshes, "best", best)
    asked, fits = Topology("v5e", "2x4", 1), 8
    assert meshes.smallest(None, asked, including=True) == "2x4"
    assert meshes.smallest(None, asked, including=False) == "4x4"
    fits = 10**9
    assert meshes.smallest(None, asked, including=True) is None


KEYS = {
    "params", "n_nonembedding", "chips", "mesh", "hbm_bytes_per_chip", "hbm_limit_bytes", "fits", "flops_per_step",
    "collectives", "compile_seconds", "mfu_bound", "bound_by",
}  # fmt: skip
"""What --json always has."""


def test_the_record_of_a_step_that_does_not_fit():
    found = out_of_memory(config.base_config("ranked", "13m"), Topology("tpu7x", "2x2x1"), None, 100 * 2**30)
    assert found.keys() >= KEYS and not found["fits"]
    assert found["n_nonembedding"] == 12 * 4 * 512**2 and found["params"] > 2 * 65536 * 512
    assert found["hbm_bytes_per_chip"] == 200 * 2**30  # two devices a chip


def test_meshes_from_text():
    assert step.parse_mesh("1,16,4") == (1, 16, 4)
    for text in ("1,16", "1,16,x"):
        with pytest.raises(UserError, match="data,fsdp,tensor"):
            step.parse_mesh(text)


# With libtpu

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason='needs libtpu: pip install "hhh_jax[tpu]"'
)


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "hhh_jax.compile", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@needs_libtpu
def test_a_small_rung_compiles_for_a_tpu():
    small = "batch.pairs=4,model.vocab_size=2048,data.row_length=256,data.max_tokens=128"
    done = run(f"--config=configs/ranked.py:0.2m,{small}", "--topology=v5e:2x2", "--json", "--quick")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found.keys() >= KEYS
    assert (found["chips"], found["mesh"], found["fits"]) == (4, [1, 4, 1], True)
    assert found["n_nonembedding"] == 12 * 128**2 and found["params"] > 2 * 2048 * 128
    assert 0 < found["hbm_bytes_per_chip"] < found["hbm_limit_bytes"] == int(15.75 * 2**30)
    per_token = 6 * (12 * 128**2 + 2048 * 128) + 12 * 128 * 256
    assert found["flops_per_step"] == pytest.approx(4 * 256 * per_token, rel=0.1)
    assert found["collectives"] and 0 < found["mfu_bound"] < 1 and found["bound_by"] in ("compute", "hbm", "ici")


@needs_libtpu
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v5e:3x5"], "no TPU topology v5e:3x5; there are v5e: 2x2, 2x4"),
        (["--topology=v5e:2x2", "--mesh=1,1,4"], "1 attention heads cannot be divided among mesh axis tensor = 4"),
        (["--topology=v5e:2x2", "--slices=2", "--mesh=1,8,1"], "data must be a multiple of 2"),
    ],
)
def test_what_cannot_be_compiled_is_refused_in_one_line(arguments, message):
    done = run("--config=configs/pretrain.py:0.2m", *arguments)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.strip().splitlines()) == 1


@needs_libtpu
def test_meshes_are_tried_with_as_little_tensor_as_leaves_each_group_a_row():
    assert meshes.candidates(config.base_config("pretrain", "42m"), Topology("v5e", "4x4")) == [(1, 16, 1), (1, 8, 2)]
    c = config.base_config("pretrain", "52b")
    assert meshes.candidates(c, Topology("v5p", "8x8x8"))[:2] == [(1, 64, 8), (1, 32, 16)]
    assert meshes.candidates(c, Topology("v5p", "4x8x8", 2))[0] == (2, 32, 8)
    with pytest.raises(UserError, match=r"no mesh of 512 devices divides 42m: its 6 heads"):
        meshes.candidates(config.base_config("pretrain", "42m"), Topology("v5p", "8x8x8"))
