"""Best of n by a preference model, against a gold reward that is known (after Gao et al. 2022, arXiv 2210.10760).

The gold reward is planted: the symbols of `hhh_jax.data.symbols` have a true ranking, and the gold of one is the share
of the others that it beats, one half on average. A preference model that was trained on few or noisy comparisons of
symbols is the proxy. What it *promises* of a symbol is on the same scale: the mean over the others of the probability,
by its rewards, that this one is better. Of n candidates, each symbol as likely as any, the proxy's best is taken; that
is log n - (n - 1) / n nats away from taking any.

Rows of stage ``best_of_n``, with n as ``k``, pooled over seeds and pools of candidates (``seed`` is blank):

    gold, promise, oracle   of the proxy's best of n, and the gold of the best by gold
    promise-gold            how far the promise is above what came of it
    gold_rise               gold at the largest n less gold at a quarter of it: below 0, more optimization hurts
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hhh_jax import results, stats
from hhh_jax import run as run_lib
from hhh_jax.data import symbols
from hhh_jax.data.tokenizer import Tokenizer
from hhh_jax.errors import UserError
from hhh_jax.evals.pass_at_k import acc_at_k
from hhh_jax.scoring import Scorer, check_finite, load_scorer, score_branches
from hhh_jax.stats import Estimate

QUARTER = 4


def job(directory: Path, *, after: Path | None, study: str, variant: str, most: int, pools: int, seed: int) -> None:
    """As a run of a study: rows.jsonl of the proxy `after`.

    Args:
      variant: whose ranking is the gold one, as T0.
      most: the largest n; pools have twice as many candidates.
      pools: of candidates.
      seed: of the candidates, and of the ranking.
    """
    assert after is not None
    scorer, tokenizer, _ = load_scorer(str(after))
    rewards_GxS = symbol_rewards(scorer, tokenizer)
    pool_PxM = np.random.default_rng(seed).integers(len(symbols.SYMBOLS), size=(pools, 2 * most))
    rows = best_of_n_rows(rewards_GxS, gold(variant, seed), pool_PxM, most)
    first = json.loads((after / "rows.jsonl").read_text(encoding="utf-8").splitlines()[0])
    kept = {name: value for name, value in first.items() if name in results.COLUMNS and name not in _OWN}
    about = kept | {"study": study, "run": directory.name, "stage": "best_of_n", "split": "test", "curve": "separate"}
    about |= {"seed": ""}
    run_lib.write_lines(directory / "rows.jsonl", [about | row for row in rows])
    run_lib.write_lines(directory / "items.jsonl", [])


_OWN = ("metric", "value", "lo", "hi", "n_items", "k", "ranker", "pairs_seen", "pretrain_seed")
"""Columns of the proxy's first row that say nothing of ours."""


def gold(variant: str, seed: int) -> np.ndarray:
    """The share of the other symbols that each of `symbols.SYMBOLS` beats in the true ranking, float64 ``[S]``."""
    place = {symbol: i for i, symbol in enumerate(symbols.ranking(variant, seed))}
    worst = len(place) - 1
    return np.array([(worst - place[symbol]) / worst for symbol in symbols.SYMBOLS])


def promised(rewards_S: np.ndarray) -> np.ndarray:
    """The mean probability, by eq. 3.1's model, that each is better than another of them, float64 ``[S]``."""
    margins_SxS = rewards_S[:, None].astype(np.float64) - rewards_S
    better_SxS = np.exp(-np.logaddexp(0.0, -margins_SxS))
    return (better_SxS.sum(1) - 0.5) / (len(rewards_S) - 1)  # less the one against itself


def symbol_rewards(scorer: Scorer, tokenizer: Tokenizer) -> np.ndarray:
    """The reward of every symbol's sample, float32 ``[G, S]``. Raises UserError for a model without rewards."""
    if "score_head" not in scorer.params:
        raise UserError("best of n takes a preference model; this run has no score head")
    texts = tokenizer.encode_batch([symbols.sample(symbol) for symbol in symbols.SYMBOLS])
    items = [(np.zeros(0, np.int32), [np.append(tokens, tokenizer.eoc_id)]) for tokens in texts]
    rewards_GxS = score_branches(scorer, items, ("reward",)).reward_GxN
    assert rewards_GxS is not None
    check_finite("reward", rewards_GxS, symbols.SYMBOLS)
    return rewards_GxS


def best_of_n_rows(
    rewards_GxS: np.ndarray, gold_S: np.ndarray, pool_PxM: np.ndarray, most: int
) -> Sequence[dict[str, Any]]:
    """Rows for n = 1, 2, 4, ... `most`; `pool_PxM` are numbers of symbols.

    Each pool gives the mean over all its subsets of n (`acc_at_k`).
    """
    ns = [2**i for i in range(most.bit_length()) if 2**i <= most]

    def of(scores_GxS: np.ndarray, values_GxS: np.ndarray, n: int) -> np.ndarray:
        return np.array([
            [acc_at_k(scores_S[pool_M], values_S[pool_M], n) for pool_M in pool_PxM]
            for scores_S, values_S in zip(scores_GxS, values_GxS, strict=True)
        ])  # fmt: skip

    gold_GxS = np.broadcast_to(gold_S, rewards_GxS.shape)
    promise_GxS = np.stack([promised(rewards_S) for rewards_S in rewards_GxS])
    found = {
        "gold": {n: of(rewards_GxS, gold_GxS, n) for n in ns},
        "promise": {n: of(rewards_GxS, promise_GxS, n) for n in ns},
        "oracle": {n: of(gold_GxS[:1], gold_GxS[:1], n) for n in ns},
    }
    rows = [
        _row(name, n, stats.estimate([stats.sample(values_GxP)]))
        for name, by_n in found.items() for n, values_GxP in by_n.items()
    ]  # fmt: skip
    last, before = ns[-1], max(ns[-1] // QUARTER, 1)
    rows.append(_row("promise-gold", last, stats.paired_difference(found["promise"][last], found["gold"][last])))
    rows.append(_row("gold_rise", last, stats.paired_difference(found["gold"][last], found["gold"][before])))
    return rows


def _row(metric: str, n: int, estimate: Estimate) -> dict[str, Any]:
    found = {name: getattr(estimate, name) for name in ("value", "lo", "hi", "n_items")}
    if metric in ("gold", "promise", "oracle"):  # shares, which few seeds widen beyond
        found |= {"lo": max(0.0, estimate.lo), "hi": min(1.0, estimate.hi)}
    return {"metric": metric, "k": n, **found}
