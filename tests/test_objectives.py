"""Every loss against hand computation in float64, finite differences and brute force."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, AxisType
from jax.test_util import check_grads
from reference import make_pair, tiny

from hhh_jax import sharding
from hhh_jax.data.packing import pack_pairs
from hhh_jax.objectives import (
    Outputs,
    discriminator_loss,
    distillation_kl,
    logit_chunks,
    make_objective,
    needs_score_head,
    preference_loss,
    token_logps,
)

R, T, V, D = 3, 24, 64, 16

kl = reference.jit(distillation_kl)
kl_gradient = reference.jit(jax.grad(lambda logits, ids, logps: distillation_kl(logits, ids, logps).sum()))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    z = np.asarray(logits, np.float64)
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


# Losses of arrays


def test_token_logps_by_hand_and_by_finite_differences():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(0, 4, (7, V)).astype(np.float32), rng.integers(0, V, 7)
    np.testing.assert_allclose(token_logps(logits, targets), log_softmax(logits)[np.arange(7), targets], atol=1e-5)
    check_grads(jax.jit(lambda x: token_logps(x, targets)), (logits,), order=1, modes=["rev"], rtol=1e-2)


def test_preference_loss_by_hand():
    """Equation 3.1: log(1 + exp(r_bad - r_good))."""
    good, bad = np.array([0.0, 1.0, -2.0, 3.0]), np.array([0.0, 0.0, 1.0, -4.0])
    expected = [np.log(2), np.log1p(np.exp(-1)), np.log1p(np.exp(3)), np.log1p(np.exp(-7))]
    np.testing.assert_allclose(preference_loss(jnp.float32(good), jnp.float32(bad)), expected, rtol=1e-6)
    check_grads(jax.jit(preference_loss), (jnp.float32(good), jnp.float32(bad)), order=1, modes=["rev"], rtol=1e-2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_preference_loss_overflows_for_no_difference(dtype):
    good, bad = jnp.array([1e4, -1e4, 0.0], dtype), jnp.array([-1e4, 1e4, 0.0], dtype)
    loss, gradient = jax.value_and_grad(lambda g: preference_loss(g, bad).sum())(good)
    losses = preference_loss(good, bad)
    assert losses.dtype == jnp.float32 and np.isfinite(loss)
    np.testing.assert_allclose(losses, [0.0, 2e4, np.log(2)], rtol=3e-3)
    np.testing.assert_allclose(gradient.astype(np.float32), [0.0, -1.0, -0.5])


def test_discriminator_loss_is_binary_cross_entropy():
    logits, human = np.array([0.0, 2.0, -3.0, 2.0, -3.0]), np.array([1.0, 1.0, 1.0, 0.0, 0.0])
    p = 1 / (1 + np.exp(-logits))
    expected = -(human * np.log(p) + (1 - human) * np.log(1 - p))
    np.testing.assert_allclose(discriminator_loss(jnp.float32(logits), jnp.float32(human)), expected, rtol=1e-6)
    check_grads(lambda x: discriminator_loss(x, human), (jnp.float32(logits),), order=1, modes=["rev"], rtol=1e-2)
    extremes = discriminator_loss(jnp.array([1e4, -1e4, 1e4, -1e4]), jnp.array([1.0, 0.0, 0.0, 1.0]))
    np.testing.assert_allclose(extremes, [0, 0, 1e4, 1e4])


# Distillation


def brute_force_kl(logits: np.ndarray, ids: np.ndarray, teacher_logps: np.ndarray) -> np.ndarray:
    """KL over the k + 1 categories, one token at a time."""
    result = []
    for z, chosen, logps in zip(log_softmax(logits), ids, np.asarray(teacher_logps, np.float64), strict=True):
        rest = np.delete(np.exp(z), chosen)
        q = [*np.exp(z[chosen]), *([rest.sum()] if len(rest) else [])]
        p = [*np.exp(logps), *([max(1 - np.exp(logps).sum(), 0.0)] if len(rest) else [])]
        result.append(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0))
    return np.array(result)


def teacher(logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.argsort(-logits, axis=-1)[:, :k].astype(np.int32)
    return ids, np.take_along_axis(log_softmax(logits), ids, axis=-1).astype(np.float32)


@pytest.mark.parametrize("k", [1, 5, V - 1, V])
def test_kl_equals_brute_force(k):
    rng = np.random.default_rng(k)
    student, teacher_logits = rng.normal(0, 3, (2, 9, V)).astype(np.float32)
    ids, logps = teacher(teacher_logits, k)
    np.testing.assert_allclose(kl(student, ids, logps), brute_force_kl(student, ids, logps), atol=2e-5)
    if k == 5:
        jitted = jax.jit(lambda x: distillation_kl(x, ids, logps))
        check_grads(jitted, (student,), order=1, modes=["rev"], rtol=2e-2, atol=2e-2)
    if k == V:
        p, q = log_softmax(teacher_logits), log_softmax(student)
        np.testing.assert_allclose(kl(student, ids, logps), (np.exp(p) * (p - q)).sum(-1), atol=2e-5)


def test_kl_of_a_student_with_the_teachers_distribution_is_zero_and_flat():
    logits = np.random.default_rng(0).normal(0, 2, (9, V)).astype(np.float32)
    assert np.abs(kl(logits, *teacher(logits, 5))).max() < 1e-5
    assert np.abs(kl_gradient(logits, *teacher(logits, 5))).max() < 1e-5


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), k=st.sampled_from([1, 10]), sharp=st.floats(0, 30), wide=st.floats(0, 30))
def test_kl_is_never_negative_and_its_gradient_is_finite(seed, k, sharp, wide):
    """Also of students and teachers that are all but certain; only the tail's rounding goes below 0."""
    rng = np.random.default_rng(seed)
    student = (wide * rng.normal(size=(3, 10))).astype(np.float32)
    ids, logps = teacher(sharp * rng.normal(size=(3, 10)), k)
    assert (np.asarray(kl(student, ids, logps)) >= -1e-5).all()
    assert np.isfinite(kl_gradient(student, ids, logps)).all()


def test_a_token_that_the_teacher_rules_out_adds_nothing():
    student = np.random.default_rng(0).normal(0, 2, (4, V)).astype(np.float32)
    ids = np.tile(np.arange(3, dtype=np.int32), (4, 1))
    logps = np.tile(np.float32([np.log(0.75), np.log(0.25), -np.inf]), (4, 1))
    p, q = np.array([0.75, 0.25]), log_softmax(student)[:, :2]
    np.testing.assert_allclose(kl(student, ids, logps), (p * (np.log(p) - q)).sum(-1), atol=1e-5)
    assert np.isfinite(kl_gradient(student, ids, logps)).all()


def test_kl_with_a_teacher_whose_tail_is_empty():
    """The top k hold all of the probability (or, by rounding, a little more): no log of 0 is taken."""
    student = np.random.default_rng(0).normal(0, 2, (9, V)).astype(np.float32)
    ids = np.tile(np.arange(5, dtype=np.int32), (9, 1))
    logps = np.log(np.tile([0.5, 0.25, 0.125, 0.0625, 0.0625], (9, 1))).astype(np.float32)
    logps[5:, 0] += 1e-6
    np.testing.assert_allclose(kl(student, ids, logps), brute_force_kl(student, ids, logps), atol=1e-5)
    expected = np.exp(log_softmax(student))  # the gradient of cross-entropy with these probabilities
    expected[:, :5] -= np.exp(logps)
    np.testing.assert_allclose(kl_gradient(student, ids, logps), expected, atol=1e-5)


# Objectives: which tokens and pairs count, and with what weight


@pytest.fixture(scope="module")
def outputs() -> Outputs:
    """Random hidden states over pairs of all kinds, with rows that have room left and one that is spare."""
    pairs = [
        make_pair("ordinary", [5, 6, 7], [10, 11], [12]),
        make_pair("no context", [], [13, 14], [15, 16]),
        make_pair("one token of context", [8], [17], [18, 19]),
        make_pair("long", [9, 9, 9, 9], [20, 21, 22, 23], [24]),
    ]
    batch, placement = pack_pairs(pairs, T, 4, reference.PAD, sizes=[R])
    rng = np.random.default_rng(0)
    batch.is_human = rng.integers(0, 2, (R, T)).astype(np.float32)
    ids, logps = teacher(rng.normal(0, 2, (R * T, V)), 5)
    batch.teacher_ids, batch.teacher_logps = ids.reshape(R, T, 5), logps.reshape(R, T, 5)
    hidden_RxTxD = rng.standard_normal((R, T, D)).astype(np.float32)
    batch.reference_logps = rng.uniform(-30, -10, (R, 4, 2)).astype(np.float32)
    assert (batch.segment_ids[-1] == 0).all()
    result = Outputs(reference.random_params(tiny(n_layer=1)), jnp.asarray(hidden_RxTxD), batch)
    result.pairs, result.placement = pairs, placement
    return result


@functools.partial(reference.jit, static_argnums=(3, 4, 5))
def sums(params, hidden_RxTxD, batch, name: str, lam: float, mu: float):
    outputs = Outputs(params, hidden_RxTxD, batch)
    terms = make_objective(name, lam, mu)
    return {key: (*term.sum(outputs, batch), term.weight(batch)) for key, term in terms.items()}


def loss_of(outputs: Outputs, name: str, lam: float = 1.0, mu: float = 1.0) -> tuple[float, dict[str, float]]:
    """The loss, and each term and metric alone, as their definition says: coefficient * sum / weight."""
    terms = sums(outputs.params, outputs.hidden_RxTxD, outputs.batch, name, lam, mu)
    loss, means = 0.0, {}
    for key, (total, metrics, weight) in terms.items():
        loss += make_objective(name, lam, mu)[key].coefficient * float(total / weight)
        means |= {key: float(total / weight)} | {metric: float(x / weight) for metric, x in metrics.items()}
    return loss, means


def side_logps(outputs: Outputs, pair: int, side: int, whole: bool) -> list[float]:
    """Log-probabilities of a side's predicted tokens, by a walk over its row.

    whole: of context and side; otherwise of the response alone.
    """
    (r,), (s,) = np.nonzero(outputs.placement.pair_RxS == pair)
    batch = outputs.batch
    this = outputs.pairs[pair]
    expected = np.concatenate([this.context, (this.good, this.bad)[side]])
    places = [
        t for t in range(T)
        if batch.segment_ids[r, t] == s + 1 and batch.branch_ids[r, t] in (0, side + 1)
    ]  # fmt: skip
    assert [batch.tokens[r, t] for t in places] == expected.tolist()
    first = 0 if whole else max(len(this.context) - 1, 0)
    logits = np.asarray(outputs.hidden_RxTxD[r], np.float64) @ np.asarray(outputs.params["lm_head"]["kernel"])
    logps = log_softmax(logits)
    return [logps[places[i], expected[i + 1]] for i in range(first, len(places) - 1)]


def pair_reward(outputs: Outputs, pair: int, side: int) -> float:
    """The reward at the side's last token."""
    (r,), (s,) = np.nonzero(outputs.placement.pair_RxS == pair)
    batch = outputs.batch
    last = max(t for t in range(T) if batch.segment_ids[r, t] == s + 1 and batch.branch_ids[r, t] == side + 1)
    assert batch.tokens[r, last] == reference.EOC
    head = outputs.params["score_head"]
    return float(np.asarray(outputs.hidden_RxTxD[r, last], np.float64) @ np.asarray(head["kernel"]) + head["bias"])


# Large logits in chunks


def test_how_many_chunks():
    """The fewest that divide a row and keep rows x tokens x vocabulary x 4 bytes below the limit, on one device."""
    assert logit_chunks(8, 128, 1024, None) == 1  # the embedded study: 4 MiB
    assert logit_chunks(1, 8192, 65536, None) == 8  # 2 GiB for one sequence
    assert logit_chunks(3, 24, 64, None, 4 * 3 * 8 * 64) == 3
    assert logit_chunks(3, 24, 64, None, 4 * 3 * 8 * 64 - 1) == 4
    assert logit_chunks(3, 24, 64, None, 1) == 24
    mesh = AbstractMesh((2, 4, 2), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    assert logit_chunks(64, 8192, 65536, mesh) == logit_chunks(8, 8192, 32768, None) == 32


def test_chunks_change_neither_losses_nor_gradients(outputs):
    """Three chunks of eight tokens, and one of 24, in every objective with logits; by all that the losses depend on."""

    @functools.partial(reference.jit, static_argnums=2)
    def losses(params, hidden_RxTxD, limit: int):
        def total(params, hidden_RxTxD):
            chunked = Outputs(params, hidden_RxTxD, outputs.batch, logit_bytes=limit)
            assert chunked.chunks == (1 if limit > 10**6 else 3)
            sums = {
                name: sum(term.sum(chunked, outputs.batch)[0] for term in make_objective(name).values())
                for name in ("lm", "imitation", "preference", "dpo", "distillation")
            }
            return sum(weight * sums[name] for weight, name in enumerate(sums, 1)), sums

        (_, sums), gradient = jax.value_and_grad(total, (0, 1), has_aux=True)(params, hidden_RxTxD)
        return sums, gradient

    (found, gradient), (expected, expected_gradient) = (
        losses(outputs.params, outputs.hidden_RxTxD, limit) for limit in (4 * R * 8 * V, 10**9)
    )
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, err_msg=name)
    reference.assert_trees_close(gradient, expected_gradient, 2e-6)


def test_language_modeling_counts_the_whole_good_sequence(outputs):
    logps = [x for pair in range(4) for x in side_logps(outputs, pair, 0, whole=True)]
    # Each good sequence with its end-of-context, less the first token, which nothing predicts.
    assert len(logps) == (3 + 3 - 1) + (3 - 1) + (1 + 2 - 1) + (4 + 5 - 1)
    assert loss_of(outputs, "lm")[0] == pytest.approx(-np.mean(logps), rel=1e-5)


def test_imitation_counts_the_good_response_and_nothing_else(outputs):
    logps = [x for pair in range(4) for x in side_logps(outputs, pair, 0, whole=False)]
    assert (
        len(logps) == 3 + (3 - 1) + 2 + 5
    )  # responses with end-of-context; without context the first is not predicted
    assert loss_of(outputs, "imitation")[0] == pytest.approx(-np.mean(logps), rel=1e-5)


@pytest.mark.parametrize("lam, mu", [(1.0, 1.0), (1.0, 0.0), (0.25, 3.0)])
def test_preference_is_lambda_pm_per_pair_plus_mu_lm_per_token(outputs, lam, mu):
    margins = np.array([pair_reward(outputs, p, 0) - pair_reward(outputs, p, 1) for p in range(4)])
    pm = np.log1p(np.exp(-margins)).mean()
    lm = -np.mean([x for pair in range(4) for x in side_logps(outputs, pair, 0, whole=True)])
    loss, metrics = loss_of(outputs, "preference", lam=lam, mu=mu)
    assert loss == pytest.approx(lam * pm + mu * lm, rel=1e-5)
    assert metrics["pm"] == pytest.approx(pm, rel=1e-5) and metrics["accuracy"] == (margins > 0).mean()
    assert set(make_objective("preference", lam, mu)) == ({"pm", "lm"} if mu else {"pm"})


def test_ties_count_half(outputs):
    flat = {"kernel": jnp.zeros(D), "bias": jnp.float32(3.0)}
    tied = Outputs(outputs.params | {"score_head": flat}, outputs.hidden_RxTxD, outputs.batch)
    loss, metrics = loss_of(tied, "preference", mu=0.0)
    assert metrics["accuracy"] == 0.5 and loss == pytest.approx(np.log(2))


def test_dpo_is_the_preference_loss_of_implicit_rewards(outputs):
    """beta times each response's log-probability less the reference's, of whole responses and at the pair's slot."""
    implicit = np.zeros((4, 2))
    for pair, side in np.ndindex(4, 2):
        (r,), (s,) = np.nonzero(outputs.placement.pair_RxS == pair)
        logp = sum(side_logps(outputs, pair, side, whole=False))
        implicit[pair, side] = 0.1 * (logp - outputs.batch.reference_logps[r, s, side])
    margins = implicit[:, 0] - implicit[:, 1]
    assert 0 < (margins > 0).mean() < 1
    loss, metrics = loss_of(outputs, "dpo")
    assert loss == pytest.approx(np.log1p(np.exp(-margins)).mean(), rel=1e-5)
    assert metrics["accuracy"] == (margins > 0).mean()


def test_distillation_counts_the_tokens_of_the_loss_mask(outputs):
    batch = outputs.batch
    logits = np.asarray(outputs.hidden_RxTxD, np.float64) @ np.asarray(outputs.params["lm_head"]["kernel"])
    kl = brute_force_kl(*(x.reshape(R * T, -1) for x in (logits, batch.teacher_ids, batch.teacher_logps)))
    assert loss_of(outputs, "distillation")[0] == pytest.approx(kl[batch.loss_mask.reshape(-1)].mean(), rel=1e-5)


def test_the_discriminator_counts_the_tokens_of_the_loss_mask(outputs):
    batch, head = outputs.batch, outputs.params["score_head"]
    logits = np.asarray(outputs.hidden_RxTxD, np.float64) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    losses = np.log1p(np.exp(-logits * (2 * batch.is_human - 1)))[batch.loss_mask]
    right = ((logits > 0) == (batch.is_human == 1))[batch.loss_mask]
    loss, metrics = loss_of(outputs, "discriminator")
    assert loss == pytest.approx(losses.mean(), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(right.mean())


def test_only_rewards_need_a_score_head():
    assert [name for name in reference.OBJECTIVES if needs_score_head(name)] == ["preference", "discriminator"]
