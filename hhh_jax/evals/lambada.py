"""LAMBADA: is the last word of a passage what the model says next?

The word counts as said if every token of it is the most probable one (greedy decoding). Four formats (figure 25):

    lambada                   the nicely formatted text, without examples (figure 7)
    lambada_original          the original text (lower case, spaced punctuation)
    lambada_original_20shot   the original text after 20 solved passages
    lambada_blank_20shot      the nicely formatted text as fill-in-the-blank after 20 solved ones

Examples are passages of the same file, drawn by a fixed seed, which are not asked then. A byte-level token begins with
the space before its word, so the space belongs to the word and the passage ends without it.
"""

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hhh_jax import stats
from hhh_jax.data.records import Prompt
from hhh_jax.errors import UserError
from hhh_jax.evals.subject import Outcome, Subject, askable, error_rows, one_seed, read_prompt, value_row
from hhh_jax.sample import Decoding, sample

SHOTS = 20


class Format(NamedTuple):
    """One of the four: which text, how many examples, and the templates of an example and of what is asked."""

    text: str
    shots: int
    shot: str
    question: str


FORMATS = {
    "lambada": Format("nice", 0, "", ""),
    "lambada_original": Format("original", 0, "", ""),
    "lambada_original_20shot": Format("original", SHOTS, "shot", ""),
    "lambada_blank_20shot": Format("nice", SHOTS, "blank", "blank_question"),
}
"""An empty template takes the one of the subject's form."""


def evaluate(subject: Subject, task: str, records: Sequence[Prompt]) -> Outcome:
    """Accuracy of the last word under every seed. Raises UserError if `records` lack the format's text."""
    how = FORMATS[task]
    passages = [record for record in records if record.meta.get("format") == how.text]
    if len(passages) <= how.shots:
        raise UserError(f"{task}: needs more than {how.shots} passages of the {how.text} text, found {len(passages)}")
    texts = subject.templates["lambada"]
    rng = random.Random(f"{task} examples")
    examples = rng.sample(sorted(passages, key=lambda record: record.id), how.shots)
    shots = "".join(texts[how.shot].format(passage=e.text, word=f" {e.meta['target']}") for e in examples)
    taken = {example.id for example in examples}
    asked = [record for record in passages if record.id not in taken]
    question = texts[how.question or subject.form]
    contexts = {record.id: question.format(passage=record.text) for record in asked}
    targets = {record.id: f" {record.meta['target']}" for record in asked}
    wholes = {name: [text + targets[name]] for name, text in contexts.items()}
    prefix, note = read_prompt(subject, wholes, before=f"\n\n{shots}" if shots else "")
    ready, words, errors = askable(subject, contexts, prefix, answers=targets)
    limits = list(map(len, words.values()))
    rows, items = [], []
    for g, seed in enumerate(subject.seeds):
        scorer, own_prefix = one_seed(subject.scorer, prefix, g)
        decoding = Decoding(max_new_tokens=max(limits, default=1), temperature=0)
        said = sample(scorer, subject.tokenizer, ready, decoding, own_prefix, limits)
        found = {prompt.id: samples[0] for prompt, samples in zip(ready, said, strict=True)}
        right = {name: np.array_equal(one.tokens, words[name]) for name, one in found.items()}
        for name in contexts:
            about = {"task": task, "split": "test", "seed": seed, "item_id": name, "group_id": name}
            outcome: dict[str, Any] = {"error": errors[name]} if name in errors else {}
            if name in found:
                outcome = {"said": found[name].text, "correct": int(right[name])}
            items.append(about | outcome)
        if right:
            correct, n = sum(right.values()), len(right)
            interval = stats.wilson(correct, n)
            rows.append(value_row(task, "greedy", "accuracy", correct / n, *interval, n_items=n, seed=seed))
    shown = [f"{how.shots} of {len(passages)} passages are examples"] if how.shots else []
    return Outcome(rows + error_rows(task, len(errors)), items, [note, *shown])
