"""The random controls: fair draws of an exact size, independent of each other."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.batches import random_tokens

from entropy_rl import token_transforms as tt
from entropy_rl.objective.registry import Spec


def kept(transforms: list[Spec], tokens: tt.TokenInfo, keys: Iterable[jax.Array]) -> np.ndarray:
    """The tokens that the chain keeps under each key, bool[keys, B, T]."""
    made = tt.build(transforms)
    grads = tt.TokenGrads(jnp.ones_like(tokens.mask), jnp.ones_like(tokens.mask))
    update = jax.jit(made.update)
    return np.array([update(grads, made.init(grads), tokens=tokens, key=k)[0].logp != 0 for k in keys])


def test_a_random_mask_is_fair_and_as_large_as_the_forking_mask():
    _, tokens = random_tokens(0, 16, 30)
    valid = np.asarray(tokens.mask) > 0
    draws = kept([("random_mask", {"fraction": 0.2})], tokens, jax.random.split(jax.random.key(0), 300))
    assert np.all(draws.sum((1, 2)) == int(0.2 * valid.sum()))
    share = draws.mean(0)
    assert np.all(share[~valid] == 0) and np.all(np.abs(share[valid] - 0.2) < 5 * np.sqrt(0.2 * 0.8 / 300))


def test_a_positive_clip_stops_only_positive_tokens():
    _, tokens = random_tokens(0, 16, 30)
    valid, positive = np.asarray(tokens.mask) > 0, np.asarray(tokens.advantage) > 0
    draws = kept([("random_positive_clip", {"fraction": 0.1})], tokens, jax.random.split(jax.random.key(0), 20))
    stopped = ~draws & valid
    assert np.all(stopped.sum((1, 2)) == int(0.1 * valid.sum()))
    assert not np.any(stopped & ~positive)


def test_two_random_transforms_of_a_chain_are_independent():
    _, tokens = random_tokens(0, 64, 64)
    n = float(tokens.mask.sum())
    half = {"fraction": 0.5}
    both = kept([("random_mask", half), ("random_mask", {**half, "salt": 9})], tokens, [jax.random.key(0)])[0]
    assert abs(both.sum() / n - 0.25) < 5 * np.sqrt(0.25 * 0.75 / n)


def test_two_draws_with_one_salt_are_refused():
    with pytest.raises(ValueError, match="random_mask and random_mask both draw with salt=1"):
        tt.build(["random_mask", "random_mask"])
    with pytest.raises(ValueError, match="clip_cov and random_mask both draw with salt=0"):
        tt.build(["clip_cov", ("random_mask", {"salt": 0})])
