"""How often a loop runs whose length is data: looked up by the `jax.named_scope` in which it was written."""

from collections.abc import Mapping

Trips = Mapping[str, float] | None  # name of the scope -> how often its loop runs; None: every such loop counts once


def trips_of(scope: str, trips: Trips) -> float:
    """How often the loop in this scope runs.

    >>> trips_of("jit(train_step)/update_pieces", {"update_pieces": 6})
    6

    Args:
        scope: the path of names in which the loop was written, "outer/…/name".
        trips: the known loops.

    Raises:
        ValueError: If the innermost name is not in `trips`.
    """
    if trips is None:
        return 1
    name = scope.rpartition("/")[2]
    if name not in trips:
        raise ValueError(
            f"preflight cannot know how often a loop runs whose length is data: it was written under {scope!r}. Put it "
            f"into a jax.named_scope and add its count to preflight/programs.py: trips, which has {', '.join(trips)}"
        )
    return trips[name]
