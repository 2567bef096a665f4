"""The table of docs/compile.md: every stage of every rung of table 1, compiled for v5e and v5p.

    python -m hhh_jax.compile.table [--quick] > docs/compile.md

Each entry takes a minute or more. Finished ones are kept in --cache, one JSON object a line with the version of the
code that it was compiled by, so that a table that was interrupted goes on; remove the file to compile all anew.
--chips, --rungs and --stages compile a part; what is in the cache is printed all the same.
"""

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from hhh_jax import cli
from hhh_jax.compile.hardware import CHIPS, GIB
from hhh_jax.compile.record import prepare_environment, record

SLICES = {
    "v5e": {"13m": "2x2", "42m": "2x2", "197m": "4x4", "810m": "4x4", "2.7b": "4x4", "13b": "8x8", "52b": "16x16"},
    "v5p": {
        "13m": "2x2x1", "42m": "2x2x1", "197m": "2x2x4", "810m": "2x2x4", "2.7b": "2x2x4", "13b": "4x4x4",
        "52b": "8x8x8",
    },
}  # fmt: skip
"""The slice that each rung is compiled for; where it doesn't fit, the next one that it fits on is taken."""

HEADER = """# Every rung and stage on TPUs

Written by `python -m hhh_jax.compile.table{quick}`: the real training step of each config, compiled ahead of time for
each slice with no TPU at hand. Stages whose programs are the same share a line. Rows of language models have 8192
tokens, of distillation 1536, of all else 1024; a step holds the paper's number of pairs, in the most rows that they can
take.

* **mesh** is (data, fsdp, tensor), chosen by the rule of `python -m hhh_jax.compile`.
* **GiB** is the fullest moment of one chip's memory, and **state** what stays in it between steps.
* **MFU** is the most that the chip's published peaks allow: the head and the visited blocks of attention count, what
  remat repeats doesn't; **by** names the resource that sets it.
* **hours** are chip-hours to the paper's 400B tokens at that bound, padding counted as tokens.
"""


def programs(rung: str, stages: Sequence[str]) -> list[tuple[str, Any]]:
    """Stages by the program that they run: (their names, a config)."""
    from hhh_jax import config
    from hhh_jax.compile.step import abstract_batch, n_rows

    found: dict[str, tuple[list[str], Any]] = {}
    for stage in stages:
        c = config.base_config(stage, rung)
        shapes = [leaf.shape for leaf in abstract_batch(c, n_rows(c, 1)).__dict__.values() if leaf is not None]
        same = json.dumps([c.model.to_dict(), c.objective.to_dict(), c.optim.weight_decay, c.optim.clip, shapes])
        found.setdefault(same, ([], c))[0].append(stage)
    return [(", ".join(names), c) for names, c in found.values()]


def entry(c: Any, chip: str, size: str, quick: bool) -> dict[str, Any]:
    """The record of a config on a slice, or on the smallest one that is larger and large enough."""
    from hhh_jax.compile import meshes
    from hhh_jax.compile.hardware import Topology
    from hhh_jax.compile.step import OutOfMemory

    topology = Topology(chip, size)
    try:
        return record(meshes.best(c, topology, quick), c)
    except OutOfMemory:
        larger = meshes.smallest(c, topology, including=False)
        return record(larger, c) if larger else {"fits": False, "topology": f"{chip}:{topology.chip.sizes[-1]}"}


def key(c: Any, chip: str, size: str, quick: bool) -> str:
    """What an entry depends on, but for the code."""
    import jax

    from hhh_jax import config

    said = [config.fields(c), chip, size, quick, jax.__version__]
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:16]


def line(names: str, r: dict[str, Any]) -> str:
    """One row of the table."""
    if not r["fits"]:
        return f"| {r['rung']} | {names} | {r['topology']} | | does not fit | | | | | | |"
    stays = ("parameters", "optimizer", "best", "reference")
    kept = sum(size for name, size in r["hbm_parts"].items() if name in stays)
    mesh = ", ".join(map(str, r["mesh"]))
    return (
        f"| {r['rung']} | {names} | {r['topology']} | {mesh} | {r['rows']} | {r['hbm_bytes_per_chip'] / GIB:.2f} | "
        f"{kept / GIB:.2f} | {r['flops_per_step']:.2e} | {100 * r['mfu_bound']:.0f}% | {r['bound_by']} | "
        f"{r['chip_hours_400b']:,.0f} |"
    )


def main(_: Sequence[str]) -> None:
    from hhh_jax import config
    from hhh_jax.version import code_version

    cache = Path(_CACHE.value)
    cache.parent.mkdir(parents=True, exist_ok=True)
    lines = cache.read_text(encoding="utf-8").splitlines() if cache.exists() else []
    known = {entry["key"]: entry for entry in map(json.loads, lines)}
    print(HEADER.format(quick=" --quick" if _QUICK.value else ""))
    versions = set()
    for chip, sizes in SLICES.items():
        print(f"## {chip}, {CHIPS[chip].hbm_bytes / GIB:.2f} GiB a chip\n")
        print("| rung | stages | slice | mesh | rows | GiB | state | FLOPs a step | MFU | by | hours |")
        print("|---|---|---|---|---|---|---|---|---|---|---|")
        for rung, size in sizes.items():
            for names, c in programs(rung, config.STAGES):
                this = key(c, chip, size, _QUICK.value)
                asked = chip in _CHIPS.value and rung in _RUNGS.value and set(names.split(", ")) & set(_STAGES.value)
                if this not in known and asked:
                    print(f"{chip} {rung} {names}", file=sys.stderr, flush=True)
                    known[this] = {"key": this, "code": code_version()} | entry(c, chip, size, _QUICK.value)
                    with cache.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(known[this]) + "\n")
                if this in known:
                    versions.add(known[this]["code"])
                    print(line(names, {"rung": rung} | known[this]))
        print()
    print(f"Compiled by versions {', '.join(sorted(versions))} of the code.")


if __name__ == "__main__":
    prepare_environment()
    _DEFAULT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hhh_jax" / "compile_table.jsonl"
    _CACHE = flags.DEFINE_string("cache", str(_DEFAULT), "Where finished entries are kept.")
    _QUICK = flags.DEFINE_boolean("quick", False, "Optimize less: a quarter of the time, memory within some percent.")
    _CHIPS = flags.DEFINE_list("chips", list(SLICES), "Chips to compile for.")
    _RUNGS = flags.DEFINE_list("rungs", list(SLICES["v5e"]), "Rungs to compile.")
    _STAGES = flags.DEFINE_list(
        "stages", ["pretrain", "distill", "imitation", "ranked", "dpo", "pmp", "discriminator"], "Stages to compile."
    )
    cli.start(main)
