"""A study directory with known effects: what `hhh_jax.study` leaves behind, without any training."""

import atexit
import functools
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from hhh_jax import results, stats

SIZES = (12288, 98304, 331776, 786432)
RANKED, BINARY, TWIN = ("word_order", "line_order"), ("docstring_match", "order_label"), "word_order_label"
TASKS, SEEDS = (*RANKED, *BINARY, TWIN), 3
SCRAMBLES = ("T0", "T1", "T2", "T3", "T4", "Tb")
PAIRS, PMP_SIZE, SYMBOLS_SIZE = (64, 128, 256, 500), 331776, 98304
Truth = Callable[[str, str, int, str, int], float]  # task, objective, N, init, pairs -> true accuracy


def paper_like(task: str, objective: str, n: int, init: str, pairs: int) -> float:
    """The paper's claims hold: accuracy of a model that behaves as they say, with visible effects."""
    decades = np.log10(n / SIZES[0])
    if task == "symbols:T0":
        reach = {"lm": 0.05, "T0": 0.42, "T1": 0.36, "T2": 0.28, "T3": 0.16, "T4": 0.02, "Tb": 0.22}
        start = reach[init if init == "lm" else init.split(":")[2]]
        return 0.5 + start + (0.46 - start) * 0.6 * np.log2(pairs / 32) / 5
    scarce = np.log2(max(pairs, 16) / 16) / 5
    base = {"word_order": 0.56, "line_order": 0.54, "docstring_match": 0.60, "order_label": 0.66, TWIN: 0.55}[
        task
    ]
    il = base + 0.025 * decades * scarce
    if objective == "untuned":
        return base - 0.03 + 0.01 * decades
    if objective == "imitation":
        return il
    gain = {
        "word_order": 0.12,
        "line_order": 0.08,
        "docstring_match": -0.005,
        "order_label": 0.005,
        TWIN: 0.03,
    }[task]
    pmp = {"lm": 0.0, "pmp:stdlib:ranked": 0.02, "pmp:stdlib:binary": 0.05}[init]
    return il + (gain + 0.02 * decades * (task in RANKED)) * scarce + pmp * (1.4 - scarce)


def null(task: str, objective: str, n: int, init: str, pairs: int) -> float:
    """Nothing is learned: every model guesses."""
    return 0.5


@functools.cache
def simulated(
    truth: Truth = paper_like, n_items: int = 160, objectives: tuple[str, ...] = ("imitation", "preference")
) -> Path:
    """The directory of a study that all tests share; they must not write into it."""
    folder = Path(tempfile.mkdtemp(prefix="simulated_study_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    simulate(folder, truth, n_items, objectives=objectives)
    return folder


def simulate(
    study_dir: Path,
    truth: Truth = paper_like,
    n_items: int = 300,
    seed: int = 0,
    seed_sd: float = 0.04,
    objectives: tuple[str, ...] = ("imitation", "preference"),
) -> None:
    """Write runs/*/{rows,items}.jsonl, results.csv and study.json.

    Items come in groups of five, `seed_sd` is the spread of the three seeds in probits; the language model's
    loss is 20 * N ** -0.09. The trivial baselines guess.
    """
    simulation = _Simulation(study_dir, truth, n_items, np.random.default_rng(seed), seed_sd)
    for n in SIZES:
        simulation.pretraining(n, 20 * n**-0.09)
        for task in TASKS:
            simulation.pairs(task, "untuned", n)
            for objective in objectives:
                simulation.pairs(task, objective, n, "lm", PAIRS[-1])
                simulation.pairs(task, objective, n, "lm", PAIRS[-1], "paper_lr")
    for pairs in PAIRS:
        for init in ("lm", "pmp:stdlib:ranked", "pmp:stdlib:binary"):
            for task in (*RANKED, *BINARY):
                if (init, pairs) != ("lm", PAIRS[-1]):
                    simulation.pairs(task, "preference", PMP_SIZE, init, pairs)
        for name in SCRAMBLES:
            init = f"pmp:symbols:{name}:{'binary' if name == 'Tb' else 'ranked'}"
            simulation.pairs("symbols:T0", "preference", SYMBOLS_SIZE, init, pairs)
        simulation.pairs("symbols:T0", "preference", SYMBOLS_SIZE, "lm", pairs)
    simulation.pretraining(SYMBOLS_SIZE, 1.0, "symbols")
    for task in TASKS:
        simulation.baselines(task)
    simulation.write()
    study = {
        "name": "embedded",
        "machine": {"cpu": "A processor", "cores": 2, "jax": "0.10.2", "python": "3.11.9"},
        "tokens_per_parameter": {str(n): round(1e6 / n, 2) for n in SIZES},
        "seconds": {"pretrain": 210.0, "finetune": 420.0, "pmp": 95.0},
        "flops": 3.9e13,
    }
    (study_dir / "study.json").write_text(json.dumps(study))


class _Simulation:
    """Collects the records of runs, then writes their files and the table."""

    def __init__(self, study_dir: Path, truth: Truth, n_items: int, rng: np.random.Generator, seed_sd: float):
        self.study_dir, self.truth, self.n_items, self.rng, self.seed_sd = (
            study_dir,
            truth,
            n_items,
            rng,
            seed_sd,
        )
        self.groups = [f"file{i // 5:04d}" for i in range(n_items)]
        group_sd = {task: 0.2 for task in TASKS} | {"symbols:T0": 0.0}
        self.hard = {
            task: rng.normal(0, 0.6, n_items) + np.repeat(rng.normal(0, sd, n_items), 5)[:n_items]
            for task, sd in group_sd.items()
        }
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.items: dict[str, str] = {}

    def pretraining(self, n: int, loss: float, corpus: str = "stdlib") -> None:
        """A language model of `corpus` with 60 held-out documents whose mean loss is about `loss` nats per token."""
        tokens_I = np.random.default_rng(5).integers(50, 400, 60)
        document_I = np.random.default_rng(6).normal(0, 0.15, 60)
        row = {
            "stage": "pretrain",
            "N": n,
            "objective": "lm",
            "task": corpus,
            "metric": "loss",
            "n_items": 60,
        }
        for s in range(SEEDS):
            loss_I = loss + document_I + self.rng.normal(0, 0.004) + self.rng.normal(0, 0.02, 60)
            about = {"task": corpus, "split": "test", "selection": "final", "seed": s, "option": "text"}
            items = (
                about | {"item_id": f"doc{i:03d}", "group_id": f"doc{i:03d}", "n_tokens": tokens, "logp_sum": logp}
                for i, (tokens, logp) in enumerate(zip(tokens_I.tolist(), (-tokens_I * loss_I).tolist(), strict=True))
            )
            self._items(f"pretrain_{corpus}_n{n}", items)
            value = float(tokens_I @ loss_I / tokens_I.sum())
            self._row(f"pretrain_{corpus}_n{n}", row | {"seed": s, "pretrain_seed": s, "value": value})

    def pairs(
        self, task: str, objective: str, n: int, init: str = "", pairs: int = 0, intervention: str = ""
    ) -> None:
        """A run that judges the task's test pairs, each by a good and a bad score."""
        parts = (task, objective, f"n{n}", init, f"p{pairs}" * bool(pairs), intervention)
        name = "_".join(filter(None, parts)).replace(":", "-")
        spread = np.sqrt(1 + 0.6**2 + 0.2**2 + self.seed_sd**2)
        seed_Sx1 = norm.ppf(self.truth(task, objective, n, init, pairs)) * spread + self.rng.normal(
            0, self.seed_sd, (SEEDS, 1)
        )
        best_SxI = seed_Sx1 - self.hard[task] + self.rng.normal(0, 1, (SEEDS, self.n_items))
        margins = {"accuracy": best_SxI}
        if init == "lm" and not intervention:
            margins["accuracy_final"] = best_SxI + self.rng.normal(0, 0.1, best_SxI.shape)
        ranker = {"preference": "reward", "dpo": "implicit_reward"}.get(objective, "mean_logp")
        row = {"stage": "finetune" if init else "pretrain", "N": n, "objective": objective, "init": init}
        row |= {"task": task, "intervention": intervention, "pairs_total": pairs or "", "ranker": ranker}
        for (metric, margin_SxI), s in itertools.product(margins.items(), range(SEEDS)):
            items = []
            for i, margin in enumerate(margin_SxI[s].tolist()):
                item = {"task": task, "split": "test", "selection": results.SELECTION[metric], "seed": s}
                item |= {"item_id": self._item_id(task, i), "group_id": self.groups[i], "n_tokens": 20}
                for option, score in (("good", margin / 2), ("bad", -margin / 2)):
                    reward, logp = (None, 20 * score - 60) if ranker == "mean_logp" else (score, -60.0)
                    items.append(item | {"option": option, "reward": reward, "logp_sum": logp})
            self._items(name, items)
            right = float((margin_SxI[s] > 0).sum())
            lo, hi = stats.wilson(right, self.n_items)
            values = {
                "metric": metric,
                "value": right / self.n_items,
                "lo": lo,
                "hi": hi,
                "n_items": self.n_items,
            }
            self._row(name, row | values | {"seed": s, "pretrain_seed": s})

    def baselines(self, task: str) -> None:
        """The trivial rankers on the task's test pairs."""
        name = f"baselines_{task}"
        row = {"stage": "baseline", "objective": "baseline", "task": task, "metric": "accuracy"}
        for ranker in ("chance", "shorter", "longer", "bag_of_words"):
            guesses_I = (self.rng.random(self.n_items) < 0.5).astype(float)
            correct_I = np.full(self.n_items, 0.5) if ranker == "chance" else guesses_I
            about = {"task": task, "split": "test", "selection": "best", "ranker": ranker}
            items = (
                about | {"item_id": self._item_id(task, i), "group_id": self.groups[i], "correct": correct}
                for i, correct in enumerate(correct_I.tolist())
            )
            self._items(name, items)
            lo, hi = stats.wilson(float(correct_I.sum()), self.n_items)
            value = {"value": float(correct_I.mean()), "n_items": self.n_items, "lo": lo, "hi": hi}
            self._row(name, row | {"ranker": ranker} | value)

    def _item_id(self, task: str, i: int) -> str:
        return f"{task.removesuffix('_label')}/{i:05d}"

    def _items(self, run: str, items: Iterable[dict[str, Any]]) -> None:
        """They hold no dictionaries: one call for all is three times as fast as one for each."""
        self.items[run] = self.items.get(run, "") + json.dumps(list(items))[1:-1].replace("}, {", "}\n{") + "\n"

    def _row(self, run: str, row: dict[str, Any]) -> None:
        fixed = {"study": "embedded", "run": run, "ladder": "cpu", "split": "test", "curve": "separate"}
        layers = round((row["N"] / 12 / 1024) ** (1 / 3)) if "N" in row else ""
        self.rows.setdefault(run, []).append(fixed | {"n_layer": layers} | row)

    def write(self) -> None:
        """Write every run's files and the table."""
        for run, rows in self.rows.items():
            folder = self.study_dir / "runs" / run
            folder.mkdir(parents=True)
            (folder / "items.jsonl").write_text(self.items[run])
            (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        results.write_table(
            [row for rows in self.rows.values() for row in rows], self.study_dir / "results.csv"
        )
