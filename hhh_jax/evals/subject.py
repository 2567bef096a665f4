"""What is evaluated: a model of several seeds, the form in which it is asked, and the prompt in front of it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from hhh_jax import prompts, stats
from hhh_jax.data.records import MultipleChoice
from hhh_jax.data.tokenizer import Tokenizer
from hhh_jax.evals.templates import Templates
from hhh_jax.prompts import DialoguePrompt
from hhh_jax.sample import Prompt as SamplePrompt
from hhh_jax.scoring import (
    NO_PREFIX,
    CannotScoreError,
    ItemScores,
    Prefix,
    Scorer,
    compute_prefix,
    encode_whole,
)

FITTING = 0.8
"""Share of the items that have to fit in the model's context behind a prompt."""


class Subject(NamedTuple):
    """A model under evaluation.

    Attributes:
      scorer: the model of all seeds; its ``length`` is the model's context.
      tokenizer: the model's.
      seeds: their numbers.
      form: ``bare`` or ``dialogue``, the template that items are put into.
      prompts: what may stand in front, the first that leaves room for every item; none is no prompt.
      templates: texts around items.
    """

    scorer: Scorer
    tokenizer: Tokenizer
    seeds: tuple[int, ...]
    form: str
    prompts: tuple[DialoguePrompt, ...]
    templates: Templates


class Outcome(NamedTuple):
    """What an evaluation found.

    Attributes:
      rows: result rows, without what the run says of all of them.
      items: item records.
      notes: sentences for the record: which prompt was taken, what was cut.
    """

    rows: list[dict[str, Any]]
    items: list[dict[str, Any]]
    notes: list[str]


def read_prompt(
    subject: Subject, texts: dict[str, list[str]], more_tokens: int = 0, before: str = ""
) -> tuple[Prefix, str]:
    """The first prompt that leaves room for the items, computed once, and a sentence on it.

    A few long items don't decide: a prompt is taken if `FITTING` of the items fit, and the others are errors then.

    Args:
      texts: of each item by id, the texts of which the longest has to fit behind the prompt.
      more_tokens: how many will be sampled after them.
      before: a text that stands between prompt and items, such as solved examples.

    Raises UserError if no prompt leaves room.
    """
    encode = subject.tokenizer.encode
    if not subject.prompts:
        tokens = encode(before)
        return (compute_prefix(subject.scorer, tokens), "no prompt") if len(tokens) else (NO_PREFIX, "no prompt")
    flat = [(name, text.encode(errors="replace").decode()) for name, some in texts.items() for text in some]
    sizes = [len(tokens) for tokens in subject.tokenizer.encode_batch([text for _, text in flat])]
    needed: dict[str, int] = {}
    for (name, _), size in zip(flat, sizes, strict=True):
        needed[name] = max(needed.get(name, 0), size + more_tokens + 1)  # the end-of-context token that a reward needs
    names = sorted(needed, key=needed.__getitem__)
    deciding = names[math.ceil(FITTING * len(names)) - 1]
    prefixes = [encode(prompt.text + before) for prompt in subject.prompts]
    chosen, note = prompts.choose(
        subject.prompts, [len(tokens) for tokens in prefixes], deciding, needed[deciding], subject.scorer.length
    )
    prefix = prefixes[subject.prompts.index(chosen)]
    left_out = sum(size + len(prefix) > subject.scorer.length for size in needed.values())
    more = f"; {left_out} of {len(needed)} items exceed the context with it and are errors" if left_out else ""
    return compute_prefix(subject.scorer, prefix), note + more


def askable(
    subject: Subject, texts: dict[str, str], prefix: Prefix, more_tokens: int = 0, answers: dict[str, str] | None = None
) -> tuple[list[SamplePrompt], dict[str, np.ndarray], dict[str, str]]:
    """The texts, by id, as prompts to sample after, the tokens of the answers to them, and why others can't be asked.

    Args:
      more_tokens: how many will be sampled, with the prefix and the text in the model's context.
      answers: of each text, what has to fit instead; none if not given.
    """
    ready, expected, errors = [], {}, {}
    for name, text in texts.items():
        try:
            tokens = encode_whole(subject.tokenizer, text, "the text")
            answer = encode_whole(subject.tokenizer, (answers or {}).get(name, ""), "the answer")
            needed = len(prefix.tokens) + len(tokens) + len(answer) + more_tokens
            if needed > subject.scorer.length:
                raise CannotScoreError(f"{needed} tokens exceed the model's context of {subject.scorer.length}")
            if not needed - more_tokens:
                raise CannotScoreError("the text is empty, and nothing stands before it")
        except CannotScoreError as error:
            errors[name] = str(error)
        else:
            ready.append(SamplePrompt(name, tokens))
            expected[name] = answer
    return ready, expected, errors


def one_seed(scorer: Scorer, prefix: Prefix, number: int) -> tuple[Scorer, Prefix]:
    """The same for one of the seeds, by its place among them."""

    def only(tree: Any) -> Any:
        return jax.tree.map(lambda x: x[number : number + 1], tree)

    return scorer._replace(params=only(scorer.params), n_seeds=1), prefix._replace(cache=only(prefix.cache))


def ask(item: MultipleChoice, template: str) -> MultipleChoice:
    """The item with its context put into the template's ``{question}``."""
    return dataclasses.replace(item, context=template.format(question=item.context))


def accuracy_rows(
    task: str, scores: Sequence[ItemScores], seeds: Sequence[int], metrics: dict[str, str]
) -> list[dict[str, Any]]:
    """Accuracy of choosing by each metric under each seed, with Wilson's interval over items; errors don't count.

    Args:
      metrics: name of the ranker in the table, and of `ItemScores.by`'s metric.
    """
    scored = [score for score in scores if not score.error]
    if not scored:
        return []
    rows = []
    for ranker, metric in metrics.items():
        for g, seed in enumerate(seeds):
            right = float(sum(score.right(metric)[g] for score in scored))
            rows.append(value_row(task, ranker, "accuracy", right / len(scored), *stats.wilson(right, len(scored)),
                                  n_items=len(scored), seed=seed))  # fmt: skip
    return rows


def value_row(
    task: str,
    ranker: str,
    metric: str,
    value: float,
    lo: float | None,
    hi: float | None,
    *,
    n_items: int,
    seed: int | str,
) -> dict[str, Any]:
    """One row of the results table, as far as an evaluation knows it; no interval is None."""
    interval = {} if lo is None else {"lo": lo, "hi": hi}
    about = {"task": task, "split": "test", "curve": "separate", "ranker": ranker, "metric": metric, "seed": seed}
    return about | {"value": value, "n_items": n_items} | interval


def error_rows(task: str, n_errors: int) -> list[dict[str, Any]]:
    """A row that counts the items that could not be scored; none if all could."""
    if not n_errors:
        return []
    return [value_row(task, "", "errors", n_errors, n_errors, n_errors, n_items=n_errors, seed="")]
