"""Covariances against NumPy: token, prompt, heavy tail, quadrants; and no gradient flows through them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import batches

from entropy_rl import covariance


@pytest.fixture(params=range(3))
def batch(request: pytest.FixtureRequest) -> tuple[jax.Array, jax.Array, jax.Array]:
    _, tokens = batches.random_tokens(request.param, 8, 30)
    return tokens.logp, tokens.advantage, tokens.mask


def numpy_of(batch: tuple[jax.Array, ...]) -> tuple[np.ndarray, np.ndarray]:
    logp, advantage, mask = (np.asarray(x, np.float64) for x in batch)
    valid = mask > 0
    return valid, (logp - logp[valid].mean()) * (advantage - advantage[valid].mean()) * valid


def test_token_and_batch_covariance(batch):
    valid, cov = numpy_of(batch)
    np.testing.assert_allclose(covariance.token_covariance(*batch), cov, rtol=1e-5, atol=1e-6)
    x, y = (np.asarray(v)[valid] for v in batch[:2])
    np.testing.assert_allclose(covariance.batch_covariance(*batch), np.cov(x, y, bias=True)[0, 1], rtol=1e-4, atol=1e-6)


def test_prompt_covariance_centres_on_the_prompt(batch):
    out = covariance.prompt_covariance(*batch, group_size=4)
    for rows in (slice(0, 4), slice(4, 8)):
        part = tuple(x[rows] for x in batch)
        if part[2].sum() > 0:
            np.testing.assert_allclose(out[rows], numpy_of(part)[1], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="group_size: 3 does not divide the 8 sequences"):
        covariance.prompt_covariance(*batch, group_size=3)


def test_the_heavy_tail_is_the_mean_of_each_top_share(batch):
    valid, cov = numpy_of(batch)
    table = jax.jit(covariance.heavy_tail)(covariance.token_covariance(*batch), batch[2])
    ordered = np.sort(cov[valid])[::-1]
    assert set(table) == {"top_0.02pct", "top_0.2pct", "top_2pct", "top_20pct", "top_50pct", "all"}
    for name, share in covariance.TOP_SHARES.items():
        k = max(1, int(share * ordered.size + 1e-9))
        np.testing.assert_allclose(table[name], ordered[:k].mean(), rtol=1e-4, atol=1e-6)


def test_it_is_zero_on_an_empty_mask_and_does_not_read_masked_tokens(batch):
    logp, advantage, mask = batch
    spoilt = [jnp.where(mask > 0, x, jnp.nan) for x in (logp, advantage)]
    np.testing.assert_array_equal(covariance.token_covariance(*spoilt, mask), covariance.token_covariance(*batch))
    assert not np.any(covariance.token_covariance(logp, advantage, 0 * mask))


def test_it_is_detached(batch):
    logp, advantage, mask = batch
    assert not np.any(jax.grad(lambda x: covariance.token_covariance(x, advantage, mask).sum())(logp))


def test_quadrants(batch):
    logp, advantage, _ = batch
    valid, cov = numpy_of(batch)
    change = jnp.sin(10 * logp)
    table = covariance.quadrants(*batch, entropy_change=change)
    high, positive, negative = np.asarray(logp) > np.asarray(logp)[valid].mean(), advantage > 0, advantage < 0
    picks = {
        "high_prob_positive": high & positive,
        "high_prob_negative": high & negative,
        "low_prob_positive": ~high & positive,
        "low_prob_negative": ~high & negative,
    }
    assert set(table) == set(picks) == set(covariance.QUADRANTS)
    for name, quarter in picks.items():
        pick = np.asarray(quarter) & valid
        np.testing.assert_allclose(table[name]["share"], pick.sum() / valid.sum(), rtol=1e-5)
        for field, values in (("covariance", cov), ("entropy_change", np.asarray(change))):
            expected = values[pick].mean() if pick.any() else 0.0
            np.testing.assert_allclose(table[name][field], expected, rtol=1e-4, atol=1e-6)


def test_predictions_are_the_theorems_on_the_sampled_tokens(batch):
    valid, _ = numpy_of(batch)
    logp, advantage = (np.asarray(x, np.float64)[valid] for x in batch[:2])
    second = covariance.predicted_entropy_change(*batch, step_size=0.1, theorem=2)
    np.testing.assert_allclose(second, -0.1 * np.cov(logp, advantage, bias=True)[0, 1], rtol=1e-4, atol=1e-7)
    centred = np.exp(logp) * (advantage - advantage.mean())
    first = covariance.predicted_entropy_change(*batch, step_size=0.1, theorem=1)
    np.testing.assert_allclose(first, -0.1 * np.cov(logp, centred, bias=True)[0, 1], rtol=1e-4, atol=1e-7)
    with pytest.raises(ValueError, match="theorem: got 3, choose 1 or 2"):
        covariance.predicted_entropy_change(*batch, step_size=0.1, theorem=3)
