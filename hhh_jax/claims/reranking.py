"""Claims on re-ranking samples (section 3, appendix B.6)."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from hhh_jax import results
from hhh_jax.analyses.rerank import MAIN_K, RANKERS
from hhh_jax.claims.rules import FLOOR, MARGIN, NOT_RUN, Claim, Outcome, direction, equality, known
from hhh_jax.results import Items
from hhh_jax.stats import Estimate
from hhh_jax.summary import Study, difference, mean, size_name

if TYPE_CHECKING:
    import pandas as pd


def _gain(
    a: str, b: str, verdict: Callable[[Estimate], str], floor: tuple[str, ...] = ()
) -> Callable[[Study], Outcome]:
    """acc@k by ranker `a` minus that by ranker `b`, the mean over tasks, at the largest size that all tasks have.

    It is at the floor if none of the rankers `floor` is above unranked samples.
    """

    def judge(study: Study) -> Outcome:
        rows = study.rows(stage="rerank", metric="acc_at_k", ranker=a)
        tasks = sorted(rows["task"].unique())
        sizes = _shared(rows, "N")
        if not sizes:
            return Outcome(NOT_RUN, note="no samples were re-ranked")
        n = sizes[-1]
        of_size = rows[rows["N"] == n]
        samples = _shared(of_size, "k")
        main = max(k for k in samples if k <= MAIN_K)

        def gain(task: str, k: int, a: str = a, b: str = b) -> Items | None:
            (run,) = of_size[of_size["task"] == task]["run"].unique()
            where = study.runs_dir / run
            of_a, of_b = (results.read_items(where, task, "test", "best", f"{ranker}@{k}") for ranker in (a, b))
            return difference(of_a, of_b)

        estimate = known(mean([gain(task, main) for task in tasks]))
        details = [(f"{task}, k = {k}", known(mean([gain(task, k)]))) for task in tasks for k in samples if k > 1]
        above = {ranker: known(mean([gain(task, main, ranker, "unranked") for task in tasks])) for ranker in floor}
        details += [(f"{RANKERS[ranker]} above unranked samples", over) for ranker, over in above.items()]
        is_floor = bool(floor) and not any(over.lo > 0 for over in above.values())
        where = f"N = {size_name(n)}, k = {main}, {', '.join(tasks)}"
        note = "Neither ranks better than taking any sample." if is_floor else ""
        return Outcome(FLOOR if is_floor else verdict(estimate), estimate, where, note, tuple(details))

    return judge


def _shared(rows: "pd.DataFrame", column: str) -> list[int]:
    """The whole numbers that every task has in a column, ascending."""
    found = [set(of_task[column].dropna().astype(int)) for _, of_task in rows.groupby("task")]
    return sorted(set.intersection(*found)) if found else []


CLAIMS = (
    Claim(
        "rerank_equal",
        "Binary discrimination and imitation learning re-rank samples about equally.",
        "section 3, figures 11 to 13: at k = 8 and 13B +0.019 (code) and +0.010 (Lambada)",
        f"acc@{MAIN_K} by reward minus acc@{MAIN_K} by mean log-probability, mean over tasks, largest size",
        f"supported if the interval is within ±{MARGIN}; contradicted if wholly outside",
        _gain("reward", "mean_logp", equality, floor=("reward", "mean_logp")),
    ),
    Claim(
        "rerank_above_unranked",
        "A sample that a preference model chooses is right more often than a sample taken at random.",
        "section 3, figures 11 to 13: at k = 8 and 13B +0.100 (code) and +0.365 (Lambada)",
        f"acc@{MAIN_K} by reward minus the share of right samples, mean over tasks, largest size",
        "supported if the interval is above 0; contradicted if below",
        _gain("reward", "unranked", direction),
    ),
)
