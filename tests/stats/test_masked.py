"""Means, shares and quantiles over valid tokens, against NumPy on only those tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from reference import batches

from entropy_rl.stats import masked

mean, total, exact_mean, response_mean, fraction_below = map(
    jax.jit, (masked.mean, masked.total, masked.exact_mean, masked.response_mean, masked.fraction_below)
)
quantile, top_mean = (jax.jit(f, static_argnums=2) for f in (masked.quantile, masked.top_mean))


@pytest.fixture(params=[(s, t) for s in batches.SHAPES for t in (False, True)], ids=str)
def case(request: pytest.FixtureRequest) -> tuple[jax.Array, jax.Array, np.ndarray]:
    """x, which is NaN at masked tokens, the mask, and the valid values."""
    shape, ties = request.param
    _, tokens = batches.random_tokens(sum(shape), *shape, ties=ties)
    x = jnp.where(tokens.mask > 0, tokens.logp, jnp.nan)
    return x, tokens.mask, np.asarray(tokens.logp)[np.asarray(tokens.mask) > 0]


def test_mean_total_and_size(case):
    x, mask, valid = case
    np.testing.assert_allclose(mean(x, mask), valid.mean(), rtol=1e-5)
    np.testing.assert_allclose(total(x, mask), valid.sum(), rtol=1e-5)
    assert int(masked.size(mask)) == valid.size
    np.testing.assert_allclose(exact_mean(x, mask), valid.mean(dtype=np.float64), rtol=1e-6, atol=1e-7)


def test_response_mean_leaves_out_empty_responses(case):
    x, mask, _ = case
    rows = [np.mean(np.asarray(x)[b][np.asarray(mask)[b] > 0]) for b in range(x.shape[0]) if mask[b].sum() > 0]
    np.testing.assert_allclose(response_mean(x, mask), np.mean(rows), rtol=1e-5)


@pytest.mark.parametrize("q", [0.0, 0.25, 0.8, 0.999, 1.0])
def test_quantile_equals_numpy(case, q):
    x, mask, valid = case
    np.testing.assert_allclose(quantile(x, mask, q), np.quantile(valid, q), rtol=1e-6)


@pytest.mark.parametrize("fraction", [2e-4, 0.2, 0.5, 1.0])
def test_top_mean_is_the_mean_of_the_sorted_top(case, fraction):
    x, mask, valid = case
    k = max(1, int(fraction * valid.size))
    np.testing.assert_allclose(top_mean(x, mask, fraction), np.sort(valid)[::-1][:k].mean(), rtol=1e-5)


def test_fraction_below(case):
    x, mask, valid = case
    np.testing.assert_allclose(fraction_below(x, mask, -1.0), np.mean(valid < -1.0), rtol=1e-6)


def test_all_are_zero_on_an_empty_mask():
    x, mask = jnp.full((3, 4), jnp.nan), jnp.zeros((3, 4))
    for value in (
        mean(x, mask),
        total(x, mask),
        response_mean(x, mask),
        exact_mean(x, mask),
        quantile(x, mask, 0.8),
        top_mean(x, mask, 0.2),
        fraction_below(x, mask, 1.0),
        masked.token_mean_weight(mask).sum(),
    ):
        assert float(value) == 0.0


def test_exact_mean_has_the_same_bits_in_any_order_and_on_any_mesh():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(64, 257)) * 10.0 ** rng.integers(-6, 6, (64, 1))).astype(np.float32)
    mask = batches.random_mask(rng, 64, 257)
    rows = NamedSharding(Mesh(np.array(jax.devices()[:8]), ("data",)), PartitionSpec("data"))
    order = rng.permutation(64)
    values = {
        float(exact_mean(*pair))
        for pair in ((x, mask), (x[order], mask[order]), (x[:, ::-1], mask[:, ::-1]), jax.device_put((x, mask), rows))
    }
    assert len(values) == 1
    np.testing.assert_allclose(values.pop(), x[mask > 0].mean(dtype=np.float64), atol=2.0**-24 * np.abs(x).max())


@pytest.mark.parametrize(
    "rows", [2**6 - 1, 2**6, pytest.param(2**7, marks=pytest.mark.slow)]
)  # of 2**18 tokens: below 2**24 tokens, at it, and above
def test_exact_mean_does_not_overflow_at_any_number_of_tokens(rows):
    x = jnp.full((rows, 2**18), -0.999)
    assert float(exact_mean(x, jnp.ones(x.shape, bool))) == pytest.approx(-0.999, rel=2.0**-22)
