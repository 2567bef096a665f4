"""Re-ranking: of k sampled answers, is the one right that a model likes best (figures 11 to 13, appendix B.6)?

A job of a study (`hhh_jax.study`). It reads the test answers of a `hhh_jax.samples` job, of which each seed's are
scored by the same seed of two rankers: an imitation model's mean log-probability of an answer with its end-of-context
token, and a preference model's reward there. Its rows have stage `rerank`, with `acc_at_k` of each k, a seed and over
all:

    objective    ranker       what is taken of k answers
    imitation    mean_logp    the one of highest mean log-probability
    preference   reward       the one of highest reward
    oracle       oracle       a right one if there is any
    unranked     unranked     any: the share of right answers, at every k
    greedy       greedy       no sample: the imitation model's most probable answer (T = 0), without k

and, as `acc_at_k_gain`, what preference gains over imitation and what both gain over unranked answers. Every estimate
is over seeds and problems. items.jsonl has the value of every problem and seed as the record of a baseline, its ranker
named with k, as ``reward@8``.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hhh_jax import run, stats
from hhh_jax.errors import UserError
from hhh_jax.evals.pass_at_k import acc_at_k
from hhh_jax.results import Items
from hhh_jax.samples import Answers, model_columns, read_answers
from hhh_jax.scoring import check_finite, load_scorer, score_branches

PAPER_KS = (2, 8, 32, 96)
"""Of figures 12 and 13."""

MAIN_K = 8
"""At which claims compare."""

RANKERS = {"mean_logp": "imitation", "reward": "preference", "oracle": "oracle", "unranked": "unranked"}
"""Ranker -> objective, in the table."""

GAINS = (("reward", "mean_logp"), ("reward", "unranked"), ("mean_logp", "unranked"))
"""Differences of rankers that are paired by problem and seed."""


def job(
    directory: Path,
    *,
    after: Path | None,
    study: str,
    samples: Path,
    greedy: Path,
    imitation: Path,
    preference: Path,
) -> None:
    """Scores the test answers and measures acc@k.

    Args:
      directory, after, study: as in `hhh_jax.study.Job`; `after` says nothing more.
      samples: directory of the answers, which N of every problem and seed.
      greedy: directory of the imitation model's answers at T = 0.
      imitation, preference: directories of the rankers.

    Raises UserError if the rankers lack a seed of the answers, or nothing can be ranked.
    """
    answers = {(one.item_id, one.seed): one for one in read_answers(samples / "samples-test.jsonl")}
    about = json.loads((samples / "about.json").read_text(encoding="utf-8"))
    seeds, context = tuple(about["seeds"]), about["context"]
    scores = {
        "mean_logp": score(answers, str(imitation), "logp", seeds, context),
        "reward": score(answers, str(preference), "reward", seeds, context),
    }
    usable = [name for name in sorted({name for name, _ in answers}) if _is_ranked(answers, scores, name, seeds)]
    if len(usable) < 2:
        raise UserError(f"{samples}: {len(usable)} problems have answers that could be judged and scored")
    values = curves(answers, scores, usable, seeds)
    zero = read_answers(greedy / "samples-test.jsonl")
    groups = {one.item_id: one.group_id for one in (*answers.values(), *zero)}

    def items(names: Sequence[str], values_SxP: np.ndarray) -> Items:
        return Items(seeds, tuple(names), np.array([groups[name] for name in names]), values_SxP)

    found = {key: items(usable, values_SxP) for key, values_SxP in values.items()}
    at_zero = {(one.item_id, one.seed): one.correct[0] for one in zero}
    asked = [name for name in usable if not any(np.isnan(at_zero.get((name, seed), np.nan)) for seed in seeds)]
    if len(asked) > 1:
        found["greedy", 0] = items(asked, np.array([[at_zero[name, seed] for name in asked] for seed in seeds]))
    columns = model_columns(imitation) | {
        "study": study, "run": directory.name, "stage": "rerank", "task": about["task"], "split": "test",
        "curve": "separate",
    }  # fmt: skip
    run.write_lines(directory / "items.jsonl", list(records(about["task"], found)))
    run.write_lines(directory / "rows.jsonl", [columns | row for row in rows(found)])


def score(
    answers: Mapping[tuple[str, int], Answers], checkpoint: str, want: str, seeds: Sequence[int], context: int
) -> dict[tuple[str, int], np.ndarray]:
    """The score [N] of every answer by (problem, seed): its reward or mean log-probability under that seed's model.

    An answer that the context does not hold has the score nan. Equal answers are scored once.
    """
    scorer, tokenizer, _ = load_scorer(checkpoint, seeds, "best", context)
    end = np.array([tokenizer.eoc_id], np.int32)
    found = {}
    for g, seed in enumerate(seeds):
        own = [one for (_, of_seed), one in answers.items() if of_seed == seed]
        asked, items = [], []
        for one in own:
            tokens = tokenizer.encode(one.context)
            texts = list(dict.fromkeys(one.answers))
            options = [np.concatenate([option, end]) for option in tokenizer.encode_batch(texts)]
            kept = [i for i, option in enumerate(options) if len(tokens) + len(option) <= scorer.length]
            asked.append([texts[i] for i in kept])
            items.append((tokens, [options[i] for i in kept]))
        scored = score_branches(scorer.of_seed(g), [item for item in items if item[1]], (want,))
        value_1xN = scored.reward_GxN if want == "reward" else scored.logp_GxN
        assert value_1xN is not None
        value_1xN = value_1xN if want == "reward" else value_1xN / scored.n_tokens_N
        check_finite(want, value_1xN, [one.item_id for one, texts in zip(own, asked, strict=True) for _ in texts])
        values = iter(value_1xN[0])
        for one, texts in zip(own, asked, strict=True):
            of_text = {text: float(next(values)) for text in texts}
            found[one.item_id, seed] = np.array([of_text.get(text, np.nan) for text in one.answers])
    return found


def _is_ranked(
    answers: Mapping[tuple[str, int], Answers],
    scores: Mapping[str, Mapping[tuple[str, int], np.ndarray]],
    name: str,
    seeds: Sequence[int],
) -> bool:
    """Whether all answers to a problem were judged and scored."""
    keys = [(name, seed) for seed in seeds]
    whole = [answers[key].correct for key in keys if key in answers]
    whole += [by_key[key] for by_key in scores.values() for key in keys if key in by_key]
    return len(whole) == len(seeds) * (1 + len(scores)) and not any(np.isnan(values).any() for values in whole)


def curves(
    answers: Mapping[tuple[str, int], Answers],
    scores: Mapping[str, Mapping[tuple[str, int], np.ndarray]],
    names: Sequence[str],
    seeds: Sequence[int],
) -> dict[tuple[str, int], np.ndarray]:
    """acc@k of every seed and problem, float64 [S, P], by (ranker, k); every k of `ks`.

    Of equal scores any may be first, so that all-equal scores give the unranked average.
    """
    n = min(len(answers[name, seed].correct) for name in names for seed in seeds)
    found = {}
    for k in ks(n):
        for ranker in RANKERS:
            found[ranker, k] = np.array([
                [acc_at_k(_by(ranker, one, scores), one.correct, k) for one in (answers[name, seed] for name in names)]
                for seed in seeds
            ])  # fmt: skip
    return found


def _by(ranker: str, one: Answers, scores: Mapping[str, Mapping[tuple[str, int], np.ndarray]]) -> np.ndarray:
    """What a ranker goes by, [N]."""
    if ranker == "oracle":
        return one.correct
    return np.zeros_like(one.correct) if ranker == "unranked" else scores[ranker][one.item_id, one.seed]


def ks(n: int) -> list[int]:
    """Powers of two, the paper's k, and n itself, as far as n samples go."""
    return sorted({k for k in (1, 2, 4, 8, 16, 32, 64, *PAPER_KS, n) if k <= n})


def rows(found: Mapping[tuple[str, int], Items]) -> Iterator[dict[str, Any]]:
    """Result rows, a seed and over all seeds, of the values of every (ranker, k)."""
    for (ranker, k), items in found.items():
        about = {"objective": RANKERS.get(ranker, ranker), "ranker": ranker, "k": k or "", "metric": "acc_at_k"}
        for g, seed in enumerate(items.seeds):
            yield about | {"seed": seed} | _extent(items.correct[g : g + 1], items.groups)
        yield about | {"seed": ""} | _extent(items.correct, items.groups)
    for a, b in GAINS:
        for k in (k for ranker, k in found if ranker == a):
            about = {"objective": f"{RANKERS[a]}-{RANKERS[b]}", "ranker": a, "k": k, "metric": "acc_at_k_gain"}
            difference_SxP = found[a, k].correct - found[b, k].correct
            yield about | {"seed": ""} | _extent(difference_SxP, found[a, k].groups, least=-1.0)


def _extent(values_SxP: np.ndarray, groups_P: np.ndarray, least: float = 0.0) -> dict[str, Any]:
    """Value, interval and number of problems; where all values agree, a share has Wilson's interval."""
    value, lo, hi, n_items, _, n_groups = stats.estimate([stats.sample(values_SxP, groups_P)])
    if least == 0.0 and np.ptp(values_SxP) == 0:
        lo, hi = stats.wilson(value * n_groups, n_groups)
    return {"value": value, "lo": max(least, lo), "hi": min(1.0, hi), "n_items": n_items}


def records(task: str, found: Mapping[tuple[str, int], Items]) -> Iterator[dict[str, Any]]:
    """Item records, as `hhh_jax.results` describes those of baselines."""
    for (ranker, k), items in found.items():
        about = {"task": task, "split": "test", "selection": "best", "ranker": f"{ranker}@{k}" if k else ranker}
        for seed, correct_P in zip(items.seeds, items.correct, strict=True):
            for name, group, correct in zip(items.item_ids, items.groups, correct_P, strict=True):
                yield about | {"seed": seed, "item_id": name, "group_id": str(group), "correct": float(correct)}
