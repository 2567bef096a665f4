"""Several finetuned preference models as one: the mean of their rewards or of their probabilities (appendix C.5).

The members were finetuned on the same pairs from different starts, as PMP on different sources, and judge the same test
items. Rewards of one model mean nothing but their differences within a pair, so these are what is averaged, or the
probabilities sigma(difference) that the good side is better.
"""

from pathlib import Path
from typing import Any

import numpy as np

from hhh_jax import evaluate, results
from hhh_jax.analyses.calibration import best_rows
from hhh_jax.errors import UserError

WAYS = ("rewards", "probabilities")


def job(directory: Path, *, after: Path | None, study: str, of: str, init: str, **members: Path) -> None:
    """Rows and items of the ensemble, as those of its members.

    Args:
      directory, after, study: as in `hhh_jax.study.Job`; `after` has no meaning.
      of: what is averaged, one of WAYS.
      init: the column's value, which tells the ensemble from its members.
      members: directories of the finished runs, by any names.

    Raises UserError if the members have not the same task, items and seeds.
    """
    from hhh_jax.run import write_lines

    measured = {member: best_rows(member) for member in members.values()}
    first = next(iter(measured.values()))
    found = [
        results.read_items(member, rows[0]["task"], rows[0]["split"], "best", "reward", margins=True)
        for member, rows in measured.items()
    ]
    for items, (member, rows) in zip(found, measured.items(), strict=True):
        if (rows[0]["task"], items[:2]) != (first[0]["task"], found[0][:2]):
            raise UserError(f"{member}: not the task, test items and seeds of the ensemble's other members")
    margin_SxI = combined(np.stack([items.correct for items in found]), of)
    where = {"task": first[0]["task"], "split": first[0]["split"]}
    scores = evaluate.PairScores(
        None, np.zeros((margin_SxI.shape[1], 2), np.int64), np.stack([margin_SxI, np.zeros_like(margin_SxI)], axis=-1)
    )
    columns = {row["seed"]: row | {"study": study, "run": directory.name, "init": init} for row in first}
    judged = evaluate.pair_rows(scores, found[0].seeds, "best", ("reward",))
    rows = [columns[row["seed"]] | row for row in judged]
    # The good side's score is the margin, and the bad one's is zero.
    records: list[dict[str, Any]] = [
        {
            **where, "selection": "best", "seed": seed, "item_id": name, "group_id": str(group), "option": option,
            "reward": float(margin) if option == "good" else 0.0, "label": int(option == "good"),
        }
        for seed, margin_I in zip(found[0].seeds, margin_SxI, strict=True)
        for name, group, margin in zip(found[0].item_ids, found[0].groups, margin_I, strict=True)
        for option in ("good", "bad")
    ]  # fmt: skip
    write_lines(directory / "items.jsonl", records)
    write_lines(directory / "rows.jsonl", rows)


def combined(margin_MxSxI: np.ndarray, of: str) -> np.ndarray:
    """The ensemble's margins ``[S, I]``: sigma of one is the ensemble's probability that the good side is better."""
    if of == "rewards":
        return margin_MxSxI.mean(0)
    wins_SxI, loses_SxI = (np.exp(-np.logaddexp(0, sign * margin_MxSxI)).mean(0) for sign in (-1, 1))
    return np.log(wins_SxI) - np.log(loses_SxI)
