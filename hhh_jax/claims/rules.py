"""How a claim is judged: its statement, its rule, written before the runs, and what a study says about it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from hhh_jax.results import Items
from hhh_jax.stats import Estimate
from hhh_jax.summary import Study, common, difference, mean

MARGIN = 0.03  # accuracy: "about equal"
MIN_SIZES = 4  # a claim about scaling needs as many
SUPPORTED, CONTRADICTED, NOT_RUN = "supported", "contradicted", "not run"
POWER, FLOOR = "undecided (power)", "undecided (floor)"
VERDICTS = (SUPPORTED, CONTRADICTED, POWER, FLOOR, NOT_RUN)


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
    """`statement` is the paper's (in our words) and `where` its place; `statistic` and `rule` are ours.

    `needs` names rows by their columns: a study that has one of them is about the claim, and its report says why where
    the claim could not be tested. Without `needs`, a report is silent about a claim that was not run.
    """

    key: str
    statement: str
    where: str
    statistic: str
    rule: str
    judge: Callable[[Study], Outcome]
    needs: Mapping[str, str] | None = None


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


_T = TypeVar("_T")


def known(value: _T | None) -> _T:
    if value is None:
        raise ValueError("an arm that was found before is missing")
    return value
