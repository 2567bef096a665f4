"""The optimizer and the learning rate, which is data to the compiled step."""

import math

import jax
import numpy as np
import optax

from hhh_jax.model import Params


def pretraining_lr(n_nonembedding: int) -> float:
    """Peak learning rate of language-model pretraining for a rung of ``n_nonembedding`` parameters.

    ``1e-4 * (N / 12.6e9) ** (-1/3)``, which runs close to the rates of GPT-3's table (within 20%): with this
    ladder it is proportional to ``1 / d_model``. The paper does not state its own.
    """
    return 1e-4 * (n_nonembedding / 12.6e9) ** (-1 / 3)


def learning_rate(
    step: int, total_steps: int, *, peak: float, warmup_steps: int, schedule: str, final_fraction: float
) -> float:
    """The rate of update ``step`` (from 0): linear warm-up, then ``constant``, ``linear`` or ``cosine`` decay.

    Decay ends at ``final_fraction * peak`` on the last of ``total_steps``.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(total_steps - 1 - warmup_steps, 1)
    share = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}[schedule]
    return peak * (final_fraction + (1.0 - final_fraction) * share) if schedule != "constant" else peak


def _decayed(params: Params) -> Params:
    """Weight decay acts on matrices; gains, biases and the score head are left alone."""

    def is_matrix(path: tuple, _leaf: jax.Array) -> bool:
        names = [key.key for key in path]
        return names[-1] in ("kernel", "embedding", "position_embedding") and "score_head" not in names

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def make_optimizer(b1: float, b2: float, eps: float, weight_decay: float, clip: float) -> optax.GradientTransformation:
    """AdamW behind clipping by the global norm, at learning rate 1: the step multiplies by the rate it is given."""
    return optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay, mask=_decayed) if weight_decay else optax.identity(),
        optax.scale(np.float32(-1.0)),
    )
