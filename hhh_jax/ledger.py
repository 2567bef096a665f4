"""The ledger: every claim of the paper, its rule, and what each study that was run says about it.

    python -m hhh_jax.ledger --studies=docs --readme=README.md

reads docs/NAME/claims.json of every study, which its report wrote (`record`), and writes

    docs/claims.md, docs/claims.json    a row a claim, a column a study
    README.md                           its results section, between the lines `BEGIN` and `END`; it shows and links
                                        what lies in docs/NAME/figures/

Rules are those of `hhh_jax.claims` and were written before the runs. A study whose claims.json lacks a claim has not
tested it. The same files give the same bytes.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from hhh_jax import claims, cli
from hhh_jax.claims import rules
from hhh_jax.claims.rules import Claim, Outcome
from hhh_jax.errors import UserError
from hhh_jax.summary import Study, size_name

BEGIN = "<!-- results: made by python -m hhh_jax.ledger; edits are lost -->"
END = "<!-- end of results -->"
SIGNS = {rules.SUPPORTED: "✓", rules.CONTRADICTED: "✗", rules.POWER: "?", rules.FLOOR: "▁", rules.NOT_RUN: "–"}
"""A mark for each verdict, here and in reports."""

IN_README = ("figures14_15", "figure33")
"""Figures that the README shows where a study has them; to the others it has links."""

Record = Mapping[str, Any]
"""What a claims.json holds."""


def record(name: str, study: Study, judged: Sequence[tuple[Claim, Outcome]]) -> dict[str, Any]:
    """A study's claims.json: its sizes, seeds, how it was trained, and the outcomes of the claims that concern it."""
    sizes = sorted({int(n) for n in study.table["N"].dropna()})
    return {
        "study": name,
        "sizes": sizes,
        "seeds": int(study.table["seed"].nunique()),
        "code": sorted({str(version) for version in study.table["code_version"] if version}),
        "training": training(study),
        "claims": {claim.key: outcome_record(outcome) for claim, outcome in claims.concerning(study, judged)},
    }


def outcome_record(outcome: Outcome) -> dict[str, Any]:
    """An outcome as plain JSON: verdict, value, lo, hi, n_items, n_seeds, n_groups, at, note."""
    estimate = outcome.estimate._asdict() if outcome.estimate else {}
    return {"verdict": outcome.verdict, **estimate, "at": outcome.at, "note": outcome.note}


def training(study: Study) -> dict[str, dict[str, list[Any]]]:
    """For each stage, the learning rates of its runs (as multiples of pretraining's) and where they stopped.

    From the config.json of the runs that the table has rows of; a run without one trained nothing.
    """
    found: dict[str, dict[str, set[Any]]] = {}
    for run in sorted(study.table["run"].unique()):
        path = study.runs_dir / run / "config.json"
        if not path.exists():
            continue
        c = json.loads(path.read_text(encoding="utf-8"))
        best = "best" in c["eval.selections"] and c["eval.points"] > 1
        stopping = f"the best of {c['eval.points']} validations" if best else "the last step"
        of_stage = found.setdefault(c["stage"], {"lr_multiples": set(), "stopping": set()})
        of_stage["lr_multiples"].add(c["optim.lr_multiple"])
        of_stage["stopping"].add(stopping)
    return {
        stage: {key: sorted(values) for key, values in of_stage.items()} for stage, of_stage in sorted(found.items())
    }


def read(studies: Path) -> dict[str, Record]:
    """The records of all studies of a folder by their own folder's name, those of more sizes first.

    Raises UserError if there is none.
    """
    found = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in studies.glob("*/claims.json")}
    for name, study in found.items():
        if "claims" not in study:
            raise UserError(f"{studies / name / 'claims.json'}: has no claims; let the study write its report again")
    if not found:
        raise UserError(f"{studies}: no folder in it has a claims.json; a study's report writes one")
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]["sizes"]), item[0])))


def outcome_of(study: Record, claim: Claim) -> dict[str, Any]:
    """What a study says of a claim."""
    untested = {"verdict": rules.NOT_RUN, "at": "", "note": ""}
    return study["claims"].get(claim.key, untested)


def tested(study: Record) -> list[tuple[Claim, dict[str, Any]]]:
    """The claims with an outcome other than "not run", in the order of the ledger."""
    outcomes = [(claim, outcome_of(study, claim)) for claim in claims.CLAIMS]
    return [(claim, outcome) for claim, outcome in outcomes if outcome["verdict"] != rules.NOT_RUN]


def as_json(studies: Mapping[str, Record]) -> dict[str, Any]:
    """The whole ledger: ``studies`` as they were run, ``claims`` with an outcome a study."""
    about = {name: {key: value for key, value in study.items() if key != "claims"} for name, study in studies.items()}
    rows = [
        {
            "claim": claim.key, "statement": claim.statement, "where": claim.where, "statistic": claim.statistic,
            "rule": claim.rule,
            "outcomes": {name: outcome_of(study, claim) for name, study in studies.items()},
        }
        for claim in claims.CLAIMS
    ]  # fmt: skip
    return {"studies": about, "claims": rows}


def as_markdown(studies: Mapping[str, Record]) -> str:
    """The whole ledger as a page."""
    header = ["claim", *studies]
    outcomes = [
        [f"**{claim.key}** {claim.statement}", *(_cell(outcome_of(study, claim)) for study in studies.values())]
        for claim in claims.CLAIMS
    ]
    how = [
        [name, study["study"], _sizes(study), str(study["seeds"]), _training(study), ", ".join(study["code"])]
        for name, study in studies.items()
    ]
    stated = [f"- **{c.key}** ({c.where}). Statistic: {c.statistic}. Rule: {c.rule}." for c in claims.CLAIMS]
    return "\n".join([
        "# Claims of the paper, and what was measured here", "",
        "Made by `python -m hhh_jax.ledger`; edits are lost. Rules were written before the runs.", "",
        count(studies), "",
        "## Outcomes", "", *_table(header, outcomes), "",
        "Each cell: the verdict, the statistic with its 95% interval over seeds and test items, and where it was "
        f"taken; {SIGNS[rules.NOT_RUN]} is not run. Undecided is for want of power, or at the floor: no model compared "
        "beats the trivial baselines.", "",
        "## Studies", "",
        *_table(["folder", "study", "sizes", "seeds", "learning rate and stopping step by stage", "code"], how), "",
        "Learning rates are multiples of the pretraining rate of the same size.", "",
        "## Statistics and rules", "", *stated, "",
    ])  # fmt: skip


def count(studies: Mapping[str, Record]) -> str:
    """How many claims were tested how often, and what that means for chance findings."""
    tests = sum(len(tested(study)) for study in studies.values())
    once = {claim.key for study in studies.values() for claim, _ in tested(study)}
    return (
        f"{len(claims.CLAIMS)} claims; {len(once)} of them were tested at least once, in {tests} tests over "
        f"{len(studies)} {'study' if len(studies) == 1 else 'studies'}. Each test is at the 95% level without a "
        "correction for their number: where nothing is to be found, one in twenty finds something."
    )


def tally(study: Record) -> str:
    """One sentence: how the tested claims came out."""
    counts = Counter(outcome["verdict"] for _, outcome in tested(study))
    parts = [f"{counts[verdict]} {verdict}" for verdict in rules.VERDICTS if counts[verdict]]
    n = counts.total()
    return f"{n} claim{'s' * (n != 1)} tested: {', '.join(parts)}." if parts else "No claim was tested."


def readme_section(folder: Path, root: Path) -> str:
    """The results section of a README in `root`: what each study of `folder` tested, and its figures.

    Studies of MIN_SIZES sizes or more have their outcomes and pictures; the others have a line with links.
    """
    studies = read(folder)

    def link(path: Path) -> str:
        return Path(os.path.relpath(path, root)).as_posix()

    page = link(folder / "claims.md")
    parts = [BEGIN, f"{count(studies)} All of them, with statistics, rules and settings: [{page}]({page})."]
    lines = []
    for name, study in studies.items():
        in_full = len(study["sizes"]) >= rules.MIN_SIZES
        about = f"{_sizes(study)} parameters, {study['seeds']} seeds. {tally(study)}"
        pictures = sorted((folder / name / "figures").glob("*.png"))
        shown = [path for path in pictures if in_full and path.stem in IN_README]
        links = [f"[{path.stem}]({link(path)})" for path in pictures if path not in shown]
        figures = ["Figures: " + ", ".join(links) + "."] if links else []
        if in_full:
            rows = [
                [claim.statement, _measured(found), found["at"], f"{SIGNS[found['verdict']]} {found['verdict']}"]
                for claim, found in tested(study)
            ]
            parts += [f"### {name}", about]
            parts += ["\n".join(_table(["claim", "measured", "at", "verdict"], rows))] if rows else []
            parts += [f"![{path.stem}]({link(path)})" for path in shown] + figures
        else:
            lines.append(" ".join([f"- **{name}**: {about}", *figures]))
    if lines:
        parts += [f"### Studies of fewer than {rules.MIN_SIZES} sizes", "\n".join(lines)]
    return "\n\n".join([*parts, END])


def with_section(readme: str, section: str) -> str:
    """The README's text with its results section replaced. Raises UserError if it lacks the two lines."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"the README has no lines {BEGIN!r} and {END!r} to write the results between")
    return before + section + after


def _cell(outcome: Mapping[str, Any]) -> str:
    if outcome["verdict"] == rules.NOT_RUN:
        return f"{rules.NOT_RUN}: {outcome['note']}" if outcome["note"] else SIGNS[rules.NOT_RUN]
    at = f"; {outcome['at']}" if outcome["at"] else ""
    seeds = f"{outcome['n_seeds']} seed{'s' * (outcome['n_seeds'] != 1)}"
    verdict = f"{SIGNS[outcome['verdict']]} {outcome['verdict']}"
    return f"{verdict} {_measured(outcome)}{at}; {outcome['n_items']} items, {seeds}"


def _measured(outcome: Mapping[str, Any]) -> str:
    text = f"{outcome['value']:+.3f} [{outcome['lo']:+.3f}, {outcome['hi']:+.3f}]"
    return text.replace("-", "−")


def _sizes(study: Record) -> str:
    sizes = study["sizes"]
    return f"{size_name(sizes[0])} to {size_name(sizes[-1])}" if len(sizes) > 1 else ", ".join(map(size_name, sizes))


def _training(study: Record) -> str:
    stages = [
        f"{stage}: {', '.join(f'{rate:g}' for rate in how['lr_multiples'])}, {' or '.join(how['stopping'])}"
        for stage, how in study["training"].items()
    ]
    return "; ".join(stages)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return [line(header), "|" + "---|" * len(header), *map(line, rows)]


def main(_: Sequence[str]) -> None:
    from hhh_jax.record import write_text_atomic

    folder = Path(_STUDIES.value)
    studies = read(folder)
    written = [folder / "claims.md", folder / "claims.json"]
    write_text_atomic(written[0], as_markdown(studies))
    write_text_atomic(written[1], json.dumps(as_json(studies), indent=1) + "\n")
    if _README.value:
        readme = Path(_README.value)
        section = readme_section(folder, readme.parent)
        write_text_atomic(readme, with_section(readme.read_text(encoding="utf-8"), section))
        written.append(readme)
    print(count(studies))
    print("written: " + ", ".join(map(str, written)))


if __name__ == "__main__":
    _STUDIES = flags.DEFINE_string("studies", "docs", "Folder of studies' folders, each with a claims.json.")
    _README = flags.DEFINE_string("readme", None, "A README.md whose results section is replaced.")
    cli.start(main)
