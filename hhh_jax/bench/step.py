"""The language-modeling step: tokens a second against PyTorch, its share of the matmul peak, overheads, compile times.

PyTorch trains the GPT-NeoX of transformers of the same shape, eager and compiled, in float32 and bfloat16 (parameters
and moments in float32 on all sides); its rows are one document each, ours several that don't see each other. A dtype in
which PyTorch's matmuls run at less than a quarter of the other's speed is left out.

FLOPs by convention, which is part of the name: "head and full attention" are all multiply-adds of the matrices of the
blocks and of the LM head, and of scores over whole rows, masked ones too, forward and backward, times two
(`model.executed_flops_per_token`); "6 N" is the paper's, without embeddings, head and attention. The peak is a large
matmul's in the same dtype, measured between the steps.

On a CPU: the 13m rung and n_layer 2, rows of 1024 tokens, vocabulary 65536. On a GPU: 197m and 810m in bfloat16, rows
of 1024 and 8192 tokens; where there is none, a line says so.
"""

import functools
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import jax

from hhh_jax.bench.harness import probe
from hhh_jax.bench.harness.contender import Contender
from hhh_jax.bench.harness.timing import Measures, Row, compare, interleave
from hhh_jax.model import PAPER_LADDER, ModelConfig, executed_flops_per_token, paper_flops
from hhh_jax.study import MALLOC

ROUNDS = 4
OURS, TORCH, MATMUL = (f"hhh_jax.bench.contenders.{name}" for name in ("jax_step", "torch_step", "torch_matmul"))
TINY = {"n_layer": 1, "aspect": 16, "head_dim": 16, "vocab_size": 512}


class Shape(NamedTuple):
    """What a step trains: a model's fields, and the rows and tokens of its batch; steps of a turn."""

    name: str
    model: dict[str, Any]
    rows: int
    length: int
    steps: int = 1


def _rung(name: str, rows: int, length: int, steps: int = 1) -> Shape:
    shape = {"n_layer": PAPER_LADDER[name], "aspect": 128, "head_dim": 128, "vocab_size": 65536}
    return Shape(f"{name}, {rows} x {length} tokens", shape, rows, length, steps)


CPU_SHAPES = (_rung("1.6m", 2, 1024), _rung("13m", 1, 1024))
GPU_SHAPES = (
    _rung("197m", 16, 1024, 10), _rung("197m", 2, 8192, 10), _rung("810m", 8, 1024, 5), _rung("810m", 1, 8192, 5)
)  # fmt: skip


def rows(quick: bool) -> Iterator[Row]:
    """Rows of the shapes that this machine's device is for, and of overheads."""
    gpu = jax.default_backend() == "gpu"
    shapes: Sequence[Shape] = GPU_SHAPES if gpu else CPU_SHAPES
    if quick:
        shapes = (Shape("tiny", TINY, 2, 64),)
    with Contender(MATMUL, {}) as matmul:
        speeds = matmul.ready
    fastest = max(speeds.values())
    torch_dtypes = ["bfloat16"] if gpu else [dtype for dtype in probe.DTYPES if speeds[dtype] > fastest / 4]
    dtypes = ["bfloat16"] if gpu else list(probe.DTYPES)
    left_out = ", ".join(dtype for dtype in probe.DTYPES if dtype not in torch_dtypes)
    note = (
        f"PyTorch in {left_out} left out: {min(speeds.values()) / fastest:.1%} of its fastest matmul"
        if left_out
        else ""
    )
    if quick:
        dtypes, torch_dtypes = ["float32"], ["float32"]
    for shape in shapes:
        yield from _race(shape, dtypes, torch_dtypes, quick, "" if gpu else note)
    yield from _overhead(quick)
    yield from _compilation(shapes[-1], dtypes[0])
    if not gpu:
        yield Row("GPU", "MFU", None, note="no GPU here")


def _settings(shape: Shape, dtype: str) -> dict[str, Any]:
    loader = {"rows": shape.rows, "row_length": shape.length, "vocab_size": shape.model["vocab_size"]}
    # On a CPU, scanned layers run at four fifths of the speed of unrolled ones.
    unroll = 1 if jax.default_backend() == "gpu" else shape.model["n_layer"]
    model = shape.model | {"dtype": dtype, "unroll": unroll}
    return {"objective": "lm", "model": model, "loader": loader, "warm_up": 1}


def _race(shape: Shape, dtypes: Sequence[str], torch_dtypes: Sequence[str], quick: bool, note: str) -> Iterator[Row]:
    env = {"GLIBC_TUNABLES": MALLOC}
    d_model = shape.model["aspect"] * shape.model["n_layer"]
    theirs = {"model": shape.model | {"d_model": d_model}, "rows": shape.rows, "row_length": shape.length}
    with ExitStack() as stack:

        def start(module: str, settings: dict[str, Any]) -> Contender:
            return stack.enter_context(Contender(module, settings, env))

        contenders = {f"ours, {dtype}": start(OURS, _settings(shape, dtype)) for dtype in dtypes}
        for dtype in torch_dtypes:
            for how in ("eager",) if quick else ("eager", "compiled"):
                settings = theirs | {"dtype": dtype, "compile": how == "compiled"}
                contenders[f"PyTorch {how}, {dtype}"] = start(TORCH, settings)
        measures: Measures = {
            name: functools.partial(_speed, contender, shape.steps) for name, contender in contenders.items()
        }
        peaks: Measures = {f"peak, {dtype}": functools.partial(probe.matmul_flops, dtype) for dtype in dtypes}
        speeds = interleave({**measures, **peaks}, 1 if quick else ROUNDS)
    best = max((f"ours, {dtype}" for dtype in dtypes), key=lambda name: statistics.median(speeds[name]))
    for name in measures:
        if name != best:
            yield compare(f"{shape.name}: {best}", "tokens/s", speeds[best], name, speeds[name], note)
    dtype = best.removeprefix("ours, ")
    config = ModelConfig(**shape.model)
    conventions = {
        "head and full attention": executed_flops_per_token(config, shape.length),
        "6 N": paper_flops(config, 1),
    }
    for convention, flops in conventions.items():
        tera = [speed * flops / 1e12 for speed in speeds[best]]
        peak = [speed / 1e12 for speed in speeds[f"peak, {dtype}"]]
        yield compare(f"{shape.name}: {best}, {convention}", "TFLOP/s", tera, f"matmul, {dtype}", peak)


def _speed(contender: Contender, steps: int) -> float:
    answer = contender.measure(steps)
    return float(answer["tokens"] / answer["seconds"])


def _overhead(quick: bool) -> Iterator[Row]:
    """What a step costs beside its arithmetic: a model so small that it has next to none, in the whole loop."""
    steps = 5 if quick else 200
    with Contender(OURS, _settings(Shape("tiny", TINY, 1, 8), "float32")) as tiny:
        answers = [tiny.measure(steps) for _ in range(1 if quick else ROUNDS)]
    note = "d_model 16, 8 tokens: what is left is Python, dispatch and the loader's thread"
    whole = statistics.median(answer["seconds"] / steps for answer in answers) * 1e3
    yield Row("whole loop, a step of a tiny model", "ms", whole, note=note)
    dispatch = statistics.median(answer["dispatch"] for answer in answers) * 1e3
    yield Row(
        "the call of the compiled step alone", "ms", dispatch, note="until it returns; the device goes on by itself"
    )


def _compilation(shape: Shape, dtype: str) -> Iterator[Row]:
    """Seconds until the first loss, tracing and first step included."""
    with tempfile.TemporaryDirectory() as cache:
        env = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        seconds = []
        for _ in range(2):
            with Contender(OURS, _settings(shape, dtype), env) as contender:
                seconds.append(contender.ready["compile_seconds"])
    yield compare(f"{shape.name}: to the first loss, compiled", "s", seconds[:1], "from the cache", seconds[1:])
