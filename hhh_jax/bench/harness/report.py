"""Where results go: a table for people, and lines of JSON with a description of the machine."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hhh_jax.bench.harness.timing import Row
from hhh_jax.version import code_version

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers", "trl")
HEADINGS = ("", "value", "unit", "baseline", "against", "ratio [95% interval]")


def machine() -> dict[str, Any]:
    """Cores, processor, accelerator, load, versions and commit: what a number depends on besides the code."""
    import jax

    devices = jax.devices()
    versions = {name: importlib.metadata.version(name) for name in PACKAGES if importlib.util.find_spec(name)}
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu(),
        "device": f"{len(devices)} x {devices[0].device_kind}",
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        **versions,
        "commit": code_version(),
    }


def _cpu() -> str:
    """The processor's name, and which of the instructions that decide the speed of matrices it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = set(fields.get("flags", "").split()) & {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}
    return f"{fields.get('model name', platform.machine())} ({', '.join(sorted(flags)) or 'no vector flags known'})"


def append(path: Path, rows: Sequence[Row], where: dict[str, Any]) -> None:
    """Adds the rows to a file of JSON lines, each with the machine that it was measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(dataclasses.asdict(row) | {"machine": where}) + "\n" for row in rows)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Lines of a table, each row's note below it."""
    cells = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    notes = ["", *(row.note for row in rows)]
    for line, note in zip(cells, notes, strict=True):
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        if note:
            yield f"    {note}"


def _cells(row: Row) -> tuple[str, ...]:
    baseline = _number(row.baseline) if row.against else ""
    ratio = ""
    if row.ratio is not None and row.ratio_lo is not None and row.ratio_hi is not None:
        ratio = f"{row.ratio:.2f} [{row.ratio_lo:.2f}, {row.ratio_hi:.2f}]"
    return row.name, _number(row.value), row.unit, baseline, row.against, ratio


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
