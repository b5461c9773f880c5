"""The collectives of a compiled program: kind, bytes, mesh axes, and the time that they take on the wires."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from entropy_rl.preflight import hlo
from entropy_rl.preflight.chips import Topology
from entropy_rl.preflight.groups import first_group
from entropy_rl.preflight.trips import Trips

# A torus dimension wraps around, so that data travels both ways along a ring, if its extent is a multiple of this.
_WRAPS = {"v5e": 16, "v6e": 16, "v5p": 4}


class Collective(NamedTuple):
    """One collective of a program.

    Attributes:
        kind: one of `hlo.COLLECTIVES`.
        times: how often it runs.
        size: bytes of the whole: the larger of its operand and its result, on one chip.
        group: partition numbers of the chips that exchange with the first one, itself included.
        overlapped: the chip computes meanwhile: the collective is started and awaited later, or it runs in a fusion.
        label: the path in the source.
    """

    kind: str
    times: float
    size: float
    group: tuple[int, ...]
    overlapped: bool
    label: str

    def sent(self) -> float:
        """Bytes that leave one chip each time, by the best algorithm on a ring."""
        members = len(self.group)
        if self.kind == "collective-permute":
            return self.size
        return self.size * (members - 1) / members * (2 if self.kind == "all-reduce" else 1)


def find(program: hlo.Program, trips: Trips) -> list[Collective]:
    """All collectives between two or more chips.

    The compiler for TPUs may spread one collective over several fusions that compute meanwhile. These have one channel,
    and count once.

    Raises:
        ValueError: If a loop has no constant bound and its scope is not in `trips`.
    """
    found: dict[str, Collective] = {}
    for times, instruction, _ in program.walk(trips):
        for inner, collective in _of_instruction(program, instruction, times):
            channel = re.search(r"channel_id=(\d+)", inner.rest)
            found.setdefault(channel[1] if channel else inner.name, collective)
    return list(found.values())


def _of_instruction(
    program: hlo.Program, instruction: hlo.Instruction, times: float
) -> Iterator[tuple[hlo.Instruction, Collective]]:
    """The collective that an instruction is, and those that it contains if it is a fusion."""
    for inner in (instruction, *program.fused(instruction).values()):
        kind = inner.opcode.removesuffix("-start")
        group = first_group(inner.rest) if kind in hlo.COLLECTIVES else ()
        if len(group) < 2:
            continue
        fused, started = inner is not instruction, inner.opcode.endswith("-start")
        # a reduce-scatter is written as an all-reduce in a fusion of this name, of which each chip keeps a slice
        sliced = fused and "all-reduce-scatter" in instruction.called[0]
        yield (
            inner,
            Collective(
                kind="reduce-scatter" if sliced else kind,
                times=times,
                size=_size(inner, kind, len(group)),
                group=group,
                overlapped=started or (fused and not sliced),
                label=inner.label,
            ),
        )


def _size(collective: hlo.Instruction, kind: str, members: int) -> float:
    """Bytes of the whole on one chip. The result of a start is a tuple that contains the operand too."""
    if collective.opcode.endswith("-start"):
        result = max(map(hlo.size, hlo.members(collective.shape)))
    else:
        result = hlo.size(collective.shape)
    return result * members if kind == "reduce-scatter" else result


def axes(collective: Collective, mesh: Mesh) -> str:
    """The mesh axes along which the members of the group differ, such as "fsdp" or "data+fsdp"."""
    positions = np.unravel_index(np.array(collective.group), mesh.devices.shape)
    differ = (len(set(along.tolist())) > 1 for along in positions)
    return "+".join(name for name, different in zip(mesh.axis_names, differ, strict=True) if different)


def seconds(collective: Collective, mesh: Mesh, topology: Topology) -> float:
    """Time on the wires each time that the collective runs.

    The bytes are spread over the torus dimensions that the group spans, both ways along those that wrap around. Between
    the chips of a switch all links serve; a permutation uses one link of a torus, one way.
    """
    chip = topology.chip
    if collective.kind == "collective-permute" or not chip.dims:
        return collective.sent() / (chip.links / max(1, 2 * chip.dims))
    coordinates = np.array([mesh.devices.flat[number].coords for number in collective.group])
    ways = 0
    for dim, extent in enumerate(topology.shape):
        spanned = len(set(coordinates[:, dim].tolist()))
        if spanned > 1:
            ways += 2 if extent % _WRAPS[topology.kind] == 0 and spanned == extent else 1
    return collective.sent() / (chip.links / (2 * chip.dims) * max(1, ways))
