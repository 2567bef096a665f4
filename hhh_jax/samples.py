"""Answers that a language model samples to problems, each right or wrong: what re-ranking is trained and tested on.

A job of a study (`hhh_jax.study`), after the run whose model samples; section 3 and appendix B.6 of the paper. Code is
right if it passes the problem's tests in a sandbox (`hhh_jax.evals.sandbox`), of a passage the last word has to be the
target. In the job's directory:

    samples-SPLIT.jsonl     a line a problem and seed: {item_id, group_id, seed, context, answers, correct}, where
                            `correct` has 1, 0, or null for what could not be judged
    pairs.jsonl             a right and a wrong answer to the same problem, of the train and validation splits
    rows.jsonl, about.json  the share of right answers; what was read and left out

A split that is written is not sampled again. All seeds of the model answer; pairs are drawn from all of their answers,
so that the seeds of a ranker train on the same pairs, while each is tested on the answers of its own seed.
"""

import dataclasses
import itertools
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hhh_jax import config, model, run
from hhh_jax.checkpoint import read_extra
from hhh_jax.data import problems as problems_lib
from hhh_jax.data.records import Prompt, content_sha
from hhh_jax.data.tokenizer import Tokenizer
from hhh_jax.evals import code
from hhh_jax.evals.pass_at_k import mean_over_problems
from hhh_jax.evals.sandbox import run_many
from hhh_jax.record import write_json_atomic
from hhh_jax.sample import Decoding, cannot_sample, sample
from hhh_jax.sample import Prompt as SamplePrompt
from hhh_jax.scoring import Scorer, load_scorer
from hhh_jax.storage import open_path
from hhh_jax.version import code_version

_LAST_WORD = re.compile(r"\s*([^\W_]+(?:['’-][^\W_]+)*)")  # as targets are: no punctuation around it


class Answers(NamedTuple):
    """What one seed answered to one problem: `correct` float64 [N], nan for an answer that could not be judged."""

    item_id: str
    group_id: str
    seed: int
    context: str
    answers: list[str]
    correct: np.ndarray


def job(
    directory: Path,
    *,
    after: Path | None,
    study: str,
    problems: str,
    test: str,
    written: str,
    limits: dict[str, int],
    n_train: int,
    n_test: int,
    temperature: float,
    max_new_tokens: int,
    pairs_per_problem: int,
    context: int,
    rows: int,
    run_untrusted_code: bool,
) -> None:
    """Samples answers, judges them and makes pairs of them.

    Args:
      directory, after, study: as in `hhh_jax.study.Job`; the model is that of `after`.
      problems: name of the problems (`hhh_jax.data.problems`).
      test: name of those to test on, where they are others; else empty.
      written: format of LAMBADA's passages to keep.
      limits: most problems of each split; a split that it does not name is left out.
      n_train, n_test: answers to each problem of train and validation, and of test.
      temperature: of sampling; 0 gives the most probable tokens.
      max_new_tokens: of an answer.
      pairs_per_problem: most pairs of a problem.
      context: tokens of the model's context; 0 takes the length of the rows that it was trained on.
      rows: answers that are sampled at once.
      run_untrusted_code: whether programs of the model may run, in a sandbox.

    Raises UserError for unknown problems, and where programs may not run or cannot be confined.
    """
    assert after is not None
    read = {
        split: problems_lib.load(test if test and split == "test" else problems, split, written)[:most]
        for split, most in limits.items()
    }
    kind = problems_lib.kind(next(iter(read.values()))[0])
    if kind == problems_lib.CODE:
        run_many((), allow_untrusted=run_untrusted_code)  # before anything is sampled
    scorer, tokenizer, seeds = load_scorer(str(after), (), "best", context)
    scorer = scorer._replace(rows=rows)
    decoding = Decoding(max_new_tokens=max_new_tokens, temperature=temperature, stop=STOP[kind])
    judged: dict[str, list[Answers]] = {}
    left_out = {}
    for split, records in read.items():
        path = directory / f"samples-{split}.jsonl"
        fitting = [record for record in records if not cannot_sample(scorer, _prompt(tokenizer, record))]
        left_out[split] = len(records) - len(fitting)
        if not path.exists():
            n = n_test if split == "test" else n_train
            answers = [answer(scorer.of_seed(g), tokenizer, fitting, decoding, n, seeds[g]) for g in range(len(seeds))]
            run.write_lines(path, _judged(fitting, seeds, answers, run_untrusted_code))
        judged[split] = read_answers(path)
    task = f"{kind}:{problems_lib.title(test or problems)}"
    about = {"task": task, "seeds": seeds, "left_out": left_out, "max_new_tokens": max_new_tokens, "context": context}
    shas = {split: content_sha(records) for split, records in read.items()}  # type: ignore[arg-type]
    pairs = []
    for split in (name for name in judged if name != "test"):
        pairs += make_pairs(judged[split], pairs_per_problem, split)
    run.write_lines(directory / "pairs.jsonl", pairs)
    write_json_atomic(directory / "about.json", about | {"data_sha256": shas, "n_pairs": len(pairs)})
    columns = model_columns(after) | {
        "study": study, "run": directory.name, "stage": "samples", "task": task, "curve": "separate",
        "data_sha": "".join(sha[:4] for sha in shas.values()),
    }  # fmt: skip
    run.write_lines(directory / "rows.jsonl", [columns | row for row in share_rows(judged, temperature)])


STOP = {problems_lib.CODE: code.STOP, problems_lib.LAST_WORD: ("\n",)}
"""Where answers end, if the model does not end them."""


def answer(
    scorer: Scorer, tokenizer: Tokenizer, problems: Sequence[Prompt], decoding: Decoding, n: int, seed: int
) -> list[list[str]]:
    """`n` answers of a model of one seed to every problem: the rest of the code, or a word with the space before it.

    An answer without a word is empty. The random numbers are those of `seed`.
    """
    prompts = [_prompt(tokenizer, problem) for problem in problems]
    said = sample(scorer, tokenizer, prompts, dataclasses.replace(decoding, n=n, seed=seed))
    return [
        [tidy(problems_lib.kind(problem), one.text) for one in samples]
        for problem, samples in zip(problems, said, strict=True)
    ]


def tidy(kind: str, text: str) -> str:
    """What counts of a sample: code up to where the function is over, or the first word."""
    if kind == problems_lib.CODE:
        return code.truncate(text).rstrip()
    word = _LAST_WORD.match(text)
    return f" {word[1]}" if word else ""


def judge(problems: Sequence[Prompt], answers: Sequence[Sequence[str]], run_untrusted_code: bool) -> list[np.ndarray]:
    """Which answers are right: float64 [N] a problem, nan where the harness failed. Equal programs run once."""
    kinds = {problems_lib.kind(problem) for problem in problems}
    if kinds == {problems_lib.CODE}:
        items = iter(code.score_completions(problems, answers, allow_untrusted=run_untrusted_code, stop=()))
        value = {"passed": 1.0, "failed": 0.0, "error": np.nan}
        return [np.array([value[next(items)["outcome"]] for _ in some]) for some in answers]
    return [
        np.array([float(one.strip() == problem.meta["target"]) for one in some])
        for problem, some in zip(problems, answers, strict=True)
    ]


def make_pairs(answers: Sequence[Answers], most: int, split: str) -> list[dict[str, str]]:
    """Rows of pairs: up to `most` different ones of a right and a wrong answer to a problem, over all seeds.

    Answers are drawn as often as they were given, so that wrong ones are those that the model tends to give.
    """
    rows = []
    for item_id, given in itertools.groupby(sorted(answers, key=lambda a: (a.item_id, a.seed)), lambda a: a.item_id):
        of_problem = list(given)
        both: dict[float, list[str]] = {0.0: [], 1.0: []}
        for one in of_problem:
            for text, right in zip(one.answers, one.correct, strict=True):
                if text and right in both:
                    both[right].append(text)
        rng = random.Random(f"pairs {item_id}")
        for texts in both.values():
            rng.shuffle(texts)
        first = of_problem[0]
        n = max(map(len, both.values()))
        drawn = zip(*(itertools.islice(itertools.cycle(texts), n) for texts in (both[1.0], both[0.0])), strict=False)
        for number, (good, bad) in enumerate(list(dict.fromkeys(drawn))[:most]):
            rows.append({
                "id": f"{item_id}#{number}", "group": first.group_id, "split": split, "context": first.context,
                "good": good, "bad": bad,
            })  # fmt: skip
    return rows


def share_rows(judged: dict[str, list[Answers]], temperature: float) -> list[dict[str, Any]]:
    """The share of right answers in each split and seed, a mean over problems."""
    rows = []
    for split, answers in judged.items():
        for seed in sorted({one.seed for one in answers}):
            own = [one for one in answers if one.seed == seed and not np.isnan(one.correct).all()]
            share_P = [float(np.nanmean(one.correct)) for one in own]
            groups_P = np.array([one.group_id for one in own])
            value, lo, hi, n_items = mean_over_problems(share_P, groups_P)[:4]
            found = {"value": value, "lo": lo, "hi": hi, "n_items": n_items}
            rows.append({"split": split, "seed": seed, "metric": "share_right", "ranker": f"T={temperature:g}"} | found)
    return rows


def read_answers(path: Path) -> list[Answers]:
    """The lines of a file samples-SPLIT.jsonl."""
    lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [Answers(**line | {"correct": np.array(line["correct"], np.float64)}) for line in lines]


def model_columns(directory: Path) -> dict[str, Any]:
    """What result rows say of a run's model."""
    c, tokenizer = run.load_config(open_path(directory))
    n = model.count_params(config.model_config(c, tokenizer.vocab_size))["n"]
    sha = read_extra(open_path(directory) / "checkpoints")["config_sha"]
    return {
        "ladder": c.ladder, "n_layer": c.model.n_layer, "N": n, "objective": c.objective.name, "init": c.labels.init,
        "config_sha": sha, "code_version": code_version(),
    }  # fmt: skip


def _prompt(tokenizer: Tokenizer, problem: Prompt) -> SamplePrompt:
    return SamplePrompt(problem.id, tokenizer.encode(problem.text))


def _judged(
    problems: Sequence[Prompt], seeds: Sequence[int], answers: Sequence[Sequence[list[str]]], run_untrusted_code: bool
) -> list[dict[str, Any]]:
    """Lines of samples-SPLIT.jsonl of ``answers[seed][problem]``."""
    flat = [(seed, *both) for seed, own in zip(seeds, answers, strict=True) for both in zip(problems, own, strict=True)]
    correct = judge([problem for _, problem, _ in flat], [texts for _, _, texts in flat], run_untrusted_code)
    return [
        {
            "item_id": problem.id, "group_id": problem.group, "seed": seed, "context": problem.text, "answers": texts,
            "correct": [None if np.isnan(right) else int(right) for right in right_N],
        }
        for (seed, problem, texts), right_N in zip(flat, correct, strict=True)
    ]  # fmt: skip
