"""The updates of a run: what is fed to them, recorded of them, validated between them and saved after them."""

import time
from typing import Any

import numpy as np

from hhh_jax import config as config_lib
from hhh_jax import distributed, evaluate, optim, scoring, train
from hhh_jax.checkpoint import Checkpoints
from hhh_jax.data.labeled_rows import RowLoader
from hhh_jax.data.loader import batch_rows, prefetch
from hhh_jax.errors import UserError
from hhh_jax.held_out import RANKERS, Run, curve_rows, make_scorer, row_values, want
from hhh_jax.record import Record, jsonable


def update_all(
    this: Run,
    checkpoints: Checkpoints,
    record: Record,
    stop: distributed.StopSignal | None,
    step: int,
    state: train.State,
    extra: dict[str, Any],
) -> tuple[train.State, dict[str, Any]]:
    """All updates from `step` on. Metrics of one update are fetched after the next one is dispatched.

    Args:
      stop: asked before every update; None never stops.
      extra: ``tokens`` trained on, ``rows`` of results and ``seconds`` spent so far.

    Returns:
      The state and `extra` after the last update, which are saved.

    Raises:
      UserError: for a loss that is not finite.
      Stopped: when told to stop; what was done is saved.
    """
    c, sc, total, seeds = this.config, this.step_config, this.total_steps, tuple(this.config.seeds)
    validate_at = {round(total * (i + 1) / c.eval.points) for i in range(c.eval.points)} | {total}
    curve_at = {int(pairs) // c.batch.pairs for pairs in c.eval.curve}
    pending: tuple[int, dict[str, Any], dict[str, Any]] | None = None
    clock, clock_tokens = time.monotonic(), 0
    saved, saved_at = step, time.monotonic()

    def flush(more: dict[str, Any] | None = None) -> None:
        nonlocal pending, clock, clock_tokens
        if pending is None:
            return
        at, device_metrics, host_metrics = pending
        _check_finite(this, checkpoints, at, device_metrics)
        metrics = {name: np.asarray(value) for name, value in device_metrics.items()}
        if at % c.log_every == 0 or at == total or more:
            now = time.monotonic()
            speed = {"tokens_per_second": clock_tokens / max(now - clock, 1e-9)}
            record.log(at, metrics | host_metrics | (more or {}) | speed)
            clock, clock_tokens = now, 0
        pending = None

    def save() -> None:
        nonlocal extra, saved, saved_at
        flush()
        record.sync()
        extra = extra | {"seconds": time.monotonic() - this.started}
        checkpoints.save(step, state, extra | _identity(this))
        saved, saved_at = step, time.monotonic()

    def is_late() -> bool:
        # Clocks differ: of several processes the first one's counts, and is asked for at logged steps only.
        late = time.monotonic() - saved_at > c.checkpoint.every_minutes * 60
        return (step % c.log_every == 0 or not distributed.several()) and distributed.agree(late)

    def rows_here(n_rows: int) -> np.ndarray:
        return distributed.rows_here(sc.mesh, n_rows)

    for batch, n_rows, tokens in prefetch(lambda i: batch_rows(this.data.train, i, seeds, rows_here), step, total):
        if stop is not None and stop.before(step):
            if saved != step:
                save()
            checkpoints.wait()
            record.say(f"stopped after step {step} of {total}: saved but not finished; the same command goes on")
            raise distributed.Stopped(stop.code)
        term_norms = bool(c.term_norms_every) and (step % c.term_norms_every == 0 or step == total - 1)
        lr = _learning_rate(this, step)
        extra = extra | {"tokens": extra["tokens"] + tokens}
        clock_tokens += tokens
        update = train.compiled_step(sc, term_norms and train.len_terms(sc) > 1)
        placed = distributed.place_rows(batch, rows_here(n_rows), n_rows, sc.mesh)
        state, metrics = update(state, placed, np.full(len(seeds), lr, np.float32))
        flush()
        step += 1
        pending = step, metrics, {"lr": lr, "tokens": extra["tokens"] // len(seeds)}
        if this.data.train_pairs is not None:
            pending[2]["pairs"] = step * c.batch.pairs
        if step in validate_at or step in curve_at:
            _check_finite(this, checkpoints, step, metrics)  # before anything is scored with what a broken update left
            more: dict[str, Any] = {}
            if step in validate_at:
                state, more = _validate(this, state, step)
            if step in curve_at:
                extra = extra | {"rows": [*extra["rows"], *curve_rows(this, state, step)]}
            flush(more)
        if step == total or step % c.checkpoint.every_steps == 0 or is_late():
            save()
    return state, extra


def _learning_rate(this: Run, step: int) -> float:
    o = this.config.optim
    return optim.learning_rate(
        step,
        this.total_steps,
        peak=o.lr * o.lr_multiple,
        warmup_steps=min(o.warmup_steps, this.total_steps // 10),
        schedule=o.schedule,
        final_fraction=o.final_fraction,
    )


def _check_finite(this: Run, checkpoints: Checkpoints, at: int, metrics: dict[str, Any]) -> None:
    for name in ("loss", "grad_norm"):
        value_G = np.asarray(metrics[name])
        if not np.isfinite(value_G).all():
            kept = checkpoints.latest_step()
            raise UserError(
                f"{name} is {value_G.tolist()} at step {at} (batch {at - 1}, seeds {list(this.config.seeds)}); "
                + ("no checkpoint was saved yet" if kept is None else f"the checkpoint of step {kept} is intact")
                + "; lower --config.optim.lr, or look at that batch's data"
            )


def _identity(this: Run) -> dict[str, Any]:
    """What a checkpoint holds besides arrays; the data position is its step, an index that no host count enters."""
    return {
        "config": jsonable(config_lib.fields(this.config)),
        "config_sha": this.sha,
        "pretrain_seeds": list(this.pretrain_seeds),
        "tokenizer": this.data.tokenizer.to_json(),
    }


def _validate(this: Run, state: train.State, step: int) -> tuple[train.State, dict[str, Any]]:
    """Scores the validation split and, in stages on pairs, keeps the parameters of each seed's best step."""
    if isinstance(this.data.train, RowLoader):
        found = row_values(this, state, this.data.validation)
        return state, {f"validation_{name}": sum_GxN.sum(1) / n_N.sum() for name, (sum_GxN, n_N) in found.items()}
    scorer = make_scorer(this, state)
    if this.data.train_pairs is None:
        logp_GxD, n_D = scoring.score_documents(scorer, this.data.validation)
        return state, {"validation_loss": -logp_GxD.sum(1) / max(n_D.sum(), 1)}
    ranker = RANKERS[this.config.objective.name]
    scores = evaluate.score_pairs(scorer, this.data.validation, (want(ranker),))
    accuracy_G = evaluate.right(scores.margins(ranker)).mean(1)
    select = train.compiled_selection(this.step_config)
    return select(state, accuracy_G.astype(np.float32), np.int32(step)), {"validation_accuracy": accuracy_G}
