"""How often a loop runs whose length is data: looked up by the `jax.named_scope` in which it was written."""

from collections.abc import Mapping

Trips = Mapping[str, float] | None  # name of the scope -> how often its loop runs; None: every such loop counts once


def trips_of(scope: str, trips: Trips) -> float:
    """How often the loop in this scope runs.

    >>> trips_of("jit(train_step)/update_pieces", {"update_pieces": 6})
    6
    >>> trips_of("update_pieces/transpose(jvp(head_chunks))", {"head_chunks": 20})
    20

    Args:
        scope: the path of names in which the loop was written, "outer/…/name"; JAX writes transformations around names.
        trips: the known loops.

    Raises:
        ValueError: If the innermost name is not in `trips`.
    """
    if trips is None:
        return 1
    name = scope.rpartition("/")[2].rpartition("(")[2].rstrip(")")
    if name not in trips:
        raise ValueError(
            f"preflight cannot know how often a loop runs whose length is data: it was written under {scope!r}. Put it "
            f"into a jax.named_scope and add its count to preflight/programs.py: trips, which has {', '.join(trips)}"
        )
    return trips[name]
