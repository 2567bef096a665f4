"""Code that a model wrote, scored by tests: HumanEval, and QuixBugs as function synthesis.

A record is a prompt of `hhh_jax.data.sources.code`, a completion what a model wrote after it. A completion is cut at
the first stop string and is right if the tests pass. They run in a sandbox (`hhh_jax.evals.sandbox`), and only where
the user has allowed it.

An item record is an outcome of one completion:

    item_id group_id sample(index) outcome("passed"|"failed"|"error") category detail

with the categories of `sandbox.Verdict`. An error is the harness's: such a sample counts neither as right nor as wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hhh_jax.data.records import Prompt
from hhh_jax.errors import UserError
from hhh_jax.evals.pass_at_k import mean_over_problems, pass_at_k
from hhh_jax.evals.sandbox import Limits, Program, run_many
from hhh_jax.evals.subject import Outcome, Subject, askable, error_rows, one_seed, read_prompt
from hhh_jax.prompts import STOP_STRINGS
from hhh_jax.sample import Decoding, sample

SAMPLES, MAX_TOKENS, TEMPERATURE, TOP_P = 10, 300, 0.6, 0.95
"""The paper's sampling (B.2); as many samples as pass@10 needs, of at most so many tokens."""

STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")  # where a function's body is over (Chen et al. 2021)


def evaluate(subject: Subject, task: str, records: Sequence[Prompt], allow_untrusted: bool) -> Outcome:
    """Samples of every problem under every seed, tested: pass@1 and pass@10.

    Raises UserError as `score_completions` does, before anything is sampled if programs may not run.
    """
    run_many((), allow_untrusted=allow_untrusted)
    template = subject.templates["code"][subject.form]
    texts = {record.id: template.format(code=record.text) for record in records}
    prefix, note = read_prompt(subject, {name: [text] for name, text in texts.items()}, MAX_TOKENS)
    stop = (*STOP, *(STOP_STRINGS if subject.form == "dialogue" else ()))
    decoding = Decoding(n=SAMPLES, max_new_tokens=MAX_TOKENS, temperature=TEMPERATURE, top_p=TOP_P, stop=stop)
    ready, _, errors = askable(subject, texts, prefix, MAX_TOKENS)
    asked = [record for record in records if record.id not in errors]
    rows, items = [], []
    for g, seed in enumerate(subject.seeds):
        model, own_prefix = one_seed(subject.scorer, prefix, g)
        samples = sample(model, subject.tokenizer, ready, decoding, own_prefix)
        completions = [[one.text for one in of_problem] for of_problem in samples]
        scored = score_completions(asked, completions, allow_untrusted=allow_untrusted, stop=stop)
        rows += [{"task": task, "split": "test", "curve": "separate", "seed": seed, **row} for row in pass_rows(scored)]
        said = [text for of_problem in completions for text in of_problem]
        about = {"task": task, "split": "test", "seed": seed}
        items += [about | item | {"said": text} for item, text in zip(scored, said, strict=True)]
        rows += error_rows(task, sum(item["outcome"] == "error" for item in scored))
        items += [
            about | {"item_id": record.id, "group_id": record.group, "error": errors[record.id]}
            for record in records if record.id in errors
        ]  # fmt: skip
    return Outcome(rows + error_rows(task, len(errors)), items, [note])


def truncate(completion: str, stop: Sequence[str] = STOP) -> str:
    """The completion up to the first stop string."""
    return completion[: min((i for mark in stop if (i := completion.find(mark)) >= 0), default=len(completion))]


def program(record: Prompt, completion: str) -> Program:
    """What the sandbox runs for a completion. Raises UserError for a record that has no tests."""
    missing = [name for name in ("entry_point", "tests") if not isinstance(record.meta.get(name), str)]
    if missing:
        raise UserError(f"{record.id}: a prompt for code needs meta.{missing[0]}; humaneval and quixbugs have it")
    return Program(f"{record.text}{completion}\n", record.meta["entry_point"], record.meta["tests"], record.text)


def score_completions(
    records: Sequence[Prompt],
    completions: Sequence[Sequence[str]],
    *,
    allow_untrusted: bool,
    timeout: int = 10,
    workers: int | None = None,
    stop: Sequence[str] = STOP,
) -> list[dict[str, Any]]:
    """The item records of `completions[i][j]`, sample j of record i, in that order.

    `timeout` is in seconds of CPU time; a program that sleeps is ended after five times as long. Equal programs run
    once. Raises UserError as `sandbox.run_many` does, and for records without tests.
    """
    programs = [
        [program(record, truncate(completion, stop)) for completion in samples]
        for record, samples in zip(records, completions, strict=True)
    ]
    distinct = list(dict.fromkeys(one for samples in programs for one in samples))
    limits = Limits(cpu_s=timeout, wall_s=5.0 * timeout)
    verdicts = run_many(distinct, allow_untrusted=allow_untrusted, limits=limits, workers=workers)
    found = dict(zip(distinct, verdicts, strict=True))
    return [
        {"item_id": record.id, "group_id": record.group, "sample": index, **found[one]._asdict()}
        for record, samples in zip(records, programs, strict=True)
        for index, one in enumerate(samples)
    ]


def pass_rows(items: Sequence[Mapping[str, Any]], ks: Sequence[int] = (1, 10)) -> list[dict[str, Any]]:
    """Cells of the results table for each k: metric ("pass@k"), k, value, lo, hi and n_items, of item records.

    A problem counts if k or more of its samples were scored; `n_items` says how many did. There is no row for a k that
    no problem has.
    """
    scored: dict[str, list[bool]] = {}
    groups: dict[str, str] = {}
    for item in items:
        groups[item["item_id"]] = item["group_id"]
        if item["outcome"] != "error":
            scored.setdefault(item["item_id"], []).append(item["outcome"] == "passed")
    rows = []
    for k in ks:
        usable = {name: right for name, right in scored.items() if len(right) >= k}
        if usable:
            values_P = [pass_at_k(len(right), sum(right), k) for right in usable.values()]
            mean = mean_over_problems(values_P, np.array([groups[name] for name in usable]))
            cells = {"value": mean.value, "lo": mean.lo, "hi": mean.hi, "n_items": mean.n_items}
            rows.append({"metric": "pass@k", "k": k, **cells})
    return rows
