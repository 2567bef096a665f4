"""Evaluations of a finished run, in one form and with one prompt: item records and result rows out.

    OUT/NAME/rows.jsonl, items.jsonl   of one evaluation
            /about.json                what was read, and sentences on the prompt
    OUT/rows.jsonl, items.jsonl        of all that were asked for

Finished evaluations are kept, so that the same command goes on. An item that could not be scored is an ``error`` in its
record and counted in a row of its own, never a wrong answer. Rows of trivial rankers (chance, the shorter or the longer
option) are of the data, whatever the model.
"""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hhh_jax import distributed, model, prompts
from hhh_jax import run as run_lib
from hhh_jax.checkpoint import read_extra
from hhh_jax.data import prepared
from hhh_jax.data.records import content_sha
from hhh_jax.errors import UserError
from hhh_jax.evals import choices, code, counting, ethics, lambada, own_hhh, templates, toxicity
from hhh_jax.evals.subject import Outcome, Subject
from hhh_jax.record import write_json_atomic
from hhh_jax.scoring import load_scorer
from hhh_jax.storage import open_path
from hhh_jax.version import code_version


class Settings(NamedTuple):
    """How a battery is run.

    Attributes:
      intervention: ``none`` asks in the bare form; ``template`` in the dialogue form without a prompt, as a distilled
        model is asked; ``prompt`` puts the HHH prompt in front, or its short form where that does not fit; ``short``,
        ``two`` (two conversations) or a text file puts that in front.
      data: folder of prepared folders, each named by its source.
      templates: the user's templates.toml; None takes ours.
      limit: items of every evaluation, the first or, of ETHICS, the first groups; of toxicity's prompts, half are of
        each kind. 0 takes all, and of toxicity's prompts 1000.
      selection: ``best`` parameters, where the run has chosen some by validation, or the ``final`` ones.
      context: tokens of the model's context; 0 takes the length of the rows that it was trained on.
      toxicity: a scorer for `toxicity.load_scorer`.
      run_untrusted_code: whether programs of the model may run, in a sandbox.
    """

    intervention: str = "none"
    data: str = "data"
    templates: str | None = None
    limit: int = 0
    selection: str = "best"
    context: int = 0
    toxicity: str = "detoxify"
    run_untrusted_code: bool = False


class Evaluation(NamedTuple):
    """One evaluation: where its records come from, what it does with them, and which stand for all where a limit says
    how many."""

    load: Callable[[Settings], list[Any]]
    evaluate: Callable[[Subject, str, list[Any], Settings], Outcome]
    first: Callable[[list[Any], int], list[Any]] = lambda records, limit: records[:limit]


def _prepared(source: str, kind: str) -> Callable[[Settings], list[Any]]:
    return lambda settings: prepared.load(Path(settings.data) / source, kind)


def _passages(text: str) -> Callable[[Settings], list[Any]]:
    load = _prepared("lambada", "prompts")
    return lambda settings: [record for record in load(settings) if record.meta.get("format") == text]


def _choices(template: str, by_category: bool = False) -> Callable[[Subject, str, list[Any], Settings], Outcome]:
    return lambda subject, task, records, settings: choices.evaluate(subject, task, template, records, by_category)


def _ethics(subject: Subject, task: str, records: list[Any], settings: Settings) -> Outcome:
    return ethics.evaluate(subject, task, records)


def _lambada(subject: Subject, task: str, records: list[Any], settings: Settings) -> Outcome:
    return lambada.evaluate(subject, task, records)


def _toxicity(subject: Subject, task: str, records: list[Any], settings: Settings) -> Outcome:
    outcome = toxicity.evaluate(subject, task, records, toxicity.load_scorer(settings.toxicity))
    return outcome._replace(notes=[*outcome.notes, f"judged by {settings.toxicity}"])


def _code(subject: Subject, task: str, records: list[Any], settings: Settings) -> Outcome:
    return code.evaluate(subject, task, records, settings.run_untrusted_code)


def _counting(subject: Subject, task: str, records: list[Any], settings: Settings) -> Outcome:
    return counting.evaluate(subject, task)


ETHICS = ("commonsense", "deontology", "justice", "utilitarianism", "virtue")
EVALUATIONS: dict[str, Evaluation] = {
    "own_hhh": Evaluation(lambda _: own_hhh.load(), _choices("hhh", by_category=True)),
    "hhh": Evaluation(_prepared("hhh_alignment", "choices"), _choices("hhh", by_category=True)),
    "truthfulqa": Evaluation(_prepared("truthfulqa", "choices"), _choices("truthfulqa")),
    "hellaswag": Evaluation(_prepared("hellaswag", "choices"), _choices("hellaswag")),
    **{
        f"ethics_{task}": Evaluation(_prepared(f"ethics_{task}", "pairs"), _ethics, ethics.whole_groups)
        for task in ETHICS
    },
    **{name: Evaluation(_passages(how.text), _lambada) for name, how in lambada.FORMATS.items()},
    "toxicity": Evaluation(_prepared("toxicity", "prompts"), _toxicity, toxicity.choose_prompts),
    "toxicity_free": Evaluation(_prepared("toxicity", "prompts"), _toxicity, toxicity.choose_prompts),
    "humaneval": Evaluation(_prepared("humaneval", "prompts"), _code),
    "quixbugs": Evaluation(_prepared("quixbugs", "prompts"), _code),
    **{name: Evaluation(lambda _: [], _counting) for name in counting.RANGES},
}
"""By name. What is prepared is read from the folder of that source's name below `Settings.data`."""


def run_battery(
    checkpoint: Path,
    names: Sequence[str],
    output: Path,
    settings: Settings,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Runs what is not done of the evaluations `names`, writes `output` and returns the result rows.

    Args:
      say: takes a line before and after each evaluation.

    Raises UserError for an unknown name, missing data, a prompt that fits nowhere, and an `output` of other settings.
    """
    for name in names:
        if name not in EVALUATIONS:
            raise UserError(f"no evaluation {name!r}; there are {', '.join(EVALUATIONS)}")
    _claim(output, {"checkpoint": str(checkpoint), **settings._asdict()})
    subject, about_run = _subject(checkpoint, settings)
    rows, items = [], []
    for number, name in enumerate(names, 1):
        folder = output / name
        if (folder / "about.json").exists():
            say(f"[{number}/{len(names)}] {name}: was done before")
        else:
            started = time.monotonic()
            records = EVALUATIONS[name].load(settings)
            if settings.limit:
                records = EVALUATIONS[name].first(records, settings.limit)
            say(f"[{number}/{len(names)}] {name}: {len(records)} items, {len(subject.seeds)} seeds")
            outcome = EVALUATIONS[name].evaluate(subject, name, records, settings)
            sha = content_sha(records)
            about_rows = about_run | {"data_sha": sha[:12]}
            about = {"evaluation": name, "n_records": len(records), "data_sha256": sha, "notes": outcome.notes}
            shown = [{"name": p.name, "sha256": p.sha256, "is_original": p.is_original} for p in subject.prompts]
            if distributed.is_first():
                folder.mkdir(parents=True, exist_ok=True)
                run_lib.write_lines(folder / "items.jsonl", outcome.items)
                run_lib.write_lines(folder / "rows.jsonl", [_full_row(about_rows, row) for row in outcome.rows])
                write_json_atomic(folder / "about.json", about | {"prompts": shown})
            distributed.agree("it is written")
            lost = {item["item_id"] for item in outcome.items if "error" in item or item.get("outcome") == "error"}
            errors = f"; items with an error in the record: {len(lost)}" if lost else ""
            say(f"    {'; '.join(outcome.notes)}; {time.monotonic() - started:.0f} s{errors}")
        rows += _lines(folder / "rows.jsonl")
        items += _lines(folder / "items.jsonl")
    if distributed.is_first():
        run_lib.write_lines(output / "items.jsonl", items)
        run_lib.write_lines(output / "rows.jsonl", rows)
    return rows


def summary_lines(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Result rows as a table to read: of each task, ranker and metric the mean over seeds, the mean of the seeds'
    intervals over items, the lowest and highest seed, and the number of items. Densities are left out."""
    found: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["metric"] not in ("toxicity_density", "loss"):
            k = f" (k = {row['k']})" if row["metric"] == "pass@k" else ""
            found[row["task"], row.get("ranker", ""), row["metric"] + k].append(row)
    yield f"{'task':<28}{'ranker':<26}{'metric':<28}{'value':>7}  {'95% over items':<18}{'seeds':<18}{'items':>6}"
    for (task, ranker, metric), of in found.items():
        values = [row["value"] for row in of]
        lo, hi = (sum(row[end] for row in of) / len(of) for end in ("lo", "hi"))
        seeds = f"{min(values):.3f} to {max(values):.3f}" if len(of) > 1 else ""
        value, interval = f"{sum(values) / len(of):.3f}", f"[{lo:.3f}, {hi:.3f}]"
        if metric == "errors":
            value, interval, seeds = str(max(values)), "", ""
        yield f"{task:<28}{ranker:<26}{metric:<28}{value:>7}  {interval:<18}{seeds:<18}{of[0]['n_items']:>6}"


def job(directory: Path, *, after: Path | None, study: str, evals: Sequence[str], **settings: Any) -> None:
    """As a run of a study: evaluates the run `after`; `settings` are fields of `Settings`.

    Its rows name this run, which holds the item records behind them, and not the one that was evaluated.
    """
    assert after is not None
    rows = run_battery(after, evals, directory, Settings(**settings))
    run_lib.write_lines(directory / "rows.jsonl", [row | {"run": directory.name} for row in rows])


def _claim(output: Path, settings: dict[str, Any]) -> None:
    """Writes battery.json, or checks that the one there says the same."""
    path = output / "battery.json"
    output.mkdir(parents=True, exist_ok=True)
    there = json.loads(path.read_text(encoding="utf-8")) if path.exists() else settings
    for name, value in settings.items():
        if there.get(name) != value:
            raise UserError(f"{path}: made with {name} = {there.get(name)!r}, not {value!r}; give another --workdir")
    if distributed.is_first():
        write_json_atomic(path, settings)


def _subject(checkpoint: Path, settings: Settings) -> tuple[Subject, dict[str, Any]]:
    """The model of all seeds, ready to be asked, and what its result rows have in common."""
    c, _ = run_lib.load_config(open_path(checkpoint))
    scorer, tokenizer, seeds = load_scorer(str(checkpoint), (), settings.selection, settings.context)
    how = settings.intervention
    several = {"none": (), "template": (), "prompt": ("hhh", "short"), "short": ("short",), "two": ("two",)}
    names = several.get(how, (how, "short"))
    form = "bare" if how == "none" else "dialogue"
    shown = tuple(prompts.load(name) for name in names)
    subject = Subject(scorer, tokenizer, seeds, form, shown, templates.load(settings.templates))
    extra = read_extra(open_path(checkpoint) / "checkpoints")
    asked = [c.labels.intervention, "" if how == "none" else how]
    about = {
        "study": c.labels.study, "run": checkpoint.name, "stage": "evaluate", "ladder": c.ladder,
        "n_layer": c.model.n_layer, "N": model.count_params(scorer.model)["n"], "objective": c.objective.name,
        "init": c.labels.init, "intervention": "+".join(filter(None, asked)), "config_sha": extra["config_sha"],
        "code_version": code_version(),
    }  # fmt: skip
    return subject, about | {"pretrain_seeds": dict(zip(seeds, extra["pretrain_seeds"], strict=True))}


def _full_row(about: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    of_data = ("study", "run", "data_sha", "code_version")
    trivial = row.get("stage") == "baseline"
    shared = {key: value for key, value in about.items() if key != "pretrain_seeds" and (key in of_data or not trivial)}
    return shared | {"pretrain_seed": about["pretrain_seeds"].get(row["seed"], "")} | row


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
