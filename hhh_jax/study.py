"""Many runs: expands a study into runs with their dependencies, does what is not done, gathers the table, reports.

    python -m hhh_jax.study --config=configs/studies/embedded.py --workdir=DIR [--shard=i/n] [--workers=n] [--plan]

A study is a file of configs/studies/ with two functions: ``get_config(preset)``, its numbers, and ``runs(config)``, its
runs. It resumes: finished runs are skipped, a broken one is reported and the others go on.

    DIR/runs/NAME/       one run each (hhh_jax.run), named by what it is
        results.csv      all result rows, once every run is done; summary.csv what follows from them
        study.json       what was run, where, and how long it took
        figures/, report.html
"""

import contextlib
import fcntl
import functools
import importlib
import importlib.util
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
from absl import flags

from hhh_jax import cli
from hhh_jax.errors import UserError

FLOPS_PER_CORE = 3e10
"""What small models get out of a CPU core, for the first estimate of time; finished runs correct it."""

MALLOC = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=8589934592"
"""XLA's CPU backend allocates each step's buffers anew; kept and in huge pages, a step takes two thirds of the time."""


RUN = "run:"
"""Begins an argument of a job, or a field of a config, that names another run of the study or, ``run:NAME/FILE``, a
file of it; that run has to be before."""

START = "HHH_JAX_STUDY_START"
"""Environment variable that tells the workers of one start of a study from those of an earlier one."""


class Job(NamedTuple):
    """What a run does that trains nothing: ``hhh_jax.MODULE.job(directory, after=..., study=..., **arguments)``.

    ``directory`` is the run's, to write rows.jsonl and items.jsonl into, ``after`` the run's that it starts from or
    None, ``study`` the study's name. An argument ``RUN + name`` becomes the directory of that run.
    """

    module: str
    arguments: dict[str, Any]


class Planned(NamedTuple):
    """One run of a study: training, by its `config`, or another `job`.

    Attributes:
      name: of its directory, says what it is.
      config: of `hhh_jax.run`.
      after: the run that it starts from; "" if none.
      choose: runs whose validation decides this one's learning rate; empty if it is fixed.
      job: what is done instead of training.
    """

    name: str
    config: ml_collections.ConfigDict | None = None
    after: str = ""
    choose: tuple[str, ...] = ()
    job: Job | None = None


def load_study(path: str) -> Any:
    """The module of a study file ``FILE.py[:PRESET]``. Raises UserError if it is none."""
    file = path.partition(":")[0]
    spec = importlib.util.spec_from_file_location("study_config", file)
    if not Path(file).is_file() or spec is None or spec.loader is None:
        raise UserError(f"no study file {file}; see configs/studies/")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "runs"):
        raise UserError(f"{file} is no study: it has no function runs(config)")
    return module


def check_plan(planned: Sequence[Planned]) -> None:
    """Raises UserError for a name that comes twice and for a run before, or without, one that it needs."""
    seen: set[str] = set()
    for run in planned:
        if run.name in seen:
            raise UserError(f"the study has two runs named {run.name}")
        for name in needs(run):
            if name not in seen:
                raise UserError(f"the study's run {run.name} needs {name}, which is not among the runs before it")
        seen.add(run.name)


def check_unchanged(workdir: Path, planned: Sequence[Planned]) -> None:
    """Raises UserError for a run of `workdir` that was made with other settings than the plan's.

    A field that its config.json lacks had its default there.
    """
    from hhh_jax import config
    from hhh_jax.record import jsonable

    for run in planned:
        path = workdir / "runs" / run.name / ("config.json" if run.config else "job.json")
        if not path.exists():
            continue
        there, now = json.loads(path.read_text()), jsonable(config.fields(run.config) if run.config else _job(run))
        if run.config:
            there = jsonable(config.fields(config.base_config(run.config.stage, run.config.rung))) | there
        set_here = {"init.checkpoint"} | ({"optim.lr_multiple"} if run.choose else set())
        set_here |= {name for name, value in now.items() if _named(value)}
        for name in sorted((there.keys() | now.keys()) - set_here):
            if there.get(name) != now.get(name):
                raise UserError(
                    f"{path}: this run was made with {name} = {there.get(name)!r}, and the study says "
                    f"{now.get(name)!r}; give another --workdir, or remove {path.parent} and what starts from it"
                )


def _job(run: Planned) -> dict[str, Any]:
    return {"job": run.job.module, **run.job.arguments} if run.job else {}


def _named(value: Any) -> str:
    """The run, or the file of one, that an argument or a field names; "" if it names none."""
    return value.removeprefix(RUN) if isinstance(value, str) and value.startswith(RUN) else ""


def needs(run: Planned) -> list[str]:
    """The runs that must be finished before."""
    from hhh_jax import config

    settings = config.fields(run.config) if run.config else _job(run)
    named = [_named(value).partition("/")[0] for value in settings.values()]
    return [name for name in (run.after, *run.choose, *named) if name]


def chains(planned: Sequence[Planned]) -> list[list[Planned]]:
    """The runs that depend on each other, directly or not, in the order of the plan; one list a chain."""
    chain_of: dict[str, list[Planned]] = {}
    for run in planned:
        joined = {id(chain_of[name]): chain_of[name] for name in needs(run)}
        chain = [*itertools.chain.from_iterable(joined.values()), run]
        chain_of |= {member.name: chain for member in chain}
    order = {run.name: number for number, run in enumerate(planned)}
    unique = {id(chain): chain for chain in chain_of.values()}
    return [sorted(chain, key=lambda run: order[run.name]) for chain in unique.values()]


def flops(run: Planned) -> float:
    """Estimated FLOPs of a run, its evaluations left out."""
    from hhh_jax.run import estimated_flops

    return estimated_flops(run.config) if run.config is not None else 0.0


def shard(planned: Sequence[Planned], index: int, count: int) -> list[Planned]:
    """Share ``index`` of ``count``: whole chains, dealt so that shares take about as long; depends on the plan only."""
    shares: list[list[Planned]] = [[] for _ in range(count)]
    loads = [0.0] * count
    for chain in sorted(chains(planned), key=lambda chain: -sum(map(flops, chain))):
        least = loads.index(min(loads))
        shares[least] += chain
        loads[least] += sum(map(flops, chain))
    names = {run.name for run in shares[index]}
    return [run for run in planned if run.name in names]


def is_done(workdir: Path, run: Planned) -> bool:
    """Whether a run is finished."""
    return (workdir / "runs" / run.name / "DONE.json").exists()


def seconds_left(workdir: Path, planned: Sequence[Planned]) -> float:
    """Estimated seconds of what is not done on one worker: training at the speed of what is done, else at a guess; a
    job as long as the mean of those of its kind, and nothing before the first is done."""
    done = {
        run.name: float(json.loads((workdir / "runs" / run.name / "DONE.json").read_text())["run_seconds"])
        for run in planned if is_done(workdir, run)
    }  # fmt: skip
    trained = [run for run in planned if run.config is not None and run.name in done]
    spent = sum(done[run.name] for run in trained)
    speed = sum(map(flops, trained)) / spent if spent > 10 else FLOPS_PER_CORE
    of_kind: dict[str, list[float]] = {}
    for run in planned:
        if run.job is not None and run.name in done:
            of_kind.setdefault(run.job.module, []).append(done[run.name])
    left = [run for run in planned if run.name not in done]
    jobs = (of_kind.get(run.job.module, [0.0]) for run in left if run.job is not None)
    return sum(map(flops, left)) / speed + sum(map(statistics.fmean, jobs))


def execute(
    workdir: Path, planned: Sequence[Planned], say: Any = print, stop: Callable[[], bool] = lambda: False
) -> dict[str, str]:
    """Does the runs of a plan in this process, the first one that is ready first, beside others that do the same.

    Args:
      stop: asked between runs.

    Returns:
      ``{name: reason}`` of the runs that broke, here or elsewhere, or whose predecessor did; the others are finished.
    """
    broken: dict[str, str] = {}
    waiting = [run for run in planned if not is_done(workdir, run)]
    while waiting and not stop():
        for run in waiting:
            lost = next((name for name in needs(run) if name in broken), None)
            if lost:
                broken[run.name] = f"needs {lost}, which is broken"
                say(f"{run.name}: BROKEN: {broken[run.name]}")
                break
            if all((workdir / "runs" / name / "DONE.json").exists() for name in needs(run)):
                with _hold(workdir, run) as (held, died):
                    if held and not is_done(workdir, run):
                        started = time.monotonic()
                        reason = _reason(workdir, run) or _attempt(workdir, run, died)
                        if reason:
                            broken[run.name] = reason
                        outcome = f"BROKEN: {reason}" if reason else f"{time.monotonic() - started:.0f} s"
                        say(f"[{sum(is_done(workdir, r) for r in planned)}/{len(planned)}] {run.name}: {outcome}")
                if held:
                    break
        else:
            time.sleep(0.5)  # all that is left is in other hands, or waits for what is
            continue
        waiting.remove(run)
    return broken


def _error_file(workdir: Path, run: Planned) -> Path:
    return workdir / "runs" / run.name / "error.txt"


def _reason(workdir: Path, run: Planned) -> str:
    """Why a run broke, the last line of its error.txt; "" if it did not."""
    path = _error_file(workdir, run)
    return (path.read_text(encoding="utf-8").splitlines() or [""])[-1] if path.exists() else ""


@contextlib.contextmanager
def _hold(workdir: Path, run: Planned) -> Iterator[tuple[bool, bool]]:
    """(whether this process alone has the run in hand, whether one that had it since this start of the study died).

    A killed process gives its runs back.
    """
    path = workdir / "locks" / run.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False, False
            return
        except OSError as error:
            raise UserError(f"{path.parent}: this file system has no locks ({error}); use another --workdir") from None
        start = os.environ.get(START, str(os.getpid()))
        file.seek(0)
        died = file.read() == start
        file.truncate(0)
        file.write(start)
        file.flush()
        yield True, died
        file.truncate(0)


def _attempt(workdir: Path, run: Planned, died: bool) -> str:
    """Does a run. What breaks it is written to its error.txt, the reason last, and returned; the others go on."""
    from hhh_jax.record import write_text_atomic

    try:
        if died:
            raise UserError("its process died (for want of memory?)")
        _execute_one(workdir, run)
        return ""
    except UserError as error:
        text = reason = str(error)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        text = f"{traceback.format_exc()}\n{reason}"
    path = _error_file(workdir, run)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, text.rstrip() + "\n")
    return reason.splitlines()[-1] + (f" (see {path})" if text != reason else "")


def _execute_one(workdir: Path, run: Planned) -> None:
    from hhh_jax import config
    from hhh_jax.record import jsonable, write_json_atomic
    from hhh_jax.run import run as train_and_evaluate
    from hhh_jax.version import code_version

    def directory(name: str) -> Path:
        return workdir / "runs" / name

    if run.job is not None:
        started = time.monotonic()
        directory(run.name).mkdir(parents=True, exist_ok=True)
        write_json_atomic(directory(run.name) / "job.json", jsonable(_job(run)))
        arguments = {k: directory(_named(v)) if _named(v) else v for k, v in run.job.arguments.items()}
        module = importlib.import_module(f"hhh_jax.{run.job.module}")
        after = directory(run.after) if run.after else None
        module.job(directory(run.name), after=after, study=workdir.name, **arguments)
        seconds = time.monotonic() - started
        done = {"code_version": code_version(), "run_seconds": seconds}
        write_json_atomic(directory(run.name) / "DONE.json", done)
        return
    assert run.config is not None
    c = run.config.copy_and_resolve_references()
    for name, value in config.fields(c).items():
        if _named(value):
            config.set_field(c, name, str(directory(_named(value))))
    if run.after:
        c.init.checkpoint = str(directory(run.after))
    if run.choose:
        c.optim.lr_multiple = _best_multiple(workdir, run.choose)
    train_and_evaluate(c, directory(run.name), quiet=True)


def _best_multiple(workdir: Path, names: Sequence[str]) -> float:
    """The learning-rate multiple of the run with the highest validation value, mean over its seeds; first of equals."""

    def read(name: str) -> tuple[float, float]:
        directory = workdir / "runs" / name
        values = json.loads((directory / "DONE.json").read_text())["best_validation"]
        return sum(values) / len(values), json.loads((directory / "config.json").read_text())["optim.lr_multiple"]

    return max((read(name) for name in names), key=lambda pair: pair[0])[1]


def gather(workdir: Path, planned: Sequence[Planned], c: ml_collections.ConfigDict, broken: dict[str, str]) -> None:
    """Writes results.csv and study.json from the finished runs."""
    import jax

    from hhh_jax import results
    from hhh_jax.record import write_json_atomic

    rows: list[dict[str, Any]] = []
    seconds: dict[str, float] = {}
    tokens: dict[str, float] = {}
    total = 0.0
    for run in planned:
        directory = workdir / "runs" / run.name
        if not is_done(workdir, run):
            continue
        rows += [json.loads(line) for line in (directory / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
        done = json.loads((directory / "DONE.json").read_text())
        stage = run.config.stage if run.config is not None else _job(run)["job"]
        seconds[stage] = seconds.get(stage, 0.0) + done.get("run_seconds", 0.0)
        total += done.get("training_flops", 0.0)
        if run.config is not None and run.config.stage == "pretrain":
            n = done["parameters"]["n"]
            tokens.setdefault(str(n), done["tokens"] / len(run.config.seeds) / n)  # the ladder comes first
    results.write_table(results.once([{**row, "study": c.name} for row in rows]), workdir / "results.csv")
    write_json_atomic(
        workdir / "study.json",
        {
            "name": c.name,
            "config": c.to_dict(),
            "broken": broken,
            "seconds": seconds,
            "flops": total,
            "tokens_per_parameter": tokens,
            "machine": {
                "cpu": platform.processor() or platform.machine(),
                "cores": os.cpu_count(),
                "device": jax.devices()[0].device_kind,
                "jax": jax.__version__,
                "python": platform.python_version(),
            },
        },
    )


def _spawn_workers(workdir: Path, workers: int) -> None:
    """Shares the study among processes on this machine, each with its part of the cores."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    processes = []
    environment = {**os.environ, "GLIBC_TUNABLES": MALLOC, START: str(time.time_ns())}
    for index in range(workers):
        arguments = [*cli.config_arguments(), f"--workdir={workdir}", f"--shard={index}/{workers}", "--help_others"]
        command = [sys.executable, "-m", "hhh_jax.study", *arguments]
        processes.append(subprocess.Popen(command, env=environment))
        if cores:  # small programs use one core well and two badly
            os.sched_setaffinity(processes[-1].pid, cores[index::workers] or cores)
    try:
        for process in processes:
            process.wait()
    finally:
        for process in processes:
            process.terminate()


def _parse_shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UserError(f"--shard={text}: give i/n with 0 <= i < n, as 0/4")
    return int(index), int(count)


def main(_: Sequence[str]) -> None:
    study = load_study(cli.config_path())
    c = _CONFIG.value
    if "://" in _WORKDIR.value:
        raise UserError(f"--workdir={_WORKDIR.value}: workers of a study share it by file locks; give a local folder")
    workdir = Path(_WORKDIR.value).absolute()
    planned: list[Planned] = study.runs(c)
    check_plan(planned)
    check_unchanged(workdir, planned)
    index, count = _parse_shard(_SHARD.value)
    mine = shard(planned, index, count)
    todo = [run for run in mine if not is_done(workdir, run)]
    on_cpu = os.environ.get("JAX_PLATFORMS", "").startswith("cpu") or not _has_accelerator()
    workers = _WORKERS.value or (min(len(chains(planned)), _cores()) if on_cpu and count == 1 else 1)
    if _HELP.value:
        mine += [run for run in planned if run not in mine]
    else:
        minutes = seconds_left(workdir, mine) / 60 / max(workers, 1)
        where = f"share {index} of {count}, " if count > 1 else ""
        progress = f"{len(mine)} runs, {len(mine) - len(todo)} done; about {minutes:.0f} minutes left"
        print(f"{c.name}: {where}{progress}", flush=True)
    if _PLAN.value:
        for run in planned:
            after = f" (after {run.after})" if run.after else ""
            print(f"  {'done' if is_done(workdir, run) else '    '} {run.name}{after}")
        return
    if not _HELP.value:
        for run in todo:  # a broken run is tried again
            _error_file(workdir, run).unlink(missing_ok=True)
    cli.use_compilation_cache()
    if todo and workers > 1 and count == 1:
        _spawn_workers(workdir, workers)
        left = [run for run in planned if not is_done(workdir, run)]
        broken = {run.name: _reason(workdir, run) or f"needs {', '.join(needs(run))}" for run in left}
    else:
        parent = os.getppid()
        say = functools.partial(print, flush=True)
        broken = execute(workdir, mine, say, lambda: _HELP.value and os.getppid() != parent)
    if count > 1:
        sys.exit(1 if broken else 0)
    gather(workdir, planned, c, broken)
    from hhh_jax.report import write_report

    write_report(workdir)
    if broken:
        names = ", ".join(list(broken)[:5])
        print(f"{len(broken)} of {len(planned)} runs are broken: {names}; start again to retry them")
    print(f"report: {workdir / 'report.html'}")
    sys.exit(1 if broken else 0)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _has_accelerator() -> bool:
    import jax

    return jax.default_backend() != "cpu"


if __name__ == "__main__":
    _CONFIG = cli.define_config()
    _WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the study.", required=True)
    _SHARD = flags.DEFINE_string("shard", "0/1", "i/n: do share i of n, in whole chains; gather later without it.")
    _WORKERS = flags.DEFINE_integer("workers", 0, "Processes on this machine; 0: one a core on a CPU, else one.")
    _HELP = flags.DEFINE_bool("help_others", False, "When the share is done, do what is ready of the others.")
    _PLAN = flags.DEFINE_bool("plan", False, "Print the plan and stop.")
    cli.start(main)
