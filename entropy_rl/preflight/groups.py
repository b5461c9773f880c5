"""The chips that exchange in a collective, read from its attributes.

XLA writes the groups of a collective in three forms; each is read here for the group of partition 0.
"""

import math
import re
from typing import NamedTuple

import numpy as np

_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\]([^{]*)\{([^}]*)\}")
_DEVICE_IDS = re.compile(r"device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)")
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{\{([\d,\s]*)\}")


def first_group(attributes: str) -> tuple[int, ...]:
    """The numbers of the partitions in the group of partition 0; empty if there are no groups.

    >>> first_group("replica_groups={{0,2},{1,3}}"), first_group("replica_groups=[2,2]<=[4]")
    ((0, 2), (0, 1))

    Args:
        attributes: the text after a collective's operands.
    """
    for form, read in ((_IOTA, _from_iota), (_MESH, _from_mesh), (_LISTED, _from_list)):
        if found := form.search(attributes):
            return read(found)
    return ()


def _from_iota(found: re.Match[str]) -> tuple[int, ...]:
    """`[groups,members]<=[dims]T(permutation)`: all numbers in the shape `dims`, permuted, cut into groups in order."""
    groups, dims, permutation = found.groups()
    numbers = _numbers(dims, permutation).reshape(_integers(groups))
    return tuple(numbers[0].tolist())


def _from_mesh(found: re.Match[str]) -> tuple[int, ...]:
    """`mesh['a'=2,'b'=4], device_ids=(…) {'b'}`: the partitions of a mesh that differ along the axes in braces."""
    axes, device_ids, exchanged = found.groups()
    parts = [part for name, size in re.findall(r"'([^']+)'=(\d+)", axes) for part in _parts(name, int(size), exchanged)]
    sizes = [part.size for part in parts]
    order = _DEVICE_IDS.search(device_ids)
    numbers = _numbers(*order.groups()) if order else np.arange(math.prod(sizes))
    index = tuple(slice(None) if part.exchanged else 0 for part in parts)
    return tuple(numbers.reshape(sizes)[index].ravel().tolist())


def _from_list(found: re.Match[str]) -> tuple[int, ...]:
    """`{{0,2},{1,3}}`: the groups themselves, or a permutation's pairs, the first of which is taken."""
    return tuple(_integers(found[1]))


class _Part(NamedTuple):
    """A part of a mesh axis, and whether the members of a group differ along it."""

    size: int
    exchanged: bool


def _parts(name: str, size: int, exchanged: str) -> list[_Part]:
    """The axis whole, or, if only a part of it is exchanged (`'a':(before)size`), that part and those around it."""
    found = re.search(rf"'{re.escape(name)}'(?::\((\d+)\)(\d+))?", exchanged)
    if not found or not found[1]:
        return [_Part(size, bool(found))]
    before, within = int(found[1]), int(found[2])
    return [_Part(before, False), _Part(within, True), _Part(size // before // within, False)]


def _numbers(dims: str, permutation: str | None) -> np.ndarray:
    """0, 1, 2, … in the shape `dims`, its axes permuted."""
    shape = _integers(dims)
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return numbers.transpose(_integers(permutation)) if permutation else numbers


def _integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number.strip()]
