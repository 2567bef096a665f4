"""One function a figure of the paper: the results table in, a matplotlib Figure out.

The table is results.csv and summary.csv together (`hhh_jax.results`, `hhh_jax.summary`). A function raises
`style.NoRows` when the rows that it draws are missing; `draw_all` skips such a figure and says why.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hhh_jax import results
from hhh_jax.errors import UserError
from hhh_jax.figures import objectives, paper, pmp, prompting, scaling, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Drawing(NamedTuple):
    """How to draw a figure; `caption` says how to read it and what it corresponds to in the paper, `numbers` which of
    the paper's figures it is, and `stage` the rows without which a study has nothing to do with it ("": any study)."""

    draw: Callable[["pd.DataFrame"], "Figure"]
    title: str
    caption: str
    numbers: tuple[int, ...] = ()
    stage: str = ""


FIGURES = {
    "figure3": Drawing(
        objectives.gain,
        "What preference modeling gains over imitation",
        "As the paper's figure 3. Accuracy of preference modeling minus accuracy of imitation on the same "
        "test items: thin lines are tasks, thick ones the means over ranked and over binary tasks with 95% "
        "intervals over seeds and items. Above zero, preference modeling is better. The paper: far above "
        "zero on ranked tasks, about zero on binary ones, at every size.",
        numbers=(3,),
    ),
    "figures14_15": Drawing(
        objectives.tasks,
        "Accuracy on every task",
        "As the paper's figures 14 (ranked) and 15 (binary). Large marks are means over seeds with 95% "
        "intervals over seeds and items, faint dots single seeds, thin gray lines the trivial baselines. A "
        "mark that is not above the highest gray line shows nothing that counting words or bytes would not.",
        numbers=(14, 15),
    ),
    "task_or_format": Drawing(
        objectives.task_or_format,
        "Is it the task or the format?",
        "No figure of the paper. The same comparisons, once as ranked pairs and once as a question with the "
        "answers 1 and 2, which gives imitation the contrast for free. If the gain follows the task the two "
        "lines on the right agree; if it follows the format they part.",
    ),
    "scaling": Drawing(
        scaling.scaling,
        "Pretraining loss against model size",
        "The premise of every plot against size. Held-out loss of the language models that all else starts "
        "from; points are means over seeds with 95% intervals over documents and seeds, the line is a "
        "least-squares power law in log-log. A fit with an irreducible loss is drawn only where these sizes "
        "can tell it from none.",
    ),
    "figure4": Drawing(
        pmp.pmp_pairs,
        "Preference model pre-training over the number of pairs",
        "As the paper's figure 4. Left: mean accuracy over the tasks after finetuning on so many pairs, "
        "from the language model and from the (binary) preference-pretrained one. Right: their paired "
        "difference. The paper finds a gain at few pairs for models above about 1B parameters and none "
        "below 200M.",
        numbers=(4,),
    ),
    "figure5": Drawing(
        pmp.pmp_tasks,
        "Preference model pre-training task by task",
        "As the paper's figures 5 and 32, at the sizes at hand. Difference in accuracy that (binary) PMP "
        "makes after finetuning on the fewest and on the most pairs, with 95% intervals; right of zero it "
        "helps.",
        numbers=(5, 32),
    ),
    "figure18": Drawing(
        pmp.binary_ranked,
        "Binary against ranked pre-training",
        "As the paper's figure 18. Accuracy after binary PMP minus after ranked PMP on the same source; "
        "thin lines are tasks. Above zero, binary is better. Binarizing doubles the pairs, so binary PMP "
        "also has twice the updates.",
        numbers=(18,),
    ),
    "figure33": Drawing(
        pmp.symbols,
        "Symbols: how much does a scrambled ranking still teach?",
        "As the paper's figure 33. Accuracy on held-out pairs of the true ranking T0 after finetuning on so "
        "many pairs of it, from models that were preference-pretrained on T0, on rankings scrambled ever "
        "more (T1 to T4), on the binarized form (Tb), or not at all. The paper: the less scrambled the "
        "better, binary between moderate and strong.",
        numbers=(33,),
    ),
    "figure2": Drawing(
        prompting.hhh,
        "Prompting and distillation on HHH comparisons",
        "As the paper's figures 2 (left) and 20 (left). Share of comparisons in which the better answer has the "
        "higher empirical mutual information with its question, for the bare model and every intervention. The "
        "paper: prompting helps large models, distillation as much, finetuning on the prompt less.",
        numbers=(2, 20),
        stage="evaluate",
    ),
    "figure6": Drawing(
        prompting.hhh_and_truthfulqa,
        "HHH by category, and TruthfulQA",
        "As the paper's figure 6: prompted models on each category of HHH, and TruthfulQA MC1 if it was run.",
        numbers=(6,),
        stage="evaluate",
    ),
    "figure7": Drawing(
        prompting.lambada,
        "LAMBADA and what an intervention costs on it",
        "As the paper's figure 7. Left: accuracy of the last word. Right: accuracy of the bare model less that with "
        "the intervention, so above zero is a tax. (In the paper's figure the sign is the opposite of its label.)",
        numbers=(7,),
        stage="evaluate",
    ),
    "figure8": Drawing(
        prompting.toxicity,
        "Toxicity",
        "As the paper's figures 8 and 22. Mean toxicity of samples after toxic and nontoxic prompts.",
        numbers=(8, 22),
        stage="evaluate",
    ),
    "figure10": Drawing(
        prompting.code,
        "Code, with and without the prompt",
        "As the paper's figures 2 (right) and 10. pass@1 and pass@10 by the unbiased estimator.",
        numbers=(2, 10),
        stage="evaluate",
    ),
    "figure21": Drawing(
        prompting.truthfulqa,
        "TruthfulQA by every metric",
        "As the paper's figure 21. The official metric is the summed log-probability.",
        numbers=(21,),
        stage="evaluate",
    ),
    "figure23": Drawing(
        prompting.toxicity_extremes,
        "Toxicity: expected maximum and probability",
        "As the paper's figure 23, over the samples of each prompt.",
        numbers=(23,),
        stage="evaluate",
    ),
    "figure25": Drawing(
        prompting.lambada_formats,
        "LAMBADA in four formats",
        "As the paper's figure 25: the format of a task can matter more than the size of the model.",
        numbers=(25,),
        stage="evaluate",
    ),
    "figure26": Drawing(
        prompting.counting,
        "Counting: told or trained",
        "As the paper's figure 26. Left: the loss of each number after those before it falls like 1/n, as Laplace's "
        "rule has it. Right: the loss of 64 to 71 after 1 to 63 in context, and after so many steps of training on "
        "1 to 63.",
        numbers=(26,),
        stage="evaluate",
    ),
}


class Drawn(NamedTuple):
    """The PNG of every figure drawn (a PDF lies beside it), and why the others were not."""

    paths: dict[str, Path]
    skipped: dict[str, str]


def draw_number(number: int, results_path: str | None, out_dir: Path, with_paper: bool) -> list[Path]:
    """Draws one of the paper's figures from a results table, from the paper's own numbers, or from both.

    Returns the PNG of each; a PDF lies beside it. Raises UserError if there is no such figure, or nothing to draw it
    from.
    """
    import matplotlib

    ours = [(name, drawing) for name, drawing in FIGURES.items() if number in drawing.numbers]
    figures: dict[str, Figure] = {}
    with matplotlib.rc_context(style.RC):
        if results_path:
            if not ours:
                known = ", ".join(map(str, sorted({n for drawing in FIGURES.values() for n in drawing.numbers})))
                raise UserError(f"no figure {number} can be drawn from a results table; there are {known}")
            table = results.read_with_summary(results_path)
            for name, drawing in ours:
                try:
                    figures[name] = drawing.draw(table)
                except style.NoRows as missing:
                    raise UserError(f"{results_path}: figure {number} needs what it lacks: {missing}") from None
        if with_paper:
            figures[f"paper{number}"] = paper.draw(number)
        if not figures:
            raise UserError("give --results, --paper, or both: there is nothing to draw from")
        out_dir.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            style.save(figure, out_dir / f"{name}.png")
    return [out_dir / f"{name}.png" for name in figures]


def draw_all(table: "pd.DataFrame", out_dir: str | Path) -> Drawn:
    """Draw every figure whose rows the table has into `out_dir`, as NAME.png and NAME.pdf; the same table
    gives the same bytes. Figures of stages that the table has no rows of are passed over without a word."""
    import matplotlib

    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    drawn = Drawn({}, {})
    stages = {"", *table["stage"].unique()}
    for name, drawing in FIGURES.items():
        if drawing.stage not in stages:
            continue
        with matplotlib.rc_context(style.RC):
            try:
                figure = drawing.draw(table)
            except style.NoRows as missing:
                drawn.skipped[name] = str(missing)
                continue
            drawn.paths[name] = out_dir / f"{name}.png"
            style.save(figure, drawn.paths[name])
    return drawn
