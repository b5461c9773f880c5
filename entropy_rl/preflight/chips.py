"""What one chip can do: the one table of constants, with sources."""

import math
import re
from typing import NamedTuple


class Chip(NamedTuple):
    """Published figures of one chip.

    Attributes:
        flops: a second, bfloat16, dense.
        memory: bytes that a program may use.
        bandwidth: of the memory, bytes a second.
        links: bytes a second out of the chip to the others of its slice, over all links, one way.
        dims: of the torus; 0: every chip reaches every other through a switch.
        source: where the figures stand.
    """

    flops: float
    memory: float
    bandwidth: float
    links: float
    dims: int
    source: str


_GCP = "https://cloud.google.com/tpu/docs/"
_NV = "https://www.nvidia.com/en-us/data-center/"
GIB = 2**30

# A TPU's memory is what its compiler has for a program (jax 0.10.2, "exceeds available HBM"): of a v5e's 16 GiB, 15.75.
# Google gives ICI as the sum of both directions: half of it is one way. NVIDIA gives NVLink so too.
CHIPS: dict[str, Chip] = {
    "v5e": Chip(197e12, 15.75 * GIB, 819e9, 400e9 / 2, 2, _GCP + "v5e"),
    "v5p": Chip(459e12, 95.74 * GIB, 2765e9, 1200e9 / 2, 3, _GCP + "v5p"),
    "v6e": Chip(918e12, 31.25 * GIB, 1600e9, 800e9 / 2, 2, _GCP + "v6e"),
    "a100": Chip(312e12, 80e9, 2039e9, 600e9 / 2, 0, _NV + "a100/"),
    "h100": Chip(989e12, 80e9, 3350e9, 900e9 / 2, 0, _NV + "h100/"),
    "h200": Chip(989e12, 141e9, 4800e9, 900e9 / 2, 0, _NV + "h200/"),
}


class Topology(NamedTuple):
    """So many chips of a kind. `shape` is that of a TPU's torus; a GPU's is (chips,)."""

    kind: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def is_tpu(self) -> bool:
        return self.chip.dims > 0

    def __str__(self):
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"


def parse(text: str) -> Topology:
    """ "v5p:4x4x4" or "h100:8". ValueError: an unknown chip, or a shape that it does not come in."""
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", text)
    if not match or match[1] not in CHIPS:
        raise ValueError(f"--topology={text!r} must be CHIP:SHAPE, as v5p:4x4x4 or h100:8; chips: {', '.join(CHIPS)}")
    found = Topology(match[1], tuple(int(n) for n in match[2].split("x")))
    if len(found.shape) != max(1, found.chip.dims):
        raise ValueError(f"--topology={text!r}: {found.kind} comes in shapes of {max(1, found.chip.dims)} numbers")
    return found
