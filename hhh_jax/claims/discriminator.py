"""Claims of appendix D: the per-token discriminator. Its rows are those of `hhh_jax.evals.discriminator`."""

from collections.abc import Callable
from typing import Any

from hhh_jax.claims.rules import MARGIN, NOT_RUN, Claim, Outcome, direction, equality
from hhh_jax.stats import Estimate
from hhh_jax.summary import Study, size_name

STAGE = "discriminator"


def measured(study: Study, stage: str, metric: str, **where: Any) -> list[tuple[Any, Estimate]]:
    """Rows of a stage and metric that hold an estimate over all seeds, each with it, by ascending N and k."""
    rows = study.rows(stage=stage, metric=metric, **where).sort_values(["N", "k"], kind="stable")
    n_seeds = max(int(study.table["seed"].nunique()), 1)
    return [(row, Estimate(row.value, row.lo, row.hi, int(row.n_items), n_seeds)) for row in rows.itertuples()]


def _largest(
    metric: str, verdict: Callable[[Estimate], str], ranker: str, what: str, **details: str
) -> Callable[[Study], Outcome]:
    """A claim about the largest discriminator's row of a metric; others, and other rankers, are details."""

    def judge(study: Study) -> Outcome:
        found = measured(study, STAGE, metric, ranker=ranker)
        if not found:
            return Outcome(NOT_RUN, note="no discriminator was trained and judged")
        row, estimate = found[-1]
        more = [(f"at {size_name(other.N)}", value) for other, value in found[:-1]]
        for label, name in details.items():
            beside = measured(study, STAGE, "top_accuracy", ranker=name, N=row.N, k=row.k)
            more += [(label.replace("_", " "), value) for _, value in beside]
        return Outcome(
            verdict(estimate), estimate, f"N = {size_name(row.N)}, {what.format(k=int(row.k))}", "", tuple(more)
        )

    return judge


TOP = "the top {k} samples of each problem"
CLAIMS = (
    Claim(
        "discriminator_ranks",
        "Samples that a per-token discriminator takes for human are right more often than others.",
        "appendix D, figure 34: .62 to .67 in the top 10 of 100, .47 in all",
        "mean accuracy of the top tenth of samples by mean P(human) minus that of all samples",
        "supported if the interval is above 0; contradicted if below",
        _largest("top_accuracy_gain", direction, "p_human-unranked", TOP, by_P_human="p_human"),
    ),
    Claim(
        "discriminator_below_lm",
        "By itself, the discriminator ranks samples worse than the language model that wrote them.",
        "appendix D, figure 34: .62 to .67 against .76 in the top 10 of 100",
        "mean accuracy of the top tenth by the model's log-probability minus that by mean P(human)",
        "supported if the interval is above 0; contradicted if below",
        _largest("top_accuracy_gain", direction, "logp-p_human", TOP, by_the_LM="logp", by_P_human="p_human"),
    ),
    Claim(
        "ensemble_equals_lm",
        "Both together (eq. D.2) rank about as well as the language model.",
        "appendix D, figure 34: +.01 in the top 10 of 100 and −.01 to −.03 in the first",
        "mean accuracy of the top tenth by the ensemble minus that by the model's log-probability",
        f"supported if the interval is within ±{MARGIN}; contradicted if wholly outside",
        _largest("top_accuracy_gain", equality, "ensemble-logp", TOP, by_the_ensemble="ensemble"),
    ),
    Claim(
        "switch_is_noticed",
        "A discriminator takes a model's first tokens for human, and notices the further it reads.",
        "appendix D, figure 35: .19 at the first token and .97 at the 127th (training data)",
        "accuracy in the last bin of distances after the switch minus that at the model's first token, held-out rows",
        "supported if the interval is above 0; contradicted if below",
        _largest("after_switch_gain", direction, "", "from token {k} after the switch"),
    ),
)
