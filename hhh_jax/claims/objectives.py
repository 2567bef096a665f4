"""Claims of sections 1 and 3: scaling of the loss, and imitation against preference modeling."""

import math
from collections.abc import Callable, Sequence

from hhh_jax import stats
from hhh_jax.claims.rules import (
    CONTRADICTED,
    FLOOR,
    MARGIN,
    MIN_SIZES,
    NOT_RUN,
    Claim,
    Outcome,
    above_floor,
    direction,
    equality,
    known,
)
from hhh_jax.results import Items
from hhh_jax.stats import Estimate
from hhh_jax.summary import (
    FORMAT_TWIN,
    Study,
    combine,
    common,
    contrast,
    difference,
    ladder_corpus,
    losses_by_size,
    mean,
    size_name,
    task_name,
)

IMITATION = {"stage": "finetune", "objective": "imitation"}
"""Rows of a study that is about objectives."""

DPO = {"stage": "finetune", "objective": "dpo"}
"""Rows of a study that is about DPO too."""


def both_objectives(
    study: Study, tasks: Sequence[str], n: int, objectives: Sequence[str] = ("preference", "imitation")
) -> list[list[Items | None]]:
    return [[study.items(task, objective, n) for task in tasks] for objective in objectives]


def _loss_falls(study: Study) -> Outcome:
    corpus = ladder_corpus(study.table)
    sizes, losses = losses_by_size(study, corpus) if corpus else ([], [])
    if len(sizes) < MIN_SIZES:
        return Outcome(NOT_RUN, note=f"needs {MIN_SIZES} model sizes; there are {len(sizes)}")
    fit = stats.power_law(losses, sizes)
    verdict = direction(fit.exponent)
    if fit.misfit > stats.MISFIT:
        verdict = CONTRADICTED
    note = f"The line misses the measured losses by up to {fit.misfit:.1%}."
    if fit.curvature.lo > 0 or fit.curvature.hi < 0:
        bend = "flattens" if fit.curvature.value > 0 else "steepens"
        note += (
            f" In log-log the curve {bend} beyond the intervals, so the exponent holds for these sizes only."
        )
    if fit.identified:
        c, _, exponent = fit.offset
        note += f" With an irreducible loss, that is {c.value:.2f} [{c.lo:.2f}, {c.hi:.2f}] nats per token"
        note += f" and the exponent {exponent.value:.2f} [{exponent.lo:.2f}, {exponent.hi:.2f}]."
    else:
        note += " An irreducible loss cannot be told from none with these sizes."
    details = tuple((size_name(n), stats.estimate([loss])) for n, loss in zip(sizes, losses, strict=True))
    return Outcome(
        verdict, fit.exponent, f"N = {size_name(sizes[0])} to {size_name(sizes[-1])}", note, details
    )


def _gain_of(
    kind: str, verdict: Callable[[Estimate], str], of: str = "preference", over: str = "imitation"
) -> Callable[[Study], Outcome]:
    def judge(study: Study) -> Outcome:
        tasks = study.tasks(kind)
        sizes = study.sizes(tasks, (of, over))
        if not sizes:
            return Outcome(NOT_RUN, note=f"no {kind} task has both objectives")
        gains = {n: [study.gain(task, n, of, over) for task in tasks] for n in sizes}
        n = sizes[-1]
        estimate = known(mean(gains[n]))
        arms = both_objectives(study, tasks, n, (of, over))
        result = verdict(estimate) if above_floor(study, tasks, arms) else FLOOR
        details = [
            (task_name(task), known(mean([gain]))) for task, gain in zip(tasks, gains[n], strict=True)
        ]
        details += [(f"mean at {size_name(m)}", known(mean(gains[m]))) for m in sizes[:-1]]
        note = ""
        untuned = [study.items(task, "untuned", n, "", None) for task in tasks]
        tuned = [study.items(task, "imitation", n) for task in tasks]
        if over == "imitation" and all(items is not None for items in untuned):
            learned = [difference(*common(known(a), known(b))) for a, b in zip(tuned, untuned, strict=True)]
            details += [(f"{task_name(t)}, untuned LM", known(mean([u]))) for t, u in zip(tasks, untuned, strict=True)]
            details += [
                (f"{task_name(t)}, imitation minus untuned", known(mean([i])))
                for t, i in zip(tasks, learned, strict=True)
            ]
            if known(mean(learned)).lo <= 0:
                note = "Imitation is not above the untuned language model: what it ranks by, pretraining learned."
        return Outcome(result, estimate, f"N = {size_name(n)}", note, details=tuple(details))

    return judge


def _ranked_minus_binary(study: Study) -> Outcome:
    ranked, binary = study.tasks("ranked"), study.tasks("binary")
    sizes = study.sizes([*ranked, *binary])
    if not (ranked and binary and sizes):
        return Outcome(NOT_RUN, note="needs ranked and binary tasks with both objectives")
    estimates = {
        n: known(mean([study.gain(task, n) for task in (*ranked, *binary)], contrast(ranked, binary)))
        for n in sizes
    }
    n = sizes[-1]
    floored = [
        kind
        for kind, tasks in (("ranked", ranked), ("binary", binary))
        if not above_floor(study, tasks, both_objectives(study, tasks, n))
    ]
    note = (
        f"Neither objective beats the trivial baselines on the {' and '.join(floored)} tasks."
        if floored
        else ""
    )
    details = tuple((f"at {size_name(m)}", estimates[m]) for m in sizes[:-1])
    return Outcome(
        FLOOR if floored else direction(estimates[n]), estimates[n], f"N = {size_name(n)}", note, details
    )


def _ranked_scaling(study: Study) -> Outcome:
    tasks = study.tasks("ranked")
    sizes = study.sizes(tasks)
    if len(sizes) < MIN_SIZES:
        return Outcome(NOT_RUN, note=f"needs {MIN_SIZES} model sizes; there are {len(sizes)}")

    def slope(of: Callable[[str, int], Items | None]) -> Estimate:
        return known(mean([combine([of(t, n) for n in sizes], stats.slope_weights(sizes)) for t in tasks]))

    estimate = slope(study.gain)
    margin = MARGIN / math.log10(sizes[-1] / sizes[0])
    floor = not above_floor(study, tasks, both_objectives(study, tasks, sizes[-1]))
    details = (
        ("preference modeling", slope(lambda t, n: study.items(t, "preference", n))),
        ("imitation", slope(lambda t, n: study.items(t, "imitation", n))),
    )
    where = f"N = {size_name(sizes[0])} to {size_name(sizes[-1])}, per factor of 10; margin {margin:.3f}"
    return Outcome(FLOOR if floor else direction(estimate, margin), estimate, where, details=details)


def _task_or_format(study: Study) -> Outcome:
    for task, twin in FORMAT_TWIN.items():
        sizes = [n for n in study.sizes([task]) if study.gain(twin, n) is not None]
        if not sizes:
            continue
        n = sizes[-1]
        as_ranked, as_label = known(study.gain(task, n)), known(study.gain(twin, n))
        if set(as_ranked.item_ids) & set(as_label.item_ids):
            estimate = known(mean([difference(*common(as_ranked, as_label))]))
        else:
            estimate = known(mean([as_ranked, as_label], [1, -1]))
        floored = [t for t in (task, twin) if not above_floor(study, [t], both_objectives(study, [t], n))]
        note = (
            f"Neither objective beats the trivial baselines on {' and '.join(task_name(t) for t in floored)}."
            if floored
            else ""
        )
        details = (("gain as ranked pairs", as_ranked), ("gain as labels", as_label))
        return Outcome(
            FLOOR if floored else equality(estimate),
            estimate,
            f"{task_name(task)}, N = {size_name(n)}",
            note,
            tuple((label, known(mean([items]))) for label, items in details),
        )
    return Outcome(NOT_RUN, note="no task was posed in both formats")


CLAIMS = (
    Claim(
        "ranked_minus_binary",
        "Preference modeling gains more over imitation on ranked than on binary tasks.",
        "the primary statistic; figure 3: +0.210 and −0.008 at 52B, difference +0.217",
        "mean accuracy gain of preference modeling over imitation, ranked tasks minus binary tasks",
        "supported if the interval is above 0; contradicted if below",
        _ranked_minus_binary,
        IMITATION,
    ),
    Claim(
        "ranked_gain",
        "Ranked preference modeling does far better than imitation learning.",
        "section 3, figures 3 and 14: mean gain +0.210 at 52B",
        "mean accuracy gain of preference modeling over imitation on the ranked tasks",
        "supported if the interval is above 0; contradicted if below",
        _gain_of("ranked", direction),
        IMITATION,
    ),
    Claim(
        "binary_equal",
        "Binary discrimination and imitation learning perform about equally.",
        "section 3, figures 3 and 15: mean gain −0.008 at 52B",
        "mean accuracy gain of preference modeling over imitation on the binary tasks",
        f"supported if the interval is within ±{MARGIN}; contradicted if wholly outside",
        _gain_of("binary", equality),
        IMITATION,
    ),
    Claim(
        "contrast",
        "Contrast is enough: DPO, which sees both sides of a pair and has no scalar head, does better than imitation "
        "learning on ranked tasks. (Our question; the paper has no DPO.)",
        "section 3; Rafailov et al. 2023",
        "mean accuracy gain of DPO over imitation on the ranked tasks",
        "supported if the interval is above 0; contradicted if below",
        _gain_of("ranked", direction, "dpo"),
        DPO,
    ),
    Claim(
        "scalar_head",
        "The scalar head adds nothing to the contrast: preference modeling and DPO do about equally well on ranked "
        "tasks. (Our question.)",
        "section 3; Rafailov et al. 2023",
        "mean accuracy gain of preference modeling over DPO on the ranked tasks",
        f"supported if the interval is within ±{MARGIN}; contradicted if wholly outside",
        _gain_of("ranked", equality, "preference", "dpo"),
        DPO,
    ),
    Claim(
        "ranked_scaling",
        "Ranked preference modeling scales with model size at least as well as imitation.",
        "section 3, figure 3: about +0.027 per factor of 10 from 13M to 52B",
        "least-squares slope, against log10 N, of the mean gain on the ranked tasks",
        f"supported if the interval is above -m, contradicted if below; m = {MARGIN} over the range of sizes "
        f"({MIN_SIZES} sizes or more)",
        _ranked_scaling,
        IMITATION,
    ),
    Claim(
        "task_or_format",
        "The gain follows the task, not the format: it is the same where the same comparisons are posed as "
        "labels. (Our question; the paper has no such control.)",
        "section 3",
        "gain of preference modeling over imitation on ranked pairs minus that on the same pairs as labels",
        f"supported if the interval is within ±{MARGIN}; contradicted if wholly outside",
        _task_or_format,
        IMITATION,
    ),
    Claim(
        "loss_power_law",
        "The language-modeling loss falls with model size as a power law.",
        "section 1.2; the premise of every plot against size",
        "exponent of the least-squares line of log loss against log N, held-out documents",
        f"supported if the interval is above 0 and every loss within {stats.MISFIT:.0%} of the line; contradicted "
        f"if the interval is below 0 or a loss further than {stats.MISFIT:.0%} from the line",
        _loss_falls,
    ),
)
