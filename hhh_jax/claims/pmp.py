"""Claims of section 4: preference model pre-training, and the symbols of appendix C.6."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from hhh_jax.claims.rules import (
    CONTRADICTED,
    FLOOR,
    NOT_RUN,
    POWER,
    SUPPORTED,
    Claim,
    Outcome,
    above_floor,
    direction,
    known,
)
from hhh_jax.results import Items
from hhh_jax.summary import Study, combine, difference, mean, pmp_points, pmp_source, size_name, task_name

SMALL_DATA = 500  # pairs
SYMBOLS = "symbols:T0"
NEAR = f"at the number of pairs nearest to {SMALL_DATA}"


def _pmp_gain(against: str) -> Callable[[Study], Outcome]:
    """Binary PMP minus what finetuning starts from otherwise: `lm`, or the same source's `ranked` PMP."""

    def judge(study: Study) -> Outcome:
        tasks = study.tasks()
        rows = study.rows(stage="finetune", objective="preference", intervention="")
        inits = set(rows[rows["task"].isin(tasks)]["init"])
        forms = ("binary",) if against == "lm" else ("binary", against)
        sources = sorted({s for i in inits if (s := pmp_source(i)) and inits >= {f"pmp:{s}:{f}" for f in forms}})
        points = [p for p in pmp_points(study) if p[0] == max(pmp_points(study))[0]]
        arms: dict[int, list[list[Items | None]]] = {}
        for n, pairs in points if sources else ():
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
        pairs = nearest(list(arms))
        estimate = known(mean(gains[pairs]))
        verdict = direction(estimate) if above_floor(study, tasks, arms[pairs]) else FLOOR
        details = [
            (task_name(task), known(mean([gain]))) for task, gain in zip(tasks, gains[pairs], strict=True)
        ]
        details += [(f"mean at {p} pairs", known(mean(gains[p]))) for p in arms if p != pairs]
        where = f"N = {size_name(points[0][0])}, {pairs} pairs, PMP on {', '.join(sources)}"
        own = study.rows(stage="pmp", metric="accuracy", N=points[0][0], intervention="")
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
        pairs = nearest([int(p) for p in rows[rows["N"] == n]["pairs_total"].unique()])
        arms: dict[str, Items] = {}
        for init in ("lm", *rows["init"].unique()):
            items = study.items(SYMBOLS, "preference", n, init, pairs)
            if items is not None:
                arms[(pmp_source(init) or "lm").removeprefix("symbols:")] = items
        if missing := [name for name in needed if name not in arms]:
            return Outcome(NOT_RUN, note=f"no finetuning with {pairs} pairs from {', '.join(missing)}")
        found = [(label, known(mean([items]))) for label, items in measure(arms)]
        verdicts = [direction(estimate) for _, estimate in found[: None if all_must_hold else 1]]
        verdict = next(v for v in (CONTRADICTED, POWER, SUPPORTED) if v in verdicts)
        if not above_floor(study, [SYMBOLS], [[arms[name]] for name in needed]):
            verdict = FLOOR
        estimate = min((e for _, e in found), key=lambda e: e.lo) if all_must_hold else found[0][1]
        accuracies = tuple((f"accuracy from {name}", known(mean([arms[name]]))) for name in sorted(arms))
        details = tuple(found if all_must_hold else found[1:]) + accuracies
        return Outcome(verdict, estimate, f"N = {size_name(n)}, {pairs} pairs", details=details)

    return judge


def _weak_helps(arms: dict[str, Items]) -> list[tuple[str, Items]]:
    names = [name for name in ("T1", "T0", "T2", "T3", "T4", "Tb") if name in arms]
    return [(f"{name} minus no PMP", known(difference(arms[name], arms["lm"]))) for name in names]


def _order(arms: dict[str, Items]) -> list[tuple[str, Items]]:
    names = ("T1", "T2", "T3", "T4")
    level_4 = np.arange(4) - 1.5
    drop = known(combine([arms[name] for name in names], list(-level_4 / np.square(level_4).sum())))
    steps = [(f"{a} minus {b}", known(difference(arms[a], arms[b]))) for a, b in pairwise(names)]
    return [("drop per level", drop), *steps]


def _binary_between(arms: dict[str, Items]) -> list[tuple[str, Items]]:
    return [(f"{a} minus {b}", known(difference(arms[a], arms[b]))) for a, b in (("T2", "Tb"), ("Tb", "T3"))]


def nearest(pairs: Sequence[int], to: int = SMALL_DATA) -> int:
    """The number of pairs that is nearest by its ratio."""
    return min(pairs, key=lambda p: (abs(math.log(p / to)), p))


CLAIMS = (
    Claim(
        "pmp_helps",
        "Preference model pre-training improves finetuning where data are few. (The paper: above about 1B "
        "parameters; below 200M it found nothing, so nothing is expected here.)",
        "section 4, figures 4 and 5: mean accuracy 0.403 to 0.501 at 500 pairs, 52B",
        f"mean accuracy of finetuning from binary PMP minus without PMP, {NEAR}",
        "supported if the interval is above 0; contradicted if below",
        _pmp_gain("lm"),
        {"stage": "pmp"},
    ),
    Claim(
        "binary_pmp",
        "Binary PMP transfers better than ranked PMP.",
        "section 4, figure 18: about +0.05 at 500 pairs",
        f"mean accuracy of finetuning from binary PMP minus from ranked PMP, {NEAR}",
        "supported if the interval is above 0; contradicted if below",
        _pmp_gain("ranked"),
        {"stage": "pmp"},
    ),
    Claim(
        "symbols_weak",
        "Pre-training on a weakly scrambled ranking helps finetuning on the true one. (The positive control "
        "for PMP.)",
        "appendix C.6, figure 33: 0.895 against 0.610 at 500 pairs, 13B",
        f"accuracy on T0 from T1 minus without PMP, {NEAR}",
        "supported if the interval is above 0; contradicted if below",
        _symbols(_weak_helps, ("T1", "lm")),
        {"task": SYMBOLS},
    ),
    Claim(
        "symbols_order",
        "The more a ranking is scrambled, the less pre-training on it helps.",
        "appendix C.6, figure 33: 0.895, 0.839, 0.739, 0.556 at 500 pairs",
        f"drop in accuracy on T0 per level of scrambling (slope over T1 to T4), {NEAR}",
        "supported if the interval is above 0; contradicted if below",
        _symbols(_order, ("T1", "T2", "T3", "T4")),
        {"task": SYMBOLS},
    ),
    Claim(
        "symbols_binary",
        "Binary pre-training does about as well as a moderate scramble: between moderate and strong. (In the "
        "paper's figure at 500 pairs it is below both.)",
        "appendix C.6, figure 33: 0.715 at 500 pairs",
        f"T2 minus Tb and Tb minus T3 in accuracy on T0, the one whose interval begins lower, {NEAR}",
        "supported if both intervals are above 0; contradicted if one is below",
        _symbols(_binary_between, ("T2", "T3", "Tb"), all_must_hold=True),
        {"task": SYMBOLS},
    ),
)
