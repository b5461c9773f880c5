"""GMTS: the norm of a token's gradient at the logits, and which tokens are kept by it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.batches import random_tokens

from entropy_rl import token_transforms as tt
from entropy_rl.objective import surrogates

B, T, V = 4, 6, 9


def update(transform, grads, tokens):
    return jax.jit(transform.update)(grads, transform.init(grads), tokens=tokens, key=None)[0]


def of_logits(seed):
    """(logits, targets, tokens): the statistics of one distribution per position."""
    keys = jax.random.split(jax.random.key(seed), 5)
    logits, targets = 2 * jax.random.normal(keys[0], (B, T, V)), jax.random.randint(keys[1], (B, T), 0, V)
    logp_all = jax.nn.log_softmax(logits)
    logp = jnp.take_along_axis(logp_all, targets[..., None], -1)[..., 0]
    tokens = tt.TokenInfo(
        logp=logp,
        old_logp=logp + 0.3 * jax.random.normal(keys[2], (B, T)),
        advantage=jnp.repeat(jax.random.normal(keys[3], (B, 1)), T, axis=1),
        entropy=-jnp.sum(jnp.exp(logp_all) * logp_all, -1),
        mask=jnp.ones((B, T)),
        clipped=jnp.zeros((B, T), bool),
        prob_square=jnp.sum(jnp.exp(2 * logp_all), -1),
    )
    return logits, targets, tokens


@pytest.mark.parametrize("seed", range(3))
def test_it_ranks_by_the_norm_of_the_losss_gradient_at_the_logits(seed):
    logits, targets, tokens = of_logits(seed)
    objective = surrogates.build(("ppo_clip", {"low": 0.2, "high": 0.28}))

    def loss(logits):
        logp = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
        return jnp.sum(objective(logp, tokens)[0])

    norm = np.linalg.norm(jax.grad(loss)(logits), axis=-1)
    _, grads, clipped = surrogates.token_gradient(objective, tokens)
    assert np.any(clipped) and not norm[np.asarray(clipped)].any()
    kept = np.asarray(update(tt.keep_top_gradient(0.25), grads, tokens._replace(clipped=clipped)).logp) != 0
    assert kept.sum() == B * T // 4
    assert norm[kept].min() > norm[~kept].max()


@pytest.mark.parametrize("factory", [tt.keep_top_gradient, tt.keep_top_gradient_estimate])
def test_a_share_of_1_is_the_plain_objective_bit_for_bit(factory):
    grads, tokens = random_tokens(1, 8, 25)
    out = update(factory(fraction=1.0), grads, tokens)
    jax.tree.map(np.testing.assert_array_equal, out, grads)


def test_the_exact_norm_keeps_other_tokens_than_the_estimate():
    """Two tokens of one entropy: the unlikely one has the larger gradient."""
    p = jnp.array([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]])
    tokens = tt.TokenInfo(
        logp=jnp.log(p[:, :1]),
        old_logp=jnp.log(p[:, :1]),
        advantage=jnp.array([[1.0], [0.9]]),
        entropy=-jnp.sum(p * jnp.log(p), -1, keepdims=True),
        mask=jnp.ones((2, 1)),
        clipped=jnp.zeros((2, 1), bool),
        prob_square=jnp.sum(p**2, -1, keepdims=True),
    )
    ones = tt.TokenGrads(tokens.mask, tokens.mask)
    assert update(tt.keep_top_gradient(0.5), ones, tokens).logp.tolist() == [[0.0], [2.0]]
    assert update(tt.keep_top_gradient_estimate(0.5), ones, tokens).logp.tolist() == [[2.0], [0.0]]


def test_the_missing_statistic_is_named():
    grads, tokens = random_tokens(1, 8, 25)
    with pytest.raises(ValueError, match=r"keep_top_gradient needs TokenInfo.prob_square, which is None"):
        update(tt.keep_top_gradient(), grads, tokens._replace(prob_square=None))
