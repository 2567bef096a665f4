"""Claims that are ours: loss over pairs and size, label noise, and best of n against a planted gold reward."""

from collections.abc import Callable
from typing import Any

from hhh_jax.analyses.joint_fit import MISFIT
from hhh_jax.claims.discriminator import measured
from hhh_jax.claims.rules import FLOOR, MARGIN, NOT_RUN, Claim, Outcome, direction, equality
from hhh_jax.stats import Estimate
from hhh_jax.summary import Study, size_name, task_name

LITTLE, MUCH = 20, 40  # percent of the training pairs that are flipped
ABOVE_0 = "supported if the interval is above 0; contradicted if below"


def _saved(what: str, part: str) -> Callable[[Study], Outcome]:
    def judge(study: Study) -> Outcome:
        found = measured(study, "joint_fit", f"saved:{what}")
        if not found:
            return Outcome(NOT_RUN, note="no runs over pairs and sizes")
        row, estimate = found[-1]
        fit = {r.metric.removeprefix("joint:"): r for r in study.rows(stage="joint_fit").itertuples()}
        power = fit["a" if part == "N" else "b"]
        note = f"The joint fit gives the exponent {power.value:.2f} [{power.lo:.2f}, {power.hi:.2f}]"
        note += ". " if fit[f"identified:{part}"].value else ", which these runs do not identify. "
        if fit["misfit"].value > MISFIT:
            note += f"The fit misses a loss by {fit['misfit'].value:.1%}: they are not of its form. "
        losses = measured(study, "joint_fit", "pm_loss")
        details = tuple((f"loss at {size_name(r.N)}, {int(r.pairs_total)} pairs", value) for r, value in losses)
        where = f"{task_name(row.task)}, N = {size_name(row.N)}, {int(row.pairs_total)} pairs"
        return Outcome(direction(estimate), estimate, where, note.strip(), details)

    return judge


def _promise(study: Study) -> Outcome:
    found = measured(study, "best_of_n", "promise-gold")
    if not found:
        return Outcome(NOT_RUN, note="no best of n against a gold reward")
    clean = [pair for pair in found if not pair[0].intervention] or found
    row, estimate = min(clean, key=lambda pair: pair[0].pairs_total)
    details = [(f"promise minus gold, {_proxy(r)}", value) for r, value in found if r is not row]
    details += [(f"gold, {_proxy(r)}", value) for r, value in measured(study, "best_of_n", "gold", k=row.k)]
    rises = measured(study, "best_of_n", "gold_rise")
    details += [(f"gold less that at a quarter of n, {_proxy(r)}", value) for r, value in rises]
    return Outcome(
        direction(estimate), estimate, f"N = {size_name(row.N)}, {_proxy(row)}, n = {int(row.k)}", "", tuple(details)
    )


def _proxy(row: Any) -> str:
    noise = f", {row.intervention.removeprefix('flip_')}% flipped" if row.intervention else ""
    return f"{int(row.pairs_total)} pairs{noise}"


def _noise(metric: str, percent: int, verdict: Callable[[Estimate], str]) -> Callable[[Study], Outcome]:
    def judge(study: Study) -> Outcome:
        found = measured(study, "label_noise", f"{metric}_gain")
        at = [pair for pair in found if pair[0].k == percent]
        if not at:
            return Outcome(NOT_RUN, note=f"no run with {percent}% of the training pairs flipped")
        row, estimate = at[-1]
        learned = [value for r, value in measured(study, "label_noise", "accuracy", k=percent) if r.N == row.N]
        # A model that has learned nothing promises nothing, which is calibrated.
        reached = learned and learned[-1].lo > 0.5
        details = [(f"at {int(r.k)}%", value) for r, value in measured(study, "label_noise", metric)]
        where = f"{task_name(row.task)}, N = {size_name(row.N)}, {int(row.pairs_total)} pairs"
        return Outcome(verdict(estimate) if reached else FLOOR, estimate, where, "", tuple(details))

    return judge


CLAIMS = (
    Claim(
        "loss_of_pairs",
        "More pairs lower the loss of preference models. (Ours.)",
        "ours; the paper's figures 4, 16 and 28 are curves over one run",
        "PM loss of the largest model with the fewest pairs minus with the most, separate runs",
        ABOVE_0,
        _saved("pairs", "D"),
    ),
    Claim(
        "loss_of_size",
        "Larger models have a lower loss from as many pairs. (Ours.)",
        "ours; the paper's figures 27 and 28",
        "PM loss of the smallest model with the most pairs minus that of the largest",
        ABOVE_0,
        _saved("size", "N"),
    ),
    Claim(
        "overoptimization",
        "Of the best of n by a preference model, the gold score falls below what the model promises. (Ours.)",
        "ours, after Gao et al. 2022 (arXiv 2210.10760)",
        "share of symbols that the proxy of the fewest pairs says its best of n beats, minus the share that it beats",
        ABOVE_0,
        _promise,
    ),
    Claim(
        "noise_costs_little",
        f"With {LITTLE}% of the training pairs flipped, accuracy on true labels is about the same. (Ours.)",
        "ours",
        f"accuracy with {LITTLE}% flipped minus without",
        f"supported if the interval is within ±{MARGIN}; contradicted if wholly outside",
        _noise("accuracy", LITTLE, equality),
    ),
    Claim(
        "noise_decalibrates",
        f"With {MUCH}% of the training pairs flipped, a preference model is calibrated worse. (Ours.)",
        "ours; the paper's figure 30 shows calibration without noise",
        f"expected calibration error on true labels with {MUCH}% flipped minus without",
        ABOVE_0,
        _noise("calibration_error", MUCH, direction),
    ),
)
