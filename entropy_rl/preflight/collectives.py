"""The collectives of a compiled program: kind, bytes, mesh axes, and the time that they take on the wires."""

import math
import re
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from entropy_rl.preflight import hlo
from entropy_rl.preflight.chips import Topology

# Links wrap round, so that data goes both ways about a ring, from this extent on, and at its multiples.
_WRAPS = {"v5e": 16, "v6e": 16, "v5p": 4}


class Collective(NamedTuple):
    """One collective of the program.

    Attributes:
        kind: one of `hlo.COLLECTIVES`.
        times: how often it runs.
        bytes: of the whole: the larger of what goes in and what comes out, on one chip.
        group: partition numbers of the chips that exchange with the first.
        overlapped: the chip computes meanwhile: the program starts it and goes on, or it is part of a product.
        label: what the source called it.
    """

    kind: str
    times: float
    bytes: float
    group: tuple[int, ...]
    overlapped: bool
    label: str

    def sent(self) -> float:
        """Bytes out of one chip, each time, by the best algorithm on a ring."""
        n = len(self.group)
        if self.kind == "collective-permute":
            return self.bytes
        return self.bytes * (n - 1) / n * (2 if self.kind == "all-reduce" else 1)


def find(program: hlo.Program, trips: hlo.Trips) -> list[Collective]:
    """All collectives among more than one chip.

    The compiler for TPUs spreads one over the fusions that it goes on beside: these share its channel. A sum of which
    each chip keeps a slice is written as an all-reduce in a fusion of that name.
    """
    found: dict[str, Collective] = {}
    for times, i, _ in program.walk(trips):
        for j in (i, *program.inside(i).values()):
            kind = j.opcode.removesuffix("-start")
            if kind not in hlo.COLLECTIVES or len(group := first_group(j.rest)) < 2:
                continue
            whole = max(map(hlo.size, hlo.parts(j.type))) if j.opcode.endswith("-start") else hlo.size(j.type)
            whole *= len(group) if kind == "reduce-scatter" else 1
            sliced = j is not i and "all-reduce-scatter" in i.called[0]
            channel = re.search(r"channel_id=(\d+)", j.rest)
            one = Collective(
                "reduce-scatter" if sliced else kind,
                times,
                whole,
                group,
                overlapped=j.opcode.endswith("-start") or (j is not i and not sliced),
                label=j.label,
            )
            found.setdefault(channel[1] if channel else j.name, one)
    return list(found.values())


def first_group(rest: str) -> tuple[int, ...]:
    """Partition 0's group, in any of the forms that groups are written in."""
    ints = lambda text: [int(x) for x in text.split(",") if x.strip()]
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        ids = np.arange(math.prod(ints(found[2]))).reshape(ints(found[2]))
        ids = ids.transpose(ints(found[3])) if found[3] else ids
        return tuple(ids.reshape(ints(found[1]))[0].tolist())
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\]([^{]*)\{([^}]*)\}", rest):
        axes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", found[1])}
        ids, chosen = np.arange(math.prod(axes.values())), []
        if order := re.search(r"device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)", found[2]):
            ids = ids.reshape(ints(order[1]))
            ids = (ids.transpose(ints(order[2])) if order[2] else ids).ravel()
        split: list[int] = []
        for name, n in axes.items():
            part = re.search(rf"'{re.escape(name)}'(?::\((\d+)\)(\d+))?", found[3])
            if part and part[1]:  # a part of an axis: what stands before it, its size, what is left
                chosen.append(len(split) + 1)
                split += [int(part[1]), int(part[2]), n // int(part[1]) // int(part[2])]
            else:
                if part:
                    chosen.append(len(split))
                split.append(n)
        ids = ids.reshape(split)
        return tuple(ids[tuple(slice(None) if k in chosen else 0 for k in range(len(split)))].ravel().tolist())
    if found := re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,\s]*)\}", rest):
        return tuple(ints(found[1]))
    return ()


def axes(c: Collective, mesh: Mesh) -> str:
    """The mesh axes along which the members of a group differ, as "fsdp" or "data+fsdp"."""
    at = np.unravel_index(np.array(c.group), mesh.devices.shape)
    return "+".join(name for name, places in zip(mesh.axis_names, at, strict=True) if len(set(places.tolist())) > 1)


def seconds(c: Collective, mesh: Mesh, topology: Topology) -> float:
    """Time on the wires, each time: along the torus dimensions that the group spans, both ways where they wrap."""
    chip = topology.chip
    if c.kind == "collective-permute" or not chip.dims:
        return c.sent() / (chip.links / max(1, 2 * chip.dims))
    places = np.array([mesh.devices.flat[k].coords for k in c.group])
    ways = 0
    for k in range(places.shape[1]):
        extent = len(set(places[:, k].tolist()))
        if extent > 1:
            ways += 2 if topology.shape[k] % _WRAPS[topology.kind] == 0 and extent == topology.shape[k] else 1
    return c.sent() / (chip.links / (2 * chip.dims) * max(1, ways))
