"""One run: a config in; checkpoints, metrics.jsonl, item records and result rows out.

    WORKDIR/config.json      the config, all fields
            tokenizer.json   the tokenizer that it used
            data.json        what was read, kept and dropped, with hashes
            metrics.jsonl    the record, a line a logged step; events.* mirrors it for TensorBoard, log.txt for people
            checkpoints/     state, data position, tokenizer and config together
            items.jsonl      scores of every held-out item      (format: hhh_jax.results)
            rows.jsonl       result rows
            DONE.json        written last: the run is finished

Starting the same command again goes on from the last checkpoint; a finished run is left as it is.
"""

import hashlib
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from hhh_jax import config as config_lib
from hhh_jax import evaluate, model, objectives, optim, sharding, stage_data, train
from hhh_jax.checkpoint import Checkpoints, read_extra, restore_params
from hhh_jax.data.loader import prefetch
from hhh_jax.data.tokenizer import Tokenizer
from hhh_jax.errors import UserError
from hhh_jax.record import Record, jsonable, write_json_atomic, write_text_atomic
from hhh_jax.stage_data import StageData
from hhh_jax.version import code_version

RANKERS = {"preference": "reward", "imitation": "mean_logp", "lm": "mean_logp"}


class Run(NamedTuple):
    """A run made ready: its config, data, compiled-step config and what follows from them.

    `sha` is its `config_sha`; `started` the monotonic clock less the seconds that earlier processes spent on the run.
    """

    config: ml_collections.ConfigDict
    workdir: Path
    data: StageData
    step_config: train.StepConfig
    total_steps: int
    pretrain_seeds: tuple[int, ...]
    sha: str
    started: float


def run(c: ml_collections.ConfigDict, workdir: str | Path, *, quiet: bool = False) -> None:
    """Trains and evaluates what `c` says, or goes on with it, or returns at once if it is finished.

    Raises UserError for a bad config, bad data, a `workdir` that belongs to another config, or a loss that is not
    finite (the last good checkpoint stays).
    """
    workdir = Path(workdir)
    config_lib.check(c)
    _claim(workdir, c)
    if (workdir / "DONE.json").exists():
        return
    started = time.monotonic()
    mesh = sharding.make_mesh(**c.mesh)
    source = read_extra(Path(c.init.checkpoint) / "checkpoints") if c.init.checkpoint else None
    tokenizer = stage_data.stored_tokenizer(c, source)
    data = stage_data.load(c, tokenizer, sharding.row_multiple(mesh) * c.optim.accumulate)
    write_text_atomic(workdir / "tokenizer.json", data.tokenizer.to_json())
    write_json_atomic(workdir / "data.json", data.counts)
    step_config = make_step_config(c, data.tokenizer.vocab_size, mesh)
    steps, seeds, sha = _total_steps(c, data), _pretrain_seeds(c, source), config_sha(c, source)
    with Checkpoints(workdir / "checkpoints", keep=c.checkpoint.keep) as checkpoints:
        restored = checkpoints.restore_latest(train.sharded_abstract_state(step_config))
        if restored is None:
            params = _initial_params(c, step_config, source) if source else None
            empty: dict[str, Any] = {"rows": [], "tokens": 0, "seconds": 0.0}
            restored = 0, train.init_state(step_config, tuple(c.seeds), params), empty
        step, state, extra = restored
        this = Run(c, workdir, data, step_config, steps, seeds, sha, started - extra["seconds"])
        with Record(workdir, step, this.total_steps, enabled=jax.process_index() == 0, quiet=quiet) as record:
            state, extra = _loop(this, checkpoints, record, step, state, extra)
    _finish(this, state, extra)


def _claim(workdir: Path, c: ml_collections.ConfigDict) -> None:
    """Writes config.json, or checks that the one there says the same."""
    flat = jsonable(config_lib.fields(c))
    path = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        there = json.loads(path.read_text()) if path.exists() else flat
    except (OSError, ValueError) as error:
        raise UserError(f"cannot use {workdir} as a run's directory: {error}") from error
    for name in sorted(there.keys() | flat.keys()):
        if there.get(name) != flat.get(name):
            raise UserError(
                f"{path}: this directory's run has {name} = {there.get(name)!r}, not {flat.get(name)!r}; "
                f"give another --workdir, or the same config to go on"
            )
    if not path.exists():
        write_json_atomic(path, flat)


def make_step_config(c: ml_collections.ConfigDict, vocab_size: int, mesh: jax.sharding.Mesh) -> train.StepConfig:
    """All that the run's compiled step depends on."""
    o = c.optim
    return train.StepConfig(
        model=config_lib.model_config(c, vocab_size),
        objective=c.objective.name,
        lam=c.objective.lam,
        mu=c.objective.mu,
        b1=o.b1,
        b2=o.b2,
        eps=o.eps,
        weight_decay=o.weight_decay,
        clip=o.clip,
        accumulate=o.accumulate,
        n_seeds=len(c.seeds),
        select=c.objective.name != "lm",
        mesh=mesh,
    )


def _total_steps(c: ml_collections.ConfigDict, data: StageData) -> int:
    if c.steps:
        return c.steps
    if c.objective.name == "lm":
        return max(1, round(c.tokens / (c.batch.rows * c.data.row_length)))
    # Whole batches only: the last pairs of the last epoch that would not fill one are left out.
    return max(1, int(c.epochs * data.n_train_pairs) // c.batch.pairs)


def _pretrain_seeds(c: ml_collections.ConfigDict, source: dict[str, Any] | None) -> tuple[int, ...]:
    """The pretraining seed behind each seed of the run: the same number, or the only one that the source has."""
    if source is None:
        return tuple(c.seeds)
    there, behind = source["config"]["seeds"], source["pretrain_seeds"]
    if len(there) == 1:
        return (behind[0],) * len(c.seeds)
    missing = [seed for seed in c.seeds if seed not in there]
    if missing:
        raise UserError(
            f"{c.init.checkpoint} has seeds {there}, none of them {missing[0]}; choose --config.seeds of these"
        )
    return tuple(behind[there.index(seed)] for seed in c.seeds)


def _initial_params(
    c: ml_collections.ConfigDict, step_config: train.StepConfig, source: dict[str, Any]
) -> model.Params:
    """Parameters ``[G, ...]`` of the run that this one starts from; the score head only if it is kept."""
    there = source["config"]["seeds"]
    has_head = objectives.needs_score_head(source["config"]["objective.name"])
    keep_head = step_config.score_head and c.init.score_head == "keep"
    if keep_head and not has_head:
        raise UserError(
            f"config key init.score_head is 'keep', but {c.init.checkpoint} is a "
            f"{source['config']['objective.name']} run, which has none; use 'fresh'"
        )
    abstract = model.abstract_params(step_config.model, has_head)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(there), *x.shape), x.dtype), abstract)
    shardings = sharding.state_shardings(abstract, step_config.mesh)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
    params = restore_params(Path(c.init.checkpoint) / "checkpoints", abstract)
    if not keep_head:
        params.pop("score_head", None)
    if list(there) == list(c.seeds):
        return params
    chosen = np.array([0 if len(there) == 1 else there.index(seed) for seed in c.seeds])
    return jax.tree.map(lambda x: x[chosen], params)


def _loop(
    this: Run, checkpoints: Checkpoints, record: Record, step: int, state: train.State, extra: dict[str, Any]
) -> tuple[train.State, dict[str, Any]]:
    """All updates from `step` on. Metrics of one update are fetched after the next one is dispatched."""
    c, sc, total = this.config, this.step_config, this.total_steps
    o, seeds = c.optim, tuple(c.seeds)
    peak = o.lr * o.lr_multiple
    validate_at = {round(total * (i + 1) / c.eval.points) for i in range(c.eval.points)} | {total}
    curve_at = {int(pairs) // c.batch.pairs for pairs in c.eval.curve}
    saved_at = time.monotonic()
    pending: tuple[int, dict[str, Any], dict[str, Any]] | None = None
    clock, clock_tokens = time.monotonic(), 0
    everywhere = sharding.batch_sharding(sc.mesh)

    def check(at: int, metrics: dict[str, Any]) -> None:
        for name in ("loss", "grad_norm"):
            value_G = np.asarray(metrics[name])
            if not np.isfinite(value_G).all():
                kept = checkpoints.latest_step()
                raise UserError(
                    f"{name} is {value_G.tolist()} at step {at} (batch {at - 1}, seeds {list(seeds)}); "
                    + ("no checkpoint was saved yet" if kept is None else f"the checkpoint of step {kept} is intact")
                    + "; lower --config.optim.lr, or look at that batch's data"
                )

    def flush(more: dict[str, Any] | None = None) -> None:
        nonlocal pending, clock, clock_tokens
        if pending is None:
            return
        at, device_metrics, host_metrics = pending
        check(at, device_metrics)
        metrics = {name: np.asarray(value) for name, value in device_metrics.items()}
        if at % c.log_every == 0 or at == total or more:
            now = time.monotonic()
            speed = {"tokens_per_second": clock_tokens / max(now - clock, 1e-9)}
            record.log(at, metrics | host_metrics | (more or {}) | speed)
            clock, clock_tokens = now, 0
        pending = None

    batches = prefetch(lambda i: this.data.train.batch(i, seeds), step, total)
    for batch in batches:
        term_norms = bool(c.term_norms_every) and (step % c.term_norms_every == 0 or step == total - 1)
        lr = optim.learning_rate(
            step,
            total,
            peak=peak,
            warmup_steps=min(o.warmup_steps, total // 10),
            schedule=o.schedule,
            final_fraction=o.final_fraction,
        )
        tokens = int((batch.segment_ids > 0).sum())
        extra = extra | {"tokens": extra["tokens"] + tokens}
        clock_tokens += tokens
        update = train.compiled_step(sc, term_norms and train.len_terms(sc) > 1)
        state, metrics = update(state, jax.device_put(batch, everywhere), np.full(len(seeds), lr, np.float32))
        flush()
        step += 1
        pending = step, metrics, {"lr": lr, "tokens": extra["tokens"] // len(seeds)}
        if this.data.train_pairs is not None:
            pending[2]["pairs"] = step * c.batch.pairs
        if step in validate_at or step in curve_at:
            check(step, metrics)  # before anything is scored with what a broken update left
            more: dict[str, Any] = {}
            if step in validate_at:
                state, more = _validate(this, state, step)
            if step in curve_at:
                extra = extra | {"rows": [*extra["rows"], *_curve_rows(this, state, step)]}
            flush(more)
        due = c.checkpoint.every_minutes * 60
        if step == total or step % c.checkpoint.every_steps == 0 or time.monotonic() - saved_at > due:
            flush()
            extra = extra | {"seconds": time.monotonic() - this.started}
            checkpoints.save(step, state, extra | _identity(this))
            saved_at = time.monotonic()
    return state, extra


def _identity(this: Run) -> dict[str, Any]:
    """What a checkpoint holds besides arrays; the data position is its step, an index that no host count enters."""
    return {
        "config": jsonable(config_lib.fields(this.config)),
        "config_sha": this.sha,
        "pretrain_seeds": list(this.pretrain_seeds),
        "tokenizer": this.data.tokenizer.to_json(),
    }


def _scorer(this: Run, params: model.Params) -> evaluate.Scorer:
    c, d = this.config, this.config.data
    pad = this.data.tokenizer.pad_id
    return evaluate.Scorer(
        this.step_config.model, params, len(c.seeds), this.step_config.mesh, c.eval.rows, d.row_length, d.slots, pad
    )


def _validate(this: Run, state: train.State, step: int) -> tuple[train.State, dict[str, Any]]:
    """Scores the validation split and, in stages on pairs, keeps the parameters of each seed's best step."""
    scorer = _scorer(this, state["params"])
    if this.data.train_pairs is None:
        logp_GxD, n_D = evaluate.score_documents(scorer, this.data.validation)
        return state, {"validation_loss": -logp_GxD.sum(1) / max(n_D.sum(), 1)}
    ranker = RANKERS[this.config.objective.name]
    scores = evaluate.score_pairs(scorer, this.data.validation, (want(ranker),))
    accuracy_G = evaluate.right(scores.margins(ranker)).mean(1)
    select = train.compiled_selection(this.step_config)
    return select(state, accuracy_G.astype(np.float32), np.int32(step)), {"validation_accuracy": accuracy_G}


def want(ranker: str) -> str:
    """What `evaluate.score_pairs` has to compute for a ranker."""
    return "reward" if ranker == "reward" else "logp"


def _curve_rows(this: Run, state: train.State, step: int) -> list[dict[str, Any]]:
    """The test set read on the way, for curves within one run; nothing is chosen by it."""
    ranker = RANKERS[this.config.objective.name]
    scores = evaluate.score_pairs(_scorer(this, state["params"]), this.data.test, (want(ranker),))
    rows = evaluate.pair_rows(scores, this.config.seeds, "final", (ranker,))
    where = {"curve": "within_run", "pairs_seen": step * this.config.batch.pairs}
    return [_row(this, row | where) for row in rows]


def _row(this: Run, row: dict[str, Any]) -> dict[str, Any]:
    """A result row with all that the run's config says of it."""
    c = this.config
    preference = c.objective.name == "preference"
    stage = c.stage if c.stage in ("pretrain", "lm_finetune", "pmp") else "finetune"
    return {
        "study": c.labels.study, "run": this.workdir.name, "stage": stage, "ladder": c.ladder,
        "n_layer": c.model.n_layer, "N": model.count_params(this.step_config.model)["n"],
        "objective": c.objective.name, "init": c.labels.init, "intervention": c.labels.intervention,
        "lambda": c.objective.lam if preference else "", "mu": c.objective.mu if preference else "", "eoc": "true",
        "task": this.data.name, "split": "test", "pairs_total": this.data.n_train_pairs or "", "curve": "separate",
        "pretrain_seed": this.pretrain_seeds[list(c.seeds).index(row["seed"])],
        "config_sha": this.sha, "data_sha": this.data.sha, "code_version": code_version(),
    } | row  # fmt: skip


def config_sha(c: ml_collections.ConfigDict, source: dict[str, Any] | None) -> str:
    """A short hash of all that a run's result depends on: its config, and the hash of the run that it starts from.

    Args:
      source: what the checkpoint that it starts from holds besides arrays, if there is one.
    """
    flat = jsonable(config_lib.fields(c)) | {"labels.study": ""}
    if source:
        flat["init.checkpoint"] = source["config_sha"]
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:12]


def _results(this: Run, state: train.State, selections: tuple[str, ...]) -> tuple[list[dict], list[dict]]:
    """Result rows and item records of the run's own held-out data."""
    c, rows, items = this.config, [], []
    seeds = tuple(c.seeds)
    where = {"task": this.data.name, "split": "test"}
    if this.data.train_pairs is None:
        scorer = _scorer(this, state["params"])
        logp_GxD, n_D = evaluate.score_documents(scorer, this.data.test)
        for g, seed in enumerate(seeds):
            rows.append({"seed": seed, "metric": "loss", "value": -logp_GxD[g].sum() / n_D.sum(), "n_items": len(n_D)})
            for d, document in enumerate(this.data.test_documents):
                items.append(where | {
                    "selection": "final", "seed": seed, "item_id": document.id, "group_id": document.group,
                    "option": "text", "n_tokens": int(n_D[d]), "n_bytes": len(document.text.encode()),
                    "logp_sum": float(logp_GxD[g, d]),
                })  # fmt: skip
        return [_row(this, row) for row in rows], items
    ranker = RANKERS[c.objective.name]
    scores: evaluate.PairScores | None = None
    for selection in selections:
        params = state["best"]["params"] if selection == "best" else state["params"]
        steps_G = np.asarray(state["best"]["step"]) if selection == "best" else np.full(len(seeds), this.total_steps)
        if scores is None or (np.asarray(state["best"]["step"]) != this.total_steps).any():  # else they are the same
            scores = evaluate.score_pairs(_scorer(this, params), this.data.test, (want(ranker),))
        for row in evaluate.pair_rows(scores, seeds, selection, (ranker,)):
            rows.append(row | {"pairs_seen": int(steps_G[seeds.index(row["seed"])]) * c.batch.pairs})
        items += evaluate.pair_items(scores, this.data.test, seeds, **where, selection=selection)
    return [_row(this, row) for row in rows], items


def _untuned_results(this: Run, state: train.State) -> tuple[list[dict], list[dict]]:
    """The language model as it is, on the test sets of the tasks that `eval.tasks` names."""
    rows, items = [], []
    c = this.config
    for task in c.eval.tasks:
        data = stage_data.read_pairs(c, task, "test")
        pairs = stage_data.tokenized_pairs(c, data.records, this.data.tokenizer, data.counts)
        scores = evaluate.score_pairs(_scorer(this, state["params"]), pairs, ("logp",))
        for row in evaluate.pair_rows(scores, tuple(c.seeds), "best", ("mean_logp",)):
            about = {"objective": "untuned", "task": task, "data_sha": data.sha[:12], "lambda": "", "mu": ""}
            rows.append(_row(this, row) | about)
        items += evaluate.pair_items(scores, pairs, tuple(c.seeds), task=task, split="test", selection="best")
    return rows, items


def _finish(this: Run, state: train.State, extra: dict[str, Any]) -> None:
    """Evaluates once and writes items, rows and, last, DONE.json."""
    c = this.config
    rows, items = _results(this, state, tuple(c.eval.selections))
    untuned_rows, untuned_items = _untuned_results(this, state)
    if jax.process_index():
        return
    write_lines(this.workdir / "items.jsonl", items + untuned_items)
    write_lines(this.workdir / "rows.jsonl", extra["rows"] + rows + untuned_rows)
    flops = model.executed_flops_per_token(this.step_config.model, c.data.row_length) * extra["tokens"]
    write_json_atomic(
        this.workdir / "DONE.json",
        {
            "steps": this.total_steps,
            "tokens": extra["tokens"],
            "training_flops": flops,
            "best_validation": np.asarray(state["best"]["value"]) if "best" in state else [],
            "parameters": model.count_params(this.step_config.model),
            "code_version": code_version(),
            "run_seconds": time.monotonic() - this.started,
        },
    )


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Records as JSON lines, atomically."""
    write_text_atomic(path, "".join(json.dumps(jsonable(record), ensure_ascii=False) + "\n" for record in records))


def recompute_rows(checkpoint: str, task: str, split: str, selection: str) -> list[dict[str, Any]]:
    """Result rows of a run computed anew from its newest checkpoint: its own data's, or those of another task.

    Raises UserError if `checkpoint` is no run's directory.
    """
    workdir = Path(checkpoint)
    c, tokenizer = load_config(workdir)
    mesh = sharding.make_mesh(**c.mesh)
    sc = make_step_config(c, tokenizer.vocab_size, mesh)
    state = load_state(workdir, sc)
    name = task or c.data.source
    extra = read_extra(workdir / "checkpoints")
    if c.objective.name == "lm" and not task:
        data = stage_data.load(c, tokenizer, sharding.row_multiple(mesh) * c.optim.accumulate)
        seeds = tuple(extra["pretrain_seeds"])
        this = Run(c, workdir, data, sc, _total_steps(c, data), seeds, extra["config_sha"], time.monotonic())
        return _results(this, state, (selection,))[0]
    read = stage_data.read_pairs(c, name, split)
    pairs = stage_data.tokenized_pairs(c, read.records, tokenizer, read.counts)
    params = state["best"]["params"] if selection == "best" and "best" in state else state["params"]
    scorer = evaluate.Scorer(
        sc.model, params, len(c.seeds), mesh, c.eval.rows, c.data.row_length, c.data.slots, tokenizer.pad_id
    )
    ranker = RANKERS[c.objective.name]
    scores = evaluate.score_pairs(scorer, pairs, (want(ranker),))
    rows = evaluate.pair_rows(scores, tuple(c.seeds), selection, (ranker,))
    return [{"run": workdir.name, "task": name, "split": split} | row for row in rows]


def load_config(workdir: Path) -> tuple[ml_collections.ConfigDict, Tokenizer]:
    """The config and the tokenizer that a run's checkpoint holds. Raises UserError if `workdir` is no run's."""
    extra = read_extra(workdir / "checkpoints")
    flat = extra["config"]
    c = config_lib.base_config(flat["stage"], flat["rung"])
    for name, value in flat.items():
        section, _, key = name.rpartition(".")
        (c[section] if section else c)[key] = tuple(value) if isinstance(value, list) else value
    return c, Tokenizer.from_json(extra["tokenizer"])


def load_state(workdir: Path, sc: train.StepConfig) -> dict[str, Any]:
    """``params`` and, where the run has it, ``best`` of a run's newest checkpoint."""
    abstract = train.sharded_abstract_state(sc)
    parts = [part for part in ("params", "best") if part in abstract]
    return {part: restore_params(workdir / "checkpoints", abstract[part], subtree=part) for part in parts}


def estimated_flops(c: ml_collections.ConfigDict) -> float:
    """FLOPs that a config asks for, before anything is read: a pair is taken to fill half a row.

    A held-out pair costs a third of a training pair: there is no backward pass.
    """
    m = config_lib.model_config(c, c.model.vocab_size)
    row = c.data.row_length
    test_pairs = (c.eval.limit or 2000) / 2 / 3
    if c.objective.name == "lm":
        tokens = (c.steps * c.batch.rows * row or c.tokens) + row * test_pairs * len(c.eval.tasks)
    else:
        pairs = c.steps * c.batch.pairs or c.epochs * (c.data.limit or 2000) * (2 if c.data.binarize else 1)
        validation_pairs = (c.eval.validation_limit or 500) / 2 / 3
        tokens = row * (pairs / 2 + validation_pairs * c.eval.points + test_pairs * len(c.eval.selections))
    return model.executed_flops_per_token(m, row) * tokens * len(c.seeds)
