"""What was computed before, read again: equal to running the whole text at once, in every form of the model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from reference import make_pair, random_params, tiny

from hhh_jax import cache as cache_lib
from hhh_jax.data.packing import empty_batch, place_branches
from hhh_jax.model import hidden_states, hidden_states_after

FORMS = {
    "as configured": {},
    "parallel, a quarter rotated": {"residual": "parallel", "rotary_fraction": 0.25},
    "learned positions, unrolled": {"positions": "learned", "unroll": 2},
}


@functools.partial(reference.jit, static_argnums=0)
def after(config, params, blocks, tokens, first):
    """Rows of one segment each, at positions from `first` on; -1 is no token."""
    real = tokens >= 0
    positions = first + jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    ids = jnp.where(real, tokens, 0)
    return hidden_states_after(config, params, blocks, ids, real.astype(int), jnp.zeros_like(ids), positions)


def expected(config, params, *parts) -> np.ndarray:
    """Hidden states of the last part of a text by the numpy model."""
    return reference.hidden(config, params, np.concatenate(parts))[-len(parts[-1]) :]


@pytest.mark.parametrize("form", FORMS)
def test_a_shared_prefix_a_prompt_for_two_rows_each_and_own_tokens_equal_whole_texts(form):
    """Blocks of one, two and four rows with padding in them stand in front of four rows."""
    config, rng = tiny(**FORMS[form]), np.random.default_rng(0)
    params = random_params(config)
    prefix = rng.integers(0, 64, 7)
    prompts = [rng.integers(0, 64, size) for size in (3, 5)]
    own, last = rng.integers(0, 64, (4, 4)), rng.integers(0, 64, (4, 2))

    def padded(rows, width):
        return np.stack([np.pad(row, (0, width - len(row)), constant_values=-1) for row in rows])

    _, first_block = after(config, params, (), padded([prefix], 9), 0)
    assert first_block.keys.shape == (2, 1, 9, 2, 16) and first_block.real.tolist() == [[True] * 7 + [False] * 2]
    hidden_2x5xD, second_block = after(config, params, (first_block,), padded(prompts, 5), 7)
    for prompt, found in zip(prompts, hidden_2x5xD, strict=True):
        np.testing.assert_allclose(found[: len(prompt)], expected(config, params, prefix, prompt), rtol=1e-4, atol=2e-5)
    starts = 7 + np.repeat([3, 5], 2)[:, None]
    hidden_4x4xD, third_block = after(config, params, (first_block, second_block), own, starts)
    hidden_4x2xD, _ = after(config, params, (first_block, second_block, third_block), last, starts + 4)
    for row in range(4):
        before = prefix, prompts[row // 2], own[row]
        np.testing.assert_allclose(hidden_4x4xD[row], expected(config, params, *before), rtol=1e-4, atol=2e-5)
        whole = expected(config, params, *before, last[row])
        np.testing.assert_allclose(hidden_4x2xD[row], whole, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("max_scores", [2**22, 60])
def test_every_segment_and_branch_of_a_packed_row_sees_the_prefix(max_scores, monkeypatch):
    """Also where the queries are taken in chunks."""
    monkeypatch.setitem(cache_lib.MAX_SCORES, "cpu", max_scores)
    config, rng = tiny(), np.random.default_rng(0)
    params = random_params(config)
    prefix = rng.integers(0, 64, 6)
    _, block = after(config, params, (), prefix[None], 0)
    batch, _ = empty_batch(1, 24, 0, reference.PAD)
    pairs = [make_pair("a", [5, 6, 7], [8, 9], [10]), make_pair("b", [11], [12, 13, 14], [15])]
    start, texts = 0, []
    for segment, pair in enumerate(pairs, start=1):
        branches = place_branches(batch, 0, start, segment, pair.context, (pair.good, pair.bad))
        texts += zip(branches, reference.sides(pair), strict=True)
        start = branches[-1].last + 1
    layout = batch.segment_ids, batch.branch_ids, 6 + batch.positions
    run = reference.jit(lambda: hidden_states_after(config, params, (block,), batch.tokens, *layout))
    hidden_TxD = np.asarray(run()[0][0])
    for branch, text in texts:
        found = hidden_TxD[branch.first : branch.last + 1]
        whole = expected(config, params, prefix, text)[-len(found) :]
        np.testing.assert_allclose(found, whole, rtol=1e-4, atol=2e-5)


def test_without_a_cache_nothing_is_kept():
    """Training's program is the same whether or not there are caches: it has no keys and values to return."""
    config = tiny()
    ids = jnp.zeros((2, 8), jnp.int32)
    layers_of_keys = (config.n_layer, 2, 8, config.n_head, config.head_dim)

    def shapes(fn) -> set:
        jaxpr = jax.make_jaxpr(fn)(random_params(config), ids, ids, ids, ids)
        return {
            variable.aval.shape
            for equation in jaxpr.jaxpr.eqns if equation.primitive.name == "scan"
            for variable in equation.outvars
        }  # fmt: skip

    assert layers_of_keys in shapes(lambda params, *args: hidden_states_after(config, params, (), *args))
    assert layers_of_keys not in shapes(lambda params, *args: hidden_states(config, params, *args))
