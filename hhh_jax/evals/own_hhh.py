"""Our own comparisons in the form of the HHH evaluation (paper section 2.2): 48, of twelve in each category.

`own_hhh.jsonl` was written for this project, for studies that must need no download; the published comparisons are
`hhh_jax.data.sources.hhh_alignment`. A row has `{id, category, context, good, bad}`; the context is a question, or a
dialogue that starts and ends in the human's words. The better answer is about as often the longer one as the shorter,
and a bag of words that is trained on all items but one does little better than chance on that one
(tests/test_own_hhh.py). For evaluation only.
"""

import json
from importlib import resources

from hhh_jax.data.records import MultipleChoice

CATEGORIES = ("helpful", "honest", "harmless", "other")


def load() -> list[MultipleChoice]:
    """The comparisons in the file's order; options are (good, bad), each after a space, and the label is 0."""
    lines = resources.files("hhh_jax.evals").joinpath("own_hhh.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        MultipleChoice(row["id"], row["context"], (f" {row['good']}", f" {row['bad']}"), 0, row["id"], row["category"])
        for row in map(json.loads, lines)
    ]
