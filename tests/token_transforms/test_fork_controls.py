"""The controls of forking tokens: what each keeps of them, and what it does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.batches import random_tokens

from entropy_rl import token_transforms as tt


def kept(name, tokens, key=0, **options) -> np.ndarray:
    """bool[B, T]."""
    made = tt.build([(name, options)])
    grads = tt.TokenGrads(tokens.mask, tokens.mask)
    return np.asarray(made.update(grads, made.init(grads), tokens=tokens, key=jax.random.key(key))[0].logp != 0)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("name", "axis"), [("keep_shuffled_entropy", 1), ("keep_entropy_positions", 0)])
def test_a_marginal_of_the_forks_is_kept_and_the_rest_is_random(name, axis, ties):
    _, tokens = random_tokens(3, 16, 40, ties=ties)
    forks = kept("keep_top_entropy", tokens, fraction=0.3)
    draws = np.array([kept(name, tokens, key, fraction=0.3) for key in range(3)])
    assert all(np.array_equal(one.sum(axis), forks.sum(axis)) for one in draws)
    assert all(one.sum() == forks.sum() and not np.any(one & (np.asarray(tokens.mask) == 0)) for one in draws)
    assert not any(np.array_equal(one.sum(1 - axis), forks.sum(1 - axis)) for one in draws)
    assert not np.array_equal(draws[0], draws[1])
    entropy = np.asarray(tokens.entropy)
    assert entropy[forks].mean() > 1.5 * np.mean([entropy[one].mean() for one in draws])


@pytest.mark.parametrize("name", ["keep_shuffled_entropy", "keep_entropy_positions"])
def test_every_token_has_the_same_chance(name):
    _, tokens = random_tokens(3, 6, 8)
    tokens = tokens._replace(mask=jnp.ones((6, 8)))
    forks = kept("keep_top_entropy", tokens, fraction=0.5)
    made = tt.build([(name, {"fraction": 0.5})])
    grads = tt.TokenGrads(tokens.mask, tokens.mask)
    update = jax.jit(lambda key: made.update(grads, made.init(grads), tokens=tokens, key=key)[0].logp != 0)
    share = np.mean([update(key) for key in jax.random.split(jax.random.key(0), 400)], axis=0)
    axis = 1 if name == "keep_shuffled_entropy" else 0
    want = np.broadcast_to(forks.mean(axis, keepdims=True), share.shape)
    assert np.all(np.abs(share - want) <= 5 * np.sqrt(0.25 / 400))


def test_the_whole_batch_is_kept_by_all_alike():
    _, tokens = random_tokens(3, 8, 12)
    for name in ("keep_shuffled_entropy", "keep_entropy_positions", "keep_top_ref_entropy", "keep_by_probability"):
        assert np.array_equal(kept(name, tokens, fraction=1.0), np.asarray(tokens.mask) > 0)


def test_the_forks_of_the_policy_that_is_its_own_reference_are_the_forks():
    _, tokens = random_tokens(3, 8, 12)
    same = tokens._replace(ref_entropy=tokens.entropy)
    assert np.array_equal(kept("keep_top_ref_entropy", same), kept("keep_top_entropy", tokens))
    assert not np.array_equal(kept("keep_top_ref_entropy", tokens), kept("keep_top_entropy", tokens))
    with pytest.raises(ValueError, match=r"keep_top_ref_entropy needs TokenInfo\.ref_entropy, which is None"):
        kept("keep_top_ref_entropy", tokens._replace(ref_entropy=None))


def test_the_likeliest_and_the_least_likely_are_the_ends_of_one_order():
    _, tokens = random_tokens(3, 8, 12)
    logp, valid = np.asarray(tokens.logp), np.asarray(tokens.mask) > 0
    high = kept("keep_by_probability", tokens, fraction=0.3)
    low = kept("keep_by_probability", tokens, fraction=0.3, lowest=True)
    assert high.sum() == low.sum() == int(0.3 * valid.sum())
    assert logp[high].min() >= logp[valid & ~high].max() and logp[low].max() <= logp[valid & ~low].min()


def test_two_draws_do_not_share_a_salt():
    tt.build(["keep_shuffled_entropy", "keep_entropy_positions", "random_mask", "clip_cov", "random_positive_clip"])
