"""Products counted in a jaxpr, every loop as often as it runs: what compiled programs tell only once a loop."""

import math
from collections.abc import Callable

from jax.extend import core

from entropy_rl.head import REST

Trips = Callable[[str], int]  # the function that wrote a loop without a static length -> how often it runs


def count(jaxpr, trips: Trips) -> float:
    """FLOPs of all chips together: 2 for a multiplication and an addition; products alone.

    Of a condition the dearer branch counts. A kernel counts its grid, by half: the triangle under a causal mask.
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
            total += once and trips(author(eqn)) * once
        elif name == "cond":
            total += max(count(branch.jaxpr, trips) for branch in p["branches"])
        elif name == "shard_map":
            total += p["mesh"].size * count(p["jaxpr"], trips)
        elif name == "pallas_call":
            total += math.prod(p["grid_mapping"].grid) * count(p["jaxpr"], lambda _: 1) / 2
        else:
            total += sum(count(inner, trips) for inner in _inner(p))
    return total


def author(eqn) -> str:
    """The function of this package that a loop stands in, or the part of it that has a name."""
    if REST in str(eqn.source_info.name_stack):
        return REST
    frames = eqn.source_info.traceback.frames if eqn.source_info.traceback else []
    return next((f.function_name for f in frames if "/entropy_rl/" in f.file_name), "")


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
