"""A study directory with known effects: what `hhh_jax.study` leaves behind, without any training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from hhh_jax import results, stats

SIZES = (12288, 98304, 331776, 786432)
RANKED, BINARY, TWIN = ("word_order", "line_order"), ("docstring_match", "order_label"), "word_order_label"
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
    base = {"word_order": 0.56, "line_order": 0.54, "docstring_match": 0.60, "order_label": 0.66, TWIN: 0.55}[task]
    il = base + 0.025 * decades * scarce
    if objective == "untuned":
        return base - 0.03 + 0.01 * decades
    if objective == "imitation":
        return il
    gain = {"word_order": 0.12, "line_order": 0.08, "docstring_match": -0.005, "order_label": 0.005, TWIN: 0.03}[task]
    pmp = {"lm": 0.0, "pmp:stdlib:ranked": 0.02, "pmp:stdlib:binary": 0.05}[init]
    return il + (gain + 0.02 * decades * (task in RANKED)) * scarce + pmp * (1.4 - scarce)


def null(task: str, objective: str, n: int, init: str, pairs: int) -> float:
    """Nothing is learned: every model guesses."""
    return 0.5


def simulate(
    study_dir: Path,
    truth: Truth = paper_like,
    n_items: int = 300,
    n_seeds: int = 3,
    seed: int = 0,
    seed_sd: float = 0.04,
    exponent: float = 0.09,
) -> None:
    """Write runs/*/{rows,items}.jsonl, results.csv and study.json. Items come in groups of about five; `seed_sd` is
    the spread of seeds in probits; the language model's loss is 20 * N ** -exponent."""
    rng = np.random.default_rng(seed)
    writer = _Writer(study_dir)
    group_I = [f"file{i // 5:04d}" for i in range(n_items)]
    tasks = (*RANKED, *BINARY, TWIN)
    hard = {t: rng.normal(0, 0.6, n_items) + np.repeat(rng.normal(0, 0.2, n_items), 5)[:n_items] for t in tasks}
    hard["symbols:T0"] = rng.normal(0, 0.6, n_items)

    def pair_run(task: str, objective: str, n: int, init: str, pairs: int, intervention: str = "") -> None:
        name = "_".join(filter(None, [task, objective, f"n{n}", init, f"p{pairs}", intervention])).replace(":", "-")
        spread = np.sqrt(1 + 0.6**2 + 0.2**2 + seed_sd**2)
        probit = norm.ppf(truth(task, objective, n, init, pairs)) * spread
        metrics = {"accuracy": "best", "accuracy_final": "final"}
        if objective == "untuned" or init.startswith("pmp") or intervention:
            metrics = {"accuracy": "best"}
        center_SxI = probit - hard[task] + rng.normal(0, seed_sd, (n_seeds, 1))
        noise_SxI = rng.normal(0, 1, (n_seeds, n_items))
        for metric, selection in metrics.items():
            extra_SxI = rng.normal(0, 0.1, (n_seeds, n_items)) * (selection == "final")
            difference_SxI = center_SxI + noise_SxI + extra_SxI
            reward = objective == "preference"
            for s in range(n_seeds):
                for i in range(n_items):
                    item = {
                        "task": task, "split": "test", "selection": selection, "seed": s,
                        "item_id": f"{task.removesuffix('_label')}/{i:05d}", "group_id": group_I[i],
                    }  # fmt: skip
                    for option, sign in (("good", 0.5), ("bad", -0.5)):
                        score = sign * float(difference_SxI[s, i])
                        number = {"n_tokens": 20, "n_bytes": 70, "logp_sum": -60.0 + 20 * score * (not reward)}
                        number |= {"option": option, "reward": score if reward else None, "label": int(sign > 0)}
                        writer.item(name, item | number)
                right = float((difference_SxI[s] > 0).sum())
                lo, hi = stats.wilson(right, n_items)
                writer.row(
                    name, stage="pretrain" if objective == "untuned" else "finetune", N=n, objective=objective,
                    init="" if objective == "untuned" else init, intervention=intervention, task=task,
                    pairs_total="" if objective == "untuned" else pairs, ranker="reward" if reward else "mean_logp",
                    seed=s, pretrain_seed=s, metric=metric, value=right / n_items, n_items=n_items, lo=lo, hi=hi,
                )  # fmt: skip

    for n in SIZES:
        document_logp(writer, rng, n, 20 * n**-exponent, n_seeds)
        for task in tasks:
            pair_run(task, "untuned", n, "", 0)
            for objective in ("imitation", "preference"):
                pair_run(task, objective, n, "lm", PAIRS[-1])
                pair_run(task, objective, n, "lm", PAIRS[-1], "paper_lr")
    for pairs in PAIRS:
        for init in ("lm", "pmp:stdlib:ranked", "pmp:stdlib:binary"):
            for task in (*RANKED, *BINARY):
                if init != "lm" or pairs != PAIRS[-1]:
                    pair_run(task, "preference", PMP_SIZE, init, pairs)
        for name in SCRAMBLES:
            init = f"pmp:symbols:{name}:{'binary' if name == 'Tb' else 'ranked'}"
            pair_run("symbols:T0", "preference", SYMBOLS_SIZE, init, pairs)
        pair_run("symbols:T0", "preference", SYMBOLS_SIZE, "lm", pairs)
    for task in tasks:
        words = 0.53 if truth is paper_like else 0.5
        for ranker, p in (("chance", None), ("shorter", 0.49), ("longer", 0.51), ("bag_of_words", words)):
            correct_I = np.full(n_items, 0.5) if p is None else (rng.random(n_items) < p).astype(float)
            for i, correct in enumerate(correct_I):
                writer.item(f"baselines_{task}", {
                    "task": task, "split": "test", "selection": "best", "group_id": group_I[i], "ranker": ranker,
                    "item_id": f"{task.removesuffix('_label')}/{i:05d}", "correct": float(correct),
                })  # fmt: skip
            lo, hi = stats.wilson(correct_I.sum(), n_items)
            writer.row(
                f"baselines_{task}", stage="baseline", objective="baseline", task=task, ranker=ranker,
                metric="accuracy", value=correct_I.mean(), n_items=n_items, lo=lo, hi=hi,
            )  # fmt: skip
    writer.close()
    tokens = {str(n): round(1e6 / n, 2) for n in SIZES}
    machine = {"cpu": "A processor", "cores": 2, "jax": "0.10.2", "python": "3.11.9"}
    study = {"name": "embedded", "started": "2026-11-23T12:00:00", "machine": machine, "tokens_per_parameter": tokens}
    study |= {"seconds": {"pretrain": 210.0, "finetune": 420.0, "pmp": 95.0}, "flops": 3.9e13}
    (study_dir / "study.json").write_text(json.dumps(study))


def document_logp(writer: "_Writer", rng: np.random.Generator, n: int, loss: float, n_seeds: int) -> None:
    """A pretraining run with 60 held-out documents whose mean loss is about `loss` nats per token."""
    tokens_I = np.random.default_rng(5).integers(50, 400, 60)
    document_I = np.random.default_rng(6).normal(0, 0.15, 60)
    name = f"pretrain_n{n}"
    for s in range(n_seeds):
        logp_I = -tokens_I * (loss + document_I + rng.normal(0, 0.004) + rng.normal(0, 0.02, 60))
        for i in range(60):
            writer.item(name, {
                "task": "stdlib", "split": "test", "selection": "final", "seed": s, "item_id": f"doc{i:03d}",
                "group_id": f"doc{i:03d}", "option": "text", "n_tokens": int(tokens_I[i]),
                "n_bytes": 3 * int(tokens_I[i]), "logp_sum": float(logp_I[i]),
            })  # fmt: skip
        writer.row(
            name, stage="pretrain", N=n, objective="lm", task="stdlib", seed=s, pretrain_seed=s, metric="loss",
            value=-logp_I.sum() / tokens_I.sum(), n_items=60,
        )  # fmt: skip


class _Writer:
    """Collects runs, then writes their files and the table."""

    def __init__(self, study_dir: Path):
        self.study_dir, self.rows, self.items = study_dir, {}, {}

    def item(self, run: str, item: dict[str, Any]) -> None:
        self.items.setdefault(run, []).append(json.dumps(item))

    def row(self, run: str, **row: Any) -> None:
        fixed = {"study": "embedded", "run": run, "ladder": "cpu", "split": "test", "curve": "separate"}
        layers = round((row["N"] / 12 / 1024) ** (1 / 3)) if "N" in row else ""
        self.rows.setdefault(run, []).append(fixed | {"n_layer": layers} | row)

    def close(self) -> None:
        for run, rows in self.rows.items():
            folder = self.study_dir / "runs" / run
            folder.mkdir(parents=True)
            (folder / "items.jsonl").write_text("\n".join(self.items[run]) + "\n")
            (folder / "rows.jsonl").write_text("".join(json.dumps(row, default=float) + "\n" for row in rows))
        results.write_table([row for rows in self.rows.values() for row in rows], self.study_dir / "results.csv")
