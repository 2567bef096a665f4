"""What a compiled program sends between its devices, read from its HLO text."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}


class Collective(NamedTuple):
    """One collective of a program.

    Attributes:
      kind: one of `KINDS`.
      size: bytes of the whole array on one device: what is gathered, reduced (before it is scattered) or sent.
      group: partitions that take part, with partition 0 among them where it does.
      times: how often a step runs it.
    """

    kind: str
    size: int
    group: tuple[int, ...]
    times: int

    def received(self) -> float:
        """Bytes that one device takes in each time, if no byte is sent to it twice."""
        return received(self.kind, self.size, len(self.group))


def received(kind: str, size: float, n: int) -> float:
    """Bytes that each of `n` devices takes in: the others' parts of what is gathered, twice that to reduce for all."""
    return size if kind == "collective-permute" else size * (n - 1) / n * (2 if kind == "all-reduce" else 1)


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled program; those in the body of a loop count as often as the loop runs.

    TPUs run a collective in the background of several fusions, each of which repeats it in the text: one channel is one
    collective, which counts where it starts.
    """
    computations, entry = _computations(text)
    times, started = _times_run(computations, entry)
    found: dict[str, list[tuple[bool, Collective]]] = {}
    for name, count in times.items():
        for line in computations[name]:
            match = re.search(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(", line)
            group = _group(line, match[2]) if match else ()
            if match is None or len(group) < 2:
                continue
            shape, kind, start = match.groups()
            size = _size(shape, kind, start is not None) * (len(group) if kind == "reduce-scatter" else 1)
            kind = "reduce-scatter" if name.startswith("all-reduce-scatter") else kind
            channel = re.search(r"channel_id=(\d+)", line)
            this = name in started, Collective(kind, size, group, count)
            found.setdefault(channel[1] if channel else line, []).append(this)
    result = []
    for places in found.values():
        starts = [collective for start, collective in places if start]
        counts = [collective.times for _, collective in places]
        result.append(places[0][1]._replace(times=sum(c.times for c in starts) if starts else max(counts)))
    return result


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation by its name, and the name of the one that is the program."""
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if header:
            name = header[2]
            computations[name] = []
            entry = name if header[1] else entry
        elif name:
            computations[name].append(line)
    return computations, entry


def _times_run(computations: dict[str, list[str]], entry: str) -> tuple[dict[str, int], set[str]]:
    """How often each computation that the program reaches is run, and which of them start a collective."""
    times: dict[str, int] = {}
    started: set[str] = set()

    def visit(name: str, count: int) -> None:
        times[name] = times.get(name, 0) + count
        for line in computations[name]:
            loops = _trip_count(line, computations) if " while(" in line else 1
            for callee in _called(line):
                if "async-collective-start" in line.partition("=")[0]:
                    started.add(callee)
                visit(callee, count * loops)

    visit(entry, 1)
    return times, started


def _called(line: str) -> Iterator[str]:
    for several, one in re.findall(r"(?:calls|to_apply|body|branch_computations)=(?:\{(.*?)\}|%?([\w.-]+))", line):
        yield from (part.strip().lstrip("%") for part in (several or one).split(","))


def _trip_count(line: str, computations: dict[str, list[str]]) -> int:
    """How often a loop runs: as known to the compiler, or the constant that its counter is compared with."""
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.-]+)", line)
    assert condition is not None
    constants = re.findall(r"s32\[\]\S* constant\((\d+)\)", "\n".join(computations[condition[1]]))
    return max(map(int, constants), default=1)


def _size(shape: str, kind: str, start: bool) -> int:
    """Bytes of a result such as ``(bf16[2,4]{1,0}, f32[])``."""
    sizes = [
        _BYTES.get(dtype, 1) * int(np.prod([int(n) for n in dims.split(",") if n]))
        for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shape)
    ]
    if start and kind == "collective-permute":  # the operand, the result and two counters
        return sizes[0]
    if start and kind == "all-gather":  # operands, then as many results
        return sum(sizes[len(sizes) // 2 :])
    return sum(sizes)


def _group(line: str, kind: str) -> tuple[int, ...]:
    """The partitions that exchange with partition 0, or with the first one named."""
    if kind == "collective-permute":
        pairs = re.findall(r"\{(\d+),(\d+)\}", line.partition("source_target_pairs=")[2].partition("}}")[0] + "}}")
        target = {int(a): int(b) for a, b in pairs}
        cycle = [min(target)] if target else [0]
        while target.get(cycle[-1], cycle[0]) not in cycle:
            cycle.append(target[cycle[-1]])
        return tuple(cycle)
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return tuple(map(int, listed[1].split(",")))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if iota:
        ids = np.arange(int(iota[1]) * int(iota[2])).reshape(_ints(iota[3]))
        ids = ids.transpose(_ints(iota[4])) if iota[4] else ids
        return tuple(ids.reshape(int(iota[1]), int(iota[2]))[0].tolist())
    order = r"(?:, device_ids=\(\[([\d,]*)\](?:T\(([\d,]+)\))?\))?"
    mesh = re.search(rf"replica_groups=mesh\[(.*?)\]{order} \{{(.*?)\}}", line)
    assert mesh is not None, line
    return _mesh_group(*mesh.groups())


def _mesh_group(axes: str, reshape: str | None, transpose: str | None, grouped: str) -> tuple[int, ...]:
    """The first group of ``mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}``; ``'a':(2)2`` is a part of an axis."""
    names, sizes = zip(*re.findall(r"'(\w+)'=(\d+)", axes), strict=True)
    dims = list(map(int, sizes))
    ids = np.arange(int(np.prod(dims)))
    if reshape:
        ids = ids.reshape(_ints(reshape))
        ids = ids.transpose(_ints(transpose)) if transpose else ids
    ids = ids.reshape(dims)
    members = ids
    for axis, name in reversed(list(enumerate(names))):
        used = re.search(rf"'{name}'(?::\((\d+)\)(\d+))?", grouped)
        if used is None:
            members = np.take(members, [0], axis)
        elif used[1]:
            before, size = int(used[1]), int(used[2])
            stride = dims[axis] // (before * size)
            members = np.take(members, [i * stride for i in range(size)], axis)
    return tuple(members.reshape(-1).tolist())


def _ints(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]
