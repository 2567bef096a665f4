"""Checkpoints: bit-exact on any mesh, and never without a whole one: after kills, full disks and damage."""

import functools
import hashlib
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hhh_jax.checkpoint import CHECKSUMS, Checkpoints, read_extra, restore_params, steps
from hhh_jax.errors import UserError

EXTRA = {"config": {"lr": 1e-3, "name": "é", "none": None}, "tokenizer": '{"a": [1, 2]}' * 100}


def make_params(seed: int = 0) -> dict[str, Any]:
    """Two seeds of a small model: float32 with awkward values, bfloat16 and integers."""
    any_bits = np.random.default_rng(seed).integers(0, 2**32, (2, 3, 8, 16), dtype=np.uint32)
    w, gain = jnp.asarray(any_bits.view(np.float32)), jnp.ones((2, 3, 8), jnp.bfloat16) / 3
    return {
        "blocks": {"w": w, "gain": gain},
        "embed": jnp.arange(2 * 5 * 8, dtype=jnp.float32).reshape(2, 5, 8) / 7 + seed,
    }


def make_state(seed: int = 0) -> dict[str, Any]:
    """A training state as optax makes it, with empty nodes and named tuples."""
    params = make_params(seed)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    opt_state = jax.vmap(optimizer.init)(params)
    return {"params": params, "opt_state": opt_state, "step": jnp.int32([seed] * 2), "count": jnp.uint8(255)}


def assert_same_bits(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def save_all(directory: Path, *saved: int, keep: int = 2) -> None:
    with Checkpoints(directory, keep=keep) as checkpoints:
        for step in saved:
            checkpoints.save(step, make_state(step), {**EXTRA, "position": step})


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory) -> Path:
    """Steps 10 and 20; for tests that only read, or copy."""
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    save_all(directory, 10, 20)
    return directory


@pytest.fixture
def copied(two_checkpoints, tmp_path) -> Path:
    return Path(shutil.copytree(two_checkpoints, tmp_path / "checkpoints"))


def test_everything_comes_back_bit_for_bit(two_checkpoints):
    with Checkpoints(two_checkpoints) as checkpoints:
        assert checkpoints.latest_step() == 20
        step, state, extra = checkpoints.restore_latest(jax.eval_shape(make_state))
    assert step == 20
    assert_same_bits(state, make_state(20))
    assert extra == {**EXTRA, "position": 20}


def test_a_new_run_has_none(tmp_path):
    with Checkpoints(tmp_path / "new" / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() is None
        assert checkpoints.restore_latest(jax.eval_shape(make_state)) is None
    for read in (read_extra, lambda path: restore_params(path, {})):
        with pytest.raises(UserError, match="checkpoints holds no checkpoint"):
            read(tmp_path / "new" / "checkpoints")


def test_only_the_newest_stay(tmp_path):
    save_all(tmp_path, 1, 2, 3, 4, 5, keep=3)
    assert steps(tmp_path) == [3, 4, 5]
    save_all(tmp_path, 6, keep=1)
    assert steps(tmp_path) == [6]


def test_steps_to_keep_stay(tmp_path):
    with Checkpoints(tmp_path, keep=1, keep_every=4) as checkpoints:
        for step in range(1, 11):
            checkpoints.save(step, {"params": jnp.ones(2)}, {})
    assert steps(tmp_path) == [4, 8, 10]


def test_a_step_is_saved_once(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, make_state(5), {}, wait=True)
        assert steps(tmp_path) == [5]
        with pytest.raises(ValueError, match="already exists"):
            checkpoints.save(5, make_state(5), {})
        with pytest.raises(TypeError, match="not JSON serializable"):
            checkpoints.save(6, make_state(6), {"array": np.zeros(2)})


def test_saved_arrays_may_be_donated_at_once(tmp_path):
    """The thread must write what was saved, not what the next steps put into the same buffers."""

    @functools.partial(jax.jit, donate_argnums=0)
    def advance(params):
        return jax.tree.map(lambda x: x * 1.5 + 1, params)

    params = {str(i): jnp.full((512, 512), i, jnp.float32) for i in range(8)}
    expected = {}
    with Checkpoints(tmp_path, keep=5) as checkpoints:
        for step in range(5):
            expected[step] = jax.tree.map(np.array, params)
            checkpoints.save(step, {"params": params}, {})
            for _ in range(3):
                params = advance(params)
    for step in range(5):
        assert_same_bits(restore_params(tmp_path, jax.eval_shape(lambda: params), step=step), expected[step])


def test_restore_params_reads_only_those(two_checkpoints):
    abstract = jax.eval_shape(make_params)
    assert_same_bits(restore_params(two_checkpoints, abstract), make_params(20))
    assert_same_bits(restore_params(two_checkpoints, abstract, step=10), make_params(10))
    count = restore_params(two_checkpoints, jax.ShapeDtypeStruct((), jnp.uint8), subtree="count")
    assert_same_bits(count, jnp.uint8(255))
    assert read_extra(two_checkpoints)["position"] == 20
    assert read_extra(two_checkpoints, step=10)["position"] == 10
    with pytest.raises(UserError, match="holds no checkpoint of step 15, but of 10, 20"):
        read_extra(two_checkpoints, step=15)


def test_restored_arrays_do_not_change_with_the_files(copied):
    """A memory-mapped array would."""
    params = restore_params(copied, jax.eval_shape(make_params))
    shutil.rmtree(copied)
    assert_same_bits(params, make_params(20))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p | {"head": p["embed"]}, r"params/head is missing there and float32\[2,5,8\] here"),
        (lambda p: {"blocks": p["blocks"]}, r"params/embed is float32\[2,5,8\] there and unknown here"),
        (
            lambda p: p | {"embed": jax.ShapeDtypeStruct((2, 6, 8), jnp.float32)},
            r"params/embed is float32\[2,5,8\] there and float32\[2,6,8\] here",
        ),
        (
            lambda p: p | {"embed": jax.ShapeDtypeStruct((2, 5, 8), jnp.bfloat16)},
            r"params/embed is float32\[2,5,8\] there and bfloat16\[2,5,8\] here",
        ),
        (lambda p: {"other": p}, r"params/blocks/gain is bf.* there and unknown here \(and 5 more\)"),
    ],
)
def test_restore_is_strict(two_checkpoints, change, message):
    state = jax.eval_shape(make_state)
    params = change(state["params"])
    with pytest.raises(UserError, match=message) as error:
        restore_params(two_checkpoints, params)
    assert str(error.value).startswith(f"checkpoint {two_checkpoints}/20 is of another model or optimizer: ")
    with Checkpoints(two_checkpoints) as checkpoints, pytest.raises(UserError, match=message):
        checkpoints.restore_latest(state | {"params": params})


def test_subtree_that_is_not_there(two_checkpoints):
    with pytest.raises(UserError, match=r"ema/embed is missing there and float32\[5\] here$"):
        restore_params(two_checkpoints, {"embed": jax.ShapeDtypeStruct((5,), jnp.float32)}, subtree="ema")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "flip": flip,
    "truncate": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "delete": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_found(copied, damage):
    newest = copied / "20"
    files = [path for item in ("state", "extra") for path in (newest / item).rglob("*") if path.is_file()]
    files.append(newest / CHECKSUMS)
    assert len(files) > 10
    for path in files:
        content = path.read_bytes()
        DAMAGES[damage](path)
        with pytest.warns(UserWarning, match="checkpoints/20 is damaged"):
            assert read_extra(copied)["position"] == 10
        with pytest.warns(UserWarning), pytest.raises(UserError, match=r"is damaged \(20\)"):
            read_extra(copied, step=20)
        path.write_bytes(content)
    assert read_extra(copied)["position"] == 20


def test_a_damaged_checkpoint_is_passed_over_and_moved_aside(copied):
    array = max((copied / "20" / "state").rglob("*"), key=lambda path: path.stat().st_size)
    flip(array)
    with pytest.warns(UserWarning, match="20 is damaged"):
        assert_same_bits(restore_params(copied, jax.eval_shape(make_params)), make_params(10))
    assert steps(copied) == [10, 20]  # a reader moves nothing
    with Checkpoints(copied) as checkpoints:
        with pytest.warns(UserWarning, match=f"checkpoint {copied}/20 is damaged and not used: state/"):
            step, state, extra = checkpoints.restore_latest(jax.eval_shape(make_state))
        assert (step, extra["position"]) == (10, 10)
        assert_same_bits(state, make_state(10))
        checkpoints.save(20, make_state(20), EXTRA)  # the run gets there again
        checkpoints.save(30, make_state(30), EXTRA)
    assert sorted(path.name for path in copied.iterdir()) == ["20", "20.damaged", "30"]


def test_all_damaged_is_an_error_and_moves_nothing(copied):
    for step in ("10", "20"):
        (copied / step / "extra" / "metadata").write_text("{}")
    error = pytest.raises(UserError, match=r"every checkpoint in .* is damaged \(20, 10\); move it away")
    with Checkpoints(copied) as checkpoints, pytest.warns(UserWarning), error:
        checkpoints.restore_latest(jax.eval_shape(make_state))
    assert steps(copied) == [10, 20]


def test_orbax_is_quiet_and_others_are_not(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.INFO)
    save_all(tmp_path, 1)
    restore_params(tmp_path, jax.eval_shape(make_params))
    absl_logging.info("of our own")
    assert [entry.message for entry in caplog.records if entry.name == "absl"] == ["of our own"]


def in_subprocess(script: str, *arguments: object, devices: int = 1) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )


PRELUDE = """
import resource, signal, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from hhh_jax.checkpoint import Checkpoints, restore_params, steps
from hhh_jax.errors import UserError

def state_at(step):
    key = jax.random.fold_in(jax.random.key(0), step)
    return {"params": {"w": jax.random.normal(key, (500, 1000)), "b": jnp.full(7, step, jnp.bfloat16)}}
"""


def test_restore_onto_another_mesh(tmp_path):
    script = """
array = np.random.default_rng(0).standard_normal((8, 16, 4)).astype(np.float32)
meshes = [((4, 2), P("a", "b")), ((8, 1), P(None, "a")), ((2, 4), P(("a", "b"), None)), ((4, 2), P())]
shardings = [jax.sharding.SingleDeviceSharding(jax.devices()[3])]
for shape, spec in meshes:
    shardings.append(NamedSharding(Mesh(np.array(jax.devices()).reshape(shape), ("a", "b")), spec))
with Checkpoints(sys.argv[1]) as checkpoints:
    w = jax.device_put(array, shardings[1])
    params = {"w": w, "bf16": w.astype(jnp.bfloat16)}
    checkpoints.save(1, {"params": params, "n": jnp.int32(5)}, {}, wait=True)
    for sharding in shardings:
        def leaf(shape, dtype):
            return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        params = {"w": leaf(array.shape, jnp.float32), "bf16": leaf(array.shape, jnp.bfloat16)}
        _, state, _ = checkpoints.restore_latest({"params": params, "n": jax.ShapeDtypeStruct((), jnp.int32)})
        for restored in (state["params"], restore_params(sys.argv[1], params)):
            assert restored["w"].sharding == restored["bf16"].sharding == sharding
            assert np.asarray(restored["w"]).tobytes() == array.tobytes()
            assert np.asarray(restored["bf16"]).tobytes() == array.astype(jnp.bfloat16).tobytes()
"""
    done = in_subprocess(script, tmp_path, devices=8)
    assert done.returncode == 0, done.stderr
    # and in this process, which has one device
    dtypes = {"w": jnp.float32, "bf16": jnp.bfloat16}
    abstract = {name: jax.ShapeDtypeStruct((8, 16, 4), dtype) for name, dtype in dtypes.items()}
    array = np.random.default_rng(0).standard_normal((8, 16, 4)).astype(np.float32)
    assert np.asarray(restore_params(tmp_path, abstract)["w"]).tobytes() == array.tobytes()


def test_a_lost_process_is_no_full_disk(tmp_path, monkeypatch):
    """It is to be started again, which an error of the user is not."""
    lost = ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer")

    def fail(*_):
        raise lost

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1), {"step": 1}, wait=True)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints._manager, "wait_until_finished", fail)
            with pytest.raises(UserError, match="Gloo"):
                checkpoints.wait()
            patch.setattr(jax, "process_count", lambda: 2)
            with pytest.raises(ValueError) as raised:
                checkpoints.wait()
            assert raised.value is lost


@pytest.mark.parametrize("limit", [0, 300, 1_000_000])
def test_full_disk_is_one_line_and_leaves_the_checkpoint_before(tmp_path, limit):
    """A limit on the size of files is the full disk that every system has: it fails one file or another."""
    script = """
directory, limit = sys.argv[1], int(sys.argv[2])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(1, state_at(1), {"step": 1}, wait=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        checkpoints.save(2, state_at(2), {"step": 2})
        checkpoints.save(3, state_at(3), {"step": 3})  # the error of 2 comes here at the latest
        print("not reached")
except UserError as error:
    print(error)
print(steps(directory))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
with Checkpoints(directory) as checkpoints:  # there is room again
    step, state, _ = checkpoints.restore_latest(jax.eval_shape(lambda: state_at(0)))
    assert (state["params"]["w"] == state_at(1)["params"]["w"]).all()
    checkpoints.save(2, state_at(2), {"step": 2})
print(steps(directory))
"""
    done = in_subprocess(script, tmp_path, limit)
    assert done.returncode == 0, done.stderr
    error, left, after = done.stdout.splitlines()
    assert error.startswith(f"cannot save the checkpoint of step 2 in {tmp_path}: File too large (")
    assert error.endswith("iB free); the previous one, of step 1, is intact")
    assert left == "[1]"
    assert after == "[1, 2]"
    assert read_extra(tmp_path, step=1) == {"step": 1}


def test_an_error_of_the_last_save_comes_at_close(tmp_path):
    script = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    with Checkpoints(sys.argv[1]) as checkpoints:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        checkpoints.save(2, state_at(2), {})
except UserError as error:
    print(error)
"""
    done = in_subprocess(script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "cannot save the checkpoint of step 2" in done.stdout and "it was the first" in done.stdout


@pytest.mark.slow
def test_kill_9_while_saving(tmp_path):
    """Whenever it is killed, the newest checkpoint is whole, and no older than the last one reported."""
    script = """
directory = sys.argv[1]
with Checkpoints(directory) as checkpoints:
    restored = checkpoints.restore_latest(jax.eval_shape(lambda: state_at(0)))
    step = 0
    if restored:
        step, state, extra = restored
        assert extra == {"step": step}
        for name, array in state_at(step)["params"].items():
            assert state["params"][name].dtype == array.dtype and (state["params"][name] == array).all(), name
    while True:
        step += 1
        checkpoints.save(step, state_at(step), {"step": step})
        print(checkpoints.latest_step() or 0, flush=True)
"""
    rng = random.Random(0)
    reported = 0
    command = [sys.executable, "-c", PRELUDE + script, str(tmp_path)]
    for _ in range(3):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            before = reported
            while reported <= before:  # until it has saved one more
                line = process.stdout.readline()
                assert line, process.stderr.read().decode()
                reported = max(reported, int(line))
            time.sleep(rng.uniform(0, 0.4))
            process.kill()
            reported = max(reported, *map(int, process.stdout.read().split()), 0)
        found = steps(tmp_path)
        assert found and found[-1] >= reported
        with warnings.catch_warnings(action="error"):
            assert read_extra(tmp_path) == {"step": found[-1]}
    assert reported >= 3


def test_the_layout_on_disk(two_checkpoints):
    """What other programs may rely on: the JSON beside the arrays."""
    assert json.loads((two_checkpoints / "20" / "extra" / "metadata").read_text())["position"] == 20
    sums = json.loads((two_checkpoints / "20" / CHECKSUMS).read_text())
    content = (two_checkpoints / "20" / "extra" / "metadata").read_bytes()
    assert sums["extra/metadata"] == [len(content), hashlib.sha256(content).hexdigest()]
