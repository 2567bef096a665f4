"""What a run's model makes of held-out data: result rows and item records."""

from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from etils import epath

from hhh_jax import evaluate, model, scoring, stage_data, stats, train
from hhh_jax.data.labeled_rows import LabeledRows, RowLoader
from hhh_jax.errors import UserError
from hhh_jax.stage_data import StageData
from hhh_jax.version import code_version

RANKERS = {
    "preference": "reward", "imitation": "mean_logp", "dpo": "implicit_reward", "lm": "mean_logp",
    "distillation": "mean_logp",
}  # fmt: skip


class Run(NamedTuple):
    """A run made ready: its config, data, compiled-step config and what follows from them.

    `sha` is its `config_sha`; `started` the monotonic clock less the seconds that earlier processes spent on the run.
    """

    config: ml_collections.ConfigDict
    workdir: epath.Path
    data: StageData
    step_config: train.StepConfig
    total_steps: int
    pretrain_seeds: tuple[int, ...]
    sha: str
    started: float


def pair_ranker(objective: str) -> str:
    """What models of an objective rank pairs by. Raises UserError for one that gives no score to a text."""
    if objective not in RANKERS:
        raise UserError(f"a model of objective {objective} gives no scores to texts, so it ranks no pairs")
    return RANKERS[objective]


def want(ranker: str) -> str:
    """What `evaluate.score_pairs` has to compute for a ranker."""
    return "logp" if ranker == "mean_logp" else ranker


def make_scorer(this: Run, state: train.State, selection: str = "final") -> scoring.Scorer:
    """A scorer of the run's seeds under the last parameters of its state, or the ``best`` ones."""
    c, d = this.config, this.config.data
    params = state["best"]["params"] if selection == "best" else state["params"]
    mesh, pad = this.step_config.mesh, this.data.tokenizer.pad_id
    scorer = scoring.Scorer(this.step_config.model, params, len(c.seeds), mesh, c.eval.rows, d.row_length, pad)
    return scorer._replace(reference=state.get("reference"), beta=c.objective.beta)


def full_row(this: Run, row: dict[str, Any]) -> dict[str, Any]:
    """A result row with all that the run's config says of it."""
    c = this.config
    preference = c.objective.name == "preference"
    stage = "finetune" if c.stage in ("imitation", "binary", "ranked", "dpo") else c.stage
    return {
        "study": c.labels.study, "run": this.workdir.name, "stage": stage, "ladder": c.ladder,
        "n_layer": c.model.n_layer, "N": model.count_params(this.step_config.model)["n"],
        "objective": c.objective.name, "init": c.labels.init, "intervention": c.labels.intervention,
        "lambda": c.objective.lam if preference else "", "mu": c.objective.mu if preference else "",
        "eoc": str(c.data.end_of_context).lower(), "task": this.data.name, "split": c.eval.split,
        "pairs_total": this.data.n_train_pairs or "", "curve": "separate",
        "pretrain_seed": this.pretrain_seeds[list(c.seeds).index(row["seed"])],
        "config_sha": this.sha, "data_sha": this.data.sha, "code_version": code_version(),
    } | row  # fmt: skip


def results(this: Run, state: train.State, selections: tuple[str, ...]) -> tuple[list[dict], list[dict]]:
    """Result rows and item records of the run's own held-out data."""
    c, rows, items = this.config, [], []
    seeds = tuple(c.seeds)
    where = {"task": this.data.name, "split": c.eval.split}
    if isinstance(this.data.train, RowLoader):
        found = row_values(this, state, this.data.test)
        for name, (sum_GxN, weight_N) in found.items():
            for g, seed in enumerate(seeds):
                share_N = stats.sample(sum_GxN[g], None, weight_N)
                value, lo, hi, n_items = stats.estimate([share_N])[:4]
                rows.append({"seed": seed, "metric": name, "value": value, "lo": lo, "hi": hi, "n_items": n_items})
        return [full_row(this, row) for row in rows], []
    if this.data.train_pairs is None:
        scorer = make_scorer(this, state)
        logp_GxD, n_D = scoring.score_documents(scorer, this.data.test)
        for g, seed in enumerate(seeds):
            rows.append({"seed": seed, "metric": "loss", "value": -logp_GxD[g].sum() / n_D.sum(), "n_items": len(n_D)})
            for d, (name, group, n_bytes) in enumerate(map(this.data.test.about, range(len(n_D)))):
                items.append(where | {
                    "selection": "final", "seed": seed, "item_id": name, "group_id": group, "option": "text",
                    "n_tokens": int(n_D[d]), "n_bytes": n_bytes, "logp_sum": float(logp_GxD[g, d]),
                })  # fmt: skip
        return [full_row(this, row) for row in rows], items
    ranker = RANKERS[c.objective.name]
    scores: evaluate.PairScores | None = None
    for selection in selections:
        steps_G = np.asarray(state["best"]["step"]) if selection == "best" else np.full(len(seeds), this.total_steps)
        if scores is None or (np.asarray(state["best"]["step"]) != this.total_steps).any():  # else they are the same
            scores = evaluate.score_pairs(make_scorer(this, state, selection), this.data.test, (want(ranker),))
        for row in evaluate.pair_rows(scores, seeds, selection, (ranker,)):
            rows.append(row | {"pairs_seen": int(steps_G[seeds.index(row["seed"])]) * c.batch.pairs})
        items += evaluate.pair_items(scores, this.data.test, seeds, **where, selection=selection)
    return [full_row(this, row) for row in rows], items


def row_values(
    this: Run, state: train.State, labeled: LabeledRows
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The objective's loss, and what else it measures, on labeled rows: sums ``[G, N]`` and weights ``[N]`` of each."""
    return evaluate.score_rows(make_scorer(this, state), labeled, this.config.objective.name)


def curve_rows(this: Run, state: train.State, step: int) -> list[dict[str, Any]]:
    """The test set read on the way, for curves within one run; nothing is chosen by it."""
    ranker = RANKERS[this.config.objective.name]
    scores = evaluate.score_pairs(make_scorer(this, state), this.data.test, (want(ranker),))
    rows = evaluate.pair_rows(scores, this.config.seeds, "final", (ranker,))
    where = {"curve": "within_run", "pairs_seen": step * this.config.batch.pairs}
    return [full_row(this, row | where) for row in rows]


def untuned_results(this: Run, state: train.State) -> tuple[list[dict], list[dict]]:
    """The run's model, which has seen no pairs of them, on the test sets of the tasks that `eval.tasks` names.

    A language model ranks by its log-probabilities; its rows' objective is ``untuned``. A model of the stage pmp ranks
    by its rewards; the column ``init`` of its rows names what it was pre-trained on.
    """
    rows, items = [], []
    c = this.config
    pmp = c.stage == "pmp"
    ranker, selection = ("reward", "best") if pmp else ("mean_logp", "final")
    form = "binary" if c.data.binarize else "ranked"
    untuned = {"objective": "untuned", "lambda": "", "mu": ""}
    about = {"init": f"pmp:{Path(this.data.name).stem}:{form}"} if pmp else untuned
    for task in c.eval.tasks:
        pairs, _, sha = stage_data.load_split(c, task, "test", this.data.tokenizer)
        scores = evaluate.score_pairs(make_scorer(this, state, selection), pairs, (want(ranker),))
        for row in evaluate.pair_rows(scores, tuple(c.seeds), "best", (ranker,)):
            rows.append(full_row(this, row) | about | {"task": task, "split": "test", "data_sha": sha[:12]})
        items += evaluate.pair_items(scores, pairs, tuple(c.seeds), task=task, split="test", selection="best")
    return rows, items
