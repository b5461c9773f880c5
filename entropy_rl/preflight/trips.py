"""How often a loop runs whose length is data: by the name of the `jax.named_scope` that it was written in."""

from collections.abc import Mapping

Trips = Mapping[str, float] | None  # name of the scope -> how often its loop runs; None: every such loop counts once


def trips_of(scope: str, trips: Trips) -> float:
    """How often the loop in this scope runs.

    Args:
        scope: the names that the loop was written under, "outer/…/name".
        trips: the loops that are known.

    Raises:
        ValueError: the innermost name is none of those in `trips`.
    """
    if trips is None:
        return 1
    name = scope.rpartition("/")[2]
    if name not in trips:
        raise ValueError(
            f"preflight cannot tell how often a loop runs whose length is data: it was written under {scope!r}. Put it "
            f"into a jax.named_scope and its count into preflight/programs.py: trips, which has {', '.join(trips)}"
        )
    return trips[name]
