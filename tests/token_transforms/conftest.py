"""Programs that run once or twice are compiled in half the time without most of XLA's optimisations."""

import jax
import pytest


@pytest.fixture(autouse=True)
def compile_quickly(request):
    """Everywhere here but in the common matrix, which tests what a user runs."""
    jax.config.update("jax_disable_most_optimizations", request.module.__name__ != "test_matrix")
    yield
    jax.config.update("jax_disable_most_optimizations", False)
