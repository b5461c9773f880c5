"""Clip-Cov: which tokens may be drawn, how many are, and that the draw is fair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.batches import random_tokens
from reference.transforms import covariance

from entropy_rl import token_transforms as tt


@jax.jit
def update(grads: tt.TokenGrads, tokens: tt.TokenInfo, key: jax.Array) -> tuple[tt.TokenGrads, tt.Masked]:
    made = tt.clip_cov(fraction=0.05, low=0.1, high=2.0)
    return made.update(grads, made.init(grads), tokens=tokens, key=key)


def stopped(tokens: tt.TokenInfo, key: jax.Array) -> np.ndarray:
    out, _ = update(tt.TokenGrads(tokens.mask, tokens.mask), tokens, key)
    return (np.asarray(out.logp) == 0) & (np.asarray(tokens.mask) > 0)


def candidates(tokens: tt.TokenInfo) -> np.ndarray:
    tokens = jax.tree.map(np.asarray, tokens)
    cov = covariance(tokens)
    return (tokens.mask > 0) & ~tokens.clipped & (cov > 0.1) & (cov < 2.0)


def test_it_draws_the_right_number_of_candidates_evenly():
    _, tokens = random_tokens(0, 16, 30)
    may, k = candidates(tokens), int(0.05 * tokens.mask.sum())
    drawn = [stopped(tokens, jax.random.key(i)) for i in range(300)]
    assert all(d.sum() == k for d in drawn) and k > 5
    share = np.mean(drawn, axis=0)
    assert np.all(share[~may] == 0)
    expected = k / may.sum()
    assert np.all(np.abs(share[may] - expected) < 5 * np.sqrt(expected / 300))


def test_it_stops_every_candidate_if_there_are_too_few():
    _, tokens = random_tokens(0, 16, 30)
    few = tokens._replace(clipped=jnp.asarray(~candidates(tokens)).at[:15].set(True))
    np.testing.assert_array_equal(stopped(few, jax.random.key(0)), candidates(few))
    assert candidates(few).sum() < int(0.05 * tokens.mask.sum())


def test_it_stops_at_least_one_token():
    _, tokens = random_tokens(0, 16, 30)
    made = tt.build([("clip_cov", {"fraction": 1e-5, "low": 0.0})])
    grads = tt.TokenGrads(tokens.mask, tokens.mask)
    _, state = jax.jit(made.update)(grads, made.init(grads), tokens=tokens, key=jax.random.key(0))
    assert float(tt.kept_fraction(state)) == pytest.approx(1 - 1 / float(tokens.mask.sum()))


def test_the_highest_are_those_of_the_interval_and_not_of_the_batch():
    _, tokens = random_tokens(0, 16, 30)
    made = tt.clip_cov(fraction=0.05, low=0.1, high=2.0, pick="highest")
    kept_BxT, cov = np.asarray(made.factor(tokens, None)), covariance(jax.tree.map(np.asarray, tokens))
    stop, may = (kept_BxT == 0) & (np.asarray(tokens.mask) > 0), candidates(tokens)
    assert stop.sum() == int(0.05 * tokens.mask.sum()) < may.sum() and not np.any(stop & ~may)
    assert cov[stop].min() > cov[may & ~stop].max() and cov.max() > 2.0


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1])
def test_a_fraction_out_of_range_is_an_error(fraction):
    with pytest.raises(ValueError, match=r"algo.transforms.clip_cov.fraction=.* must be above 0 and at most 1"):
        tt.clip_cov(fraction=fraction)
