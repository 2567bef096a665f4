"""From measured rows and item records to what figures and claims show: means, gains and fits, with intervals.

`Study` finds the item records behind the rows of the table; `summarize` writes what it derives as rows of the
same columns with stage=summary and an empty seed:

    what                        objective                 init         task                  metric
    mean over seeds             as measured               as measured  as measured           as measured
    mean over the four tasks    preference                as measured  mean:all              accuracy, pm_loss
    PMP itself on held-out      pmp                       as measured  as measured           accuracy, pm_loss
      pairs, mean over seeds
    PM minus imitation          preference-imitation      lm           each, mean:ranked,    accuracy_gain
                                                                       mean:binary,
                                                                       accuracy_final_gain ranked-binary
    DPO minus imitation and     dpo-imitation,            lm           the same              the same
      PM minus DPO              preference-dpo
    against the best trivial    preference-trivial,       lm           each                  accuracy_gain
      baseline (`ranker`)       imitation-trivial,
                                dpo-trivial
    with PMP minus without      pmp-no_pmp                the PMP      each, mean:all        accuracy_gain
    binary minus ranked PMP     binary_pmp-ranked_pmp     pmp:SOURCE   each, mean:all        accuracy_gain
      (intervention: ranked PMP's, as equal_updates)
    the fit of loss against N   lm                                     the corpus            FIT_METRICS
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hhh_jax import results, stats
from hhh_jax.errors import UserError
from hhh_jax.results import Items

if TYPE_CHECKING:
    import pandas as pd

FORMAT_TWIN = {"word_order": "word_order_label"}  # a ranked task -> the same comparisons in label form
TASK_NAMES = {
    "word_order": "Word order",
    "line_order": "Line order",
    "order_label": "Intact or mixed?",
    "docstring_match": "Docstring match",
    "word_order_label": "Word order as labels",
    "symbols:T0": "Symbols",
    "summarize": "Learn to Summarize",
    "hellaswag": "HellaSwag",
    "ethics_utilitarianism": "Utilitarianism",
    "ethics_commonsense": "Commonsense morality",
    "ethics_deontology": "Deontology",
    "ethics_justice": "Justice",
    "ethics_virtue": "Virtue",
}
TRIVIAL = ("chance", "majority", "shorter", "longer", "bag_of_words")
DROPPED = 0.05  # the largest share of a task's training pairs that may be too long to be used
RANKER = {"preference": "reward", "imitation": "mean_logp", "dpo": "implicit_reward", "untuned": "mean_logp"}
FIT_METRICS = (
    "fit:exponent", "fit:coefficient", "fit:curvature", "fit:misfit",
    "offset:constant", "offset:coefficient", "offset:exponent", "offset:identified",
)  # fmt: skip
GAINS = (("preference", "imitation"), ("dpo", "imitation"), ("preference", "dpo"))
"""Objectives that are compared on the same test items."""
PM_GAIN, DPO_GAIN = "preference-imitation", "dpo-imitation"
PMP_GAIN, BINARY_GAIN = "pmp-no_pmp", "binary_pmp-ranked_pmp"


_ARM = ("stage", "task", "objective", "init", "N", "pairs_total", "intervention", "metric", "ranker")


def _arm_key(arm: Mapping[str, Any]) -> tuple:
    """What names an arm. Where nothing is finetuned, stage, init and pairs say nothing, nor N for a
    baseline."""
    blank = {"untuned": ("stage", "init", "pairs_total"), "baseline": ("stage", "init", "pairs_total", "N")}
    return tuple(None if column in blank.get(arm["objective"], ()) else arm[column] for column in _ARM)


def task_name(task: str) -> str:
    """A task's name for readers; a file or folder goes by its own."""
    own = Path(task).stem if "/" in task else task
    return TASK_NAMES.get(own, own)


def size_name(n: float) -> str:
    """12288 -> 12k, 2654208 -> 2.7M."""
    for unit, symbol in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if n >= unit:
            return f"{n / unit:.1f}{symbol}" if unit > 1e3 and n < 9.95 * unit else f"{n / unit:.0f}{symbol}"
    return f"{n:.0f}"


class Study:
    """A table of measured rows with the item records behind them.

    `table` is a DataFrame of results.COLUMNS, `runs_dir` the folder whose RUN/items.jsonl the column `run`
    names.
    """

    def __init__(self, table: "pd.DataFrame", runs_dir: str | Path):
        self.runs_dir = Path(runs_dir)
        test = (
            (table["split"] == "test") & table["curve"].isin(["separate", ""]) & (table["stage"] != "summary")
        )
        self.table = table[test]
        self._runs: dict[tuple, set[str]] = {}
        arms = self.table[[*_ARM, "run"]].astype(object)
        self._pairs: dict[tuple, set[int]] = {}  # the numbers of pairs of otherwise equal arms
        for *values, run in arms.where(arms.notna(), None).itertuples(index=False):
            arm = dict(zip(_ARM, values, strict=True))
            self._runs.setdefault(_arm_key(arm), set()).add(run)
            if arm["pairs_total"] is not None:
                self._pairs.setdefault(_arm_key(arm | {"pairs_total": None}), set()).add(arm["pairs_total"])
        self._items: dict[tuple, Items | None] = {}
        main = self.rows(stage="finetune", init="lm", intervention="").groupby("task")["pairs_total"].max()
        self._tasks = sorted(str(task) for task in main.index)
        self._main_pairs = {str(task): int(pairs) for task, pairs in main.dropna().items()}

    def rows(self, **where: Any) -> "pd.DataFrame":
        """The rows that have these values in these columns."""
        chosen = np.ones(len(self.table), bool)
        for column, value in where.items():
            chosen &= (self.table[column] == value).fillna(False).to_numpy(bool)
        return self.table[chosen]

    def tasks(self, kind: str | None = None) -> list[str]:
        """The finetuning tasks that enter means: `kind` is ranked, binary or None for both; no symbols, no
        twins."""
        from hhh_jax.data.datasets import kind as kind_of

        names = [t for t in self._tasks if not t.startswith("symbols:") and t not in FORMAT_TWIN.values()]
        return [t for t in names if kind in (None, kind_of(t))]

    def sizes(
        self, tasks: Sequence[str], objectives: Sequence[str] = ("preference", "imitation")
    ) -> list[int]:
        """The N at which every one of the tasks has its main run for every objective, ascending."""
        found = [
            set(
                self.rows(task=t, objective=o, init="lm", pairs_total=self.main_pairs(t), intervention="")[
                    "N"
                ]
            )
            for t in tasks
            for o in objectives
        ]
        return sorted(int(n) for n in set.intersection(*found)) if found else []

    def main_pairs(self, task: str) -> int | None:
        """The largest number of training pairs that a run of the task from the pretrained model was given."""
        return self._main_pairs.get(task)

    def items(
        self,
        task: str,
        objective: str,
        n: int | None,
        init: str = "lm",
        pairs: int | None = None,
        intervention: str = "",
        metric: str = "accuracy",
        ranker: str | None = None,
        stage: str = "finetune",
    ) -> Items | None:
        """Right or wrong on the test items (or their PM loss, by `metric`), the seeds of all its runs together; None if
        the table has no such arm.

        `pairs` is by default the task's main number; an arm that lacks at most DROPPED of so many has them
        too, because tasks drop pairs that are too long. Raises UserError if item records are missing or if a
        seed comes twice, that is, if rows that differ in something else are not told apart by their
        `intervention`.
        """
        arm: dict[str, Any] = {
            "stage": stage, "task": task, "objective": objective, "init": init, "N": n,
            "pairs_total": self.main_pairs(task) if pairs is None else pairs, "intervention": intervention,
            "metric": metric, "ranker": ranker or RANKER[objective],
        }  # fmt: skip
        if arm["pairs_total"] is not None:
            known = self._pairs.get(_arm_key(arm | {"pairs_total": None}), set())
            near = [p for p in known if (1 - DROPPED) * arm["pairs_total"] <= p <= arm["pairs_total"]]
            arm["pairs_total"] = max(near, default=arm["pairs_total"])
        key = _arm_key(arm)
        if key not in self._items:
            runs = sorted(self._runs.get(key, ()))
            selection = results.SELECTION[metric]
            loss = metric.startswith("pm_loss")
            parts = [
                results.read_items(self.runs_dir / run, task, "test", selection, str(arm["ranker"]), margins=loss)
                for run in runs
            ]
            if loss:  # eq. 3.1
                parts = [part._replace(correct=np.logaddexp(0.0, -part.correct)) for part in parts]
            what = ", ".join(f"{column}={value}" for column, value in arm.items())
            self._items[key] = _stack(runs, parts, what) if parts else None
        return self._items[key]

    def gain(self, task: str, n: int, of: str = "preference", over: str = "imitation", **arm: Any) -> Items | None:
        """One objective minus another, per seed and item; None if either is missing."""
        return difference(self.items(task, of, n, **arm), self.items(task, over, n, **arm))

    def best_trivial(self, task: str) -> tuple[str, Items] | None:
        """The trivial baseline that is right most often on the test items; None if none was measured.

        It is chosen on the test items themselves, which favors it: a model that beats it beats it fairly.
        """
        found = {ranker: self.items(task, "baseline", None, ranker=ranker) for ranker in TRIVIAL}
        scores = {ranker: items for ranker, items in found.items() if items is not None}
        if not scores:
            return None
        return max(scores.items(), key=lambda score: (score[1].correct.mean(), -TRIVIAL.index(score[0])))


def combine(items: Sequence[Items | None], coefficients: Sequence[float] | np.ndarray) -> Items | None:
    """The linear combination of arms, per seed and item (an arm of one seed is shared by all); None if one is
    missing.

    Raises UserError if the items differ, or the seeds do.
    """
    arms = [arm for arm in items if arm is not None]
    if len(arms) < len(items):
        return None
    seeds = max((arm.seeds for arm in arms), key=len)
    for arm in arms:
        _check_paired(arm, arms[0], "a comparison")
        if len(arm.seeds) > 1 and arm.seeds != seeds:
            raise UserError(f"a comparison needs the same seeds on both sides, not {arm.seeds} and {seeds}")
    total_SxI = sum(c * arm.correct for c, arm in zip(coefficients, arms, strict=True))
    return arms[0]._replace(seeds=seeds, correct=np.asarray(total_SxI))


def difference(a: Items | None, b: Items | None) -> Items | None:
    """a minus b, as `combine`."""
    return combine([a, b], [1, -1])


def common(a: Items | None, b: Items | None) -> tuple[Items | None, Items | None]:
    """Both arms on the items that both have. A trivial baseline also judges pairs that a model drops as too
    long."""
    if a is None or b is None or a.item_ids == b.item_ids:
        return a, b
    shared = sorted(set(a.item_ids) & set(b.item_ids))
    parts = []
    for arm in (a, b):
        at = {item_id: i for i, item_id in enumerate(arm.item_ids)}
        keep = [at[item_id] for item_id in shared]
        parts.append(Items(arm.seeds, tuple(shared), arm.groups[keep], arm.correct[:, keep]))
    return parts[0], parts[1]


def _stack(runs: Sequence[str], parts: Sequence[Items], what: str) -> Items:
    """The seeds of several runs together, ascending."""
    seeds = [seed for part in parts for seed in part.seeds]
    if len(set(seeds)) != len(seeds):
        raise UserError(
            f"the runs {', '.join(runs)} have the same seeds and {what}: tell them apart by `intervention`"
        )
    for run, part in zip(runs, parts, strict=True):
        _check_paired(part, parts[0], f"the runs {runs[0]} and {run}")
    correct_SxI = np.concatenate([part.correct for part in parts])[np.argsort(seeds)]
    return Items(tuple(sorted(seeds)), parts[0].item_ids, parts[0].groups, correct_SxI)


def _check_paired(a: Items, b: Items, what: str) -> None:
    if a.item_ids != b.item_ids:
        raise UserError(f"{what}: not the same test items ({len(a.item_ids)} and {len(b.item_ids)})")


def mean(items: Sequence[Items | None], coefficients: Sequence[float] | None = None) -> stats.Estimate | None:
    """The mean over tasks of the mean over seeds and items (or that linear combination); None if a task is
    missing."""
    if not items or any(i is None for i in items):
        return None
    samples = [stats.sample(i.correct, i.groups) for i in items if i is not None]
    return stats.estimate(
        samples, coefficients if coefficients is not None else [1 / len(samples)] * len(samples)
    )


def pmp_source(init: str) -> str | None:
    """SOURCE of pmp:SOURCE:ranked or pmp:SOURCE:binary (it may hold colons), else None."""
    return init.split(":", 1)[1].rsplit(":", 1)[0] if init.startswith("pmp:") else None


def summarize(study: Study) -> list[dict[str, Any]]:
    """The derived rows (see the module) of every comparison whose runs are there, to be written by
    write_table."""
    table = study.table
    common = {column: table[column].iloc[0] for column in ("study", "ladder")} if len(table) else {}
    layers = {int(n): int(layer) for n, layer in table[["N", "n_layer"]].dropna().drop_duplicates().values}
    derived = []
    for row, estimate in (*_means(study), *_gains(study), *_pmp(study), *_fits(study)):
        if estimate is not None:
            extent = {
                "value": estimate.value,
                "lo": estimate.lo,
                "hi": estimate.hi,
                "n_items": estimate.n_items,
            }
            shared = {**common, "stage": "summary", "split": "test", "n_layer": layers.get(row.get("N", 0))}
            derived.append(shared | row | extent)
    return derived


_Row = tuple[dict[str, Any], stats.Estimate | None]


def _means(study: Study) -> Iterator[_Row]:
    rows = study.table[study.table["objective"].isin(RANKER)]
    rows = rows[rows["metric"].isin(["accuracy", "accuracy_final", "pm_loss"])][[*_ARM]].drop_duplicates()
    rows = rows.astype(object)
    for values in rows.where(rows.notna(), None).itertuples(index=False):
        row = dict(zip(_ARM, values, strict=True))
        stage = row.pop("stage")
        arm = (row["task"], row["objective"], row["N"], row["init"], row["pairs_total"])
        items = study.items(*arm, row["intervention"], row["metric"], stage="pmp" if stage == "pmp" else "finetune")
        yield row | ({"objective": "pmp"} if stage == "pmp" else {}), mean([items])


def _gains(study: Study) -> Iterator[_Row]:
    tasks = study.tasks()
    twins = [twin for task, twin in FORMAT_TWIN.items() if task in tasks]
    kinds = {kind: study.tasks(kind) for kind in ("ranked", "binary")}
    for n in sorted({int(n) for n in study.rows(stage="finetune")["N"].dropna()}):
        for intervention in sorted(study.rows(stage="finetune")["intervention"].unique()):
            for metric, (of, over) in itertools.product(("accuracy", "accuracy_final"), GAINS):
                arm = {"intervention": intervention, "metric": metric}
                row = {"objective": f"{of}-{over}", "init": "lm", "N": n} | arm | {"metric": f"{metric}_gain"}
                gains = {task: study.gain(task, n, of, over, **arm) for task in (*tasks, *twins)}
                for task, gain in gains.items():
                    yield row | {"task": task}, mean([gain])
                for kind, members in kinds.items():
                    yield row | {"task": f"mean:{kind}"}, mean([gains[t] for t in members])
                if kinds["ranked"] and kinds["binary"]:
                    both = [gains[t] for t in (*kinds["ranked"], *kinds["binary"])]
                    yield (
                        row | {"task": "ranked-binary"},
                        mean(both, contrast(kinds["ranked"], kinds["binary"])),
                    )
        for task in (*tasks, *twins):
            if best := study.best_trivial(task):
                for objective in ("preference", "imitation", "dpo"):
                    row = {
                        "objective": f"{objective}-trivial",
                        "init": "lm",
                        "N": n,
                        "task": task,
                        "ranker": best[0],
                    }
                    above = difference(*common(study.items(task, objective, n), best[1]))
                    yield row | {"metric": "accuracy_gain"}, mean([above])


def contrast(plus: Sequence[Any], minus: Sequence[Any]) -> list[float]:
    """Coefficients of (mean of the first group) - (mean of the second)."""
    return [1 / len(plus)] * len(plus) + [-1 / len(minus)] * len(minus)


def _pmp(study: Study) -> Iterator[_Row]:
    tasks = study.tasks()
    for n, pairs in pmp_points(study):
        rows = study.rows(stage="finetune", objective="preference", N=n, task=tasks[0])
        hows = {"", *rows[rows["init"].str.startswith("pmp:")]["intervention"]}
        rows = rows[rows["intervention"].isin(hows)]
        arms = sorted(set(rows[["init", "intervention"]].itertuples(index=False, name=None)))
        found = {(init, how): [study.items(t, "preference", n, init, pairs, how) for t in tasks] for init, how in arms}
        for init, how in arms:
            row = {"N": n, "pairs_total": pairs, "objective": "preference", "init": init, "intervention": how}
            yield row | {"task": "mean:all", "metric": "accuracy"}, mean(found[init, how])
            losses = [study.items(t, "preference", n, init, pairs, how, "pm_loss") for t in tasks]
            yield row | {"task": "mean:all", "metric": "pm_loss"}, mean(losses)
            source, base = pmp_source(init), ("lm", how if ("lm", how) in found else "")
            if source and base in found:
                yield from _differences(tasks, row | {"objective": PMP_GAIN}, found[init, how], found[base])
            binary = f"pmp:{source}:binary", ""
            if source and init == f"pmp:{source}:ranked" and binary in found:
                row |= {"objective": BINARY_GAIN, "init": f"pmp:{source}"}
                yield from _differences(tasks, row, found[binary], found[init, how])


def _differences(
    tasks: Sequence[str], row: dict[str, Any], a: Sequence[Items | None], b: Sequence[Items | None]
) -> Iterator[_Row]:
    """Of each task, and their mean."""
    gains = [difference(x, y) for x, y in zip(a, b, strict=True)]
    for task, gain in zip((*tasks, "mean:all"), (*([gain] for gain in gains), gains), strict=True):
        yield row | {"metric": "accuracy_gain", "task": task}, mean(gain)


def pmp_points(study: Study) -> list[tuple[int, int]]:
    """(N, number of pairs) at which the tasks (no symbols) were finetuned from PMP, ascending; numbers that
    differ by the few pairs that a task dropped are one."""
    rows = study.rows(stage="finetune", objective="preference", intervention="")
    rows = rows[rows["init"].str.startswith("pmp:") & rows["task"].isin(study.tasks())]
    points: list[tuple[int, int]] = []
    for n, pairs in sorted({(int(n), int(p)) for n, p in rows[["N", "pairs_total"]].values}, reverse=True):
        if not points or points[-1][0] != n or pairs < (1 - DROPPED) * points[-1][1]:
            points.append((n, pairs))
    return points[::-1]


def _fits(study: Study) -> Iterator[_Row]:
    for corpus in sorted(study.rows(stage="pretrain", objective="lm", metric="loss")["task"].unique()):
        sizes, losses = losses_by_size(study, corpus)
        row = {"objective": "lm", "task": corpus}
        for n, loss in zip(sizes, losses, strict=True):
            yield row | {"N": n, "metric": "loss"}, stats.estimate([loss])
        if len(sizes) >= 3:
            fit = stats.power_law(losses, sizes)
            exact = fit.exponent._replace(lo=np.nan, hi=np.nan)
            values = (
                *(fit.exponent, fit.coefficient, fit.curvature, exact._replace(value=fit.misfit)),
                *(*fit.offset, exact._replace(value=float(fit.identified))),
            )
            for metric, estimate in zip(FIT_METRICS, values, strict=True):
                yield row | {"metric": metric}, estimate


def ladder_corpus(table: "pd.DataFrame") -> str | None:
    """What the ladder was pretrained on: the corpus with the most model sizes; None if there is none."""
    rows = table[(table["stage"] == "pretrain") & (table["objective"] == "lm") & (table["metric"] == "loss")]
    sizes = rows.groupby("task")["N"].nunique().sort_index()
    return str(sizes.idxmax()) if len(sizes) else None


def losses_by_size(study: Study, corpus: str) -> tuple[list[int], list[stats.Sample]]:
    """Sizes N, ascending, and the held-out loss (nats per token) of each as a sample over documents and
    seeds."""
    rows = study.rows(stage="pretrain", objective="lm", metric="loss", task=corpus, intervention="")
    sizes, losses = sorted(int(n) for n in rows["N"].dropna().unique()), []
    for n in sizes:
        runs = sorted(rows[rows["N"] == n]["run"].unique())
        parts = [results.read_documents(study.runs_dir / run, corpus, "test") for run in runs]
        logp = _stack(runs, [Items(*part[:4]) for part in parts], f"N={n}")
        losses.append(stats.sample(-logp.correct, logp.groups, parts[0].n_tokens))
    return sizes, losses
