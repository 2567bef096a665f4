"""Which keys a query sees, by hand; and every kernel against the plain reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax import export

from hhh_jax import attention

B, T, H, K = 2, 640, 2, 128


def test_visibility_by_hand():
    """Two segments; the first has a shared part of two tokens and two branches of two; then padding."""
    segments = np.array([[1, 1, 1, 1, 1, 1, 2, 2, 0]])
    branches = np.array([[0, 0, 1, 1, 2, 2, 0, 0, 0]])
    positions = np.array([[0, 1, 2, 3, 2, 3, 0, 1, 0]])
    expected = [
        "x........",
        "xx.......",
        "xxx......",
        "xxxx.....",
        "xx..x....",
        "xx..xx...",
        "......x..",
        "......xx.",
        "........x",
    ]
    layout = attention.Layout(segments, branches, positions)
    mask = np.asarray(attention.visibility(layout, layout).mask)[0]
    assert ["".join("x" if seen else "." for seen in row) for row in mask] == expected


# Kernels


def packed(shared: bool, length: int = T) -> attention.Layout:
    """Rows of random segments, each with a context and two branches that share it or, if not `shared`, repeat it."""
    rng = np.random.default_rng(0)
    segments, branches, positions = (np.zeros((B, length), np.int32) for _ in range(3))
    for row in range(B):
        at, segment = 0, 0
        while at < length - 60:  # the rest is padding
            segment += 1
            context, good, bad = rng.integers(1, 60, 3)
            parts = [(0, 0, context), (1, context, good), (2, context, bad)]
            for branch, first, n in parts if shared else [(1, 0, context + good), (2, 0, context + bad)]:
                span = slice(at, min(at + n, length))
                segments[row, span], branches[row, span] = segment, branch
                positions[row, span] = first + np.arange(span.stop - at)
                at = span.stop
    return attention.Layout(segments, branches, positions)


@functools.partial(reference.jit, static_argnums=(0, 1))
def output_and_gradients(kind: str, _masked_tokens: int, layout: attention.Layout, qkv: tuple, weight: jax.Array):
    def weighted(*qkv: jax.Array):
        y = attention.attend(*qkv, attention.visibility(layout, layout, kind))
        y *= (layout.segment_ids > 0)[..., None, None]  # what padding sees is up to the kernel
        return (y * weight).sum(), y

    (_, y), gradients = jax.value_and_grad(weighted, (0, 1, 2), has_aux=True)(*qkv)
    return y, gradients


@functools.cache
def numbers(length: int) -> tuple:
    return tuple(np.random.default_rng(1).standard_normal((4, B, length, H, K)).astype(np.float32))


def differences(kind: str, layout: attention.Layout, length: int) -> list[float]:
    """Largest ones of the output and of the gradients by queries, keys and values."""
    *qkv, weight = numbers(length)
    expected = output_and_gradients("plain", 0, layout, qkv, weight)
    found = output_and_gradients(kind, attention.MASKED_TOKENS, layout, qkv, weight)
    return [float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True)]


def test_query_chunks_equal_plain_attention():
    """640 queries are two chunks and a half."""
    assert max(differences("chunked", packed(shared=True), T)) < 1e-5


@pytest.mark.parametrize("shared", [True, False])
def test_splash_equals_plain_attention(shared, monkeypatch):
    """By mask where branches share their context; by runs of one branch where rows are too long for masks."""
    if not shared:
        monkeypatch.setattr(attention, "MASKED_TOKENS", 128)
    layout = packed(shared, 256)
    assert (attention.visibility(layout, layout, "splash").mask is None) == (not shared)
    assert max(differences("splash", layout, 256)) < 1e-5


def test_what_auto_takes():
    choose = functools.partial(attention.choose, "auto", dtype="bfloat16", mesh=None)
    assert choose(head_dim=128, n_queries=512, n_keys=512) == "plain"
    assert choose(head_dim=128, n_queries=513, n_keys=513) == "chunked"
    assert attention.choose("splash", 128, "bfloat16", 512, 512, None) == "splash"


def test_cudnn_lowers_for_a_gpu(monkeypatch):
    """There is none here: what can be seen is that shapes, types and mask are what cuDNN's call takes."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_compute_capability", lambda *_: True)
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda *_: 91000)
    layout = packed(shared=True, length=256)
    q = jax.ShapeDtypeStruct((B, 256, H, K), jnp.bfloat16)

    def loss(q, k, v):
        return attention.attend(q, k, v, attention.visibility(layout, layout, "cudnn")).astype(jnp.float32).sum()

    disabled = [export.DisabledSafetyCheck.custom_call("__cudnn$fmhaScaleBiasSoftmax")]
    disabled.append(export.DisabledSafetyCheck.custom_call("__cudnn$fmhaScaleBiasSoftmaxBackward"))
    exported = export.export(jax.jit(jax.grad(loss, (0, 1, 2))), platforms=["cuda"], disabled_checks=disabled)(q, q, q)
    assert "__cudnn$fmhaScaleBiasSoftmaxBackward" in exported.mlir_module()
