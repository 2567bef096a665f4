"""The paper's claims, each with a rule that was written before the runs, and what a study says about them.

The rules follow one pattern. A claim about a difference is *supported* if the 95% interval of its statistic
lies beyond 0 in the claimed direction, *contradicted* if it lies beyond 0 in the other. A claim that two
things are about equal is supported if the interval lies within MARGIN, contradicted if it lies wholly
outside. All else is *undecided (power)*. Where none of the models compared beats the best trivial baseline,
their comparison means nothing, whatever it gives: *undecided (floor)*. Statistics are taken at the largest
model size at hand, those of PMP and symbols at the number of pairs nearest to SMALL_DATA. Intervals are over
seeds and items, paired (`hhh_jax.stats`).
"""

from collections.abc import Sequence

from hhh_jax.claims import beyond, discriminator, objectives, pmp, pmp_needs, prompting, reranking
from hhh_jax.claims.rules import NOT_RUN, Claim, Outcome
from hhh_jax.summary import Study

CLAIMS = (
    *prompting.CLAIMS, *objectives.CLAIMS, *reranking.CLAIMS, *pmp.CLAIMS, *pmp_needs.CLAIMS, *discriminator.CLAIMS,
    *beyond.CLAIMS,
)  # fmt: skip


def evaluate(study: Study) -> list[tuple[Claim, Outcome]]:
    """Every claim with its outcome, in the order of CLAIMS. Raises UserError if item records are missing."""
    return [(claim, claim.judge(study)) for claim in CLAIMS]


def concerning(study: Study, judged: Sequence[tuple[Claim, Outcome]]) -> list[tuple[Claim, Outcome]]:
    """Those that the study tested, or has rows for that a claim `needs`."""
    return [
        (claim, outcome)
        for claim, outcome in judged
        if outcome.verdict != NOT_RUN or (claim.needs and len(study.rows(**claim.needs)))
    ]
