"""The step: accumulation, terms, seeds trained together, selection; and that a planted ranking is found."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
import reference
from reference import PAD, assert_trees_close, example_batch, make_pair, random_params, step_config, tiny

from hhh_jax import evaluate, scoring, train
from hhh_jax.data.loader import PairLoader, stack
from hhh_jax.data.packing import Batch, pack_pairs
from hhh_jax.model import Params, hidden_states
from hhh_jax.objectives import Outputs, preference_loss

MODEL, LAM, MU = tiny(n_layer=1), reference.LAM, reference.MU
BATCH = example_batch(8, 9)


def params_of(config: train.StepConfig, seed: int = 0) -> Params:
    params = random_params(config.model, seed)
    return params if config.score_head else {name: params[name] for name in ("transformer", "lm_head")}


@functools.partial(reference.jit, static_argnums=0)
def gradients(config: train.StepConfig, params: Params, batch: Batch):
    return train.batch_gradients(config, params, batch, False)


# Accumulation


def test_microbatches_deal_rows_in_turn():
    batch = dataclasses.replace(example_batch(6, 7), tokens=np.arange(6 * 24).reshape(6, 24))
    micro = train.microbatches(batch, 3)
    assert micro.tokens.shape == (3, 2, 24) and micro.teacher_ids.shape == (3, 2, 24, 4)
    assert (micro.tokens[1] == batch.tokens[[1, 4]]).all()
    assert (micro.pair_mask[2] == batch.pair_mask[[2, 5]]).all()


@pytest.fixture(scope="module")
def whole() -> dict[str, tuple[jax.Array, Params]]:
    """``{objective: (loss, gradient)}`` of one batch of eight rows, by definition."""
    losses, gradients = reference.jit(functools.partial(reference.all_objectives, MODEL))(random_params(MODEL), BATCH)
    return {
        name: (losses[i], jax.tree.map(lambda x, i=i: x[i], gradients)) for i, name in enumerate(reference.OBJECTIVES)
    }


@pytest.mark.parametrize("objective", reference.OBJECTIVES)
def test_eight_microbatches_of_one_row_equal_one_of_eight(whole, objective):
    """Masks are ragged and one row is spare, so a mean of the microbatches' means would be another number."""
    weights = [int(row.sum()) for row in BATCH.loss_mask]
    assert weights[-1] == 0 and len(set(weights)) > 4
    config = step_config(objective, MODEL, lam=LAM, mu=MU, accumulate=8)
    gradient, terms, metrics = gradients(config, params_of(config), BATCH)
    loss, expected = whole[objective]
    assert set(terms) == ({"pm", "lm"} if objective == "preference" else {objective})
    assert float(sum(terms.values())) == pytest.approx(float(loss), rel=1e-6)
    coefficients = {"pm": LAM, "lm": MU} if objective == "preference" else {objective: 1.0}
    for name, term in terms.items():
        assert float(term) == pytest.approx(coefficients[name] * float(metrics[f"{name}_loss"]), rel=1e-6)
    assert_trees_close(gradient["loss"], {name: expected[name] for name in gradient["loss"]}, 1e-5)


# Terms


def norm(tree: Any) -> float:
    return float(np.sqrt(sum((np.asarray(leaf, np.float64) ** 2).sum() for leaf in jax.tree.leaves(tree))))


def test_the_record_has_the_norm_of_each_terms_gradient(whole):
    """Of ``0.7 L_PM + 0.5 L_LM``: of the sum, and of each term with its coefficient, before any clipping."""
    config = step_config("preference", MODEL, lam=LAM, mu=MU, clip=1e-3)
    state, batch = jax.tree.map(lambda x: x[None], (train.state_of(config, params_of(config)), BATCH))
    _, recorded = reference.jit(functools.partial(train.train_step, config, True))(state, batch, np.array([0.01]))
    recorded = {name: value[0] for name, value in recorded.items()}
    (loss, total), (lm_loss, lm) = whole["preference"], whole["lm"]
    pm = jax.tree.map(lambda both, lm: both - MU * lm, total, lm)
    names = {"loss", "grad_norm", "pm_loss", "lm_loss", "accuracy", "pm_grad_norm", "lm_grad_norm"}
    assert set(recorded) == names
    found = {name: float(value) for name, value in recorded.items()}
    assert found["loss"] == pytest.approx(float(loss), rel=1e-6)
    assert found["loss"] == pytest.approx(LAM * found["pm_loss"] + MU * found["lm_loss"], rel=1e-6)
    assert found["lm_loss"] == pytest.approx(float(lm_loss), rel=1e-6)
    assert found["grad_norm"] == pytest.approx(norm(total), rel=1e-5)
    assert found["pm_grad_norm"] == pytest.approx(norm(pm), rel=1e-5)
    assert found["lm_grad_norm"] == pytest.approx(MU * norm(lm), rel=1e-5)


# Seeds together, and a planted ranking

PLANTED = step_config("preference", tiny(n_layer=1, vocab_size=32), mu=0.0, n_seeds=2, clip=1.0)
LENGTH, SLOTS, BATCH_PAIRS, STEPS = 24, 2, 32, 150


def ranked_pairs(n: int, seed: int, shuffled: bool) -> list:
    """Tokens have hidden values, and the side whose three tokens add up to more is the good one."""
    rng = np.random.default_rng(seed)
    values, pairs = np.random.default_rng(0).permutation(30), []
    while len(pairs) < n:
        sides = rng.integers(2, 32, (2, 3))
        totals = values[sides - 2].sum(1)
        if totals[0] == totals[1]:
            continue
        first = rng.integers(2) if shuffled else int(totals[1] > totals[0])
        context = rng.integers(2, 32, 2)
        pairs.append(make_pair(str(len(pairs)), list(context), list(sides[first]), list(sides[1 - first])))
    return pairs


@pytest.fixture(scope="module")
def loaders() -> list[PairLoader]:
    """True comparisons, and ones whose labels are drawn by lot."""
    return [
        PairLoader(ranked_pairs(STEPS * BATCH_PAIRS, 1, shuffled), BATCH_PAIRS, LENGTH, SLOTS, PAD, BATCH_PAIRS)
        for shuffled in (False, True)
    ]


@pytest.fixture(scope="module")
def start() -> train.State:
    state = train.init_state(PLANTED, (3, 5))
    return jax.tree.map(np.array, state)


def both_batches(loaders: list[PairLoader], step: int) -> Batch:
    return stack([jax.tree.map(lambda x: x[0], loader.batch(step, (0,))) for loader in loaders])


@functools.partial(reference.jit, static_argnums=0)
def update(config: train.StepConfig, state: train.State, batch: Batch, lr: Any):
    """What `train.compiled_step` compiles, in less time."""
    return train.train_step(config, False, state, batch, lr)


def test_seeds_together_equal_seeds_alone(loaders, start):
    """Each keeps to its own data, its own parameters and its own learning rate."""
    together, lrs = start, np.array([0.01, 0.003], np.float32)
    for step in range(3):
        together, metrics = update(PLANTED, together, both_batches(loaders, step), lrs)
    one = dataclasses.replace(PLANTED, n_seeds=1)
    for g in range(2):
        alone = jax.tree.map(lambda x, g=g: x[g : g + 1], start)
        for step in range(3):
            batch = jax.tree.map(lambda x, g=g: x[g : g + 1], both_batches(loaders, step))
            alone, alone_metrics = update(one, alone, batch, lrs[g : g + 1])
        assert_trees_close(jax.tree.map(lambda x, g=g: x[g : g + 1], together["params"]), alone["params"], 1e-6)
        assert float(metrics["loss"][g]) == pytest.approx(float(alone_metrics["loss"][0]), rel=1e-6)
    assert int(together["opt_state"][1].count[0]) == 3


def test_a_planted_ranking_is_found_and_shuffled_labels_give_chance(loaders, start):
    state = start
    for step in range(STEPS):
        lr = np.full(2, 0.01, np.float32)
        state, _ = update(PLANTED, state, both_batches(loaders, step), lr)
    scorer = scoring.Scorer(PLANTED.model, state["params"], 2, PLANTED.mesh, 32, LENGTH, PAD)
    accuracy = [
        evaluate.right(evaluate.score_pairs(scorer, ranked_pairs(1000, 2, shuffled), ("reward",)).margins("reward"))
        for shuffled in (False, True)
    ]
    assert accuracy[0][0].mean() > 0.9
    assert abs(accuracy[1][1].mean() - 0.5) < 0.06  # four standard deviations of 1000 coins


# DPO and its reference


def dpo_loss(pairs: list, params: Params, start: Params, beta: float) -> float:
    """Mean over pairs, each side alone in float64: the definition."""

    def implicit(sequence: np.ndarray, n: int) -> float:
        now, before = (reference.target_logps(MODEL, p, sequence)[-n:].sum() for p in (params, start))
        return beta * (now - before)

    losses = []
    for pair in pairs:
        first = max(len(pair.context), 1)
        good, bad = (implicit(sequence, len(sequence) - first) for sequence in reference.sides(pair))
        losses.append(np.log1p(np.exp(bad - good)))
    return float(np.mean(losses))


def test_dpo_equals_pairs_one_by_one_and_its_gradient_finite_differences():
    """Of pairs that share contexts in packed rows, with another reference than the parameters."""
    pairs = reference.random_pairs(np.random.default_rng(4), 7)
    batch, _ = pack_pairs(pairs, 48, 4, PAD, sizes=[5])
    config = step_config("dpo", MODEL, beta=0.7)
    params, start = params_of(config, 0), params_of(config, 1)
    compute = reference.jit(lambda params, start: train.batch_gradients(config, params, batch, False, start))
    gradient, terms, _ = compute(params, start)
    assert float(terms["dpo"]) == pytest.approx(dpo_loss(pairs, params, start, 0.7), rel=1e-5)
    along, step = jax.tree.map(lambda x: np.asarray(x, np.float64), gradient["loss"]), 1e-4
    ahead, behind = (
        dpo_loss(pairs, jax.tree.map(lambda p, g, sign=sign: p + sign * step * g, params, along), start, 0.7)
        for sign in (1, -1)
    )
    assert (ahead - behind) / (2 * step) == pytest.approx(norm(along) ** 2, rel=1e-3)


def test_dpo_starts_at_log_2_finds_a_planted_ranking_and_keeps_its_reference(loaders):
    config = dataclasses.replace(PLANTED, objective="dpo")
    state = jax.tree.map(np.array, train.init_state(config, (3, 5)))
    before = state["reference"]
    assert "score_head" not in before
    assert_trees_close(before, state["params"], 0)
    held_out = ranked_pairs(1000, 2, shuffled=False)

    def accuracy(state: train.State) -> np.ndarray:
        scorer = scoring.Scorer(config.model, state["params"], 2, config.mesh, 32, LENGTH, PAD)
        scores = evaluate.score_pairs(scorer._replace(reference=state["reference"]), held_out, ("implicit_reward",))
        return evaluate.right(scores.margins("implicit_reward")).mean(1)

    assert (accuracy(state) == 0.5).all()  # all are ties
    for step in range(STEPS):
        state, metrics = update(config, state, both_batches(loaders, step), np.full(2, 0.01, np.float32))
        if step == 0:
            np.testing.assert_allclose(metrics["loss"], np.log(2), rtol=1e-6)
    assert accuracy(state)[0] > 0.9
    assert_trees_close(state["reference"], before, 0)


def test_a_head_that_the_objective_does_not_read_stays_and_has_no_moments():
    batch = example_batch(4, 4)
    for config in (step_config("preference", tiny(), mu=0.0), step_config("discriminator", tiny())):
        state = train.init_state(config, (0,))
        before = jax.tree.map(np.array, state["params"])
        moments = state["opt_state"][1].mu
        assert moments.keys() == {"transformer", "score_head"}
        after, _ = update(config, state, jax.tree.map(lambda x: x[None], batch), np.full(1, 0.1, np.float32))
        assert_trees_close(after["params"]["lm_head"], before["lm_head"], 0)
        for name in moments:
            assert not np.array_equal(jax.tree.leaves(after["params"][name])[-1], jax.tree.leaves(before[name])[-1])
    read = train.init_state(step_config("preference", tiny(), mu=0.1), (0,))
    assert read["opt_state"][1].mu.keys() == {"transformer", "score_head", "lm_head"}


@pytest.mark.parametrize(
    "model", [{"n_layer": 1, "remat": "full"}, {"n_layer": 3, "residual": "parallel", "positions": "learned"}]
)
def test_the_last_layer_at_scores_only_gives_the_same_loss_and_gradient(model):
    config = step_config("preference", tiny(**model), mu=0.0)
    params, batch = random_params(config.model), example_batch(4, 4)
    layout = batch.segment_ids, batch.branch_ids, batch.positions

    @reference.jit
    @jax.value_and_grad
    def everywhere(trained):
        hidden = hidden_states(config.model, params | trained, batch.tokens, *layout)
        good, bad = Outputs(params | trained, hidden, batch).pair_rewards()
        return (preference_loss(good, bad) * batch.pair_mask).sum() / batch.pair_mask.sum()

    loss, gradient = everywhere(train.trained_params(config, params))
    found, terms, _ = gradients(config, params, batch)
    assert float(terms["pm"]) == pytest.approx(float(loss), rel=1e-5)
    assert_trees_close(found["loss"], gradient, 2e-5)


# States


def test_a_state_begins_at_the_seed_or_at_an_earlier_stages_parameters(start):
    params = start["params"]
    for name in ("lm_head", "score_head"):
        assert (params[name]["kernel"][0] != params[name]["kernel"][1]).all()
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(start["opt_state"]))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), start) == jax.tree.map(
        lambda x: (x.shape, x.dtype), train.abstract_state(PLANTED)
    )
    # From a language model: its parameters, and a fresh head that the seed alone decides.
    lm = {name: params[name] for name in ("transformer", "lm_head")}
    config = dataclasses.replace(PLANTED, select=True)
    states = [train.init_state(config, seeds, lm) for seeds in ((3, 5), (5, 6))]
    for state in states:
        assert_trees_close({name: state["params"][name] for name in lm}, lm, 0)
        assert_trees_close(state["best"]["params"], state["params"], 0)
        assert (state["best"]["value"] == -np.inf).all() and not state["best"]["step"].any()
    heads = [state["params"]["score_head"]["kernel"] for state in states]
    assert (heads[0][1] == heads[1][0]).all() and (heads[0][0] != heads[0][1]).all()
    # From a preference model, whose head is kept.
    kept = train.init_state(config, (3, 5), params)
    assert_trees_close(kept["params"], params, 0)


def test_selection_keeps_the_better_of_each_seed_and_the_earlier_of_equals():
    config = step_config("imitation", MODEL, n_seeds=2, select=True)
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), train.abstract_state(config))
    state["best"]["value"] = np.full(2, -np.inf, np.float32)
    select = train.compiled_selection(config)
    history = [((0.5, 0.5), 10), ((0.6, 0.4), 20), ((0.6, 0.5), 30), ((0.55, 0.7), 40), ((0.9, np.nan), 50)]
    expected = [((10, 10), (0.5, 0.5)), ((20, 10), (0.6, 0.5)), ((20, 10), (0.6, 0.5)), ((20, 40), (0.6, 0.7)),
                ((50, 40), (0.9, 0.7))]  # fmt: skip
    for (value, step), (steps, values) in zip(history, expected, strict=True):
        state["params"] = jax.tree.map(lambda x, step=step: np.full(x.shape, step, x.dtype), state["params"])
        state = select(state, np.array(value, np.float32), np.int32(step))
        assert tuple(state["best"]["step"]) == steps
        assert tuple(state["best"]["value"]) == pytest.approx(values)
        for leaf in jax.tree.leaves(state["best"]["params"]):
            assert (leaf[0] == steps[0]).all() and (leaf[1] == steps[1]).all()
        assert all((leaf == step).all() for leaf in jax.tree.leaves(state["params"]))
