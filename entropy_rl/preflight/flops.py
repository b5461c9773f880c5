"""Products counted in a jaxpr, every loop as often as it runs: what compiled programs tell only once a loop."""

import math

from jax.extend import core

from entropy_rl.preflight.trips import Trips, trips_of


def count(jaxpr, trips: Trips) -> float:
    """FLOPs of all chips together: 2 for a multiplication and an addition; products alone.

    Of a condition the dearer branch counts. A kernel counts its grid, by half: the triangle under a causal mask.

    Raises:
        ValueError: a loop with products in it whose length is data and which has no name in `trips`.
    """
    total = 0.0
    for eqn in jaxpr.eqns:
        name, p = eqn.primitive.name, eqn.params
        if name == "dot_general":
            total += _dot(eqn)
        elif name == "scan":
            total += p["length"] * count(p["jaxpr"].jaxpr, trips)
        elif name == "while":
            once = count(p["body_jaxpr"].jaxpr, trips)
            total += once and trips_of(str(eqn.source_info.name_stack), trips) * once
        elif name == "cond":
            total += max(count(branch.jaxpr, trips) for branch in p["branches"])
        elif name == "shard_map":
            total += p["mesh"].size * count(p["jaxpr"], trips)
        elif name == "pallas_call":
            total += math.prod(p["grid_mapping"].grid) * count(p["jaxpr"], None) / 2
        else:
            total += sum(count(inner, trips) for inner in _inner(p))
    return total


def _dot(eqn) -> float:
    (contract, _), _ = eqn.params["dimension_numbers"]
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(eqn.invars[0].aval.shape[i] for i in contract)


def _inner(params):
    for value in params.values():
        for x in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(x, core.ClosedJaxpr):
                yield x.jaxpr
            elif isinstance(x, core.Jaxpr):
                yield x
