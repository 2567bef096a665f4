"""What the machine can do: the speed of large matmuls, which steps are measured against and dtypes are chosen by."""

import functools
import time

import jax
import jax.numpy as jnp

DTYPES = ("float32", "bfloat16")
SIZE = {"cpu": 1536, "gpu": 8192, "tpu": 8192}


@functools.cache
def _matmul(dtype: str) -> tuple[jax.Array, jax.Array, jax.stages.Wrapped]:
    size = SIZE.get(jax.default_backend(), 4096)
    a, b = (jax.random.normal(jax.random.key(seed), (size, size)).astype(dtype) for seed in range(2))

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.dot(a, b, preferred_element_type=jnp.float32)

    compiled = jax.jit(product)
    compiled(a, b).block_until_ready()
    return a, b, compiled


def matmul_flops(dtype: str, times: int = 4) -> float:
    """FLOP/s of a large square matmul of this dtype that accumulates in float32."""
    a, b, compiled = _matmul(dtype)
    start = time.perf_counter()
    for _ in range(times):
        compiled(a, b).block_until_ready()
    return 2.0 * a.shape[0] ** 3 * times / (time.perf_counter() - start)


def best_dtype() -> str:
    """The dtype in which matmuls are faster here."""
    return max(DTYPES, key=lambda dtype: max(matmul_flops(dtype) for _ in range(2)))
