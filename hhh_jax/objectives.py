"""Every loss of the paper, pure.

The array functions at the top are the losses themselves. An *objective* sums them over a batch: each of its terms is
a coefficient, a sum and a weight, never a mean, so that accumulating microbatches with ragged masks equals the large
batch: ``loss = sum over terms of coefficient * (sum over the global batch) / (weight of the global batch)``.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from hhh_jax import sharding
from hhh_jax.data.packing import Batch
from hhh_jax.model import Params, lm_logits, rewards


def token_logps(logits_NxV: jax.Array, targets_N: jax.Array) -> jax.Array:
    """Log-probability in nats of each target, float32 ``[N]``."""
    target_logits_N = jnp.take_along_axis(logits_NxV, targets_N[:, None], axis=-1)[:, 0]
    return target_logits_N - jax.nn.logsumexp(logits_NxV, axis=-1)


def preference_loss(reward_good: jax.Array, reward_bad: jax.Array) -> jax.Array:
    """Eq. 3.1, ``log(1 + exp(r_bad - r_good))`` of each pair, in float32; overflows for no difference."""
    return jax.nn.softplus(reward_bad.astype(jnp.float32) - reward_good.astype(jnp.float32))


def discriminator_loss(logits: jax.Array, is_human: jax.Array) -> jax.Array:
    """Appendix D: binary cross-entropy of each token; ``is_human`` is 1 for a human's token and 0 for a model's."""
    return jax.nn.softplus(logits) - is_human * logits


def distillation_kl(logits_NxV: jax.Array, teacher_ids_NxK: jax.Array, teacher_logps_NxK: jax.Array) -> jax.Array:
    """Eq. 2.1 on ``k + 1`` categories: ``KL(teacher || student)`` in nats for each token, float32 ``[N]``.

    The categories are the teacher's top ``k`` tokens and, as the last one, all others together (appendix B.5).
    Both sides have the tail category, so the divergence is never negative; at ``k = V`` it is the full KL.

    Args:
      logits_NxV: the student's logits.
      teacher_ids_NxK: int32 ids of the teacher's most probable tokens, distinct within a row.
      teacher_logps_NxK: their log-probabilities under the teacher; -inf where a probability is zero.
    """
    log_z_N = jax.nn.logsumexp(logits_NxV, axis=-1)
    student_NxK = jnp.take_along_axis(logits_NxV, teacher_ids_NxK, axis=-1) - log_z_N[:, None]
    rows_Nx1 = jnp.arange(logits_NxV.shape[0])[:, None]
    rest_NxV = logits_NxV.at[rows_Nx1, teacher_ids_NxK].set(-jnp.inf)
    has_rest = logits_NxV.shape[-1] > teacher_ids_NxK.shape[-1]
    teacher_tail_N = jnp.clip(1.0 - jnp.exp(teacher_logps_NxK).sum(-1), 0.0, 1.0) if has_rest else 0.0
    student_tail_N = jax.nn.logsumexp(rest_NxV, axis=-1) - log_z_N if has_rest else 0.0
    # x log x is 0 at 0, and its logarithm must not be evaluated there.
    teacher_log_tail_N = jnp.log(jnp.where(teacher_tail_N > 0, teacher_tail_N, 1.0))
    known_NxK = jnp.isfinite(teacher_logps_NxK)
    excess_NxK = jnp.where(known_NxK, teacher_logps_NxK, 0.0) - student_NxK
    top_N = jnp.where(known_NxK, jnp.exp(teacher_logps_NxK) * excess_NxK, 0.0).sum(-1)
    return top_N + jnp.where(teacher_tail_N > 0, teacher_tail_N * (teacher_log_tail_N - student_tail_N), 0.0)


LOGIT_BYTES = 2**28
"""What the float32 logits of a batch may take on one device; those of a larger one are computed chunk by chunk."""


def logit_chunks(rows: int, length: int, vocab_size: int, mesh: Mesh | None, limit: int = LOGIT_BYTES) -> int:
    """Into how many chunks of tokens each row is cut, so that the logits of a chunk take at most `limit` bytes."""
    rows, vocab_size = (rows, vocab_size) if mesh is None else sharding.local_logits(rows, vocab_size, mesh)
    fitting = (n for n in range(1, length) if length % n == 0 and 4 * rows * length // n * vocab_size <= limit)
    return next(fitting, length)


class Outputs:
    """What the heads say of a batch, computed when asked for: a head that no term needs costs nothing.

    Args:
      params: the model's parameters.
      hidden_RxTxD: hidden states of the batch.
      batch: the batch they belong to.
      mesh: what rows and parameters are divided over; None for a single device.
      logit_bytes: see `LOGIT_BYTES`.
      at_scores: whether the hidden states are those of ``batch.score_positions`` only, ``[R, 2 S, D]``.
    """

    def __init__(
        self,
        params: Params,
        hidden_RxTxD: jax.Array,
        batch: Batch,
        mesh: Mesh | None = None,
        logit_bytes: int = LOGIT_BYTES,
        at_scores: bool = False,
    ):
        self.at_scores = at_scores
        self.params, self.hidden_RxTxD, self.batch, self.mesh = params, hidden_RxTxD, batch, mesh
        rows, length, _ = hidden_RxTxD.shape
        self.chunks = logit_chunks(rows, length, params["lm_head"]["kernel"].shape[-1], mesh, logit_bytes)

    def over_logits(self, per_token: Callable[..., jax.Array], *arrays_RxT: jax.Array) -> jax.Array:
        """``per_token(logits_NxV, *arrays_N) -> [N]`` for all tokens, ``[R, T]``; `arrays_RxT` are ``[R, T, ...]``.

        Large batches are cut along tokens, one chunk after the other on every device; the backward pass computes the
        logits of a chunk again. Neither pass ever holds the logits of more than a chunk.
        """

        def all_at_once(kernel_DxV: jax.Array, hidden_RxCxD: jax.Array, *arrays_RxC: jax.Array) -> jax.Array:
            r, c, d = hidden_RxCxD.shape
            logits_NxV = lm_logits({"lm_head": {"kernel": kernel_DxV}}, hidden_RxCxD.reshape(-1, d), self.mesh)
            return per_token(logits_NxV, *(x.reshape(r * c, *x.shape[2:]) for x in arrays_RxC)).reshape(r, c)

        def in_chunks(kernel_DxV: jax.Array, *arrays_RxT: jax.Array) -> jax.Array:
            def split(x_RxT: jax.Array) -> jax.Array:
                return jnp.swapaxes(x_RxT.reshape(x_RxT.shape[0], self.chunks, -1, *x_RxT.shape[2:]), 0, 1)

            chunk = jax.checkpoint(lambda arrays_RxC: all_at_once(kernel_DxV, *arrays_RxC))
            values_NxRxC = jax.lax.map(chunk, tuple(map(split, arrays_RxT)))
            return jnp.swapaxes(values_NxRxC, 0, 1).reshape(arrays_RxT[0].shape[:2])

        kernel_DxV = sharding.gather_once(self.params["lm_head"]["kernel"], self.hidden_RxTxD.dtype, self.mesh)
        local = all_at_once if self.chunks == 1 else in_chunks
        return sharding.by_rows(self.mesh, local, kernel_DxV, self.hidden_RxTxD, *arrays_RxT)

    def target_logps(self) -> jax.Array:
        """Log-probability of each token's target, float32 ``[R, T]``; meaningless where no mask is set."""
        return self.over_logits(token_logps, self.batch.targets)

    def pair_logps(self) -> jax.Array:
        """Summed log-probability of the good and the bad response of each pair, end-of-context included, float32
        ``[R, S, 2]``; zeros in empty slots."""
        batch, slots = self.batch, self.batch.pair_mask.shape[1]
        in_slot_RxTxS = batch.segment_ids[..., None] == jnp.arange(1, slots + 1)  # segments are slots, from 1 on
        on_side_RxTx2 = (batch.branch_ids[..., None] == jnp.arange(1, 3)) & batch.response_mask[..., None]
        theirs_RxTxSx2 = in_slot_RxTxS[..., None] & on_side_RxTx2[:, :, None, :]
        return jnp.where(theirs_RxTxSx2, self.target_logps()[..., None, None], 0.0).sum(axis=1)

    def pair_rewards(self) -> tuple[jax.Array, jax.Array]:
        """Rewards of the good and the bad side of each pair, float32 ``[R, S]`` each; zeros in empty slots."""
        positions_RxSx2 = self.batch.score_positions
        r, s, _ = positions_RxSx2.shape
        hidden_RxSx2xD = self.hidden_RxTxD
        if not self.at_scores:
            hidden_RxSx2xD = jnp.take_along_axis(hidden_RxSx2xD, positions_RxSx2.reshape(r, s * 2)[:, :, None], axis=1)
        hidden_RxSx2xD = hidden_RxSx2xD.reshape(r, s, 2, -1)
        rewards_RxSx2 = rewards(self.params, hidden_RxSx2xD)
        return rewards_RxSx2[..., 0], rewards_RxSx2[..., 1]


class Term(NamedTuple):
    """One term of an objective: ``coefficient * sum(outputs, batch) / weight(batch)``.

    ``sum`` also returns the metrics that come for free as ``{name: sum}``, which share the term's weight.
    """

    coefficient: float
    weight: Callable[[Batch], jax.Array]
    sum: Callable[[Outputs, Batch], tuple[jax.Array, dict[str, jax.Array]]]


Objective = dict[str, Term]


def _masked_nll(mask: Callable[[Batch], jax.Array]) -> tuple[Callable, Callable]:
    def total(outputs: Outputs, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        return -(outputs.target_logps() * mask(batch)).sum(), {}

    return lambda batch: mask(batch).sum(dtype=jnp.float32), total


def language_modeling(coefficient: float = 1.0) -> Objective:
    """Next-token loss per token over whole documents, or over the whole good sequence of pairs (C.3: unmasked)."""
    weight, total = _masked_nll(lambda batch: batch.loss_mask)
    return {"lm": Term(coefficient, weight, total)}


def imitation() -> Objective:
    """Language modeling on the good sequence's response tokens, end-of-context included (section 3)."""
    weight, total = _masked_nll(lambda batch: batch.loss_mask & batch.response_mask)
    return {"imitation": Term(1.0, weight, total)}


def _contrast(
    coefficient: float, rewards_of: Callable[[Outputs, Batch], tuple[jax.Array, jax.Array]]
) -> Term:
    """L_PM per pair, of the rewards ``[R, S]`` of good and bad sides."""

    def total(outputs: Outputs, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        good_RxS, bad_RxS = rewards_of(outputs, batch)
        right_RxS = (good_RxS > bad_RxS) + 0.5 * (good_RxS == bad_RxS)
        loss_RxS = preference_loss(good_RxS, bad_RxS)
        return (loss_RxS * batch.pair_mask).sum(), {"accuracy": (right_RxS * batch.pair_mask).sum()}

    return Term(coefficient, lambda batch: batch.pair_mask.sum(dtype=jnp.float32), total)


def preference(pm_coefficient: float, lm_coefficient: float) -> Objective:
    """``lambda * L_PM + mu * L_LM(good)`` (C.1): L_PM per pair, L_LM per token of the whole good sequence.

    Ranked preferences, binary discrimination and binarized PMP differ in how their pairs are built, not here.
    """

    pm = _contrast(pm_coefficient, lambda outputs, batch: outputs.pair_rewards())
    return {"pm": pm} | (language_modeling(lm_coefficient) if lm_coefficient else {})


def dpo(beta: float) -> Objective:
    """Direct preference optimization (Rafailov et al. 2023, eq. 7): L_PM of each pair with the implicit reward in place
    of a score head's, ``beta`` times a response's log-probability less the frozen reference's."""

    def implicit_rewards(outputs: Outputs, batch: Batch) -> tuple[jax.Array, jax.Array]:
        reward_RxSx2 = beta * (outputs.pair_logps() - batch.reference_logps)
        return reward_RxSx2[..., 0], reward_RxSx2[..., 1]

    return {"dpo": _contrast(1.0, implicit_rewards)}


def distillation() -> Objective:
    """The ``(k + 1)``-way KL per token against a stored teacher (eq. 2.1, B.5)."""

    def total(outputs: Outputs, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        kl_RxT = outputs.over_logits(distillation_kl, batch.teacher_ids, batch.teacher_logps)
        return (kl_RxT * batch.loss_mask).sum(), {}

    return {"distillation": Term(1.0, lambda batch: batch.loss_mask.sum(dtype=jnp.float32), total)}


def discriminator() -> Objective:
    """Human or model, for each token of ``loss_mask`` (appendix D); the score head gives the logit of "human"."""

    def total(outputs: Outputs, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        logits_RxT = rewards(outputs.params, outputs.hidden_RxTxD)
        right_RxT = (logits_RxT > 0) == (batch.is_human > 0)
        loss = (discriminator_loss(logits_RxT, batch.is_human) * batch.loss_mask).sum()
        return loss, {"accuracy": (right_RxT * batch.loss_mask).sum()}

    return {"discriminator": Term(1.0, lambda batch: batch.loss_mask.sum(dtype=jnp.float32), total)}


def needs_score_head(name: str) -> bool:
    """Whether models of this objective have a scalar score head."""
    return name in ("preference", "discriminator")


def needs_reference(name: str) -> bool:
    """Whether the objective compares with the parameters that training starts from, which the state keeps."""
    return name == "dpo"


def needs_lm_head(name: str, mu: float) -> bool:
    """Whether a term of this objective reads the next-token logits; `mu` belongs to ``preference``."""
    return name != "discriminator" and (name != "preference" or mu > 0)


def reads_only_scores(name: str, mu: float) -> bool:
    """Whether no term reads anything but the hidden states at score positions."""
    return name == "preference" and mu == 0


def make_objective(name: str, lam: float = 1.0, mu: float = 1.0, beta: float = 0.1) -> Objective:
    """The objective of a config's ``objective`` section; ``lam`` and ``mu`` belong to ``preference``, ``beta`` to
    ``dpo``."""
    if name == "preference":
        return preference(lam, mu)
    if name == "dpo":
        return dpo(beta)
    makers = {
        "lm": language_modeling,
        "imitation": imitation,
        "distillation": distillation,
        "discriminator": discriminator,
    }
    return makers[name]()
