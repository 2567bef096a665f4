"""Runs benchmarks, prints their tables and keeps their rows.

    python -m hhh_jax.bench [NAME...] [--quick] [--output=runs/bench]

Without a name all of them run. Rows are appended to OUTPUT/NAME.jsonl, with the machine, versions and commit.
"""

import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from hhh_jax import bench, cli
from hhh_jax.errors import UserError


def names() -> list[str]:
    """Every benchmark's name: the modules of this package, but for this program and the packages of helpers."""
    modules = pkgutil.iter_modules(bench.__path__)
    return [module.name for module in modules if not (module.ispkg or module.name.startswith("_"))]


def run(name: str, output: Path, quick: bool) -> None:
    """Runs one benchmark. Raises UserError if it lacks something."""
    from hhh_jax.bench.harness import report

    module = importlib.import_module(f"{bench.__name__}.{name}")
    print(f"== {name}: {(module.__doc__ or '').splitlines()[0]}", flush=True)
    where = report.machine()
    rows = []
    try:
        for row in module.rows(quick):
            print(f"{name}: {row.name}", file=sys.stderr, flush=True)
            report.append(output / f"{name}.jsonl", [row], where | {"quick": quick})
            rows.append(row)
    finally:
        print("\n".join(report.table(rows)))
        print(", ".join(f"{key} {value}" for key, value in where.items()), flush=True)


def main(argv: Sequence[str]) -> None:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # contenders share a GPU
    there = names()
    for name in argv[1:]:
        if name not in there:
            raise UserError(f"no benchmark named {name!r}; there are {', '.join(there)}")
    lacking = []
    for name in argv[1:] or there:
        try:
            run(name, Path(_OUTPUT.value), _QUICK.value)
        except UserError as error:
            lacking.append(f"{name}: {error}")
            print(lacking[-1], flush=True)
    if lacking:
        raise UserError(f"not measured: {'; '.join(lacking)}")


if __name__ == "__main__":
    _OUTPUT = flags.DEFINE_string("output", "runs/bench", "Folder of the rows, a file a benchmark.")
    _QUICK = flags.DEFINE_bool("quick", False, "In a tiny setting, to see that it runs; its numbers mean nothing.")
    cli.start(main)
