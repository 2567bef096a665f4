"""TPUs as their makers publish them, and topologies of them that programs are compiled for with none at hand."""

import dataclasses
import importlib.util
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from hhh_jax.errors import UserError

GIB = 2**30


class Chip(NamedTuple):
    """Published peaks of one chip (docs.cloud.google.com/tpu/docs, each generation's page).

    Attributes:
      flops: bfloat16 FLOP/s.
      hbm_bytes: what the compiler lets a program have, a little less than what is built in.
      hbm_bandwidth: bytes/s.
      ici_bandwidth: bytes/s that one chip can take in through all its links to its slice; half of "bidirectional".
      ici_axes: dimensions of the torus, with two links each.
      ring: a dimension of a multiple of so many chips is closed to a ring; in three dimensions, if all are such.
      dcn_bandwidth: bytes/s that one chip's share of the data center network takes in.
      devices: what JAX counts as devices on one chip.
      options: of the topology's description.
      sizes: slices that can be had, smallest first.
    """

    flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    ici_bandwidth: float
    ici_axes: int
    ring: int
    dcn_bandwidth: float
    devices: int
    options: dict[str, Any]
    sizes: tuple[str, ...]


_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16",
)  # fmt: skip

CHIPS = {
    "v4": Chip(275e12, 30.75 * GIB, 1200e9, 300e9, 3, 4, 3.125e9, 1, {"chip_config_name": "megacore"}, _CUBES),
    "v5e": Chip(197e12, 15.75 * GIB, 819e9, 200e9, 2, 16, 3.125e9, 1, {}, _FLAT),
    "v5p": Chip(459e12, 95.74 * GIB, 2765e9, 600e9, 3, 4, 6.25e9, 1, {}, _CUBES),
    "v6e": Chip(918e12, 31.25 * GIB, 1638e9, 400e9, 2, 16, 12.5e9, 1, {}, _FLAT),
    "tpu7x": Chip(2307e12, 189.5 * GIB, 7380e9, 600e9, 3, 4, 12.5e9, 2, {}, _CUBES),
}
"""No page gives a v4's share of the data center network; it has the v5e's here."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Slices of one kind of chip.

    Attributes:
      name: of the chip, a key of `CHIPS`.
      size: ``4x4``, ``4x4x4``, ...
      slices: how many of these.
    """

    name: str
    size: str
    slices: int = 1

    @property
    def chip(self) -> Chip:
        return CHIPS[self.name]

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(map(int, self.size.split("x")))

    @property
    def chips(self) -> int:
        return math.prod(self.dims) * self.slices

    def closed(self, axis: int) -> bool:
        """Whether the ends of a dimension are linked to each other."""
        dims = self.dims if self.chip.ici_axes == 3 else self.dims[axis : axis + 1]
        return all(extent % self.chip.ring == 0 for extent in dims)

    def __str__(self) -> str:
        return f"{self.name}:{self.size}" + (f" x {self.slices} slices" if self.slices > 1 else "")

    def devices(self) -> Sequence[Any]:
        """JAX's devices of it, which run nothing; raises UserError without libtpu or if it refuses."""
        import jax
        from jax.experimental import topologies

        if importlib.util.find_spec("libtpu") is None:
            raise UserError('compiling for TPUs needs libtpu: pip install "hhh_jax[tpu]"')
        slices = {"num_slices": self.slices} if self.slices > 1 else {}
        try:
            name = f"{self.name}:{self.size}"
            return topologies.get_topology_desc(name, "tpu", **self.chip.options, **slices).devices
        except jax.errors.JaxRuntimeError as error:
            raise UserError(f"libtpu refuses {self}: {str(error).splitlines()[0]}") from error


def parse_topology(text: str, slices: int = 1) -> Topology:
    """``v5p:4x4x4`` to a topology. Raises UserError for a chip that is not in `CHIPS` or a slice that is not to be had.

    Slices in three dimensions are those of ``Chip.sizes`` and all that are built of cubes of 4x4x4.
    """
    name, _, size = text.partition(":")
    if name not in CHIPS:
        raise UserError(f"no TPU named {name!r} in topology {text!r}; there are {', '.join(CHIPS)}")
    chip = CHIPS[name]
    there = f"{name}: {', '.join(chip.sizes)}" + (" and more, by multiples of 4" if chip.ici_axes == 3 else "")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", size):
        raise UserError(f"topology {text!r} names no size; there are {there}")
    dims = [int(extent) for extent in size.split("x")]
    of_cubes = len(dims) == chip.ici_axes == 3 and all(extent % 4 == 0 for extent in dims)
    if size not in chip.sizes and not of_cubes:
        raise UserError(f"no TPU topology {text}; there are {there}")
    if slices < 1:
        raise UserError(f"{slices} slices of {text}: give one or more")
    return Topology(name, size, slices)
