"""Draws follow the distribution, truncated or not, and never take a token that cannot be drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl.sampling.base import Sampling
from entropy_rl.sampling.draw import draw


def test_draw_follows_the_distribution():
    logits = jax.random.normal(jax.random.key(0), (1, 1000)) * 3

    @jax.jit
    def many(key):
        return draw(jnp.repeat(logits, 20_000, 0), jax.random.split(key, 20_000), Sampling(0.8))

    counts = sum(np.bincount(many(jax.random.key(i)), minlength=1000) for i in range(5))
    expected = np.asarray(jax.nn.softmax(logits[0] / 0.8)) * counts.sum()
    often = expected > 5
    chi2 = np.sum((counts - expected)[often] ** 2 / expected[often])
    df = often.sum() - 1
    assert abs(chi2 - df) < 5 * np.sqrt(2 * df)


def test_draw_never_takes_what_cannot_be_drawn():
    logits = jnp.full((1, 300), -jnp.inf).at[0, 299].set(0.0).at[0, 17].set(-1.0)
    tokens = draw(jnp.repeat(logits, 4096, 0), jax.random.split(jax.random.key(1), 4096), Sampling(1.0))
    assert set(np.unique(tokens)) == {17, 299}


@pytest.mark.parametrize(
    "how, legal",
    [(dict(top_k=2), {0, 1}), (dict(top_p=0.5), {0}), (dict(top_p=0.8), {0, 1}), (dict(top_k=1, top_p=0.9), {0})],
)
def test_truncation(how, legal):
    logits = jnp.log(jnp.array([[0.6, 0.3, 0.08, 0.02]]))
    tokens = draw(jnp.repeat(logits, 2000, 0), jax.random.split(jax.random.key(1), 2000), Sampling(**how))
    assert set(np.unique(tokens)) == legal
