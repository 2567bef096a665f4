"""Every figure of the paper on one page: ours, from each study that has its rows, beside the paper's own.

    python -m hhh_jax.gallery --studies=runs --out=runs/gallery
    bash launch/local.sh gallery          # runs the embedded studies first

A study is a folder of STUDIES with a results.csv and a summary.csv. Writes OUT/gallery.html, which needs no other file,
and below OUT a PNG for each picture. The same tables give the same bytes.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from hhh_jax import cli
from hhh_jax.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

ORDER = ("embedded", "objectives", "prompting", "reranking", "pmp", "pmp_needs", "discriminator", "beyond")
"""Studies in the order of the page; others follow by name. `launch/local.sh gallery` runs them in the same order."""

DPI = 120

STYLE = """
main { max-width: 92rem }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1.2rem; align-items: start }
.pair img { max-width: 100% } pre { background: #f5f5f5; padding: .4rem .6rem; overflow-x: auto; font-size: 12px }
figure { margin: 0 0 1rem 0 } nav a { margin-right: .5em }
"""


class Picture(NamedTuple):
    """A figure drawn from a study's table: ``path`` is its PNG, ``name`` its key in `hhh_jax.figures.FIGURES`."""

    study: str
    name: str
    path: Path


def studies_of(folder: Path) -> dict[str, "pd.DataFrame"]:
    """The tables of all studies of a folder, in the order of the page. Raises UserError if there is none."""
    from hhh_jax import results

    names = sorted(path.parent.name for path in folder.glob("*/results.csv") if path.with_name("summary.csv").exists())
    if not names:
        raise UserError(f"{folder}: no folder in it has a results.csv and a summary.csv; run a study first")
    names.sort(key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    return {name: results.read_with_summary(folder / name / "results.csv") for name in names}


def draw_ours(tables: Mapping[str, "pd.DataFrame"], out: Path) -> tuple[list[Picture], dict[str, dict[str, str]]]:
    """Draws what every table has the rows of, as OUT/STUDY/NAME.png; and why others were not: name, study, reason."""
    from hhh_jax import figures

    pictures: list[Picture] = []
    missing: dict[str, dict[str, str]] = {}
    for study, table in tables.items():
        for name, figure in figures.each_of(table):
            if isinstance(figure, str):
                missing.setdefault(name, {})[study] = figure
            else:
                pictures.append(Picture(study, name, out / study / f"{name}.png"))
                _save(figure, pictures[-1].path)
    return pictures, missing


def draw_papers(out: Path) -> dict[int, Path]:
    """Draws all of the paper's own figures, as OUT/paper/figureN.png."""
    import matplotlib

    from hhh_jax.figures import paper, style

    paths = {int(number): out / "paper" / f"figure{number}.png" for number in sorted(paper.panels()["figure"].unique())}
    for number, path in paths.items():
        with matplotlib.rc_context(style.RC):
            _save(paper.draw(number), path)
    return paths


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})


def render(
    folder: Path,
    studies: Sequence[str],
    pictures: Sequence[Picture],
    missing: Mapping[str, Mapping[str, str]],
    papers: Mapping[int, Path],
) -> str:
    """The page: a section for each of the paper's figures, then those of ours that the paper has none of."""
    from hhh_jax import figures

    css = Path(__file__).with_name("report.css").read_text(encoding="utf-8") + STYLE
    numbers = {number for drawing in figures.FIGURES.values() for number in drawing.numbers} | papers.keys()
    links = [f'<a href="#figure{number}">{number}</a>' for number in sorted(numbers)]
    drawn = {number for picture in pictures for number in figures.FIGURES[picture.name].numbers}
    body = [
        "<h1>Figures of the paper</h1>",
        f"<p>Left, figures of Askell et al. (2021, arXiv 2112.00861) drawn from the studies below: {len(drawn)} of "
        f"{len(papers)}. Right, the paper’s own curves, redrawn from their numbers. Under each the command that draws "
        "it. The models here are tiny: what they show at chance is at chance.</p>",
        f"<nav>{' '.join(links)}</nav>",
        _studies(folder, studies),
    ]
    for number in sorted(numbers):
        ours = [p for p in pictures if number in figures.FIGURES[p.name].numbers]
        names = [name for name, drawing in figures.FIGURES.items() if number in drawing.numbers]
        why = {study: reason for name in names for study, reason in missing.get(name, {}).items()}
        left = [_ours(folder, picture, f"--figure={number}", number in papers) for picture in ours]
        left = left or [_not_drawn(bool(names), why)]
        right = _papers(number, papers[number]) if number in papers else "<p>The paper plots none.</p>"
        body.append(
            f'<section id="figure{number}"><h2>Figure {number}</h2>'
            f'<div class="pair"><div>{"".join(left)}</div><div>{right}</div></div></section>'
        )
    beyond = [p for p in pictures if not figures.FIGURES[p.name].numbers]
    if beyond:
        body.append("<section><h2>Figures of ours alone</h2>")
        body += [_ours(folder, picture, f"--figure={picture.name}", False) for picture in beyond]
        body.append("</section>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Figures of the paper</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{css}</style></head>\n<body><main>\n" + "\n".join(body) + "\n</main></body></html>\n"
    )


def _studies(folder: Path, studies: Sequence[str]) -> str:
    """What was run, by which command, and how its claims came out."""
    from hhh_jax import ledger

    records = ledger.read(folder) if any((folder / name / "claims.json").exists() for name in studies) else {}
    rows = []
    for name in studies:
        path = folder / name / "study.json"
        facts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        minutes = f"{sum(facts.get('seconds', {}).values()) / 60:.1f} min" if facts else ""
        config = Path("configs") / "studies" / f"{name}.py"
        command = f"python -m hhh_jax.study --config={config} --workdir={folder / name}" if config.exists() else ""
        tally = ledger.tally(records[name]) if name in records else ""
        cells = [name, minutes, tally, command]
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    head = "<tr><th>study</th><th>time of all processes</th><th>claims</th><th>command</th></tr>"
    return f'<table class="data wide"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'


def _ours(folder: Path, picture: Picture, which: str, with_paper: bool) -> str:
    from hhh_jax import figures

    drawing = figures.FIGURES[picture.name]
    table = folder / picture.study / "results.csv"
    command = f"python -m hhh_jax.figures {which} --results={table} --out=DIR{' --paper' * with_paper}"
    title = drawing.title if drawing.title.endswith("?") else f"{drawing.title}."
    caption = f"<b>{escape(title)}</b> Study {escape(picture.study)}. {escape(drawing.caption)}"
    return _figure(picture.path, drawing.title, caption, command)


def _papers(number: int, path: Path) -> str:
    command = f"python -m hhh_jax.figures --figure={number} --out=DIR --paper"
    return _figure(path, f"the paper's figure {number}", "The paper’s own.", command)


def _figure(path: Path, alt: str, caption: str, command: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return (
        f'<figure><img alt="{escape(alt)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption><pre>{escape(command)}</pre></figure>"
    )


def _not_drawn(known: bool, why: Mapping[str, str]) -> str:
    if not known:
        return "<p>This project has no figure for it.</p>"
    reasons = "; ".join(f"{study}: {reason}" for study, reason in why.items()) or "no study here has its rows"
    return f"<p>Not drawn ({escape(reasons)}).</p>"


def write(folder: Path, out: Path) -> Path:
    """Draws everything and writes the page; returns its path. Raises UserError if there are no studies."""
    from hhh_jax.record import write_text_atomic

    tables = studies_of(folder)
    out.mkdir(parents=True, exist_ok=True)
    pictures, missing = draw_ours(tables, out)
    page = render(folder, list(tables), pictures, missing, draw_papers(out))
    write_text_atomic(out / "gallery.html", page)
    return out / "gallery.html"


def main(_: Sequence[str]) -> None:
    print(f"gallery: {write(Path(_STUDIES.value), Path(_OUT.value))}")


if __name__ == "__main__":
    _STUDIES = flags.DEFINE_string("studies", "runs", "Folder of studies' folders.")
    _OUT = flags.DEFINE_string("out", "runs/gallery", "Folder of the page and its pictures.")
    cli.start(main)
