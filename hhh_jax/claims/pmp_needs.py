"""Claims of section 4 about what preference model pre-training needs: sources, losses, forms, tokens and labels.

Each compares arms of finetuning, named by the columns init and intervention, in mean accuracy over the tasks at the
largest size; configs/studies/pmp.py and configs/studies/pmp_needs.py run them.
"""

from collections.abc import Callable
from typing import NamedTuple

from hhh_jax.claims.pmp import NEAR, nearest
from hhh_jax.claims.rules import (
    CONTRADICTED,
    FLOOR,
    MARGIN,
    NOT_RUN,
    POWER,
    SUPPORTED,
    Claim,
    Outcome,
    above_floor,
    direction,
    known,
)
from hhh_jax.summary import Study, combine, mean, pmp_points, pmp_source, size_name, task_name


class Arm(NamedTuple):
    """A weighted arm of a comparison, finetuned on so many pairs."""

    coefficient: float
    pairs: int
    init: str
    intervention: str = ""


class Point(NamedTuple):
    """Where claims are read: the numbers of pairs, `pairs` the nearest to 500, and the inits of each intervention."""

    pairs: int
    fewest: int
    most: int
    inits: dict[str, list[str]]

    def sources(self, form: str = "binary", intervention: str = "") -> list[str]:
        """The sources of PMP of this form."""
        found = [init for init in self.inits.get(intervention, ()) if init.endswith(f":{form}")]
        return [source for init in found if (source := pmp_source(init))]


Measure = tuple[str, list[Arm]]


def _compare(
    measures_at: Callable[[Point], list[Measure]], missing: str, margin: float = 0.0, all_must_hold: bool = False
) -> Callable[[Study], Outcome]:
    """The rule is about the first of the labelled measures, or about all; above -margin."""

    def judge(study: Study) -> Outcome:
        points = pmp_points(study)
        if not points:
            return Outcome(NOT_RUN, note="no finetuning with and without PMP")
        n = points[-1][0]
        numbers, tasks = [pairs for size, pairs in points if size == n], study.tasks()
        rows = study.rows(stage="finetune", objective="preference", N=n)
        rows = rows[rows["task"].isin(tasks)]
        inits = {how: sorted(part["init"].unique()) for how, part in rows.groupby("intervention")}
        measures = measures_at(Point(nearest(numbers), min(numbers), max(numbers), inits))
        arms = [arm for _, members in measures for arm in members]
        found = {
            arm: [study.items(t, "preference", n, arm.init, arm.pairs, arm.intervention) for t in tasks] for arm in arms
        }
        if not arms or any(items is None for of_tasks in found.values() for items in of_tasks):
            return Outcome(NOT_RUN, note=missing)
        by_task = {
            label: [
                known(combine([found[arm][i] for arm in members], [arm.coefficient for arm in members]))
                for i in range(len(tasks))
            ]
            for label, members in measures
        }
        estimates = [(label, known(mean(by_task[label]))) for label, _ in measures]
        judged = estimates if all_must_hold else estimates[:1]
        verdicts = [direction(estimate, margin) for _, estimate in judged]
        verdict = next(v for v in (CONTRADICTED, POWER, SUPPORTED) if v in verdicts)
        if not above_floor(study, tasks, list(found.values())):
            verdict = FLOOR
        _, worst = min(judged, key=lambda labelled: labelled[1].lo)
        details = estimates if all_must_hold else estimates[1:]
        details += [
            (f"{task_name(task)}, {measures[0][0]}", known(mean([items])))
            for task, items in zip(tasks, by_task[measures[0][0]], strict=True)
        ]
        return Outcome(verdict, worst, f"N = {size_name(n)}, {arms[0].pairs} pairs", details=tuple(details))

    return judge


def _binary(source: str) -> str:
    return f"pmp:{source}:binary"


def _every_source(at: Point) -> list[Measure]:
    return [(f"PMP on {task_name(s)}", [Arm(1, at.pairs, _binary(s)), Arm(-1, at.pairs, "lm")]) for s in at.sources()]


def _more_at_few(at: Point) -> list[Measure]:
    sources = at.sources()
    if at.fewest == at.most or not sources:
        return []
    share = 1 / len(sources)
    gains = {
        pairs: [*(Arm(share, pairs, _binary(s)) for s in sources), Arm(-1, pairs, "lm")]
        for pairs in (at.fewest, at.most)
    }
    less = [arm._replace(coefficient=-arm.coefficient) for arm in gains[at.most]]
    each = [(f"gain at {pairs} pairs", arms) for pairs, arms in gains.items()]
    return [(f"gain at {at.fewest} minus gain at {at.most} pairs", [*gains[at.fewest], *less]), *each]


def _against(intervention: str, label: str) -> Callable[[Point], list[Measure]]:
    """PMP minus PMP under the intervention, each source a share."""

    def measures(at: Point) -> list[Measure]:
        sources = at.sources("binary", intervention)
        pairs = [
            arm
            for s in sources
            for arm in (
                Arm(1 / len(sources), at.pairs, _binary(s)), Arm(-1 / len(sources), at.pairs, _binary(s), intervention),
            )
        ]  # fmt: skip
        return [(label, pairs)] if pairs else []

    return measures


def _both_losses(at: Point) -> list[Measure]:
    if not at.sources("binary", "pm_alone"):
        return []
    parts = (("pm_alone", "both minus PM loss alone"), ("lm_alone", "both minus LM loss alone"))
    return [measure for how, label in parts for measure in _against(how, label)(at)]


def _end_of_context(at: Point) -> list[Measure]:
    plain = ("without PMP, with minus without", [Arm(1, at.pairs, "lm"), Arm(-1, at.pairs, "lm", "no_eoc")])
    found = _against("no_eoc", "with minus without")(at)
    return [*found, plain] if found else []


def _equal_updates(at: Point) -> list[Measure]:
    return [
        ("binary minus ranked", [Arm(1, at.pairs, _binary(s)), Arm(-1, at.pairs, f"pmp:{s}:ranked", "equal_updates")])
        for s in at.sources("ranked", "equal_updates")[:1]
    ]


def _shuffled(at: Point) -> list[Measure]:
    measures = []
    for s in at.sources("binary", "shuffled")[:1]:
        arm = Arm(-1, at.pairs, _binary(s), "shuffled")
        measures.append(("no PMP minus PMP on shuffled labels", [Arm(1, at.pairs, "lm"), arm]))
        measures.append(("PMP minus PMP on shuffled labels", [Arm(1, at.pairs, _binary(s)), arm]))
    return [*measures, *_against("lm_alone", "PMP minus LM loss alone")(at)] if measures else []


def _ensemble(at: Point) -> list[Measure]:
    ways, sources = [i for i in at.inits.get("", ()) if i.startswith("ensemble:")], at.sources()
    members = [Arm(-1 / len(sources), at.pairs, _binary(s)) for s in sources]
    ways.sort(key=lambda init: init != "ensemble:rewards")
    above = [(f"mean of {way.partition(':')[2]} minus mean member", [Arm(1, at.pairs, way), *members]) for way in ways]
    each = [
        (f"mean of rewards minus PMP on {task_name(s)}", [Arm(1, at.pairs, ways[0]), Arm(-1, at.pairs, _binary(s))])
        for s in sources
    ] if ways else []  # fmt: skip
    return [*above, *each]


def _human_model(at: Point) -> list[Measure]:
    return [
        ("human-model minus human-human", [Arm(1, at.pairs, f"pmp:{s}:human_model"), Arm(-1, at.pairs, _binary(s))])
        for s in at.sources("human_model")
    ]


_ABOVE = "supported if the interval is above 0; contradicted if below"


CLAIMS = (
    Claim(
        "pmp_every_source",
        "PMP on every source improves finetuning, on the mean over tasks.",
        "section 4, figures 4 and 32: at 500 pairs and 52B, on the mean over tasks; not on each task",
        f"mean accuracy of finetuning from PMP on a source minus without, the one whose interval begins lowest, {NEAR}",
        "supported if the intervals of all sources are above 0; contradicted if one is below",
        _compare(_every_source, "no finetuning from PMP on every source", all_must_hold=True),
        {"stage": "pmp"},
    ),
    Claim(
        "pmp_few_pairs",
        "PMP helps more where finetuning data are fewer.",
        "section 4, figure 5: +0.098 at 500 pairs, +0.047 at 5000 (52B)",
        "mean accuracy gain of PMP at the fewest pairs minus that at the most",
        _ABOVE,
        _compare(_more_at_few, "one number of pairs only"),
        {"stage": "pmp"},
    ),
    Claim(
        "pmp_labels",
        "What helps in PMP is its labels: shuffled, they do not. (Our control; the paper has none.)",
        "section 4",
        f"mean accuracy of finetuning without PMP minus from PMP on shuffled labels, {NEAR}",
        f"supported if the interval is above -{MARGIN}; contradicted if below",
        _compare(_shuffled, "no finetuning from PMP on shuffled labels", MARGIN),
        {"intervention": "shuffled"},
    ),
    Claim(
        "pmp_both_losses",
        "PMP with preference and language-modeling loss together is better than with either alone.",
        "section 4, figure 29: HellaSwag .724 against .625 and .507 at 500 pairs, summaries .661 against .600 and .603",
        f"mean accuracy of finetuning from PMP with both minus with one, the lower of the two, {NEAR}",
        "supported if both intervals are above 0; contradicted if one is below",
        _compare(_both_losses, "no finetuning from PMP with each loss alone", all_must_hold=True),
        {"intervention": "pm_alone"},
    ),
    Claim(
        "pmp_equal_updates",
        "Binary PMP transfers better than ranked PMP also at equal numbers of updates. (Ours; the paper's had twice "
        "the updates.)",
        "section 4, figures 18 and 37, which are at equal epochs: +0.049 at 500 pairs, 13B",
        f"mean accuracy of finetuning from binary PMP minus from ranked PMP over twice the epochs, {NEAR}",
        _ABOVE,
        _compare(_equal_updates, "no finetuning from ranked PMP at equal updates"),
        {"intervention": "equal_updates"},
    ),
    Claim(
        "pmp_end_of_context",
        "Reading the score at an end-of-context token helps PMP.",
        "appendix C.4, figure 31: HellaSwag .724 against .672 at 500 pairs, summaries .661 against .627 (13B)",
        f"mean accuracy of PMP and finetuning with the token minus without, {NEAR}",
        _ABOVE,
        _compare(_end_of_context, "no PMP without end-of-context"),
        {"intervention": "no_eoc"},
    ),
    Claim(
        "pmp_human_model",
        "Pairs of a human and a model-written text do at least as well for PMP as pairs of two human texts.",
        "section 4.4, figures 19 and 36: HellaSwag .861 against .788 at 500 pairs, summaries .700 against .668 (13B)",
        f"mean accuracy of finetuning from PMP on human-model pairs minus on human-human pairs, {NEAR}",
        f"supported if the interval is above -{MARGIN}; contradicted if below",
        _compare(_human_model, "no finetuning from PMP on human-model pairs", MARGIN),
    ),
    Claim(
        "pmp_ensemble",
        "The mean reward of models finetuned from PMP on different sources is better than one of them.",
        "appendix C.5: about +0.005",
        f"accuracy of the mean of rewards minus the mean accuracy of its members, mean over tasks, {NEAR}",
        _ABOVE,
        _compare(_ensemble, "no ensembles"),
        {"init": "ensemble:rewards"},
    ),
)
