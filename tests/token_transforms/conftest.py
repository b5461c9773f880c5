"""Programs that run once or twice compile twice as fast without most of XLA's optimisations."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def compile_quickly(request: pytest.FixtureRequest) -> Iterator[None]:
    """Applies to every file here except the common matrix, which tests the programs that users run."""
    jax.config.update("jax_disable_most_optimizations", request.module.__name__ != "test_matrix")
    yield
    jax.config.update("jax_disable_most_optimizations", False)
