"""Matrix products counted in a jaxpr, every loop as often as it runs: a compiled program reports a loop only once."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from jax.extend import core

from entropy_rl.preflight.trips import Trips, trips_of


def count(jaxpr: core.Jaxpr, trips: Trips) -> float:
    """FLOPs of all chips together: 2 per multiplication and addition; only products count.

    A condition counts as its most expensive branch. A kernel counts once per cell of its grid, halved: it computes the
    triangle under a causal mask.

    Args:
        jaxpr: a traced function.
        trips: how often the loops run whose length is data.

    Raises:
        ValueError: If a loop with products in it has a length that is data and its scope is not in `trips`.
    """
    total = 0.0
    for eqn in jaxpr.eqns:
        total += _flops(eqn, trips)
    return total


def _flops(eqn: core.JaxprEqn, trips: Trips) -> float:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        return _product(eqn)
    if name == "scan":
        return params["length"] * count(params["jaxpr"].jaxpr, trips)
    if name == "while":
        once = count(params["body_jaxpr"].jaxpr, trips)
        return trips_of(str(eqn.source_info.name_stack), trips) * once if once else 0.0
    if name == "cond":
        return max(count(branch.jaxpr, trips) for branch in params["branches"])
    if name == "shard_map":
        return params["mesh"].size * count(params["jaxpr"], trips)
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid) * count(params["jaxpr"], None) / 2
    return sum(count(inner, trips) for inner in _inner(params))


def _product(eqn: core.JaxprEqn) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    out, left = (var.aval.shape for var in (eqn.outvars[0], eqn.invars[0]))  # type: ignore[attr-defined]
    return 2.0 * math.prod(out) * math.prod(left[i] for i in contracted)


def _inner(params: Mapping[str, Any]) -> Iterator[core.Jaxpr]:
    """The jaxprs among the parameters of an equation."""
    for value in params.values():
        for member in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(member, core.ClosedJaxpr):
                yield member.jaxpr
            elif isinstance(member, core.Jaxpr):
                yield member
