"""The model against one in numpy, its isolation by gradients, and its size against the paper's table."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from reference import make_pair, random_params, tiny

from hhh_jax.data.packing import pack_pairs
from hhh_jax.model import (
    CPU_LADDER,
    PAPER_LADDER,
    ModelConfig,
    abstract_params,
    count_params,
    cpu_matmul,
    executed_flops_per_token,
    hidden_states,
    init_params,
    lm_logits,
    paper_flops,
    rewards,
)

TABLE_1 = {  # rung: (layers, d_model, "number of parameters", training FLOPs) as printed
    "13m": (4, 512, "13M", "3.0e19"), "42m": (6, 768, "42M", "1.0e20"), "197m": (10, 1280, "197M", "4.7e20"),
    "810m": (16, 2048, "810M", "1.9e21"), "2.7b": (24, 3072, "2.7B", "6.5e21"),
    "13b": (40, 5120, "13B", "3.0e22"), "52b": (64, 8192, "52B", "1.2e23"),
}  # fmt: skip

FORMS = {
    "as configured": {},
    "parallel, a quarter rotated": {"residual": "parallel", "rotary_fraction": 0.25},
    "learned positions, rmsnorm": {"positions": "learned", "norm": "rmsnorm"},
    "no biases": {"biases": False},
}
SHAPE = (2, 20)  # rows and tokens; one shape, so that programs are shared


def alone(tokens: np.ndarray) -> tuple[np.ndarray, ...]:
    """Arguments of the model for rows that hold one document each."""
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    return tokens, np.ones_like(tokens), np.zeros_like(tokens), positions


@functools.partial(reference.jit, static_argnums=0)
def outputs(config: ModelConfig, params, *args):
    hidden_BxTxD = hidden_states(config, params, *args)
    return (
        hidden_BxTxD,
        lm_logits(params, hidden_BxTxD.reshape(-1, config.d_model)),
        rewards(params, hidden_BxTxD),
    )


# Size


@pytest.mark.parametrize("rung", [*PAPER_LADDER, *CPU_LADDER])
def test_n_is_what_the_tree_of_every_rung_holds(rung):
    paper = rung in PAPER_LADDER
    n, width = (PAPER_LADDER[rung], 128) if paper else (CPU_LADDER[rung], 32)
    vocab, d = 2**16 if paper else 1024, width * n
    config = ModelConfig(n, width, width, vocab)
    counts = count_params(config)
    assert counts["n"] == 12 * n * d**2
    assert counts["embeddings"] == 2 * vocab * d
    # A layer has two norms with gain and bias, and biases of q, k, v, o (4 d) and of the MLP (4 d + d).
    assert counts["gains_and_biases"] == n * (4 * d + 9 * d) + 2 * d
    assert counts["total"] == sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract_params(config))} == {jnp.dtype("float32")}


@pytest.mark.parametrize("rung", TABLE_1)
def test_table_1_of_the_paper(rung):
    n, d, printed_n, printed_flops = TABLE_1[rung]
    config = ModelConfig(PAPER_LADDER[rung])
    assert (config.n_layer, config.d_model, config.d_ff) == (n, d, 4 * d)
    assert f"{paper_flops(config):.1e}".replace("e+", "e") == printed_flops
    unit = {"M": 1e6, "B": 1e9}[printed_n[-1]]
    # Two digits of 805 306 368 are printed as 810M.
    assert count_params(config)["n"] / unit == pytest.approx(float(printed_n[:-1]), rel=0.035)


def test_the_cpu_ladder_has_the_sizes_it_is_named_for():
    assert [12 * n * (32 * n) ** 2 for n in CPU_LADDER.values()] == [12288, 98304, 331776, 786432, 2654208]


@pytest.mark.parametrize("rung, length", [("13m", 2048), ("42m", 256)])
def test_executed_flops_agree_with_xlas_count(rung, length):
    """XLA's own count of the gradient, layers unrolled; at 2048 tokens attention is a third of it."""
    n = PAPER_LADDER[rung]
    config = ModelConfig(n, vocab_size=8192, dtype="float32", attention="plain", unroll=n)
    rows = 2
    ids = jax.ShapeDtypeStruct((rows, length), jnp.int32)

    def loss(params, tokens, segment_ids, branch_ids, positions):
        hidden_BxTxD = hidden_states(config, params, tokens, segment_ids, branch_ids, positions)
        logits_NxV = lm_logits(params, hidden_BxTxD.reshape(-1, config.d_model))
        return jax.nn.logsumexp(logits_NxV, axis=-1).sum()

    lowered = jax.jit(jax.value_and_grad(loss)).lower(abstract_params(config), ids, ids, ids, ids)
    assert executed_flops_per_token(config, length) * rows * length == pytest.approx(
        lowered.cost_analysis()["flops"], rel=0.03
    )


# Values


@pytest.mark.parametrize("form", FORMS)
def test_every_form_equals_the_numpy_model(form):
    config = tiny(**FORMS[form])
    params = random_params(config)
    tokens = np.random.default_rng(1).integers(0, 64, SHAPE)
    hidden_BxTxD, logits_NxV, rewards_BxT = outputs(config, params, *alone(tokens))
    for row in range(2):
        expected = reference.hidden(config, params, tokens[row])
        np.testing.assert_allclose(hidden_BxTxD[row], expected, rtol=1e-4, atol=2e-5)
        expected = reference.logits(config, params, tokens[row])
        np.testing.assert_allclose(logits_NxV.reshape(*SHAPE, -1)[row], expected, rtol=1e-4, atol=2e-5)
        assert rewards_BxT[row, -1] == pytest.approx(reference.reward(config, params, tokens[row]), abs=2e-5)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_its_parameters_and_no_others(form):
    config = tiny(**FORMS[form])
    d, f, n, v = config.d_model, config.d_ff, 2, 64
    kernels = {
        "query": (d, d),
        "key": (d, d),
        "value": (d, d),
        "attention_out": (d, d),
        "mlp_in": (d, f),
        "mlp_out": (f, d),
    }
    norm = {"scale": (d,)} | ({"bias": (d,)} if config.biases and config.norm == "layernorm" else {})
    blocks = {
        name: {"kernel": shape} | ({"bias": shape[1:]} if config.biases else {}) for name, shape in kernels.items()
    }
    blocks |= {"attention_norm": norm, "mlp_norm": norm}
    blocks = {name: {leaf: (n, *shape) for leaf, shape in leaves.items()} for name, leaves in blocks.items()}
    trunk = {"embedding": (v, d), "blocks": blocks, "final_norm": norm}
    if config.positions == "learned":
        trunk["position_embedding"] = (32, d)
    expected = {"transformer": trunk, "lm_head": {"kernel": (d, v)}}
    assert jax.tree.map(lambda x: x.shape, abstract_params(config)) == expected
    expected["score_head"] = {"kernel": (d,), "bias": ()}
    assert jax.tree.map(lambda x: x.shape, abstract_params(config, score_head=True)) == expected


def test_unrolling_and_remat_change_neither_tree_nor_results():
    params = random_params(tiny())
    tokens = np.random.default_rng(1).integers(0, 64, SHAPE)

    @functools.partial(reference.jit, static_argnums=1)
    @jax.value_and_grad
    def loss(params, config):
        hidden_BxTxD = hidden_states(config, params, *alone(tokens))
        return jnp.mean(lm_logits(params, hidden_BxTxD.reshape(-1, config.d_model)) ** 2)

    value, gradient = loss(params, tiny())
    for changes in ({"unroll": 2, "remat": "full"}, {"remat": "dots"}):
        config = tiny(**changes)
        assert abstract_params(config) == abstract_params(tiny())
        other_value, other = loss(params, config)
        assert float(other_value) == pytest.approx(float(value), rel=1e-6)
        reference.assert_trees_close(other, gradient, 1e-5)


def test_logits_and_rewards_are_float32_under_bfloat16():
    config, params = tiny(dtype="bfloat16"), random_params(tiny())
    args = alone(np.random.default_rng(1).integers(0, 64, SHAPE))
    hidden_BxTxD, logits_NxV, rewards_BxT = outputs(config, params, *args)
    assert (hidden_BxTxD.dtype, logits_NxV.dtype, rewards_BxT.dtype) == (
        jnp.bfloat16,
        jnp.float32,
        jnp.float32,
    )
    for x in (logits_NxV, rewards_BxT):  # not merely widened
        assert (x.astype(jnp.bfloat16).astype(jnp.float32) == x).mean() < 0.1
    exact = outputs(tiny(), params, *args)
    np.testing.assert_allclose(logits_NxV, exact[1], atol=0.05 * np.abs(exact[1]).max())
    np.testing.assert_allclose(rewards_BxT, exact[2], atol=0.05 * np.abs(exact[2]).max())
    assert {x.dtype for x in jax.tree.leaves(abstract_params(config, True))} == {jnp.dtype("float32")}


def test_initial_scales():
    config = tiny(aspect=64, head_dim=64, vocab_size=512)
    params = reference.jit(init_params, static_argnums=(0, 2))(
        config, jax.random.key(0, impl="rbg"), True
    )  # quick to compile
    d, blocks = config.d_model, params["transformer"]["blocks"]
    for name in ("query", "key", "value", "mlp_in"):
        assert float(blocks[name]["kernel"].std()) == pytest.approx(d**-0.5, rel=0.05)
    assert float(blocks["attention_out"]["kernel"].std()) == pytest.approx((d * 4) ** -0.5, rel=0.05)
    assert float(blocks["mlp_out"]["kernel"].std()) == pytest.approx((4 * d * 4) ** -0.5, rel=0.05)
    assert float(params["transformer"]["embedding"].std()) == pytest.approx(0.02, rel=0.05)
    assert float(params["lm_head"]["kernel"].std()) == pytest.approx(d**-0.5, rel=0.05)
    assert float(params["score_head"]["kernel"].std()) == pytest.approx(0.1 * d**-0.5, rel=0.25)  # small, but not zero
    drawn = [blocks[name]["kernel"][layer] for name in ("query", "key", "value", "attention_out") for layer in (0, 1)]
    assert all((drawn[i] != drawn[j]).mean() > 0.99 for i in range(len(drawn)) for j in range(i))


# Isolation


def test_packed_documents_equal_each_alone():
    config, rng = tiny(), np.random.default_rng(0)
    params = random_params(config)
    documents = [rng.integers(2, 64, size) for size in (5, 1, 7, 3)]  # and four places of padding
    tokens, segments, positions = np.zeros((3, *SHAPE), np.int64)
    tokens[0, :16] = np.concatenate(documents)
    segments[0, :16] = np.repeat([1, 2, 3, 4], [5, 1, 7, 3])
    positions[0, :16] = np.concatenate([np.arange(len(document)) for document in documents])
    packed_BxTxD, _, _ = outputs(config, params, tokens, segments, np.zeros_like(tokens), positions)
    for i, document in enumerate(documents):
        expected = reference.hidden(config, params, document)
        np.testing.assert_allclose(packed_BxTxD[0][segments[0] == i + 1], expected, rtol=1e-4, atol=2e-5)
    assert np.isfinite(packed_BxTxD).all()  # padding too, or its zero weight would multiply a NaN


def test_nothing_leaks():
    """d output of a query / d embedding of a key is zero unless the key is before it in its own sequence.

    Every place of the row holds another token, so that a row of the embedding's gradient belongs to one key.
    """
    config = tiny()
    params = random_params(config)
    pairs = [
        make_pair("shared", [0] * 4, [0] * 3, [0] * 2),
        make_pair("no context", [], [0] * 2, [0] * 3),
        make_pair("one token of context", [0], [0], [0] * 2),
    ]
    length = sum(pair.n_tokens() for pair in pairs) + 3
    batch, placement = pack_pairs(pairs, length, 4, reference.PAD, sizes=[1])
    tokens = np.random.default_rng(0).permutation(64)[:length]
    direction_D = np.random.default_rng(1).standard_normal(config.d_model)

    @reference.jit
    @jax.jacrev
    def influence(embedding_VxD):
        with_embedding = {"transformer": params["transformer"] | {"embedding": embedding_VxD}}
        args = (tokens[None], batch.segment_ids, batch.branch_ids, batch.positions)
        return hidden_states(config, with_embedding, *args)[0] @ direction_D

    jacobian_TxTxD = np.asarray(influence(params["transformer"]["embedding"]))[:, tokens]
    moves_TxT = np.abs(jacobian_TxTxD).max(-1)

    # The truth: lay the sequences out again, place by place, from the picture in packing's docstring.
    sequences, place = [], 0
    for p in placement.pair_RxS[0][batch.pair_mask[0]]:
        n_shared = max(len(pairs[p].context) - 1, 0)
        shared, place = list(range(place, place + n_shared)), place + n_shared
        for side in reference.sides(pairs[p]):
            own, place = list(range(place, place + len(side) - n_shared)), place + len(side) - n_shared
            sequences.append(shared + own)
    sees_TxT = np.zeros((length, length), bool)
    for sequence in sequences:
        for i, query in enumerate(sequence):
            sees_TxT[query, sequence[: i + 1]] = True
    real = slice(0, place)
    assert place == length - 3
    assert (moves_TxT[real, :][~sees_TxT[real, :]] == 0).all()
    assert (moves_TxT[sees_TxT] > 1e-6).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_matmul_of_cpus_has_the_gradients_of_any_other(dtype):
    """By definition in float64, of inputs rounded to `dtype`; with a float32 result too, as the head has."""
    rng = np.random.default_rng(0)
    x, kernel, dy = (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((6, 5), (5, 7), (6, 7)))
    exact = [np.asarray(a, np.float64) for a in (x, kernel, dy)]
    for out in (jnp.dtype(dtype), jnp.dtype("float32")):
        y, pullback = jax.vjp(lambda x, kernel, out=out: cpu_matmul(x, kernel, out), x, kernel)
        dx, dkernel = pullback(dy.astype(out))
        assert (y.dtype, dx.dtype, dkernel.dtype) == (out, x.dtype, kernel.dtype)
        rtol = 1e-5 if dtype == "float32" else 2e-2
        for found, expected in (
            (y, exact[0] @ exact[1]), (dx, exact[2] @ exact[1].T), (dkernel, exact[0].T @ exact[2])
        ):  # fmt: skip
            np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=rtol, atol=rtol)
