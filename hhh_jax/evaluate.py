"""What a run's model makes of pairs and of labeled rows: scores, records and result rows.

    python -m hhh_jax.evaluate --checkpoint=RUN_DIR [--task=NAME] [--split=SPLIT] [--selection=best|final]

recomputes result rows of a finished run from its checkpoint and prints them as JSON lines.

    python -m hhh_jax.evaluate --checkpoint=RUN_DIR --evals=hhh,truthfulqa,lambada --intervention=prompt --workdir=OUT

runs evaluations of the paper (`hhh_jax.evals.battery`) on data prepared below ``--data``, bare, prompted, or in the
dialogue form that a distilled model was trained for; it writes OUT/rows.jsonl and OUT/items.jsonl and prints a table.
"""

import functools
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh

from hhh_jax import cli, distributed, objectives, sharding, stats
from hhh_jax.data.labeled_rows import LabeledRows
from hhh_jax.data.packing import Batch, TokenizedPair
from hhh_jax.errors import UserError
from hhh_jax.model import ModelConfig, Params, hidden_states
from hhh_jax.objectives import Outputs
from hhh_jax.scoring import Scorer, check_finite, score_branches
from hhh_jax.train import over_seeds


class PairScores(NamedTuple):
    """Scores of the two sides (0 good, 1 bad) of ``P`` pairs under ``G`` seeds.

    Attributes:
      logp_sum_GxPx2: summed log-probability in nats of the response tokens, end-of-context included; None if not asked.
      n_tokens_Px2: number of these tokens.
      reward_GxPx2: rewards, of a score head or implicit ones; None if the model has neither.
      groups: the group of each pair; empty if they do not matter.
    """

    logp_sum_GxPx2: np.ndarray | None
    n_tokens_Px2: np.ndarray
    reward_GxPx2: np.ndarray | None
    groups: tuple[str, ...] = ()

    def by(self, ranker: str) -> np.ndarray:
        """The scores to rank by, ``[G, P, 2]``: ``reward`` or ``implicit_reward``, or ``mean_logp``, the mean over
        response tokens."""
        if ranker != "mean_logp":
            assert self.reward_GxPx2 is not None
            return self.reward_GxPx2
        assert self.logp_sum_GxPx2 is not None
        return self.logp_sum_GxPx2 / self.n_tokens_Px2

    def margins(self, ranker: str) -> np.ndarray:
        """Good side's score less the bad side's, float ``[G, P]``."""
        scores_GxPx2 = self.by(ranker)
        return scores_GxPx2[..., 0] - scores_GxPx2[..., 1]


def score_pairs(scorer: Scorer, pairs: Sequence[TokenizedPair], want: tuple[str, ...]) -> PairScores:
    """Scores every pair once; ``want`` names what to compute: ``logp``, ``reward`` or both, or ``implicit_reward``.

    The implicit reward of DPO is beta times the summed log-probability of a response less the reference's.

    Raises UserError for a score that is not finite: it would count as a wrong answer.
    """
    items = [(pair.context, (pair.good, pair.bad)) for pair in pairs]
    implicit = "implicit_reward" in want
    scores = score_branches(scorer, items, ("logp",) if implicit else want, rows=scorer.padded_rows())
    if implicit:
        assert scorer.reference is not None and scores.logp_GxN is not None
        start = scorer._replace(params=scorer.reference)
        start_GxN = score_branches(start, items, ("logp",), rows=scorer.padded_rows()).logp_GxN
        scores = scores._replace(reward_GxN=scorer.beta * (scores.logp_GxN - start_GxN))
    logp_GxPx2, reward_GxPx2 = (
        None if scores_GxN is None else scores_GxN.reshape(len(scores_GxN), -1, 2)
        for scores_GxN in (scores.logp_GxN, scores.reward_GxN)
    )
    for what, scores_GxPx2 in (("log-probability", logp_GxPx2), ("reward", reward_GxPx2)):
        if scores_GxPx2 is not None:
            check_finite(what, scores_GxPx2, [pair.id for pair in pairs])
    groups = tuple(pair.group for pair in pairs)
    return PairScores(logp_GxPx2, scores.n_tokens_N.reshape(-1, 2), reward_GxPx2, groups)


def score_rows(scorer: Scorer, labeled: LabeledRows, objective: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The loss of an objective on labeled rows, in nats a token, and what else it measures.

    Returns:
      ``{name: (sums [G, N], weights [N])}`` of the ``N`` rows, float64; ``loss`` comes first.

    Raises UserError for a sum that is not finite.
    """
    forward = _compiled_row_sums(scorer.model, scorer.n_seeds, scorer.mesh, objective)
    found: dict[str, list[np.ndarray]] = {}
    rows = scorer.padded_rows()
    for first in range(0, len(labeled), rows):
        numbers = range(first, min(first + rows, len(labeled)))
        batch = labeled.batch(numbers, scorer.pad_id, rows)
        for name, values_GxR in forward(scorer.params, scorer.place(batch)).items():
            found.setdefault(name, []).append(np.asarray(values_GxR, np.float64)[:, : len(numbers)])
    whole = {name: np.concatenate(parts, axis=1) for name, parts in found.items()}
    weight_N = whole.pop("weight")[0]
    for name, sums_GxN in whole.items():
        check_finite(name, sums_GxN, range(len(labeled)))
    return {name: (sums_GxN, weight_N) for name, sums_GxN in whole.items()}


@functools.lru_cache(maxsize=8)
def _compiled_row_sums(model: ModelConfig, n_seeds: int, mesh: Mesh, objective: str) -> Callable:
    """``(params [G, ...], batch [R, ...]) -> {name: sums [G, R]}`` of an objective of one term, and its ``weight``."""
    (term,) = objectives.make_objective(objective).values()

    def forward(batch: Batch, params: Params) -> dict[str, jax.Array]:
        hidden_RxTxD = hidden_states(
            model, params, batch.tokens, batch.segment_ids, batch.branch_ids, batch.positions, mesh
        )

        def one(hidden_TxD: jax.Array, row: Batch) -> dict[str, jax.Array]:
            batch_of_one = jax.tree.map(lambda x: x[None], row)
            total, extra = term.sum(Outputs(params, hidden_TxD[None], batch_of_one), batch_of_one)
            return {"loss": total, **extra, "weight": term.weight(batch_of_one)}

        return jax.vmap(one)(hidden_RxTxD, batch)

    def for_all(params: Params, batch: Batch) -> dict[str, jax.Array]:
        return over_seeds(functools.partial(forward, batch), n_seeds)(params)

    return jax.jit(for_all, out_shardings=sharding.replicated(mesh))


def right(margins: np.ndarray) -> np.ndarray:
    """1 where the good side wins, 0 where the bad one does, 0.5 for a tie."""
    return np.where(margins == 0, 0.5, margins > 0)


def pm_loss(margins: np.ndarray) -> np.ndarray:
    """Eq. 3.1 of each pair from its reward margin, float64."""
    return np.logaddexp(0.0, -margins.astype(np.float64))


def pair_items(
    scores: PairScores, pairs: Sequence[TokenizedPair], seeds: Sequence[int], **where: str
) -> list[dict[str, Any]]:
    """One record for each pair, side and seed; ``where`` gives task, split and selection."""
    records = []
    for g, seed in enumerate(seeds):
        for p, pair in enumerate(pairs):
            for side, option in enumerate(("good", "bad")):
                record = {
                    **where, "seed": seed, "item_id": pair.id, "group_id": pair.group, "option": option,
                    "n_tokens": int(scores.n_tokens_Px2[p, side]), "n_bytes": pair.n_bytes[side],
                }  # fmt: skip
                if scores.logp_sum_GxPx2 is not None:
                    record["logp_sum"] = float(scores.logp_sum_GxPx2[g, p, side])
                reward = None if scores.reward_GxPx2 is None else float(scores.reward_GxPx2[g, p, side])
                records.append(record | {"reward": reward, "label": 1 - side})
    return records


def by_group(right_P: np.ndarray, groups: Sequence[str]) -> np.ndarray | None:
    """1 for each group whose pairs are all right, else 0 (ties count their share), in the order of their names.

    None unless all groups are of one size above one, as in the test sets of ETHICS that are scored by group: groups
    elsewhere only keep together what is alike.
    """
    names, group_P, sizes = np.unique(np.array(groups, dtype=str), return_inverse=True, return_counts=True)
    if len(set(sizes)) != 1 or sizes[0] == 1 or len(names) == 1:
        return None
    return right_P[np.argsort(group_P, kind="stable")].reshape(len(names), -1).prod(axis=1)


def pair_rows(scores: PairScores, seeds: Sequence[int], selection: str, rankers: Sequence[str]) -> list[dict[str, Any]]:
    """Accuracy (with its Wilson interval over items) and, of rewards, PM loss (DPO's loss of implicit ones): one row a
    seed, ranker and metric.

    Where items are scored by group (`by_group`), there is a row of ``group_accuracy`` too.
    """
    suffix = "_final" if selection == "final" else ""
    rows = []
    for ranker in rankers:
        margins_GxP = scores.margins(ranker)
        for seed, margins_P in zip(seeds, margins_GxP, strict=True):
            n = len(margins_P)
            correct = float(right(margins_P).sum())
            lo, hi = stats.wilson(correct, n)
            base = {"ranker": ranker, "seed": seed, "n_items": n}
            rows.append(base | {"metric": f"accuracy{suffix}", "value": correct / n, "lo": lo, "hi": hi})
            if ranker != "mean_logp":
                rows.append(base | {"metric": f"pm_loss{suffix}", "value": float(pm_loss(margins_P).mean())})
            whole = by_group(right(margins_P), scores.groups)
            if whole is not None:
                lo, hi = stats.wilson(float(whole.sum()), len(whole))
                extent = {"value": float(whole.mean()), "lo": lo, "hi": hi, "n_items": len(whole)}
                rows.append(base | {"metric": f"group_accuracy{suffix}", **extent})
    return rows


def main(_: Sequence[str]) -> None:
    from hhh_jax import run

    cli.use_compilation_cache()
    if _EVALS.value:
        from hhh_jax.evals.battery import Settings, run_battery, summary_lines

        if not _WORKDIR.value:
            raise UserError("--evals needs --workdir, the folder that records and rows are written into")
        given: dict[str, Any] = {name: flags.FLAGS[name].value for name in Settings._fields}
        say = functools.partial(print, file=sys.stderr, flush=True) if distributed.is_first() else lambda text: None
        rows = run_battery(Path(_CHECKPOINT.value), _EVALS.value, Path(_WORKDIR.value), Settings(**given), say)
        lines: Iterable[str] = summary_lines(rows)
    else:
        rows = run.recompute_rows(_CHECKPOINT.value, _TASK.value, _SPLIT.value, _SELECTION.value)
        lines = map(json.dumps, rows)
    for line in lines if distributed.is_first() else ():
        print(line)


if __name__ == "__main__":
    _CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Directory of a finished run.", required=True)
    _TASK = flags.DEFINE_string("task", "", "Task or file of pairs to evaluate on; the run's own if not given.")
    _SPLIT = flags.DEFINE_string(
        "split", "", "Which part of it, as test_no_overlap of a prepared folder; if empty that of the run."
    )
    _SELECTION = flags.DEFINE_enum(
        "selection", "best", ["best", "final"], "Parameters chosen on validation, or the last."
    )
    _EVALS = flags.DEFINE_list("evals", [], "Evaluations of hhh_jax.evals.battery, separated by commas.")
    _WORKDIR = flags.DEFINE_string("workdir", "", "Folder that --evals writes into.")
    flags.DEFINE_string("intervention", "none", "none, template, prompt, short, two, or a text file.")
    flags.DEFINE_string("data", "data", "Folder of prepared folders, each named by its source.")
    flags.DEFINE_string("templates", None, "A file in the form of hhh_jax/evals/templates.toml.")
    flags.DEFINE_integer("limit", 0, "Items of every evaluation, the first ones; 0: all.", lower_bound=0)
    flags.DEFINE_integer("context", 0, "Tokens of the model's context; 0: those of its training rows.", lower_bound=0)
    flags.DEFINE_string("toxicity", "detoxify", "A scorer: detoxify, FILE.py:FUNCTION or MODULE:FUNCTION.")
    flags.DEFINE_bool("run_untrusted_code", False, "Run the code that the model writes, in a sandbox.")
    cli.define_process_flags()
    cli.start(main)
