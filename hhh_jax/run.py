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
import os
import time
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from hhh_jax import config as config_lib
from hhh_jax import distributed, evaluate, model, objectives, scoring, sharding, stage_data, train
from hhh_jax.checkpoint import Checkpoints, read_extra, restore_params
from hhh_jax.data.labeled_rows import RowLoader
from hhh_jax.data.tokenizer import Tokenizer
from hhh_jax.errors import UserError
from hhh_jax.held_out import Run, pair_ranker, results, untuned_results, want
from hhh_jax.loop import update_all
from hhh_jax.record import Record, jsonable, write_json_atomic, write_text_atomic
from hhh_jax.results import task_of
from hhh_jax.stage_data import StageData
from hhh_jax.storage import open_path
from hhh_jax.version import code_version

MAY_CHANGE = ("mesh.", "checkpoint.")
"""Sections of the config that say where a run is computed and saved, not what comes out: they may differ on resume."""


def run(
    c: ml_collections.ConfigDict,
    workdir: str | os.PathLike[str],
    *,
    quiet: bool = False,
    stop: distributed.StopSignal | None = None,
) -> None:
    """Trains and evaluates what `c` says, or goes on with it, or returns at once if it is finished.

    Of several processes each calls this; `workdir` is one folder for all of them, and process 0 alone writes records
    and results to it.

    Raises:
      UserError: for a bad config, bad data, a `workdir` that belongs to another config, or a loss that is not finite
        (the last good checkpoint stays).
      Stopped: when `stop` was told so; all that was done is saved.
    """
    started = time.monotonic()
    config_lib.check(c)
    folder = open_path(workdir)
    _claim(folder, c)
    if distributed.agree((folder / "DONE.json").exists()):
        return
    mesh = sharding.make_mesh(**c.mesh)
    source = read_extra(open_path(c.init.checkpoint) / "checkpoints") if c.init.checkpoint else None
    tokenizer = stage_data.stored_tokenizer(c, source)
    check_mesh(c, mesh)
    data = stage_data.load(c, tokenizer, sharding.row_multiple(mesh) * c.optim.accumulate)
    data = data._replace(name=task_of(data.name, folder))
    if distributed.is_first():
        write_text_atomic(folder / "tokenizer.json", data.tokenizer.to_json())
        write_json_atomic(folder / "data.json", data.counts)
    step_config = make_step_config(c, data.tokenizer.vocab_size, mesh)
    steps, seeds, sha = _total_steps(c, data), _pretrain_seeds(c, source), config_sha(c, source)
    keep = {"keep": c.checkpoint.keep, "keep_every": c.checkpoint.keep_every_steps}
    with Checkpoints(folder / "checkpoints", **keep) as checkpoints:
        restored = checkpoints.restore_latest(train.sharded_abstract_state(step_config))
        if restored is None:
            params = _initial_params(c, step_config, source) if source else None
            empty: dict[str, Any] = {"rows": [], "tokens": 0, "seconds": 0.0}
            restored = 0, train.init_state(step_config, tuple(c.seeds), params), empty
        step, state, extra = restored
        this = Run(c, folder, data, step_config, steps, seeds, sha, started - extra["seconds"])
        with Record(folder, step, this.total_steps, enabled=distributed.is_first(), quiet=quiet) as record:
            state, extra = update_all(this, checkpoints, record, stop, step, state, extra)
    if stop is not None:
        stop.at_once("stopped: trained and saved but not evaluated; the same command goes on")
    _finish(this, state, extra)


def check_mesh(c: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> None:
    """Raises UserError if `mesh` doesn't divide the step of `c`; it names the nearest mesh that does."""
    step_config = make_step_config(c, c.model.vocab_size, mesh)
    # Batches of pairs get as many rows as the mesh asks for.
    rows = 0 if c.objective.name in config_lib.PAIR_OBJECTIVES else c.batch.rows
    heads, state = step_config.model.n_head, train.abstract_state(step_config)
    sharding.check_mesh(mesh, rows=rows, accumulate=c.optim.accumulate, heads=heads, state=state)


def _claim(workdir: epath.Path, c: ml_collections.ConfigDict) -> None:
    """Writes config.json, or checks that the one there says the same; a key that it lacks has its default there."""
    flat = jsonable(config_lib.fields(c))
    path = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        there = json.loads(path.read_text()) if path.exists() else flat
    except (OSError, ValueError) as error:
        raise UserError(f"cannot use {workdir} as a run's directory: {error}") from error
    there = jsonable(config_lib.fields(config_lib.base_config(c.stage, c.rung))) | there
    for name in sorted(there.keys() | flat.keys()):
        if there.get(name) != flat.get(name) and not name.startswith(MAY_CHANGE):
            raise UserError(
                f"{path}: this directory's run has {name} = {there.get(name)!r}, not {flat.get(name)!r}; "
                f"give another --workdir, or the same config to go on"
            )
    if distributed.is_first() and not path.exists():
        write_json_atomic(path, flat)
    distributed.agree("it is written")
    for _ in range(20):  # a network file system may take a moment
        if path.exists():
            return
        time.sleep(0.5)
    raise UserError(f"{path} was written by process 0 and is not seen by this one; give a --workdir that all share")


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
        select=c.objective.name in config_lib.PAIR_OBJECTIVES,
        mesh=mesh,
        beta=c.objective.beta,
    )


def _total_steps(c: ml_collections.ConfigDict, data: StageData) -> int:
    if c.steps:
        return c.steps
    if c.objective.name == "lm":
        return max(1, round(c.tokens / (c.batch.rows * c.data.row_length)))
    # Whole batches only: what would not fill one at the end of the last epoch is left out.
    if isinstance(data.train, RowLoader):
        return max(1, int(c.epochs * len(data.train.labeled)) // c.batch.rows)
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
    params = restore_params(open_path(c.init.checkpoint) / "checkpoints", abstract)
    if not keep_head:
        params.pop("score_head", None)
    if list(there) == list(c.seeds):
        return params
    chosen = np.array([0 if len(there) == 1 else there.index(seed) for seed in c.seeds])
    return jax.tree.map(lambda x: x[chosen], params)


def config_sha(c: ml_collections.ConfigDict, source: dict[str, Any] | None) -> str:
    """A short hash of all that a run's result depends on: its config, and the hash of the run that it starts from.

    Args:
      source: what the checkpoint that it starts from holds besides arrays, if there is one.
    """
    flat = jsonable(config_lib.fields(c)) | {"labels.study": ""}
    flat = {name: value for name, value in flat.items() if not name.startswith(MAY_CHANGE)}
    if source:
        flat["init.checkpoint"] = source["config_sha"]
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:12]


def _finish(this: Run, state: train.State, extra: dict[str, Any]) -> None:
    """Evaluates once and writes items, rows and, last, DONE.json."""
    c = this.config
    rows, items = results(this, state, tuple(c.eval.selections))
    untuned_rows, untuned_items = untuned_results(this, state)
    if not distributed.is_first():
        return
    write_lines(this.workdir / "items.jsonl", items + untuned_items)
    write_lines(this.workdir / "rows.jsonl", extra["rows"] + rows + untuned_rows)
    flops = _flops_per_token(c, this.step_config.model) * extra["tokens"]
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


def write_lines(path: str | os.PathLike[str], records: list[dict[str, Any]]) -> None:
    """Records as JSON lines, atomically."""
    write_text_atomic(path, "".join(json.dumps(jsonable(record), ensure_ascii=False) + "\n" for record in records))


def recompute_rows(checkpoint: str, task: str, split: str, selection: str) -> list[dict[str, Any]]:
    """Result rows of a run computed anew from its newest checkpoint: its own data's, or those of another task.

    Args:
      task: a task or file of pairs; empty for the run's own.
      split: of that; empty for the one that the run was tested on, of another task for test.

    Raises UserError if `checkpoint` is no run's directory.
    """
    workdir = open_path(checkpoint)
    c, tokenizer = load_config(workdir)
    mesh = sharding.make_mesh(**c.mesh)
    sc = make_step_config(c, tokenizer.vocab_size, mesh)
    state = load_state(workdir, sc)
    name, split = task or c.data.source, split or ("test" if task else c.eval.split)
    extra = read_extra(workdir / "checkpoints")
    if c.objective.name not in config_lib.PAIR_OBJECTIVES and not task:
        c.eval.split = split
        data = stage_data.load(c, tokenizer, sharding.row_multiple(mesh) * c.optim.accumulate)
        seeds = tuple(extra["pretrain_seeds"])
        this = Run(c, workdir, data, sc, _total_steps(c, data), seeds, extra["config_sha"], time.monotonic())
        return results(this, state, (selection,))[0]
    pairs, _, _ = stage_data.load_split(c, name, split, tokenizer)
    params = state["best"]["params"] if selection == "best" and "best" in state else state["params"]
    shape = c.eval.rows, c.data.row_length, tokenizer.pad_id, c.data.end_of_context
    scorer = scoring.Scorer(sc.model, params, len(c.seeds), mesh, *shape, state.get("reference"), c.objective.beta)
    ranker = pair_ranker(c.objective.name)
    scores = evaluate.score_pairs(scorer, pairs, (want(ranker),))
    rows = evaluate.pair_rows(scores, tuple(c.seeds), selection, (ranker,))
    return [{"run": workdir.name, "task": task_of(name, workdir), "split": split} | row for row in rows]


def load_config(workdir: epath.Path) -> tuple[ml_collections.ConfigDict, Tokenizer]:
    """The config and the tokenizer that a run's checkpoint holds. Raises UserError if `workdir` is no run's.

    If its mesh does not fit the devices that are here, the config says one that does.
    """
    extra = read_extra(workdir / "checkpoints")
    flat = extra["config"]
    c = config_lib.base_config(flat["stage"], flat["rung"])
    config_lib.assign(c, {name: tuple(value) if isinstance(value, list) else value for name, value in flat.items()})
    try:
        sharding.make_mesh(**c.mesh)
    except UserError:
        c.mesh.update(config_lib.base_config(c.stage, c.rung).mesh)
    return c, Tokenizer.from_json(extra["tokenizer"])


def load_state(workdir: epath.Path, sc: train.StepConfig) -> dict[str, Any]:
    """``params`` and, where the run has them, ``best`` and ``reference`` of a run's newest checkpoint."""
    abstract = train.sharded_abstract_state(sc)
    parts = [part for part in ("params", "best", "reference") if part in abstract]
    return {part: restore_params(workdir / "checkpoints", abstract[part], subtree=part) for part in parts}


def _flops_per_token(c: ml_collections.ConfigDict, m: model.ModelConfig) -> float:
    """Of training: a forward pass, twice that for the gradients, and another one of the objective's reference."""
    passes = 4 if objectives.needs_reference(c.objective.name) else 3
    return model.executed_flops_per_token(m, c.data.row_length) * passes / 3


def estimated_flops(c: ml_collections.ConfigDict) -> float:
    """FLOPs that a config asks for, before anything is read: a pair is taken to fill half a row.

    A held-out pair costs a third of a training pair: there is no backward pass (under DPO a half: two forward passes).
    """
    m = config_lib.model_config(c, c.model.vocab_size)
    row = c.data.row_length
    share = 1 / 2 if objectives.needs_reference(c.objective.name) else 1 / 3
    test_pairs = (c.eval.limit or 2000) / 2 * share
    if c.objective.name == "lm":
        tokens = (c.steps * c.batch.rows * row or c.tokens) + row * test_pairs * len(c.eval.tasks)
    else:
        pairs = c.steps * c.batch.pairs or c.epochs * (c.data.limit or 2000) * (2 if c.data.binarize else 1)
        validation_pairs = (c.eval.validation_limit or 500) / 2 * share
        tokens = row * (pairs / 2 + validation_pairs * c.eval.points + test_pairs * len(c.eval.selections))
    return _flops_per_token(c, m) * tokens * len(c.seeds)
