"""A data card as a page to read: one HTML file that needs no other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise
from math import ceil, floor, log2
from pathlib import Path
from typing import Any

import hhh_jax
from hhh_jax.data.card_stats import EDGES

STYLE = """
.tiles { display: flex; flex-wrap: wrap; gap: .8rem 2.6rem; margin: 1.4rem 0; }
.tiles b { display: block; font-size: 1.5rem; font-weight: 600; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tiles span { font-size: .82rem; color: #5c5c5c; }
.data .n { text-align: right; }
.data td:last-child, .data th:last-child { padding-right: 0; }
.data td { overflow-wrap: anywhere; }
.data svg { display: block; margin-top: .25rem; }
.hash { font: .78rem/1.4 ui-monospace, Consolas, monospace; color: #5c5c5c; }
.panels { display: flex; flex-wrap: wrap; gap: 1.2rem 2rem; margin: 1rem 0; }
.panels figure { margin: 0; }
.panels text { font: 11px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #5c5c5c; }
.key::before { content: "■ "; }
.keep li { margin: .35rem 0; }
.example { border: 1px solid #ddd; border-radius: .4rem; margin: 1rem 0; padding: .2rem 1rem; }
.example dl { display: grid; grid-template-columns: 6.5rem 1fr; gap: .5rem 1rem; margin: .7rem 0; }
.example dt { font-size: .82rem; color: #5c5c5c; padding-top: .1rem; }
.example dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .9rem; line-height: 1.45; }
"""
BLUE, VERMILION = "#0072B2", "#D55E00"
PREDICTORS = {
    "chance": "chance",
    "majority": "the label that is right most often",
    "position": "the position that is right most often",
    "shorter": "the shortest in bytes",
    "longer": "the longest in bytes",
    "length": "a cut of the text’s length",
    "bag_of_words": "logistic regression on words",
}
TRUNCATION = {
    "truncated": "longer, context and answer together",
    "response too long": "the answer alone is longer: training drops the pair",
    "equal if cut at the end": "both sides begin with the same tokens: equal to a trainer that cuts the end",
}
OVERLAP = {
    "items": "the same item",
    "contexts": "the same context (without context: a side)",
    "groups": "the same group",
    "free": "in a group free of overlap",
}
KIND_NAMES = {
    "pairs": "pairs", "documents": "documents", "choices": "questions with options", "labels": "labeled statements",
    "prompts": "prompts",
}  # fmt: skip
Card = dict[str, Any]


class Html(str):
    """Text that is HTML already; all other text is escaped."""


def render(card: Card) -> str:
    """The page of a card.json (`hhh_jax.data.card`)."""
    css = Path(hhh_jax.__file__).with_name("report.css").read_text(encoding="utf-8") + STYLE
    title = f"{card['source']}: {KIND_NAMES[card['kind']]}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lede">{escape(card["about"])}</p>',
        _tiles(card),
        "<h2>Keep in mind</h2>",
        _findings(card),
        "<h2>What went in</h2>",
        _inputs(card),
        "<h2>What was left out</h2>",
        _dropped(card),
        "<h2>What came out</h2>",
        _splits(card),
        "<h2>Lengths</h2>",
        _lengths(card),
        _tables(card),
        _overlap(card),
        _predictors(card),
        "<h2>Examples</h2>",
        *(_example(example) for example in card["examples"]),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{css}</style></head>\n<body><main>\n" + "\n".join(filter(None, parts)) + "\n</main></body></html>\n"
    )


def findings(card: Card) -> Iterator[tuple[str, str]]:
    """(badge, sentence) of what a user of the data has to know; the badge is a word."""
    noun = KIND_NAMES[card["kind"]]
    for entry in card["inputs"]:
        if "damage" in entry:
            yield "damage", f"{entry['name']} could not be read to its end: {entry['damage']}."
    for split, found in card["overlap"].items():
        n = found["records"]
        if found["contexts"] or found["groups"]:
            rest = (
                f"The {found['free']:,} whose groups are free of overlap are the split {split}_no_overlap."
                if found["free"]
                else "None is free of overlap."
            )
            has_context = card["statistics"][split]["tokens"].get("context", {"max": 1})["max"]
            yield "overlap", (
                f"{found['contexts']:,} of the {n:,} {noun} of {split} ({_share(found['contexts'], n)}) have a "
                f"{'context' if has_context else 'side'} that train has too, {found['items']:,} occur there as a "
                f"whole, {found['groups']:,} belong to a group that is also in train. {rest}"
            )
    for split, counted in card["statistics"].items():
        n = counted["digested"]
        if counted["duplicates"]:
            few = "" if n == counted["records"] else f"the first {n:,} of "
            differ = f"; {counted['contradictions']:,} of these come with different answers"
            yield "repeats", (
                f"{counted['duplicates']:,} of {few}the {counted['records']:,} {noun} of {split} "
                f"({_share(counted['duplicates'], n)}) repeat another one{differ * bool(counted['contradictions'])}."
            )
        equal = counted["truncation"].get("equal if cut at the end", 0)
        if equal:
            yield "length", (
                f"{equal:,} {noun} of {split} have equal sides once they are cut to their first {card['max_tokens']:,} "
                "tokens."
            )
        for table, what in (("position of the right option", "The right option is always number {}"),
                            ("label", "The label is always {}")):  # fmt: skip
            values = counted["tables"].get(table, {})
            if len(values) == 1:
                yield "order", what.format(next(iter(values))) + f" in {split}."
    for split, accuracies in card["predictors"].get("accuracy", {}).items():
        if split not in card["statistics"] or not accuracies:  # an overlap-free part is in the table only
            continue
        chance = accuracies.get("chance", {"value": 0.5})["value"]
        best = max(accuracies, key=lambda name: accuracies[name]["value"])
        if accuracies[best]["lo"] > chance:
            yield "floor", (
                f"On {split}, “{PREDICTORS[best]}” is right {accuracies[best]['value']:.1%} of the time (chance "
                f"{chance:.1%}). A model that does no better has shown nothing."
            )


def _findings(card: Card) -> str:
    items = [f'<li><span class="badge open">{badge}</span> {escape(text)}</li>' for badge, text in findings(card)]
    return f'<ul class="keep">{"".join(items)}</ul>' if items else "<p>Nothing stands out.</p>"


def _tiles(card: Card) -> str:
    left_out = sum(card["dropped"].values())
    tiles = [("rows read", card["read"]), ("used", card["kept"]), ("left out", left_out)]
    tiles += [(f"{KIND_NAMES[card['kind']]}, {split}", n) for split, n in card["records"].items()]
    cells = "".join(f"<div><b>{n:,}</b><span>{escape(what)}</span></div>" for what, n in tiles)
    return f'<div class="tiles">{cells}</div>'


def _inputs(card: Card) -> str:
    rows = [[x["name"], _size(x["bytes"]), _hash(x["sha256"])] for x in card["inputs"]]
    settings = [[name, json.dumps(value, ensure_ascii=False)] for name, value in card["settings"].items()]
    return (
        f"<p>{escape(card['licence'])}</p>"
        + _table(["file", "size", "sha256"], rows)
        + f"<details><summary>Settings</summary>{_table(['setting', 'value'], settings)}</details>"
    )


def _dropped(card: Card) -> str:
    if not card["dropped"]:
        return f"<p>Nothing: all {card['read']:,} rows were used.</p>"
    most = max(card["dropped"].values())
    rows = []
    for reason, n in sorted(card["dropped"].items(), key=lambda item: (-item[1], item[0])):
        bar = f'<svg width="160" height="10"><rect width="{160 * n / most:.1f}" height="10" fill="{BLUE}"/></svg>'
        rows.append([reason, n, _share(n, card["read"]), Html(bar)])
    examples = [
        [reason, example["place"], example["detail"]]
        for reason, first in sorted(card["dropped_examples"].items())
        for example in first
    ]
    shown = f"<details><summary>The first of each</summary>{_table(['reason', 'place', ''], examples)}</details>"
    return _table(["reason", "rows", "of those read", ""], rows) + (shown if examples else "")


def _splits(card: Card) -> str:
    rows = []
    for split, counted in card["statistics"].items():
        every = counted["digested"] == counted["records"]
        note = "" if every else f"groups and repeats in the first {counted['digested']:,}"
        rows.append(
            [split, counted["records"], _size(counted["text_bytes"]), counted["groups"], counted["largest_group"],
             counted["duplicates"], counted["contradictions"], note]
        )  # fmt: skip
    extra = {split: n for split, n in card["records"].items() if split not in card["statistics"]}
    rows += [[split, n, *[""] * 6] for split, n in extra.items()]
    shards = [[shard["name"], shard["records"], _hash(shard["sha256"])] for shard in card["shards"]]
    header = ["split", "records", "text", "groups", "largest group", "repeats", "with different answers", ""]
    return (
        "<p>A group is what must not be divided between splits: a question, a post, a page.</p>"
        + _table(header, rows)
        + f"<details><summary>Files</summary>{_table(['file', 'records', 'sha256'], shards)}</details>"
    )


def _lengths(card: Card) -> str:
    tokenizer = card["tokenizer"]
    split, counted = next(iter(card["statistics"].items()))
    panels: dict[str, list[str]] = {}
    for field in counted["tokens"]:
        panels.setdefault(field if field in ("context", "text") else "sides", []).append(field)
    drawn = "".join(_histogram(counted["tokens"], fields, card) for fields in panels.values())
    header = ["split", "field", "texts", "mean", "median", "90% up to", "longest", "empty"]
    rows = [
        [name, field, x["texts"], x["mean"], x["median"], x["p90"], x["max"], x["empty"]]
        for name, stats in card["statistics"].items()
        for field, x in stats["tokens"].items()
    ]
    truncation = [
        [text, *(_of(stats["truncation"][what], stats["tokenized"]) for stats in card["statistics"].values())]
        for what, text in TRUNCATION.items()
        if what in counted["truncation"]
    ]
    part = [
        f"{stats['tokenized']:,} of {name}" for name, stats in card["statistics"].items()
        if stats["tokenized"] < stats["records"]
    ]  # fmt: skip
    text = (
        f"In tokens of {tokenizer['name']} ({tokenizer['vocab_size']:,} tokens)."
        + (f" Counted in the first records only: {', '.join(part)}." if part else "")
        + f" The drawing shows {split}; areas are shares of texts, the scale is logarithmic."
    )
    limit = f"<h3>Longer than {card['max_tokens']:,} tokens</h3>"
    return (
        f"<p>{escape(text)}</p>"
        f'<div class="panels">{drawn}</div>'
        + _table(header, rows)
        + limit
        + _table(["", *card["statistics"]], truncation)
    )


def _histogram(tokens: dict[str, Any], fields: Sequence[str], card: Card, width: int = 390, height: int = 130) -> str:
    """Densities of the lengths of one or two fields over log2(tokens)."""
    used = [EDGES.index(int(edge)) for field in fields for edge in tokens[field]["histogram"]]
    if not used:
        return ""
    edges = EDGES[min(used) : max(used) + 2]
    low, high = floor(log2(edges[0])), ceil(log2(edges[-1]))
    x = [(log2(edge) - low) / (high - low) * width for edge in edges]
    density = {
        field: [
            tokens[field]["histogram"].get(str(start), 0) / tokens[field]["texts"] / log2(end / start)
            for start, end in pairwise(edges)
        ]
        for field in fields
    }
    top = max(max(values) for values in density.values())
    drawn = []
    for color, (_, values) in zip((BLUE, VERMILION), density.items(), strict=False):
        steps = " ".join(
            f"L{x[i]:.1f},{height * (1 - value / top):.1f} L{x[i + 1]:.1f},{height * (1 - value / top):.1f}"
            for i, value in enumerate(values)
        )
        path = f"M{x[0]:.1f},{height} {steps} L{x[-1]:.1f},{height}"
        drawn.append(f'<path d="{path}" fill="{color}" fill-opacity=".18" stroke="{color}" stroke-width="1.4"/>')
    every = 1 if high - low < 9 else 2
    for power in range(low, high + 1, every):
        at = (power - low) / (high - low) * width
        drawn.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{height}" y2="{height + 4}" stroke="#999"/>')
        drawn.append(f'<text x="{at:.1f}" y="{height + 16}" text-anchor="middle">{2**power:,}</text>')
    if low < log2(card["max_tokens"]) < high:
        at = (log2(card["max_tokens"]) - low) / (high - low) * width
        drawn.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{height}" stroke="#777" stroke-dasharray="3 3"/>')
    drawn.append(f'<line x1="0" x2="{width}" y1="{height}" y2="{height}" stroke="#999"/>')
    keys = " &ensp; ".join(
        f'<span class="key" style="color:{color}">{escape(field)}</span>'
        for color, field in zip((BLUE, VERMILION), fields, strict=False)
    )
    return (
        f'<figure><figcaption>{keys}</figcaption><svg width="{width + 40}" height="{height + 24}" '
        f'viewBox="-20 -4 {width + 40} {height + 24}" role="img" aria-label="lengths in tokens">'
        f"{''.join(drawn)}</svg></figure>"
    )


def _tables(card: Card) -> str:
    """What a kind has beyond lengths: labels, options, categories, and the prompts' meta."""
    names = list(card["statistics"])
    parts = []
    for table in sorted({table for stats in card["statistics"].values() for table in stats["tables"]}):
        columns = [stats["tables"].get(table, {}) for stats in card["statistics"].values()]
        values = sorted({value for column in columns for value in column}, key=lambda v: (not v.isdigit(), len(v), v))
        if values == [""]:
            continue
        totals = [sum(column.values()) for column in columns]
        rows = [
            [value or "(none)"]
            + [
                _of(column.get(value, 0), total)
                for column, total in zip(columns, totals, strict=True)
            ]
            for value in values[:50]
        ]
        more = f'<p class="note">and {len(values) - 50:,} more</p>' if len(values) > 50 else ""
        parts.append(_table([table, *names], rows) + more)
    meta = []
    for split, stats in card["statistics"].items():
        for name, values in stats["meta"].items():
            spread = f"{values['mean']:.3g} ({values['min']:.3g} to {values['max']:.3g})" if "mean" in values else ""
            types = ", ".join(f"{n:,} {kind}" for kind, n in values["types"].items())
            meta.append([split, name, types, spread])
    if meta:
        parts.append(_table(["split", "field", "values", "mean (range)"], meta))
    title = "What comes with the prompts" if meta else "Answers and parts"
    return f"<h2>{title}</h2>" * bool(parts) + "".join(parts)


def _overlap(card: Card) -> str:
    if not card["overlap"]:
        return ""
    names = list(card["overlap"])
    rows = [
        [what, *(_of(x[key], x["records"]) for x in card["overlap"].values())]
        for key, what in OVERLAP.items()
    ]
    return (
        "<h2>Held-out records that train has too</h2>"
        "<p>Exact matches after white space and case are normalized. Where a split overlaps, its groups that don’t are "
        "a split of their own, beside the official one.</p>" + _table(["in train", *names], rows)
    )


def _predictors(card: Card) -> str:
    found = card["predictors"]
    if not found or not any(found["accuracy"].values()):
        return ""
    learned = (
        f"Those that learn were trained on the first {found['trained_on']:,} records of train."
        if found["trained_on"]
        else "There is no train split: those that learn were trained on the other groups of the held-out records, in "
        "five folds."
    )
    text = f"What can be had without understanding, with 95% intervals over items; the line marks chance. {learned}"
    parts = [f"<h2>What trivial predictors make of it</h2><p>{escape(text)}</p>"]
    parts.append(_accuracies(found["accuracy"], "items"))
    if found["group_accuracy"]:
        parts.append("<h3>Groups whose items are all right</h3>" + _accuracies(found["group_accuracy"], "groups"))
    return "".join(parts)


def _accuracies(accuracy: dict[str, Any], what: str) -> str:
    splits = list(accuracy)
    rows = []
    for name, label in PREDICTORS.items():
        if any(name in values for values in accuracy.values()):
            cells = [_accuracy(values.get(name), values.get("chance")) for values in accuracy.values()]
            rows.append([label, *cells])
    sizes = [f"{split} ({next(iter(accuracy[split].values()))['n']:,} {what})" for split in splits]
    return _table(["", *sizes], rows)


def _accuracy(x: dict[str, Any] | None, chance: dict[str, Any] | None, width: int = 150) -> Html:
    if x is None:
        return Html("")
    if x is chance:
        return Html(f"{x['value']:.3f}")
    at = f"{chance['value'] * width:.1f}" if chance else ""
    line = f'<line x1="{at}" x2="{at}" y1="0" y2="10" stroke="#999"/>' if chance else ""
    return Html(
        f"{x['value']:.3f} [{x['lo']:.3f},&nbsp;{x['hi']:.3f}]"
        f'<svg width="{width}" height="10"><rect width="{width}" height="10" fill="#f4f4f4"/>{line}'
        f'<line x1="{x["lo"] * width:.1f}" x2="{x["hi"] * width:.1f}" y1="5" y2="5" stroke="{BLUE}" stroke-width="2"/>'
        f'<circle cx="{x["value"] * width:.1f}" cy="5" r="3" fill="{BLUE}"/></svg>'
    )


def _example(example: dict[str, Any]) -> str:
    rows: list[tuple[str, str]] = []
    for name, value in example.items():
        if name == "options":
            right = ("wrong option", "right option")
            rows += [(right[i == example["label"]], option) for i, option in enumerate(value)]
        elif name == "meta":
            rows += [(name, json.dumps(value, indent=1, ensure_ascii=False))] * bool(value)
        else:
            rows.append((name, str(value)))
    cells = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows if value)
    return f'<div class="example"><dl>{cells}</dl></div>'


def _of(n: int, total: int) -> str:
    return f"{n:,} ({_share(n, total)})"


def _share(n: int, total: int) -> str:
    return f"{n / total:.1%}" if total else "–"


def _hash(sha256: str) -> Html:
    return Html(f'<span class="hash">{escape(sha256)}</span>')


def _size(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Numbers stand right and get thousands separators; text is escaped."""
    if not rows:
        return ""

    def cell(value: Any, tag: str, right: bool) -> str:
        if isinstance(value, int | float):
            text = f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
        else:
            text = value if isinstance(value, Html) else escape(str(value))
        return f'<{tag} class="n">{text}</{tag}>' if right else f"<{tag}>{text}</{tag}>"

    right = [isinstance(value, int | float) for value in rows[0]]
    lines = [[cell(value, "th", r) for value, r in zip(header, right, strict=True)]]
    lines += [[cell(value, "td", r) for value, r in zip(row, right, strict=True)] for row in rows]
    head, *body = ("<tr>" + "".join(line) + "</tr>" for line in lines)
    return f'<table class="data"><thead>{head}</thead><tbody>{"".join(body)}</tbody></table>'
