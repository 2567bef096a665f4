"""The paper's claims, each with a rule that was written before the runs, and what a study says about them.

The rules follow one pattern. A claim about a difference is *supported* if the 95% interval of its statistic
lies beyond 0 in the claimed direction, *contradicted* if it lies beyond 0 in the other. A claim that two
things are about equal is supported if the interval lies within MARGIN, contradicted if it lies wholly
outside. All else is *undecided (power)*. Where none of the models compared beats the best trivial baseline,
their comparison means nothing, whatever it gives: *undecided (floor)*. Statistics are taken at the largest
model size at hand, those of PMP and symbols at the number of pairs nearest to SMALL_DATA. Intervals are over
seeds and items, paired (`hhh_jax.stats`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np

from hhh_jax import stats
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
    pmp_points,
    pmp_source,
    size_name,
    task_name,
)

MARGIN = 0.03  # accuracy: "about equal"
MISFIT = 0.02  # relative error of the loss: "a power law"
SMALL_DATA = 500  # pairs
MIN_SIZES = 4  # a claim about scaling needs as many
SUPPORTED, CONTRADICTED, NOT_RUN = "supported", "contradicted", "not run"
POWER, FLOOR = "undecided (power)", "undecided (floor)"
VERDICTS = (SUPPORTED, CONTRADICTED, POWER, FLOOR, NOT_RUN)
SYMBOLS = "symbols:T0"
NEAR = f"at the number of pairs nearest to {SMALL_DATA}"


@dataclass(frozen=True)
class Outcome:
    """What a study says about a claim.

    `estimate` is the statistic of the claim's rule (None: not run), `at` says where it was taken, `note` what
    else to know, and `details` are estimates beside it, each with its label.
    """

    verdict: str
    estimate: Estimate | None = None
    at: str = ""
    note: str = ""
    details: tuple[tuple[str, Estimate], ...] = ()


class Claim(NamedTuple):
    """`statement` is the paper's (in our words) and `where` its place; `statistic` and `rule` are ours."""

    key: str
    statement: str
    where: str
    statistic: str
    rule: str
    judge: Callable[[Study], Outcome]


def evaluate(study: Study) -> list[tuple[Claim, Outcome]]:
    """Every claim with its outcome, in the order of CLAIMS. Raises UserError if item records are missing."""
    return [(claim, claim.judge(study)) for claim in CLAIMS]


def direction(estimate: Estimate, margin: float = 0.0) -> str:
    """The verdict on a claim that the statistic is above -margin."""
    if estimate.lo > -margin:
        return SUPPORTED
    return CONTRADICTED if estimate.hi < -margin else POWER


def equality(estimate: Estimate, margin: float = MARGIN) -> str:
    """The verdict on a claim that the statistic is 0, up to the margin."""
    if -margin < estimate.lo and estimate.hi < margin:
        return SUPPORTED
    return CONTRADICTED if estimate.lo > margin or estimate.hi < -margin else POWER


def above_floor(study: Study, tasks: Sequence[str], arms: Sequence[Sequence[Items | None]]) -> bool:
    """Whether one of the arms (each: its items in every task) beats the best trivial baselines of the tasks.

    It does if the 95% interval of the mean difference over the tasks lies above 0. Where no baseline was
    measured, it is chance, one half.
    """
    best = [study.best_trivial(task) for task in tasks]
    for arm in arms:
        above: list[Items | None] = []
        for items, floor in zip(arm, best, strict=True):
            if items is None or floor is not None:
                above.append(difference(*common(items, floor and floor[1])))
            else:
                above.append(items._replace(correct=items.correct - 0.5))
        estimate = mean(above)
        if estimate is not None and estimate.lo > 0:
            return True
    return False


def _objectives(study: Study, tasks: Sequence[str], n: int) -> list[list[Items | None]]:
    return [[study.items(task, objective, n) for task in tasks] for objective in ("preference", "imitation")]


def _loss_falls(study: Study) -> Outcome:
    corpus = ladder_corpus(study.table)
    sizes, losses = losses_by_size(study, corpus) if corpus else ([], [])
    if len(sizes) < MIN_SIZES:
        return Outcome(NOT_RUN, note=f"needs {MIN_SIZES} model sizes; there are {len(sizes)}")
    fit = stats.power_law(losses, sizes)
    verdict = direction(fit.exponent)
    if fit.misfit > MISFIT:
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


def _gain_of(kind: str, verdict: Callable[[Estimate], str]) -> Callable[[Study], Outcome]:
    def judge(study: Study) -> Outcome:
        tasks = study.tasks(kind)
        sizes = study.sizes(tasks)
        if not sizes:
            return Outcome(NOT_RUN, note=f"no {kind} task has both objectives")
        gains = {n: [study.gain(task, n) for task in tasks] for n in sizes}
        n = sizes[-1]
        estimate = _known(mean(gains[n]))
        result = verdict(estimate) if above_floor(study, tasks, _objectives(study, tasks, n)) else FLOOR
        details = [
            (task_name(task), _known(mean([gain]))) for task, gain in zip(tasks, gains[n], strict=True)
        ]
        details += [(f"mean at {size_name(m)}", _known(mean(gains[m]))) for m in sizes[:-1]]
        note = ""
        untuned = [study.items(task, "untuned", n, "", None) for task in tasks]
        tuned = [study.items(task, "imitation", n) for task in tasks]
        if all(items is not None for items in untuned):
            learned = [difference(*common(_known(a), _known(b))) for a, b in zip(tuned, untuned, strict=True)]
            details += [(f"{task_name(t)}, untuned LM", _known(mean([u]))) for t, u in zip(tasks, untuned, strict=True)]
            details += [
                (f"{task_name(t)}, imitation minus untuned", _known(mean([i])))
                for t, i in zip(tasks, learned, strict=True)
            ]
            if _known(mean(learned)).lo <= 0:
                note = "Imitation is not above the untuned language model: what it ranks by, pretraining learned."
        return Outcome(result, estimate, f"N = {size_name(n)}", note, details=tuple(details))

    return judge


def _ranked_minus_binary(study: Study) -> Outcome:
    ranked, binary = study.tasks("ranked"), study.tasks("binary")
    sizes = study.sizes([*ranked, *binary])
    if not (ranked and binary and sizes):
        return Outcome(NOT_RUN, note="needs ranked and binary tasks with both objectives")
    estimates = {
        n: _known(mean([study.gain(task, n) for task in (*ranked, *binary)], contrast(ranked, binary)))
        for n in sizes
    }
    n = sizes[-1]
    floored = [
        kind
        for kind, tasks in (("ranked", ranked), ("binary", binary))
        if not above_floor(study, tasks, _objectives(study, tasks, n))
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
        return _known(mean([combine([of(t, n) for n in sizes], stats.slope_weights(sizes)) for t in tasks]))

    estimate = slope(study.gain)
    margin = MARGIN / math.log10(sizes[-1] / sizes[0])
    floor = not above_floor(study, tasks, _objectives(study, tasks, sizes[-1]))
    details = (
        ("preference modeling", slope(lambda t, n: study.items(t, "preference", n))),
        ("imitation", slope(lambda t, n: study.items(t, "imitation", n))),
    )
    where = f"N = {size_name(sizes[0])} to {size_name(sizes[-1])}, per factor of 10; margin {margin:.3f}"
    return Outcome(FLOOR if floor else direction(estimate, margin), estimate, where, details=details)


def _pmp_gain(against: str) -> Callable[[Study], Outcome]:
    """Binary PMP minus what finetuning starts from otherwise: `lm`, or the same source's `ranked` PMP."""

    def judge(study: Study) -> Outcome:
        tasks = study.tasks()
        rows = study.rows(stage="finetune", objective="preference", intervention="")
        sources = sorted({s for i in rows[rows["task"].isin(tasks)]["init"].unique() if (s := pmp_source(i))})
        points = [p for p in pmp_points(study) if p[0] == max(pmp_points(study))[0]]
        arms: dict[int, list[list[Items | None]]] = {}
        for n, pairs in points:
            base, binary = [], []
            for task in tasks:
                plain = [study.items(task, "preference", n, "lm", pairs)] * len(sources)
                other = [study.items(task, "preference", n, f"pmp:{s}:ranked", pairs) for s in sources]
                mine = [study.items(task, "preference", n, f"pmp:{s}:binary", pairs) for s in sources]
                share = [1 / len(sources)] * len(sources)
                base.append(combine(plain if against == "lm" else other, share))
                binary.append(combine(mine, share))
            if all(items is not None for items in (*base, *binary)):
                arms[pairs] = [binary, base]
        if not arms:
            return Outcome(NOT_RUN, note="no finetuning from both arms on every task")
        gains = {pairs: [difference(a, b) for a, b in zip(*arm, strict=True)] for pairs, arm in arms.items()}
        pairs = _nearest(list(arms))
        estimate = _known(mean(gains[pairs]))
        verdict = direction(estimate) if above_floor(study, tasks, arms[pairs]) else FLOOR
        details = [
            (task_name(task), _known(mean([gain]))) for task, gain in zip(tasks, gains[pairs], strict=True)
        ]
        details += [(f"mean at {p} pairs", _known(mean(gains[p]))) for p in arms if p != pairs]
        where = f"N = {size_name(points[0][0])}, {pairs} pairs, PMP on {', '.join(sources)}"
        own = study.rows(stage="pmp", metric="accuracy", N=points[0][0])
        own = own[own["task"].isin(sources)]
        note = ""
        if len(own) and not (own["lo"] > 0.5).any():
            note = (
                f"PMP itself is at chance on its own held-out pairs ({own['value'].mean():.3f}): what it did not learn "
                "it cannot transfer, and more test items would not show it."
            )
        return Outcome(verdict, estimate, where, note, details=tuple(details))

    return judge


def _symbols(
    measure: Callable[[dict[str, Items]], list[tuple[str, Items]]],
    needed: Sequence[str],
    all_must_hold: bool = False,
) -> Callable[[Study], Outcome]:
    """A claim about finetuning on T0 from several starts (`lm`, `T0` ... `Tb`), read at the number of pairs
    nearest to SMALL_DATA. `measure` gives labelled statistics: the rule is about the first, or about all of
    them."""

    def judge(study: Study) -> Outcome:
        rows = study.rows(stage="finetune", objective="preference", task=SYMBOLS, intervention="")
        rows = rows[rows["init"].str.startswith("pmp:")]
        if not len(rows):
            return Outcome(NOT_RUN, note="the symbols experiment was not run")
        n = int(rows["N"].max())
        pairs = _nearest([int(p) for p in rows[rows["N"] == n]["pairs_total"].unique()])
        arms: dict[str, Items] = {}
        for init in ("lm", *rows["init"].unique()):
            items = study.items(SYMBOLS, "preference", n, init, pairs)
            if items is not None:
                arms[(pmp_source(init) or "lm").removeprefix("symbols:")] = items
        if missing := [name for name in needed if name not in arms]:
            return Outcome(NOT_RUN, note=f"no finetuning with {pairs} pairs from {', '.join(missing)}")
        found = [(label, _known(mean([items]))) for label, items in measure(arms)]
        verdicts = [direction(estimate) for _, estimate in found[: None if all_must_hold else 1]]
        verdict = next(v for v in (CONTRADICTED, POWER, SUPPORTED) if v in verdicts)
        if not above_floor(study, [SYMBOLS], [[arms[name]] for name in needed]):
            verdict = FLOOR
        estimate = min((e for _, e in found), key=lambda e: e.lo) if all_must_hold else found[0][1]
        accuracies = tuple((f"accuracy from {name}", _known(mean([arms[name]]))) for name in sorted(arms))
        details = tuple(found if all_must_hold else found[1:]) + accuracies
        return Outcome(verdict, estimate, f"N = {size_name(n)}, {pairs} pairs", details=details)

    return judge


def _weak_helps(arms: dict[str, Items]) -> list[tuple[str, Items]]:
    names = [name for name in ("T1", "T0", "T2", "T3", "T4", "Tb") if name in arms]
    return [(f"{name} minus no PMP", _known(difference(arms[name], arms["lm"]))) for name in names]


def _order(arms: dict[str, Items]) -> list[tuple[str, Items]]:
    names = ("T1", "T2", "T3", "T4")
    level_4 = np.arange(4) - 1.5
    drop = _known(combine([arms[name] for name in names], list(-level_4 / np.square(level_4).sum())))
    steps = [(f"{a} minus {b}", _known(difference(arms[a], arms[b]))) for a, b in pairwise(names)]
    return [("drop per level", drop), *steps]


def _binary_between(arms: dict[str, Items]) -> list[tuple[str, Items]]:
    return [(f"{a} minus {b}", _known(difference(arms[a], arms[b]))) for a, b in (("T2", "Tb"), ("Tb", "T3"))]


def _task_or_format(study: Study) -> Outcome:
    for task, twin in FORMAT_TWIN.items():
        sizes = [n for n in study.sizes([task]) if study.gain(twin, n) is not None]
        if not sizes:
            continue
        n = sizes[-1]
        as_ranked, as_label = _known(study.gain(task, n)), _known(study.gain(twin, n))
        if set(as_ranked.item_ids) & set(as_label.item_ids):
            estimate = _known(mean([difference(*common(as_ranked, as_label))]))
        else:
            estimate = _known(mean([as_ranked, as_label], [1, -1]))
        floored = [t for t in (task, twin) if not above_floor(study, [t], _objectives(study, [t], n))]
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
            tuple((label, _known(mean([items]))) for label, items in details),
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
    ),
    Claim(
        "ranked_gain",
        "Ranked preference modeling does far better than imitation learning.",
        "section 3, figures 3 and 14: mean gain +0.210 at 52B",
        "mean accuracy gain of preference modeling over imitation on the ranked tasks",
        "supported if the interval is above 0; contradicted if below",
        _gain_of("ranked", direction),
    ),
    Claim(
        "binary_equal",
        "Binary discrimination and imitation learning perform about equally.",
        "section 3, figures 3 and 15: mean gain −0.008 at 52B",
        "mean accuracy gain of preference modeling over imitation on the binary tasks",
        f"supported if the interval is within ±{MARGIN}; contradicted if wholly outside",
        _gain_of("binary", equality),
    ),
    Claim(
        "ranked_scaling",
        "Ranked preference modeling scales with model size at least as well as imitation.",
        "section 3, figure 3: about +0.027 per factor of 10 from 13M to 52B",
        "least-squares slope, against log10 N, of the mean gain on the ranked tasks",
        f"supported if the interval is above -m, contradicted if below; m = {MARGIN} over the range of sizes "
        f"({MIN_SIZES} sizes or more)",
        _ranked_scaling,
    ),
    Claim(
        "task_or_format",
        "The gain follows the task, not the format: it is the same where the same comparisons are posed as "
        "labels. (Our question; the paper has no such control.)",
        "section 3",
        "gain of preference modeling over imitation on ranked pairs minus that on the same pairs as labels",
        f"supported if the interval is within ±{MARGIN}; contradicted if wholly outside",
        _task_or_format,
    ),
    Claim(
        "loss_power_law",
        "The language-modeling loss falls with model size as a power law.",
        "section 1.2; the premise of every plot against size",
        "exponent of the least-squares line of log loss against log N, held-out documents",
        f"supported if the interval is above 0 and every loss within {MISFIT:.0%} of the line; contradicted "
        f"if the interval is below 0 or a loss further than {MISFIT:.0%} from the line",
        _loss_falls,
    ),
    Claim(
        "pmp_helps",
        "Preference model pre-training improves finetuning where data are few. (The paper: above about 1B "
        "parameters; below 200M it found nothing, so nothing is expected here.)",
        "section 4, figures 4 and 5: mean accuracy 0.403 to 0.501 at 500 pairs, 52B",
        f"mean accuracy of finetuning from binary PMP minus without PMP, {NEAR}",
        "supported if the interval is above 0; contradicted if below",
        _pmp_gain("lm"),
    ),
    Claim(
        "binary_pmp",
        "Binary PMP transfers better than ranked PMP.",
        "section 4, figure 18: about +0.05 at 500 pairs",
        f"mean accuracy of finetuning from binary PMP minus from ranked PMP, {NEAR}",
        "supported if the interval is above 0; contradicted if below",
        _pmp_gain("ranked"),
    ),
    Claim(
        "symbols_weak",
        "Pre-training on a weakly scrambled ranking helps finetuning on the true one. (The positive control "
        "for PMP.)",
        "appendix C.6, figure 33: 0.895 against 0.610 at 500 pairs, 13B",
        f"accuracy on T0 from T1 minus without PMP, {NEAR}",
        "supported if the interval is above 0; contradicted if below",
        _symbols(_weak_helps, ("T1", "lm")),
    ),
    Claim(
        "symbols_order",
        "The more a ranking is scrambled, the less pre-training on it helps.",
        "appendix C.6, figure 33: 0.895, 0.839, 0.739, 0.556 at 500 pairs",
        f"drop in accuracy on T0 per level of scrambling (slope over T1 to T4), {NEAR}",
        "supported if the interval is above 0; contradicted if below",
        _symbols(_order, ("T1", "T2", "T3", "T4")),
    ),
    Claim(
        "symbols_binary",
        "Binary pre-training does about as well as a moderate scramble: between moderate and strong. (In the "
        "paper's figure at 500 pairs it is below both.)",
        "appendix C.6, figure 33: 0.715 at 500 pairs",
        f"T2 minus Tb and Tb minus T3 in accuracy on T0, the one whose interval begins lower, {NEAR}",
        "supported if both intervals are above 0; contradicted if one is below",
        _symbols(_binary_between, ("T2", "T3", "Tb"), all_must_hold=True),
    ),
)


def _nearest(pairs: Sequence[int]) -> int:
    return min(pairs, key=lambda p: (abs(math.log(p / SMALL_DATA)), p))


_T = TypeVar("_T")


def _known(value: _T | None) -> _T:
    if value is None:
        raise ValueError("an arm that was found before is missing")
    return value
