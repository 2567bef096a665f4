"""PyTorch's FLOP/s of large matmuls by dtype, in its first and only answer."""

import time

import torch

from hhh_jax.bench.harness.contender import Channel
from hhh_jax.bench.harness.probe import DTYPES

ROWS, SIZE = {"cpu": 64, "cuda": 8192}, {"cpu": 1536, "cuda": 8192}


def flops(dtype: torch.dtype, device: str, times: int = 8) -> float:
    """FLOP/s of a matmul; on a CPU of few rows, for some dtypes are slower there by a factor of hundreds."""
    a = torch.randn(ROWS[device], SIZE[device], device=device).to(dtype)
    b = torch.randn(SIZE[device], SIZE[device], device=device).to(dtype)
    (a @ b).sum().item()
    start = time.perf_counter()
    for _ in range(times):
        c = a @ b
    c.sum().item()
    return 2.0 * a.shape[0] * b.shape[0] * b.shape[1] * times / (time.perf_counter() - start)


if __name__ == "__main__":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    Channel().answer(**{name: flops(getattr(torch, name), device) for name in DTYPES})
