"""The abilities of one chip: the only table of constants, with sources."""

import math
import re
from typing import NamedTuple

from entropy_rl.runtime import host


class Chip(NamedTuple):
    """Published figures of one chip.

    Attributes:
        flops: per second, dense, in the dtype that `model.dtype=auto` computes in.
        memory: bytes that a program may use.
        bandwidth: of the memory, bytes per second.
        links: bytes per second from the chip to the others of its slice, over all links, one way.
        dims: of the torus; 0: every chip reaches every other one through a switch.
        source: where the figures are published.
        bfloat16: whether it multiplies bfloat16; otherwise auto is float32.
    """

    flops: float
    memory: float
    bandwidth: float
    links: float
    dims: int
    source: str
    bfloat16: bool = True

    @property
    def is_tpu(self) -> bool:
        """Whether it is a TPU."""
        return self.dims > 0


def _share(mebibytes: int) -> float:
    return host.GPU_SHARE * mebibytes * 2**20


_GCP = "https://cloud.google.com/tpu/docs/"
_NV = "https://www.nvidia.com/en-us/data-center/"
GIB = 2**30

# The memory of a TPU is the part that its compiler gives to a program (jax 0.10.2, "exceeds available HBM"): 15.75 of a
# v5e's 16 GiB. Google publishes the bandwidth of ICI as the sum of both directions, half of which is one way; NVIDIA
# does the same for NVLink and PCIe. The memory of a GPU is JAX's share (`runtime/host.py`) of what nvidia-smi shows.
CHIPS: dict[str, Chip] = {
    "v5e": Chip(197e12, 15.75 * GIB, 819e9, 400e9 / 2, 2, _GCP + "v5e"),
    "v5p": Chip(459e12, 95.74 * GIB, 2765e9, 1200e9 / 2, 3, _GCP + "v5p"),
    "v6e": Chip(918e12, 31.25 * GIB, 1600e9, 800e9 / 2, 2, _GCP + "v6e"),
    "t4": Chip(8.1e12, _share(15360), 320e9, 32e9 / 2, 0, _NV + "tesla-t4/", bfloat16=False),
    "l4": Chip(121e12, _share(23034), 300e9, 64e9 / 2, 0, _NV + "l4/"),
    "a10g": Chip(70e12, _share(23028), 600e9, 64e9 / 2, 0, "https://aws.amazon.com/ec2/instance-types/g5/"),
    "rtx4090": Chip(165e12, _share(24564), 1008e9, 64e9 / 2, 0, "https://images.nvidia.com (Ada GPU architecture)"),
    "a100": Chip(312e12, _share(81920), 2039e9, 600e9 / 2, 0, _NV + "a100/"),
    "h100": Chip(989e12, _share(81559), 3350e9, 900e9 / 2, 0, _NV + "h100/"),
    "h200": Chip(989e12, _share(143771), 4800e9, 900e9 / 2, 0, _NV + "h200/"),
}


class Topology(NamedTuple):
    """A number of chips of one kind, connected in a shape.

    Attributes:
        kind: a name in `CHIPS`.
        shape: that of a TPU's torus; (chips,) for GPUs.
    """

    kind: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        """The figures of one of its chips."""
        return CHIPS[self.kind]

    @property
    def size(self) -> int:
        """The number of chips."""
        return math.prod(self.shape)

    @property
    def is_tpu(self) -> bool:
        """Whether the chips are TPUs."""
        return self.chip.is_tpu

    def __str__(self) -> str:
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"


def parse(text: str) -> Topology:
    """The topology that a string such as "v5p:4x4x4" or "h100:8" names.

    >>> parse("v5p:4x4x4")
    Topology(kind='v5p', shape=(4, 4, 4))

    Raises:
        ValueError: If the chip is unknown or does not come in that shape.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", text)
    if not match or match[1] not in CHIPS:
        raise ValueError(
            f"--topology={text!r} must be CHIP:SHAPE, such as v5p:4x4x4 or h100:8; chips: {', '.join(CHIPS)}"
        )
    topology = Topology(match[1], tuple(int(n) for n in match[2].split("x")))
    dims = max(1, topology.chip.dims)
    if len(topology.shape) != dims:
        raise ValueError(f"--topology={text!r}: {topology.kind} comes in shapes of {dims} numbers")
    return topology
