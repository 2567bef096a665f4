"""The results table of a study and the item records behind it: all that figures, claims and reports read.

A study directory holds

    results.csv             measured values, one row a value, columns COLUMNS; "" = not applicable
    summary.csv             what `hhh_jax.summary` derives: means over seeds, gains and fits, with intervals
    runs/RUN/rows.jsonl     the rows of one run (a run = one config = a group of seeds trained together)
    runs/RUN/items.jsonl    the item records behind them; RUN is the column `run`

**items.jsonl** has one JSON object a line, of three forms (NUM = n_tokens, n_bytes, logp_sum):

    a side of a pair   task split selection seed item_id group_id NUM option("good"|"bad") reward label
    a document         task split selection seed item_id group_id NUM option("text")
    a baseline         task split selection item_id group_id ranker correct(0, 0.5 or 1)

Each (task, split, selection) has every item once a seed and side. An item is right when the good side's score
is above the bad one's; ties count half. The score is `reward` (of DPO the implicit one, which is the ranker
`implicit_reward`), or logp_sum / n_tokens (`mean_logp`).
`item_id` is the pair's or document's id, `group_id` its group: runs are paired by ids, and intervals resample
whole groups. `selection` follows from `metric`: "best" for accuracy and pm_loss (stopping step chosen on
validation), "final" for accuracy_final, pm_loss_final and loss (last step). What has no step to choose
(untuned, baselines) writes metric accuracy and selection "best".

**Rows that figures and claims use** (others are welcome, and ignored). All have split=test and
curve=separate, one row a seed; `seed` is the same number in the row and in the items. A cell that is blank
below is "".

    what         stage     objective   init      task        pairs_total      ranker     metric
    pretraining  pretrain  lm                    stdlib                                  loss
    untuned LM   pretrain  untuned               the five                     mean_logp  accuracy
    imitation    finetune  imitation   lm        the five    largest          mean_logp  accuracy, _final
    preference   finetune  preference  lm        the five    largest          reward     accuracy, _final
    DPO          finetune  dpo         lm        the five    largest          implicit_reward  the same
    PMP          finetune  preference  3 inits   the four    several, ~500    reward     accuracy
    symbols      finetune  preference  7 inits   symbols:T0  several, ~500    reward     accuracy
    PMP itself   pmp       preference  lm        the source  as trained       reward     accuracy
    baselines    baseline  baseline              the five                     its name   accuracy

  * The first four at every rung N; PMP and symbols at one N or more; baselines have no N and no seed.
  * "The four" are the ranked and the binary tasks; the fifth is the label twin (`summary.FORMAT_TWIN`) of one
    of them, whose item ids are that task's where the comparisons are the same.
  * The 3 inits are lm, pmp:SOURCE:ranked and pmp:SOURCE:binary; the 7 are lm, pmp:symbols:T0:ranked to
    pmp:symbols:T4:ranked, and pmp:symbols:Tb:binary.
  * `accuracy, _final`: a row of metric accuracy and one of accuracy_final.
  * `pairs_total` is the number of distinct training pairs that a run was given: the x axis of curves over
    pairs (`pairs_seen` counts repeats). The runs of a task with the largest `pairs_total` from init lm are
    its main ones, alike at every rung and for both objectives. Numbers at most 5% apart (tasks drop over-long
    pairs) count as one where tasks are averaged.
  * The paper's constant learning rate: rows as imitation and preference above, with intervention=paper_lr. A
    row with an `intervention` enters nothing but the comparison named after it.
  * After that, (task, objective, init, N, pairs_total, ranker, intervention, metric, seed) must name one row:
    arms that differ in anything else (lambda, mu, eoc, learning rate, ...) carry an `intervention`. The seeds
    of an arm may come from several runs.
  * What PMP needs: rows as PMP above, whose intervention says how the pre-training differed: shuffled, pm_alone,
    lm_alone, no_eoc (the finetuning too, also from init lm), equal_updates. More inits: pmp:SOURCE:human_model, and
    ensemble:rewards and ensemble:probabilities of models from several sources (`hhh_jax.analyses.ensemble`).
  * PMP tested on the pairs of another source: stage=pmp, the task it was tested on, init=pmp:SOURCE:FORM.
  * Calibration (`hhh_jax.analyses.calibration`): rows of a finetuned model, metric ece, and confidence and reliability
    of each bin `k`. Curves within one run: curve=within_run, `pairs_seen`, metrics as of the last step.
  * Every row above needs its item records, except calibration and curves.
"""

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hhh_jax.errors import UserError
from hhh_jax.storage import open_path

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "study", "run", "stage", "ladder", "n_layer", "N", "objective", "init", "lambda", "mu", "eoc",
    "intervention", "task", "split", "pairs_seen", "pairs_total", "curve", "k", "ranker", "seed",
    "pretrain_seed", "metric", "value", "n_items", "lo", "hi", "config_sha", "data_sha", "code_version",
)  # fmt: skip
INTEGERS = ("n_layer", "N", "pairs_seen", "pairs_total", "k", "seed", "pretrain_seed", "n_items")
FLOATS = ("lambda", "mu", "value", "lo", "hi")
SELECTION = {
    "accuracy": "best",
    "pm_loss": "best",
    "accuracy_final": "final",
    "pm_loss_final": "final",
    "loss": "final",
}


class Items(NamedTuple):
    """Right or wrong for every item and seed of one run: `correct` float64 [S, I] in {0, 0.5, 1}, or the margin or
    PM loss where that was asked for."""

    seeds: tuple[int, ...]
    item_ids: tuple[str, ...]
    groups: np.ndarray  # [I] str
    correct: np.ndarray


class Documents(NamedTuple):
    """Summed log-likelihood (nats, float64 [S, I]) and number of tokens (float64 [I]) of held-out
    documents."""

    seeds: tuple[int, ...]
    item_ids: tuple[str, ...]
    groups: np.ndarray  # [I] str
    logp: np.ndarray
    n_tokens: np.ndarray


def write_table(rows: Iterable[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Write rows (missing columns are ""), sorted by the columns left to right, replacing `path` atomically.

    The same rows in any order give the same bytes. Raises ValueError on a column that is not in COLUMNS.
    """
    cells = []
    for row in rows:
        if unknown := set(row) - set(COLUMNS):
            raise ValueError(f"unknown columns of a result row: {sorted(unknown)}")
        cells.append([_cell(row.get(column), column in FLOATS) for column in COLUMNS])
    cells.sort(key=lambda row: [_sort_key(cell) for cell in row])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *cells])
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text.getvalue(), encoding="utf-8")
    os.replace(partial, path)


def once(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """All rows but those of baselines that another run has measured on the same data: the first run's stand."""
    found: dict[Any, Mapping[str, Any]] = {}
    for number, row in enumerate(rows):
        same = tuple((name, value) for name, value in row.items() if name not in ("run", "code_version"))
        found.setdefault(same if row["stage"] == "baseline" else number, row)
    return list(found.values())


def read_table(path: str | os.PathLike) -> "pd.DataFrame":
    """A table as written by write_table: INTEGERS as Int64 (may be missing), FLOATS as float64, the rest
    text.

    Raises UserError if the file is not there or its columns differ.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a study writes it when its runs have finished") from None
    if tuple(table.columns) != COLUMNS:
        raise UserError(f"{path}: expected the columns {','.join(COLUMNS)}")
    for column in INTEGERS:
        table[column] = pd.to_numeric(table[column].replace("", None)).astype("Int64")
    for column in FLOATS:
        table[column] = pd.to_numeric(table[column].replace("", None)).astype("float64")
    return table


def read_with_summary(path: str | os.PathLike) -> "pd.DataFrame":
    """results.csv with the rows of the summary.csv beside it, if there is one. Raises UserError if the first is not."""
    import pandas as pd

    summary = Path(path).with_name("summary.csv")
    parts = [read_table(file) for file in ((path, summary) if summary.exists() else (path,))]
    return pd.concat(parts, ignore_index=True)


def task_of(source: str, run: str | os.PathLike[str]) -> str:
    """How the table names what a run reads: what another run of the same study made as ``run:NAME/FILE``, wherever the
    study is; all else as it is."""
    runs = open_path(os.fspath(run)).parent
    path = source.removeprefix(f"{runs}/")
    made = path != source and (runs / path.partition("/")[0] / "job.json").exists()
    return f"run:{path}" if made else source


def read_items(
    run_dir: str | os.PathLike, task: str, split: str, selection: str, ranker: str, margins: bool = False
) -> Items:
    """Which items each seed of a run got right, by `ranker`: reward, mean_logp, or a baseline's name.

    With `margins`, by how much instead: the good side's score less the bad one's. Items are sorted by id and seeds by
    number; a baseline, which has no seeds, has the one seed 0. Raises UserError if there are no such records, if an
    item lacks a side or a seed, or if a score is missing.
    """
    path = Path(run_dir) / "items.jsonl"
    what = f"{path}: task={task} split={split} selection={selection} ranker={ranker}"
    records = _records(path)
    if baseline := records.get((task, split, selection, ranker)):
        seeds, ids, groups, correct_SxI = _grid(what, baseline, "correct")
        return Items(seeds, ids, groups, correct_SxI)
    sides = [records.get((task, split, selection, option), []) for option in ("good", "bad")]
    if ranker not in ("reward", "implicit_reward", "mean_logp") or not all(sides):
        raise UserError(f"{what}: no such records")
    good, bad = (_grid(what, side, "logp_sum" if ranker == "mean_logp" else "reward") for side in sides)
    if good[:2] != bad[:2]:
        raise UserError(f"{what}: an item has one side only")
    good_SxI, bad_SxI = good[3], bad[3]
    if ranker == "mean_logp":
        good_SxI, bad_SxI = (
            logp_SxI / _grid(what, side, "n_tokens")[3]
            for logp_SxI, side in zip((good_SxI, bad_SxI), sides, strict=True)
        )
    if margins:
        return Items(*good[:3], good_SxI - bad_SxI)
    return Items(*good[:3], np.where(good_SxI == bad_SxI, 0.5, good_SxI > bad_SxI))


def read_documents(run_dir: str | os.PathLike, task: str, split: str, selection: str = "final") -> Documents:
    """The log-likelihood of held-out documents under each seed of a language-modeling run, as sorted by
    read_items.

    Raises UserError if there are no records with `option: "text"`.
    """
    path = Path(run_dir) / "items.jsonl"
    what = f"{path}: task={task} split={split} selection={selection}"
    texts = _records(path).get((task, split, selection, "text"))
    if not texts:
        raise UserError(f"{what}: no document records")
    n_tokens_I = _grid(what, texts, "n_tokens")[3][0]
    return Documents(*_grid(what, texts, "logp_sum"), n_tokens_I)


_Records = dict[tuple[str, str, str, str], list[dict[str, Any]]]


def _records(path: Path) -> _Records:
    """The records of items.jsonl by (task, split, selection, option or baseline)."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; the run that writes it has not finished") from None
    return _parse(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=2)
def _parse(path: Path, _mtime: int, _size: int) -> _Records:
    """Keyed by modification time and size too, so that a file that has changed is read again."""
    records: _Records = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                item = json.loads(line)
                side = item.get("option") or item["ranker"]
                key = (item["task"], item["split"], item["selection"], side)
            except (ValueError, KeyError, AttributeError) as error:
                raise UserError(f"{path}, line {number}: not an item record ({error!r})") from None
            records.setdefault(key, []).append(item)
    return records


def _grid(
    what: str, records: list[dict[str, Any]], field: str
) -> tuple[tuple[int, ...], tuple[str, ...], np.ndarray, np.ndarray]:
    """Seeds, item ids, groups [I] and the field [S, I]; UserError unless every seed has every item once."""
    try:
        keyed = {(item.get("seed") or 0, item["item_id"]): item for item in records}
        seeds = tuple(sorted({seed for seed, _ in keyed}))
        ids = tuple(sorted({item_id for _, item_id in keyed}))
        if not len(records) == len(keyed) == len(seeds) * len(ids):
            raise UserError(f"{what}: not every seed has every item once")
        groups = np.array([str(keyed[seeds[0], item_id]["group_id"]) for item_id in ids])
        values_SxI = np.array([[float(keyed[seed, i][field]) for i in ids] for seed in seeds])
    except (KeyError, TypeError) as error:
        raise UserError(f"{what}: an item has no {field} ({error!r})") from None
    if not np.isfinite(values_SxI).all():
        raise UserError(f"{what}: an item's {field} is not a finite number")
    return seeds, ids, groups, values_SxI


def _cell(value: Any, is_float: bool) -> str:
    """A value as text: floats in their shortest exact form, whole numbers without a point, missing as ""."""
    if value is None or type(value).__name__ == "NAType" or value == "" or value != value:
        return ""
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if is_float or isinstance(value, float | np.floating):
        return repr(float(value))
    return str(int(value)) if isinstance(value, int | np.integer) else str(value)


def _sort_key(cell: str) -> tuple[int, float, str]:
    try:
        return (1, float(cell), cell)
    except ValueError:
        return (2 if cell else 0, 0.0, cell)
