"""The one training step that all objectives share, and how its programs are compiled.

A state always begins with a seeds axis ``[G, ...]``: runs of one config that differ in their seed alone train together
in one program, one after the other within a step. With one seed the axis is dropped and put back at no cost.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from hhh_jax import objectives, optim, sharding
from hhh_jax.data.packing import Batch
from hhh_jax.model import ModelConfig, Params, abstract_params, hidden_states, init_params, init_score_head

State = dict[str, Any]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """All that a compiled step depends on besides the shapes of its batch; learning rate, task and seed are data.

    Attributes:
      model: the model.
      objective: ``lm``, ``imitation``, ``preference``, ``dpo``, ``distillation`` or ``discriminator``.
      lam, mu: coefficients of the PM and the LM term of ``preference``.
      b1, b2, eps, weight_decay, clip: of AdamW; ``clip`` 0 doesn't clip.
      accumulate: microbatches that a batch's rows are cut into.
      n_seeds: size ``G`` of the seeds axis.
      select: whether the state carries the best parameters so far by validation, ``best``.
      mesh: where it runs.
      logit_bytes: what logits may take on a device before they are computed in chunks.
      beta: how strongly ``dpo`` weighs log-probabilities.
    """

    model: ModelConfig
    objective: str
    lam: float
    mu: float
    b1: float
    b2: float
    eps: float
    weight_decay: float
    clip: float
    accumulate: int
    n_seeds: int
    select: bool
    mesh: Mesh
    logit_bytes: int = objectives.LOGIT_BYTES
    beta: float = 0.1

    @property
    def score_head(self) -> bool:
        return objectives.needs_score_head(self.objective)

    @property
    def reference(self) -> bool:
        """Whether the state carries the parameters that training starts from, ``reference``."""
        return objectives.needs_reference(self.objective)

    def terms(self) -> objectives.Objective:
        return objectives.make_objective(self.objective, self.lam, self.mu, self.beta)

    def optimizer(self) -> optax.GradientTransformation:
        return optim.make_optimizer(self.b1, self.b2, self.eps, self.weight_decay, self.clip)


def over_seeds(fn: Callable, n_seeds: int) -> Callable:
    """``fn`` mapped over the leading axis of all its arguments, one seed at a time."""
    if n_seeds > 1:
        return lambda *args: jax.lax.map(lambda args: fn(*args), args)

    def single(*args: Any) -> Any:
        return jax.tree.map(lambda x: x[None], fn(*jax.tree.map(lambda x: x[0], args)))

    return single


def microbatches(batch: Batch, accumulate: int) -> Batch:
    """``[R, ...]`` to ``[accumulate, R / accumulate, ...]``; rows are dealt in turn, so that shards stay in place."""
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, accumulate, *x.shape[1:]), 0, 1), batch)


def batch_loss(
    config: StepConfig, params: Params, batch: Batch, weights: dict[str, jax.Array]
) -> tuple[dict[str, jax.Array], Metrics]:
    """The terms of the objective on a batch, or on one microbatch of it.

    Args:
      weights: each term's weight over the whole global batch.

    Returns:
      ``{term: coefficient * sum / weight}``, whose values add up to the loss, and the metrics ``{name: sum / weight}``
      (the term itself without its coefficient under ``<term>_loss``); both add up over microbatches.
    """
    at_scores = objectives.reads_only_scores(config.objective, config.mu)
    read_RxM = batch.score_positions.reshape(len(batch.tokens), -1) if at_scores else None
    layout = batch.segment_ids, batch.branch_ids, batch.positions
    hidden_RxTxD = hidden_states(config.model, params, batch.tokens, *layout, config.mesh, read_RxM)
    outputs = objectives.Outputs(params, hidden_RxTxD, batch, config.mesh, config.logit_bytes, at_scores)
    terms, metrics = {}, {}
    for name, term in config.terms().items():
        total, extra = term.sum(outputs, batch)
        terms[name] = term.coefficient * total / weights[name]
        metrics[f"{name}_loss"] = total / weights[name]
        metrics |= {key: value / weights[name] for key, value in extra.items()}
    return terms, metrics


def with_reference(config: StepConfig, reference: Params, batch: Batch) -> Batch:
    """A batch of pairs with what the reference makes of it: a forward pass that nothing is differentiated through."""
    hidden_RxTxD = hidden_states(
        config.model, reference, batch.tokens, batch.segment_ids, batch.branch_ids, batch.positions, config.mesh
    )
    outputs = objectives.Outputs(reference, hidden_RxTxD, batch, config.mesh, config.logit_bytes)
    return dataclasses.replace(batch, reference_logps=outputs.pair_logps())


def trained_params(config: StepConfig, params: Params) -> Params:
    """The parameters that the objective reads; a head that it doesn't read has neither gradients nor moments."""
    read = objectives.needs_lm_head(config.objective, config.mu)
    return {name: tree for name, tree in params.items() if name != "lm_head" or read}


def batch_gradients(
    config: StepConfig, params: Params, batch: Batch, apart: bool, reference: Params | None = None
) -> tuple[dict[str, Params], dict[str, jax.Array], Metrics]:
    """Gradients of the loss over the batch, accumulated over its microbatches.

    Args:
      apart: whether to take each term's gradient by itself, which costs one backward pass a term.
      reference: of the objectives that need one.

    Returns:
      ``{"loss": gradient}``, or ``{term: gradient}`` if ``apart``, of `trained_params`; the terms; the metrics.
    """
    objective = config.terms()
    weights = {name: jnp.maximum(term.weight(batch), 1.0) for name, term in objective.items()}
    chosen = {name: (name,) for name in objective} if apart else {"loss": tuple(objective)}

    def gradients(micro: Batch) -> tuple[dict[str, Params], dict[str, jax.Array], Metrics]:
        micro = micro if reference is None else with_reference(config, reference, micro)

        def loss(trained: Params) -> tuple[dict[str, jax.Array], tuple[dict[str, jax.Array], Metrics]]:
            terms, metrics = batch_loss(config, params | trained, micro, weights)
            losses = {key: sum((terms[name] for name in names), jnp.float32(0)) for key, names in chosen.items()}
            return losses, (terms, metrics)

        losses, pullback, (terms, metrics) = jax.vjp(loss, trained_params(config, params), has_aux=True)
        one = {key: {k: jnp.float32(k == key) for k in losses} for key in losses}
        return {key: pullback(one[key])[0] for key in losses}, terms, metrics

    if config.accumulate == 1:
        return gradients(batch)
    micros = microbatches(batch, config.accumulate)
    shapes = jax.eval_shape(gradients, jax.tree.map(lambda x: x[0], micros))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(total: Any, micro: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradients(micro)), None

    return jax.lax.scan(add, zeros, micros)[0]


def train_step(
    config: StepConfig, term_norms: bool, state: State, batch: Batch, lr_G: jax.Array
) -> tuple[State, Metrics]:
    """One update of the state of every seed.

    Gradients are taken seed by seed and the elementwise update for all at once, which is less to compile.

    Args:
      term_norms: whether to record the gradient norm of each term, ``<term>_grad_norm``, before clipping.
      state: ``params``, ``opt_state`` and, untouched here, ``best`` and ``reference``; ``[G, ...]``.
      batch: ``[G, R, ...]``.
      lr_G: learning rate of this update, float32.

    Returns:
      The new state and the metrics ``[G]``: ``loss``, ``<term>_loss``, ``grad_norm`` (before clipping) and what the
      objective adds.
    """
    gradients, terms, metrics = over_seeds(
        lambda params, batch, reference: batch_gradients(config, params, batch, term_norms, reference), config.n_seeds
    )(state["params"], batch, state.get("reference"))
    total = functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), gradients.values())
    norms_of = jax.vmap(optax.tree_utils.tree_norm)
    metrics |= {"loss": sum(terms.values(), jnp.float32(0)), "grad_norm": norms_of(total)}
    if len(gradients) > 1:
        metrics |= {f"{name}_grad_norm": norms_of(gradient) for name, gradient in gradients.items()}

    return updated(config, state, total, lr_G), metrics


def updated(config: StepConfig, state: State, gradients: Params, lr_G: jax.Array) -> State:
    """The state after an update by the ``gradients`` ``[G, ...]`` of `trained_params`."""

    @jax.vmap
    def update(gradients: Params, opt_state: Any, params: Params, lr: jax.Array) -> tuple[Params, Any]:
        updates, opt_state = config.optimizer().update(gradients, opt_state, params)
        return jax.tree.map(lambda p, u: p + lr * u, params, updates), opt_state

    trained, opt_state = update(gradients, state["opt_state"], trained_params(config, state["params"]), lr_G)
    return state | {"params": state["params"] | trained, "opt_state": opt_state}


def len_terms(config: StepConfig) -> int:
    """Number of terms of the objective."""
    return len(config.terms())


@functools.lru_cache(maxsize=32)
def compiled_step(config: StepConfig, term_norms: bool) -> jax.stages.Wrapped:
    """``(state [G, ...], batch [G, R, ...], lr [G]) -> (state, metrics [G])``, jitted; donates the state."""
    step = functools.partial(train_step, config, term_norms)
    shardings = sharding.state_shardings(abstract_state(config), config.mesh)
    everywhere = sharding.replicated(config.mesh)
    return jax.jit(
        step,
        in_shardings=(shardings, sharding.batch_sharding(config.mesh), everywhere),
        out_shardings=(shardings, everywhere),
        donate_argnums=0,
    )


def state_of(config: StepConfig, params: Params) -> State:
    """One seed's state before the first update of ``params``."""
    state: State = {"params": params, "opt_state": config.optimizer().init(trained_params(config, params))}
    if config.select:
        state["best"] = {"params": params, "value": jnp.float32(-jnp.inf), "step": jnp.int32(0)}
    if config.reference:
        state["reference"] = params
    return state


@functools.lru_cache(maxsize=64)
def abstract_state(config: StepConfig) -> State:
    """The state of all seeds as shapes."""
    single = jax.eval_shape(functools.partial(state_of, config), abstract_params(config.model, config.score_head))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((config.n_seeds, *x.shape), x.dtype), single)


def sharded_abstract_state(config: StepConfig) -> State:
    """`abstract_state` with the shardings that the step takes, which is what a checkpoint is restored onto."""
    shape = abstract_state(config)
    shardings = sharding.state_shardings(shape, config.mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shape, shardings)


def init_state(config: StepConfig, seeds: tuple[int, ...], params: Params | None = None) -> State:
    """The state of all seeds, created on the mesh.

    Args:
      seeds: one integer a seed.
      params: parameters ``[G, ...]`` of an earlier stage to start from; None initializes them all. A score head that
        `params` lacks and the objective needs is initialized from the seed.
    """
    keys_G = jnp.stack([jax.random.key_data(jax.random.key(seed)) for seed in seeds])
    return _compiled_init(config)(keys_G, *([] if params is None else [params]))


@functools.lru_cache(maxsize=32)
def _compiled_init(config: StepConfig) -> Callable[..., State]:
    def start(key_data: jax.Array, params: Params | None = None) -> State:
        key = jax.random.wrap_key_data(key_data)
        if params is None:
            params = init_params(config.model, key, config.score_head)
        elif config.score_head and "score_head" not in params:
            params = params | {"score_head": init_score_head(config.model, key)}
        return state_of(config, params)

    shardings = sharding.state_shardings(abstract_state(config), config.mesh)
    # Runs once: on a CPU, optimizing its many small kernels would take three times as long as all the rest.
    options = {"xla_backend_optimization_level": 0} if config.mesh.devices.flat[0].platform == "cpu" else None
    return jax.jit(jax.vmap(start), out_shardings=shardings, compiler_options=options)


@functools.lru_cache(maxsize=32)
def compiled_selection(config: StepConfig) -> Callable[[State, Any, Any], State]:
    """``(state, value [G], step) -> state``, its ``best`` replaced where ``value`` is higher (a tie keeps it)."""

    def select(state: State, value_G: jax.Array, step: jax.Array) -> State:
        better_G = value_G > state["best"]["value"]

        def choose(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(better_G.reshape(-1, *[1] * (old.ndim - 1)), new, old)

        new = {"params": state["params"], "value": value_G, "step": jnp.full_like(state["best"]["step"], step)}
        return state | {"best": jax.tree.map(choose, new, state["best"])}

    shardings = sharding.state_shardings(abstract_state(config), config.mesh)
    everywhere = sharding.replicated(config.mesh)
    return jax.jit(
        select, in_shardings=(shardings, everywhere, everywhere), out_shardings=shardings, donate_argnums=0
    )
