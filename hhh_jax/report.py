"""A study's report: what was run, what the paper claims and what was measured here, every figure, and the
limits.

`write_report` needs STUDY_DIR/results.csv and the item records under runs/ (`hhh_jax.results`), and uses
STUDY_DIR/study.json where it has one of the keys

    name                             text
    config                           {setting: value}, shown as a table
    machine                          {"cpu": , "cores": , "jax": , "python": , ...}, shown as it is
    seconds                          {stage: seconds}
    flops                            of all training together
    tokens_per_parameter             {N: tokens of pretraining per non-embedding parameter}, N as text
    broken                           {run: message} of runs that failed

It writes summary.csv, claims.json, figures/*.png and *.pdf, and report.html, which needs no other file. The
same input gives the same bytes.
"""

import base64
import json
import os
import re
from collections import Counter
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hhh_jax import claims, figures, ledger, results
from hhh_jax.claims import rules
from hhh_jax.claims.rules import Claim, Outcome
from hhh_jax.stats import Estimate
from hhh_jax.summary import FORMAT_TWIN, PM_GAIN, TRIVIAL, Study, ladder_corpus, size_name, summarize, task_name

if TYPE_CHECKING:
    import pandas as pd

Judged = list[tuple[Claim, Outcome]]
PRIMARY = ("ranked_minus_binary", "ranked_gain", "binary_equal")
"""The claims that the headline tells in numbers."""

VERDICT_CLASS = {
    rules.SUPPORTED: "yes", rules.CONTRADICTED: "no", rules.POWER: "open", rules.FLOOR: "floor", rules.NOT_RUN: "none",
}  # fmt: skip


def write_report(study_dir: str | os.PathLike) -> Path:
    """Derive, judge, draw and write everything that is made from a study's records; returns the path of
    report.html.

    Raises UserError if results.csv or item records behind its rows are missing or do not fit.
    """
    folder = Path(study_dir)
    study = Study(results.read_table(folder / "results.csv"), folder / "runs")
    results.write_table(summarize(study), folder / "summary.csv")
    path = folder / "study.json"
    facts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    judged = claims.concerning(study, claims.evaluate(study))
    record = ledger.record(study_name(facts, study.table), study, judged)
    _write(folder / "claims.json", json.dumps(record, indent=1) + "\n")
    table = results.read_with_summary(folder / "results.csv")
    drawn = figures.draw_all(table, folder / "figures")
    _write(folder / "report.html", render(facts, study, table, judged, drawn))
    return folder / "report.html"


def study_name(facts: dict[str, Any], table: "pd.DataFrame") -> str:
    """The study's name, by study.json or else by its table."""
    return str(facts.get("name") or (table["study"].iloc[0] if len(table) else "") or "study")


def render(
    facts: dict[str, Any], study: Study, table: "pd.DataFrame", judged: Judged, drawn: figures.Drawn
) -> str:
    """The report as one HTML page; `judged` are the claims that concern the study."""
    css = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    name = study_name(facts, table)
    others = len(claims.CLAIMS) - len(judged)
    body = [
        f"<h1>Scaling study: {escape(name)}</h1>",
        f'<p class="lede">{escape(headline(judged))}</p>',
        _tally(judged),
        "<h2>What was run</h2>",
        _what_was_run(facts, study, table),
        "<h2>The paper’s claims and what was measured here</h2>",
        "<p>Left, what Askell et al. (2021, arXiv 2112.00861) say. Right, the statistic that stands for it "
        "here with its 95% interval over seeds and test items, and the verdict by a rule that was fixed "
        "before the runs. Tested were "
        f"{sum(o.verdict != rules.NOT_RUN for _, o in judged)} of {len(judged)} claims, each at the 95% "
        "level and without a correction for their number: where nothing is to be found, one test in twenty "
        "finds something."
        + (f" {others} other claims of the paper are not about what this study ran." if others else "")
        + "</p>",
        _claims_table(judged),
        "<h2>Figures</h2>",
        _figures(drawn),
        "<h2>Accuracy beside the trivial baselines</h2>",
        _baselines(study, table),
        _sensitivity(table),
        _pmp_itself(table),
        "<h2>Limits</h2>",
        _limits(facts, study, table),
        _provenance(table),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(name)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{css}</style></head>\n<body><main>\n"
        + "\n".join(filter(None, body))
        + "\n</main></body></html>\n"
    )


def headline(judged: Judged) -> str:
    """The primary comparison, where the study is about it, and how all claims came out: a sentence each."""
    outcome = {claim.key: result for claim, result in judged}
    comparison = [outcome[key] for key in PRIMARY if key in outcome]
    estimates = [result.estimate for result in comparison if result.estimate]
    if len(estimates) == len(PRIMARY):
        primary, (difference, ranked, binary) = comparison[0], estimates
        meaning = {
            rules.SUPPORTED: "as the paper found",
            rules.CONTRADICTED: "the opposite of what the paper found",
            rules.POWER: "too close to call",
            rules.FLOOR: "undecided, at the floor. " + primary.note.rstrip("."),
        }[primary.verdict]
        first = (
            f"At {primary.at}, preference modeling gained {_signed(ranked)} in accuracy over "
            f"imitation on ranked tasks and {_signed(binary)} on binary ones, a difference of "
            f"{_signed(difference)}: {meaning}. "
        )
    else:
        first = "The comparison of preference modeling with imitation was not completed. " if comparison else ""
    counts = Counter(result.verdict for _, result in judged)
    tested = len(judged) - counts[rules.NOT_RUN]
    second = (
        f"Of {tested} claim{'s' * (tested != 1)} tested, {counts[rules.SUPPORTED]} came out supported, "
        f"{counts[rules.CONTRADICTED]} contradicted, {counts[rules.POWER]} undecided for want of power and "
        f"{counts[rules.FLOOR]} undecided because no model was above the floor"
        + (f"; {counts[rules.NOT_RUN]} more could not be tested." if tested < len(judged) else ".")
    )
    return first + second


def _tally(judged: Judged) -> str:
    counts = Counter(outcome.verdict for _, outcome in judged)
    chips = [f"{_badge(verdict)}&thinsp;{counts[verdict]}" for verdict in rules.VERDICTS if counts[verdict]]
    return f'<p class="tally">{" &emsp; ".join(chips)}</p>'


def _what_was_run(facts: dict[str, Any], study: Study, table: "pd.DataFrame") -> str:
    tokens = {str(n): ratio for n, ratio in facts.get("tokens_per_parameter", {}).items()}
    losses = table[(table["stage"] == "summary") & (table["metric"] == "loss")].dropna(subset=["N"])
    losses = losses[losses["task"] == ladder_corpus(table)]
    loss = {int(row.N): row for row in losses.itertuples()}
    sizes = table[["N", "n_layer"]].dropna().drop_duplicates().sort_values("N")
    rungs = [
        [
            f"{int(n):,}",
            str(int(layers)),
            f"{float(tokens[str(n)]):,.1f}" if str(n) in tokens else "",
            _plain(loss[int(n)]) if int(n) in loss else "",
        ]
        for n, layers in sizes.values
    ]
    tasks = []
    for task in sorted(
        {*study.tasks(), *(t for t in FORMAT_TWIN.values() if study.main_pairs(t)), "symbols:T0"}
    ):
        rows = study.rows(stage="finetune", task=task, metric="accuracy")
        if len(rows):
            pairs = ", ".join(f"{int(p)}" for p in sorted(rows["pairs_total"].dropna().unique()))
            starts = [init.removeprefix("pmp:") for init in sorted(rows["init"].unique()) if init != "lm"]
            arms = ", ".join(sorted(rows["objective"].unique()))
            arms += f"; preference also after PMP on {', '.join(starts)}" if starts else ""
            n_items, seeds = str(int(rows["n_items"].max())), str(rows["seed"].nunique())
            tasks.append([task_name(task), pairs, n_items, seeds, arms])
    lines = []
    if machine := facts.get("machine"):
        lines.append("Machine: " + ", ".join(f"{key} {value}" for key, value in machine.items()) + ".")
    if seconds := facts.get("seconds"):
        spent = ", ".join(f"{stage} {_duration(s)}" for stage, s in seconds.items())
        lines.append(
            f"Time, summed over parallel processes: {spent}; {_duration(sum(seconds.values()))} in all."
        )
    if flops := facts.get("flops"):
        lines.append(f"Training took {float(flops):.2g} FLOPs.")
    config = [[key, json.dumps(value)] for key, value in facts.get("config", {}).items()]
    header = ["N (non-embedding)", "layers", "pretraining tokens per parameter", "held-out loss, nats/token"]
    parts = [
        _table(header, rungs),
        _table(["task", "training pairs", "test items", "seeds", "arms"], tasks, wide=True),
    ]
    if lines:
        parts.append(f"<p>{escape(' '.join(lines))}</p>")
    if config:
        parts.append(f"<details><summary>Settings</summary>{_table(['setting', 'value'], config)}</details>")
    return "\n".join(parts)


def _claims_table(judged: Judged) -> str:
    rows = []
    for claim, outcome in judged:
        measured = (
            f'<div class="rule">Statistic: {escape(claim.statistic)}. Rule: {escape(claim.rule)}.</div>'
        )
        if estimate := outcome.estimate:
            groups = f" in {estimate.n_groups:,} groups" if 0 < estimate.n_groups < estimate.n_items else ""
            size = f"{estimate.n_items:,} items{groups}, {estimate.n_seeds} seed{'s' * (estimate.n_seeds != 1)}"
            measured = (
                f'<div class="value">{_strip(estimate)}<b>{_signed(estimate)}</b></div>'
                f'<div class="where">{escape(outcome.at)}; {size}</div>{measured}'
            )
        if outcome.note:
            measured += f'<div class="note">{escape(outcome.note)}</div>'
        if outcome.details:
            beside = "".join(
                f"<tr><td>{escape(label)}</td><td>{_plain(e)}</td></tr>" for label, e in outcome.details
            )
            measured += f"<details><summary>more numbers</summary><table>{beside}</table></details>"
        rows.append(
            f'<tr><td class="paper">{escape(claim.statement)}<div '
            f'class="where">{escape(claim.where)}</div></td>'
            f"<td>{_badge(outcome.verdict)}{measured}</td></tr>"
        )
    head = "<tr><th>The paper</th><th>Measured here</th></tr>"
    return f'<table class="claims"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'


def _figures(drawn: figures.Drawn) -> str:
    parts = []
    for name, drawing in figures.FIGURES.items():
        if name in drawn.paths:
            png = drawn.paths[name].read_bytes()
            width = round(int.from_bytes(png[16:20]) * 0.58)  # CSS pixels; all figures to one scale
            title = drawing.title if drawing.title.endswith("?") else drawing.title + "."
            data = base64.b64encode(png).decode("ascii")
            parts.append(
                f'<figure><img width="{width}" alt="{escape(drawing.title)}" '
                f'src="data:image/png;base64,{data}">'
                f"<figcaption><b>{escape(title)}</b> {escape(drawing.caption)}</figcaption></figure>"
            )
    if drawn.skipped:
        why = [f"Not drawn: “{figures.FIGURES[name].title}” ({reason})." for name, reason in drawn.skipped.items()]
        items = "".join(f"<li>{escape(line)}</li>" for line in why)
        parts.append(f"<details><summary>figures that this study lacks rows of</summary><ul>{items}</ul></details>")
    return "\n".join(parts)


def _baselines(study: Study, table: "pd.DataFrame") -> str:
    pooled = table[
        (table["stage"] == "summary") & (table["metric"] == "accuracy") & (table["intervention"] == "")
    ]
    columns = {"untuned": "untuned LM", "imitation": "imitation", "preference": "preference", "dpo": "DPO"}
    columns = {objective: name for objective, name in columns.items() if (pooled["objective"] == objective).any()}
    header = ["task", "N", *TRIVIAL, *columns.values(), "above the floor?"]
    rows = []
    for task in [*study.tasks(), *(twin for twin in FORMAT_TWIN.values() if study.main_pairs(twin))]:
        if not (sizes := study.sizes([task])):
            continue
        n, here = sizes[-1], pooled[(pooled["task"] == task) & (pooled["N"] == sizes[-1]).fillna(False)]
        measured = study.rows(stage="baseline", task=task, metric="accuracy").set_index("ranker")["value"]
        cells = [task_name(task), size_name(n)]
        cells += [f"{measured[ranker]:.3f}" if ranker in measured.index else "" for ranker in TRIVIAL]
        for objective in columns:
            arm = here[(here["objective"] == objective) & (here["init"] == ("" if objective == "untuned" else "lm"))]
            if objective != "untuned":
                arm = arm[arm["pairs_total"] == study.main_pairs(task)]
            cells.append(_plain(arm.iloc[0]) if len(arm) else "")
        arms = [[study.items(task, objective, n)] for objective in ("preference", "imitation")]
        rows.append([*cells, "yes" if rules.above_floor(study, [task], arms) else "no"])
    text = (
        "<p>“Above the floor” asks whether imitation or preference modeling beats the best of the five trivial "
        "baselines on the same test items, with its 95% interval. Empty: does not apply, or was not "
        "measured.</p>"
    )
    return text + _table([h.replace("_", " ") for h in header], rows, wide=True)


def _sensitivity(table: "pd.DataFrame") -> str:
    gains = table[(table["stage"] == "summary") & (table["objective"] == PM_GAIN)]
    gains = gains[gains["task"].str.startswith("mean:") | (gains["task"] == "ranked-binary")].dropna(
        subset=["N"]
    )
    variants = {
        "stopping step selected on validation": ("accuracy_gain", ""),
        "last step": ("accuracy_final_gain", ""),
        "the paper’s constant learning rate": ("accuracy_gain", "paper_lr"),
    }
    tasks = ("mean:ranked", "mean:binary", "ranked-binary")
    rows = []
    for label, (metric, intervention) in variants.items():
        chosen = gains[(gains["metric"] == metric) & (gains["intervention"] == intervention)]
        largest = chosen[chosen["N"] == chosen["N"].max()].set_index("task")
        if len(largest):
            rows.append([label, *(_plain(largest.loc[t], "+") if t in largest.index else "" for t in tasks)])
    head = [
        "gain of preference modeling over imitation, largest size",
        "ranked tasks",
        "binary tasks",
        "difference",
    ]
    return "<h3>Does the choice of step or rate matter?</h3>" + _table(head, rows) if len(rows) > 1 else ""


def _pmp_itself(table: "pd.DataFrame") -> str:
    chosen = table[(table["stage"] == "pmp") & (table["metric"] == "accuracy") & (table["split"] == "test")]
    rows = []
    for (run, n, pairs), seeds in chosen.groupby(["run", "N", "pairs_total"]):
        values = ", ".join(f"{value:.3f}" for value in seeds.sort_values("seed")["value"])
        rows.append([str(run), size_name(float(n)), f"{int(pairs):,}", values])
    head = ["run", "N", "pairs", "accuracy on its own held-out pairs, a value a seed"]
    return "<h3>Preference model pre-training by itself</h3>" + _table(head, rows) if rows else ""


def _limits(facts: dict[str, Any], study: Study, table: "pd.DataFrame") -> str:
    sizes = table["N"].dropna()
    seeds = study.table["seed"].nunique()
    limits = []
    if len(sizes):
        limits.append(
            f"The models have {size_name(sizes.min())} to {size_name(sizes.max())} parameters, the paper’s "
            "13M to 52B. What holds here need not hold there, and what does not hold here may appear there."
        )
    limits += [
        f"{seeds} seeds a comparison; the test items are the same for all. With few seeds an interval is "
        "wide where seeds differ, and in simulations it covers the truth nine times in ten or a little "
        "more often.",
        "Intervals are over seeds and groups of test items, not over tasks: a mean over two tasks speaks "
        "of these two tasks.",
    ]
    if not facts.get("config", {}).get("data"):
        limits.append(
            "The tasks are made from what every machine has at hand. They are not the paper’s, and small "
            "models may solve them by means that large models would not need."
        )
    if len(study.rows(objective="preference")) and len(study.rows(objective="imitation")):
        limits.append(
            "Preference modeling sees both sides of every pair, imitation the good one only: the same pairs and "
            "updates are about twice the tokens and FLOPs."
        )
    limits += [f"Failed and left out: {run} ({message})." for run, message in facts.get("broken", {}).items()]
    return "<ul>" + "".join(f"<li>{escape(limit)}</li>" for limit in limits) + "</ul>"


def _provenance(table: "pd.DataFrame") -> str:
    versions = ", ".join(sorted({v for v in table["code_version"] if v}))
    text = "Every number above is in results.csv (measured) or summary.csv (derived), next to this page."
    return f'<p class="where">{escape(text)}{escape(f" Code: {versions}." if versions else "")}</p>'


def _badge(verdict: str) -> str:
    return f'<span class="badge {VERDICT_CLASS[verdict]}">{ledger.SIGNS[verdict]} {escape(verdict)}</span>'


def _strip(estimate: Estimate, width: int = 132, height: int = 16) -> str:
    """The interval as a small drawing around a line at zero."""
    reach = 1.15 * max(abs(estimate.lo), abs(estimate.hi), 1e-9)
    lo, value, hi = (
        round((x / reach + 1) * width / 2, 1) for x in (estimate.lo, estimate.value, estimate.hi)
    )
    middle = height / 2
    return (
        f'<svg width="{width}" height="{height}" role="img" aria-label="interval against zero">'
        f'<line x1="{width / 2}" x2="{width / 2}" y1="0" y2="{height}" stroke="#999"/>'
        f'<line x1="{lo}" x2="{hi}" y1="{middle}" y2="{middle}" stroke="#0072B2" stroke-width="2"/>'
        f'<circle cx="{value}" cy="{middle}" r="3.5" fill="#0072B2"/></svg>'
    )


def _signed(estimate: Estimate) -> str:
    return _plain(estimate, "+")


def _plain(estimate: Any, sign: str = "") -> str:
    """value [lo, hi] of an Estimate or a row, with a true minus sign."""
    text = f"{estimate.value:{sign}.3f} [{estimate.lo:{sign}.3f}, {estimate.hi:{sign}.3f}]"
    return text.replace("-", "−")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _table(header: list[str], rows: list[list[str]], wide: bool = False) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    body = re.sub(r"\[(\S+), (\S+)\]", r"[\1,&nbsp;\2]", body)  # a line breaks before an interval, not in it
    return f'<table class="data{" wide" * wide}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
